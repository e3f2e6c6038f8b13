"""Bad input, missing rights and exhausted descriptors: each its own error, and nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import random
import resource
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memcg_oom import (
    Cgroup,
    EventFD,
    Monitor,
    NotACgroupError,
    Oom,
    OomKill,
    Removed,
    RootCgroupError,
    Watch,
    register,
)
from memcg_oom.hierarchy import Hierarchy
from memcg_oom.mounts import cgroup_mounts
from tests.support import (
    PATIENCE,
    Ledger,
    eventually,
    kills_of,
    make,
    put,
    remainder,
    remove,
    run_hog,
    run_python,
    start_python,
    take_until,
    take_until_quiet,
    until_waiting,
)

ROUNDS = int(os.environ.get("MEMCG_OOM_ROUNDS", "500"))
MANY = 600  # more than two slices of a registration, so threads share it


@pytest.fixture(params=["by id", "by path"])
def way_to_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by path":
        monkeypatch.setattr(Hierarchy, "_can_open_by_id", lambda _: False)
    return str(request.param)


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refused(call: Callable[[], object], monitor: Monitor | None = None) -> Exception:
    """What a call raises; nothing of it is left, even as long as the exception itself is kept."""
    watched = monitor.watches if monitor is not None else ()
    before = fds()
    try:
        result = call()
    except Exception as error:
        assert fds() == before
        assert monitor is None or monitor.watches == watched
        return error
    pytest.fail(f"it was not refused: {result!r}")


def still_works(monitor: Monitor, watch: Watch, hog: str) -> None:
    """A kill in the watched cgroup is told, and nothing about any other."""
    kills = watch.kills
    run_hog(hog, Path(watch.cgroup))
    ledger = take_until(monitor, lambda ledger: ledger.kills[watch] and ledger.ooms[watch])
    assert set(ledger.by_watch) == {watch}
    assert watch.kills == kills + 1


# -- paths that are refused


class Bad(NamedTuple):
    path: str
    error: type[OSError]
    number: int


KINDS = [
    "missing",
    "missing parent",
    "a file",
    "below a file",
    "a file elsewhere",
    "a directory elsewhere",
    "missing elsewhere",
    "the root",
    "v2",
    "another v1 hierarchy",
]


def mounted(version: int, memory: bool) -> str | None:
    """Where another hierarchy is mounted."""
    return next((one.point for one in cgroup_mounts() if (one.version, one.memory) == (version, memory)), None)


def make_bad(kind: str, memcg1: Path, tmp_path: Path) -> Bad | None:
    """One bad path; None where this host cannot have one."""
    (tmp_path / "file").write_text("")
    path, error, number = {
        "missing": (memcg1 / "missing", FileNotFoundError, errno.ENOENT),
        "missing parent": (memcg1 / "missing" / "too", FileNotFoundError, errno.ENOENT),
        "a file": (memcg1 / "memory.oom_control", NotADirectoryError, errno.ENOTDIR),
        "below a file": (memcg1 / "memory.oom_control" / "x", NotADirectoryError, errno.ENOTDIR),
        "a file elsewhere": (tmp_path / "file", NotADirectoryError, errno.ENOTDIR),
        "a directory elsewhere": (tmp_path, NotACgroupError, errno.EINVAL),
        "missing elsewhere": (tmp_path / "missing", FileNotFoundError, errno.ENOENT),
        "the root": (memcg1.parent.parent, RootCgroupError, errno.EINVAL),
        "v2": (mounted(2, True), NotACgroupError, errno.EINVAL),
        "another v1 hierarchy": (mounted(1, False), NotACgroupError, errno.EINVAL),
    }[kind]
    return None if path is None else Bad(str(path), error, number)


@pytest.fixture(params=KINDS)
def bad(request: pytest.FixtureRequest, memcg1: Path, tmp_path: Path) -> Bad:
    made = make_bad(request.param, memcg1, tmp_path)
    if made is None:
        pytest.skip(f"{request.param}: not mounted here")
    return made


def check_bad(error: Exception, bad: Bad) -> None:
    assert type(error) is bad.error, repr(error)
    assert isinstance(error, OSError)  # for the type checker
    assert (error.errno, error.filename) == (bad.number, bad.path)
    assert bad.path in str(error)


def test_a_bad_path_in_an_empty_monitor(bad: Bad, memcg1: Path, hog: str, way_to_open: str) -> None:
    with Monitor() as monitor:
        check_bad(refused(lambda: monitor.watch(bad.path), monitor), bad)
        check_bad(refused(lambda: monitor.watch_many([bad.path]), monitor), bad)
        assert monitor.wait(0) == []
        still_works(monitor, monitor.watch(make(memcg1 / "good", "1M")), hog)


def test_a_bad_path_where_others_are_watched(bad: Bad, memcg1: Path, hog: str, way_to_open: str) -> None:
    with Monitor() as monitor:
        watch = monitor.watch(make(memcg1 / "good", "1M"))
        check_bad(refused(lambda: monitor.watch(bad.path), monitor), bad)
        still_works(monitor, watch, hog)
        assert monitor.watches == (watch,)


def test_a_bad_path_behind_a_good_one(bad: Bad, memcg1: Path, hog: str, way_to_open: str) -> None:
    good, other = make(memcg1 / "good", "1M"), make(memcg1 / "other", "1M")
    with Monitor() as monitor:
        check_bad(refused(lambda: monitor.watch_many([good, bad.path]), monitor), bad)
        check_bad(refused(lambda: monitor.watch_many([good, other, bad.path, other]), monitor), bad)
        assert monitor.watches == ()
        run_hog(hog, good)
        assert not take_until_quiet(monitor).by_watch
        watch = monitor.watch(good)
        assert kills_of(good) == 1  # before the watch
        still_works(monitor, watch, hog)


def test_register_says_the_same(bad: Bad) -> None:
    check_bad(refused(lambda: register(bad.path, "memory.oom_control")), bad)


def test_a_bad_path_among_many_that_threads_register(memcg1: Path, tmp_path: Path, hog: str) -> None:
    good = [make(memcg1 / f"g{number}") for number in range(MANY)]
    first = make(memcg1 / "first", "1M")
    with Monitor() as monitor:
        watch = monitor.watch(first)
        tried = 0
        for kind in KINDS:
            bad = make_bad(kind, memcg1, tmp_path)
            if bad is None:
                continue
            for place in (0, MANY // 4, MANY // 2, 3 * MANY // 4, MANY):
                paths = [*good[:place], bad.path, *good[place:]]
                check_bad(refused(lambda paths=paths: monitor.watch_many(paths), monitor), bad)  # type: ignore[misc]
                tried += 1
        assert tried >= 5 * 8
        still_works(monitor, watch, hog)
        watches = monitor.watch_many(good)
        assert [one.cgroup for one in watches] == list(map(str, good))
        assert monitor.watches == (watch, *watches)


def test_two_bad_ones_in_the_two_halves(memcg1: Path) -> None:
    """The one that comes first in the list is told."""
    good = [make(memcg1 / f"g{number}") for number in range(MANY)]
    with Monitor() as monitor:
        paths = [*good, memcg1 / "second"]
        paths.insert(10, memcg1 / "first")
        error = refused(lambda: monitor.watch_many(paths), monitor)
        assert isinstance(error, FileNotFoundError)
        assert error.filename == f"{memcg1}/first"


@pytest.mark.parametrize("path", ["", b"", "a\0b", b"\0", "/sys\0"])
def test_no_path_at_all(path: str | bytes, memcg1: Path) -> None:
    good = make(memcg1 / "good")
    with Monitor() as monitor:
        monitor.watch(good)
        for call in (
            lambda: monitor.watch(path),
            lambda: monitor.watch_many([good, path]),
            lambda: monitor.watch_many([good, path], skip_gone=True),
            lambda: register(path, "memory.oom_control"),
            lambda: Cgroup(path),
        ):
            assert type(refused(call, monitor)) is ValueError


@pytest.mark.parametrize("path", [None, 3, 1.5, object()], ids=repr)
def test_not_a_path(path: object, memcg1: Path) -> None:
    good = make(memcg1 / "good")
    with Monitor() as monitor:
        monitor.watch(good)
        for call in (
            lambda: monitor.watch(path),  # type: ignore[arg-type]
            lambda: monitor.watch_many([good, path]),  # type: ignore[list-item]
            lambda: monitor.watch_many(path),  # type: ignore[arg-type]
            lambda: register(path, "memory.oom_control"),  # type: ignore[arg-type]
            lambda: Cgroup(path),  # type: ignore[arg-type]
        ):
            assert type(refused(call, monitor)) is TypeError


def test_an_iterable_that_fails_on_the_way(memcg1: Path) -> None:
    def paths() -> Iterator[Path]:
        yield make(memcg1 / "good")
        raise LookupError

    with Monitor() as monitor:
        error = refused(lambda: monitor.watch_many(paths()), monitor)
        assert type(error) is LookupError
        assert monitor.watches == ()


# -- those that are gone


def test_skip_gone_leaves_out_the_missing_ones_in_order(memcg1: Path, hog: str, way_to_open: str) -> None:
    paths = [memcg1 / f"c{number}" for number in range(10)]
    for path in paths[1::2]:
        make(path, "1M")
    with Monitor() as monitor:
        watches = monitor.watch_many(paths, skip_gone=True)
        assert [watch.cgroup for watch in watches] == list(map(str, paths[1::2]))
        assert monitor.watches == tuple(watches)
        still_works(monitor, watches[-1], hog)
        assert monitor.watch_many(reversed(paths), skip_gone=True)[0].cgroup == str(paths[-1])


def test_skip_gone_where_all_are_gone(memcg1: Path, hog: str) -> None:
    paths = [memcg1 / f"c{number}" for number in range(MANY)]
    before = fds()
    with Monitor() as monitor:
        opened = fds()
        assert monitor.watch_many(paths, skip_gone=True) == []
        assert monitor.watch_many([], skip_gone=True) == monitor.watch_many([]) == []
        assert (fds(), monitor.watches) == (opened, ())
        watch = monitor.watch(make(memcg1 / "good", "1M"))
        opened = fds()
        assert monitor.watch_many(paths, skip_gone=True) == []
        assert (fds(), monitor.watches) == (opened, (watch,))
        still_works(monitor, watch, hog)
    assert fds() == before


def test_skip_gone_skips_nothing_else(memcg1: Path, tmp_path: Path) -> None:
    good = make(memcg1 / "good")
    with Monitor() as monitor:
        for kind in KINDS:
            bad = make_bad(kind, memcg1, tmp_path)
            if bad is None or bad.error is FileNotFoundError:
                continue
            paths = [memcg1 / "missing", good, bad.path]
            error = refused(lambda paths=paths: monitor.watch_many(paths, skip_gone=True), monitor)  # type: ignore[misc]
            check_bad(error, bad)


# Makes and removes one cgroup until its standard input ends.
FLICKER = """
import os, select, sys
print("flickers", flush=True)
while not select.select([0], [], [], 0)[0]:
    os.mkdir(sys.argv[1])
    os.rmdir(sys.argv[1])
