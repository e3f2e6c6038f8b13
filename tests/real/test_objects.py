"""The two small objects: the kernel's bare interface (EventFD, register), one cgroup (Cgroup, OomControl)."""

from __future__ import annotations

import builtins
import errno
import itertools
import math
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memcg_oom import Cgroup, EventFD, NotACgroupError, OomControl, RootCgroupError, register
from memcg_oom.mounts import cgroup_mounts
from tests.support import (
    PATIENCE,
    Independent,
    control,
    eventually,
    is_blocked,
    kills_of,
    make,
    put,
    readable,
    remove,
    run_hog,
    run_python,
    start_hog,
    start_python,
)

ROUNDS = int(os.environ.get("MEMCG_OOM_ROUNDS", "500"))


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refused(call: Callable[[], object]) -> Exception:
    """What a call raises; no descriptor is left, even as long as the exception itself is kept."""
    before = fds()
    try:
        result = call()
    except Exception as error:
        assert fds() == before
        return error
    pytest.fail(f"it was not refused: {result!r}")


@pytest.fixture
def root(memcg1: Path) -> Path:
    """The topmost cgroup that is mounted."""
    return memcg1.parent.parent


@pytest.fixture
def sleepers() -> Iterator[Callable[[Path], int]]:
    """Starts processes that sleep in a cgroup."""
    started: list[subprocess.Popen[bytes]] = []

    def start(cgroup: Path) -> int:
        process = subprocess.Popen(["sleep", "1000"])
        started.append(process)
        put(cgroup / "cgroup.procs", str(process.pid))
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE)


# -- EventFD


def test_ooms_are_counted(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "web", "1M")
    independent = Independent(cgroup)
    try:
        with register(cgroup, "memory.oom_control") as eventfd:
            assert type(eventfd) is EventFD
            assert eventfd.read() is None
            assert not eventfd.wait(0)
            assert not eventfd.wait(0.02)
            assert not readable(eventfd.fileno())
            total = 0
            for _ in range(3):
                run_hog(hog, cgroup)
                assert eventfd.wait(PATIENCE)
                assert eventfd.wait()
                assert readable(eventfd.fileno())
                count = eventfd.read()
                assert count is not None
                total += count
                assert total == independent.read()
                assert eventfd.read() is None
                assert not eventfd.wait(0)
            assert total >= 3
    finally:
        independent.close()


def test_several_registrations_of_one_cgroup(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "web", "1M")
    with register(cgroup, "memory.oom_control") as one, register(cgroup, "memory.oom_control", "anything") as two:
        with register(cgroup, "memory.oom_control"):
            pass
        run_hog(hog, cgroup)
        first, second = one.read(), two.read()
        assert first == second
        assert first


def test_an_oom_ends_a_wait(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "web", "1M")
    for timeout in (None, math.inf, 1e300, PATIENCE):
        with register(cgroup, "memory.oom_control") as eventfd:
            results: list[object] = []
            thread = threading.Thread(target=lambda: results.append(eventfd.wait(timeout)))  # noqa: B023 - joined below
            thread.start()
            assert thread.native_id is not None
            eventually(lambda thread=thread: is_blocked(thread.native_id))  # type: ignore[misc]
            run_hog(hog, cgroup)
            thread.join(PATIENCE)
            assert results == [True]


def test_the_removal_signals_too(memcg1: Path) -> None:
    cgroup = make(memcg1 / "web")
    with register(cgroup, "memory.oom_control") as eventfd:
        cgroup.rmdir()
        assert eventfd.wait(PATIENCE)
        assert eventfd.read() == 1
        assert not eventfd.wait(0.3)


def test_it_is_not_inherited(memcg1: Path) -> None:
    with register(make(memcg1 / "web"), "memory.oom_control") as eventfd:
        assert not os.get_inheritable(eventfd.fileno())
        assert not os.get_blocking(eventfd.fileno())


