"""Whose victim it is: every order in which signals, looks and the kernel's log may come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import memcg_oom.victims
from memcg_oom import CgroupEvent, Event, Monitor, OomKill, Removed, Unattributed
from tests.fake.fake_kernel import AGES, FakeCgroup, FakeKernel, brief, killed, summary, take, take_while
from tests.fake.test_faults import Strike

LONG = 1.0  # seconds: a settle period whose end a test waits for; what has to come before it comes in milliseconds


class Tasks:
    """Which tasks are dying (True), alive (False) or gone (not there)."""

    def __init__(self) -> None:
        self.known: dict[int, bool] = {}

    def is_dying(self, pid: int) -> bool | None:
        return self.known.get(pid)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    kernel = FakeKernel(tmp_path, monkeypatch)
    kernel.names_victims()
    yield kernel
    kernel.close()


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    tasks = Tasks()
    monkeypatch.setattr(memcg_oom.victims, "_is_dying", tasks.is_dying)
    monkeypatch.setattr(memcg_oom.victims, "_is_first", lambda _kind, _inode: True)
    # However slow this machine is.
    monkeypatch.setattr(memcg_oom.victims, "_AGAIN", int(AGES * 1e9))
    monkeypatch.setattr(memcg_oom.victims, "_SOON", int(AGES * 1e9))
    return tasks


def of_kills(events: Sequence[Event]) -> list[OomKill]:
    return [event for event in events if isinstance(event, OomKill)]


def pids(events: Sequence[Event]) -> list[list[int]]:
    """Of each OomKill."""
    return [[victim.pid for victim in event.victims] for event in of_kills(events)]


def test_the_line_comes_before_the_look(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93)
        events = take(monitor, 2)
        assert brief(events) == [("Oom", 1), ("OomKill", 1)]
        assert pids(events) == [[93]]
        (kill,) = [event for event in events if isinstance(event, OomKill)]
        assert kill.limit_cgroup == str(cgroup.path)
        assert (kill.victims[0].oom_memcg, kill.victims[0].task_memcg) == ("/a", "/a")


def test_the_line_comes_after_the_look(kernel: FakeKernel) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=AGES) as monitor:
        watch, _ = monitor.watch_many([cgroup.path, other.path])
        cgroup.oom()
        cgroup.kill()
        events = take(monitor, 1)
        take_while(monitor, lambda: not watch.kills, events)
        cgroup.oom()  # waits behind it; what is of others does not
        other.oom()
        take_while(monitor, lambda: watch.ooms < 2, events)
        assert brief(events) == [("Oom", 1), ("Oom", 1)]
        cgroup.log_kill(93)
        events = take(monitor, 2)
        assert brief(events) == [("OomKill", 1), ("Oom", 1)]
        assert pids(events) == [[93]]


def test_it_waits_no_longer_than_settle(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=LONG) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        events = take(monitor, 1)
        take_while(monitor, lambda: not watch.kills, events)
        began = time.monotonic()
        events += take(monitor, 1)
        assert brief(events) == [("Oom", 1), ("OomKill", 1)]
        assert pids(events) == [[]]
        assert time.monotonic() - began > LONG / 2  # for whoever broke it altogether; how much longer is the machine's


def test_several_kills_are_given_their_victims_in_order(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        for number in range(1, 4):
            cgroup.kill()
            take_while(monitor, lambda number=number: watch.kills < number)  # type: ignore[misc]
        for pid in (91, 92, 93):
            cgroup.log_kill(pid)
        assert pids(take(monitor, 3)) == [[91], [92], [93]]


def test_where_a_line_is_missing_nobody_knows_whose(kernel: FakeKernel) -> None:
    """Of two kills that were told apart and one line."""
    cgroup = kernel.make()
    with Monitor(settle=LONG) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        for number in (1, 2):
            cgroup.kill()
            take_while(monitor, lambda number=number: watch.kills < number)  # type: ignore[misc]
        cgroup.log_kill(93)
        assert pids(take(monitor, 2)) == [[], []]


def test_one_that_lacks_more_than_was_found_and_is_not_alone(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=LONG) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        for count in (2, 1):
            cgroup.kill(count)
            take_while(monitor, lambda: watch.kills < cgroup.kills)
        cgroup.log_kill(93)
        assert pids(take(monitor, 2)) == [[], []]


def test_of_a_few_that_were_counted_together_some_are_known(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=LONG) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill(3)
        cgroup.log_kill(93)
        cgroup.log_kill(95)
        events = take(monitor, 2)
        assert pids(events) == [[93, 95]]
        assert isinstance(events[1], OomKill)
        assert events[1].count == 3


def test_a_group_whose_first_victim_is_told_of_twice(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill(3)
        for pid in (93, 94, 93):
            cgroup.log_kill(pid)
        assert pids(take(monitor, 2)) == [[93, 94]]


def test_a_line_of_another_cgroup_is_nobodys(kernel: FakeKernel) -> None:
    cgroup, unwatched = kernel.make("a"), kernel.make("b")
    with Monitor(settle=LONG) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        unwatched.kill()
        unwatched.log_kill(94)
        assert pids(take(monitor, 2)) == [[]]


def test_a_line_of_a_kill_that_the_counter_does_not_show(kernel: FakeKernel) -> None:
    """The counter moves first: so this one was told before, or is of another cgroup that had that name."""
    cgroup = kernel.make()
    with Monitor(settle=LONG) as monitor:
        watch = monitor.watch(cgroup.path)
        take_while(monitor, lambda: watch._trouble.round)
        cgroup.log_kill(92)
        monitor.wait(0.05)
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93)
        assert pids(take(monitor, 2)) == [[93]]


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_namesake(kernel: FakeKernel, which: str) -> None:
    """Both have the path that the log names; the old one is gone before the line is read."""
    old = kernel.make("a")
    with Monitor(settle=LONG, linger=LONG) as monitor:
        watch = monitor.watch(old.path)
        old.oom()
        if which == "old":
            old.kill()
        old.rmdir()
        new = kernel.make("a")
        other = monitor.watch(new.path)
        if which == "new":
            new.oom()
            new.kill()
        new.log_kill(93)
        old.removal_signal()
        events: list[Event] = []
        take_while(monitor, lambda: not watch.removed, events)
        take_while(monitor, lambda: other._trouble.round, events)
        events += monitor.wait(0)
        assert brief(events, watch) == [("Oom", 1), ("Removed", 1)]
        assert brief(events, other) == ([] if which == "old" else [("Oom", 1), ("OomKill", 1)])
        assert pids(events) == ([] if which == "old" else [[93]])


def told_by_pid(kernel: FakeKernel, monitor: Monitor, cgroup: FakeCgroup, *, first: str) -> list[Event]:
    """A kill in a storm, whose line names no cgroup."""
    watch = monitor.watch(cgroup.path)
    cgroup.kernel.make("untold").kill()  # so that it is not known by that nobody else lacks a victim
    cgroup.tasks(92, 93)
    cgroup.oom()
    if first == "line":
        cgroup.kill()
        cgroup.log_kill(93, named=False)
    events = take(monitor, 1)
    if first == "signal":
        cgroup.kill()
        cgroup.log_kill(93, named=False)
    take_while(monitor, lambda: not watch.kills or monitor._outbox.waiting, events)
    return events + monitor.wait(0)


def test_by_the_pid_that_was_seen_before(kernel: FakeKernel) -> None:
    with Monitor(settle=LONG) as monitor:
        assert pids(told_by_pid(kernel, monitor, kernel.make(), first="signal")) == [[93]]


@pytest.mark.parametrize("is_dying", [True, False, None])
def test_by_a_pid_that_was_seen_after_the_line(kernel: FakeKernel, tasks: Tasks, is_dying: bool | None) -> None:
    """It may be another's by now, unless the task is dying, or there was no time for that."""
    if is_dying is not None:
        tasks.known[93] = is_dying
    with Monitor(settle=LONG) as monitor:
        expected: list[int] = [] if is_dying is False else [93]
        assert pids(told_by_pid(kernel, monitor, kernel.make(), first="line")) == [expected]


