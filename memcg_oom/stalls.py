"""Pressure stall information (PSI): the kernel says when tasks wait for memory for too long.

A trigger is an open file that one line was written to; it lives as long as that is open (psi_trigger_create()). The
kernel tells of it at most once in a window. To poll the file takes its event away, so that it cannot be in an epoll set
that is in another one: the C core has Linux AIO poll it, and what comes of that is read here.
"""

from __future__ import annotations

import errno
import os
import time

from memcg_oom._native import ffi, lib
from memcg_oom.commit import close_all, commit
from memcg_oom.errors import NotACgroupError, UnsupportedError, check, os_error
from memcg_oom.events import Removed, Stall
from memcg_oom.hierarchy import Place
from memcg_oom.mounts import cgroup_mounts
from memcg_oom.paths import absolute, directory_status
from memcg_oom.watch import AnyWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.commit import Change
    from memcg_oom.complaints import Complaints
    from memcg_oom.events import Event
    from memcg_oom.loop import Loop
    from memcg_oom.monitor import Monitor
    from memcg_oom.outbox import Outbox
    from memcg_oom.paths import StrPath

HOST = "/proc/pressure/memory"
KINDS = ("some", "full")

_WINDOW = 10.0  # seconds: the longest (WINDOW_MAX_US)
_PRIVILEGE = 1 << 24  # CAP_SYS_RESOURCE
# Nanoseconds until a cgroup counts as still there whose pressure file is gone, and between two looks meanwhile.
_GOING = 500_000_000
_LOOK = 5_000_000


class StallWatch(AnyWatch):
    """A trigger on a cgroup's stalls, or on the host's; made by Monitor.watch_stall().

    Attributes:
        kind: "some" or "full", as given to Monitor.watch_stall().
        stall, window: in seconds.
        removed, closed: as of any watch.

    Synchronization: as AnyWatch.
    """

    __slots__ = ("kind", "stall", "window", "_fd", "_trigger")

    def __init__(self, monitor: Monitor, place: Place, kind: str, stall: float, window: float) -> None:
        super().__init__(monitor, place)
        self.kind = kind
        self.stall = stall
        self.window = window
        self._fd = -1
        self._key = 0
        self._trigger = ffi.new("struct memcg_trigger *")

    def __repr__(self) -> str:
        return f"<StallWatch {self.cgroup!r} {self._state} {self.kind} {self.stall:g} s in {self.window:g} s>"


