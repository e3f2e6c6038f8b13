"""Every order in which signals, kills, removals and looks can come, sent by a fake kernel."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.v1
from memcg_oom import Event, Monitor, Oom, OomKill, OomResolved, Removed
from memcg_oom._native import lib
from tests.fake.fake_kernel import (
    AGES,
    FakeKernel,
    brief,
    replace_in_lib,
    take,
    take_until_settled,
    take_while,
    v1,
)
from tests.support import PATIENCE, Ledger, readable


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    fake.close()


@pytest.fixture
def keep_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal is never too late."""
    monkeypatch.setattr(memcg_oom.v1, "LATE", int(AGES * 1e9))


@pytest.fixture(params=[0.0, 0.02], ids=["no periods", "short periods"])
def period(request: pytest.FixtureRequest) -> float:
    return float(request.param)


# -- signals and kills


def test_nothing_is_told_of_what_was_before(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make(kills=7)
    with Monitor(settle=period) as monitor:
        watch = monitor.watch(cgroup.path)
        assert take_until_settled(monitor, watch) == []
        assert not readable(monitor.fileno())
        cgroup.oom()
        cgroup.kill()
        assert brief(take(monitor, 2)) == [("Oom", 1), ("OomKill", 1)]
        assert (watch.ooms, watch.kills) == (1, 1)


def test_the_kill_after_the_signal(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]
        cgroup.kill()
        assert brief(monitor.wait(PATIENCE)) == [("OomKill", 1)]
        # It is still looked at: the next task is killed without a signal.
        cgroup.kill(2)
        assert brief(monitor.wait(PATIENCE)) == [("OomKill", 2)]
        assert (watch.ooms, watch.kills) == (1, 3)


def test_where_the_killer_is_on_under_oom_is_no_episode(kernel: FakeKernel) -> None:
    """The kernel says it there too, from before the signal until right before the kill."""
    cgroup = kernel.make()
    with Monitor(settle=0.1) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.sleep(True, killer_off=False)
        cgroup.oom()
        events = take(monitor, 1)
        cgroup.sleep(False, killer_off=False)
        cgroup.kill()
        events += take_until_settled(monitor, watch)
        assert brief(events) == [("Oom", 1), ("OomKill", 1)]


@pytest.mark.parametrize("where", ["here", "above"])
def test_where_the_killer_is_off_an_episode_ends_when_under_oom_does(kernel: FakeKernel, where: str) -> None:
    parent = kernel.make("p")
    cgroup = kernel.make("p/c")
    with Monitor(settle=0.05) as monitor:
        watch = monitor.watch(cgroup.path)
        if where == "above":
            parent.sleep(True, killer_off=True)
        cgroup.sleep(True, killer_off=where == "here")
        cgroup.oom()
        assert brief(take(monitor, 1)) == [("Oom", 1)]
        assert monitor.wait(0.3) == []  # behind the end of the settle
        assert watch._trouble.round is not None
        cgroup.oom()  # another task, after one was freed too shortly to be seen
        assert brief(take(monitor, 1)) == [("Oom", 1)]
        cgroup.sleep(False, killer_off=where == "here")
        events = take(monitor, 1)
        assert brief(events) == [("OomResolved", 0)]
        assert isinstance(events[0], OomResolved)
        assert events[0].after >= 0.3
        # The audit that the OOM has called for may come after the settle.
        assert take_while(monitor, lambda: watch._trouble.round is not None or readable(monitor.fileno())) == []


def test_where_the_killer_is_on_above_it_is_nobodys_business_here(kernel: FakeKernel) -> None:
    """The limit of the parent was hit, whose killer is on; the child's own, which is off, has no say in that."""
    parent = kernel.make("p")
    cgroup = kernel.make("p/c")
    with Monitor(settle=0.1) as monitor:
        watch = monitor.watch(cgroup.path)
        parent.sleep(True, killer_off=False)
        cgroup.sleep(True, killer_off=True)
        cgroup.oom()
        events = take(monitor, 1)
        parent.sleep(False, killer_off=False)
        cgroup.sleep(False, killer_off=True)
        events += take_until_settled(monitor, watch)
        assert brief(events) == [("Oom", 1)]


def test_an_episode_that_the_removal_ends(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.05, linger=0) as monitor:
        monitor.watch(cgroup.path)
        cgroup.sleep(True, killer_off=True)
        cgroup.oom()
        assert brief(take(monitor, 1)) == [("Oom", 1)]
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 2)) == [("OomResolved", 0), ("Removed", 1)]


