"""Memory pressure of cgroup v1, against the real kernel and an independent eventfd of the same level."""

from __future__ import annotations

import signal
import subprocess
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from memcg_oom import Event, Monitor, Pressure, Removed
from tests.support import (
    Independent,
    eventually,
    large_file,
    make,
    reading,
    remove,
    run_hog,
    take_until_quiet,
)

PRESSURE = "memory.pressure_level"
INTERVAL = 0.2
MB = 1 << 20


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than fits into any of the cgroups."""
    path = large_file(tmp_path_factory.mktemp("file"))
    if not path.stat().st_size:
        pytest.skip("no disk: files are in memory here, and there is no page cache to be reclaimed")
    return path


def load(hog: str, cgroup: Path, file: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Page-cache load: a file that is read again and again."""
    return reading(file, [hog, cgroup, file])


def take(monitor: Monitor, count: int) -> list[Pressure]:
    events: list[Pressure] = []
    while len(events) < count:
        more = monitor.wait(60)
        assert more, f"no pressure came after {events}"
        for event in more:
            assert isinstance(event, Pressure), event
            events.append(event)
    return events


def test_page_cache_load_is_told_once_an_interval(
    memcg1: Path, hog: str, file: Path, figure: dict[str, object]
) -> None:
    cgroup = make(memcg1 / "a", "16M")
    independent = Independent(cgroup, PRESSURE, "low")
    with Monitor() as monitor:
        watch = monitor.watch_pressure(cgroup, "low", interval=INTERVAL)
        assert (watch.level, watch.mode) == ("low", "default")
        events: list[Any] = []
        runs = 3
        for _ in range(runs):
            with load(hog, cgroup, file):
                events += take(monitor, 5)
            while more := monitor.wait(5 * INTERVAL):
                events += more
        assert {(event.cgroup, event.watch, event.level) for event in events} == {(str(cgroup), watch, "low")}
        # The first after a silence is told from those that repeat it.
        assert [event.repeated for event in events].count(False) == runs
        assert not events[0].repeated
        # None is lost, and there is at most one event an interval.
        assert sum(event.count for event in events) == independent.read()
        for before, event in pairwise(events):
            if before.repeated and event.repeated:
                # Two clocks: the interval is of CLOCK_MONOTONIC, the event's time of CLOCK_REALTIME, read right behind.
                assert event.time_ns - before.time_ns > INTERVAL * 0.9e9
        figure.update(signals=independent.count, events=len(events))
    independent.close()


def test_the_signals_of_one_oom_are_one_event(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    cgroup = make(memcg1 / "a", "16M")
    independent = {level: Independent(cgroup, PRESSURE, level) for level in ("low", "medium", "critical")}
    with Monitor() as monitor:
        watches = [monitor.watch_pressure(cgroup, level, interval=1) for level in independent]
        run_hog(hog, cgroup, 64 * MB)
        events: list[Any] = []
        while more := monitor.wait(1.5):
            events += more
        for watch in watches:
            own = [event for event in events if event.watch is watch]
            assert 1 <= len(own) <= 3
            assert {event.level for event in own} == {watch.level}
            assert sum(event.count for event in own) == independent[watch.level].read()
        figure.update({level: one.count for level, one in independent.items()} | {"events": len(events)})
    for one in independent.values():
        one.close()


def test_modes(memcg1: Path, hog: str, file: Path) -> None:
    """Whose pressure: the child's is the parent's too, unless the child is listened to; or in any case; or never."""
    parent = make(memcg1 / "p")
    child = make(parent / "c", "16M")
    with Monitor() as monitor:
        above = {mode: monitor.watch_pressure(parent, "low", mode) for mode in ("default", "hierarchy", "local")}
        with load(hog, child, file):
            told = {event.watch for event in take(monitor, 6)}
        assert told == {above["default"], above["hierarchy"]}
        take_until_quiet(monitor, quiet=2.5)
        below = monitor.watch_pressure(child, "low")
        with load(hog, child, file):
            told = {event.watch for event in take(monitor, 6)}
        assert told == {above["hierarchy"], below}


def test_a_removal_is_no_pressure(memcg1: Path, hog: str, file: Path) -> None:
    with Monitor() as monitor:
        quiet = monitor.watch_pressure(make(memcg1 / "quiet"), "low")
        loaded = monitor.watch_pressure(make(memcg1 / "loaded", "16M"), "low", interval=3600)
        independent = Independent(Path(loaded.cgroup), PRESSURE, "low")
        with load(hog, Path(loaded.cgroup), file):
            first = take(monitor, 1)  # the rest is collected
            eventually(lambda: independent.read() > 20)
        for watch in (quiet, loaded):
            remove(Path(watch.cgroup))
        events: list[Event] = [*first]
        # What was collected is told before the interval is over, which is after the test.
        while not (quiet.removed and loaded.removed):
            events += monitor.wait(60)
        assert [type(event) for event in events if getattr(event, "watch", None) is quiet] == [Removed]
        own: list[Any] = [event for event in events if getattr(event, "watch", None) is loaded]
        assert type(own[-1]) is Removed
        eventually(lambda: independent.read() == 1 + sum(event.count for event in own if type(event) is Pressure))
        independent.close()


@pytest.mark.parametrize(
    ("level", "mode", "words"),
    [
        ("enormous", "default", "level must be one of low, medium, critical"),
        ("", "default", "level must be one of"),
        ("low", "sideways", "mode must be one of default, hierarchy, local"),
        ("low", "", "mode must be one of"),
        ("low,local", "default", "level must be one of"),
    ],
)
def test_what_is_no_pressure(memcg1: Path, level: str, mode: str, words: str) -> None:
    with Monitor() as monitor:
        with pytest.raises(ValueError, match=words):
            monitor.watch_pressure(memcg1, level, mode)
        assert monitor.watches == ()


def test_closed_ones_tell_nothing(memcg1: Path, hog: str, file: Path) -> None:
    cgroup = make(memcg1 / "a", "16M")
    with Monitor() as monitor:
        first, second = (monitor.watch_pressure(cgroup, "low") for _ in range(2))
        first.close()
        with load(hog, cgroup, file) as process:
            assert {event.watch for event in take(monitor, 2)} == {second}
            second.close()
            process.send_signal(signal.SIGKILL)
        assert monitor.wait(0.5) == []
        assert monitor.watches == ()