class Stalls:
    """All triggers of one monitor.

    Synchronization: none; the monitor's lock is held around every call.

    Attributes:
        unheard: whether news may have been read and lost, so that hear() is to be called in any case.
    """

    def __init__(self, loop: Loop, outbox: Outbox, complaints: Complaints) -> None:
        self.by_key: dict[int, StallWatch] = {}
        self._loop = loop
        self._outbox = outbox
        self._complaints = complaints
        self.unheard = False
        self._context = ffi.new("uint64_t *")  # 0 until the first trigger was made
        self._eventfds: list[int] = []  # one, when the first trigger was made
        self._batch = ffi.new("struct memcg_batch *")
        # The kernel may still have something to say of these, and it says it with what they hold.
        self._ended: dict[int, StallWatch] = {}
        self._going: dict[StallWatch, int] = {}  # whose file is gone, and since when
        self._next = 0

    @property
    def next_due(self) -> int:
        """When due() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all."""
        return self._next if self._going else 0

    def watch(self, watch: StallWatch, fds: list[int]) -> None:
        """Takes over the one descriptor of a trigger, and begins.

        Raises:
            OSError: there are too many (EAGAIN), or the kernel has no AIO (ENOSYS).
        """
        self._open()
        watch._key = self._loop.key(fds[0], lib.MEMCG_UNREAD)
        self.by_key[watch._key] = watch
        try:
            begun = lib.memcg_trigger_begin(self._context[0], fds[0], self._eventfds[0], watch._key, watch._trigger)
            if begun < 0:
                del self.by_key[watch._key]
                advice = (
                    f"a monitor has some {lib.MEMCG_TRIGGERS} triggers and no more" if begun == -errno.EAGAIN else ""
                )
                raise os_error(-begun, watch.cgroup, advice)
            commit([(watch, "_fd", fds[0]), (watch, "closed", False)])
            fds.clear()
        except BaseException:
            if fds:
                commit([(watch, "_fd", -1), (watch, "closed", True)])
                self.forget(watch)
            raise

    def _open(self) -> None:
        if self._eventfds:
            return
        made = 0 if self._context[0] else lib.memcg_triggers_open(self._context)
        if made == -errno.ENOSYS:
            raise UnsupportedError(
                errno.ENOSYS, "this kernel has no AIO (CONFIG_AIO), by which triggers are polled", HOST
            )
        if made == -errno.EAGAIN:
            raise os_error(errno.EAGAIN, HOST, "raise fs.aio-max-nr, by which triggers are polled")
        check(made, HOST)
        fds: list[int] = []
        try:
            fds.extend(map(os.eventfd, [0], [os.EFD_CLOEXEC | os.EFD_NONBLOCK]))
            self._loop.add([self._loop.key(fds[0], lib.MEMCG_UNREAD)])
        except BaseException:
            close_all(fds)
            raise
        self._eventfds = fds

    def forget(self, watch: StallWatch) -> None:
        """Ends a watch, if it has not ended."""
        if watch._key not in self.by_key:
            return
        if watch._trigger.request[0] and watch not in self._going:  # it was begun, and the kernel has not ended it
            self._ended[watch._key] = watch
            check(lib.memcg_trigger_end(self._context[0], watch._trigger), watch.cgroup)
        self._going.pop(watch, None)
        unread, fd = self._loop.unread, watch._fd
        if fd >= 0:
            unread += [fd]  # no call from here on: the descriptor is in one of the two, whatever happens
            watch._fd = -1
        del self.by_key[watch._key]

    def hear(self) -> None:
        """Tells what the kernel has told."""
        if not self._eventfds:
            return
        heard, self.unheard = self.unheard, True
        try:
            os.eventfd_read(self._eventfds[0])
        except BlockingIOError:
            if not heard:
                self.unheard = False
                return
        while True:
            # What an exception has left behind comes first.
            if not self._batch.count:
                taken = lib.memcg_triggers_take(self._context[0], self._batch)
                if taken == -errno.EINTR:
                    continue  # a signal is pending, and nothing was there (io_getevents(2))
                check(taken, HOST)
            if not self._batch.count:
                self.unheard = False
                return
            self._tell()

    def _tell(self) -> None:
        time_ns, now = time.time_ns(), time.monotonic_ns()
        events: list[Event] = []
        counts: dict[int, int] = {}
        over = []
        for signal in self._batch.signals[0 : self._batch.count]:
            if signal.count:
                counts[signal.key] = counts.get(signal.key, 0) + 1
            else:
                over.append(signal.key)
        for key, count in counts.items():
            if (watch := self.by_key.get(key)) is not None:
                events.append(Stall(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, kind=watch.kind, count=count))
        for key in over:
            self._ended.pop(key, None)
            if (watch := self.by_key.get(key)) is not None:
                self._going.setdefault(watch, now)
                self._next = now
        commit([(self._batch, "count", 0), *self._outbox.put(events)])

    def due(self, now: int) -> None:
        """Tells of the cgroups that are gone, once they are."""
        if not self._going or self._next > now:
            return
        time_ns = time.time_ns()
        for watch, since in list(self._going.items()):
            events: list[Event] = []
            changes: list[Change] = []
            if watch.removed or watch.closed:
                pass  # an exception came after that was told
            elif not _is_there(watch._place):
                events.append(Removed(time_ns=time_ns, cgroup=watch.cgroup, watch=watch))
                changes.append((watch, "removed", True))
            elif now - since > _GOING:
                self._complaints.no_stalls(watch.cgroup, events)
                changes.append((watch, "closed", True))
            else:
                continue
            commit(changes + self._outbox.put(events))
            self.forget(watch)
        self._next = now + _LOOK

    def end(self) -> None:
        """Ends all triggers; their descriptors are still open."""
        if self._context[0]:
            # In a forked child there is no such context, and this does nothing.
            lib.memcg_triggers_close(self._context[0])
            self._context[0] = 0
        self._ended.clear()
        self._going.clear()

    def hand_over(self, fds: list[int]) -> list[Change]:
        """Puts all descriptors on a list; returns the changes by which they are not its own any more."""
        fds += [watch._fd for watch in self.by_key.values() if watch._fd >= 0] + self._eventfds
        return [(self, "by_key", {}), (self, "_eventfds", [])]