"""


def test_a_cgroup_that_goes_while_it_is_registered(memcg1: Path, way_to_open: str, figure: dict[str, object]) -> None:
    path = memcg1 / "flicker"
    good = make(memcg1 / "good")
    caught = 0
    errors: Counter[tuple[int | None, bool]] = Counter()
    with start_python(FLICKER, path) as process, Monitor() as monitor:
        assert process.stdout is not None
        assert process.stdout.readline() == "flickers\n"
        try:
            monitor.watch(good)
            opened = fds()
            for number in range(ROUNDS):
                # Every third in a monitor that knows no hierarchy yet, every third behind a good one.
                with Monitor() as fresh:
                    chosen = fresh if number % 3 == 0 else monitor
                    before = fds()
                    try:
                        watches = chosen.watch_many([good, path] if number % 3 == 1 else [path])
                    except FileNotFoundError as error:
                        errors[error.errno, fds() == before] += 1
                    else:
                        caught += 1
                        assert watches[-1].cgroup == str(path)
                        for watch in watches:
                            watch.close()
            assert fds() == opened
            assert len(monitor.watches) == 1
            assert not take_until_quiet(monitor, quiet=0.1).by_watch  # all were closed
        finally:
            process.communicate(timeout=PATIENCE)
    assert caught + errors[errno.ENOENT, True] == ROUNDS, errors
    figure.update(caught=caught, missed=errors.total())


def test_register_while_the_cgroup_goes(memcg1: Path, figure: dict[str, object]) -> None:
    path = memcg1 / "flicker"
    caught = missed = 0
    with start_python(FLICKER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flickers\n"
        try:
            for _ in range(4 * ROUNDS):
                try:
                    register(path, "memory.oom_control").close()
                    caught += 1
                except FileNotFoundError:
                    missed += 1
        finally:
            process.communicate(timeout=PATIENCE)
    assert caught + missed == 4 * ROUNDS
    figure.update(caught=caught, missed=missed)


REMOVER = """
import os, sys
os.rmdir(sys.argv[1])
print("removing", flush=True)
for path in sys.argv[2:]:
    os.rmdir(path)