def test_the_kill_between_the_last_looks(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.2) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        cgroup.kill()  # nobody waits meanwhile: the look at the end of the settle is all that is left
        while not readable(monitor.fileno(), 1):
            pass
        assert brief(take_until_settled(monitor, watch)) == [("OomKill", 1)]


def test_signal_and_kill_at_the_first_look(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make()
    with Monitor(settle=period) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        events = monitor.wait(PATIENCE)
        assert brief(events) == [("Oom", 1), ("OomKill", 1)]
        assert [(event.watch, event.cgroup) for event in events if isinstance(event, Oom | OomKill)] == [
            (watch, str(cgroup.path)),
            (watch, str(cgroup.path)),
        ]
        assert take_until_settled(monitor, watch) == []


def test_counts_coalesce(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom(2)
        cgroup.oom(3)
        cgroup.kill(1)
        cgroup.kill(3)
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 5), ("OomKill", 4)]
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]
        assert (watch.ooms, watch.kills) == (6, 4)


def test_signals_in_the_middle_of_a_settle_prolong_it(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.02) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        monitor._watches._settle = int(AGES * 1e9)
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        assert monitor.wait(0.1) == []  # the first settle is over by now
        cgroup.kill()
        assert brief(monitor.wait(PATIENCE)) == [("OomKill", 1)]
        assert watch._trouble.round is not None


@pytest.mark.parametrize("before", [False, True], ids=["asked-for-late", "asked-for-before"])
def test_a_descriptor_is_readable_for_the_looks_after_an_oom(kernel: FakeKernel, before: bool) -> None:
    """Whoever polls it need not come back by himself after the Oom."""
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        if before:
            monitor.fileno()
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]
        cgroup.kill()
        events: list[Event] = []
        while not events:
            assert readable(monitor.fileno(), PATIENCE)
            events = monitor.wait(0)
        assert brief(events) == [("OomKill", 1)]


@pytest.mark.parametrize("before", [False, True], ids=["asked-for-late", "asked-for-before"])
def test_a_descriptor_is_readable_for_what_an_iteration_has_left(kernel: FakeKernel, before: bool) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        if before:
            monitor.fileno()
        cgroup.oom()
        cgroup.kill()
        assert brief([next(iter(monitor))]) == [("Oom", 1)]
        assert readable(monitor.fileno())
        assert brief(monitor.wait(0)) == [("OomKill", 1)]


def test_watches_are_in_the_order_in_which_they_began(kernel: FakeKernel) -> None:
    cgroups = [kernel.make(f"c{number}") for number in range(9)]
    with Monitor() as monitor:
        *others, old = monitor.watch_many([cgroup.path for cgroup in cgroups[:8]])
        for other in others:
            other.close()
        new = monitor.watch(cgroups[8].path)
        assert new._eventfd < old._eventfd
        assert monitor.watches == (old, new)


def test_a_kill_whose_signal_was_before_the_watch(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.01) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.kill()
        assert brief(take_until_settled(monitor, watch)) == [("OomKill", 1)]
        assert (watch.ooms, watch.kills) == (0, 1)
        assert not readable(monitor.fileno())


def test_a_kill_between_baseline_and_registration(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make(kills=4)

    def register_late(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        cgroup.kill(2)
        arguments[-1].rows[0].after = cgroup.kills

    replace_in_lib(monkeypatch, memcg_register_many=register_late)
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        assert brief(monitor.wait(0)) == [("OomKill", 2)]
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        assert (watch.ooms, watch.kills) == (1, 2)


def test_a_bystander_is_signalled_and_not_killed(kernel: FakeKernel) -> None:
    killed, bystander, parent = kernel.make("killed"), kernel.make("bystander"), kernel.make("parent")
    with Monitor(settle=0.05) as monitor:
        watches = monitor.watch_many([killed.path, bystander.path, parent.path])
        killed.oom(2)
        bystander.oom(2)
        killed.kill()
        events = take(monitor, 3) + take_until_settled(monitor, *watches)
        assert brief(events, watches[0]) == [("Oom", 2), ("OomKill", 1)]
        assert brief(events, watches[1]) == [("Oom", 2)]
        assert brief(events, watches[2]) == []


# -- removals


def test_the_removal_is_no_oom(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=period) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", 0)]
        assert watch.removed
        assert watch.ooms == 0
        assert monitor.watches == ()
        assert monitor.wait(0) == []


def test_ooms_read_together_with_the_removal(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=period) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom(2)
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 2)) == [("Oom", 2), ("Removed", 2)]
        assert watch.ooms == 2