def _is_there(place: Place) -> bool:
    """Whether a cgroup is at its path; on v2 nothing is ever renamed."""
    if place.path == HOST:
        return True
    try:
        return os.stat(place.path).st_ino == place.directory_id
    except FileNotFoundError:
        return False


def check_trigger(kind: str, stall: float, window: float) -> tuple[int, int]:
    """The microseconds of a trigger, if it is one by the rules that every kernel has.

    Raises:
        ValueError: it is not.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if not 0 < window <= _WINDOW:
        raise ValueError(f"window must be a number of seconds above 0 and at most {_WINDOW:g}, not {window!r}")
    if not 0 < stall <= window:
        raise ValueError(
            f"stall must be a number of seconds above 0 and at most the window's {window:g}, not {stall!r}"
        )
    microseconds = round(stall * 1e6), round(window * 1e6)
    if not microseconds[0]:
        raise ValueError(f"stall must be at least a microsecond, not {stall!r}")
    return microseconds


def find(target: StrPath) -> Place:
    """Who is meant, of either version of cgroups as far as that has stalls.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such cgroup.
        NotACgroupError: something else is there.
        UnsupportedError: a v1 cgroup.
    """
    path = absolute(target)
    if path == HOST:
        return Place(None, HOST, 0, 0)
    status = directory_status(path)
    versions = {mount.version for mount in cgroup_mounts() if mount.device == status.st_dev}
    if not versions:
        raise NotACgroupError(errno.EINVAL, f"not a cgroup, and not {HOST}, which stands for the whole host", path)
    if 2 not in versions:
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            f"cgroup v1 has no stalls: watch_pressure() is the nearest thing, and {HOST} is the whole host's",
            path,
        )
    return Place(None, path, status.st_ino, 0)


def open_trigger(place: Place, kind: str, microseconds: tuple[int, int], fds: list[int]) -> None:
    """Makes a trigger; its descriptor is put on the list.

    Raises:
        UnsupportedError: PSI is not in this kernel, or switched off.
        PermissionError: writing there is not permitted.
        OSError: the kernel refuses; with its reason.
    """
    path = HOST if place.path == HOST else os.path.join(place.path, "memory.pressure")
    try:
        fds.extend(map(os.open, [path], [os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC]))
        # It must end in a NUL or a newline, which the kernel writes over (psi_write()).
        os.write(fds[0], f"{kind} {microseconds[0]} {microseconds[1]}\0".encode())
    except OSError as error:
        raise _refusal(error.errno or errno.EIO, path, place, microseconds[1]) from None


def _refusal(number: int, path: str, place: Place, window: int) -> OSError:
    """Why there is no trigger, in words."""
    if number in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        if place.path != HOST and not os.path.exists(place.path):
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.path)
        switch = os.path.join(place.path, "cgroup.pressure")
        if place.path != HOST and os.path.exists(HOST) and os.path.exists(switch):
            return UnsupportedError(errno.EOPNOTSUPP, f"pressure is not accounted for here; write 1 to {switch}", path)
        return UnsupportedError(
            errno.EOPNOTSUPP, "pressure stall information is off: boot with psi=1, on a kernel with CONFIG_PSI", path
        )
    if number == errno.EINVAL:
        return os_error(number, path, _window_rule(window))
    if number in (errno.EACCES, errno.EPERM):
        return os_error(number, path, "a trigger needs write permission, and of old kernels CAP_SYS_RESOURCE")
    return os_error(number, path)


def _window_rule(window: int) -> str:
    """The likely reason why the kernel takes no window of so many microseconds."""
    if window % 2_000_000 and not is_privileged():
        return "without CAP_SYS_RESOURCE the window must be 2, 4, 6, 8 or 10 seconds"
    return (
        "kernels before 6.4 want a window of at least 0.5 seconds"
        if window < 500_000
        else "the kernel takes no such window"
    )


def is_privileged() -> bool:
    """Whether this thread may choose any window (CAP_SYS_RESOURCE), from Linux 6.4 on."""
    with open("/proc/thread-self/status", "rb") as file:
        effective = next(line for line in file if line.startswith(b"CapEff:"))
    return bool(int(effective.split()[1], 16) & _PRIVILEGE)