def test_by_a_pid_of_long_ago(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg_oom.victims, "_SOON", 0)
    with Monitor(settle=LONG) as monitor:
        assert pids(told_by_pid(kernel, monitor, kernel.make(), first="line")) == [[]]


def test_a_pid_that_was_seen_in_two_cgroups(kernel: FakeKernel) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=LONG) as monitor:
        watches = monitor.watch_many([cgroup.path, other.path])
        cgroup.tasks(93)
        other.tasks(93)
        kernel.make("untold").kill()
        for one in (cgroup, other):
            one.oom()
        events = take(monitor, 2)
        for one in (cgroup, other):
            one.kill()
        cgroup.log_kill(93, named=False)
        take_while(monitor, lambda: not all(watch.kills for watch in watches) or monitor._outbox.waiting, events)
        assert pids(events + monitor.wait(0)) == [[], []]


def test_by_a_task_that_is_still_there(kernel: FakeKernel, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    tasks.known[93] = True
    monkeypatch.setattr(memcg_oom.victims.Victims, "_path_of_task", lambda _self, _pid: str(cgroup.path))
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        kernel.make("untold").kill()
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93, named=False)
        assert pids(take(monitor, 2)) == [[93]]


def test_by_a_task_that_begins_to_die_only_then(
    kernel: FakeKernel, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup = kernel.make()
    tasks.known[93] = False
    monkeypatch.setattr(memcg_oom.victims.Victims, "_path_of_task", lambda _self, _pid: str(cgroup.path))
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        kernel.make("untold").kill()
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93, named=False)
        events = take(monitor, 1)
        take_while(monitor, lambda: not (watch.kills and monitor._victims._lines), events)
        tasks.known[93] = True
        assert pids(events + take(monitor, 1)) == [[93]]


