"""What was before the watch, what happens in the moment of registration, and what comes long after the signal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import memcg_oom.monitor
from memcg_oom import Monitor, Oom, OomKill
from memcg_oom.hierarchy import Hierarchy
from memcg_oom.registration import Registrations
from memcg_oom.sources import Inotify
from tests.support import (
    PATIENCE,
    Independent,
    control,
    eventually,
    kills_of,
    make,
    put,
    run_hog,
    start_hog,
    take_until,
    take_until_quiet,
)

Register = Callable[[], Registrations]


def test_kills_before_the_watch_are_no_events(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "old", "1M")
    for _ in range(3):
        run_hog(hog, cgroup)
    assert kills_of(cgroup) == 3
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        ledger = take_until_quiet(monitor)
        assert not ledger.by_watch
        run_hog(hog, cgroup)
        take_until(monitor, lambda ledger: ledger.kills[watch], ledger)
        take_until_quiet(monitor, ledger)
        assert ledger.kills[watch] == watch.kills == 1


def widen(monkeypatch: pytest.MonkeyPatch, registering: Callable[[Register], Registrations]) -> None:
    """Has the registration of a watch done by `registering`, which is told how to do it really."""

    def register(hierarchy: Hierarchy, paths: Sequence[str], *, inotify: Inotify | None) -> Registrations:
        return registering(lambda: Registrations(hierarchy, paths, inotify=inotify))

    monkeypatch.setattr(memcg_oom.monitor, "Registrations", register)


def test_a_kill_between_the_baseline_and_the_registration(
    memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is registered yet, so there is no signal; the counter has moved all the same."""
    cgroup = make(memcg1 / "early", "1M")
    run_hog(hog, cgroup)

    def registering(really: Register) -> Registrations:
        before = kills_of(cgroup)
        run_hog(hog, cgroup)
        registrations = really()
        registrations.all[0].before = (before,)
        return registrations

    widen(monkeypatch, registering)
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        events = monitor.wait(PATIENCE)
        assert [(type(event), getattr(event, "count", 0)) for event in events] == [(OomKill, 1)]
        assert not take_until_quiet(monitor).by_watch
        assert (watch.ooms, watch.kills) == (0, 1)


@pytest.mark.parametrize("seen_by_the_second_look", [False, True])
def test_a_kill_between_the_registration_and_the_watch(
    memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch, seen_by_the_second_look: bool
) -> None:
    """The signal waits in an eventfd that nobody waits for yet."""
    cgroup = make(memcg1 / "meanwhile", "1M")
    independent = Independent(cgroup)

    def registering(really: Register) -> Registrations:
        registrations = really()
        run_hog(hog, cgroup)
        if seen_by_the_second_look:
            registrations.all[0].after = (kills_of(cgroup),)
        return registrations

    widen(monkeypatch, registering)
    try:
        with Monitor() as monitor:
            watch = monitor.watch(cgroup)
            ledger = take_until(monitor, lambda ledger: ledger.kills[watch] and ledger.ooms[watch])
            take_until_quiet(monitor, ledger)
            assert ledger.ooms[watch] == watch.ooms == independent.read()
            assert ledger.kills[watch] == watch.kills == 1
    finally:
        independent.close()


def test_a_kill_and_the_removal_in_the_moment_of_registration(
    memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = make(memcg1 / "short", "1M")
    independent = Independent(cgroup)

    def registering(really: Register) -> Registrations:
        registrations = really()
        run_hog(hog, cgroup)
        cgroup.rmdir()
        return registrations

    widen(monkeypatch, registering)
    try:
        with Monitor() as monitor:
            watch = monitor.watch(cgroup)
            ledger = take_until(monitor, lambda ledger: ledger.removals[watch])
            eventually(lambda: independent.read() >= 2)
            assert ledger.ooms[watch] == independent.read() - 1
            assert ledger.kills[watch] + ledger.unresolved[watch] >= 1 >= ledger.kills[watch]
    finally:
        independent.close()


def test_registering_on_a_cgroup_that_is_out_of_memory(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "stuck", "1M")
    put(cgroup / "memory.oom_control", "1")
    pid = start_hog(hog, cgroup)
    try:
        eventually(lambda: control(cgroup, "under_oom") == 1)
        with Monitor() as monitor:
            watch = monitor.watch(cgroup)
            events = monitor.wait(30)
            assert [(type(event), getattr(event, "count", 0)) for event in events] == [(Oom, 1)]
            ledger = take_until_quiet(monitor)
            assert not ledger.by_watch, "asleep: no further signal and nobody dead"
            put(cgroup / "memory.oom_control", "0")
            os.waitpid(pid, 0)
            pid = 0
            take_until(monitor, lambda ledger: ledger.kills[watch], ledger)
            take_until_quiet(monitor, ledger)
            assert ledger.kills[watch] == kills_of(cgroup) == 1
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_fifty_ooms_at_once(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    """They wait for each other in the kernel, so the counters move long after the signals."""
    cgroups = [make(memcg1 / str(number), "1M") for number in range(50)]
    independents = [Independent(cgroup) for cgroup in cgroups]
    try:
        with Monitor() as monitor:
            watches = monitor.watch_many(cgroups)
            pids = [start_hog(hog, cgroup) for cgroup in cgroups]
            ledger = take_until(monitor, lambda ledger: ledger.kills.total() >= len(cgroups))
            for pid in pids:
                os.waitpid(pid, 0)
            take_until_quiet(monitor, ledger)
            delays = []
            for watch, cgroup, independent in zip(watches, cgroups, independents, strict=True):
                assert ledger.kills[watch] == kills_of(cgroup) == 1
                assert ledger.ooms[watch] == independent.read()
                told = ledger.by_watch[watch]
                oom = next(event for event in told if isinstance(event, Oom))
                kill = next(event for event in told if isinstance(event, OomKill))
                delays.append(kill.time_ns - oom.time_ns)
            figure.update(kills=ledger.kills.total(), ooms=ledger.ooms.total())
            figure["longest from signal to kill"] = f"{max(delays) / 1e6:.1f} ms"
    finally:
        for independent in independents:
            independent.close()
