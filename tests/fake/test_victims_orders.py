"""Orders that would give a kill another's victim, or have it told twice or never: each was once seen to."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import memcg_oom.victims
from memcg_oom import Created, Event, Monitor, Oom, OomKill, Unattributed, Watch
from memcg_oom.kernel_log import parse
from tests.fake.fake_kernel import AGES, FakeCgroup, FakeKernel, brief, killed, summary, take_while, v1
from tests.fake.test_faults import Strike
from tests.fake.test_victims import Tasks, kernel, of_kills, pids, tasks
from tests.support import PATIENCE

__all__ = ["kernel", "tasks"]  # the fixtures

FORGED = b"6,8,1,-;" + summary(4242, b"hog", b"/u/x", b"/u/x/y").partition(b";")[2]
ITS_REST = b"6,9,1,c;,task=hog,pid=77,uid=1000\n"


def until(monitor: Monitor, condition: Callable[[], object], events: list[Event]) -> None:
    take_while(monitor, lambda: not condition(), events, pause=0.005)


def during(monitor: Monitor, seconds: float, events: list[Event] | None = None) -> list[Event]:
    """Takes events for so long."""
    events = [] if events is None else events
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        events += monitor.wait(min(left, 0.02))
    return events


def member(kernel: FakeKernel, monitor: Monitor, cgroup: FakeCgroup) -> Watch:
    """Its watch in a tree of everything."""
    watch = kernel.tree(monitor).member(cgroup.path.stat().st_ino)
    assert watch is not None
    return watch


def told(events: list[Event]) -> int:
    """How many kills."""
    return sum(event.count for event in events if isinstance(event, (OomKill, Unattributed)))


def named(monitor: Monitor, watch: Watch, events: list[Event], kills: int = 1) -> list[list[int]]:
    """The victims, when no kill waits for them any more."""
    until(monitor, lambda: watch.kills >= kills and not monitor._outbox.waiting, events)
    events += monitor.wait(0)
    return pids(events)


def test_a_namesake_where_no_log_is_read(kernel: FakeKernel) -> None:
    cgroup = kernel.make("a")
    with Monitor(settle=0.05, linger=0.05, victims=False) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.rmdir()
        kernel.make("a")
        cgroup.removal_signal()
        events: list[Event] = []
        until(monitor, lambda: watch.removed, events)
        assert brief(events) == [("Oom", 1), ("Removed", 1)]


def test_a_kill_without_a_signal_between_the_two_reads_of_a_wake_up(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.5) as monitor:
        watch, another = monitor.watch_many([first.path, other.path])
        events = during(monitor, 0.7)
        first.oom()
        first.kill()
        until(monitor, lambda: watch.kills, events)
        during(monitor, 0.2, events)  # the audit that the signal called for is over; the kill waits for its victim
        really = v1(monitor).due

        def due(now: int, drained: bool) -> None:
            really(now, drained)
            if not other.kills:
                other.kill()
                kernel.log(killed(94, b"x"))

        monkeypatch.setattr(v1(monitor), "due", due)
        until(monitor, lambda: another.kills, events)


def test_ctrl_c_at_every_moment_of_hearing_of_a_kill_without_a_signal(kernel: FakeKernel) -> None:
    lost = []
    with Monitor(settle=0.02, linger=0.0) as monitor:
        monitor.watch(kernel.make("x").path)
        during(monitor, 0.1)
        for moment in range(0, 800, 3):
            cgroup = kernel.make(f"c{moment}")
            watch = monitor.watch(cgroup.path)
            during(monitor, 0.03)
            cgroup.kill()
            kernel.log(killed(100_000 + moment, b"x"))
            strike = Strike(moment)
            try:
                with strike:
                    monitor.wait(0.01)
            except KeyboardInterrupt:
                pass
            deadline = time.monotonic() + 5.0
            while not watch.kills and time.monotonic() < deadline:
                monitor.wait(0.02)
            if not watch.kills:
                lost.append(strike.where)
            watch.close()
            if not strike.where:
                break
    assert not lost, "\n".join(lost)


def test_the_line_of_a_kill_before_the_watch(kernel: FakeKernel) -> None:
    other, cgroup = kernel.make("x"), kernel.make("c")
    with Monitor(settle=0.5) as monitor:
        monitor.watch(other.path)
        cgroup.kill()
        cgroup.log_kill(92)  # not read yet
        watch = monitor.watch(cgroup.path)
        events: list[Event] = []
        cgroup.oom()
        until(monitor, lambda: watch.ooms, events)
        cgroup.kill()
        assert named(monitor, watch, events) == [[]]


def test_it_is_no_kill_of_the_watch_when_that_ends(kernel: FakeKernel) -> None:
    other, cgroup = kernel.make("x"), kernel.make("c")
    with Monitor(settle=0.3, linger=0.1) as monitor:
        monitor.watch(other.path)
        cgroup.kill()
        cgroup.log_kill(92)
        watch = monitor.watch(cgroup.path)
        events = during(monitor, 0.5)
        cgroup.oom()
        until(monitor, lambda: watch.ooms, events)
        cgroup.rmdir()
        cgroup.removal_signal()
        until(monitor, lambda: watch.removed, events)
        assert brief(events + monitor.wait(0)) == [("Oom", 1), ("Removed", 1)]


def test_the_line_of_a_namesake_that_is_gone(kernel: FakeKernel) -> None:
    old = kernel.make("a")
    with Monitor(settle=0.5, linger=0.25) as monitor:
        tree = kernel.tree(monitor)
        during(monitor, 0.6)
        old.oom()
        old.kill()
        old.log_kill(92)
        old.rmdir()
        new = kernel.make("a")
        events: list[Event] = []
        until(monitor, lambda: [event for event in events if isinstance(event, Created)], events)
        watch = tree.member(new.path.stat().st_ino)
        assert watch is not None
        new.oom()
        until(monitor, lambda: watch.ooms, events)
        new.kill()  # its line is not printed yet
        until(monitor, lambda: watch.kills, events)
        old.removal_signal()
        during(monitor, 1.0, events)
        assert [pids([event]) for event in of_kills(events) if event.watch is watch] == [[[]]]


def test_one_kill_of_two_namesakes(kernel: FakeKernel) -> None:
    parent, old = kernel.make("p"), kernel.make("p/a")
    with Monitor(settle=0.3, linger=0.1) as monitor:
        tree = kernel.tree(monitor, parent.path)
        watch = tree.member(old.path.stat().st_ino)
        assert watch is not None
        events = during(monitor, 0.5)
        old.oom()
        kernel.host_killed()
        old.log_kill(92)
        old.rmdir()
        new = kernel.make("p/a")
        during(monitor, 0.05, events)
        another = tree.member(new.path.stat().st_ino)
        assert another is not None
        old.removal_signal()
        until(monitor, lambda: watch.removed, events)
        new.oom()
        until(monitor, lambda: another.ooms, events)
        new.rmdir()
        new.removal_signal()
        until(monitor, lambda: another.removed, events)
        during(monitor, 0.05, events)
        assert told(events) <= 1
        assert not [event for event in of_kills(events) if event.watch is another]


def test_a_kill_of_a_later_namesake_that_is_gone_as_well(kernel: FakeKernel) -> None:
    """The first one's removal is still awaited when the second has come, lost its task and gone."""
    old = kernel.make("a")
    with Monitor(settle=0.1, linger=0.6) as monitor:
        watch = monitor.watch(old.path)
        events: list[Event] = []
        old.oom()
        old.kill()
        old.log_kill(92)
        until(monitor, lambda: watch.kills, events)
        old.rmdir()
        old.removal_signal()
        until(monitor, lambda: watch._trouble.gone, events)
        new = kernel.make("a")
        another = monitor.watch(new.path)
        new.oom()
        kernel.host_killed()
        new.log_kill(93)
        new.rmdir()
        new.removal_signal()
        until(monitor, lambda: watch.removed and another.removed, events)
        events += monitor.wait(0)
        assert brief(events, watch) == [("Oom", 1), ("OomKill", 1), ("Removed", 0)]
        assert told([event for event in events if getattr(event, "watch", None) is another]) <= 1