def test_by_exclusion(kernel: FakeKernel) -> None:
    """All kills of the host are told, and one alone lacks its victim."""
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93, named=False)
        assert pids(take(monitor, 2)) == [[93]]


@pytest.mark.parametrize("why_not", ["two lack one", "two lines", "untold"])
def test_not_by_exclusion(kernel: FakeKernel, why_not: str) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=LONG) as monitor:
        watches = monitor.watch_many([cgroup.path, other.path])
        killed_in = [cgroup, other] if why_not == "two lack one" else [cgroup]
        if why_not == "untold":
            kernel.make("untold").kill()
        for one in killed_in:
            one.oom()
            one.kill()
        events: list[Event] = []
        take_while(monitor, lambda: sum(watch.kills for watch in watches) < len(killed_in), events)
        cgroup.log_kill(93, named=False)
        if why_not == "two lines":
            other.log_kill(94, named=False)
        take_while(monitor, lambda: monitor._outbox.waiting, events)
        found = pids(events + monitor.wait(0))
        assert found == [[]] * len(killed_in)


@pytest.mark.parametrize("line", ["before", "after"])
def test_nobody_is_excluded_after_one_has_left_without(kernel: FakeKernel, line: str) -> None:
    """Its line may be any of those that are left, or yet come."""
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=LONG) as monitor:
        watch, another = monitor.watch_many([cgroup.path, other.path])
        cgroup.oom()
        cgroup.kill()
        events: list[Event] = []
        take_while(monitor, lambda: not watch.kills, events)
        time.sleep(LONG / 2)
        other.oom()
        other.kill()
        take_while(monitor, lambda: not another.kills, events)
        if line == "before":
            cgroup.log_kill(93, named=False)
        take_while(monitor, lambda: watch in monitor._outbox.waiting, events)
        if line == "after":
            cgroup.log_kill(93, named=False)
        take_while(monitor, lambda: monitor._outbox.waiting, events)
        assert pids(events + monitor.wait(0)) == [[], []]


def test_what_the_log_alone_knows_of_a_removed_cgroup(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=LONG, linger=LONG) as monitor:
        tree = kernel.tree(monitor)
        watch = tree.member(cgroup.path.stat().st_ino)
        assert watch is not None
        take_while(monitor, lambda: watch._trouble.round)
        cgroup.oom(2)
        kernel.host_killed()
        cgroup.log_kill(93)
        cgroup.rmdir()
        cgroup.removal_signal()
        events: list[Event] = []
        take_while(monitor, lambda: not watch.removed, events)
        assert brief(events, watch) == [("Oom", 2), ("OomKill", 1), ("Removed", 1)]
        assert pids(events) == [[93]]
        assert (watch.kills, tree.kills) == (1, 1)
        take_while(monitor, lambda: monitor._audit._suspected or monitor._audit.due, events)
        assert not [event for event in events if isinstance(event, Unattributed)]