def test_signals_in_pieces_while_lingering(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.rmdir()
        assert monitor.wait(0) == []  # one signal and the cgroup is gone: was it an OOM's?
        cgroup.oom_before_removal(2)
        assert monitor.wait(0) == []
        v1(monitor)._linger = 0
        cgroup.removal_signal()
        assert brief(take(monitor, 2)) == [("Oom", 3), ("Removed", 3)]


def test_signals_while_lingering_prolong_it(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=0.02) as monitor:
        monitor.watch(cgroup.path)
        cgroup.rmdir()
        cgroup.oom_before_removal(1)
        v1(monitor)._linger = int(AGES * 1e9)
        assert monitor.wait(0) == []
        assert monitor.wait(0.1) == []
        v1(monitor)._linger = 0
        cgroup.removal_signal()
        assert brief(take(monitor, 2)) == [("Oom", 1), ("Removed", 1)]


@pytest.mark.usefixtures("keep_late")
def test_the_removals_signal_after_removed(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.0, linger=period) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rmdir()
        assert brief(take(monitor, 1)) == [("Removed", 0)]
        cgroup.removal_signal()
        assert monitor.wait(0) == []
        assert watch.ooms == 0


@pytest.mark.usefixtures("keep_late")
@pytest.mark.parametrize("before", [0, 1, 3])
def test_late_ooms_are_told_as_late(kernel: FakeKernel, before: int) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.0, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rmdir()
        if before:
            cgroup.oom_before_removal(before)
        expected = [("Oom", before - 1), ("Removed", before - 1)] if before > 1 else [("Removed", 0)]
        assert brief(take(monitor, len(expected))) == expected
        cgroup.oom_before_removal(2)
        told = brief(monitor.wait(0))
        assert told == [("late Oom", 2 if before else 1)]
        cgroup.removal_signal()
        told += brief(monitor.wait(0))
        assert told[1:] == [("late Oom", 1)]
        assert watch.ooms == before + 2
        assert watch.removed


def test_the_registration_of_a_removed_cgroup_ends(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg_oom.v1, "LATE", 0)
    cgroup = kernel.make()
    with Monitor(settle=0.0, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rmdir()
        assert brief(take(monitor, 1)) == [("Removed", 0)]
        take_while(monitor, lambda: list(monitor._watches.by_key.values()))
        cgroup.oom_before_removal(3)
        assert monitor.wait(0) == []
        assert not readable(monitor.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(watch._eventfd)
        watch.close()


def test_gone_at_a_look_before_any_signal(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        cgroup.rmdir()
        assert take_while(monitor, lambda: not watch._trouble.gone) == []
        v1(monitor)._linger = 0
        cgroup.oom_before_removal(2)
        cgroup.removal_signal()
        assert brief(take(monitor, 2)) == [("Oom", 2), ("Removed", 3)]
        assert watch.ooms == 3


def test_gone_and_never_signalled(kernel: FakeKernel, period: float) -> None:
    # A kernel that drops the removal's signal must not keep Removed back.
    cgroup = kernel.make()
    with Monitor(settle=period, linger=period) as monitor:
        monitor.watch(cgroup.path)
        cgroup.rmdir()
        assert brief(take(monitor, 1)) == [("Removed", 0)]


def test_removed_is_the_last(kernel: FakeKernel, period: float) -> None:
    cgroups = [kernel.make(name) for name in "abc"]
    with Monitor(settle=period, linger=period) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for cgroup in cgroups:
            cgroup.oom()
            cgroup.kill()
        events = take(monitor, 6)
        for cgroup in cgroups:
            cgroup.oom(2)
            cgroup.rmdir()
            cgroup.removal_signal()
        events += take(monitor, 6)
        for watch in watches:
            told = brief(events, watch)
            assert [name for name, _ in told] == ["Oom", "OomKill", "Oom", "Removed"]
            assert watch.ooms == 3


# -- unresolved


def test_unresolved_when_the_kill_was_not_seen(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=0.01) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom(2)
        assert brief(monitor.wait(0)) == [("Oom", 2)]
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", 3)]


@pytest.mark.parametrize(("ooms", "kills", "unresolved"), [(1, 1, 0), (3, 1, 2), (2, 2, 0), (1, 2, 0)])
@pytest.mark.parametrize("together", [True, False], ids=["one look", "two looks"])
def test_unresolved_is_what_no_kill_answered(
    kernel: FakeKernel, ooms: int, kills: int, unresolved: int, together: bool
) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=0.01) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom(ooms)
        events = [] if together else monitor.wait(0)
        cgroup.kill(kills)
        events += monitor.wait(PATIENCE)
        assert brief(events) == [("Oom", ooms), ("OomKill", kills)]
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", unresolved)]


def test_unresolved_no_more_when_settled(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make()
    with Monitor(settle=period, linger=period) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom(3)
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 3)]
        assert take_until_settled(monitor, watch) == []
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", 0)]


def test_a_kill_answers_no_later_oom(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=0.01) as monitor:
        monitor.watch(cgroup.path)
        cgroup.kill(5)
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1), ("OomKill", 5)]
        cgroup.oom(2)
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 2)]
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", 2)]