"""


def test_skip_gone_while_another_process_removes_them(
    memcg1: Path, way_to_open: str, figure: dict[str, object]
) -> None:
    paths = [make(memcg1 / f"c{number}") for number in range(300)]
    order = paths[:-50]  # the rest is removed by the test
    random.Random(1).shuffle(order)
    with Monitor() as monitor, start_python(REMOVER, *order) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "removing\n"
        watches = monitor.watch_many(paths, skip_gone=True)
        assert process.wait(PATIENCE) == 0
        for path in paths[-50:]:
            path.rmdir()
        places = [paths.index(Path(watch.cgroup)) for watch in watches]
        assert places == sorted(set(places))
        assert places[-50:] == list(range(250, 300))
        ledger = take_until(monitor, lambda ledger: ledger.removals.total() >= len(watches))
        take_until_quiet(monitor, ledger)
        assert all(ledger.removals[watch] == 1 for watch in watches)
        assert (ledger.ooms.total(), ledger.kills.total(), ledger.unresolved.total()) == (0, 0, 0)
        assert not ledger.other
        assert monitor.watches == ()
    figure.update(watched=len(watches), gone=300 - len(watches))


# -- missing rights

# As nobody, who has been told all modules before: the package may lie where nobody can read.
AS_NOBODY = """
import ctypes, os, sys
import memcg_oom, memcg_oom.monitor, memcg_oom.registration, memcg_oom.v1
good, bad = sys.argv[1:]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: older kernels let nobody else list the process's descriptors
with memcg_oom.Monitor() as monitor:
    for call in (
        lambda: monitor.watch(bad),
        lambda: monitor.watch_many([good, bad]),
        lambda: monitor.watch_many([good, bad], skip_gone=True),
        lambda: memcg_oom.register(bad, "memory.oom_control"),
    ):
        before = os.listdir("/proc/self/fd")
        try:
            call()
        except OSError as error:
            left = os.listdir("/proc/self/fd") != before
            print(type(error).__name__, error.errno, error.filename, left, len(monitor.watches))
        else:
            print("it was not refused")
    watch = monitor.watch(good)
    print("watching", flush=True)
    sys.stdin.read()
    while not watch.kills:
        monitor.wait(1)
    print("killed", watch.kills)