def test_what_was_told_is_not_told_again_of_a_removed_cgroup(kernel: FakeKernel) -> None:
    """Its victim was found too late for its event."""
    cgroup = kernel.make()
    with Monitor(settle=0.0, linger=LONG) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        events = take(monitor, 2)
        assert pids(events) == [[]]
        cgroup.oom()
        cgroup.rmdir()
        cgroup.log_kill(93)
        cgroup.removal_signal()
        take_while(monitor, lambda: not watch.removed, events)
        assert brief(events) == [("Oom", 1), ("OomKill", 1), ("Oom", 1), ("Removed", 1)]


def test_a_watch_that_began_after_the_kill(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=LONG, linger=LONG) as monitor:
        monitor.watch(kernel.make("b").path)
        cgroup.kill()
        cgroup.log_kill(93)
        monitor.wait(0.01)
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        events = take(monitor, 1)
        cgroup.rmdir()
        cgroup.removal_signal()
        take_while(monitor, lambda: not watch.removed, events)
        assert brief(events) == [("Oom", 1), ("Removed", 1)]


def test_a_watch_that_began_when_the_log_was_overrun(kernel: FakeKernel) -> None:
    """What is left of the log was said before it began all the same."""
    cgroup = kernel.make()
    with Monitor(settle=LONG, linger=LONG) as monitor:
        monitor.watch(kernel.make("b").path)
        kernel.overrun_log()
        cgroup.kill()
        cgroup.log_kill(93)
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.rmdir()
        cgroup.removal_signal()
        events = take_while(monitor, lambda: not watch.removed)
        assert brief(events, watch) == [("Oom", 1), ("Removed", 1)]


@pytest.mark.parametrize("was_seen", [False, True])
def test_namesakes_that_are_both_gone(kernel: FakeKernel, was_seen: bool) -> None:
    """The first waits for its victim, whose line never comes; the line of the second is not given to it."""
    old = kernel.make("a")
    with Monitor(settle=LONG, linger=0.05) as monitor:
        first = monitor.watch(old.path)
        old.oom()
        old.kill()
        events = take(monitor, 1)
        assert brief(events) == [("Oom", 1)]
        old.rmdir()
        old.removal_signal()
        new = kernel.make("a")
        second = monitor.watch(new.path)
        if was_seen:
            new.tasks(93)
        new.oom()
        events += take(monitor, 1)
        new.log_kill(93)  # and it was gone before anybody looked at its counter
        new.rmdir()
        new.removal_signal()
        take_while(monitor, lambda: not (first.removed and second.removed) or monitor._outbox.waiting, events)
        events += monitor.wait(0)
        of_first = [event for event in of_kills(events) if event.watch is first]
        assert [(event.count, event.victims) for event in of_first] == [(1, ())]
        of_second = [event for event in of_kills(events) if event.watch is second]
        assert pids(of_second) == ([[93]] if was_seen else [])


@pytest.mark.parametrize("way", ["watched", "in a tree"])
def test_a_namesake_that_comes_while_a_long_report_is_read(kernel: FakeKernel, way: str) -> None:
    """The line was written before the new one was there, and is behind more than is read before an event."""
    old = kernel.make("a")
    neighbour = kernel.make("b")
    with Monitor(settle=LONG, linger=LONG) as monitor:
        tree = kernel.tree(monitor) if way == "in a tree" else None
        if tree is None:
            monitor.watch_many([old.path, neighbour.path])
        old.oom()
        neighbour.oom()
        old.kill()
        for _ in range(4 * memcg_oom.victims._RECORDS_BRIEFLY):
            kernel.log("6,1,1,-;of the report\n")
        old.log_kill(93)
        if tree is None:
            events = [next(monitor)]  # and the other one waits to be handed out
        old.rmdir()
        new = kernel.make("a")
        if tree is None:
            other = monitor.watch(new.path)
        else:
            new.kill()
            events = monitor.wait(0)
            found = tree.member(new.path.stat().st_ino)
            assert found is not None
            other = found
        new.oom()
        if tree is None:
            new.kill()
        old.removal_signal()
        take_while(monitor, lambda: not other.kills or monitor._outbox.waiting, events)
        (event,) = [event for event in of_kills(events) if event.watch is other]
        assert event.victims == ()


