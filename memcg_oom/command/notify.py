"""What systemd wants to hear of a service of Type=notify, see sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time

_MICROSECONDS = 1_000_000


class Service:
    """The service manager that has started this process, if one wants to hear of it.

    Attributes:
        period: seconds within which it wants to hear that the process is alive (half of WatchdogSec=); None: it does
            not.
    """

    def __init__(self) -> None:
        # Not for those that this process starts.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        of = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        self.period: float | None = None
        if self._address and microseconds.isdigit() and of == str(os.getpid()):
            self.period = int(microseconds) / _MICROSECONDS / 2
        self._next = 0.0

    def tell(self, text: str) -> None:
        """Tells the manager, if there is one: READY=1, STATUS=..., STOPPING=1.

        Raises:
            OSError: it does not hear.
        """
        if self._address:
            # "@" stands for the NUL of an address in the abstract namespace, unix(7).
            address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(text.encode("utf-8", "surrogateescape"), address)

    def due(self) -> float | None:
        """Seconds until alive() wants to be called; None: never."""
        return None if self.period is None else max(0.0, self._next - time.monotonic())

    def alive(self) -> None:
        """Says that the process is alive, if it is time for that."""
        if self.period is not None and time.monotonic() >= self._next:
            self.tell("WATCHDOG=1")
            self._next = time.monotonic() + self.period
