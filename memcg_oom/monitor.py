"""The Monitor: one descriptor that tells what happens to many cgroups."""

from __future__ import annotations

import errno
import math
import os
import select
import struct
import threading
import time
import warnings
import weakref

from memcg_oom._native import ffi, lib
from memcg_oom.commit import Outbox, commit
from memcg_oom.errors import check, os_error
from memcg_oom.hierarchy import Hierarchy
from memcg_oom.paths import absolute
from memcg_oom.registration import Registrations
from memcg_oom.v1 import V1Watches
from memcg_oom.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

    from memcg_oom.events import Event
    from memcg_oom.paths import StrPath

_SIGNAL = struct.Struct("=QQ")  # struct memcg_signal
_LONGEST = 2**31 - 1  # milliseconds that epoll_wait(2) takes at once
_FOR_EVER = 2.0**61  # nanoseconds: 73 years, and two of them still fit what the kernel takes
_SERIALS = 2**32  # the high half of a key

_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()


class Monitor:
    """Tells, through one pollable file descriptor, what happens to every cgroup that it watches.

    Use it as a context manager, or call close(). Take events with wait(), or by iterating: `for event in monitor`
    blocks and yields one at a time; `async for event in monitor` does the same under asyncio. Only close() ends either.

    Synchronization: watch(), watch_many(), Watch.close(), wake() and close() may be called from any thread while
    another is in wait(); a second wait() meanwhile raises RuntimeError. wake() and close() may be called from a signal
    handler as well. After fork(2) the child's copy is closed and the parent's works on.

    Args:
        settle: seconds for which a cgroup is looked at after its last OOM notification: the kernel signals before it
            kills, up to 74 ms before in trials.
        linger: seconds for which the signals of a removed cgroup are awaited after the last one: the kernel sends
            the removal's own 12 to 127 ms after rmdir(2) returned.

    Raises:
        ValueError: a period that is negative, NaN or infinite.
        OSError: no descriptors left (EMFILE); it takes three, two more with the first watch, and one a watch.
    """

    def __init__(self, *, settle: float = 0.5, linger: float = 0.25) -> None:
        periods = [_nanoseconds("settle", settle), _nanoseconds("linger", linger)]
        self._closing = True  # until there is something to close
        # Taken with `with` alone: a lock written in C is entered and left in one step, which no signal handler can come
        # into. Whoever leaves it last after close() frees the descriptors: hence `with self._leaving, self._lock`.
        self._lock = threading.Lock()
        self._leaving = _Leaving(self)
        self._waiting = False
        self._woken = False
        self._rung = False  # the bell rings for what an iteration has left in the outbox
        self._serial = 0
        self._unread: list[int] = []  # descriptors to close when no wait() is under way
        self._batch = ffi.new("struct memcg_batch *")
        self._outbox = Outbox()
        self._epoll = select.epoll()
        self._bell: _Bell | None = None
        self._timer = -1
        try:
            self._bell = _Bell()
            self._timer = check(lib.memcg_timer_open(), "timerfd")
            self._armed = 0
            self._add_to_loop([self._bell.fd, self._timer])
        except BaseException:
            self._release()
            raise
        self._v1 = V1Watches(self._epoll, self._outbox, self._unread, *periods)
        self._closing = False
        _monitors.add(self)

    # -- watching

    def watch(self, cgroup: StrPath) -> Watch:
        """Watches one cgroup: from now on its OOMs, its OOM kills and its removal are told.

        One that is out of memory at this moment, with its OOM killer disabled, is told at once. Kills that were before
        are not. Several watches of one cgroup, here or in other monitors and processes, each get every event.

        Args:
            cgroup: the path of its directory.

        Raises:
            FileNotFoundError: it does not exist, or was removed meanwhile.
            NotADirectoryError: a file.
            NotACgroupError: not a cgroup, or one of a hierarchy without the memory controller.
            RootCgroupError: the hierarchy's root, which the kernel never signals.
            UnsupportedError: a cgroup v2, or a kernel that refuses (PREEMPT_RT).
            PermissionError: no read permission on memory.oom_control or no write permission on cgroup.event_control.
            OSError: whatever else the kernel says: EROFS, EMFILE, ENFILE, ENOMEM.
            ValueError: an empty path, one with a NUL, or the monitor is closed.
        """
        return self.watch_many([cgroup])[0]

    def watch_many(self, cgroups: Iterable[StrPath], *, skip_gone: bool = False) -> list[Watch]:
        """Watches many cgroups, all or none of them; several threads share the work.

        Args:
            cgroups: the paths of their directories.
            skip_gone: leave out those that do not exist (any more) instead of failing.

        Returns:
            Their watches, in the order given.

        Raises:
            OSError, ValueError: as watch(); then none of them is watched and no descriptor is left behind.
        """
        paths = [absolute(cgroup) for cgroup in cgroups]
        with self._leaving, self._lock:
            self._check_open()
            hierarchy = self._v1.hierarchy
        opened = None
        if hierarchy is None:
            hierarchy = opened = _open_hierarchy(paths, skip_gone)
            if hierarchy is None:
                return []  # nothing given, or all of them gone
        watches: list[Watch] = []
        registrations: Registrations | None = None
        try:
            registrations = Registrations(hierarchy, paths, skip_gone)
            with self._leaving, self._lock:
                self._check_open()
                watches = [
                    Watch(self, one.place, self._key(one.eventfd), one.kills_before) for one in registrations.all
                ]
                self._add_to_loop([watch._key for watch in watches])
                if self._v1.hierarchy is None:
                    self._v1.hierarchy, opened = opened, None
                self._v1.add(watches, registrations)
                self._arm()
        except BaseException:
            for watch in watches:
                if watch.closed:
                    self._v1.by_key.pop(watch._key, None)
            if registrations is not None:
                registrations.undo()
            raise
        finally:
            if opened is not None:
                opened.close()
        return watches

    @property
    def watches(self) -> tuple[Watch, ...]:
        """All watches that are neither closed nor of removed cgroups."""
        with self._leaving, self._lock:
            self._check_open()
            return tuple(watch for watch in self._v1.by_key.values() if not watch.removed)

    def _unwatch(self, watch: Watch) -> None:
        if self._closing:
            return
        with self._leaving, self._lock:
            if not watch.closed:
                self._v1.forget(watch)
                commit([(watch, "closed", True), (watch, "_round", None)])
                self._bury()

    # -- waiting

    def fileno(self) -> int:
        """The descriptor, for select, poll, epoll and event loops: readable while there is something to do.

        wait(0) does it, and returns what came of it, perhaps nothing.

        Raises:
            ValueError: the monitor is closed.
        """
        self._check_open()
        return self._epoll.fileno()

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Waits until there are events and returns them, in the order in which they were made.

        Args:
            timeout: seconds, rounded up to the next millisecond; 0 does what is to be done and returns; None blocks.

        Returns:
            The events; empty when the timeout is over, after wake(), or when the monitor was closed meanwhile.

        Raises:
            ValueError: the timeout is negative or NaN, or the monitor is closed.
            RuntimeError: another wait(), or an iteration, is under way.
        """
        return self._receive(_deadline(timeout), one=False)

    def _receive(self, deadline: float | None, *, one: bool) -> list[Event]:
        """Waits until the outbox holds something, or the deadline is over, or somebody wakes it or closes.

        Hands out all events that there are then, or `one`, for which it does not wait if there are some left.
        """
        outbox = self._outbox
        entered = False
        try:
            with self._leaving, self._lock:
                self._enter()
                self._waiting = entered = True
            if not (one and outbox):
                self._pass_until(deadline)
            with self._lock:
                events, end = outbox.first() if one else outbox.all()
                if end < len(outbox.events) and not self._rung:
                    self._rung = True
                    self._ring()  # what is left keeps the descriptor readable
            # No call from here to the return: an exception from a signal handler finds the events here or handed out.
            outbox.next = end
            if not self._closing:
                return events
        except BaseException:
            if entered:
                self._upset()
            raise
        finally:
            if entered:
                self._waiting = False  # first, and here: a call might be interrupted before it does anything
                if self._unread or self._closing:
                    self._come_out()
        return []

    def _enter(self) -> None:
        """What a waiter begins with; the lock is held."""
        self._check_waitable()
        self._outbox.tidy()
        self._arm()

    def _upset(self) -> None:
        """After an exception: what was read is still here.

        Whoever polls the descriptor is to come again, and the timer may have been read without what it was for being
        done.
        """
        self._armed = -1
        if not self._closing:
            self._ring()

    def _pass_until(self, deadline: float | None) -> None:
        while True:
            # What an exception left behind in the batch comes first.
            timeout = 0 if self._outbox or self._woken or self._batch.count else _milliseconds(deadline)
            self._pass(timeout)
            if self._closing or self._outbox or self._woken:
                self._woken = False
                return
            if deadline is not None and time.monotonic() >= deadline:
                return

    def _pass(self, timeout: int) -> None:
        """One wait of at most `timeout` milliseconds, and what came of it."""
        if not self._batch.count:
            drained = lib.memcg_wait(self._epoll.fileno(), timeout, self._batch)
            if drained < 0:
                if drained == -errno.EINTR:
                    return  # the handler has run, or runs now; the caller looks at the clock
                raise os_error(-drained, "epoll")
            self._rung = False  # whatever rang was read
        with self._leaving, self._lock:
            if self._closing:
                return
            batch = self._batch
            now = batch.time_ns
            full = batch.count == lib.MEMCG_BATCH
            if batch.count:
                signals = _SIGNAL.iter_unpack(ffi.buffer(batch.signals, batch.count * _SIGNAL.size))
                self._v1.absorb(signals, now, (batch, "count", 0))
            self._v1.due(now, drained=not full)
            self._arm()
            self._bury(waiting=False)

    def _come_out(self) -> None:
        with self._leaving, self._lock:
            self._bury()

    def wake(self) -> None:
        """Makes the wait() that is under way, or else the next one, return []. For any thread and any signal handler.

        Raises:
            ValueError: the monitor is closed.
        """
        self._check_open()
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        bell = self._bell  # held, so that a close() meanwhile cannot give its number to somebody else's file
        if bell is not None:
            os.eventfd_write(bell.fd, 1)

    # -- iterating

    def __iter__(self) -> Self:
        """Iterates for ever: only close() ends it.

        Raises:
            ValueError: the monitor is closed.
        """
        self._check_open()
        return self

    def __next__(self) -> Event:
        while not self._closing:
            try:
                events = self._receive(None, one=True)
            except ValueError:
                if not self._closing:
                    raise
            else:
                if events:
                    return events[0]
        raise StopIteration

    def __aiter__(self) -> Self:
        """The same under asyncio: the loop watches the descriptor, the task that iterates reads.

        Raises:
            ValueError: the monitor is closed.
        """
        self._check_open()
        return self

    async def __anext__(self) -> Event:
        while not self._closing:
            if not self._outbox:
                await self._readable()
            if not self._closing:
                # Nothing is awaited between reading and returning: a cancellation finds the event here or handed out.
                events = self._receive(time.monotonic(), one=True)
                if events:
                    return events[0]
        raise StopAsyncIteration

    async def _readable(self) -> None:
        import asyncio  # noqa: PLC0415 - takes longer than all of this package; who comes here has it already

        with self._leaving, self._lock:
            self._check_waitable()
            self._waiting = True
        try:
            loop = asyncio.get_running_loop()
            ready: Future[None] = loop.create_future()
            fd = self._epoll.fileno()
            loop.add_reader(fd, _set_ready, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
        finally:
            self._waiting = False
            self._come_out()

    # -- closing

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closing

    def close(self) -> None:
        """Ends everything: all watches, and a wait() that is under way, which returns [].

        What was not handed out is discarded. Closing again does nothing. May be called from any thread and any signal
        handler: if another thread is inside a call, the descriptors are closed as soon as it comes out.
        """
        if not self._closing:
            self._closing = True
            self._ring()
            self._free_if_closed()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closing", True):  # the constructor cleans up itself when it fails
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        if self._closing:
            return "<Monitor closed>"
        return f"<Monitor fd={self._epoll.fileno()} watches={len(self._v1.by_key)}>"

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError("the monitor is closed")

    def _check_waitable(self) -> None:
        self._check_open()
        if self._waiting:
            raise RuntimeError("another wait() of this monitor is under way; a monitor has one waiter")

    def _free_if_closed(self) -> None:
        """Closes the descriptors if close() was called and nobody is inside.

        close() may run in a signal handler, over the very thread that holds the lock, so nobody waits for it here. Who
        holds it comes by when letting go, and finds `_closing` set, which it was before this try.
        """
        if self._closing and self._lock.acquire(blocking=False):
            try:
                if not self._waiting:
                    self._release()
            finally:
                self._lock.release()

    def _release(self) -> None:
        """Closes every descriptor; nobody else is inside, or this is a forked child's copy.

        Only close(2) is called: in a child EPOLL_CTL_DEL and timerfd_settime would act on the parent's, whose files
        these are too.
        """
        self._closing = True
        fds = [self._timer] if self._timer >= 0 else []
        self._timer = -1
        v1 = getattr(self, "_v1", None)
        if v1 is not None:
            open_watches = [watch for watch in v1.by_key.values() if not watch.closed]
            fds += [watch._eventfd for watch in open_watches] + self._unread
            commit([(watch, "closed", True) for watch in open_watches])
            v1.by_key.clear()
            self._unread.clear()
            if v1.hierarchy is not None:
                v1.hierarchy.close()
        any(map(os.close, fds))  # in one step, as commit() does it
        self._epoll.close()
        self._bell = None

    # -- descriptors

    def _key(self, fd: int) -> int:
        self._serial = (self._serial + 1) % _SERIALS
        return self._serial << 32 | fd

    def _add_to_loop(self, keys: list[int]) -> None:
        check(lib.memcg_loop_add(self._epoll.fileno(), keys, len(keys)), "epoll")

    def _arm(self) -> None:
        due = self._v1.next_due
        if due != self._armed:
            check(lib.memcg_timer_arm(self._timer, due), "timerfd")
            self._armed = due

    def _bury(self, *, waiting: bool | None = None) -> None:
        """Closes what left the epoll set, unless a wait() may be reading it: then it is asked to come back and do so.

        A descriptor that is closed under the waiter may get a new owner, whose data the waiter would read.
        """
        if self._unread:
            if self._waiting if waiting is None else waiting:
                self._ring()
            else:
                # Taken off and closed in one step, like commit().
                any(map(os.close, map(self._unread.pop, [-1] * len(self._unread))))


class _Bell:
    """The eventfd that makes the set readable; closed when the last one who might ring it lets go."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        fd = getattr(self, "fd", None)
        if fd is not None:
            close(fd)