def test_pressure(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "web", "4M")
    with (
        register(cgroup, "memory.pressure_level", "low") as low,
        register(memcg1, "memory.pressure_level", "low,local") as above,
    ):
        assert (low.read(), above.read()) == (None, None)
        run_hog(hog, cgroup, 64 << 20)
        assert low.wait(PATIENCE)
        assert low.read()
        assert above.read() is None


def test_a_usage_threshold(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "web")
    with (
        register(cgroup, "memory.usage_in_bytes", "1M") as passed,
        register(cgroup, "memory.usage_in_bytes", str(1 << 30)) as never,
    ):
        pid = start_hog(hog, cgroup, 8 << 20)
        assert os.waitpid(pid, 0)[1] == 0
        assert passed.wait(PATIENCE)
        assert passed.read()
        assert never.read() is None


@pytest.mark.parametrize("control_file", ["", ".", "..", "a/b", "/", "/etc/passwd", "../x", "memory\0", "\0"])
def test_a_control_file_that_is_no_name(memcg1: Path, control_file: str) -> None:
    error = refused(lambda: register(memcg1, control_file))
    assert type(error) is ValueError
    assert "control_file" in str(error)


@pytest.mark.parametrize("argument", ["a\0b", "\0", "low\n", "\n", "x" * 300, "x" * 201, "é" * 101])
def test_an_argument_that_is_no_line(memcg1: Path, argument: str) -> None:
    error = refused(lambda: register(memcg1, "memory.pressure_level", argument))
    assert type(error) is ValueError
    assert "argument" in str(error)


def test_an_argument_of_200_bytes_is_passed_on(memcg1: Path) -> None:
    register(memcg1, "memory.oom_control", "x" * 200).close()  # which the kernel passes over
    error = refused(lambda: register(memcg1, "memory.pressure_level", "x" * 200))
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("control_file", "argument"),
    [
        ("memory.pressure_level", "loud"),
        ("memory.pressure_level", ""),
        ("memory.pressure_level", "low,loud"),
        ("memory.usage_in_bytes", "much"),
        ("memory.limit_in_bytes", "1M"),
        ("memory.stat", ""),
        ("cgroup.procs", ""),
    ],
)
def test_what_the_kernel_does_not_take(memcg1: Path, control_file: str, argument: str) -> None:
    cgroup = make(memcg1 / "web")
    error = refused(lambda: register(cgroup, control_file, argument))
    assert type(error) is OSError
    assert (error.errno, error.filename) == (errno.EINVAL, f"{cgroup}/cgroup.event_control")


def test_a_control_file_that_does_not_exist(memcg1: Path) -> None:
    error = refused(lambda: register(memcg1, "memory.no_such_file"))
    assert type(error) is FileNotFoundError
    assert (error.errno, error.filename) == (errno.ENOENT, f"{memcg1}/memory.no_such_file")


@pytest.mark.parametrize("arguments", [(3, ""), (b"memory.oom_control", ""), ("memory.oom_control", None)])
def test_register_wants_text(memcg1: Path, arguments: tuple[Any, Any]) -> None:
    assert type(refused(lambda: register(memcg1, *arguments))) is TypeError


def test_the_root_signals_pressure_but_no_oom(root: Path) -> None:
    error = refused(lambda: register(root, "memory.oom_control"))
    assert type(error) is RootCgroupError
    assert isinstance(error, RootCgroupError)  # for the type checker
    assert (error.errno, error.filename) == (errno.EINVAL, str(root))
    with register(root, "memory.pressure_level", "critical") as eventfd:
        assert eventfd.fileno() >= 0


