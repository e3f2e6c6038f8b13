"""user.py INTERPOSE FOLDER NAME...: the package on the fake kernel, with each system call made to fail once.

Runs with INTERPOSE, the library made of interpose.c, preloaded. A scenario goes through once to count its calls, and
then once for each of them and each errno. What must hold each time, beside what the scenario itself asks for:

- What was called raises an OSError with the errno, and nothing of it is left: no descriptor, no registration, no watch.
  Then the same call succeeds. Or it does what it is for.
- Of all that happens nothing is lost and nothing invented, as soon as somebody has looked again.

Prints a line for each fault: the scenario, the call, the errno, what came of it.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import shutil
import socket
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

# ruff: noqa: E402 - first what tests/conftest.py does too
sys.modules.setdefault("tests", types.ModuleType("tests")).__path__ = [str(Path(__file__).parents[1])]

import pytest

import memcg_oom.stalls
from memcg_oom import (
    Cgroup,
    Degraded,
    Event,
    Monitor,
    NotACgroupError,
    Oom,
    OomKill,
    Pressure,
    Removed,
    Stall,
    Unattributed,
    UsageCrossed,
    Watch,
    register,
)
from tests.fake.fake_kernel import AGES, FakeCgroup, FakeKernel
from tests.fake.fake_v2 import FakeV2Cgroup, FakeV2Kernel
from tests.support import PATIENCE, readable

# What is said of something that is not there any more. The kernel says so of nothing that is there, but for ESTALE.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE}
# Scenarios in which something that is gone is no error; so of what is there the kernel must not say that it is.
AMONG_OTHERS = ("watch_tree", "watch_subtree", "wait_")
# What is called otherwise, or with other consequences, where files are opened by their ids.
BY_ID = {"open", "fstat", "fstatat", "getdents64", "open_by_handle_at", "readlink"}
# close(2) does not fail here: none of these files has anything to flush. The interpreter's own clocks do not either.
NEVER = {"close", "clock_gettime"}


class _Call(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("errors", ctypes.c_int * 12))


class Faults:
    """The preloaded layer."""

    def __init__(self, library: str) -> None:
        self._lib = ctypes.CDLL(library)
        rows = (_Call * 64).in_dll(self._lib, "fault_calls")
        self.calls: list[tuple[str, list[int]]] = []
        for row in rows:
            if row.name is None:
                break
            self.calls.append((row.name.decode(), [error for error in row.errors if error]))
        self.arm: Callable[[int, int, int], None] = self._lib.fault_arm
        self.disarm: Callable[[], int] = self._lib.fault_disarm
        self.count: Callable[[int], int] = self._lib.fault_count

    def handles_below(self, directory: Path | None) -> None:
        self._lib.fault_handles_below(None if directory is None else os.fsencode(directory))


_Cgroup = TypeVar("_Cgroup", FakeCgroup, FakeV2Cgroup)


class World:
    """One run of a scenario.

    Attributes:
        kernel: of its own.
        struck: whether the fault has come.
        raised: what it has led to, where that was an exception.
        events: all that was told.
    """

    kernel: FakeKernel

    def __init__(self, faults: Faults, folder: Path, fault: tuple[int, int, int], *, by_id: bool) -> None:
        self.struck = False
        self.raised: OSError | None = None
        self.events: list[Event] = []
        self.monkeypatch = pytest.MonkeyPatch()
        self.error = fault[2]
        self._faults = faults
        self._fault = fault
        self._folder = folder
        self._by_id = by_id
        self._ooms: Counter[int] = Counter()
        self._kills: Counter[int] = Counter()
        self._ids: dict[object, int] = {}

    def begin(self, kind: type[FakeKernel]) -> None:
        self._folder.mkdir()
        self.kernel = kind(self._folder, self.monkeypatch)
        self._faults.handles_below(self.kernel.root if self._by_id else None)

    def end(self) -> None:
        self.kernel.close()
        self.monkeypatch.undo()
        shutil.rmtree(self._folder)

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Around what the call is to fail in. An OSError that this leads to is kept."""
        self._faults.arm(*self._fault)
        try:
            yield
        except OSError as error:
            self.raised = error.with_traceback(None)  # which would keep what is in it
        finally:
            self.struck = bool(self._faults.disarm())
        if self.raised is not None:
            assert self.struck, f"nothing has failed, and yet: {self.raised!r}"
            assert self._is_right(self.raised), f"another errno than that of the fault: {self.raised!r}"

    def _is_right(self, raised: OSError) -> bool:
        """Whether it says what the fault was."""
        if raised.errno == errno.ENOENT:
            return self.error in GONE  # whoever is said to be gone does not exist
        if raised.errno == errno.EAGAIN:
            return self.error in (errno.EAGAIN, errno.ESTALE)  # of what was said once, by its handle, nobody knows
        if raised.errno == errno.EOPNOTSUPP:
            return self.error in GONE | {errno.EOPNOTSUPP}  # of a file that every kernel has which has that at all
        if isinstance(raised, NotACgroupError):
            return self.error == errno.ENOENT  # of a file that every memory cgroup has
        return raised.errno == self.error

    def attempt(self, call: Callable[[], Any], monitor: Monitor | None = None) -> Any:
        """Makes the call, in which one fails. Where it raises nothing of it is left, and a second one succeeds."""
        fds, watches = open_fds() - brought(monitor), () if monitor is None else monitor.watches
        with self.fault():
            made = call()
        if self.raised is None:
            return made
        assert open_fds() - brought(monitor) == fds, "a descriptor is left"
        assert monitor is None or monitor.watches == watches, "a watch is left"
        for cgroup in self.kernel.cgroups:
            if not cgroup.gone:
                os.truncate(cgroup.path / "cgroup.event_control", 0)
        return call()

    # -- what happens

    def oom(self, *cgroups: FakeCgroup, kills: int = 1) -> None:
        """An OOM in each, and so many kills."""
        for cgroup in cgroups:
            if cgroup.listen():
                cgroup.oom()
                self._ooms[self.id_of(cgroup)] += 1
            else:  # followed by its counter alone
                assert any(isinstance(event, Degraded) for event in self.events)
            if kills:
                self.kill(cgroup, kills)

    def kill(self, cgroup: FakeCgroup, count: int = 1) -> None:
        """Kills without a signal."""
        cgroup.kill(count)
        self._kills[self.id_of(cgroup)] += count

    def count(self, cgroup: FakeV2Cgroup, *, ooms: int = 1, kills: int = 1) -> None:
        """The same on version 2."""
        cgroup.count(oom=ooms, oom_kill=kills)
        self._ooms[self.id_of(cgroup)] += ooms
        self._kills[self.id_of(cgroup)] += kills

    def id_of(self, cgroup: FakeCgroup | FakeV2Cgroup) -> int:
        """Who it is, also when it is gone, if it was asked for before."""
        if cgroup not in self._ids:
            self._ids[cgroup] = os.stat(cgroup.path).st_ino
        return self._ids[cgroup]

    # -- what is told of it

    def wait(self, monitor: Monitor) -> None:
        self.events += monitor.wait(0.001)
        self._check()

    def wait_while(self, monitor: Monitor, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while condition():
            assert time.monotonic() < deadline, f"what was waited for did not come; there was {self.events}"
            self.wait(monitor)

    def _check(self) -> None:
        """Nothing was invented, nothing told of one that is gone."""
        told = self._told(OomKill)
        nobodys = sum(event.count for event in self.events if isinstance(event, Unattributed))
        assert all(isinstance(event.count, int) and event.count > 0 for event in self.events if hasattr(event, "count"))
        assert told <= self._kills, f"told {told} of {self._kills}"
        assert sum(told.values()) + nobodys <= sum(self._kills.values()), f"{self.events}"
        assert self._told(Oom) <= self._ooms, f"told {self._told(Oom)} of {self._ooms}"

    def _told(self, kind: type[Oom] | type[OomKill]) -> Counter[int]:
        return +Counter(
            {
                watch._place.directory_id: sum(
                    event.count for event in self.events if isinstance(event, kind) and event.watch is watch
                )
                for watch in self._watches()
            }
        )

    def _watches(self) -> set[Watch]:
        return {event.watch for event in self.events if isinstance(event, Oom | OomKill)}

    def all_is_told(self) -> bool:
        """Whether every OOM and every kill was told of its cgroup."""
        return self._told(Oom) == self._ooms and self._told(OomKill) == self._kills

    def live(self, monitor: Monitor, *cgroups: FakeCgroup) -> None:
        """Each cgroup goes on until it is gone, and all of it is told."""

        def go(cgroup: FakeCgroup) -> None:
            cgroup.rmdir()
            cgroup.removal_signal()

        self._live(monitor, cgroups, self.oom, go)

    def live_v2(self, monitor: Monitor, *cgroups: FakeV2Cgroup) -> None:
        """The same on version 2."""
        self._live(monitor, cgroups, self.count, FakeV2Cgroup.rmdir)

    def _live(
        self,
        monitor: Monitor,
        cgroups: tuple[_Cgroup, ...],
        run_out: Callable[[_Cgroup], None],
        go: Callable[[_Cgroup], None],
    ) -> None:
        self.wait(monitor)
        self.wait_while(monitor, lambda: not self.all_is_told())
        self.wait_while(monitor, lambda: not self.all_are_held(monitor, cgroups))
        for cgroup in cgroups:
            assert not self.removed(cgroup)
            run_out(cgroup)
        self.wait_while(monitor, lambda: not self.all_is_told())
        for cgroup in reversed(cgroups):
            go(cgroup)
        self.wait_while(monitor, lambda: not all(map(self.removed, cgroups)))
        assert self.all_is_told()

    def all_are_held(self, monitor: Monitor, cgroups: Iterable[FakeCgroup | FakeV2Cgroup]) -> bool:
        """Whether all are watched: one that could not be opened is found by the next search."""
        return set(map(self.id_of, cgroups)) <= {watch._place.directory_id for watch in monitor.watches}

    def removed(self, cgroup: FakeCgroup | FakeV2Cgroup) -> bool:
        gone = (event.watch for event in self.events if isinstance(event, Removed))
        return self.id_of(cgroup) in {watch._place.directory_id for watch in gone}

    def calls_struck(self, name: str) -> bool:
        """Whether it was that call that has failed."""
        return self.struck and self._faults.calls[self._fault[0]][0] == name

    def told_or_nobodys(self) -> bool:
        """Whether every kill was told of its cgroup, or as nobody's."""
        nobodys = sum(event.count for event in self.events if isinstance(event, Unattributed))
        return sum(self._told(OomKill).values()) + nobodys == sum(self._kills.values())

    def forget(self) -> None:
        """What has happened is told."""
        self.events.clear()
        self._ooms.clear()
        self._kills.clear()

    @property
    def outcome(self) -> str:
        """What came of the fault."""
        if self.raised is not None:
            return "raised"
        return "Degraded" if any(isinstance(event, Degraded) for event in self.events) else "tolerated"


def open_fds() -> int:
    """How many there are."""
    return len(os.listdir("/proc/self/fd"))


def brought(monitor: Monitor | None) -> int:
    """How many a monitor has that come with its first watch and stay for the next, whatever becomes of that."""
    if monitor is None or monitor.closed:
        return 0
    fds = list(monitor._stalls._eventfds)
    for owner in (monitor._watches.hierarchy, monitor._audit):
        if owner is not None:
            owner.hand_over(fds)  # nothing of it is committed
    return len(fds)


def quick(**how: Any) -> Monitor:
    """A monitor that waits for nothing: here what happens has happened before anybody looks."""
    return Monitor(**{"settle": 0, "linger": 0, "audit": None, **how})


# -- the scenarios, by their names: what is played, on what, and whether files are opened by their ids

Scenario = Callable[[World], None]
SCENARIOS: dict[str, tuple[Scenario, type[FakeKernel], bool]] = {}


def on(kind: type[FakeKernel], *by_ids: bool) -> Callable[[Scenario], Scenario]:
    """Enters a scenario."""

    def enter(scenario: Scenario) -> Scenario:
        for by_id in by_ids:
            name = scenario.__name__ + ("_by_id" if by_id else "")
            SCENARIOS[name] = (scenario, kind, by_id)
        return scenario

    return enter


v1 = on(FakeKernel, False, True)
v2 = on(FakeV2Kernel, False, True)


@on(FakeKernel, False)
def monitor(world: World) -> None:
    world.attempt(quick).close()


@v1
def watch(world: World) -> None:
    a = world.kernel.make()
    with quick() as monitor:
        world.attempt(lambda: monitor.watch(a.path), monitor)
        world.live(monitor, a)


@v1
def watch_many(world: World) -> None:
    cgroups = [world.kernel.make(name) for name in "abc"]
    with quick() as monitor:
        monitor.watch(cgroups[0].path).close()
        os.truncate(cgroups[0].path / "cgroup.event_control", 0)
        world.attempt(lambda: monitor.watch_many([cgroup.path for cgroup in cgroups]), monitor)
        world.live(monitor, *cgroups)


@v1
def watch_tree(world: World) -> None:
    cgroups = [world.kernel.make(name) for name in ("a", "a/b", "a/b/c", "d")]
    root = world.kernel.make_root().path
    with quick(audit=0.001) as monitor:
        world.attempt(lambda: monitor.watch_tree(root, source="inotify"), monitor)
        world.live(monitor, *cgroups)


@v1
def watch_subtree(world: World) -> None:
    cgroups = [world.kernel.make(name) for name in ("a", "a/b")]
    with quick(audit=0.001) as monitor:
        world.attempt(lambda: monitor.watch_tree(cgroups[0].path, source="inotify"), monitor)
        world.live(monitor, *cgroups)


@on(FakeKernel, False)
def watch_tree_by_whatever_there_is(world: World) -> None:
    a = world.kernel.make()
    root = world.kernel.make_root().path
    with quick(audit=0.001) as monitor:
        tree = world.attempt(lambda: monitor.watch_tree(root), monitor)
        refused = world.raised is None and (world.calls_struck("fanotify_init") or world.calls_struck("fanotify_mark"))
        assert tree.source == ("inotify" if refused else "fanotify")
        world.live(monitor, a)


@v1
def watch_usage(world: World) -> None:
    a = world.kernel.make()
    (a.path / "memory.limit_in_bytes").write_text("16777216\n")
    with quick() as monitor:
        watch = world.attempt(lambda: monitor.watch_usage(a.path, "50%", interval=0), monitor)
        a.use(9 << 20)
        a.alarm()
        world.wait_while(monitor, lambda: not any(isinstance(event, UsageCrossed) for event in world.events))
        assert watch.above
        world.id_of(a)
        a.rmdir()
        a.removal_signal()
        world.wait_while(monitor, lambda: not world.removed(a))


@v1
def watch_pressure(world: World) -> None:
    a = world.kernel.make()
    with quick() as monitor:
        world.attempt(lambda: monitor.watch_pressure(a.path, "low", interval=0), monitor)
        a.alarm()
        world.wait_while(monitor, lambda: not any(isinstance(event, Pressure) for event in world.events))


@on(FakeKernel, False)
def close_tree(world: World) -> None:
    a, b = world.kernel.make(), world.kernel.make("b")
    with quick() as monitor:
        tree = world.kernel.tree(monitor)
        a.listen()
        b.listen()
        fds = open_fds()
        with world.fault():
            tree.close()
        tree.close()
        assert monitor.watches == ()
        assert open_fds() < fds


@v1
def wait_for_oom(world: World) -> None:
    a, b = world.kernel.make(), world.kernel.make("b")
    with quick() as monitor:
        monitor.watch_many([a.path, b.path])
        world.oom(a, b)
        with world.fault():
            world.wait(monitor)
        world.live(monitor, a, b)


@v1
def wait_for_removal(world: World) -> None:
    a, b = world.kernel.make(), world.kernel.make("b")
    with quick() as monitor:
        monitor.watch_many([a.path, b.path])
        world.id_of(a)
        a.rmdir()
        a.removal_signal()
        with world.fault():
            world.wait(monitor)
            world.wait(monitor)
        world.wait_while(monitor, lambda: not world.removed(a))
        world.live(monitor, b)


@v1
def wait_after_rename(world: World) -> None:
    a = world.kernel.make()
    with quick() as monitor:
        monitor.watch(a.path)
        a.rename("b")
        world.oom(a)
        with world.fault():
            world.wait(monitor)
        world.live(monitor, a)


@v1
def wait_for_crowd(world: World) -> None:
    cgroups = [world.kernel.make(f"c{number}") for number in range(16)]
    with quick(settle=AGES) as monitor:
        monitor.watch_many([cgroup.path for cgroup in cgroups])
        world.oom(*cgroups, kills=0)
        with world.fault():
            world.wait(monitor)
        world.kill(cgroups[7])
        world.wait_while(monitor, lambda: not world.all_is_told())


@v1
def wait_for_newcomer(world: World) -> None:
    with quick(audit=0.001) as monitor:
        world.kernel.tree(monitor)
        a = world.kernel.make()
        b = world.kernel.make("a/b")
        world.kill(b)
        with world.fault():
            world.wait(monitor)
        world.live(monitor, a, b)


@v1
def wait_for_renamed_member(world: World) -> None:
    a, b = world.kernel.make(), world.kernel.make("a/b")
    with quick(audit=0.001) as monitor:
        world.kernel.tree(monitor)
        a.listen()
        b.listen()
        a.rename("z")
        b.path = a.path / "b"
        c = world.kernel.make("z/c")
        world.oom(a, b)
        world.kill(c)
        with world.fault():
            world.wait(monitor)
        world.live(monitor, a, b, c)


@v1
def wait_for_silent_kill(world: World) -> None:
    a = world.kernel.make()
    with quick(audit=AGES) as monitor:
        monitor.watch(a.path)
        world.kill(a)
        a.log_kill(93)
        with world.fault():
            world.wait(monitor)
            monitor._audit.due = min(monitor._audit.due, 1)
            world.wait(monitor)
        monitor._audit.call(time.monotonic_ns(), 0)
        world.live(monitor, a)


@v1
def wait_for_victim(world: World) -> None:
    a = world.kernel.make()
    world.kernel.names_victims()
    with quick(settle=0.02) as monitor:
        monitor.watch(a.path)
        a.tasks(93)
        world.oom(a)
        a.log_kill(93)
        with world.fault():
            world.wait(monitor)
        world.wait_while(monitor, lambda: not world.all_is_told())
        (kill,) = (event for event in world.events if isinstance(event, OomKill))
        assert [victim.pid for victim in kill.victims] in ([93], [])


@on(FakeKernel, False)
def wait_for_timer(world: World) -> None:
    a = world.kernel.make()
    with quick(settle=AGES) as monitor:
        monitor.watch(a.path)
        monitor.fileno()
        world.oom(a, kills=0)
        with world.fault():
            world.wait(monitor)
        world.kill(a)
        world.wait_while(monitor, lambda: len(world.events) < 1)
        while not world.all_is_told():  # nothing but the timer says that there is something to look at
            assert readable(monitor.fileno(), PATIENCE)
            world.events += monitor.wait(0)


@on(FakeKernel, False)
def wake_and_poll(world: World) -> None:
    a = world.kernel.make()
    with quick() as monitor:
        monitor.watch(a.path)
        with world.fault():
            assert monitor.fileno() >= 0
            monitor.wake()
            world.events += monitor.wait()
        world.live(monitor, a)


@on(FakeKernel, False)
def registering(world: World) -> None:
    a = world.kernel.make()
    with world.attempt(lambda: register(a.path, "memory.oom_control")) as eventfd:
        a.oom(3)
        assert eventfd.read() == 3


@on(FakeKernel, False)
def reading(world: World) -> None:
    a = world.kernel.make()
    with register(a.path, "memory.oom_control") as eventfd:
        a.oom(3)
        count = None
        with world.fault():
            assert eventfd.wait()
            count = eventfd.read()
        assert (count or eventfd.read()) == 3


@on(FakeKernel, False)
def one_cgroup(world: World) -> None:
    a, b = world.kernel.make(), world.kernel.make("a/b")
    (a.path / "memory.limit_in_bytes").write_text("16777216\n")
    a.tasks(os.getpid())
    cgroup = world.attempt(lambda: Cgroup(a.path))
    for ask in (
        lambda: cgroup.usage == 0,
        lambda: cgroup.limit == 16 << 20,
        lambda: cgroup.oom_control().oom_kill == 0,
        lambda: cgroup.pids() == [os.getpid()],
        lambda: cgroup.children() == [Cgroup(b.path)],
        lambda: cgroup.parent == Cgroup(world.kernel.root),
    ):
        if world.raised is None:
            assert world.attempt(ask)
    if world.raised is None:
        world.attempt(lambda: setattr(cgroup, "limit", 32 << 20))


@on(FakeKernel, False)
def make_and_remove(world: World) -> None:
    world.kernel.make()
    made = world.attempt(lambda: Cgroup.create(world.kernel.root / "a" / "new"))
    if world.raised is None:
        world.attempt(made.remove)
    else:
        made.remove()
    assert not os.path.exists(made.path)


# -- stalls: urgent data of a socket is to poll(2) what the stall of a trigger is


class _Pressure:
    """The module os, but that a file which was opened turns out to be one end of a connection."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def open(self, path: str, flags: int) -> int:
        fd = os.open(path, flags)
        if path == memcg_oom.stalls.HOST:
            os.dup2(self._end.fileno(), fd, inheritable=False)
        return fd

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@contextmanager
def pressure(world: World) -> Iterator[Callable[[], None]]:
    """Has the host's pressure file played; yields what makes a stall."""
    file = world.kernel.root / "pressure"
    file.touch()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as other:
        end, _ = server.accept()
        with end:
            end.setblocking(False)
            world.monkeypatch.setattr(memcg_oom.stalls, "HOST", str(file))
            world.monkeypatch.setattr(memcg_oom.stalls, "os", _Pressure(end))

            def stall() -> None:
                other.send(b"!", socket.MSG_OOB)

            yield stall


def stalls(world: World) -> int:
    return sum(event.count for event in world.events if isinstance(event, Stall))


@on(FakeKernel, False)
def watch_stall(world: World) -> None:
    with pressure(world) as stall, quick() as monitor:
        try:
            watch = world.attempt(lambda: monitor.watch_stall(memcg_oom.stalls.HOST, "some", 0.1, 1.0), monitor)
            stall()
            world.wait_while(monitor, lambda: not stalls(world))
        finally:
            monitor.close()
        assert watch.closed


@on(FakeKernel, False)
def wait_for_stall(world: World) -> None:
    with pressure(world) as stall, quick() as monitor:
        watch = monitor.watch_stall(memcg_oom.stalls.HOST, "some", 0.1, 1.0)
        stall()
        with world.fault():
            world.wait_while(monitor, lambda: not stalls(world))
        world.wait_while(monitor, lambda: not stalls(world))
        if world.calls_struck("io_submit"):
            world.wait_while(monitor, lambda: not watch.closed)
            assert any(isinstance(event, Degraded) for event in world.events)
        else:
            assert not watch.closed


@on(FakeKernel, False)
def close_stall(world: World) -> None:
    with pressure(world), quick() as monitor:
        watch = monitor.watch_stall(memcg_oom.stalls.HOST, "some", 0.1, 1.0)
        with world.fault():
            watch.close()
        watch.close()
        assert watch.closed
        assert monitor.watches == ()


# -- version 2


@v2
def watch_v2(world: World) -> None:
    assert isinstance(world.kernel, FakeV2Kernel)
    a = world.kernel.make_v2()
    with quick(audit=0.001) as monitor:
        world.attempt(lambda: monitor.watch(a.path), monitor)
        world.live_v2(monitor, a)


@v2
def watch_tree_v2(world: World) -> None:
    assert isinstance(world.kernel, FakeV2Kernel)
    cgroups = [world.kernel.make_v2(name) for name in ("a", "a/b", "a/b/c", "a/d")]
    with quick(audit=0.001) as monitor:
        world.attempt(lambda: monitor.watch_tree(cgroups[0].path, source="inotify"), monitor)
        world.live_v2(monitor, *cgroups)


@v2
def wait_v2(world: World) -> None:
    assert isinstance(world.kernel, FakeV2Kernel)
    a, b = world.kernel.make_v2(), world.kernel.make_v2("b")
    with quick(audit=0.001) as monitor:
        monitor.watch_many([a.path, b.path])
        world.count(a, ooms=2)
        with world.fault():
            world.wait(monitor)
        world.live_v2(monitor, a, b)


@v2
def wait_for_removal_v2(world: World) -> None:
    assert isinstance(world.kernel, FakeV2Kernel)
    a, b = world.kernel.make_v2(), world.kernel.make_v2("a/b")
    with quick(audit=0.001) as monitor:
        monitor.watch_tree(a.path, source="inotify")
        world.count(b)
        b.rmdir()
        with world.fault():
            world.wait(monitor)
        world.wait_while(monitor, lambda: not world.removed(b))
        assert world.told_or_nobodys()
        world.forget()
        world.live_v2(monitor, a)


@v2
def wait_for_newcomer_v2(world: World) -> None:
    assert isinstance(world.kernel, FakeV2Kernel)
    a = world.kernel.make_v2()
    with quick(audit=0.001) as monitor:
        tree = monitor.watch_tree(a.path, source="inotify")
        tree._watermark = 0
        b = world.kernel.make_v2("a/b")
        world.count(b)
        with world.fault():
            world.wait(monitor)
        world.live_v2(monitor, a, b)


@v2
def wait_for_controller_v2(world: World) -> None:
    assert isinstance(world.kernel, FakeV2Kernel)
    a, b = world.kernel.make_v2(), world.kernel.make_v2("a/b")
    with quick(audit=0.001) as monitor:
        tree = monitor.watch_tree(a.path, source="inotify")
        watch = tree.member(os.stat(b.path).st_ino)
        assert watch is not None
        b.switch_off()
        world.wait_while(monitor, lambda: watch._place.control is not None)
        b.switch_on()
        world.count(b)
        with world.fault():
            world.wait(monitor)
        world.live_v2(monitor, a, b)


def play(faults: Faults, folder: Path, name: str, fault: tuple[int, int, int] = (0, 0, 0)) -> World:
    """Plays a scenario once, with a fault: the call, which of that kind, the errno."""
    scenario, kind, by_id = SCENARIOS[name]
    world = World(faults, folder, fault, by_id=by_id)
    fds = open_fds()
    world.begin(kind)
    try:
        scenario(world)
    finally:
        world.end()
    assert open_fds() == fds, "a descriptor is left"
    return world


def main(library: str, folder: str, names: list[str]) -> int:
    """Plays them all; returns how many have failed."""
    faults = Faults(library)
    failures = 0
    gc.disable()  # what it frees would be freed at another call each time
    for name in names:
        for _ in range(2):  # what is imported late is, and what is cached
            play(faults, Path(folder, "world"), name)
        counts = [faults.count(call) for call in range(len(faults.calls))]
        for call, (called, errors) in enumerate(faults.calls):
            for nth in range(1, counts[call] + 1 if called not in NEVER else 0):
                for error in errors:
                    if name.startswith(AMONG_OTHERS) and error in GONE - {errno.ESTALE}:
                        continue
                    if name.endswith("_by_id") and called not in BY_ID:
                        continue
                    try:
                        world = play(faults, Path(folder, "world"), name, (call, nth, error))
                    except Exception:
                        failures += 1
                        print(f"{name}: {called} no. {nth}, {errno.errorcode[error]}:", file=sys.stderr)
                        traceback.print_exc()
                        shutil.rmtree(Path(folder, "world"), ignore_errors=True)
                        gc.collect()
                        continue
                    print(name, called, errno.errorcode[error], world.outcome, sep="\t")
        gc.collect()
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]) > 0)
