"""Thresholds and pressure, in orders and with faults that the real kernel does not produce on demand."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.v1
from memcg_oom import AnyWatch, Event, Monitor, Pressure, Removed, UsageCrossed
from memcg_oom._native import lib
from tests.fake.fake_kernel import AGES, FakeKernel, replace_in_lib, take, take_while
from tests.fake.test_faults import Strike
from tests.support import PATIENCE, readable

MB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    fake.close()


def brief(events: list[Event]) -> list[Any]:
    found: list[Any] = []
    for event in events:
        match event:
            case UsageCrossed(above=above, count=count):
                found.append((above, count))
            case Pressure(repeated=repeated, count=count):
                found.append((repeated, count))
            case _:
                found.append(type(event).__name__)
    return found


def test_a_crossing(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor() as monitor:
        watch = monitor.watch_usage(cgroup.path, MB, interval=0.01)
        assert not readable(monitor.fileno())
        cgroup.use(2 * MB)
        cgroup.alarm()
        (event,) = take(monitor, 1)
        assert isinstance(event, UsageCrossed)
        assert (event.watch, event.above, event.usage, event.threshold, event.count) == (watch, True, 2 * MB, MB, 1)
        cgroup.use(0)
        cgroup.alarm(3)
        assert brief(take(monitor, 1)) == [(False, 3)]
        take_while(monitor, lambda: watch._deadline)
        assert not readable(monitor.fileno())


def test_one_that_is_above_from_the_beginning(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    cgroup.use(2 * MB)
    with Monitor() as monitor:
        watch = monitor.watch_usage(cgroup.path, MB)
        assert watch.above
        cgroup.use(0)
        cgroup.alarm()
        assert brief(take(monitor, 1)) == [(False, 1)]


def test_within_the_margin_it_waits_for_the_end_of_the_interval(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    cgroup.use(64 * MB)
    with Monitor() as monitor:
        watch = monitor.watch_usage(cgroup.path, 64 * MB, interval=0.3)
        cgroup.use(64 * MB - 4096)
        cgroup.alarm()
        assert monitor.wait(0) == []
        assert watch.above
        cgroup.alarm(2)
        assert brief(take(monitor, 1)) == [(False, 3)]
        assert not watch.above


@pytest.mark.parametrize("ooms", [0, 1, 5])
def test_what_is_read_after_the_removal(kernel: FakeKernel, ooms: int) -> None:
    """One signal is the removal's, whichever; the rest are crossings."""
    cgroup = kernel.make()
    with Monitor(linger=0.02) as monitor:
        usage = monitor.watch_usage(cgroup.path, MB)
        cgroup.listen()
        pressure = monitor.watch_pressure(cgroup.path, "low")
        cgroup.listen()
        if ooms:
            cgroup.alarm(ooms)
        cgroup.rmdir()
        cgroup.removal_signal()
        events: list[Any] = take_while(monitor, lambda: not (usage.removed and pressure.removed))
        for watch in (usage, pressure):
            own = [event for event in events if event.watch is watch]
            assert brief(own) == [*([(False, ooms)] if ooms else []), "Removed"]