def test_a_kill_of_a_later_namesake_that_nobody_watched(kernel: FakeKernel) -> None:
    """What is written when a look has found the first one gone is not of it, though its removal is still awaited."""
    old = kernel.make("a")
    with Monitor(settle=0.1, linger=0.6) as monitor:
        watch = monitor.watch(old.path)
        events: list[Event] = []
        old.oom()
        until(monitor, lambda: watch.ooms, events)
        old.rmdir()
        old.removal_signal()
        until(monitor, lambda: watch._trouble.gone, events)
        new = kernel.make("a")
        kernel.host_killed()
        new.log_kill(93)
        new.rmdir()
        until(monitor, lambda: watch.removed, events)
        assert brief(events + monitor.wait(0), watch) == [("Oom", 1), ("Removed", 1)]


def test_the_late_line_of_a_kill_that_was_told(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.1) as monitor:
        watch = monitor.watch(cgroup.path)
        events: list[Event] = []
        cgroup.oom()
        cgroup.kill()
        assert named(monitor, watch, events) == [[]]
        cgroup.log_kill(92)
        during(monitor, 0.02, events)
        cgroup.oom()
        until(monitor, lambda: watch.ooms == 2, events)
        cgroup.kill()
        assert named(monitor, watch, events, kills=2) == [[], []]


