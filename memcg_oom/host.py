"""What the host as a whole says about OOM kills: its counter, and its log."""

from __future__ import annotations

import os

VMSTAT = "/proc/vmstat"
KMSG = "/dev/kmsg"

_RECORD = 8192  # bytes: the longest that the kernel gives (CONSOLE_EXT_LOG_MAX)
_RECORDS = 1000  # in a row; what is left keeps the descriptor readable
_KEY = b"\noom_kill "


class HostCounter:
    """The host's own count of OOM kills, oom_kill in /proc/vmstat.

    It rises at the very moment of a kill, right before the counter of the cgroup (__oom_kill_process()), whatever the
    kill came of: a limit, the whole host's memory, sysrq-f. One read costs 50 microseconds, as much as seven looks.

    Raises:
        OSError: /proc/vmstat cannot be opened.
    """

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


class KernelLog:
    """The kernel's log from here on, /dev/kmsg.

    The line of a kill is never left out, other than most of what surrounds it (__oom_kill_process() prints it with
    pr_err, not ratelimited), and it comes after both counters have risen.

    Raises:
        OSError: it may not be read: CAP_SYSLOG is missing and kernel.dmesg_restrict is 1, or there is no such device.
    """

    def __init__(self) -> None:
        self.fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self.fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self.fd)
            raise

    def says_killed(self) -> bool:
        """Whether any of the records since the last call may be about a kill."""
        killed = False
        for _ in range(_RECORDS):
            try:
                killed |= b"Killed process" in os.read(self.fd, _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:
                killed = True  # some were overwritten before they were read
        return killed
