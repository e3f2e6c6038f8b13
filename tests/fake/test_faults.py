"""What goes wrong: a kernel that refuses, descriptors that run out, memory that does, and Ctrl-C at every moment."""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import memcg_oom
import memcg_oom.hierarchy
import memcg_oom.v1
import memcg_oom.watches
from memcg_oom import Degraded, Event, Monitor, UnsupportedError
from memcg_oom._native import lib
from memcg_oom.hierarchy import Hierarchy, Place
from memcg_oom.outbox import Outbox
from memcg_oom.rounds import Agenda, Round
from memcg_oom.v1 import V1Watches
from tests.fake.fake_kernel import (
    AGES,
    FakeKernel,
    brief,
    replace_in_lib,
    take,
    take_until_settled,
    take_while,
)
from tests.fake.fake_v2 import FakeV2Kernel
from tests.support import PATIENCE, readable

PACKAGE = os.path.dirname(memcg_oom.__file__)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    fake.close()


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- registrations that the kernel refuses


@pytest.mark.parametrize(
    "refusal",
    [
        (errno.EOPNOTSUPP, lib.MEMCG_STEP_WRITE, UnsupportedError, "PREEMPT_RT"),
        (errno.ENODATA, lib.MEMCG_STEP_CONTROL_FILE, UnsupportedError, "does not count OOM kills"),
        (errno.ENFILE, lib.MEMCG_STEP_EVENTFD, OSError, "no descriptors left"),
        (errno.EMFILE, lib.MEMCG_STEP_CGROUP, OSError, "RLIMIT_NOFILE"),
        (errno.ENOMEM, lib.MEMCG_STEP_WRITE, OSError, "event_control"),
        (errno.EINVAL, lib.MEMCG_STEP_WRITE, OSError, "takes no registration"),
        (errno.EACCES, lib.MEMCG_STEP_EVENT_CONTROL, PermissionError, "needs write permission"),
        (errno.EACCES, lib.MEMCG_STEP_CONTROL_FILE, PermissionError, "memory.oom_control"),
        (errno.EROFS, lib.MEMCG_STEP_EVENT_CONTROL, OSError, "read-only"),
    ],
    ids=lambda refusal: errno.errorcode[refusal[0]],
)
def test_a_registration_that_is_refused(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, int, type[OSError], str]
) -> None:
    error, step, kind, words = refusal
    cgroup = kernel.make()

    def refuse(*arguments: Any) -> None:
        row = arguments[-1].rows[0]
        row.eventfd, row.step = -error, step

    with Monitor(settle=AGES) as monitor:
        fds = count_fds()
        with monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_register_many=refuse)
            with pytest.raises(kind, match=words) as caught:
                monitor.watch(cgroup.path)
        assert caught.value.errno == error
        assert str(caught.value.filename).startswith(str(cgroup.path))
        assert isinstance(caught.value, UnsupportedError) == (kind is UnsupportedError)
        assert count_fds() == fds
        assert monitor.watches == ()
        # And the monitor is as good as new.
        monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]


@pytest.mark.parametrize("namesake", [False, True], ids=["gone", "a namesake in its place"])
@pytest.mark.parametrize("step", [lib.MEMCG_STEP_CONTROL_FILE, lib.MEMCG_STEP_WRITE])
def test_removed_while_it_was_registered(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, step: int, namesake: bool
) -> None:
    cgroup = kernel.make()

    def remove_meanwhile(*arguments: Any) -> None:
        if not cgroup.gone:
            cgroup.rmdir()
            if namesake:
                kernel.make()
        row = arguments[-1].rows[0]
        row.eventfd, row.step = -errno.ENODEV, step  # kernfs says so of what was removed, and of nothing else

    replace_in_lib(monkeypatch, memcg_register_many=remove_meanwhile)
    with Monitor() as monitor:
        with pytest.raises(FileNotFoundError, match="removed while it was being registered") as caught:
            monitor.watch(kernel.root / "a")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(kernel.root / "a"))
        assert monitor.watch_many([kernel.root / "a"], skip_gone=True) == []


