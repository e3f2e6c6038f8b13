"""Has the kernel kill for want of memory in every way that its log tells apart, and takes what it says.

Runs inside a machine with little memory, see tests/vm/record_logs.py; leaves JSON in /results.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import control_memory, eventually, is_v2, make, put, readable, remove

V1 = Path("/sys/fs/cgroup/memory")
ROOT = V1 if V1.exists() else Path("/sys/fs/cgroup")
TOP = ROOT / "t"
KMSG = Path("/dev/kmsg")
SYSRQ = Path("/proc/sysrq-trigger")
VM = Path("/proc/sys/vm")

LIMIT = "8M"
PLENTY = 32 << 20  # bytes: more than any limit here
MORE_THAN_THERE_IS = 4 << 30  # bytes
NOBODY = 65534
RECORD = 8192  # bytes: the longest that the kernel gives
QUIET = 0.5  # seconds of silence after which no record is expected any more
# The kernel writes ten reports in five seconds (DEFAULT_RATELIMIT_BURST and _INTERVAL), and then begins anew.
BURST = 10
INTERVAL = 5.5  # seconds
STORM = 30  # kills

# What of a report is kept: what tells of the kill, with all that is between the first line of that and the last, where
# the pieces of a line are that was too long; and of hostile names all else that has them.
KEPT = re.compile(
    rb"oom-kill:|Killed process|oom\.group|no killable|callbacks suppressed|Manual OOM|oom_reaper|invoked oom-killer"
)
NAMES = re.compile(rb"Comm: |Memory cgroup stats for|;\[ *\d+\]")
FIRST = re.compile(rb"[0-7],[^;]*;oom-kill:constraint=")  # which is longer than a task's name
# The kernel's own word: what others write to its log has a priority of 8 or more.
KILLED = re.compile(rb"[0-7],\d+,\d+,[^;]*;(?:Memory cgroup o|O)ut of memory[^:]*: Killed process (\d+) \(")

# A task's name, and its cgroup's; the limit is at the first part of that. A line break is the one byte that the kernel
# refuses in a cgroup's name but for the slash.
HOSTILE = (
    (b"a,pid=1,uid=0", b"b,task=init,pid=1"),
    (b"x) total-vm:0kB", b"c,task_memcg=/d"),
    (b"a\nb\x01\x1b\x7f\\\xff\xc3\xa9", b"e,oom_memcg="),
    (b"\\x0a\\", b"not \xff\x80 UTF-8, \\xff, \t\x01\x7f, \xc3\xa9"),
    (b"oom-kill:pid=1,", b"Memory cgroup out of memory: Killed process 1 (init) total-vm:0kB"),
    (b"\x010oom-kill:pid=1", b"\x010oom-kill:oom_memcg=/a,task_memcg=/a,task=init,pid=1,uid=0"),
    (b"Killed process ", b" are going to be killed due to memory.oom.group set"),
    (b"\nOut of memory:", b" / "),
    (b"line break\n", b"'\"()[]{}<>;:$`"),
    (b"", b"f"),
)
SPOOFED = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0"
    ",oom_memcg=/a,task_memcg=/a,task=init,pid=1,uid=0",
    "Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB"
    ", UID:0 pgtables:1kB oom_score_adj:0",
)


class Case:
    """What the kernel says from here on, and what it should.

    Attributes:
        records: the log's.
        truth: of each task that was killed.
    """

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.truth: list[dict[str, object]] = []
        self._fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
        self.skip()

    def skip(self) -> None:
        """Leaves out what there is."""
        os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> None:
        """Takes what there is. Records that were overwritten first are missed in close()."""
        while True:
            try:
                self.records.append(os.read(self._fd, RECORD))
            except BrokenPipeError:
                continue
            except BlockingIOError:
                return

    def ended(self, pid: int, cgroup: Path, limit: Path | None) -> bool:
        """Waits for a task's end, and notes it where that was by the kernel's hand; returns whether.

        Args:
            pid: its.
            cgroup: that it is in.
            limit: the cgroup at whose limit it dies; None: the whole machine is out of memory.
        """
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        killed = end.si_code == os.CLD_KILLED and end.si_status == signal.SIGKILL
        process = Path("/proc", str(pid))
        uid = re.search(rb"^Uid:\t(\d+)", (process / "status").read_bytes(), re.MULTILINE)
        assert uid is not None
        if killed:
            self.truth.append(
                {
                    "pid": pid,
                    "comm_hex": (process / "comm").read_bytes()[:-1].hex(),
                    "uid": int(uid[1]),
                    "task_memcg": kernel_path(cgroup),
                    "oom_memcg": None if limit is None else kernel_path(limit),
                }
            )
        os.waitpid(pid, 0)
        self.read()
        return killed

    def killed(self, pid: int, cgroup: Path, limit: Path | None) -> None:
        """The same, of one that the kernel must kill."""
        assert self.ended(pid, cgroup, limit), f"{pid} was not killed"

    def close(self) -> None:
        """Takes the last records, and sees that the kernel told of every kill that there was and of no other."""
        while readable(self._fd, QUIET):
            self.read()
        os.close(self._fd)
        told = {int(match[1]) for match in map(KILLED.match, self.records) if match}
        assert told == {one["pid"] for one in self.truth}, (told, self.truth)

    def trim(self, whole: int, names: bool) -> None:
        """Leaves of the reports what is kept of them; of so many, from the first on, all."""
        kept = []
        pieces = False
        for record in self.records:
            pieces = pieces or FIRST.match(record) is not None
            if whole or pieces or KEPT.search(record) or (names and NAMES.search(record)):
                kept.append(record)
            if KILLED.match(record):
                whole = max(0, whole - 1)
                pieces = False
        self.records = kept


def kernel_path(cgroup: Path) -> str:
    """How the kernel calls it; bytes that are no UTF-8 as os.fsdecode() has them."""
    return "/" + os.fspath(cgroup.relative_to(ROOT))


def start(name: bytes, cgroup: Path, size: int, *, adjust: int = 0, uid: int = 0, stay: bool = False) -> int:
    """Starts a task of a name that fills so much memory in a cgroup, and then ends or stays; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(15, name)  # PR_SET_NAME
        put(cgroup / "cgroup.procs", "0")
        put(Path("/proc/self/oom_score_adj"), str(adjust))
        os.setuid(uid)
        filled = b"x" * size
        if stay:
            signal.pause()
        del filled
    finally:
        os._exit(1)