"""


@pytest.mark.parametrize("file", ["cgroup.event_control", "memory.oom_control"])
def test_no_permission(memcg1: Path, hog: str, file: str) -> None:
    good, bad = make(memcg1 / "good", "1M"), make(memcg1 / "bad")
    (bad / file).chmod(0)
    (good / "cgroup.event_control").chmod(0o222)
    with start_python(AS_NOBODY, good, bad) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        if lines[-1] == "watching\n":
            run_hog(hog, good)
        out, err = remainder(process)
    assert process.returncode == 0, err
    assert lines[:4] == [f"PermissionError {errno.EACCES} {bad}/{file} False 0\n"] * 4
    assert (lines[4], out) == ("watching\n", "killed 1\n")


def test_no_permission_to_enter_the_directory_above(memcg1: Path, hog: str) -> None:
    good, above = make(memcg1 / "good", "1M"), make(memcg1 / "above")
    bad = make(above / "bad")
    above.chmod(0)
    (good / "cgroup.event_control").chmod(0o222)
    with start_python(AS_NOBODY, good, bad) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        if lines[-1] == "watching\n":
            run_hog(hog, good)
        out, err = remainder(process)
    assert process.returncode == 0, err
    assert lines[:4] == [f"PermissionError {errno.EACCES} {bad} False 0\n"] * 4
    assert (lines[4], out) == ("watching\n", "killed 1\n")


READ_ONLY = """
import os, sys
from memcg_oom import Monitor, register
cgroup = sys.argv[1]
with Monitor() as monitor:
    for call in (
        lambda: monitor.watch(cgroup),
        lambda: monitor.watch_many([cgroup], skip_gone=True),
        lambda: register(cgroup, "memory.oom_control"),
    ):
        before = os.listdir("/proc/self/fd")
        try:
            call()
        except OSError as error:
            left = os.listdir("/proc/self/fd") != before
            print(type(error).__name__, error.errno, error.filename, "read-only" in str(error), left, monitor.watches)
        else:
            print("it was not refused")
