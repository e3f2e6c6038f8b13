"""What an unprivileged user who has a cgroup can do to the watcher, and to the neighbours that it watches."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memcg_oom import Degraded, Monitor, OomKill, TreeWatch, Unattributed
from memcg_oom.discovery import Discovery
from tests.support import (
    PATIENCE,
    Independent,
    Ledger,
    Reader,
    event_count,
    eventually,
    is_v2,
    kills_of,
    make,
    put,
    remove,
    run_hog,
    start_hog,
    start_python,
    take_until,
    take_until_quiet,
)
from tests.trees import catch_up, held, of, standing

NOBODY = 65534
KILLS = 40  # of the bystander, in a storm
PATH_MAX = 4096  # bytes that a path may have, with its NUL

# Who owns a cgroup, and may do to it whatever its owner may.
NEIGHBOUR = """
import ctypes, os, signal, sys, time
theirs = sys.argv[1]
if os.path.exists(theirs + "/self"):
    # On v2 nobody moves a task into his cgroup from one that is not his.
    open(theirs + "/self/cgroup.procs", "w").write("0")
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
LIMIT = "memory.max" if os.path.exists(theirs + "/memory.max") else "memory.limit_in_bytes"

def put(path, text):
    with open(path, "w") as file:
        file.write(text)

def limited(path):
    os.mkdir(path)
    put(f"{path}/{LIMIT}", "1M")

def run_out(path):
    # A task of one's own that fills the cgroup; by its open file, since the path may lead elsewhere.
    procs = os.open(f"{path}/cgroup.procs", os.O_WRONLY) if isinstance(path, str) else path
    if (pid := os.fork()) == 0:
        os.write(procs, b"0")
        filled = b"x" * (16 << 20)  # more than the limit
        os._exit(0)
    if isinstance(path, str):
        os.close(procs)
    return os.waitpid(pid, 0)[1]

def renamed(path):
    # On v2 nothing is ever renamed (EPERM).
    new = path[:-1] + "m"
    try:
        os.rename(path, new)
    except PermissionError:
        return path
    return new

def vanish(path):
    while True:
        try:
            return os.rmdir(path)
        except OSError:
            time.sleep(0.01)