def test_a_cgroup_that_goes_between_two_looks_is_missing(memcg1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = make(memcg1 / "web")
    really = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        status = really(path, *arguments, **options)
        if path == str(cgroup):
            os.rmdir(path)
        return status

    monkeypatch.setattr(os, "stat", stat)
    error = refused(lambda: register(cgroup, "memory.oom_control"))
    monkeypatch.undo()
    assert type(error) is FileNotFoundError
    assert error.filename == str(cgroup)


def test_an_eventfd_after_close(memcg1: Path) -> None:
    before = fds()
    with register(memcg1, "memory.oom_control") as eventfd:
        assert repr(eventfd) == f"<EventFD fd={eventfd.fileno()}>"
        assert not eventfd.closed
    assert fds() == before
    assert eventfd.closed
    assert repr(eventfd) == "<EventFD closed>"
    eventfd.close()
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]  # one has its number now
    try:
        eventfd.close()
        for fd in files:
            os.fstat(fd)
    finally:
        for fd in files:
            os.close(fd)
    for call in (eventfd.fileno, eventfd.read, eventfd.wait, lambda: eventfd.wait(0)):
        assert type(refused(call)) is ValueError


def test_a_context_manager_closes_when_an_exception_passes(memcg1: Path) -> None:
    with pytest.raises(LookupError), register(memcg1, "memory.oom_control") as eventfd:
        raise LookupError
    assert eventfd.closed


def test_dropped_without_close_it_warns(memcg1: Path) -> None:
    before = fds()
    eventfd = register(memcg1, "memory.oom_control")
    number = eventfd.fileno()
    with pytest.warns(ResourceWarning, match=f"unclosed <EventFD fd={number}>"):
        del eventfd  # nobody else holds it
    assert fds() == before


# -- Cgroup


def test_what_a_cgroup_is(memcg1: Path, root: Path) -> None:
    cgroup = Cgroup(memcg1 / "web")
    assert (cgroup.path, cgroup.name, cgroup.version) == (f"{memcg1}/web", "web", 1)
    assert os.fspath(cgroup) == cgroup.path
    assert repr(cgroup) == f"Cgroup('{memcg1}/web')"
    assert cgroup.parent == Cgroup(memcg1)
    above = [cgroup]
    while (parent := above[-1].parent) is not None:
        above.append(parent)
    assert [one.path for one in above] == [f"{memcg1}/web", str(memcg1), str(memcg1.parent), str(root)]
    assert Cgroup(root).parent is None


def test_equality_is_of_paths(memcg1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(memcg1)
    same = [
        Cgroup(path)
        for path in (memcg1 / "web", f"{memcg1}/web/", f"{memcg1}/x/../web", "web", b"web", os.fsencode(memcg1 / "web"))
    ]
    same.append(Cgroup(same[0]))
    assert len(set(same)) == 1
    assert all(one == same[0] and hash(one) == hash(same[0]) for one in same)
    other = Cgroup(memcg1 / "db")
    assert other != same[0]
    assert len({*same, other}) == 2
    assert same[0] != same[0].path  # as pathlib.Path has it
    assert same[0].__eq__(same[0].path) is NotImplemented


def test_a_cgroup_that_does_not_exist_yet(memcg1: Path) -> None:
    cgroup = Cgroup(memcg1 / "not" / "yet")
    assert not cgroup.exists()
    assert type(refused(lambda: Cgroup.create(cgroup))) is FileNotFoundError
    assert cgroup.parent is not None
    assert Cgroup.create(cgroup.parent) == cgroup.parent
    made = Cgroup.create(cgroup)
    assert type(made) is Cgroup
    assert made == cgroup
    assert cgroup.exists()
    error = refused(lambda: Cgroup.create(cgroup))
    assert type(error) is FileExistsError
    assert error.filename == cgroup.path
    assert cgroup.usage >= 0


def test_children(memcg1: Path) -> None:
    names = ["b", "a", "ä", "c d", os.fsdecode(b"\xff"), "C"]
    for name in names:
        make(memcg1 / name)
    make(memcg1 / "a" / "deeper")
    children = Cgroup(memcg1).children()
    assert [child.name for child in children] == sorted(names)
    assert all(type(child) is Cgroup and child.parent == Cgroup(memcg1) for child in children)
    assert [child.path for child in children[1].children()] == [f"{memcg1}/a/deeper"]
    assert children[0].children() == []


def test_remove(memcg1: Path, sleepers: Callable[[Path], int]) -> None:
    above = Cgroup.create(memcg1 / "above")
    below = Cgroup.create(memcg1 / "above" / "below")
    error = refused(above.remove)
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.EBUSY, above.path)
    below.remove()
    assert not below.exists()
    assert type(refused(below.remove)) is FileNotFoundError
    sleepers(Path(above.path))
    error = refused(above.remove)
    assert isinstance(error, OSError)
    assert error.errno == errno.EBUSY
    assert above.exists()