def test_a_kernel_that_counts_no_kills(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    (cgroup.path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    with Monitor() as monitor, pytest.raises(UnsupportedError, match=r"4\.13"):
        monitor.watch(cgroup.path)


def test_one_refused_among_many_leaves_nothing(kernel: FakeKernel) -> None:
    cgroups = [kernel.make(name) for name in "abc"]
    (cgroups[1].path / "cgroup.event_control").unlink()
    paths = [cgroup.path for cgroup in cgroups]
    with Monitor() as monitor:
        fds = count_fds()
        for skip_gone in (False, True):  # the folder is there: it is not gone
            with pytest.raises(FileNotFoundError) as caught:
                monitor.watch_many(paths, skip_gone=skip_gone)
            assert caught.value.filename == str(paths[1] / "cgroup.event_control")
        assert count_fds() == fds
        assert monitor.watches == ()


def test_gone_ones_among_many_are_left_out(kernel: FakeKernel) -> None:
    cgroups = [kernel.make(name) for name in "abcd"]
    cgroups[0].rmdir()
    cgroups[2].rmdir()
    paths = [kernel.root / name for name in "abcd"]
    with Monitor(settle=AGES) as monitor:
        fds = count_fds()
        with pytest.raises(FileNotFoundError):
            monitor.watch_many(paths)
        assert count_fds() == fds
        watches = monitor.watch_many(paths, skip_gone=True)
        assert [watch.cgroup for watch in watches] == [str(kernel.root / "b"), str(kernel.root / "d")]
        cgroups[3].oom()
        assert brief(monitor.wait(PATIENCE), watches[1]) == [("Oom", 1)]


@pytest.mark.parametrize("version", [1, 2])
def test_who_may_be_anywhere_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    kernel = FakeKernel(tmp_path, monkeypatch) if version == 1 else FakeV2Kernel(tmp_path, monkeypatch)
    path = kernel.make_v2().path if isinstance(kernel, FakeV2Kernel) else kernel.make().path
    hierarchy = Hierarchy(str(path))
    hierarchy.by_id = True
    place = Place(None, str(path), os.stat(path).st_ino, os.stat(path / hierarchy.control_file).st_ino)

    # There is no memory for its inode.
    def look(*arguments: Any) -> None:
        arguments[-2][0] = -errno.ESTALE

    def count(*arguments: Any) -> None:
        arguments[-1][0].oom_kill = -errno.ESTALE

    def find(*arguments: Any) -> None:
        arguments[-1][0] = lib.MEMCG_UNKNOWN

    replace_in_lib(monkeypatch, memcg_look_many=look, memcg_count_many=count, memcg_moved_many=find)
    found = hierarchy.look([place]) if version == 1 else hierarchy.counters([place])
    assert found[0][0] == -errno.EAGAIN
    hierarchy.close()
    kernel.close()


def test_an_epoll_that_is_full_leaves_nothing(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        fds = count_fds()
        with monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_loop_add=lambda *_: -errno.ENOSPC)
            with pytest.raises(OSError, match="epoll") as caught:
                monitor.watch(cgroup.path)
        assert caught.value.errno == errno.ENOSPC
        assert count_fds() == fds
        assert monitor.watches == ()
        (cgroup.path / "cgroup.event_control").write_text("")
        monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]


@pytest.mark.parametrize("function", ["memcg_timer_open", "memcg_loop_add"])
def test_a_constructor_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    fds = count_fds()
    replace_in_lib(monkeypatch, **{function: lambda *_: -errno.EMFILE})
    with pytest.raises(OSError, match="Too many open files") as caught:
        Monitor()
    assert caught.value.errno == errno.EMFILE
    assert count_fds() == fds


# -- waiting that fails


def test_a_wait_that_is_interrupted_waits_on(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    interruptions = [-errno.EINTR] * 5

    def interrupted(epoll_fd: int, timeout: int, batch: Any) -> int:
        return interruptions.pop() if interruptions else lib.memcg_wait(epoll_fd, timeout, batch)

    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        replace_in_lib(monkeypatch, memcg_wait=interrupted)
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]
        assert interruptions == []


def test_a_wait_that_fails_says_so_and_loses_nothing(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom(2)
        with monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_wait=lambda *_: -errno.ENOMEM)
            for _ in range(2):
                with pytest.raises(OSError, match="Cannot allocate memory"):
                    monitor.wait(PATIENCE)
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 2)]


