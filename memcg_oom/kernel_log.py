"""The kernel's log, /dev/kmsg, and what it says of OOM kills.

Of a kill there are two lines, in mm/oom_kill.c. That of __oom_kill_process() ("Killed process 93 (hog) ...") is never
left out, comes after the counters have risen, and names no cgroup. Right before it dump_oom_victim() prints one that
does ("oom-kill:constraint=..."), but together with all that surrounds it at most ten times in five seconds.

Names in them are chosen by whoever runs the task: a comm may hold anything but NUL, a cgroup's name anything but "/"
and newline. What cannot be told apart for certain is left out.
"""

from __future__ import annotations

import errno
import os
from itertools import repeat

from memcg_oom.errors import os_error
from memcg_oom.events import Victim

KMSG = "/dev/kmsg"

_RECORD = 8192  # bytes: the longest that the kernel gives (CONSOLE_EXT_LOG_MAX)

_DIGITS = 20  # of 64 bits
_COMM = 15  # bytes: TASK_COMM_LEN without the NUL
_KILLED = b": Killed process "
_SKIPPED = b": OOM victim "  # "... 93 (hog) is already exiting. Skip killing the task"
_OF_MEMCG = b"Memory cgroup out of memory"
_CAUSES = (_OF_MEMCG, b"Out of memory", b"Out of memory (oom_kill_allocating_task)")
_SUMMARY = b"oom-kill:constraint="
_OOM_MEMCG = b",oom_memcg="
_GLOBAL = b",global_oom,task_memcg="
_TASK_MEMCG = b",task_memcg="
_TASK = b",task="

_WHOLE = 960  # bytes: a longer one may be a part of a line that took several records (PRINTKRB_RECORD_MAX)
_SPLITS = 64  # more ways to read a line than that are nobody's names
_SUMMARIES = 32  # of kills whose other line has not come yet
_APART = 10_000_000  # microseconds between the two lines of a kill, at the most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    # What dump_oom_victim() has said of a pid: when (microseconds), oom_memcg, task_memcg.
    Summaries = dict[int, tuple[int, str | None, str | None]]


class KernelLog:
    """The kernel's log from here on.

    Attributes:
        records: those that were read and not taken yet.
        overrun: whether some were overwritten before they were read, since that was last taken note of.
        interrupted: whether some may have been read and lost, for want of memory, likewise.

    Raises:
        OSError: it may not be read: CAP_SYSLOG is missing and kernel.dmesg_restrict is 1, or there is no such device.
    """

    __slots__ = ("fd", "records", "overrun", "interrupted", "summaries")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.overrun = self.interrupted = False
        self.summaries: Summaries = {}  # of kills whose "Killed process" has not come yet, see parse()
        self.fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.lseek(self.fd, 0, os.SEEK_END)
        except BaseException as error:
            os.close(self.fd)
            if isinstance(error, OSError):
                raise os_error(error.errno or errno.EIO, KMSG) from None  # it has no path yet
            raise

    def read(self, most: int) -> bool:
        """Reads what there is, so many records at the most; whether that is all.

        One call into C reads and stores, so that an exception from a signal handler takes nothing away.
        """
        try:
            self.records.extend(map(os.read, repeat(self.fd, most), repeat(_RECORD)))
        except BlockingIOError:
            return True
        except BrokenPipeError:  # the next read goes on with the oldest that is left
            self.overrun = True
        except BaseException:
            self.interrupted = True
            raise
        return False


def parse(records: Sequence[bytes], summaries: Summaries) -> tuple[list[Victim], Summaries]:
    """What records say of kills.

    Args:
        records: as read(2) gives them, see Documentation/ABI/testing/dev-kmsg.
        summaries: what the last call has returned.

    Returns:
        The victims in their order; what was said of such as have no "Killed process" yet.
    """
    victims: list[Victim] = []
    left = dict(summaries)
    for moment, text in _of_kills(records):
        if not text:
            left.clear()
            continue
        if text.startswith(_SUMMARY):
            if (summary := _parse_summary(text)) is not None:
                pid, oom_memcg, task_memcg = summary
                left.pop(pid, None)  # so that it goes to the end
                left[pid] = (moment, oom_memcg, task_memcg)
                if len(left) > _SUMMARIES:
                    del left[next(iter(left))]
            continue
        cause, is_killed, said = text.partition(_KILLED)
        if not is_killed:
            cause, _, said = text.partition(_SKIPPED)
        killed = _number(said.partition(b" (")[0])
        if cause not in _CAUSES or killed is None:
            continue
        then, oom_memcg, task_memcg = left.pop(killed, (0, None, None))
        if not is_killed:
            continue
        if not 0 <= moment - then <= _APART:
            oom_memcg = task_memcg = None
        if cause != _OF_MEMCG:
            oom_memcg = "/"
        victim = _parse_killed(killed, said, oom_memcg, task_memcg)
        if victim is not None:
            victims.append(victim)
    return victims, left