"""


def test_a_read_only_mount(memcg1: Path, tmp_path: Path) -> None:
    tried = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"mount namespaces cannot be made here: {tried.stderr.strip()}")
    make(memcg1 / "web")
    setup = f'mount --bind {memcg1} {tmp_path} && mount -o remount,bind,ro {tmp_path} && exec "$@"'
    code, out, err = run_python(READ_ONLY, tmp_path / "web", wrapper=["unshare", "--mount", "sh", "-c", setup, "sh"])
    assert code == 0, err
    expected = f"OSError {errno.EROFS} {tmp_path}/web/cgroup.event_control True False ()\n"
    assert out == expected * 3


# -- no descriptors left

# Watches the first, then runs out of descriptors in the middle of the others, then of all.
OUT_OF_FDS = """
import errno, os, resource, sys
from memcg_oom import Monitor, Oom, OomKill, register
from memcg_oom.hierarchy import Hierarchy

way, room, first, *others = sys.argv[1:]
if way == "by path":
    Hierarchy._can_open_by_id = lambda _: False
before_all = os.listdir("/proc/self/fd")
monitor = Monitor()
watch = monitor.watch(first)
before = os.listdir("/proc/self/fd")
limit = max(map(int, before)) + 1 + int(room)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

def fails(call):
    try:
        call()
    except OSError as error:
        return error
    sys.exit("it was not refused")

for _ in range(3):
    error = fails(lambda: monitor.watch_many(others))
    assert error.errno == errno.EMFILE, error
    assert error.filename in others, error
    assert "RLIMIT_NOFILE" in str(error), error
    assert os.listdir("/proc/self/fd") == before, "descriptors are left"
    del error
assert monitor.watches == (watch,)
print("out of descriptors in the middle", flush=True)

def take_kill(number):
    sys.stdin.readline()
    ooms = watch.ooms
    while watch.kills < number or watch.ooms == ooms:
        for event in monitor.wait(1):
            assert event.watch is watch and type(event) in (Oom, OomKill), event
    assert watch.kills == number, watch

take_kill(1)
filler = []
while True:
    try:
        filler.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        assert error.errno == errno.EMFILE
        break
for call, named in (
    (lambda: monitor.watch(others[0]), True),
    (lambda: monitor.watch_many(others[:10]), True),
    (lambda: monitor.watch_many(others), True),
    (lambda: register(others[0], "memory.oom_control"), False),
    (Monitor, False),
):
    error = fails(call)
    assert error.errno == errno.EMFILE, error
    assert not named or error.filename in others, error
    del error
    try:
        os.close(os.dup(0))
        sys.exit("a descriptor was closed that was not opened")
    except OSError:
        pass
assert monitor.watches == (watch,)
print("no descriptor left", flush=True)
take_kill(2)
print("and once more", flush=True)
take_kill(3)
for fd in filler:
    os.close(fd)
while monitor.wait(1):
    pass