def test_a_kill_that_waits_is_not_told_again_at_the_removal(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.5, linger=0.1) as monitor:
        watch = member(kernel, monitor, cgroup)
        during(monitor, 0.6)
        before = kernel.host_kills
        events: list[Event] = []
        cgroup.oom()
        cgroup.kill()
        until(monitor, lambda: watch.kills, events)
        kernel.host_killed()  # the second, which nobody reads of its counter
        cgroup.log_kill(91)
        cgroup.log_kill(92)
        cgroup.rmdir()
        cgroup.removal_signal()
        until(monitor, lambda: watch.removed, events)
        during(monitor, 2.0, events)
        assert told(events) == kernel.host_kills - before


def test_a_kill_that_was_told_as_nobodys_is_not_told_again(kernel: FakeKernel) -> None:
    """Its line came late."""
    cgroup = kernel.make()
    with Monitor(settle=0.05, linger=0.5) as monitor:
        watch = member(kernel, monitor, cgroup)
        events = during(monitor, 0.2)
        before = kernel.host_kills
        cgroup.oom()
        kernel.host_killed()
        cgroup.rmdir()
        until(monitor, lambda: told(events), events)
        cgroup.log_kill(92)
        during(monitor, 0.01, events)
        cgroup.removal_signal()
        until(monitor, lambda: watch.removed, events)
        during(monitor, 0.5, events)
        assert told(events) == kernel.host_kills - before


def test_a_kill_that_the_ledger_has_written_off_hides_no_other(kernel: FakeKernel) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.05, linger=0.4) as monitor:
        watch, another = monitor.watch_many([cgroup.path, other.path])
        during(monitor, 0.2)
        events: list[Event] = []
        cgroup.oom()
        kernel.host_killed()
        cgroup.log_kill(92)
        cgroup.rmdir()
        during(monitor, 0.3, events)
        cgroup.removal_signal()
        until(monitor, lambda: watch.removed, events)
        other.kill()
        kernel.log(killed(94, b"x"))  # no signal
        until(monitor, lambda: another.kills, events)


def test_what_was_found_is_not_given_to_the_next(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=2.0) as monitor:
        watch = monitor.watch(cgroup.path)
        kernel.make("untold").kill()
        events: list[Event] = []
        cgroup.oom()
        cgroup.kill()
        until(monitor, lambda: watch.kills == 1, events)
        cgroup.kill()
        cgroup.log_kill(91)  # of the first
        kernel.log(killed(92, b"hog"))  # of the second; nobody knows where
        assert named(monitor, watch, events, kills=2) == [[], []]


def test_older_lines_come_first(kernel: FakeKernel, tasks: Tasks) -> None:
    cgroup = kernel.make()
    with Monitor(settle=2.0) as monitor:
        watch = monitor.watch(cgroup.path)
        kernel.make("untold").kill()
        events: list[Event] = []
        cgroup.oom()
        cgroup.kill()
        until(monitor, lambda: watch.kills == 1, events)
        kernel.log(killed(91, b"first"))
        during(monitor, 0.03, events)
        tasks.known[91] = True
        cgroup.tasks(91, 92)
        cgroup.oom()
        cgroup.kill()
        kernel.log(killed(92, b"second"))
        assert named(monitor, watch, events, kills=2) == [[91], [92]]


@pytest.mark.parametrize("why", ["the tree has just begun", "a member was left out"])
def test_not_by_exclusion_where_a_kill_was_told_to_the_ledger_alone(kernel: FakeKernel, why: str) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.5) as monitor:
        if why == "the tree has just begun":
            monitor.watch(kernel.make("x").path)
            other.kill()
            kernel.log(killed(94, b"hog"))
            watch = member(kernel, monitor, cgroup)
            events: list[Event] = []
        else:
            tree = kernel.tree(monitor)
            during(monitor, 0.7)
            left_out, one = tree.member(other.path.stat().st_ino), tree.member(cgroup.path.stat().st_ino)
            assert left_out is not None
            assert one is not None
            watch = one
            left_out.close()
            other.kill()
            kernel.log(killed(94, b"hog"))
            events = during(monitor, 0.15)
        cgroup.oom()
        cgroup.kill()
        assert named(monitor, watch, events) == [[]]