def test_an_interruption_on_the_way_back_from_the_core(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    failures: list[BaseException] = [KeyboardInterrupt(), MemoryError()]

    def interrupted(epoll_fd: int, timeout: int, batch: Any) -> int:
        drained: int = lib.memcg_wait(epoll_fd, timeout, batch)
        if failures:
            raise failures.pop()
        return drained

    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom(2)
        replace_in_lib(monkeypatch, memcg_wait=interrupted)
        with pytest.raises(MemoryError):
            monitor.wait(PATIENCE)
        assert readable(monitor.fileno())
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 2)]
        cgroup.oom(3)
        with pytest.raises(KeyboardInterrupt):
            take(monitor, 1)
        assert readable(monitor.fileno())
        assert brief(take(monitor, 1)) == [("Oom", 3)]


# -- looks that fail


class FailingLooks:
    """Makes every look fail with `error`, as long as there is one; `only_while` narrows it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.looks = 0
        self.only_while: Callable[[], bool] = lambda: True
        replace_in_lib(monkeypatch, memcg_look_many=self._look)

    def _look(self, *arguments: Any) -> None:
        lib.memcg_look_many(*arguments)
        *_, count, kills, _ = arguments
        self.looks += 1
        if self.error and self.only_while():
            for i in range(count):
                kills[i] = -self.error

    def take_while_failing(self, monitor: Monitor, looks: int = 5) -> list[Event]:
        until = self.looks + looks
        return take_while(monitor, lambda: self.looks < until)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.EMFILE, "RLIMIT_NOFILE"),
        (errno.ENFILE, "RLIMIT_NOFILE"),
        (errno.EACCES, "let the watcher read"),
        (errno.EIO, "memory.oom_control"),
    ],
)
def test_looks_that_fail_for_a_while(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str
) -> None:
    cgroups = [kernel.make(name) for name in "ab"]
    looks = FailingLooks(monkeypatch)
    with Monitor(settle=0.01, linger=0.0) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        looks.error = error
        for cgroup in cgroups:
            cgroup.oom(2)
            cgroup.kill()
        events = looks.take_while_failing(monitor)
        cgroups[0].oom()
        events += looks.take_while_failing(monitor)
        (degraded,) = events
        assert isinstance(degraded, Degraded)
        assert os.strerror(error) in degraded.what
        assert degraded.cost
        assert remedy in degraded.remedy
        looks.error = 0
        events = take_until_settled(monitor, *watches)
        assert brief(events, watches[0]) == [("Oom", 3), ("OomKill", 1)]
        assert brief(events, watches[1]) == [("Oom", 2), ("OomKill", 1)]
        # It happens again: that was said.
        looks.error = error
        cgroups[0].oom()
        assert looks.take_while_failing(monitor) == []
        cgroups[0].rmdir()
        cgroups[0].removal_signal()
        assert looks.take_while_failing(monitor) == []
        looks.error = 0
        assert brief(take(monitor, 2)) == [("Oom", 1), ("Removed", 1)]


def test_each_cause_is_said_once(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    looks = FailingLooks(monkeypatch)
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        events: list[Event] = []
        for error in (errno.EMFILE, errno.EACCES, errno.EMFILE, errno.EACCES, errno.EIO):
            looks.error = error
            events += looks.take_while_failing(monitor)
        assert all(isinstance(event, Degraded) for event in events)
        assert [
            error
            for event in events
            if isinstance(event, Degraded)
            for error in (errno.EMFILE, errno.EACCES, errno.EIO)
            if os.strerror(error) in event.what
        ] == [errno.EMFILE, errno.EACCES, errno.EIO]
        looks.error = 0
        assert brief(take(monitor, 1)) == [("Oom", 1)]


def test_a_look_that_nobody_could_answer_is_no_cause(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    looks = FailingLooks(monkeypatch)
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        cgroup.oom()
        looks.error = errno.EAGAIN
        assert looks.take_while_failing(monitor) == []
        looks.error = 0
        assert brief(take(monitor, 1)) == [("Oom", 1)]


def test_one_unreadable_does_not_keep_the_others(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = [kernel.make(name) for name in "ab"]

    def fail_first(*arguments: Any) -> None:
        lib.memcg_look_many(*arguments)
        *_, count, kills, _ = arguments
        if failing and count == 2:
            kills[0] = -errno.EIO

    failing = True
    replace_in_lib(monkeypatch, memcg_look_many=fail_first)
    with Monitor(settle=AGES) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for cgroup in cgroups:
            cgroup.oom()
        events = take(monitor, 2)
        assert brief(events, watches[1]) == [("Oom", 1)]
        failing = False
        assert brief(take(monitor, 1), watches[0]) == [("Oom", 1)]


def test_the_spare_descriptor_serves_when_there_is_none(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    looks = FailingLooks(monkeypatch)
    with Monitor(settle=AGES) as monitor:
        monitor.watch(cgroup.path)
        hierarchy = monitor._watches.hierarchy
        assert hierarchy is not None
        looks.error = errno.EMFILE
        looks.only_while = lambda: bool(hierarchy._spare)
        cgroup.oom()
        cgroup.kill()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1), ("OomKill", 1)]
        assert hierarchy._spare


@pytest.fixture
def exhaust() -> Iterator[Callable[[], None]]:
    """Leaves this process without a descriptor."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower() -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))

    yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("what", ["killed", "renamed", "removed"])