def test_the_limit(memcg1: Path) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    file = memcg1 / "web" / "memory.limit_in_bytes"
    page = mmap.PAGESIZE
    assert cgroup.limit is None
    for given, expected in (
        (1 << 20, 1 << 20),
        (5 * page + 1, 5 * page),
        (6 * page - 1, 5 * page),
        (1, 0),
        (0, 0),
        (1 << 40, 1 << 40),
    ):
        cgroup.limit = given
        assert cgroup.limit == expected
        assert int(file.read_text()) == expected
    cgroup.limit = None
    assert cgroup.limit is None
    assert int(file.read_text()) > 1 << 60


@pytest.mark.parametrize("limit", [-1, -4096, -(2**70)])
def test_a_negative_limit(memcg1: Path, limit: int) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    cgroup.limit = 1 << 20
    error = refused(lambda: setattr(cgroup, "limit", limit))
    assert type(error) is ValueError
    assert "limit" in str(error)
    assert cgroup.limit == 1 << 20


@pytest.mark.parametrize("limit", [2**63, 2**64, 2**64 + (1 << 20), 2**70 + 4096, 10**30], ids=hex)
def test_a_limit_beyond_all_numbers_is_no_small_one(memcg1: Path, limit: int) -> None:
    """The kernel would take what is left of it modulo 2**64."""
    cgroup = Cgroup.create(memcg1 / "web")
    cgroup.limit = 2 << 20
    try:
        cgroup.limit = limit
    except (ValueError, OSError):
        assert cgroup.limit == 2 << 20
    else:
        assert cgroup.limit is None


@pytest.mark.parametrize("limit", ["1M", b"1", [], object()], ids=repr)
def test_a_limit_that_is_no_number(memcg1: Path, limit: object) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    assert type(refused(lambda: setattr(cgroup, "limit", limit))) is TypeError
    assert cgroup.limit is None


def test_the_root_has_no_limit_to_set(root: Path) -> None:
    cgroup = Cgroup(root)
    assert cgroup.limit is None
    error = refused(lambda: setattr(cgroup, "limit", 1 << 40))
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.EINVAL, f"{root}/memory.limit_in_bytes")


def test_usage_and_peak(memcg1: Path, hog: str) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    assert cgroup.usage < 1 << 20
    pid = start_hog(hog, memcg1 / "web", 16 << 20)
    assert os.waitpid(pid, 0)[1] == 0
    assert 16 << 20 <= cgroup.peak < 32 << 20
    assert cgroup.usage < cgroup.peak
    assert cgroup.peak == int((memcg1 / "web" / "memory.max_usage_in_bytes").read_text())