assert os.listdir("/proc/self/fd") == before, "descriptors are left"
monitor.watch(others[0]).close()
assert os.listdir("/proc/self/fd") == before, "descriptors are left"
monitor.close()
assert os.listdir("/proc/self/fd") == before_all, "descriptors are left"
print("good", flush=True)
"""


@pytest.mark.parametrize(("count", "room"), [(60, 25), (MANY, 300)], ids=["one thread", "several threads"])
@pytest.mark.parametrize("way", ["by id", "by path"])
def test_no_descriptors_left(memcg1: Path, hog: str, way: str, count: int, room: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < room + 50:
        pytest.skip(f"the hard limit of descriptors is below {room + 50}")
    first = make(memcg1 / "first", "1M")
    others = [make(memcg1 / f"c{number}") for number in range(count)]
    with start_python(OUT_OF_FDS, way, room, first, *others) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        for stage in ("out of descriptors in the middle", "no descriptor left", "and once more"):
            line = process.stdout.readline()
            if line != f"{stage}\n":
                pytest.fail(f"{line!r} instead of {stage!r}: {process.communicate(timeout=PATIENCE)}")
            run_hog(hog, first)
            process.stdin.write("\n")
            process.stdin.flush()
        out, err = remainder(process)
    assert (process.returncode, out) == (0, "good\n"), err


# -- paths that look odd

DEEP = "/".join(f"{level}" for level in range(40))
NAMES = {
    "spaces": b" a  b ",
    "commas": b"a,b,,c",
    "quotes and backslashes": b'it\'s "q" \\040 $HOME `x` %s {x}',
    "tab and escape": b"a\tb\x1b[31m",
    "UTF-8": "größe-日本-🐧".encode(),
    "not UTF-8": b"raw-\xff\xfe\x80",
    "255 bytes": b"x" * 255,
    "255 bytes of UTF-8": "é".encode() * 127 + b"x",
    "dots": b"...",
    "a dash": b"-rf",
    "40 levels": DEEP.encode(),
    "40 levels of 90 bytes": b"/".join(b"%02d" % level + b"y" * 88 for level in range(40)),
}


def told_under(monitor: Monitor, watch: Watch, cgroup: Path, hog: str) -> Ledger:
    """The name under which a real kill is told."""
    ledger = kill_in(monitor, watch, cgroup, hog)
    assert {event.cgroup for event in ledger.by_watch[watch]} == {watch.cgroup} == {str(cgroup)}
    return ledger


def kill_in(monitor: Monitor, watch: Watch, cgroup: Path, hog: str) -> Ledger:
    run_hog(hog, cgroup)
    ledger = take_until(monitor, lambda ledger: ledger.kills[watch] and ledger.ooms[watch])
    assert sorted(type(event).__name__ for event in ledger.by_watch[watch]) == ["Oom", "OomKill"]
    return ledger


@pytest.mark.parametrize("name", NAMES)
def test_odd_names(memcg1: Path, hog: str, name: str, way_to_open: str) -> None:
    cgroup = memcg1
    for part in os.fsdecode(NAMES[name]).split("/"):
        cgroup = make(cgroup / part)
    put(cgroup / "memory.limit_in_bytes", "1M")
    forms: list[str | bytes | os.PathLike[str]] = [str(cgroup), os.fsencode(cgroup), cgroup, Cgroup(cgroup)]
    with Monitor() as monitor:
        watches = [monitor.watch(form) for form in forms]
        watches += monitor.watch_many(forms)
        eventfds = [register(form, "memory.oom_control") for form in forms]
        try:
            run_hog(hog, cgroup)
            assert all(eventfd.wait(PATIENCE) for eventfd in eventfds)
        finally:
            for eventfd in eventfds:
                eventfd.close()
        ledger = take_until(monitor, lambda ledger: all(ledger.kills[one] and ledger.ooms[one] for one in watches))
        remove(cgroup)
        take_until(monitor, lambda ledger: all(ledger.removals[one] for one in watches), ledger)
    for watch in watches:
        assert {type(event) for event in ledger.by_watch[watch]} == {Oom, OomKill, Removed}
        assert {event.cgroup for event in ledger.by_watch[watch]} == {watch.cgroup} == {str(cgroup)}
        assert ledger.kills[watch] == 1


def test_paths_that_are_not_normal(memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch, way_to_open: str) -> None:
    cgroup = make(memcg1 / "web", "1M")
    make(memcg1 / "other")
    monkeypatch.chdir(memcg1)
    for path in (
        f"{memcg1}/other/../web",
        f"{memcg1}/web/",
        f"{memcg1}//web///",
        f"/{memcg1}/./web/.",
        "web",
        "./web/",
        "other/../web",
        f"../{memcg1.name}/web",
        b"web",
        Path("web"),
        Cgroup("web"),
    ):
        with Monitor() as monitor:
            told_under(monitor, monitor.watch(path), cgroup, hog)
        with register(path, "memory.oom_control") as eventfd:
            run_hog(hog, cgroup)
            assert eventfd.wait(PATIENCE)
    monkeypatch.chdir(cgroup)
    with Monitor() as monitor:
        watch = monitor.watch(".")
        monkeypatch.chdir("/")  # where it is, is not asked again
        told_under(monitor, watch, cgroup, hog)


def test_a_current_directory_that_was_removed(memcg1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make(memcg1 / "here")
    monkeypatch.chdir(here)
    with Monitor() as monitor:
        here.rmdir()
        for path in ("x", "."):
            error = refused(lambda path=path: monitor.watch(path), monitor)  # type: ignore[misc]
            assert type(error) is FileNotFoundError


def test_a_symbolic_link_to_a_cgroup(memcg1: Path, hog: str, tmp_path: Path, way_to_open: str) -> None:
    cgroup = make(memcg1 / "web", "1M")
    link = tmp_path / "link"
    link.symlink_to(cgroup)
    with Monitor() as monitor:
        watch = monitor.watch(link)
        ledger = kill_in(monitor, watch, cgroup, hog)
        assert {Path(event.cgroup).resolve() for event in ledger.by_watch[watch]} == {cgroup}
        with register(link, "memory.oom_control") as eventfd:
            kill_in(monitor, watch, cgroup, hog)
            assert eventfd.wait(PATIENCE)
        link.unlink()  # the watch is of the cgroup
        ledger = kill_in(monitor, watch, cgroup, hog)
        assert {event.cgroup for event in ledger.by_watch[watch]} == {str(cgroup)}
        remove(cgroup)
        ledger = take_until(monitor, lambda ledger: ledger.removals[watch])
        assert ledger.by_watch[watch][-1].cgroup == str(cgroup)


def test_a_symbolic_link_is_told_under_one_name(
    memcg1: Path, hog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same whether or not files can be opened by id."""
    cgroup = make(memcg1 / "web", "1M")
    link = tmp_path / "link"
    link.symlink_to(cgroup)
    with Monitor() as by_id:
        watch = by_id.watch(link)
        with monkeypatch.context() as patch, Monitor() as by_path:
            patch.setattr(Hierarchy, "_can_open_by_id", lambda _: False)
            assert by_path.watch(link).cgroup == watch.cgroup