def test_one_that_goes_while_it_is_above(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(linger=0.02) as monitor:
        monitor.watch_usage(cgroup.path, MB)
        cgroup.use(2 * MB)
        cgroup.alarm()
        assert brief(take(monitor, 1)) == [(True, 1)]
        cgroup.alarm()  # down again, which nobody has looked at before it went
        cgroup.rmdir()
        cgroup.removal_signal()
        events = take(monitor, 2)
        assert brief(events) == [(False, 1), "Removed"]
        assert getattr(events[0], "usage", None) == 0


def test_signals_that_are_late(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg_oom.v1, "ALARM_LATE", int(AGES * 1e9))
    cgroup = kernel.make()
    with Monitor(linger=0) as monitor:
        monitor.watch_pressure(cgroup.path, "low", interval=0.05)
        cgroup.alarm()
        assert brief(take(monitor, 1)) == [(False, 1)]
        cgroup.rmdir()
        cgroup.alarm(2)
        assert brief(take(monitor, 2)) == [(True, 1), "Removed"]
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [(True, 1)]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_one_that_cannot_be_read_is_tried_again(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    cgroup = kernel.make()
    failures = 0

    def fail(*arguments: Any) -> None:
        nonlocal failures
        lib.memcg_look_many(*arguments)
        if failures < 5:
            failures += 1
            arguments[-2][0] = -error

    with Monitor() as monitor:
        monitor.watch_usage(cgroup.path, MB, interval=AGES)
        cgroup.use(2 * MB)
        with monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_look_many=fail)
            cgroup.alarm()
            events = take(monitor, 1 if error == errno.EAGAIN else 2)
        assert brief(events) == [*(["Degraded"] if error != errno.EAGAIN else []), (True, 1)]
        assert failures == 5


def test_pressure_is_told_once_an_interval(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor() as monitor:
        watch = monitor.watch_pressure(cgroup.path, "low", interval=0.05)
        events: list[Event] = []
        for _ in range(3):
            cgroup.alarm(7)
            events += take(monitor, 1)
        assert brief(events) == [(False, 7), (True, 7), (True, 7)]
        assert take_while(monitor, lambda: watch._deadline) == []
        assert not readable(monitor.fileno())
        cgroup.alarm()
        assert brief(take(monitor, 1)) == [(False, 1)]


def test_beside_an_oom_of_the_same_cgroup(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor() as monitor:
        oom = monitor.watch(cgroup.path)
        cgroup.listen()
        usage = monitor.watch_usage(cgroup.path, MB)
        cgroup.listen()
        assert monitor.watches == (oom, usage)
        cgroup.use(2 * MB)
        cgroup.alarm()
        cgroup.oom()
        assert sorted(map(str, brief(monitor.wait(PATIENCE)))) == ["(True, 1)", "Oom"]
        usage.close()
        assert [*monitor.watches] == [oom]


def signals(events: list[Event], watch: AnyWatch) -> int:
    return sum(getattr(event, "count", 0) for event in events if getattr(event, "watch", None) is watch)


def run_through(kernel: FakeKernel, name: str, strike: Strike) -> None:
    """Signals and a removal, interrupted once: everything must have been told once, and no descriptor be left."""

    def collect(condition: Callable[[], object]) -> None:
        try:
            with strike:
                take_while(monitor, condition, events)
        except KeyboardInterrupt:
            take_while(monitor, condition, events)

    cgroup = kernel.make(name)
    before = len(os.listdir("/proc/self/fd"))
    events: list[Event] = []
    with Monitor(linger=0) as monitor:
        watches: list[AnyWatch] = [
            monitor.watch_usage(cgroup.path, MB, interval=0.001),
            monitor.watch_pressure(cgroup.path, "low", interval=0.001),
        ]
        cgroup.listen()  # both were written to one file, one over the other
        cgroup._alarms.append(os.dup(watches[0]._eventfd))  # type: ignore[attr-defined]
        cgroup.use(2 * MB)
        cgroup.alarm(2)
        collect(lambda: any(signals(events, watch) < 2 for watch in watches))
        cgroup.rmdir()
        cgroup.alarm(3)
        cgroup.removal_signal()
        collect(lambda: not all(watch.removed for watch in watches))
        collect(lambda: monitor._watches.alarms.by_key)  # type: ignore[union-attr]
        for watch in watches:
            assert signals(events, watch) == 5, events
            own = [type(event) for event in events if getattr(event, "watch", None) is watch]
            assert own.count(Removed) == 1, events
        assert monitor.wait(0) == []  # who was interrupted has asked to be called again
        assert not readable(monitor.fileno())
    cgroup.close()
    if len(os.listdir("/proc/self/fd")) != before:
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left"


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator")
def test_ctrl_c_at_every_moment_of_alarms(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg_oom.v1, "ALARM_LATE", 0)
    failures = []
    for moment in range(5000):
        strike = Strike(moment)
        try:
            run_through(kernel, f"c{moment}", strike)
        except (AssertionError, RuntimeError) as error:
            failures.append(f"{strike.where}: {str(error).splitlines()[0][:200]}")
        if not strike.where:
            break
    assert moment > 50
    assert not failures, "\n".join(failures)