class _Leaving:
    """Around the lock: what there is to do once it is let go."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        self._monitor._free_if_closed()


def _set_ready(ready: Future[None]) -> None:
    if not ready.done():  # the descriptor stays readable until the task has run
        ready.set_result(None)


def _open_hierarchy(paths: list[str], skip_gone: bool) -> Hierarchy | None:
    """The hierarchy of the first cgroup that exists; there is one v1 memory hierarchy on a host."""
    for path in paths:
        try:
            return Hierarchy(path)
        except FileNotFoundError:
            if not skip_gone:
                raise
    return None


def _nanoseconds(name: str, seconds: float) -> int:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be a number of seconds, finite and not negative, not {seconds!r}")
    return int(min(seconds * 1e9, _FOR_EVER))


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout must be None or a number of seconds that is not negative, not {timeout!r}")
    deadline = time.monotonic() + timeout
    return None if deadline == math.inf else deadline


def _milliseconds(deadline: float | None) -> int:
    if deadline is None:
        return -1
    return min(_LONGEST, max(0, math.ceil((deadline - time.monotonic()) * 1000)))


def _close_in_child() -> None:
    for monitor in list(_monitors):
        if not monitor._closing:
            monitor._lock = threading.Lock()  # the parent's may be held by a thread that is not here
            monitor._waiting = False
            monitor._release()


os.register_at_fork(after_in_child=_close_in_child)
