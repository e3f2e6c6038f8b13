"""What the tests have in common: making cgroups and kills, counting independently, taking events."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import memcg_oom
from memcg_oom import AnyWatch, CgroupEvent, Event, Monitor, Oom, OomKill, Removed

PATIENCE = 60.0  # seconds that something which must come may take; no test is decided by them
QUIET = 1.0  # seconds of silence after which nothing more is expected: twice the default settle
SWAP = Path("/proc/swaps")
# The share of kills that may be told without their cgroup or their victim. A removal at once may beat the look, and a
# task be dead before it is listed, which is for the processor to say, and for who else is on it.
MISSED = 0.5


def is_v2(path: Path) -> bool:
    """Whether a cgroup, or one to be made, is one of version 2."""
    return (path.parent / "cgroup.subtree_control").exists()


def why_no_fanotify(mount: str) -> str:
    """Why the kernel tells nobody through fanotify(7) of cgroups that come and go; empty where it does.

    It is asked here without the package, so that a package which fails to use it is no reason to skip a test.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.fanotify_init(0xE00, os.O_RDONLY)  # FAN_REPORT_FID | FAN_REPORT_DFID_NAME
    if fd < 0:
        return f"fanotify_init: {os.strerror(ctypes.get_errno())}"
    try:
        # FAN_MARK_ADD | FAN_MARK_FILESYSTEM; FAN_CREATE | FAN_ONDIR; AT_FDCWD
        if libc.fanotify_mark(fd, 0x101, ctypes.c_uint64(0x40000100), -100, os.fsencode(mount)) < 0:
            return f"fanotify_mark on {mount}: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(fd)
    return ""


def make(path: Path, limit: str | None = None) -> Path:
    """A new cgroup, with a limit that no swap softens."""
    if is_v2(path):
        control_memory(path.parent)
        path.mkdir()
        if limit is not None:
            put(path / "memory.max", limit)
            if (path / "memory.swap.max").exists():
                put(path / "memory.swap.max", "0")
        return path
    path.mkdir()
    hierarchical = path / "memory.use_hierarchy"
    if hierarchical.exists() and hierarchical.read_text() == "0\n":
        put(hierarchical, "1")  # before 5.11 a limit held for one cgroup alone; systemd set this, and all below have it
    if limit is not None:
        put(path / "memory.limit_in_bytes", limit)
        if len(SWAP.read_text().splitlines()) > 1:
            put(path / "memory.swappiness", "0")
    return path