def stays(name: bytes, cgroup: Path, size: int) -> int:
    """The same of one that stays, once it has all of it."""
    usage = cgroup / ("memory.current" if is_v2(cgroup) else "memory.usage_in_bytes")
    before = int(usage.read_text())
    pid = start(name, cgroup, size, stay=True)
    eventually(lambda: int(usage.read_text()) - before >= size)
    return pid


def memcg(case: Case) -> None:
    own = make(TOP / "own", LIMIT)
    case.killed(start(b"hog", own, PLENTY), own, own)
    parent = make(TOP / "parent", "32M")
    child, beside = make(parent / "child"), make(parent / "beside")
    case.killed(start(b"hog", child, 2 * PLENTY, uid=NOBODY), child, parent)
    # The larger one dies of what the other asks for; which may be too early for the other still.
    large = stays(b"large", beside, 24 << 20)
    small = start(b"small", child, 12 << 20)
    case.killed(large, beside, parent)
    case.ended(small, child, parent)


def whole(case: Case) -> None:
    cgroup = make(TOP / "unlimited")
    case.killed(start(b"hog", cgroup, MORE_THAN_THERE_IS, uid=NOBODY), cgroup, None)
    put(VM / "oom_kill_allocating_task", "1")
    case.killed(start(b"hog", cgroup, MORE_THAN_THERE_IS), cgroup, None)
    put(VM / "oom_kill_allocating_task", "0")


def group(case: Case) -> None:
    """Four in one cgroup; and four in two, below the one that is to die as a whole."""
    one = make(TOP / "group", LIMIT)
    above = make(TOP / "above", LIMIT)
    left, right = make(above / "left"), make(above / "right")
    for top, cgroups in ((one, (one,) * 4), (above, (left, right, left, right))):
        put(top / "memory.oom.group", "1")
        pids = [stays(b"one of four", cgroup, 1 << 20) for cgroup in cgroups[:3]]
        pids.append(start(b"hog", cgroups[3], PLENTY))
        for pid, cgroup in zip(pids, cgroups, strict=True):
            case.killed(pid, cgroup, top)


