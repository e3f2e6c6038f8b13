"""The kernel's bare interface: one eventfd, one control file, one registration."""

from __future__ import annotations

import errno
import math
import os
import select
import warnings

from memcg_oom._native import ffi, lib
from memcg_oom.errors import UnsupportedError
from memcg_oom.hierarchy import ROOT_ID
from memcg_oom.mounts import mount_of
from memcg_oom.paths import absolute, directory_status
from memcg_oom.registration import registration_error, root_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self

    from memcg_oom.paths import StrPath


class EventFD:
    """An eventfd(2) that the kernel signals; made by register().

    What a count means is the control file's business. The removal of the cgroup signals too, once, 12 to 127 ms after
    rmdir(2) returned, and nothing in the count tells it apart: Monitor is there for that.

    Use it as a context manager, or call close(): the registration lives as long as the descriptor.

    Synchronization: none; one thread at a time, and close() not before the others are out of it. A forked child shares
    the counter: what it reads its parent never sees.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor, readable while there is a count; non-blocking.

        Raises:
            ValueError: closed.
        """
        if self._fd < 0:
            raise ValueError("the EventFD is closed")
        return self._fd

    def read(self) -> int | None:
        """Takes the number of signals since the last read; None when there was none. Never blocks, see eventfd(2).

        Raises:
            ValueError: closed.
        """
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return None

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until there is something to read. A signal does not end it (PEP 475), unless its handler raises.

        Args:
            timeout: seconds, rounded up to the next millisecond; None waits for ever.

        Returns:
            Whether there is.

        Raises:
            ValueError: the timeout is negative or NaN, or the EventFD is closed.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or a number of seconds that is not negative, not {timeout!r}")
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        # poll(2) takes an int of milliseconds; 24 days and more are for ever.
        milliseconds = None if timeout is None or timeout * 1000 > 2**31 - 1 else math.ceil(timeout * 1000)
        return bool(poll.poll(milliseconds))

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._fd < 0

    def close(self) -> None:
        """Ends the registration. Closing again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd >= 0:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:  # a warning may be made an error
                self.close()

    def __repr__(self) -> str:
        return "<EventFD closed>" if self.closed else f"<EventFD fd={self._fd}>"


def register(cgroup: StrPath, control_file: str, argument: str = "") -> EventFD:
    """Registers a new eventfd with a control file of a cgroup: the interface of memcg_write_event_control().

    Synchronization: may be called from any thread.

    Args:
        cgroup: the path of the cgroup's directory, in the v1 memory hierarchy.
        control_file: the name of the file: "memory.oom_control", "memory.usage_in_bytes",
            "memory.memsw.usage_in_bytes" or "memory.pressure_level". Usage thresholds block for 8 to 16 ms.
        argument: what that file wants: nothing for memory.oom_control (the kernel passes over what is given), bytes
            for the two usages, "low", "medium" or "critical" with an optional ",default", ",hierarchy" or ",local" for
            memory.pressure_level.

    Returns:
        It; it belongs to the caller, who closes it.

    Raises:
        TypeError: not a path.
        ValueError: a control file that is no plain name, an argument with a NUL or a newline or of over 200 bytes.
        UnsupportedError: a cgroup v2, or a kernel that refuses (PREEMPT_RT).
        RootCgroupError: memory.oom_control of the hierarchy's root, which the kernel accepts and never signals.
        OSError: as Monitor.watch(); EINVAL where the kernel does not take the file or the argument.
    """
    path = absolute(cgroup)
    if not control_file or "/" in control_file or "\0" in control_file or control_file in (".", ".."):
        raise ValueError(f"control_file must be the name of a file in the cgroup, not {control_file!r}")
    if "\0" in argument or "\n" in argument or len(os.fsencode(argument)) > 200:
        raise ValueError(f"argument must be one short line, not {argument!r}")
    status = directory_status(path)
    if mount_of(path, status.st_dev).version == 2:
        raise UnsupportedError(
            errno.EOPNOTSUPP, "cgroup v2 has no cgroup.event_control: watch the cgroup with a Monitor", path
        )
    if status.st_ino == ROOT_ID and control_file == "memory.oom_control":
        raise root_error(path)
    registration = ffi.new("struct memcg_registration *")
    eventfd = EventFD(-1)  # before it is opened: no call, and no want of memory, comes between that and its owner
    eventfd._fd = lib.memcg_register(os.fsencode(path), os.fsencode(control_file), os.fsencode(argument), registration)
    if eventfd._fd < 0:
        raise registration_error(-eventfd._fd, registration.step, path, control_file)
    return eventfd
