"""A failed call leaves nothing open, also while its exception is kept, whose traceback keeps the frames."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memcg_oom import Monitor, register
from tests.support import make, remove


@pytest.fixture(autouse=True)
def _without_the_collector() -> Iterator[None]:
    """What only a garbage collection would close is open for nobody knows how long."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("count", [20, 600], ids=["one thread", "several threads"])
@pytest.mark.parametrize("missing", ["first", "last"])
def test_a_missing_one_among_many(memcg1: Path, count: int, missing: str) -> None:
    cgroups = [make(memcg1 / str(number)) for number in range(count)]
    cgroups.insert(0 if missing == "first" else count, memcg1 / "missing")
    with Monitor() as monitor:
        watch = monitor.watch(memcg1)
        before = count_fds()
        with pytest.raises(FileNotFoundError) as kept:
            monitor.watch_many(cgroups)
        assert count_fds() == before
        assert monitor.watches == (watch,)
        assert kept.value.filename == str(memcg1 / "missing")


def test_the_first_call_of_a_monitor(memcg1: Path) -> None:
    """It opens the hierarchy too."""
    cgroups = [make(memcg1 / str(number)) for number in range(20)]
    with Monitor() as monitor:
        before = count_fds()
        with pytest.raises(FileNotFoundError) as kept:
            monitor.watch_many([*cgroups, memcg1 / "missing"])
        assert count_fds() == before
        assert kept.value.filename == str(memcg1 / "missing")


def test_closed_in_the_middle_of_watch_many(memcg1: Path, figure: dict[str, object]) -> None:
    """Registered, and then there is no monitor any more to take it."""
    cgroups = [make(memcg1 / str(number)) for number in range(300)]
    kept: list[ValueError] = []
    for _ in range(30):
        before = count_fds()
        monitor = Monitor()
        monitor.watch(memcg1)
        thread = threading.Thread(target=monitor.close)
        try:
            thread.start()
            monitor.watch_many(cgroups)
        except ValueError as error:
            kept.append(error)
        thread.join()
        monitor.close()
        assert count_fds() == before
    figure["closed in the middle"] = len(kept)


def test_register(memcg1: Path) -> None:
    cgroup = make(memcg1 / "cgroup")
    before = count_fds()
    calls: list[Callable[[], object]] = [
        lambda: register(cgroup, "memory.missing"),
        lambda: register(cgroup, "memory.limit_in_bytes"),
        lambda: register(memcg1 / "missing", "memory.oom_control"),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r".") as kept:
            call()
        assert count_fds() == before
        assert kept.value.errno
    remove(cgroup)