# -- crowds


@pytest.fixture
def crowd() -> Iterator[int]:
    """More watches than two wake-ups can read."""
    count = 2 * int(lib.MEMCG_BATCH) + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + 200  # the monitor's and the fake kernel's
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"the hard limit of descriptors, {hard}, is below the {needed} that this takes")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield count
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("settle", [0.0, AGES], ids=["looked at already", "first looked at for the signal"])
@pytest.mark.usefixtures("keep_late")
def test_a_crowd_is_removed_at_once(kernel: FakeKernel, crowd: int, settle: float) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(crowd)]
    with Monitor(settle=settle, linger=0.0) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for i, cgroup in enumerate(cgroups):
            cgroup.rmdir()
            cgroup.oom_before_removal(1 + i % 3)
        events = take_while(monitor, lambda: not all(watch.removed for watch in watches))
        ledger = Ledger(events)
        assert [ledger.ooms[watch] for watch in watches] == [i % 3 for i in range(crowd)]
        assert [ledger.removals[watch] for watch in watches] == [1] * crowd
        assert ledger.after_removal == []


@pytest.mark.usefixtures("keep_late")
def test_a_crowd_is_told_of_in_order(kernel: FakeKernel, crowd: int) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(crowd)]
    with Monitor(settle=0.0, linger=0.0) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for i, cgroup in enumerate(cgroups):
            cgroup.oom(1 + i % 3)
            cgroup.kill(i % 2)
        events: list[Event] = []
        take_while(monitor, lambda: not all(watch.ooms for watch in watches), events)
        for cgroup in cgroups:
            cgroup.oom()
            cgroup.rmdir()
            cgroup.removal_signal()
        take_while(monitor, lambda: not all(watch.removed for watch in watches), events)
        ledger = Ledger(events)
        assert [ledger.ooms[watch] for watch in watches] == [2 + i % 3 for i in range(crowd)]
        assert [ledger.kills[watch] for watch in watches] == [i % 2 for i in range(crowd)]
        assert [ledger.removals[watch] for watch in watches] == [1] * crowd
        assert ledger.after_removal == []


# -- closing and several watches


def test_a_closed_watch_hands_out_nothing_more(kernel: FakeKernel) -> None:
    one, other = kernel.make("one"), kernel.make("other")
    with Monitor(settle=AGES) as monitor:
        first, second = monitor.watch_many([one.path, other.path])
        one.oom()
        one.kill()
        other.oom()
        assert brief([next(monitor)], first) == [("Oom", 1)]
        assert len(monitor._outbox) == 2
        first.close()
        first.close()
        assert first.closed
        assert brief(monitor.wait(PATIENCE), second) == [("Oom", 1)]
        one.oom()
        one.kill()
        other.kill()
        events = monitor.wait(PATIENCE)
        assert brief(events) == brief(events, second) == [("OomKill", 1)]
        assert monitor.watches == (second,)


@pytest.mark.parametrize("when", ["unread", "lingering", "removed"])
def test_a_watch_closed_over_a_removal(kernel: FakeKernel, when: str) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.0, linger=AGES) as monitor:
        watch, second = monitor.watch_many([cgroup.path, other.path])
        cgroup.rmdir()
        cgroup.oom_before_removal(2)
        if when != "unread":
            assert monitor.wait(0) == []
            assert watch._trouble.gone
        if when == "removed":
            v1(monitor)._linger = 0
            cgroup.removal_signal()
            assert brief(take(monitor, 2)) == [("Oom", 2), ("Removed", 2)]
        watch.close()
        v1(monitor)._linger = 0
        cgroup.removal_signal()
        other.oom()
        assert brief(monitor.wait(PATIENCE), second) == [("Oom", 1)]
        assert list(monitor._watches.by_key.values()) == [second]
        assert not readable(monitor.fileno())