def test_symbolic_links_that_lead_nowhere(memcg1: Path, tmp_path: Path) -> None:
    dangling, loop, outside = tmp_path / "dangling", tmp_path / "loop", tmp_path / "outside"
    dangling.symlink_to(memcg1 / "missing")
    loop.symlink_to(loop)
    outside.symlink_to(tmp_path)
    with Monitor() as monitor:
        for _ in range(2):  # the second time where a hierarchy is known
            assert type(refused(lambda: monitor.watch(dangling), monitor)) is FileNotFoundError
            error = refused(lambda: monitor.watch(loop), monitor)
            assert isinstance(error, OSError)
            assert (error.errno, error.filename) == (errno.ELOOP, str(loop))
            assert type(refused(lambda: monitor.watch(outside), monitor)) is NotACgroupError
            monitor.watch(memcg1)


def test_a_path_that_is_too_long(memcg1: Path) -> None:
    path = f"{memcg1}{'/' + 'y' * 200}" * 30
    with Monitor() as monitor:
        for _ in range(2):  # the second time where a hierarchy is known
            error = refused(lambda: monitor.watch(path), monitor)
            assert isinstance(error, OSError)
            assert (error.errno, error.filename) == (errno.ENAMETOOLONG, path)
            monitor.watch(memcg1)


def test_a_name_that_is_too_long(memcg1: Path) -> None:
    """This file system only says that there is none such."""
    with Monitor() as monitor:
        error = refused(lambda: monitor.watch(memcg1 / ("x" * 256)), monitor)
        assert isinstance(error, OSError)
        assert error.errno in (errno.ENOENT, errno.ENAMETOOLONG)
        assert error.filename == f"{memcg1}/{'x' * 256}"


# -- numbers that are refused


@pytest.mark.parametrize("timeout", [-1, -1e-9, -math.inf, math.nan])
def test_a_timeout_that_is_no_time(timeout: float, memcg1: Path, hog: str) -> None:
    with Monitor() as monitor:
        watch = monitor.watch(make(memcg1 / "good", "1M"))
        assert type(refused(lambda: monitor.wait(timeout), monitor)) is ValueError
        still_works(monitor, watch, hog)
        with register(watch.cgroup, "memory.oom_control") as eventfd:
            assert type(refused(lambda: eventfd.wait(timeout))) is ValueError


@pytest.mark.parametrize("timeout", ["1", b"1", [], object()], ids=repr)
def test_a_timeout_that_is_no_number(timeout: object, memcg1: Path) -> None:
    with Monitor() as monitor, register(make(memcg1 / "good"), "memory.oom_control") as eventfd:
        assert type(refused(lambda: monitor.wait(timeout), monitor)) is TypeError  # type: ignore[arg-type]
        assert type(refused(lambda: eventfd.wait(timeout))) is TypeError  # type: ignore[arg-type]
        assert monitor.wait(0) == []


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e10, 2**31])
def test_a_timeout_that_is_for_ever(timeout: float) -> None:
    with Monitor() as monitor:
        results: list[object] = []

        def wait() -> None:
            try:
                results.append(monitor.wait(timeout))
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        eventually(lambda: results or (monitor._waiting))
        if not results:
            until_waiting(monitor, thread.native_id)
        monitor.wake()
        thread.join(PATIENCE)
        assert results == [[]]