def _of_kills(records: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """What the kernel itself has said that may be about a kill, and when, in microseconds.

    An empty text is for the rest of a line whose beginning is in a record of its own: names that fill a record make the
    kernel go on in another one, and what it has begun may look like a whole line.
    """
    found = []
    for record in records:
        header, separator, rest = record.partition(b";")
        text = rest.partition(b"\n")[0]
        fields = header.split(b",")
        if not separator or len(fields) < 4:
            continue
        if fields[3] == b"c":
            text = b""
        elif not (text.startswith(_SUMMARY) or _KILLED in text or _SKIPPED in text):
            continue
        # Of facility 0 are the kernel's own.
        priority, moment = _number(fields[0]), _number(fields[2])
        if priority is not None and not priority >> 3 and moment is not None:
            found.append((moment, text))
    return found


def says_killed(records: Sequence[bytes]) -> bool:
    """Whether any of the records may be about a kill."""
    for record in records:  # noqa: SIM110 - a generator that is left half-way swallows the exception of a signal handler
        if b"Killed process" in record:
            return True
    return False


def _parse_killed(pid: int, said: bytes, oom_memcg: str | None, task_memcg: str | None) -> Victim | None:
    """What follows "Killed process ": the pid first, which no name can be taken for, and the sizes last."""
    _, _, rest = said.partition(b" (")
    # From the right: a comm is too short to hold what follows it.
    end = rest.rfind(b") total-vm:")
    if end < 0:
        end = rest.rfind(b")")
    if end < 0:
        return None
    figures: dict[bytes, bytes] = {}
    for word in rest[end + 2 :].replace(b",", b"").split(b" "):
        name, _, value = word.partition(b":")
        figures[name] = value
    return Victim(
        pid=pid,
        comm=_name(rest[:end]),
        uid=_number(figures.get(b"UID", b"")),  # since 5.5
        anon_rss=_bytes(figures.get(b"anon-rss", b"")),
        file_rss=_bytes(figures.get(b"file-rss", b"")),
        shmem_rss=_bytes(figures.get(b"shmem-rss", b"")),
        total_vm=_bytes(figures.get(b"total-vm", b"")),
        oom_memcg=oom_memcg,
        task_memcg=task_memcg,
    )


def _parse_summary(text: bytes) -> tuple[int, str | None, str | None] | None:
    """The pid, oom_memcg and task_memcg of a line of dump_oom_victim(); None where it is not whole.

    The pid is the last but one: whatever a comm says of a pid stands before it. A path begins with "/", which no name
    of a cpuset or a task before it can bring along with the word that announces it.
    """
    rest, separator, uid = text.rpartition(b",uid=")
    rest, separated, pid = rest.rpartition(b",pid=")
    number = _number(pid)
    if not (separator and separated) or number is None or _number(uid) is None or len(_unescape(text)) > _WHOLE:
        return None
    if text.startswith(_SUMMARY + b"CONSTRAINT_MEMCG,"):
        start = rest.find(_OOM_MEMCG + b"/")
        ways = _memcg_ways(rest[start + len(_OOM_MEMCG) :]) if start >= 0 else set()
    else:
        start = rest.find(_GLOBAL + b"/")
        ways = {(b"/", path) for path in _task_ways(rest[start + len(_GLOBAL) :], 1)} if start >= 0 else set()
    limits = {limit for limit, _ in ways}
    paths = {path for _, path in ways}
    return (
        number,
        _name(limits.pop()) if len(limits) == 1 else None,
        _name(paths.pop()) if len(paths) == 1 else None,
    )


def _memcg_ways(text: bytes) -> set[tuple[bytes, bytes]]:
    """All ways to read "OOM_MEMCG,task_memcg=TASK_MEMCG,task=COMM", of which the second path lies in the first."""
    ways: set[tuple[bytes, bytes]] = set()
    position = text.find(_TASK_MEMCG + b"/")
    for _ in range(_SPLITS):
        if position < 0:
            return ways
        limit, rest = text[:position], text[position + len(_TASK_MEMCG) :]
        if rest.startswith(limit):
            shortest = len(limit)
            ways.update(
                (limit, path)
                for path in _task_ways(rest, shortest)
                if len(path) == shortest or limit == b"/" or path[shortest : shortest + 1] == b"/"
            )
        position = text.find(_TASK_MEMCG + b"/", position + 1)
    return set()


def _task_ways(text: bytes, shortest: int) -> list[bytes]:
    """All ways to read "TASK_MEMCG,task=COMM": the paths."""
    ways = []
    position = text.rfind(_TASK)
    while position >= shortest and len(_unescape(text[position + len(_TASK) :])) <= _COMM:
        ways.append(text[:position])
        position = text.rfind(_TASK, 0, position)
    return ways


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= _DIGITS else None


def _bytes(text: bytes) -> int | None:
    """Of "8kB"; None where there is no such figure."""
    number = _number(text.removesuffix(b"kB"))
    return None if number is None else number * 1024


def _name(text: bytes) -> str:
    return os.fsdecode(_unescape(text))


def _unescape(text: bytes) -> bytes:
    r"""The kernel writes what is no printable ASCII, and the backslash, as \x and two digits (msg_add_ext_text())."""
    first, *parts = text.split(b"\\x")
    try:
        return first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in parts)
    except ValueError:  # not the kernel's hand
        return text
