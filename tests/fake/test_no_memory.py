"""Python's own memory runs out: each allocation of a wake-up, and of every public call, fails once.

Whatever a call was about to do, it is done or it is not: what was told is told once, what was not is told by the next
look, no descriptor is left, and the monitor works on.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

import memcg_oom.audit
import memcg_oom.stalls
import memcg_oom.v1
import memcg_oom.victims
from memcg_oom import Cgroup, Event, Monitor, Oom, OomKill, PodNames, Pressure, UsageCrossed, identify, register
from memcg_oom._native import ffi, lib
from memcg_oom.sources import Inotify
from memcg_oom.stalls import HOST
from memcg_oom.v2 import V2Watches
from memcg_oom.victims import Victims
from memcg_oom.watches import CROWD
from tests.fake.fake_kernel import AGES, FakeCgroup, FakeKernel, brief, replace_in_lib, take, take_while
from tests.support import eventually, run_python

_testcapi = pytest.importorskip("_testcapi", reason="this Python has no _testcapi, by which allocations fail")

# Python itself must bear it. When there is no memory for a generator expression, 3.12.1 and 3.13.0 take one reference
# too many to its code, and crash in the end; when there is none for a list that grows, 3.15.0 crashes at once.
BEARS_IT = """
import _testcapi, os, sys, types
def generate():
    return (item for item in ())
def grow():
    items = []
    for item in range(20):
        items.append((item, item))