def test_usage_of_a_process_that_holds_memory(memcg1: Path) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    code = """
import sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
kept = bytearray(b"x") * (16 << 20)
print("holds", flush=True)
sys.stdin.read()
"""
    with start_python(code, cgroup.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        assert 16 << 20 <= cgroup.usage <= cgroup.peak
        assert cgroup.pids() == [process.pid]
        assert Cgroup.of_pid(process.pid) == cgroup
        process.communicate(timeout=PATIENCE)
    eventually(lambda: cgroup.usage < 16 << 20)


def test_oom_control(memcg1: Path, hog: str) -> None:
    path = make(memcg1 / "web", "1M")
    cgroup = Cgroup(path)
    said = cgroup.oom_control()
    assert type(said) is OomControl
    assert (said.oom_kill_disable, said.under_oom, said.oom_kill) == (False, False, 0)
    assert repr(said) == "OomControl(oom_kill_disable=False, under_oom=False, oom_kill=0)"
    run_hog(hog, path)
    run_hog(hog, path)
    assert said.oom_kill == 0  # of one moment
    assert cgroup.oom_control().oom_kill == kills_of(path) == 2
    put(path / "memory.oom_control", "1")
    pid = start_hog(hog, path)
    eventually(lambda: control(path, "under_oom"))
    said = cgroup.oom_control()
    assert (said.oom_kill_disable, said.under_oom, said.oom_kill) == (True, True, 2)
    assert cgroup.kill() == 1  # also one that sleeps because memory ran out
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
    said = cgroup.oom_control()
    assert (said.oom_kill_disable, said.under_oom, said.oom_kill) == (True, False, 2)


def test_of_pid(memcg1: Path, root: Path, sleepers: Callable[[Path], int]) -> None:
    own = Cgroup.of_pid()
    assert own == Cgroup.of_pid(os.getpid())
    assert own.exists()
    assert os.getpid() in own.pids()
    inner = make(make(memcg1 / "a b") / os.fsdecode(b"\xff,:"))
    pid = sleepers(inner)
    assert Cgroup.of_pid(pid) == Cgroup(inner)
    put(memcg1 / "cgroup.procs", str(pid))
    assert Cgroup.of_pid(pid) == Cgroup(memcg1)
    put(root / "cgroup.procs", str(pid))
    assert Cgroup.of_pid(pid) == Cgroup(root)


def test_of_pid_after_a_move_of_its_own(memcg1: Path) -> None:
    code = """
import os, sys
from memcg_oom import Cgroup
cgroup = Cgroup(sys.argv[1])
open(cgroup.path + "/cgroup.procs", "w").write("0")
assert Cgroup.of_pid() == cgroup, Cgroup.of_pid()
assert cgroup.pids() == [os.getpid()]
"""
    assert run_python(code, make(memcg1 / "web")) == (0, "", "")


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31 - 1, 2**40, -1])
def test_of_pid_of_no_process(pid: int) -> None:
    error = refused(lambda: Cgroup.of_pid(pid))
    assert type(error) is ProcessLookupError
    assert error.errno == errno.ESRCH


def test_of_pid_of_one_that_has_ended(memcg1: Path) -> None:
    process = subprocess.Popen(["true"])
    assert process.wait(PATIENCE) == 0
    assert type(refused(lambda: Cgroup.of_pid(process.pid))) is ProcessLookupError