def put(file: Path, text: str) -> None:
    """One write(2), as control files want it."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def control(cgroup: Path, key: str) -> int:
    """One value of memory.oom_control."""
    lines = (line.split() for line in (cgroup / "memory.oom_control").read_text().splitlines())
    return int(dict(lines)[key])


def control_memory(parent: Path) -> None:
    """Has the cgroups in a v2 cgroup controlled for their memory."""
    if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
        put(parent / "cgroup.subtree_control", "+memory")


def event_count(cgroup: Path, key: str, *, below: bool = False) -> int:
    """One counter of a v2 cgroup, with those below it or without; 0 where this kernel has it not."""
    file = cgroup / ("memory.events" if below else "memory.events.local")
    lines = (line.split() for line in file.read_text().splitlines())
    return int(dict(lines).get(key, 0))


def kills_of(cgroup: Path) -> int:
    return event_count(cgroup, "oom_kill") if is_v2(cgroup) else control(cgroup, "oom_kill")


def start_hog(hog: str, cgroup: Path, size: int = 8 << 20, processes: int = 1, adjust: int | None = None) -> int:
    """Starts one and returns its pid."""
    arguments = [hog, os.fspath(cgroup), str(size), str(processes), *([] if adjust is None else [str(adjust)])]
    return os.posix_spawn(hog, arguments, os.environ)


def large_file(folder: Path) -> Path:
    """64 MiB of page cache, to be; empty where files are in memory anyhow, and there is no such thing."""
    path = folder / "large"
    with path.open("wb") as out:
        kind = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout
        if kind.strip() not in ("tmpfs", "ramfs", "rootfs") and not kind.startswith("UNKNOWN"):
            for _ in range(64):
                out.write(os.urandom(1 << 20))
            os.fsync(out.fileno())
    return path


@contextlib.contextmanager
def reading(file: Path, command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads the file, which is not in the page cache when it begins."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


class Dial:
    """A process in a cgroup whose memory is set to a size."""

    def __init__(self, hog: str, cgroup: Path) -> None:
        self.process = subprocess.Popen(
            [hog, os.fspath(cgroup), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.set(4096)

    def begin(self, size: int) -> None:
        """Has it set, without waiting for that."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{size}\n")

    def set(self, size: int) -> None:
        """Has it set; it must not be killed meanwhile."""
        self.begin(size)
        self.wait()

    def wait(self) -> None:
        """Waits until it is as large as it was told last."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), f"the process ended with {self.process.wait()}"

    def close(self) -> None:
        """Ends it, in whatever state."""
        with self.process:
            self.process.kill()

    def __enter__(self) -> Dial:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def run_hog(hog: str, cgroup: Path, size: int = 8 << 20, processes: int = 1) -> int:
    """Runs one until it was killed and reaps it; returns the pid that it had."""
    pid = start_hog(hog, cgroup, size, processes)
    _, status = os.waitpid(pid, 0)
    if processes == 1:
        assert os.WIFSIGNALED(status), f"the hog was not killed: {status}"
    eventually(lambda: not (cgroup / "cgroup.procs").read_text())
    return pid


def remove(cgroup: Path) -> None:
    """Removes a cgroup whose last process was reaped; the kernel may need a moment for what it left."""
    for _ in range(int(PATIENCE * 100)):
        try:
            cgroup.rmdir()
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno == 16:  # EBUSY
                time.sleep(0.01)
                continue
            raise
        return
    cgroup.rmdir()


def eventually(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.001)


class Independent:
    """The test's own registration with the kernel: what the package says is held against its count."""

    def __init__(self, cgroup: Path, file: str = "memory.oom_control", argument: str = "") -> None:
        self.count = 0
        self.ooms = 0  # for a test to note what was counted before the removal
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        control_fd = os.open(cgroup / file, os.O_RDONLY)
        try:
            put(cgroup / "cgroup.event_control", f"{self.fd} {control_fd} {argument}".rstrip())
        finally:
            os.close(control_fd)

    def read(self) -> int:
        """All signals so far."""
        with contextlib.suppress(BlockingIOError):
            self.count += os.eventfd_read(self.fd)
        return self.count

    def await_more_than(self, count: int) -> None:
        """Waits for the removal's own signal, say."""
        eventually(lambda: self.read() > count)

    def close(self) -> None:
        os.close(self.fd)


class Ledger:
    """What was told about each watch."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.ooms: Counter[AnyWatch] = Counter()
        self.kills: Counter[AnyWatch] = Counter()
        self.unresolved: Counter[AnyWatch] = Counter()
        self.removals: Counter[AnyWatch] = Counter()
        self.late: Counter[AnyWatch] = Counter()
        self.after_removal: list[Event] = []
        self.by_watch: defaultdict[AnyWatch, list[CgroupEvent]] = defaultdict(list)
        self.other: list[Event] = []
        self.add(events)

    def add(self, events: Iterable[Event]) -> Ledger:
        for event in events:
            if not isinstance(event, CgroupEvent):
                self.other.append(event)
                continue
            watch = event.watch
            self.by_watch[watch].append(event)
            if self.removals[watch]:
                self.after_removal.append(event)
            match event:
                case Oom(count=count, late=late):
                    self.ooms[watch] += count
                    self.late[watch] += late
                case OomKill(count=count):
                    self.kills[watch] += count
                case Removed(unresolved=unresolved):
                    self.removals[watch] += 1
                    self.unresolved[watch] += unresolved
        return self


class Reader(threading.Thread):
    """Takes a monitor's events in a thread of its own: by iteration, or by wait() with a pause before each."""

    def __init__(self, monitor: Monitor, *, event_pause: float = 0.0, wait_pause: float = 0.0, seed: int = 1) -> None:
        super().__init__(name="reader", daemon=True)
        self.monitor = monitor
        self.ledger = Ledger()
        self.removed = 0
        self.error: BaseException | None = None
        self._event_pause = event_pause
        self._wait_pause = wait_pause
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self.start()

    def run(self) -> None:
        # A watcher that gets no processor meets removals first; that is the machine's doing and not what is tried here.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(1))
        try:
            if self._wait_pause:
                while not self.monitor.closed:
                    time.sleep(self._random.uniform(0, self._wait_pause))
                    self._take(self.monitor.wait())
            else:
                for event in self.monitor:
                    self._take([event])
                    if self._event_pause:
                        time.sleep(self._random.uniform(0, self._event_pause))
        except BaseException as error:
            if not (isinstance(error, ValueError) and self.monitor.closed):
                self.error = error

    def _take(self, events: list[Event]) -> None:
        with self._changed:
            self.ledger.add(events)
            self.removed += sum(type(event) is Removed for event in events)
            self._changed.notify_all()

    def wait_for_removals(self, count: int, timeout: float = PATIENCE) -> None:
        self.wait_until(lambda: self.removed >= count, timeout)

    def wait_until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.error, timeout)
            if self.error is not None:
                raise self.error
            assert condition(), "what was waited for did not come"

    def finish(self) -> None:
        """Closes the monitor; the thread must end by that."""
        self.monitor.close()
        self.join(PATIENCE)
        assert not self.is_alive(), "close() did not end the iteration"
        if self.error is not None:
            raise self.error


