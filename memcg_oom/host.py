"""What the host as a whole counts of OOM kills."""

from __future__ import annotations

import os

VMSTAT = "/proc/vmstat"

_KEY = b"\noom_kill "


class HostCounter:
    """The host's own count of OOM kills, oom_kill in /proc/vmstat.

    It rises at the very moment of a kill, right before the counter of the cgroup (__oom_kill_process()), whatever the
    kill came of: a limit, the whole host's memory, sysrq-f. One read costs 50 microseconds, as much as seven looks.

    Raises:
        OSError: /proc/vmstat cannot be opened.
    """

    __slots__ = ("fd",)  # to be set without memory: what was opened is held

    def __init__(self) -> None:
        self.fd = os.open(VMSTAT, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """The kills since the host was booted.

        Raises:
            OSError: it cannot be read.
        """
        text = b""
        while chunk := os.pread(self.fd, 1 << 16, len(text)):
            text += chunk
            if (start := text.find(_KEY)) >= 0 and (end := text.find(b"\n", start + 1)) >= 0:
                return int(text[start + len(_KEY) : end])
        return 0  # before 4.13; but then memory.oom_control does not count either, and nothing can be watched
