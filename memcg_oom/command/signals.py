"""Waiting that a signal ends in any case.

Python runs a handler between bytecodes. A signal that comes after the last of them and before the system call would
wait for whatever ends that call: on a quiet host that is for ever, and Ctrl-C seems to do nothing. So the signal is
made readable as well (signal.set_wakeup_fd(), the self-pipe trick).
"""

from __future__ import annotations

import math
import select
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class HasFileno(Protocol):
        """Something that can be waited for."""

        def fileno(self) -> int:
            """Its descriptor."""


class Signals:
    """The signals of this process, as long as the `with` statement lasts; for the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._before = -1

    def __enter__(self) -> Signals:
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()

    def wait(self, what: HasFileno, timeout: float | None = None) -> None:
        """Returns when there is something to read, when `timeout` seconds are over, or after a signal's handler."""
        poll = select.poll()
        poll.register(what.fileno(), select.POLLIN)
        poll.register(self._reader, select.POLLIN)
        ready = poll.poll(None if timeout is None else math.ceil(min(timeout * 1000, 2**31 - 1)))
        if any(fd == self._reader.fileno() for fd, _ in ready):
            self._reader.recv(4096)