(code,) = (constant for constant in generate.__code__.co_consts if isinstance(constant, types.CodeType))
held = [code] * 100
before = sys.getrefcount(code)
for call in (generate, grow):
    for _ in range(100):
        call()
    for moment in range(25):
        _testcapi.set_nomemory(moment, moment + 1)
        try:
            call()
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
print(sys.getrefcount(code) == before, flush=True)
os._exit(0)
"""
if run_python(BEARS_IT)[1] != "True\n":
    pytest.skip("this Python crashes when it has no memory, whoever asks for it", allow_module_level=True)

Result = TypeVar("Result")

# More than any of the calls makes.
MOST = 5000
ENOUGH = 10  # failures of one scenario
# MemoryError, or what Python makes of it: "can't allocate lock"; "returned NULL without setting an exception".
_NO_MEMORY = (MemoryError, RuntimeError, SystemError)
MB = 1 << 20


class Famine:
    """Has the Nth allocation of each call fail.

    Attributes:
        where: the lines at which it did, the innermost last; empty: it did not, or Python had no memory for them.
        over: whether none of the calls so far makes so many.
    """

    def __init__(self, moment: int) -> None:
        self.where = ""
        self.over = True
        self._moment = moment

    def call(self, function: Callable[..., Result], *arguments: object, **keywords: object) -> Result | None:
        """What it returns; None if it failed."""
        result = None
        has_returned = is_over = False
        gc.collect(0)
        gc.disable()  # it would come at another time in each run
        try:
            _testcapi.set_nomemory(self._moment, self._moment + 1)
            result = function(*arguments, **keywords)
            has_returned = True
            for _ in range(self._moment + 1):  # is it still to come, or was it made in vain during the call?
                bytes(1000)
        except _NO_MEMORY as error:
            _testcapi.remove_mem_hooks()
            is_over = has_returned
            self.where += "" if has_returned else _where(error.__traceback__)
        finally:
            _testcapi.remove_mem_hooks()
            gc.enable()
        self.over = self.over and is_over
        return result


def _where(traceback: TracebackType | None) -> str:
    lines = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        lines.append(f"{os.path.basename(code.co_filename)}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    return " ".join(lines[1:])


class Triggers:
    """The module os, but for the file of triggers: an eventfd stands for it, which is polled in the same way."""

    close = staticmethod(os.close)  # to be found without memory, as in the module

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._context = ffi.new("uint64_t *")  # one for all monitors: to give one up takes the kernel 40 ms
        assert lib.memcg_triggers_open(self._context) == 0

    def open(self, _path: str, _flags: int) -> int:
        return os.dup(self._fd)

    def write(self, _fd: int, text: bytes) -> int:
        return len(text)

    def open_context(self, context: Any) -> int:
        context[0] = self._context[0]
        return 0

    def close_all(self) -> None:
        lib.memcg_triggers_close(self._context[0])
        os.close(self._fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class Stage:
    """What a scenario plays on."""

    def __init__(
        self, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, triggers: Triggers, spare: FakeCgroup, moment: int
    ) -> None:
        self.kernel = kernel
        self.spare = spare  # of all scenarios
        self.triggers = triggers
        self.monkeypatch = monkeypatch
        self.famine = Famine(moment)
        self.call = self.famine.call
        self.top = f"m{moment}"
        self.number = 0

    def make(self, name: str = "") -> FakeCgroup:
        """A cgroup of this scenario's."""
        self.number += 1
        return self.kernel.make(f"{self.top}{name or self.number}")

    def wait(self, monitor: Monitor, times: int = 1) -> list[Event]:
        """What so many waits hand out, one of which may fail, and what those hand out that come after it."""
        batches: list[list[Event]] = [[]] * (times + 3)

        def take() -> None:
            for index in range(times):
                batches[index] = monitor.wait(0)  # here nothing is allocated

        self.call(take)
        for index in range(times, len(batches)):
            batches[index] = monitor.wait(0)
        return [event for batch in batches for event in batch]

    @staticmethod
    def rest(monitor: Monitor) -> list[Event]:
        """What some more waits hand out."""
        return [event for _ in range(4) for event in monitor.wait(0)]

    @staticmethod
    def forget(cgroup: FakeCgroup) -> None:
        """Of a registration that failed: its line stands in the file, and its eventfd is closed."""
        if cgroup.kernel.version == 1:
            (cgroup.path / "cgroup.event_control").write_text("")

    @property
    def has_lost_log(self) -> bool:
        """Whether it was a read of the log that failed: what it has read is lost."""
        return "victims.py" in self.famine.where  # which has it read

    def fake_stalls(self) -> None:
        """Makes triggers of the host cheap; they never fire."""
        self.monkeypatch.setattr(memcg_oom.stalls, "os", self.triggers)
        replace_in_lib(
            self.monkeypatch, memcg_triggers_open=self.triggers.open_context, memcg_triggers_close=lambda _: 0
        )

    def names_victims(self) -> None:
        """As FakeKernel.names_victims(), for this scenario."""
        self.monkeypatch.setattr(Victims, "_patience", lambda victims, _finds_any: victims._settle)
        self.monkeypatch.setattr(memcg_oom.victims, "_is_first", lambda _kind, _inode: True)

    def check(self, monitor: Monitor) -> None:
        """The monitor is as good as new."""
        cgroup = self.spare
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        events = take_while(monitor, lambda: not watch.kills, pause=0)
        events += monitor.wait(0)
        assert sorted(brief(events, watch)) == [("Oom", 1), ("OomKill", 1)]
        watch.close()
        cgroup.close()

    def clear(self) -> None:
        """Takes away what the scenario has made."""
        stays = [cgroup for cgroup in self.kernel.cgroups if cgroup is self.spare or cgroup.path == self.kernel.root]
        for cgroup in self.kernel.cgroups:
            cgroup.close()
            if cgroup in stays:
                self.forget(cgroup)
            elif not cgroup.gone and cgroup.path.parent == self.kernel.root:
                self.kernel.bury(cgroup.path)
        self.kernel.cgroups[:] = stays


Scenario = Callable[[Stage], None]


# -- wake-ups


def an_oom(stage: Stage) -> None:
    cgroup, other = stage.make(), stage.make()
    with Monitor(settle=AGES) as monitor:
        watch, second = monitor.watch_many([cgroup.path, other.path])
        cgroup.oom(2)
        other.oom(3)
        events = stage.wait(monitor)
        assert (brief(events, watch), brief(events, second)) == ([("Oom", 2)], [("Oom", 3)])
        stage.check(monitor)