def take_until(monitor: Monitor, condition: Callable[[Ledger], object], ledger: Ledger | None = None) -> Ledger:
    """Takes events until the condition holds of all that came."""
    ledger = Ledger() if ledger is None else ledger
    deadline = time.monotonic() + PATIENCE
    while not condition(ledger):
        assert time.monotonic() < deadline, f"what was waited for did not come; there was {dict(ledger.by_watch)}"
        ledger.add(monitor.wait(0.5))
    return ledger


def take_until_quiet(monitor: Monitor, ledger: Ledger | None = None, quiet: float = QUIET) -> Ledger:
    """Takes events until none has come for a while."""
    ledger = Ledger() if ledger is None else ledger
    while events := monitor.wait(quiet):
        ledger.add(events)
    return ledger


def limit_with_room(room: int) -> int:
    """An RLIMIT_NOFILE with which a tree finds room for about so many registrations."""
    taken = [int(name) for name in os.listdir("/proc/self/fd")]
    limit = len(taken)
    while True:
        limit += 1
        first_left = limit - limit // 8  # of a low limit an eighth is left to others, see search.py
        if first_left - sum(fd < first_left for fd in taken) >= room:
            return limit


def readable(fd: int, timeout: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def is_blocked(native_id: int) -> bool:
    """Whether a thread of this process sleeps in the kernel."""
    return Path(f"/proc/self/task/{native_id}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def until_waiting(monitor: Monitor, native_id: int | None = None) -> None:
    """Waits until somebody is in wait(), and, if told which thread, until that thread sleeps there."""
    eventually(lambda: monitor._waiting and (native_id is None or is_blocked(native_id)))


def start_python(
    code: str, *arguments: object, options: Iterable[str] = (), wrapper: Iterable[str] = ()
) -> subprocess.Popen[str]:
    """Another interpreter, which finds the same package."""
    package = Path(memcg_oom.__file__).parents[1]
    return subprocess.Popen(
        [*wrapper, sys.executable, *options, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.fspath(package)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
    )


def remainder(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process prints from here to its end, on standard output and error.

    communicate() passes over what a readline() before it has read ahead.
    """
    if process.stdin is not None:
        process.stdin.close()
    with ThreadPoolExecutor(2) as pool:
        reads = [None if stream is None else pool.submit(stream.read) for stream in (process.stdout, process.stderr)]
        try:
            out, err = ("" if read is None else read.result(PATIENCE) for read in reads)
            process.wait(PATIENCE)
        except BaseException:
            process.kill()
            raise
    return out, err


def run_python(
    code: str, *arguments: object, options: Iterable[str] = (), wrapper: Iterable[str] = ()
) -> tuple[int, str, str]:
    """Its exit code, what it printed, and what it complained about."""
    with start_python(code, *arguments, options=options, wrapper=wrapper) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err