@pytest.mark.parametrize("name", ["settle", "linger"])
@pytest.mark.parametrize("period", [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_a_period_that_is_no_time(name: str, period: float) -> None:
    arguments: dict[str, Any] = {name: period}
    error = refused(lambda: Monitor(**arguments))
    assert type(error) is ValueError
    assert name in str(error)


@pytest.mark.parametrize("name", ["settle", "linger"])
def test_a_period_that_is_no_number(name: str) -> None:
    for period in ("1", None, object()):
        arguments: dict[str, Any] = {name: period}
        assert type(refused(lambda: Monitor(**arguments))) is TypeError  # noqa: B023 - called at once


@pytest.mark.parametrize("name", ["settle", "linger"])
@pytest.mark.parametrize("period", [1e6, 1e9, 1e10, 1e18, 1e300])
def test_a_period_of_ages(name: str, period: float, memcg1: Path, hog: str) -> None:
    """It is refused as a number, or else it works."""
    arguments: dict[str, Any] = {name: period}
    try:
        monitor = Monitor(**arguments)
    except ValueError:
        return
    with monitor:
        cgroup = make(memcg1 / "good", "1M")
        still_works(monitor, monitor.watch(cgroup), hog)
        remove(cgroup)
        monitor.wait(1)


# -- after the end


def test_after_close(memcg1: Path) -> None:
    cgroup = make(memcg1 / "good")
    monitor = Monitor()
    watch = monitor.watch(cgroup)
    iterator = iter(monitor)
    monitor.close()

    def enter() -> None:
        with monitor:
            pass

    calls: dict[str, Callable[[], object]] = {
        "watch": lambda: monitor.watch(cgroup),
        "watch a missing one": lambda: monitor.watch(memcg1 / "missing"),
        "watch_many": lambda: monitor.watch_many([cgroup]),
        "watch_many of none": lambda: monitor.watch_many([]),
        "watch_many of many": lambda: monitor.watch_many([cgroup] * MANY),
        "watch_tree": lambda: monitor.watch_tree(cgroup),
        "watch_usage": lambda: monitor.watch_usage(cgroup, "1M"),
        "watch_pressure": lambda: monitor.watch_pressure(cgroup, "low"),
        "watch_stall": lambda: monitor.watch_stall("/proc/pressure/memory", "some", 1, 2),
        "wait": monitor.wait,
        "wait(0)": lambda: monitor.wait(0),
        "wake": monitor.wake,
        "fileno": monitor.fileno,
        "watches": lambda: monitor.watches,
        "iter": lambda: iter(monitor),
        "aiter": lambda: aiter(monitor),
        "with": enter,
    }
    for name, call in calls.items():
        error = refused(call)
        assert type(error) is ValueError, name
        assert "closed" in str(error), name
    assert next(iterator, "the end") == "the end"

    async def iterate() -> list[object]:
        return [event async for event in monitor]

    assert type(refused(lambda: asyncio.run(iterate()))) is ValueError
    before = fds()
    monitor.close()
    assert monitor.closed
    assert "closed" in repr(monitor)
    assert watch.closed
    assert "closed" in repr(watch)
    watch.close()
    watch.close()
    assert fds() == before


def test_a_watch_that_is_closed_after_its_monitor_closes_nobody_elses_file(memcg1: Path) -> None:
    monitor = Monitor()
    watches = monitor.watch_many([make(memcg1 / f"c{number}") for number in range(10)])
    monitor.close()
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]  # the numbers of what was closed
    try:
        for watch in watches:
            watch.close()
        monitor.close()
        for fd in files:
            os.fstat(fd)
    finally:
        for fd in files:
            os.close(fd)


def test_public_names_of_the_monitor_are_all_tried() -> None:
    """Whatever is added to it has to be tried after close() as well."""
    names = {name for name in vars(Monitor) if not name.startswith("_")}
    watching = {"watch", "watch_many", "watch_tree", "watch_usage", "watch_pressure", "watch_stall", "watches"}
    assert names == watching | {"fileno", "wait", "wake", "closed", "close"}
    names = {name for name in vars(EventFD) if not name.startswith("_")}
    assert names == {"fileno", "read", "wait", "closed", "close"}
