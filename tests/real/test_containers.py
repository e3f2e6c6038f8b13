"""Containers of real runtimes that are killed for want of memory: what we tell of each, and what the runtime says."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcg_oom import Monitor, Oom, OomKill, Removed, identify
from memcg_oom.command.text import line
from tests.real import containers
from tests.support import Reader, eventually


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return containers.build_rootfs(tmp_path_factory.mktemp("containers") / "rootfs")


@pytest.fixture(params=containers.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    why_not = containers.missing(name)
    if why_not:
        pytest.skip(why_not)
    return name


def test_the_kill_of_a_container_is_told_once(
    memcg: Path, runtime: str, request: pytest.FixtureRequest, figure: dict[str, object]
) -> None:
    """Which container, which process, whose limit; beside what the runtime says of it."""
    rootfs: Path = request.getfixturevalue("rootfs")  # only where there is a runtime, and so busybox
    with containers.RUNTIMES[runtime](rootfs, memcg) as container, Monitor() as monitor:
        watch = monitor.watch(container.cgroup)
        reader = Reader(monitor)
        container.start()
        reader.wait_until(lambda: reader.ledger.kills[watch] or reader.removed)
        assert container.wait() == 137
        eventually(container.reports)
        figure["reports"] = container.reports()
        container.remove()
        reader.wait_for_removals(1)
        reader.finish()
        told = reader.ledger.by_watch[watch]
        assert any(isinstance(event, Oom) for event in told)
        assert isinstance(told[-1], Removed)
        (kill,) = [event for event in told if isinstance(event, OomKill)]
        assert kill.count == 1
        who = identify(kill.cgroup)
        assert who.container == container.id
        assert who.runtime == {"podman": "podman"}.get(runtime)  # of the others the path has the bare id
        (victim,) = kill.victims
        assert victim.comm == "tail"
        assert victim.anon_rss is not None
        assert victim.anon_rss > containers.LIMIT // 2
        # Nobody but the log tells, and that not if ten others died in the last five seconds.
        assert kill.limit_cgroup in (None, str(container.cgroup))
        figure["line"] = line(kill).split("  ", 1)[1]
        assert container.id[:12] in line(kill)