"""


def given(cgroup: Path) -> Path:
    """Hands a cgroup to nobody, as systemd and container runtimes hand them to users."""
    for path in (cgroup, *cgroup.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    return cgroup


@pytest.fixture
def theirs(memcg: Path) -> Path:
    cgroup = make(memcg / "theirs")
    if is_v2(cgroup):
        given(make(cgroup / "self"))
    return given(cgroup)


@pytest.fixture
def ours(memcg: Path) -> Path:
    return make(memcg / "ours", "1M")


def as_neighbour(code: str, *arguments: object) -> subprocess.Popen[str]:
    return start_python(NEIGHBOUR + code, *arguments)


def done(process: subprocess.Popen[str]) -> str:
    """What a neighbour printed, who must have come to the end of what it tried."""
    with process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, err
    return out


def is_still_watched(monitor: Monitor, tree: TreeWatch, ours: Path, hog: str, ledger: Ledger) -> None:
    """An OOM of the bystander is told, and the kill in it counted once."""
    watch = of(tree, ours)
    before = ledger.kills[watch], ledger.ooms[watch]
    run_hog(hog, ours)
    take_until(monitor, lambda ledger: ledger.kills[watch] > before[0] and ledger.ooms[watch] > before[1], ledger)
    assert ledger.kills[watch] == kills_of(ours)


# -- storms

STORM = """
which = sys.argv[2]
print("begins", flush=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
number = 0
while not stopped:
    number += 1
    if which == "flicker":  # the same name again and again
        os.mkdir(theirs + "/x")
        os.rmdir(theirs + "/x")
    elif which == "names":  # many, renamed before they go
        names = [f"{theirs}/{number}-{one}n" for one in range(50)]
        for name in names:
            os.mkdir(name)
        for name in map(renamed, names):
            os.rmdir(name)
    elif which == "ooms":
        if not os.path.exists(theirs + "/x"):
            limited(theirs + "/x")
        run_out(theirs + "/x")
    elif which == "forks":  # a long cgroup.procs, and an OOM of all of them
        if not os.path.exists(theirs + "/x"):
            os.mkdir(theirs + "/x")
            put(f"{theirs}/x/{LIMIT}", "8M")
        pids = []
        for _ in range(60):
            if (pid := os.fork()) == 0:
                try:
                    put(theirs + "/x/cgroup.procs", "0")
                    filled = b"x" * (1 << 20)
                    time.sleep(3600)
                finally:
                    os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
print(number)
"""


@pytest.mark.parametrize("which", ["flicker", "names", "ooms", "forks"])
def test_a_bystander_in_a_storm(theirs: Path, ours: Path, hog: str, which: str, figure: dict[str, object]) -> None:
    """Its OOMs and its kills are told, each once, while a neighbour does what it can; then nothing of it is left."""
    memcg = theirs.parent
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg)
        watch = of(tree, ours)
        independent = None if is_v2(ours) else Independent(ours)
        fds = len(os.listdir("/proc/self/fd"))
        reader = Reader(monitor)
        clock, cpu = time.monotonic(), time.process_time()
        lateness = []
        with as_neighbour(STORM, theirs, which) as storm:
            try:
                assert storm.stdout is not None
                assert storm.stdout.readline() == "begins\n"
                for number in range(KILLS):
                    run_hog(hog, ours)
                    begun = time.monotonic()
                    reader.wait_until(lambda number=number: reader.ledger.kills[watch] > number)  # type: ignore[misc]
                    lateness.append(time.monotonic() - begun)
                figure["cpu"] = f"{(time.process_time() - cpu) / (time.monotonic() - clock):.0%}"
                storm.terminate()
                figure["rounds"] = done(storm).strip()
            finally:
                storm.kill()
        figure["late"] = f"{sorted(lateness)[KILLS // 2] * 1e3:.1f} to {max(lateness) * 1e3:.1f} ms"
        if (theirs / "x").exists():
            remove(theirs / "x")
        reader.wait_until(lambda: held(tree) == standing(memcg))
        eventually(
            lambda: len(tree._members) == len(standing(memcg))
        )  # what was removed is let go of, after its last signal
        eventually(lambda: len(os.listdir("/proc/self/fd")) == fds)
        ledger = reader.ledger
        # Of the neighbours everything is told too, or said not to be.
        reader.wait_until(lambda: all(ledger.removals[one] == one.removed for one in ledger.by_watch))
        reader.finish()
        assert ledger.kills[watch] == kills_of(ours) == KILLS
        assert ledger.ooms[watch] == (event_count(ours, "oom") if independent is None else independent.read())
        if independent is not None:
            independent.close()
        figure["degraded"] = [event.what.split(":")[0] for event in ledger.other if isinstance(event, Degraded)]


# -- nests


@contextlib.contextmanager
def nest(cgroup: Path, name: str, levels: int) -> Iterator[int]:
    """A nest in a cgroup, made level by level, which no length of a path bounds; a descriptor of the innermost."""
    fds = [os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=fds[-1])
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        yield fds[-1]
    finally:
        os.close(fds.pop())
        while fds:
            with contextlib.suppress(FileNotFoundError):
                # What was killed in there may not be gone yet.
                eventually(lambda: _removed(name, fds[-1]))
            os.close(fds.pop())


def _removed(name: str, directory_fd: int) -> bool:
    try:
        os.rmdir(name, dir_fd=directory_fd)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.mark.parametrize("source", ["fanotify", "inotify"])
def test_a_nest_that_is_deeper_than_a_stack(memcg1: Path, ours: Path, hog: str, source: str) -> None:
    """In a watch that stands, and in one that begins."""
    levels = 1200  # Python's own stack has 1,000
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        with nest(memcg1, "n", levels) as innermost:
            put(Path(f"/proc/self/fd/{innermost}/memory.limit_in_bytes"), "1M")
            eventually(lambda: monitor.wait(0) is not None and len(list(tree)) == levels + 2)
            path = Path(memcg1, *["n"] * levels)
            with Monitor() as another:
                assert len(list(another.watch_tree(memcg1, source=source))) == levels + 2
            ledger = Ledger()
            run_hog(hog, path)
            take_until(monitor, lambda ledger: ledger.kills[of(tree, path)], ledger)
            (watch,) = ledger.kills
            assert watch.cgroup == os.fspath(path)
            is_still_watched(monitor, tree, ours, hog, ledger)
        catch_up(monitor, tree, memcg1, ledger)


def test_paths_that_are_too_long_to_be_opened(memcg1: Path, ours: Path, hog: str) -> None:
    """They are not watched, which is said; to open them by id would take the kernel the square of their number."""
    name = "n" * 250
    levels = (PATH_MAX - len(os.fspath(memcg1)) - 1) // (len(name) + 1)
    with Monitor() as monitor, nest(memcg1, name, levels) as innermost:
        tree = monitor.watch_tree(memcg1)
        for number in range(20):
            os.mkdir(f"{number:0250}", dir_fd=innermost)
        try:
            ledger = take_until(monitor, lambda ledger: ledger.other)
            is_still_watched(monitor, tree, ours, hog, ledger)
            assert len(list(tree)) == levels + 2
            (degraded,) = ledger.other
            assert isinstance(degraded, Degraded)
            assert degraded.what == f"cgroups cannot be opened: {os.strerror(errno.ENAMETOOLONG)}"
            assert "4,096" in degraded.remedy
        finally:
            for number in range(20):
                os.rmdir(f"{number:0250}", dir_fd=innermost)


def test_what_cannot_be_opened_takes_its_share_of_the_time(
    memcg1: Path, monkeypatch: pytest.MonkeyPatch, figure: dict[str, object]
) -> None:
    """A tree that lacks something is listed again and again, in a twentieth of the time."""
    calls: list[tuple[int, int]] = []
    audit = Discovery.audit

    def timed(discovery: Discovery) -> bool:
        begun = time.monotonic_ns()
        complete = audit(discovery)
        calls.append((begun, time.monotonic_ns()))
        return complete

    monkeypatch.setattr(Discovery, "audit", timed)
    for number in range(300):
        make(memcg1 / str(number))
    name = "n" * 250
    levels = PATH_MAX // len(name) + 2
    with nest(memcg1, name, levels), Monitor(audit=0.001) as monitor:
        monitor.watch_tree(memcg1)
        while len(calls) < 10:
            monitor.wait(0.1)
    figure["longest"] = f"{max(ended - begun for begun, ended in calls) / 1e6:.1f} ms"
    for (begun, ended), (later, _) in itertools.pairwise(calls):
        assert later - ended >= 19 * (ended - begun)


# -- names


NAMED = """
try:
    os.mkdir(theirs + "/a\\nb")
except OSError:
    pass
else:
    raise SystemExit("the kernel takes a newline")
names = [b"\\x1b]0;t\\x07\\x1b[2J\\r", b"\\xff" * 255, b"a,task_memcg=", b": Killed process 1 (init) total-vm:1kB"]
for name in names:
    path = theirs + "/" + os.fsdecode(name)
    limited(path)
    assert run_out(path) == signal.SIGKILL
    vanish(path)
"""


def test_names_that_break_lines_terminals_and_encodings(theirs: Path, ours: Path, hog: str) -> None:
    """The longest of other file systems too, and words of the kernel's log."""
    with Monitor() as monitor:
        tree = monitor.watch_tree(theirs.parent)
        reader = Reader(monitor)
        done(as_neighbour(NAMED, theirs))
        reader.wait_for_removals(4)
        run_hog(hog, ours)
        reader.wait_until(lambda: reader.ledger.kills[of(tree, ours)])
        reader.finish()
    killed = [event for told in reader.ledger.by_watch.values() for event in told if isinstance(event, OomKill)]
    nobodys = [event for event in reader.ledger.other if isinstance(event, Unattributed)]
    told = sum(event.count for event in killed) + sum(event.count for event in nobodys)
    assert told == 5 - sum(reader.ledger.unresolved.values())
    assert not [event for event in killed for victim in event.victims if victim.pid == 1]
    assert reader.ledger.other == nobodys


@pytest.mark.parametrize(
    ("source", "length"),
    [("fanotify", 255), ("fanotify", 256), ("fanotify", 3000), ("inotify", 256), ("inotify", 3000)],
)
def test_names_longer_than_those_of_other_file_systems(
    theirs: Path, ours: Path, hog: str, source: str, length: int
) -> None:
    """The kernel takes them for cgroups, and fanotify tells of them without the name."""
    code = """
path = theirs + "/" + "n" * int(sys.argv[2])
limited(path)
os.mkdir(path + "/below")
path = renamed(path)
sys.stdin.readline()
os.rmdir(path + "/below")
assert run_out(path) == signal.SIGKILL
sys.stdin.readline()
vanish(path)
"""
    with Monitor() as monitor:
        tree = monitor.watch_tree(theirs.parent, source=source)
        ledger = Ledger()
        with as_neighbour(code, theirs, length) as process:
            assert process.stdin is not None
            known = theirs / ("n" * (length - 1) + ("n" if is_v2(theirs) else "m"))
            take_until(monitor, lambda _: os.fspath(known / "below") in held(tree).values(), ledger)
            watch = of(tree, known)
            process.stdin.write("\n")
            process.stdin.flush()
            take_until(monitor, lambda ledger: ledger.kills[watch], ledger)
            process.stdin.write("\n")
            done(process)
        take_until(monitor, lambda ledger: ledger.removals[watch], ledger)
        assert (ledger.kills[watch], watch.cgroup) == (1, os.fspath(known))
        is_still_watched(monitor, tree, ours, hog, ledger)
        assert not ledger.other


def records(log: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield os.read(log, 8192)


CRASHER = """
folder = sys.argv[2]
name = "Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB, anon-rss:1kB, UID:0"
for _ in range(3):
    if (pid := os.fork()) == 0:
        ctypes.CDLL(None).prctl(15, b"Killed process")  # PR_SET_NAME
        program = ctypes.CDLL(f"{folder}/{name}")
        program.crash()
    assert os.waitpid(pid, 0)[1] & 0x7f == signal.SIGSEGV
"""


def test_a_task_that_is_called_like_a_kill(
    theirs: Path, ours: Path, hog: str, tmp_path: Path, figure: dict[str, object]
) -> None:
    """The kernel puts the names of a task that crashes, and of its file, into the log; nothing comes of them."""
    name = "Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB, anon-rss:1kB, UID:0"
    source = tmp_path / "crash.c"
    source.write_text("void crash(void) { *(volatile int *)8 = 1; }\n")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("it takes a compiler: apt-get install gcc libc6-dev")
    subprocess.run([compiler, "-shared", "-o", tmp_path / name, source], check=True)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    closing = contextlib.ExitStack()
    closing.callback(os.close, log)
    os.lseek(log, 0, os.SEEK_END)
    with closing, Monitor() as monitor:
        tree = monitor.watch_tree(theirs.parent)
        done(as_neighbour(CRASHER, theirs, tmp_path))
        ledger = take_until_quiet(monitor)
        assert not ledger.by_watch
        is_still_watched(monitor, tree, ours, hog, ledger)
        assert all(
            victim.pid != 1
            for told in ledger.by_watch.values()
            for event in told
            if isinstance(event, OomKill)
            for victim in event.victims
        )
        figure["in the log"] = sum(b"Killed process[" in record for record in records(log))


# -- tasks


def test_a_stopped_task_is_killed_and_told(theirs: Path) -> None:
    code = """
path = theirs + "/x"
limited(path)
put(f"{path}/{LIMIT}", "32M")
if (pid := os.fork()) == 0:
    put(path + "/cgroup.procs", "0")
    filled = b"x" * (24 << 20)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)
assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
if (other := os.fork()) == 0:
    put(path + "/cgroup.procs", "0")
    filled = [b"x" * (1 << 20) for _ in range(14)]
    os._exit(0)
assert os.waitpid(pid, 0)[1] == signal.SIGKILL
# The kernel takes it too where the memory of the first is not uncharged in time.
print(pid, other if os.waitpid(other, 0)[1] == signal.SIGKILL else "")
"""
    with Monitor() as monitor:
        monitor.watch_tree(theirs.parent)
        reader = Reader(monitor)
        pids = {int(pid) for pid in done(as_neighbour(code, theirs)).split()}
        reader.wait_until(lambda: reader.ledger.kills.total() >= len(pids))
        reader.finish()
        killed = [one for told in reader.ledger.by_watch.values() for one in told if isinstance(one, OomKill)]
        assert {os.path.basename(event.cgroup) for event in killed} == {"x"}
        assert sum(event.count for event in killed) == kills_of(theirs / "x") == len(pids)
        assert {victim.pid for event in killed for victim in event.victims} <= pids


def test_a_list_of_tasks_that_is_longer_than_what_is_read(
    memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is not listed; the kill is told, with the right victim or with none."""
    ours = make(memcg1 / "ours", "64M")
    monkeypatch.setattr("memcg_oom.victims._LISTING", 64)
    sleepers = [
        subprocess.Popen(["sh", "-c", f"echo 0 > {ours}/cgroup.procs; exec sleep {PATIENCE}"]) for _ in range(40)
    ]
    eventually(lambda: len((ours / "cgroup.procs").read_text().split()) == len(sleepers))
    with Monitor() as monitor:
        watch = monitor.watch(ours)
        assert 0 < len(monitor._victims._hierarchy.tasks(watch._place, 64)) < len(sleepers)
        pid = start_hog(hog, ours, 256 << 20)
        ledger = take_until(monitor, lambda ledger: ledger.kills)
        os.waitpid(pid, 0)
        (event,) = [event for event in ledger.by_watch[watch] if isinstance(event, OomKill)]
        assert event.count == 1
        assert [victim.pid for victim in event.victims] in ([], [pid])
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


# -- what belongs to them


def test_control_files_that_nobody_may_read_and_that_are_held_open(theirs: Path, ours: Path, hog: str) -> None:
    """Root reads them all the same, and nothing that is open keeps a removal from being told."""
    code = """
path = theirs + "/x"
limited(path)
sys.stdin.readline()
procs = os.open(path + "/cgroup.procs", os.O_WRONLY)
opened = [os.open(f"{path}/{name}", os.O_RDONLY) for name in ("cgroup.procs", ".", "memory.stat")]
for name in os.listdir(path):
    if os.path.isfile(f"{path}/{name}"):
        os.chmod(f"{path}/{name}", 0)
os.chmod(path, 0)
os.chmod(theirs, 0o300)
assert run_out(procs) == signal.SIGKILL
vanish(path)
sys.stdin.readline()
"""
    with Monitor() as monitor:
        tree = monitor.watch_tree(theirs.parent)
        with as_neighbour(code, theirs) as process:
            assert process.stdin is not None
            ledger = take_until(monitor, lambda ledger: len(ledger.by_watch) == 1)
            (watch,) = ledger.by_watch
            process.stdin.write("\n")
            process.stdin.flush()
            take_until(monitor, lambda ledger: ledger.removals[watch], ledger)
            process.stdin.write("\n")
            done(process)
        assert (ledger.kills[watch], bool(ledger.ooms[watch])) == (1, True)
        is_still_watched(monitor, tree, ours, hog, ledger)
        assert not ledger.other


def test_a_mount_over_it_in_a_namespace(theirs: Path, ours: Path, hog: str) -> None:
    """Whoever may make user namespaces may mount there; the watcher's own mounts are others."""
    code = """
path = theirs + "/x"
limited(path)
sys.stdin.readline()
procs = os.open(path + "/cgroup.procs", os.O_WRONLY)
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x20000) or libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, None):
    print(os.strerror(ctypes.get_errno()))
else:
    assert os.listdir(path) == []
    print("mounted")
assert run_out(procs) == signal.SIGKILL
"""
    with Monitor() as monitor:
        tree = monitor.watch_tree(theirs.parent)
        with as_neighbour(code, theirs) as process:
            assert process.stdin is not None
            ledger = take_until(monitor, lambda ledger: len(ledger.by_watch) == 1)
            (watch,) = ledger.by_watch
            process.stdin.write("\n")
            out = done(process)
        take_until(monitor, lambda ledger: ledger.kills[watch], ledger)
        assert watch.cgroup == os.fspath(theirs / "x")
        remove(theirs / "x")
        take_until(monitor, lambda ledger: ledger.removals[watch], ledger)
        is_still_watched(monitor, tree, ours, hog, ledger)
        if out != "mounted\n":
            pytest.skip(f"no user namespaces here: {out}")
