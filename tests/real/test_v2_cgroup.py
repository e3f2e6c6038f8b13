"""Cgroup on cgroup v2, against the real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from memcg_oom import Cgroup, NotACgroupError, UnsupportedError
from memcg_oom.mounts import memory_mount
from tests.support import PATIENCE, control_memory, event_count, make, put, run_hog

MIB = 1 << 20


def test_the_limits(memcg2: Path) -> None:
    cgroup = Cgroup.create(memcg2 / "a")
    assert cgroup.version == 2
    assert (cgroup.limit, cgroup.high) == (None, None)
    cgroup.limit, cgroup.high = 3 * MIB + 5, 2 * MIB
    assert (cgroup.limit, cgroup.high) == (3 * MIB, 2 * MIB)
    assert (memcg2 / "a/memory.max").read_text() == f"{3 * MIB}\n"
    cgroup.limit = cgroup.high = None
    assert (memcg2 / "a/memory.max").read_text() == (memcg2 / "a/memory.high").read_text() == "max\n"
    for name in ("limit", "high"):
        with pytest.raises(ValueError, match="a limit must be"):
            setattr(cgroup, name, -1)


def test_usage_peak_and_events(memcg2: Path, hog: str) -> None:
    cgroup = Cgroup(make(memcg2 / "a", "4M"))
    child = Cgroup(make(memcg2 / "a" / "b"))
    run_hog(hog, Path(child))
    assert cgroup.usage <= 4 * MIB
    if (memcg2 / "a/memory.peak").exists():
        assert cgroup.usage <= cgroup.peak <= 4 * MIB
    else:
        with pytest.raises(UnsupportedError, match=r"this kernel has no memory\.peak"):
            cgroup.peak  # noqa: B018 - to look is what is tried
    assert (cgroup.events()["oom_kill"], child.events()["oom_kill"]) == (0, 1)
    assert cgroup.events(local=False)["oom_kill"] == 1
    assert cgroup.events()["oom"] == event_count(Path(cgroup), "oom") > 0


def test_oom_group(memcg2: Path, hog: str) -> None:
    cgroup = Cgroup(make(memcg2 / "a", "8M"))
    assert cgroup.oom_group is False
    cgroup.oom_group = True
    assert cgroup.oom_group is True
    assert (memcg2 / "a/memory.oom.group").read_text() == "1\n"
    run_hog(hog, Path(cgroup), size=64 * MIB, processes=4)
    assert cgroup.events()["oom_kill"] > 1
    cgroup.oom_group = False
    assert cgroup.oom_group is False


@pytest.mark.parametrize("nested", [False, True])
def test_kill(memcg2: Path, nested: bool) -> None:
    """At once, by cgroup.kill, or singly where those below must be spared."""
    cgroup = make(memcg2 / "a")
    if nested:
        (cgroup / "below").mkdir()
    spared = [cgroup / "below"] * nested + [make(memcg2 / "beside")]
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(3 + len(spared))]
    try:
        for process, where in zip(processes, [cgroup] * 3 + spared, strict=True):
            put(where / "cgroup.procs", str(process.pid))
        assert Cgroup(cgroup).kill() == 3
        assert Cgroup(cgroup).pids() == []
        assert [process.wait(PATIENCE) for process in processes[:3]] == [-9] * 3
        assert [process.poll() for process in processes[3:]] == [None] * len(spared)
        assert Cgroup(cgroup).kill() == 0
    finally:
        for process in processes:
            process.kill()
            process.wait(PATIENCE)


def test_what_is_of_v1_only(memcg2: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"events\(\) tells of OOM kills"):
        Cgroup(memcg2).oom_control()


def test_create_switches_the_controller_on(memcg2: Path) -> None:
    parent = make(memcg2 / "p")
    assert "memory" not in (parent / "cgroup.subtree_control").read_text()
    assert Cgroup.create(parent / "c").limit is None
    assert "memory" in (parent / "cgroup.subtree_control").read_text()


def test_create_where_processes_are_in_the_way(memcg2: Path) -> None:
    parent = make(memcg2 / "p")
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            put(parent / "cgroup.procs", str(process.pid))
            with pytest.raises(OSError, match="no-internal-process rule") as caught:
                Cgroup.create(parent / "c")
            assert caught.value.errno == errno.EBUSY
            assert caught.value.filename == os.fspath(parent / "cgroup.subtree_control")
            assert not (parent / "c").exists()
        finally:
            process.kill()


def test_create_where_the_controller_is_off_above(memcg2: Path) -> None:
    parent = make(memcg2 / "p")
    (parent / "q").mkdir()
    with pytest.raises(NotACgroupError, match=r"write \+memory to cgroup\.subtree_control of .*/p") as caught:
        Cgroup.create(parent / "q" / "c")
    assert caught.value.filename == os.fspath(parent / "q")
    assert not (parent / "q" / "c").exists()
    with pytest.raises(NotACgroupError, match="memory controller is off"):
        Cgroup(parent / "q").usage  # noqa: B018 - to look is what is tried
    assert Cgroup(parent / "q").exists()
    control_memory(parent)
    assert Cgroup.create(parent / "q" / "c").usage == 0


def test_the_root_has_no_limits(memcg2: Path) -> None:
    mount = memory_mount()
    assert mount is not None
    root = Cgroup(mount.point)
    assert root.parent is None
    with pytest.raises(UnsupportedError, match=r"the root cgroup has no memory\.max"):
        root.limit = MIB
    with pytest.raises(UnsupportedError, match=r"the root cgroup has no memory\.events"):
        root.events()


def test_of_one_that_is_gone(memcg2: Path) -> None:
    cgroup = Cgroup.create(memcg2 / "a")
    assert cgroup.parent == Cgroup(memcg2)
    assert Cgroup(memcg2).children() == [cgroup]
    cgroup.remove()
    assert not cgroup.exists()
    for look in (cgroup.events, cgroup.pids, cgroup.kill, cgroup.remove, lambda: cgroup.high):
        with pytest.raises(FileNotFoundError):
            look()