def test_of_pid_of_one_whose_cgroup_was_removed(memcg1: Path, root: Path) -> None:
    """A zombie is counted to the root, not to what is gone."""
    cgroup = make(memcg1 / "web")
    process = subprocess.Popen(["sleep", "1000"])
    put(cgroup / "cgroup.procs", str(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    remove(cgroup)
    assert Cgroup.of_pid(process.pid).exists()
    process.wait(PATIENCE)


# -- Cgroup.kill()


def test_kill(memcg1: Path, sleepers: Callable[[Path], int]) -> None:
    make(make(memcg1 / "web") / "below")
    make(memcg1 / "beside")
    cgroup = Cgroup(memcg1 / "web")
    assert cgroup.kill() == 0
    pids = [sleepers(memcg1 / "web") for _ in range(5)]
    spared = [sleepers(memcg1 / name) for name in (".", "web/below", "beside")]
    assert sorted(cgroup.pids()) == sorted(pids)
    before = fds()
    assert cgroup.kill() == 5
    assert fds() == before
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert cgroup.pids() == []
    assert cgroup.kill() == 0
    for pid in spared:
        os.kill(pid, 0)
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    assert Cgroup(memcg1 / "web" / "below").kill() == 1


def test_kill_counts_whom_it_signalled(
    memcg1: Path, sleepers: Callable[[Path], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three are gone before their turn, one of them with its pid used anew elsewhere."""
    cgroup = Cgroup.create(memcg1 / "web")
    gone, moved, stays = (sleepers(memcg1 / "web") for _ in range(3))
    really = os.pidfd_open

    def pidfd_open(pid: int, flags: int = 0) -> int:
        if pid == gone:
            put(memcg1 / "cgroup.procs", str(pid))
            raise ProcessLookupError(errno.ESRCH, "No such process")
        if pid == moved:
            put(memcg1 / "cgroup.procs", str(pid))
        return really(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert cgroup.kill() == 1
    os.waitid(os.P_PID, stays, os.WEXITED | os.WNOWAIT)
    assert sorted(Cgroup(memcg1).pids()) == sorted([gone, moved])


def test_kill_with_few_descriptors(
    memcg1: Path, sleepers: Callable[[Path], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that cannot be held at once are killed one after the other; where none can be held, it raises."""
    cgroup = Cgroup.create(memcg1 / "web")
    pids = [sleepers(memcg1 / "web") for _ in range(5)]
    before = fds()
    really, room = os.pidfd_open, 0

    def pidfd_open(pid: int, flags: int = 0) -> int:
        if len(fds()) - len(before) >= room:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with pytest.raises(OSError, match="Too many open files"):
        cgroup.kill()
    assert sorted(cgroup.pids()) == sorted(pids)
    room = 2
    assert cgroup.kill() == 5
    assert fds() == before
    assert cgroup.pids() == []


def test_kill_goes_on_where_all_that_were_listed_have_exited(
    memcg1: Path, sleepers: Callable[[Path], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that forks and exits is gone before it is looked at, and another is there in its place."""
    cgroup = Cgroup.create(memcg1 / "web")
    sleepers(memcg1 / "web")
    really, looks = builtins.open, itertools.count()

    def exited(file: str, *arguments: Any) -> Any:
        if str(file).endswith("/stat") and next(looks) == 0:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return really(file, *arguments)

    monkeypatch.setattr(builtins, "open", exited)
    assert cgroup.kill() == 1
    monkeypatch.undo()
    assert cgroup.pids() == []


# Processes that fork as fast as they can; their zombies are nobody's, and the last line says how it ended.
FORKERS = """
import ctypes, os, signal, sys, time
from memcg_oom import Cgroup

how, path, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
cgroup = Cgroup.create(path)
escaped = 0

def bear():
    for _ in range(5000):
        if os.fork() == 0:
            break
    time.sleep(1000)

def pass_on():
    while True:
        if os.fork():
            os._exit(0)

begun = time.monotonic()
for number in range(rounds):
    joined, join = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            try:
                open(path + "/cgroup.procs", "w").write("0")
                os.closerange(0, join + 1)  # of the pipes by which the outcome is told as well
                bear() if how == "bear" else pass_on()
            finally:
                os._exit(0)
    os.close(join)
    os.read(joined, 1)  # both are in it
    os.close(joined)
    while not cgroup.pids():
        pass
    time.sleep(0.002 * (number % 4))
    cgroup.kill()
    # Whoever was killed exits by itself; whoever was not forks or sleeps on, and is there at any deadline.
    deadline = time.monotonic() + 20
    while (left := cgroup.pids()) and time.monotonic() < deadline:
        time.sleep(0.001)
    if left:
        escaped = len(left)
        while cgroup.pids():
            cgroup.kill()
        break
    if time.monotonic() > begun + 20:  # on a busy machine thousands are there before the first is killed
        break
while True:
    try:
        cgroup.remove()
        break
    except OSError:
        time.sleep(0.01)
print(escaped, number + 1)
"""


@pytest.mark.parametrize("how", ["bear", "pass on"])
def test_kill_of_processes_that_fork(memcg1: Path, how: str, figure: dict[str, object]) -> None:
    """None of them is left, also none that appeared meanwhile."""
    code, out, err = run_python(FORKERS, how, memcg1 / "forkers", max(3, ROUNDS // 10))
    assert code == 0, err
    escaped, figure["rounds"] = map(int, out.split())
    assert not escaped


# -- Cgroups that go


def everything(cgroup: Cgroup) -> dict[str, Callable[[], object]]:
    """All that asks the kernel."""
    return {
        "children": cgroup.children,
        "usage": lambda: cgroup.usage,
        "peak": lambda: cgroup.peak,
        "limit": lambda: cgroup.limit,
        "limit=": lambda: setattr(cgroup, "limit", 1 << 20),
        "limit=None": lambda: setattr(cgroup, "limit", None),
        "oom_control": cgroup.oom_control,
        "pids": cgroup.pids,
        "kill": cgroup.kill,
        "remove": cgroup.remove,
    }


def test_all_of_a_removed_cgroup(memcg1: Path) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    for name, call in everything(cgroup).items():
        if name != "remove":
            call()
    cgroup.remove()
    for name, call in everything(cgroup).items():
        error = refused(call)
        assert type(error) is FileNotFoundError, name
        assert isinstance(error.filename, str), name
        assert error.filename.startswith(cgroup.path), name
    assert not cgroup.exists()
    assert (cgroup.name, cgroup.parent, cgroup.version) == ("web", Cgroup(memcg1), 1)
    assert repr(cgroup) == f"Cgroup('{memcg1}/web')"
    cgroup = Cgroup.create(cgroup)  # anew, under the same name
    assert cgroup.usage >= 0


@pytest.mark.parametrize("name", ["usage", "peak", "limit", "oom_control", "pids", "kill"])
def test_removed_between_the_opening_and_the_reading(memcg1: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says ENODEV then."""
    cgroup = Cgroup.create(memcg1 / "web")

    def removed_meanwhile(*arguments: Any) -> Any:
        file = builtins_open(*arguments)
        if Path(cgroup.path).exists():
            os.rmdir(cgroup.path)
        return file

    builtins_open = builtins.open
    monkeypatch.setattr("memcg_oom.cgroup.open", removed_meanwhile, raising=False)
    error = refused(everything(cgroup)[name])
    assert not cgroup.exists(), "the test did not get at the opening"
    assert type(error) is FileNotFoundError
    assert str(error.filename).startswith(cgroup.path)


def test_removed_between_the_opening_and_the_writing(memcg1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = Cgroup.create(memcg1 / "web")
    really = os.write

    def write(fd: int, data: bytes) -> int:
        os.rmdir(cgroup.path)
        return really(fd, data)

    monkeypatch.setattr(os, "write", write)
    error = refused(lambda: setattr(cgroup, "limit", 1 << 20))
    monkeypatch.undo()
    assert not cgroup.exists(), "the test did not get at the writing"
    assert type(error) is FileNotFoundError
    assert error.filename == f"{cgroup.path}/memory.limit_in_bytes"


FLICKER = """
import os, select, sys
print("flickers", flush=True)
while not select.select([0], [], [], 0)[0]:
    os.mkdir(sys.argv[1])
    os.rmdir(sys.argv[1])
"""


def test_while_a_cgroup_comes_and_goes(memcg1: Path, figure: dict[str, object]) -> None:
    """Naming it and listing it never fail; asking it something may find it gone, and nothing else."""
    path = memcg1 / "flicker"
    stays = make(memcg1 / "stays")
    seen = missed = 0
    with start_python(FLICKER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flickers\n"
        try:
            for _ in range(ROUNDS):
                cgroup = Cgroup(path)
                assert cgroup.parent == Cgroup(memcg1)
                children = Cgroup(memcg1).children()
                assert Cgroup(stays) in children
                assert set(children) <= {Cgroup(stays), cgroup}
                assert cgroup.exists() in (True, False)
                for name, call in everything(cgroup).items():
                    if name == "remove":
                        continue
                    try:
                        call()
                        seen += 1
                    except FileNotFoundError:
                        missed += 1
        finally:
            process.communicate(timeout=PATIENCE)
    figure.update(seen=seen, missed=missed)


def test_named_in_the_moment_of_its_removal(memcg1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(memcg1 / "web")
    really = os.stat

    def stat(name: Any, *arguments: Any, **options: Any) -> os.stat_result:
        status = really(name, *arguments, **options)
        if name == str(path):
            os.rmdir(path)
        return status

    monkeypatch.setattr(os, "stat", stat)
    cgroup = Cgroup(path)
    monkeypatch.undo()
    assert cgroup.path == str(path)
    assert not cgroup.exists()


# -- no memory cgroups


def test_outside_of_all_cgroups(tmp_path: Path, memcg1: Path) -> None:
    (tmp_path / "link").symlink_to(memcg1)
    for path in (
        "/",
        "/proc",
        "/dev/null",
        tmp_path,
        tmp_path / "missing",
        "/no/such/path",
        memcg1.parent.parent.parent,
    ):
        error = refused(lambda path=path: Cgroup(path))  # type: ignore[misc]
        assert type(error) is NotACgroupError, path
        assert isinstance(error, NotACgroupError)  # for the type checker
        assert error.filename == str(path)
        assert type(refused(lambda path=path: Cgroup.create(path))) is NotACgroupError  # type: ignore[misc]
    assert not (tmp_path / "missing").exists()


def test_in_cgroup_v2_where_the_memory_controller_is_on_v1(memcg1: Path) -> None:
    point = next((mount.point for mount in cgroup_mounts() if mount.version == 2), None)
    if point is None:
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    for path in (point, f"{point}/missing"):
        error = refused(lambda path=path: Cgroup(path))  # type: ignore[misc]
        assert type(error) is NotACgroupError
        assert isinstance(error, NotACgroupError)  # for the type checker
        assert error.filename == path
        assert type(refused(lambda path=path: Cgroup.create(path))) is NotACgroupError  # type: ignore[misc]


def test_in_another_v1_hierarchy(memcg1: Path) -> None:
    point = next((mount.point for mount in cgroup_mounts() if mount.version == 1 and not mount.memory), None)
    if point is None:
        pytest.skip("no other cgroup v1 hierarchy is mounted here")
    for path in (point, f"{point}/missing"):
        assert type(refused(lambda path=path: Cgroup(path))) is NotACgroupError  # type: ignore[misc]
        assert type(refused(lambda path=path: Cgroup.create(path))) is NotACgroupError  # type: ignore[misc]


def test_a_control_file_is_no_cgroup(memcg1: Path) -> None:
    cgroup = Cgroup(memcg1 / "memory.stat")
    assert not cgroup.exists()
    for name, call in everything(cgroup).items():
        assert type(refused(call)) is NotADirectoryError, name


def test_objects_of_another_interpreter_do_the_same(memcg1: Path) -> None:
    """Without assertions and under -W error: nothing hangs on either."""
    code = """
import sys
from memcg_oom import Cgroup, register
cgroup = Cgroup.create(sys.argv[1])
cgroup.limit = 1 << 20
with register(cgroup, "memory.oom_control") as eventfd:
    print(cgroup.limit, eventfd.read(), cgroup.pids(), cgroup.kill())
cgroup.remove()
"""
    assert run_python(code, memcg1 / "web", options=["-O", "-W", "error"]) == (0, "1048576 None [] 0\n", "")
    assert sys.flags.optimize == 0
