"""Every public call, again and again: what stays behind of it, in memory, descriptors, threads and kernel watches.

Both rings make the same calls, on cgroups of their own; one cycle makes all calls of a group.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sysconfig
import threading
import tracemalloc
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import memcg_oom
from memcg_oom import (
    AnyWatch,
    Cgroup,
    Event,
    EventFD,
    MemcgError,
    Monitor,
    NotACgroupError,
    OomControl,
    PodNames,
    RootCgroupError,
    UnsupportedError,
    identify,
    register,
)
from memcg_oom.record import Record
from memcg_oom.stalls import HOST

# A free-threaded Python gives back later what is freed: some hundred bytes of what measures stay from one round to the
# next.
CYCLES = 250 if sysconfig.get_config_var("Py_GIL_DISABLED") else 25
ROUNDS = 20  # what grows in each of them leaks; caches fill up in one or two, and the kernel's signals come late
ALLOWED = 8  # bytes a cycle: no object takes so few

Call = Callable[[], object]


@dataclass
class Scene:
    """Where the calls are made.

    Attributes:
        path: a memory cgroup, with nobody in it.
        version: of cgroups.
        folder: for plain files.
    """

    path: str
    version: int
    folder: Path


@dataclass
class Group:
    """Calls that belong together: what they are, and what makes them all once."""

    names: tuple[str, ...]
    prepare: Callable[[Scene], Call]
    version: int | None  # that has them; None: either
    real: bool  # whether it takes a kernel that answers to what is written


GROUPS: list[Group] = []


def calls(
    *names: str, version: int | None = None, real: bool = False
) -> Callable[[Callable[[Scene], Call]], Callable[[Scene], Call]]:
    """Of a function that returns one cycle of them."""

    def note(prepare: Callable[[Scene], Call]) -> Callable[[Scene], Call]:
        GROUPS.append(Group(names, prepare, version, real))
        return prepare

    return note


def public_calls() -> set[str]:
    """All there are: functions, classes, and what a class does beside its attributes; "=" is for setting one."""
    found = set()
    for name in memcg_oom.__all__:
        one = getattr(memcg_oom, name)
        if callable(one):
            found.add(name)
        for base in one.__mro__ if isinstance(one, type) else ():
            if not base.__module__.startswith("memcg_oom."):
                continue
            for method, what in vars(base).items():
                is_public = not method.startswith("_") or (method.endswith("__") and method != "__init__")
                if is_public and isinstance(what, types.FunctionType | classmethod | staticmethod | property):
                    found.add(f"{base.__name__}.{method}")
                    if isinstance(what, property) and what.fset is not None:
                        found.add(f"{base.__name__}.{method}=")
    return found


# -- how it is measured


class Size:
    """What this process holds."""

    def __init__(self) -> None:
        gc.collect()
        fds = os.listdir("/proc/self/fd")
        self.fds = len(fds)
        self.threads = threading.active_count()
        self.followed = 0  # by inotify and epoll
        for fd in fds:
            with suppress(FileNotFoundError):  # that of the listing
                lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
                self.followed += sum(line.startswith(("inotify wd:", "tfd:")) for line in lines)
        self.memory = tracemalloc.get_traced_memory()[0]

    def growth(self, before: Size) -> list[str]:
        """What is more than before."""
        grown = [
            f"{getattr(self, what) - getattr(before, what)} {what}"
            for what in ("fds", "threads", "followed")
            if getattr(self, what) > getattr(before, what)
        ]
        if (memory := self.memory - before.memory) > ALLOWED * CYCLES:
            grown.append(f"{memory} bytes")
        return grown


def leak(call: Call) -> list[str]:
    """What grows with each round of calls; nothing, if there was one in which nothing grew."""
    tracemalloc.start()
    try:
        grown: list[str] = []
        for _ in range(ROUNDS + 1):  # the first to warm up
            before = Size()
            for _ in range(CYCLES):
                call()
            grown = Size().growth(before)
            if not grown:
                break
        return grown
    finally:
        tracemalloc.stop()


# -- values


RECORDS = [
    one for name in memcg_oom.__all__ if isinstance(one := getattr(memcg_oom, name), type) and issubclass(one, Record)
]


@calls(
    *(kind.__name__ for kind in RECORDS),
    "Record.fields",
    "Record.__setattr__",
    "Record.__delattr__",
    "Record.__replace__",
    "Record.__eq__",
    "Record.__hash__",
    "Record.__repr__",
)
def records(_: Scene) -> Call:
    def cycle() -> None:
        for kind in RECORDS:
            one = kind(**dict.fromkeys(kind.fields(), 1))
            assert {one, one.__replace__()} == {one}
            repr(one)
            with suppress(AttributeError):
                setattr(one, "anything", 1)  # noqa: B010 - it has no such attribute
            with suppress(AttributeError):
                delattr(one, "anything")

    return cycle


@calls("MemcgError", "UnsupportedError", "RootCgroupError", "NotACgroupError")
def errors(_: Scene) -> Call:
    def cycle() -> None:
        for kind in (UnsupportedError, RootCgroupError, NotACgroupError):
            with suppress(MemcgError):
                raise kind(1, "text", "path")
        repr(MemcgError())

    return cycle


@calls("identify", "PodNames", "PodNames.find")
def names(scene: Scene) -> Call:
    (scene.folder / "default_web_0123").mkdir()

    def cycle() -> None:
        identify("/machine.slice/machine-web.scope")
        assert PodNames(str(scene.folder)).find("0123")

    return cycle


# -- cgroups


@calls(
    "Cgroup",
    "Cgroup.of_pid",
    "Cgroup.name",
    "Cgroup.parent",
    "Cgroup.children",
    "Cgroup.exists",
    "Cgroup.usage",
    "Cgroup.peak",
    "Cgroup.limit",
    "Cgroup.limit=",
    "Cgroup.pids",
    "Cgroup.largest",
    "Cgroup.kill",
    "Cgroup.kill_process",
    "Cgroup.__fspath__",
    "Cgroup.__eq__",
    "Cgroup.__hash__",
    "Cgroup.__repr__",
)
def cgroups(scene: Scene) -> Call:
    def cycle() -> None:
        cgroup = Cgroup(scene.path)
        assert {cgroup, Cgroup(scene.path)} == {cgroup}
        repr((cgroup, cgroup.name, cgroup.parent, cgroup.usage, cgroup.peak, cgroup.limit, os.fspath(cgroup)))
        assert cgroup.exists()
        assert [cgroup.children(), cgroup.pids(), cgroup.largest()] == [[], [], None]
        assert [cgroup.kill(), cgroup.kill_process(1)] == [0, False]
        cgroup.limit = 1 << 30
        Cgroup.of_pid()

    return cycle


@calls("Cgroup.create", "Cgroup.remove", real=True)
def creation(scene: Scene) -> Call:
    return lambda: Cgroup.create(f"{scene.path}/new").remove()


@calls(
    "Cgroup.oom_control",
    "Cgroup.under_oom",
    "Cgroup.oom_kill_disable",
    "OomControl",
    "OomControl.__repr__",
    version=1,
)
def oom_control(scene: Scene) -> Call:
    cgroup = Cgroup(scene.path)
    return lambda: repr((cgroup.oom_control(), cgroup.under_oom, cgroup.oom_kill_disable, OomControl(False, False, 0)))


@calls("Cgroup.oom_kill_disable=", "Cgroup.oom_killer_disabled", version=1, real=True)
def oom_killers(scene: Scene) -> Call:
    cgroup = Cgroup(scene.path)

    def cycle() -> None:
        with cgroup.oom_killer_disabled():
            pass
        cgroup.oom_kill_disable = cgroup.oom_kill_disable

    return cycle


@calls(
    "Cgroup.high",
    "Cgroup.high=",
    "Cgroup.oom_group",
    "Cgroup.oom_group=",
    "Cgroup.events",
    "Cgroup.frozen",
    "Cgroup.frozen=",
    version=2,
)
def cgroups_of_v2(scene: Scene) -> Call:
    cgroup = Cgroup(scene.path)

    def cycle() -> None:
        cgroup.high = cgroup.high
        cgroup.oom_group = cgroup.oom_group
        cgroup.frozen = cgroup.frozen
        assert cgroup.events()
        assert cgroup.events(local=False)

    return cycle


@calls(
    "register",
    "EventFD",
    "EventFD.fileno",
    "EventFD.read",
    "EventFD.wait",
    "EventFD.closed",
    "EventFD.close",
    "EventFD.__enter__",
    "EventFD.__exit__",
    "EventFD.__repr__",
    "EventFD.__del__",
    version=1,
)
def eventfds(scene: Scene) -> Call:
    def cycle() -> None:
        with register(scene.path, "memory.oom_control") as eventfd:
            os.eventfd_write(eventfd.fileno(), 1)
            assert eventfd.wait(0)
            assert eventfd.read() == 1
            assert eventfd.read() is None
            repr((eventfd, eventfd.closed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            EventFD(os.dup(0))

    return cycle


# -- a monitor


@calls(
    "Monitor",
    "Monitor.__enter__",
    "Monitor.__exit__",
    "Monitor.__repr__",
    "Monitor.__del__",
    "Monitor.close",
    "Monitor.closed",
    "Monitor.watches",
)
def monitors(scene: Scene) -> Call:
    def cycle() -> None:
        with Monitor() as monitor:
            monitor.watch(scene.path)
            repr((monitor, monitor.watches, monitor.closed))
        monitor.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Monitor()
            gc.collect()

    return cycle


def _with_monitor(scene: Scene, use: Callable[[Monitor], object]) -> Call:
    """A cycle of a monitor that lives on."""
    monitor = Monitor(settle=0.0, linger=0.0)
    _open.append(monitor)
    monitor.watch(scene.path)  # opens what all watches share, once for all cycles

    def cycle() -> None:
        use(monitor)
        monitor.wait(0)

    return cycle


_open: list[Monitor | asyncio.AbstractEventLoop] = []


def close_all() -> None:
    """After a test."""
    while _open:
        _open.pop().close()


@calls(
    "Monitor.watch",
    "Monitor.watch_many",
    "Watch",
    "Watch.polled",
    "Watch.__repr__",
    "AnyWatch",
    "AnyWatch.cgroup",
    "AnyWatch.close",
)
def watches(scene: Scene) -> Call:
    def use(monitor: Monitor) -> None:
        for watch in (monitor.watch(scene.path), *monitor.watch_many([scene.path, scene.path])):
            assert isinstance(watch, AnyWatch)
            repr((watch, watch.cgroup, watch.polled))
            watch.close()

    return _with_monitor(scene, use)


@calls(
    "Monitor.watch_tree",
    "TreeWatch",
    "TreeWatch.cgroup",
    "TreeWatch.ooms",
    "TreeWatch.kills",
    "TreeWatch.polled",
    "TreeWatch.__iter__",
    "TreeWatch.member",
    "TreeWatch.close",
    "TreeWatch.__repr__",
)
def trees(scene: Scene) -> Call:
    def use(monitor: Monitor) -> None:
        tree = monitor.watch_tree(scene.path, source="inotify")
        (watch,) = tree
        assert tree.member(watch._place.directory_id) is watch
        repr((tree, tree.cgroup, tree.ooms, tree.kills, tree.polled))
        new = f"{scene.path}/new"
        os.mkdir(new)
        monitor.wait(0)
        os.rmdir(new)
        monitor.wait(0)
        tree.close()

    return _with_monitor(scene, use)


@calls(
    "Monitor.watch_usage",
    "Monitor.watch_pressure",
    "UsageWatch",
    "UsageWatch.__repr__",
    "PressureWatch",
    "PressureWatch.__repr__",
    version=1,
)
def alarms(scene: Scene) -> Call:
    def use(monitor: Monitor) -> None:
        for watch in (monitor.watch_usage(scene.path, 1 << 30), monitor.watch_pressure(scene.path, "low")):
            repr(watch)
            watch.close()

    return _with_monitor(scene, use)


@calls("Monitor.watch_stall", "StallWatch", "StallWatch.__repr__")
def stalls(scene: Scene) -> Call:
    if not os.access(HOST, os.W_OK):
        pytest.skip(f"{HOST} cannot be written to")

    def use(monitor: Monitor) -> None:
        watch = monitor.watch_stall(HOST, "some", 2.0, 2.0)
        repr(watch)
        watch.close()

    return _with_monitor(scene, use)


@calls("Monitor.wait", "Monitor.wake", "Monitor.fileno", "Monitor.__iter__", "Monitor.__next__", version=1)
def waits(scene: Scene) -> Call:
    def use(monitor: Monitor) -> None:
        watch = _watch_of(monitor)
        os.eventfd_write(watch._eventfd, 1)
        assert monitor.fileno() >= 0
        assert monitor.wait(0)
        os.eventfd_write(watch._eventfd, 1)
        assert isinstance(next(iter(monitor)), Event)
        monitor.wake()
        assert monitor.wait() == []

    return _with_monitor(scene, use)


@calls("Monitor.__aiter__", "Monitor.__anext__", version=1)
def waits_under_asyncio(scene: Scene) -> Call:
    loop = asyncio.new_event_loop()
    _open.append(loop)

    async def one(monitor: Monitor) -> None:
        os.eventfd_write(_watch_of(monitor)._eventfd, 1)
        assert isinstance(await anext(aiter(monitor)), Event)

    def use(monitor: Monitor) -> None:
        loop.run_until_complete(one(monitor))

    return _with_monitor(scene, use)


def _watch_of(monitor: Monitor) -> memcg_oom.Watch:
    (watch,) = monitor.watches
    assert isinstance(watch, memcg_oom.Watch)
    return watch