def test_two_watches_of_one_cgroup(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=0.01) as monitor:
        first = monitor.watch(cgroup.path)
        assert cgroup.listen() == 1
        second = monitor.watch(cgroup.path)
        assert cgroup.listen() == 2
        cgroup.oom(2)
        cgroup.kill()
        events = take(monitor, 4)
        first.close()
        cgroup.oom()
        cgroup.rmdir()
        cgroup.removal_signal()
        events += take(monitor, 2)
        assert brief(events, first) == [("Oom", 2), ("OomKill", 1)]
        assert brief(events, second) == [("Oom", 2), ("OomKill", 1), ("Oom", 1), ("Removed", 2)]


def test_two_monitors_of_one_cgroup(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(linger=0.0) as here, Monitor(linger=0.0) as there:
        for monitor in (here, there):
            monitor.watch(cgroup.path)
            cgroup.listen()
        cgroup.oom()
        assert brief(take(here, 1)) == brief(take(there, 1)) == [("Oom", 1)]
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(here, 1)) == brief(take(there, 1)) == [("Removed", 1)]


# -- identity


def test_renamed_while_watched(kernel: FakeKernel) -> None:
    cgroup = kernel.make("old")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rename("new")
        cgroup.oom()
        cgroup.kill()
        events = monitor.wait(PATIENCE)
        assert brief(events) == [("Oom", 1), ("OomKill", 1)]
        assert {event.cgroup for event in events if isinstance(event, Oom | OomKill)} == {str(kernel.root / "new")}
        assert watch.cgroup == str(kernel.root / "new")
        cgroup.rename("old")
        cgroup.kill()
        (event,) = monitor.wait(PATIENCE)
        assert isinstance(event, OomKill)
        assert event.cgroup == str(kernel.root / "old")
        cgroup.rmdir()
        cgroup.removal_signal()
        (event,) = take(monitor, 1)
        assert isinstance(event, Removed)
        assert event.cgroup == str(kernel.root / "old")


def test_a_folder_above_renamed_while_watched(kernel: FakeKernel) -> None:
    kernel.make("p")
    kernel.make("p/q")
    cgroup = kernel.make("p/q/c")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.listen()
        (kernel.root / "p").rename(kernel.root / "r")
        (kernel.root / "r" / "q").rename(kernel.root / "r" / "s")
        cgroup.path = kernel.root / "r" / "s" / "c"
        cgroup.oom()
        cgroup.kill()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1), ("OomKill", 1)]
        assert watch.cgroup == str(cgroup.path)
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", 0)]


def test_two_that_swap_their_names(kernel: FakeKernel) -> None:
    one, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=AGES) as monitor:
        first, second = monitor.watch_many([one.path, other.path])
        one.rename("c")
        other.rename("a")
        one.rename("b")
        one.oom(1)
        other.oom(2)
        one.kill(3)
        other.kill(4)
        events = take(monitor, 4)
        assert brief(events, first) == [("Oom", 1), ("OomKill", 3)]
        assert brief(events, second) == [("Oom", 2), ("OomKill", 4)]
        assert (first.cgroup, second.cgroup) == (str(kernel.root / "b"), str(kernel.root / "a"))


def test_a_namesake_is_another(kernel: FakeKernel, period: float) -> None:
    cgroup = kernel.make("same")
    with Monitor(settle=period, linger=period) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.rmdir()
        cgroup.removal_signal()
        namesake = kernel.make("same", kills=9)
        assert brief(take(monitor, 2)) == [("Oom", 1), ("Removed", 1)]
        second = monitor.watch(namesake.path)
        namesake.oom(2)
        namesake.kill()
        events = take(monitor, 2)
        assert brief(events) == brief(events, second) == [("Oom", 2), ("OomKill", 1)]
        assert (watch.ooms, watch.kills) == (1, 0)


def test_renamed_and_a_namesake_in_its_place(kernel: FakeKernel) -> None:
    cgroup = kernel.make("same")
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rename("other")
        namesake = kernel.make("same", kills=9)
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]
        namesake.kill()
        cgroup.kill()
        assert brief(monitor.wait(PATIENCE)) == [("OomKill", 1)]
        assert watch.cgroup == str(kernel.root / "other")