def test_a_watch_that_is_closed_while_its_kill_waits_and_begun_again(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.5) as monitor:
        closed = monitor.watch(cgroup.path)
        events: list[Event] = []
        cgroup.oom()
        cgroup.kill()
        until(monitor, lambda: closed.kills, events)
        closed.close()
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        until(monitor, lambda: watch.kills, events)
        cgroup.log_kill(91)  # of the first
        assert named(monitor, watch, events) == [[]]


def test_a_pid_that_has_come_round_by_the_time_of_reading(
    kernel: FakeKernel, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup, other = kernel.make("c"), kernel.make("u")
    with Monitor(settle=0.3) as monitor:
        watch = monitor.watch(cgroup.path)
        other.kill()
        kernel.log(killed(93, b"other"))
        monkeypatch.setattr(memcg_oom.victims, "_SOON", 1_000_000_000)
        time.sleep(1.2)  # nobody takes events meanwhile; there is a zombie with that pid in the cgroup by now
        tasks.known[93] = True
        monkeypatch.setattr(memcg_oom.victims.Victims, "_path_of_task", lambda _self, _pid: str(cgroup.path))
        cgroup.oom()
        cgroup.kill()  # its own line is not there yet
        assert named(monitor, watch, []) == [[]]


def test_a_line_that_looks_whole_but_went_on_in_another_record() -> None:
    """Who may make cgroups can have it break off where he likes."""
    victims, _ = parse([FORGED, ITS_REST, killed(77, b"hog", 2), killed(4242, b"postgres", 3)], {})
    assert [(victim.oom_memcg, victim.task_memcg) for victim in victims] == [(None, None)] * 2
    long = summary(93, b"hog", b"/" + b"u" * 450, b"/" + b"u" * 450)
    victims, _ = parse([long, killed(93, b"hog")], {})
    assert [victim.task_memcg for victim in victims] == [None]


@pytest.mark.parametrize("why", ["namespace", "host in a namespace", "two limits", "forged", "no signal is left"])
def test_whose_limit_it_was_is_not_known(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if "namespace" in why:
        monkeypatch.setattr(memcg_oom.victims, "_is_first", lambda kind, _inode: kind == "pid" and "host" in why)
    else:
        kernel.make_root()
    cgroup = kernel.make()
    with Monitor(settle=0.3, audit=0.05) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.tasks(4242)
        events: list[Event] = []
        if why == "forged":
            for record in (FORGED, ITS_REST, killed(77, b"hog")):
                kernel.log(record)
        if why != "host in a namespace":
            cgroup.oom()
        cgroup.kill(2 if why in ("two limits", "no signal is left") else 1)
        if why == "two limits":
            cgroup.log_kill(92)
        if why in ("two limits", "host in a namespace"):
            kernel.log(summary(93, b"hog", None, b"/a"))
            kernel.log(killed(93, b"hog", cause=b"Out of memory"))
        elif why == "forged":
            kernel.log(killed(4242, b"postgres", 3))
        named(monitor, watch, events)
        (kill,) = of_kills(events)
        # What the forged line says is not believed; the signal tells that it was its own.
        assert kill.limit_cgroup == (str(cgroup.path) if why == "forged" else None)


def test_nobodys_victims_where_lines_were_lost(kernel: FakeKernel) -> None:
    other = kernel.make("u")
    with Monitor(settle=0.1) as monitor:
        monitor.watch(kernel.make("x").path)
        other.kill()
        kernel.log(killed(94, b"hog"))
        kernel.tree(monitor)  # begins the ledger anew
        events = during(monitor, 0.4)
        kernel.host_killed()  # in one that came and went; its line is lost
        kernel.overrun_log()
        until(monitor, lambda: [event for event in events if isinstance(event, Unattributed)], events)
        (event,) = [event for event in events if isinstance(event, Unattributed)]
        assert event.victims == ()


def test_an_oom_is_handed_out_before_a_long_log_is_read(kernel: FakeKernel) -> None:
    """The kernel may still be writing its report of it; and what is left is read as soon as nobody waits."""
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        for number in range(200):
            kernel.log(f"6,{number},1,-;[   4242]     0  4242\n")
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(4242)
        events = monitor.wait(PATIENCE)
        assert [type(event) for event in events] == [Oom]
        assert kernel.records
        (kill,) = monitor.wait(PATIENCE)
        assert isinstance(kill, OomKill)
        assert [victim.pid for victim in kill.victims] == [4242]
        assert not kernel.records