def none(case: Case) -> None:
    """Twice the kernel finds nobody; after that the test ends who asks again and again."""
    cgroup = make(TOP / "unkillable", LIMIT)
    pid = start(b"unkillable", cgroup, PLENTY, adjust=-1000)

    def found() -> list[int]:
        case.read()
        return [number for number, record in enumerate(case.records) if b"no killable" in record]

    eventually(lambda: len(found()) >= 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    del case.records[found()[1] + 1 :]
    case.skip()


def hostile(case: Case) -> None:
    top = make(TOP / "hostile")
    for number, (comm, name) in enumerate(HOSTILE):
        if number == BURST // 2:
            time.sleep(INTERVAL)
        first, *below = os.fsdecode(name).split("/")
        inner = limited = make(top / first, LIMIT)
        for part in below:
            inner = make(inner / part)
        case.killed(start(comm, inner, PLENTY, uid=NOBODY), inner, limited)
    if is_v2(TOP):
        hostile_cpuset(case)


def hostile_cpuset(case: Case) -> None:
    """The name of the cgroup whose processors the task is bound to comes before everything else."""
    time.sleep(INTERVAL)
    cpuset = make(TOP / "cpuset")
    put(ROOT / "cgroup.subtree_control", "+cpuset")
    put(TOP / "cgroup.subtree_control", "+cpuset")
    control_memory(cpuset)
    put(cpuset / "cgroup.subtree_control", "+cpuset")
    for name in (b"h,oom_memcg=x,task_memcg=y,task=z,pid=1,uid=0", b"\x010,global_oom,task_memcg="):
        cgroup = make(cpuset / os.fsdecode(name), LIMIT)
        case.killed(start(b"hog", cgroup, PLENTY), cgroup, cgroup)
    for each in (cpuset, TOP, ROOT):
        put(each / "cgroup.subtree_control", "-cpuset")


def long(case: Case) -> None:
    """Paths that the line has room for, together or one by one, or neither."""
    for number, length in enumerate((250, 600, 1300)):
        cgroup = make(TOP / f"long{number}")
        while (left := length - len(kernel_path(cgroup)) - 1) > 0:
            cgroup = make(cgroup / ("abcdefghij" * 20)[:left])
        put(cgroup / ("memory.max" if is_v2(TOP) else "memory.limit_in_bytes"), LIMIT)
        case.killed(start(b"hog", cgroup, PLENTY), cgroup, cgroup)


def storm(case: Case) -> None:
    """Most without their first line; and one in peace, ahead of which the kernel says how many it left out."""
    cgroups = [make(TOP / f"storm{number}", LIMIT) for number in range(STORM + 1)]
    *many, last = cgroups
    begun = time.monotonic()
    pids = [start(f"hog{number}".encode(), cgroup, PLENTY) for number, cgroup in enumerate(many)]
    for pid, cgroup in zip(pids, many, strict=True):
        case.killed(pid, cgroup, cgroup)
    assert time.monotonic() - begun < 5, "no storm at all"
    time.sleep(INTERVAL)
    case.killed(start(b"hog", last, PLENTY), last, last)


def sysrq(case: Case) -> None:
    cgroup = make(TOP / "sysrq")
    pid = stays(b"victim", cgroup, 4096)
    put(Path("/proc", str(pid), "oom_score_adj"), "1000")
    put(SYSRQ, "f")
    case.killed(pid, cgroup, None)


def spoof(_: Case) -> None:
    """Whoever may write to the log can have it say anything, but not as the kernel."""
    for line in SPOOFED:
        for prefix in ("", "<3>", "<0>"):
            put(KMSG, f"{prefix}{line}\n")


def record(run: Callable[[Case], None]) -> dict[str, object]:
    """A case, after a time in which the kernel has written no report."""
    time.sleep(INTERVAL)
    case = Case()
    run(case)
    case.close()
    case.trim(whole=1 if run is memcg else 0, names=run is hostile)
    return {"records": [record.decode("latin-1") for record in case.records], "truth": case.truth}


def clear() -> None:
    """Removes all cgroups."""
    for directory, _, _ in os.walk(TOP, topdown=False):
        remove(Path(directory))


def main() -> None:
    """All cases that this kernel has."""
    put(Path("/proc/self/oom_score_adj"), "-1000")
    put(VM / "overcommit_memory", "1")  # a hog may want more than there is
    cases = {
        "memcg": memcg,
        "global": whole,
        "none": none,
        "hostile": hostile,
        "long": long,
        "storm": storm,
        "spoof": spoof,
    }
    version = 2 if is_v2(TOP) else 1
    if version == 2:
        cases["group"] = group
    if SYSRQ.exists():
        cases["sysrq"] = sysrq
    made = {}
    for name, run in cases.items():
        make(TOP)
        made[name] = record(run)
        clear()
        print(name, flush=True)
    result = {"release": os.uname().release, "version": version, "cases": made}
    Path("/results").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