def test_the_victims_of_nobodys_kills(kernel: FakeKernel) -> None:
    kernel.make("a")
    with Monitor(settle=0.05, audit=0.05) as monitor:
        kernel.tree(monitor)
        time.sleep(0.1)  # what is read in the first settle period may be of before
        kernel.host_killed()
        kernel.log(summary(93, b"hog", b"/gone", b"/gone"))
        kernel.log(killed(93, b"hog"))
        events: list[Event] = []
        take_while(monitor, lambda: not any(isinstance(event, Unattributed) for event in events), events)
        (event,) = [event for event in events if isinstance(event, Unattributed)]
        assert [victim.pid for victim in event.victims] == [93]
        kernel.host_killed()
        kernel.log(killed(94, b"hog"))
        kernel.log(killed(95, b"hog"))  # one more than there were kills: one of them is somebody's
        events.clear()
        take_while(monitor, lambda: not any(isinstance(event, Unattributed) for event in events), events)
        (event,) = [event for event in events if isinstance(event, Unattributed)]
        assert event.victims == ()


def test_two_watches_of_a_cgroup(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        watches = monitor.watch_many([cgroup.path, cgroup.path])
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93)
        events = take(monitor, 3)  # the fake kernel signals the one that registered last
        for watch in watches:
            mine = [event for event in events if isinstance(event, CgroupEvent) and event.watch is watch]
            assert pids(mine) == [[93]]


@pytest.mark.parametrize(
    ("above", "below", "limit"), [(1, 1, "above"), (0, 1, "below"), (1, 2, None), (2, 1, None), (1, 0, None)]
)
def test_whose_limit_it_was_by_the_signals(kernel: FakeKernel, above: int, below: int, limit: str | None) -> None:
    """They go to the cgroup whose limit was hit and to all that are below it."""
    parent, child = kernel.make("a"), kernel.make("a/b")
    with Monitor(settle=LONG, audit=0.05) as monitor:
        kernel.tree(monitor)
        if above:
            parent.oom(above)
        if below:
            child.oom(below)
        child.kill()
        kernel.log()
        events: list[Event] = []
        take_while(monitor, lambda: not of_kills(events), events)
        (kill,) = of_kills(events)
        assert kill.cgroup == str(child.path)
        assert kill.limit_cgroup == (limit and str({"above": parent, "below": child}[limit].path))


@pytest.mark.parametrize("named", [True, False], ids=["named", "by pid"])
def test_ctrl_c_at_every_moment(kernel: FakeKernel, named: bool) -> None:
    """Neither is a victim lost, nor an event that waits for it, nor is one told twice."""
    failures = []
    with Monitor(settle=0.05, linger=0.0) as monitor:
        for moment in range(3000):
            cgroup = kernel.make(f"c{moment}")
            watch = monitor.watch(cgroup.path)
            pid = 100_000 + moment
            cgroup.tasks(pid)
            strike = Strike(moment)
            events: list[Event] = []
            cgroup.oom()

            def collect(condition: object, events: list[Event] = events) -> None:
                assert callable(condition)
                take_while(monitor, condition, events, pause=0.001)

            for part in (
                lambda watch=watch: not watch.ooms,
                lambda watch=watch: not watch.kills or monitor._outbox.waiting,
            ):
                try:
                    with strike:
                        collect(part)
                except KeyboardInterrupt:
                    collect(part)
                strike.left = max(strike.left, -1)
                if not watch.kills:
                    cgroup.kill()
                    cgroup.log_kill(pid, named=named)
            events += monitor.wait(0)
            if brief(events) != [("Oom", 1), ("OomKill", 1)] or pids(events) != [[pid]]:
                failures.append(f"{strike.where}: {brief(events)} {pids(events)}")
            watch.close()
            if not strike.where:
                break
    assert moment > 50
    assert not failures, "\n".join(failures[:20])


def test_removed_follows_what_waits(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        events = take(monitor, 1)
        take_while(monitor, lambda: not watch.kills, events)
        cgroup.rmdir()
        cgroup.removal_signal()
        take_while(monitor, lambda: not watch.removed, events)
        assert brief(events) == [("Oom", 1)]
        cgroup.log_kill(93)
        events += take(monitor, 2)
        assert brief(events) == [("Oom", 1), ("OomKill", 1), ("Removed", 0)]
        assert pids(events) == [[93]]
        assert isinstance(events[-1], Removed)