def a_kill_of_which_two_are_told(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        watches = []
        for _ in range(2):
            watches.append(monitor.watch(cgroup.path))
            cgroup.listen()
        cgroup.oom()
        cgroup.kill(2)
        events = stage.wait(monitor)
        for watch in watches:
            assert sorted(brief(events, watch)) == [("Oom", 1), ("OomKill", 2)]
        stage.check(monitor)


def a_removal(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.rmdir()
        cgroup.removal_signal()
        events = stage.wait(monitor, 3)
        assert brief(events) == [("Oom", 1), ("Removed", 1)]
        assert watch._key not in monitor._watches.by_key
        stage.check(monitor)


def a_late_signal(stage: Stage) -> None:
    cgroup = stage.make()
    stage.monkeypatch.setattr(memcg_oom.v1, "LATE", int(AGES * 1e9))
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rmdir()
        cgroup.removal_signal()
        eventually(lambda: monitor.wait(0) or watch.removed)
        cgroup.oom_before_removal(2)
        assert brief(stage.wait(monitor)) == [("late Oom", 2)]
        stage.check(monitor)


def a_rename(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.rename(f"{stage.top}-renamed")
        cgroup.oom()
        assert brief(stage.wait(monitor)) == [("Oom", 1)]
        assert watch.cgroup == str(cgroup.path)
        stage.check(monitor)


def a_crowd(stage: Stage) -> None:
    cgroups = [stage.make() for _ in range(CROWD)]
    with Monitor(settle=AGES) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for cgroup in cgroups:
            cgroup.oom()
        events = stage.wait(monitor, 2)
        assert [brief(events, watch) for watch in watches] == [[("Oom", 1)]] * CROWD


def an_oom_that_is_resolved(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.sleep(True, killer_off=True)
        cgroup.oom()
        eventually(lambda: monitor.wait(0) == [] and watch._trouble.stuck)
        cgroup.sleep(False, killer_off=True)
        events = stage.wait(monitor)
        take_while(monitor, lambda: watch._trouble.round is not None, events)
        assert brief(events) == [("OomResolved", 0)]


def a_victim(stage: Stage) -> None:
    cgroup = stage.make()
    stage.names_victims()
    with Monitor(settle=0.01) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        cgroup.log_kill(93)
        events = stage.wait(monitor)
        take_while(monitor, lambda: len(events) < 2, events)
        assert sorted(brief(events, watch)) == [("Oom", 1), ("OomKill", 1)]
        victims = [victim.pid for event in events if isinstance(event, OomKill) for victim in event.victims]
        assert victims == [93] or (not victims and stage.has_lost_log)


def a_kill_that_only_the_log_tells(stage: Stage) -> None:
    cgroup = stage.make()
    stage.names_victims()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        stage.kernel.host_killed()
        cgroup.log_kill(93)
        cgroup.rmdir()
        cgroup.removal_signal()
        events = stage.wait(monitor, 2)
        told = brief(events, watch)
        # When the log was not read in time, it is an OOM without an outcome.
        assert told == [("OomKill", 1), ("Removed", 0)] or (told == [("Removed", 1)] and not stage.famine.over)


def an_overrun_log(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        stage.kernel.overrun_log()
        events = stage.wait(monitor)
        assert brief(events) == [("Degraded", 0)] or (not events and stage.has_lost_log)
        stage.check(monitor)


def a_kill_without_a_signal(stage: Stage) -> None:
    cgroup = stage.make()
    stage.monkeypatch.setattr(memcg_oom.audit, "SHARE", 1)
    with Monitor(settle=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.kill()
        monitor._audit.due = 1
        assert brief(stage.wait(monitor, 2), watch) == [("OomKill", 1)]
        stage.check(monitor)


def a_kill_that_is_nobodys(stage: Stage) -> None:
    stage.monkeypatch.setattr(memcg_oom.audit, "SHARE", 1)
    with Monitor(settle=0.0) as monitor:
        tree = stage.kernel.tree(monitor)
        stage.kernel.host_killed(2)
        monitor._audit.due = 1
        events = stage.wait(monitor, 3)
        take_while(monitor, lambda: monitor._audit.due, events)
        assert brief(events) == [("Unattributed", 2)]
        tree.close()


# -- trees


def a_new_cgroup(stage: Stage) -> None:
    root = stage.make()
    with Monitor(settle=AGES) as monitor:
        tree = stage.kernel.tree(monitor, root.path)
        cgroup = stage.kernel.make(f"{root.path.name}/new", kills=1)
        stage.kernel.make(f"{root.path.name}/new/below")
        events = stage.wait(monitor)
        watch = {watch.cgroup: watch for watch in tree}[str(cgroup.path)]
        assert sorted(brief(events, watch)) == [("Created", 0), ("OomKill", 1)]
        assert len(list(tree)) == 3
        assert brief(events).count(("Created", 0)) == 2
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        stage.check(monitor)


def a_removal_in_a_tree(stage: Stage) -> None:
    root = stage.make()
    cgroup = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = stage.kernel.tree(monitor, root.path)
        cgroup.oom()
        assert brief(monitor.wait(0)) == [("Oom", 1)]
        cgroup.rmdir()
        cgroup.removal_signal()
        events = stage.wait(monitor, 3)
        assert brief(events) == [("Removed", 1)]
        assert (tree.ooms, len(list(tree)), len(tree._members)) == (1, 1, 1)
        assert isinstance(tree._source, Inotify)
        assert len(tree._source._watches) == len(tree._source._directories) == 1
        stage.check(monitor)


def a_rename_in_a_tree(stage: Stage) -> None:
    root = stage.make()
    cgroup = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=AGES) as monitor:
        tree = stage.kernel.tree(monitor, root.path)
        cgroup.rename("b")
        assert stage.wait(monitor) == []
        cgroup.oom()
        (event,) = monitor.wait(0)
        assert isinstance(event, Oom)
        assert event.cgroup == str(cgroup.path)
        assert len(list(tree)) == 2


def one_that_is_polled(stage: Stage) -> None:
    root = stage.make()
    cgroup = stage.kernel.make(f"{root.path.name}/a")
    stage.monkeypatch.setattr(memcg_oom.audit, "SHARE", 1)
    stage.monkeypatch.setattr("memcg_oom.search.resource.getrlimit", lambda _: (1, 1))
    with Monitor(settle=0.0, audit=1e-9) as monitor:
        tree = stage.kernel.tree(monitor, root.path)
        assert tree.polled == 2
        for one in (root, cgroup):
            stage.forget(one)
        root.kill()
        cgroup.rmdir()
        events = stage.wait(monitor)
        take_while(monitor, lambda: tree.polled > 1 or not tree.kills, events, pause=0)
        assert sorted(brief(events)) == [("Degraded", 0), ("OomKill", 1), ("Removed", 0)]


# -- beside OOM


def crossings(events: list[Event]) -> list[UsageCrossed]:
    return [event for event in events if isinstance(event, UsageCrossed)]


def a_threshold(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = stage.call(monitor.watch_usage, str(cgroup.path), MB, interval=AGES)
        if watch is None:
            assert monitor.watches == ()
            stage.forget(cgroup)
            watch = monitor.watch_usage(cgroup.path, MB, interval=AGES)
        cgroup.use(2 * MB)
        cgroup.alarm()
        assert [(event.above, event.count) for event in crossings(monitor.wait(0))] == [(True, 1)]
        stage.check(monitor)


def a_crossing(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        monitor.watch_usage(cgroup.path, MB, interval=AGES)
        cgroup.use(2 * MB)
        cgroup.alarm()
        assert [(event.above, event.count) for event in crossings(stage.wait(monitor))] == [(True, 1)]
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(take(monitor, 1)) == [("Removed", 0)]


def pressure(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch = monitor.watch_pressure(cgroup.path, "low", interval=AGES)
        cgroup.alarm(3)
        (event,) = stage.wait(monitor)
        assert isinstance(event, Pressure)
        assert event.count == 3
        stage.call(watch.close)
        watch.close()
        assert monitor.watches == ()
        stage.check(monitor)


def the_removal_of_one_with_a_threshold(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES, linger=0.0) as monitor:
        monitor.watch_usage(cgroup.path, MB, interval=0.0)
        cgroup.listen()
        cgroup.rmdir()
        cgroup.removal_signal()
        assert brief(stage.wait(monitor, 3)) == [("Removed", 0)]


# -- beginning and ending


def a_monitor(stage: Stage) -> None:
    monitor = stage.call(Monitor, settle=AGES)
    if monitor is not None:
        stage.check(monitor)
        monitor.close()


def the_first_watch(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        watch = stage.call(monitor.watch, str(cgroup.path))
        if watch is None:
            assert monitor.watches == ()
            stage.forget(cgroup)
            watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(stage.rest(monitor), watch) == [("Oom", 1)]
        stage.check(monitor)


def many_watches(stage: Stage) -> None:
    cgroups = [stage.make() for _ in range(3)]
    cgroups[1].rmdir()
    paths = [str(cgroup.path) for cgroup in cgroups]
    with Monitor(settle=AGES) as monitor:
        stage.check(monitor)
        watches = stage.call(monitor.watch_many, paths, skip_gone=True)
        if watches is None:
            assert monitor.watches == ()
            for cgroup in (cgroups[0], cgroups[2]):
                stage.forget(cgroup)
            watches = monitor.watch_many(paths, skip_gone=True)
        cgroups[0].oom()
        cgroups[2].oom()
        events = stage.rest(monitor)
        assert [brief(events, watch) for watch in watches] == [[("Oom", 1)]] * 2


def a_watch_that_is_refused(stage: Stage) -> None:
    cgroup = stage.make()
    (cgroup.path / "cgroup.event_control").unlink()
    with Monitor(settle=AGES) as monitor:
        with suppress(FileNotFoundError):
            stage.call(monitor.watch, str(cgroup.path))
        assert monitor.watches == ()
        stage.check(monitor)


def a_tree(stage: Stage) -> None:
    root = stage.make()
    below = [stage.kernel.make(f"{root.path.name}/{name}") for name in ("a", "a/c")]
    with Monitor(settle=AGES) as monitor:
        tree = stage.call(monitor.watch_tree, str(root.path), source="inotify")
        if tree is None:
            assert (monitor.watches, monitor._discovery.trees, monitor._discovery.sources) == ((), [], {})
            for cgroup in (root, *below):
                stage.forget(cgroup)
            tree = monitor.watch_tree(root.path, source="inotify")
        below[1].oom()
        assert brief(stage.rest(monitor)) == [("Oom", 1)]
        assert len(list(tree)) == 3
        stage.check(monitor)


def a_tree_of_the_host(stage: Stage) -> None:
    root = stage.kernel.make_root()
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        tree = stage.call(monitor.watch_tree, str(root.path), source="inotify")
        if tree is None:
            assert (monitor.watches, monitor._discovery.trees, monitor._watches.covering) == ((), [], None)
            stage.forget(cgroup)
            tree = monitor.watch_tree(root.path, source="inotify")
        assert monitor._watches.covering is tree
        cgroup.kill()
        cgroup.oom()
        assert sorted(brief(stage.rest(monitor))) == [("Oom", 1), ("OomKill", 1)]


def the_end_of_a_watch(stage: Stage) -> None:
    cgroup, other = stage.make(), stage.make()
    with Monitor(settle=AGES) as monitor:
        watch, second = monitor.watch_many([cgroup.path, other.path])
        cgroup.oom()
        stage.call(watch.close)
        watch.close()
        other.oom()
        assert brief(stage.rest(monitor)) == [("Oom", 1)]
        assert monitor.watches == (second,)
        before = fds()
        second.close()
        monitor.wait(0)
        assert fds() == before - 1
        stage.check(monitor)


def the_end_of_a_member(stage: Stage) -> None:
    root = stage.make()
    cgroup = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = stage.kernel.tree(monitor, root.path)
        (watch,) = (watch for watch in tree if watch.cgroup == str(cgroup.path))
        cgroup.listen()
        stage.call(watch.close)
        watch.close()
        cgroup.rmdir()
        assert stage.wait(monitor) == []
        # When it was the news of the removal that was lost, the member is kept as long as the tree.
        assert len(tree._members) == 1 or stage.famine.where
        stage.call(tree.close)
        tree.close()
        assert tree._members == {}
        stage.check(monitor)


def the_end_of_a_tree(stage: Stage) -> None:
    root = stage.make()
    cgroup = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=AGES) as monitor:
        stage.check(monitor)
        before = fds()
        tree = stage.kernel.tree(monitor, root.path)
        root.listen()
        cgroup.oom()
        monitor.wait(0)
        stage.call(tree.close)
        tree.close()
        monitor.wait(0)
        assert monitor.watches == ()
        assert tree.ooms == 1
        assert fds() == before + 2  # the kernel's own
        stage.check(monitor)


def the_end_of_one_of_two_trees(stage: Stage) -> None:
    root = stage.make()
    cgroup = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=AGES) as monitor:
        tree = stage.kernel.tree(monitor, root.path)
        cgroup.listen()
        within = stage.kernel.tree(monitor, cgroup.path)
        stage.call(tree.close)
        tree.close()
        cgroup.oom()
        events = stage.rest(monitor)
        assert brief(events) == [("Oom", 1)]
        new = stage.kernel.make(f"{root.path.name}/a/new")
        assert brief(monitor.wait(0)) == [("Created", 0)]
        assert {watch.cgroup for watch in within} == {str(cgroup.path), str(new.path)}


def the_end_of_a_monitor(stage: Stage) -> None:
    root = stage.make()
    stage.kernel.make(f"{root.path.name}/a")
    cgroup = stage.make()
    stage.fake_stalls()
    monitor = Monitor(settle=AGES)
    stage.kernel.tree(monitor, root.path)
    watch = monitor.watch(cgroup.path)
    cgroup.listen()
    usage = monitor.watch_usage(cgroup.path, MB)
    stall = monitor.watch_stall(HOST, "some", 1.0, 2.0)
    cgroup.oom()
    stage.call(monitor.close)
    monitor.close()
    assert monitor.closed
    assert watch.closed
    assert usage.closed
    assert stall.closed


def questions(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        tree = stage.kernel.tree(monitor, cgroup.path)
        (watch,) = tree

        def ask() -> None:
            monitor.fileno()
            monitor.wake()
            repr((monitor, tree, watch, watch.cgroup, watch.polled, tree.cgroup, tree.ooms, tree.kills, tree.polled))
            list(tree)
            tree.member(1)
            iter(monitor)
            len(monitor.watches)

        stage.call(ask)
        monitor.wait(0)
        stage.check(monitor)


def one_at_a_time(stage: Stage) -> None:
    cgroup, other = stage.make(), stage.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch_many([cgroup.path, other.path])
        cgroup.oom(1)
        other.oom(2)
        events: list[Event | None] = [None, None]

        def take() -> None:
            events[0] = next(monitor)
            events[1] = next(monitor)

        stage.call(take)
        for index in range(2):
            events[index] = events[index] or next(monitor)
        assert sorted(brief(filter(None, events))) == [("Oom", 1), ("Oom", 2)]


# -- stalls


def a_stall(stage: Stage) -> None:
    stage.fake_stalls()
    with Monitor(settle=AGES) as monitor:
        watch = stage.call(monitor.watch_stall, HOST, "some", 1.0, 2.0)
        if watch is None:
            assert monitor.watches == ()
            watch = monitor.watch_stall(HOST, "some", 1.0, 2.0)
        assert monitor.watches == (watch,)
        stage.check(monitor)


def a_stall_that_is_told(stage: Stage) -> None:
    stage.fake_stalls()
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch_stall(HOST, "some", 1.0, 2.0)
        signals = [(watch._key, 1)]

        def take(_context: object, batch: Any) -> int:
            if signals:
                batch.signals[0].key, batch.signals[0].count = signals[0]
                batch.count = 1
                signals.clear()
            return 0

        with stage.monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_triggers_take=take)
            os.eventfd_write(monitor._stalls._eventfds[0], 1)
            assert brief(stage.wait(monitor)) == [("Stall", 0)]
        stage.call(watch.close)
        watch.close()
        stage.check(monitor)


# -- v2


def an_event_of_v2(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        events = stage.wait(monitor)
        take_while(monitor, lambda: not watch.kills, events)
        assert sorted(brief(events)) == [("Oom", 1), ("OomKill", 1)]


def a_watch_of_v2(stage: Stage) -> None:
    cgroup = stage.make()
    with Monitor(settle=AGES) as monitor:
        watch = stage.call(monitor.watch, str(cgroup.path))
        if watch is None:
            assert monitor.watches == ()
            watch = monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(take(monitor, 1), watch) == [("Oom", 1)]
        stage.call(watch.close)
        watch.close()
        assert monitor.watches == ()
        assert isinstance(monitor._watches, V2Watches)
        assert monitor._watches.nodes == {}


def a_tree_of_v2(stage: Stage) -> None:
    root = stage.make()
    below = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=AGES) as monitor:
        tree = stage.call(monitor.watch_tree, str(root.path), source="inotify")
        if tree is None:
            assert (monitor.watches, monitor._discovery.trees) == ((), [])
            tree = monitor.watch_tree(root.path, source="inotify")
        below.oom()
        assert brief(take(monitor, 1)) == [("Oom", 1)]
        stage.call(tree.close)
        tree.close()
        assert isinstance(monitor._watches, V2Watches)
        assert (monitor.watches, monitor._watches.nodes) == ((), {})


def a_removal_of_v2(stage: Stage) -> None:
    root = stage.make()
    below = stage.kernel.make(f"{root.path.name}/a")
    with Monitor(settle=0.0) as monitor:
        tree = monitor.watch_tree(root.path, source="inotify")
        below.oom()
        below.kill()
        below.rmdir()
        events = stage.wait(monitor)
        take_while(monitor, lambda: len(list(tree)) > 1, events)
        assert [name for name, _ in brief(events)].count("Removed") == 1


# -- without a monitor


def a_registration(stage: Stage) -> None:
    cgroup = stage.make()
    eventfd = stage.call(register, str(cgroup.path), "memory.oom_control")
    if eventfd is None:
        stage.forget(cgroup)
        eventfd = register(cgroup.path, "memory.oom_control")
    cgroup.oom(3)
    stage.call(lambda: (eventfd.fileno(), eventfd.wait(0), repr(eventfd)))
    assert eventfd.read() == 3
    stage.call(eventfd.close)
    eventfd.close()


def a_cgroup(stage: Stage) -> None:
    cgroup = stage.make()
    (cgroup.path / "memory.max_usage_in_bytes").write_text("4096\n")
    (cgroup.path / "memory.limit_in_bytes").write_text("4096\n")

    path = str(cgroup.path)

    def ask() -> None:
        one = Cgroup(path)
        repr((one, one.usage, one.peak, one.limit, one.oom_control(), one.pids(), one.exists(), one.name, one.parent))
        one.limit = 8192
        one.children()
        one.largest()
        one.kill()
        one.kill_process(1)
        with suppress(FileExistsError):
            Cgroup.create(path)
        Cgroup.create(f"{path}/new").remove()

    stage.call(ask)
    with suppress(FileNotFoundError):
        os.rmdir(cgroup.path / "new")


def names(stage: Stage) -> None:
    folder = stage.make().path
    (folder / "default_web_0123").mkdir()
    found = PodNames(str(folder))
    stage.call(lambda: (found.find("0123"), identify("/system.slice/web.service"), repr(found.find("0123"))))
    name = found.find("0123")
    assert name is not None
    assert name.name == "web"


SCENARIOS: list[Scenario] = [
    an_oom,
    a_kill_of_which_two_are_told,
    a_removal,
    a_late_signal,
    a_rename,
    a_crowd,
    an_oom_that_is_resolved,
    a_victim,
    a_kill_that_only_the_log_tells,
    an_overrun_log,
    a_kill_without_a_signal,
    a_kill_that_is_nobodys,
    a_new_cgroup,
    a_removal_in_a_tree,
    a_rename_in_a_tree,
    one_that_is_polled,
    a_threshold,
    a_crossing,
    pressure,
    the_removal_of_one_with_a_threshold,
    a_monitor,
    the_first_watch,
    many_watches,
    a_watch_that_is_refused,
    a_tree,
    a_tree_of_the_host,
    the_end_of_a_watch,
    the_end_of_a_member,
    the_end_of_a_tree,
    the_end_of_one_of_two_trees,
    the_end_of_a_monitor,
    questions,
    one_at_a_time,
    a_stall,
    a_stall_that_is_told,
    a_registration,
    a_cgroup,
    names,
]
OF_V2: list[Scenario] = [an_event_of_v2, a_watch_of_v2, a_tree_of_v2, a_removal_of_v2]


@pytest.fixture
def kernel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    version = 2 if request.getfixturevalue("scenario") in OF_V2 else 1
    fake = FakeKernel(tmp_path, monkeypatch, version=version)
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def triggers() -> Iterator[Triggers]:
    made = Triggers()
    yield made
    made.close_all()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# They were just opened; they are closed all the same.
@pytest.mark.filterwarnings("ignore:unclosed scandir iterator", "ignore:unclosed file")
@pytest.mark.parametrize("scenario", SCENARIOS + OF_V2, ids=lambda scenario: scenario.__name__)
def test_each_allocation_fails_once(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    triggers: Triggers,
    scenario: Scenario,
    figure: dict[str, object],
) -> None:
    monkeypatch.setattr(memcg_oom.v1, "LATE", 0)
    monkeypatch.setattr(memcg_oom.v1, "ALARM_LATE", 0)
    spare = kernel.make("spare")
    failures = []
    for moment in range(MOST):
        before = fds()
        stage = Stage(kernel, monkeypatch, triggers, spare, moment)
        try:
            with monkeypatch.context() as stage.monkeypatch:
                scenario(stage)
        except Exception as error:
            failures.append(f"{moment}: {stage.famine.where}: {type(error).__name__} {str(error).splitlines()[:1]}")
        stage.clear()
        if fds() != before:
            gc.collect()
        if fds() != before:
            failures.append(f"{moment}: {stage.famine.where}: {fds() - before} descriptors are left")
        if stage.famine.over or len(failures) == ENOUGH:
            break
    figure["allocations"] = moment
    assert not failures, "\n".join(failures)
    assert moment
    assert stage.famine.over