def test_without_descriptors(kernel: FakeKernel, exhaust: Callable[[], None], what: str) -> None:
    cgroup, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        watch, second = monitor.watch_many([cgroup.path, other.path])
        cgroup.oom()
        other.oom()
        cgroup.kill()
        if what == "renamed":
            cgroup.rename("new")
        elif what == "removed":
            cgroup.rmdir()
            cgroup.removal_signal()
        exhaust()
        events = take(monitor, 3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        assert brief(events, watch) == (
            [("Oom", 1), ("Removed", 1)] if what == "removed" else [("Oom", 1), ("OomKill", 1)]
        )
        assert brief(events, second) == [("Oom", 1)]
        if what == "renamed":
            assert watch.cgroup == str(cgroup.path)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EMFILE])
def test_a_search_for_a_renamed_cgroup_that_fails(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    # ENOENT: a folder above it was renamed between being found and being listed. EACCES: may be passed, not listed.
    kernel.make("p")
    cgroup, other = kernel.make("p/a"), kernel.make("b")
    file_system: Any = memcg_oom.hierarchy.__dict__["os"]
    failing = True

    def scandir(path: str) -> Any:
        if failing and path.endswith("/p"):
            raise OSError(error, os.strerror(error), path)
        return os.scandir(path)

    monkeypatch.setattr(file_system, "scandir", scandir, raising=False)
    with Monitor(settle=AGES) as monitor:
        watch, second = monitor.watch_many([cgroup.path, other.path])
        cgroup.rename("new")
        cgroup.oom()
        other.oom()
        events = take_while(monitor, lambda: not second.ooms)  # whoever has no part in it waits for nothing
        assert brief(events, second) == [("Oom", 1)]
        assert brief(events, watch) == []
        failing = False
        assert brief(take_while(monitor, lambda: not watch.ooms), watch) == [("Oom", 1)]
        assert watch.cgroup == str(cgroup.path)


# -- exceptions in the middle


EXPECTED = [("Oom", 2), ("OomKill", 2), ("Oom", 3), ("Removed", 3)]
EXPECTED_OTHER = [("Oom", 2), ("OomKill", 2)]


def run_through(
    kernel: FakeKernel, name: str, collect: Callable[[Monitor, list[Event], Callable[[], bool]], None]
) -> None:
    """OOMs, kills and a removal, taken by `collect`: everything must have been told once, and no descriptor be left."""
    cgroup, other = kernel.make(name), kernel.make(f"{name}-other")
    fds = count_fds()
    try:
        with Monitor(settle=0.001, linger=0.0) as monitor:
            watch, second = monitor.watch_many([cgroup.path, other.path])
            events: list[Event] = []
            for one in (cgroup, other):
                one.oom(2)
                one.kill(2)
            collect(monitor, events, lambda: len(events) < 4)
            cgroup.rmdir()
            cgroup.oom_before_removal(3)
            cgroup.removal_signal()
            collect(monitor, events, lambda: len(events) < 6)
            collect(monitor, events, lambda: watch._key in monitor._watches.by_key)
            second.close()
            events += monitor.wait(0)
            assert brief(events, watch) == EXPECTED
            assert brief(events, second) == EXPECTED_OTHER
            assert (watch.ooms, watch.kills, second.ooms, second.kills) == (5, 2, 2, 2)
    finally:
        for one in (cgroup, other):
            if not one.gone:
                one.rmdir()
            one.close()
    if count_fds() != fds:
        gc.collect()
    assert count_fds() == fds, "a descriptor was left"


def collect_by_wait(monitor: Monitor, events: list[Event], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while condition():
        assert time.monotonic() < deadline, f"lost: there was only {events}"
        events += monitor.wait(0.01)


def collect_by_iteration(monitor: Monitor, events: list[Event], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while condition():
        assert time.monotonic() < deadline, f"lost: there was only {events}"
        if len(monitor._outbox):
            events.append(next(monitor))
        else:
            events += monitor._receive(time.monotonic() + 0.01, one=True)


PLACES: list[tuple[object, str]] = [
    (V1Watches, "absorb"),
    (V1Watches, "due"),
    (V1Watches, "_look"),
    (V1Watches, "_remove"),
    (V1Watches, "_rest"),
    (V1Watches, "forget"),
    (Hierarchy, "look"),
    (Hierarchy, "follow"),
    (Hierarchy, "_look_elsewhere"),
    (Agenda, "add"),
    (Agenda, "first"),
    (Agenda, "drop_first"),
    (Round, "__init__"),
    (Round, "members"),
    (Round, "next_look"),
    (Outbox, "put"),
    (Outbox, "all"),
    (Outbox, "tidy"),
    (memcg_oom.v1, "commit"),
    (memcg_oom.v1, "Oom"),
    (memcg_oom.v1, "OomKill"),
    (memcg_oom.watches, "Removed"),
    (time, "time_ns"),
    (time, "monotonic_ns"),
]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{getattr(place[0], '__name__', '')}.{place[1]}")
def test_an_exception_loses_and_doubles_nothing(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[object, str],
    after: bool,
    error: type[BaseException],
) -> None:
    monkeypatch.setattr(memcg_oom.v1, "LATE", 0)
    owner, name = place
    real = getattr(owner, name)
    left = 0

    def raise_once(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        fire = left == -1
        if fire and not after:
            raise error
        result = real(*arguments, **keywords)
        if fire:
            raise error
        return result

    def collect(monitor: Monitor, events: list[Event], condition: Callable[[], bool]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, raise_once)
            try:
                collect_by_wait(monitor, events, condition)
            except error:
                collect_by_wait(monitor, events, condition)

    for moment in range(200):
        left = moment
        run_through(kernel, f"c{moment}", collect)
        if left >= 0:  # it was not called that often
            break
    assert moment


class Strike:
    """Raises at the Nth moment of the package's code at which a signal handler may run.

    Those are, as CPython has it, the entry of a Python function and the return from one that is written in C.
    """

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.where = ""
        self.active = False

    def __enter__(self) -> None:
        if self.left >= 0:
            self.active = True
            sys.setprofile(self._profile)

    def __exit__(self, *_: object) -> None:
        self.active = False
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if not self.active or event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if frame.f_code.co_name == "__del__":  # there an exception goes nowhere
            return
        if sys.version_info < (3, 11) and event == "call" and frame.f_lasti >= 0:
            return  # a generator goes on; an exception from here, and no other, would end it without its finally
        if not self.left:
            self.active = False
            self.where = f"{event} {getattr(argument, '__name__', '')} {frame.f_code.co_name}:{frame.f_lineno}"
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt(self.where)


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator")  # it was just opened; it is closed all the same
@pytest.mark.parametrize("collect", [collect_by_wait, collect_by_iteration], ids=["wait", "iteration"])
def test_ctrl_c_at_every_moment(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    collect: Callable[[Monitor, list[Event], Callable[[], bool]], None],
) -> None:
    monkeypatch.setattr(memcg_oom.v1, "LATE", 0)
    failures = []
    for moment in range(5000):
        strike = Strike(moment)

        def collect_under_fire(
            monitor: Monitor, events: list[Event], condition: Callable[[], bool], strike: Strike = strike
        ) -> None:
            try:
                with strike:
                    collect(monitor, events, condition)
            except KeyboardInterrupt:
                collect(monitor, events, condition)

        try:
            run_through(kernel, f"c{moment}", collect_under_fire)
        except (AssertionError, RuntimeError) as error:
            failures.append(f"{strike.where}: {str(error).splitlines()[0]}")
        if not strike.where:
            break
    assert moment > 50
    assert not failures, "\n".join(failures)
