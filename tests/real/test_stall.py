"""Pressure stall information, against the real kernel: the host's, and that of v2 cgroups.

Those need no memory controller, so a hybrid host has them too, in its v2 hierarchy; the memory is short in a cgroup of
whichever version has the controller.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import memcg_oom.stalls
from memcg_oom import (
    Degraded,
    Event,
    Monitor,
    NotACgroupError,
    OomKill,
    Removed,
    Stall,
    UnsupportedError,
)
from memcg_oom._native import lib
from memcg_oom.mounts import cgroup_mounts
from memcg_oom.stalls import HOST
from tests.support import (
    PATIENCE,
    eventually,
    is_v2,
    large_file,
    make,
    put,
    readable,
    reading,
    remainder,
    remove,
    run_hog,
    run_python,
)

MB = 1 << 20


def privileged() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    capabilities = next(line for line in lines if line.startswith("CapEff:"))
    return bool(int(capabilities.split()[1], 16) >> 24 & 1)


WINDOW = 0.5 if privileged() else 2.0  # seconds: the least that this kernel takes from us
STALL = 0.001


@pytest.fixture(autouse=True)
def _psi() -> None:
    try:
        os.close(os.open(HOST, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"{HOST}: {error.strerror}")


@pytest.fixture
def psi(memcg: Path) -> Iterator[Path]:
    """A v2 cgroup, beside the one whose memory is short, or the same."""
    if is_v2(memcg):
        yield make(memcg / "psi")
        return
    mount = next((mount.point for mount in cgroup_mounts() if mount.version == 2 and not mount.read_only), None)
    if mount is None:
        pytest.skip("no cgroup v2 is mounted")
    path = Path(mount) / f"memcg_oom_test_{uuid.uuid4().hex[:12]}"
    path.mkdir()
    make(memcg / "psi", "16M")
    yield path
    if path.exists():
        remove(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, playground: Path) -> Path:
    path = large_file(tmp_path_factory.mktemp("file"))
    if not (path.stat().st_size or is_v2(playground)):
        pytest.skip("no disk: files are in memory here, and nobody waits for one")
    return path


@contextmanager
def load(hog: str, memcg: Path, psi: Path, file: Path) -> Iterator[None]:
    """Processes that wait for memory."""
    enter = 'echo 0 > "$1/cgroup.procs"; exec "$2" "$3" "$4"'
    command: list[str | Path] = ["sh", "-c", enter, "sh", psi, hog, memcg / "psi"]
    if is_v2(memcg):
        # They are put to sleep when they go over memory.high (mem_cgroup_handle_over_high()).
        put(psi / "memory.high", "2M")
        command.append(str(1 << 30))
    else:
        # They read more than fits, and so wait for what was just taken from them.
        command.append(file)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(reading(file, command))
        yield


def take(monitor: Monitor, count: int) -> list[Stall]:
    events: list[Stall] = []
    while len(events) < count:
        more = monitor.wait(60)
        assert more, f"no stall came after {events}"
        events += [event for event in more if isinstance(event, Stall)]
    return events


def test_a_cgroups_stalls_are_told(memcg: Path, psi: Path, hog: str, file: Path, figure: dict[str, object]) -> None:
    with Monitor() as monitor:
        some = monitor.watch_stall(psi, "some", STALL, WINDOW)
        full = monitor.watch_stall(psi, "full", STALL, WINDOW)
        (psi / "quiet").mkdir()
        quiet = monitor.watch_stall(psi / "quiet", "some", STALL, WINDOW)  # nobody is in there
        other = monitor.watch_stall(psi.parent if not is_v2(memcg) else HOST, "some", STALL, WINDOW)
        assert set(monitor.watches) == {some, full, quiet, other}
        assert (some.kind, some.stall, some.window) == ("some", STALL, WINDOW)
        events: list[Stall] = []
        with load(hog, memcg, psi, file):
            while len({event.watch for event in events}) < 3 or len(events) < 6:
                events += take(monitor, 1)
        assert {event.watch for event in events} == {some, full, other}
        assert {(event.cgroup, event.kind) for event in events if event.watch is full} == {(str(psi), "full")}
        figure["events"] = len(events)
        (psi / "quiet").rmdir()


def test_ctrl_c_right_behind_a_read_loses_nothing(
    memcg: Path, psi: Path, hog: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def eventfd_read(self, fd: int) -> int:
            os.eventfd_read(fd)
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

    with Monitor() as monitor:
        monitor.watch_stall(psi, "some", STALL, WINDOW)
        with load(hog, memcg, psi, file):
            with monkeypatch.context() as patch:
                patch.setattr(memcg_oom.stalls, "os", Interrupted())
                with pytest.raises(KeyboardInterrupt):
                    monitor.wait(PATIENCE)
            assert readable(monitor.fileno())
            assert isinstance(monitor.wait(PATIENCE)[0], Stall)
            take(monitor, 1)  # and it goes on


def test_any_loop_can_own_it(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    """To poll a trigger takes its event away: whoever polls the monitor must not take what the monitor has to tell."""
    told: list[str] = []
    with Monitor() as monitor:
        watch = monitor.watch_stall(psi, "some", STALL, WINDOW)
        with load(hog, memcg, psi, file):
            for _ in range(2):
                # An epoll set around the monitor's own, and a poll that looks at it again and again.
                with select.epoll() as outer:
                    outer.register(monitor.fileno(), select.EPOLLIN)
                    while not (outer.poll(60) and readable(monitor.fileno()) and (events := monitor.wait(0))):
                        pass
                told += [type(event).__name__ for event in events]

            async def first() -> Event:
                async for event in monitor:
                    return event
                raise AssertionError

            told.append(type(asyncio.run(asyncio.wait_for(first(), 60))).__name__)
        assert told == ["Stall"] * 3
        assert not watch.closed


def test_the_hosts_stalls(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    with Monitor() as monitor:
        watch = monitor.watch_stall(HOST, "some", STALL, WINDOW)
        with load(hog, memcg, psi, file):
            (event, *_) = take(monitor, 1)
        assert (event.cgroup, event.watch, event.kind, event.count) == (HOST, watch, "some", 1)


def test_the_command_tells_of_them(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "memcg_oom",
        "watch",
        "--json",
        "--count",
        "1",
        "--stall",
        f"some:{STALL}/{WINDOW:g}",
    ]
    with load(hog, memcg, psi, file):
        done = subprocess.run([*command, HOST], check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert '"event": "stall"' in done.stdout
    assert f'"cgroup": "{HOST}"' in done.stdout
    assert "watching 0 cgroups, and for 1 alarm, Ctrl-C" in done.stderr


def test_the_command_tells_once_of_a_removal(memcg: Path, psi: Path) -> None:
    """Here of one that has stalls alone, where the memory controller is on v1."""
    stalls = ["--stall", f"some:{STALL}/{WINDOW:g}", "--stall", f"full:{STALL}/{WINDOW:g}"]
    command = [sys.executable, "-m", "memcg_oom", "watch", "--timeout", "3", *stalls, str(psi)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "for 2 alarms" in process.stderr.readline()
        remove(psi)
        out, _ = remainder(process)
    assert out.count("removed") == out.count("\n") == 1


def test_beside_ooms(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    """One monitor, one descriptor, everything."""
    victim = make(memcg / "victim", "1M")
    with Monitor() as monitor:
        stall = monitor.watch_stall(psi, "some", STALL, WINDOW)
        watch = monitor.watch(victim)
        with load(hog, memcg, psi, file):
            run_hog(hog, victim)
            seen: set[type[Event]] = set()
            while not {Stall, OomKill} <= seen:
                seen |= {type(event) for event in monitor.wait(PATIENCE)}
        assert set(monitor.watches) == {stall, watch}


def test_a_removed_one(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    with Monitor() as monitor:
        watches = [monitor.watch_stall(psi, kind, STALL, WINDOW) for kind in ("some", "full")]
        with load(hog, memcg, psi, file):
            take(monitor, 2)
        remove(psi)
        events: list[Event] = []
        while not all(watch.removed for watch in watches):
            events += monitor.wait(PATIENCE)
        removed = [event for event in events if isinstance(event, Removed)]
        assert {event.watch for event in removed} == set(watches)
        assert len(removed) == 2
        assert [type(event) for event in events][-2:] == [Removed, Removed]
        assert monitor.watches == ()
        assert monitor.wait(0.1) == []
        psi.mkdir()  # a namesake is somebody else
        assert monitor.wait(0.1) == []


def test_nothing_is_left_behind(psi: Path) -> None:
    with Monitor() as monitor:
        before = os.listdir("/proc/self/fd")
        first = monitor.watch_stall(psi, "some", STALL, WINDOW)
        first.close()
        held = len(os.listdir("/proc/self/fd"))
        assert held == len(before) + 1  # the eventfd that all share
        for _ in range(50):
            watches = [monitor.watch_stall(psi, "some", STALL, WINDOW) for _ in range(10)]
            for watch in watches:
                watch.close()
                watch.close()
            assert monitor.wait(0) == []
        assert len(os.listdir("/proc/self/fd")) == held
        assert monitor._stalls.by_key == {}
        # What was cancelled ends when a worker of the kernel has got to it.
        eventually(lambda: monitor.wait(0) == [] and monitor._stalls._ended == {})


def test_one_that_is_closed_while_it_has_something_to_tell(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    """What the kernel has told already names the memory of the request, which must not be gone before it was taken."""
    with Monitor() as monitor:
        watch = monitor.watch_stall(psi, "some", STALL, WINDOW)
        with load(hog, memcg, psi, file):
            assert readable(monitor.fileno(), PATIENCE)
            watch.close()
        assert list(monitor._stalls._ended.values()) == [watch]
        assert monitor.wait(0) == []
        eventually(lambda: monitor.wait(0) == [] and monitor._stalls._ended == {})


def test_a_monitor_that_is_closed_ends_its_triggers(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    monitor = Monitor()
    watch = monitor.watch_stall(psi, "some", STALL, WINDOW)
    with load(hog, memcg, psi, file):
        take(monitor, 1)
        monitor.close()
    assert watch.closed
    watch.close()
    with pytest.raises(ValueError, match="closed"):
        monitor.watch_stall(psi, "some", STALL, WINDOW)
    gc.collect()
    assert repr(watch).startswith("<StallWatch ")


FORK = """
import os, sys
from memcg_oom import Monitor
monitor = Monitor()
watch = monitor.watch_stall(sys.argv[1], "some", 0.001, 2)
pid = os.fork()
if pid == 0:
    assert monitor.closed and watch.closed
    own = Monitor()
    own.watch_stall(sys.argv[1], "some", 0.001, 2)
    own.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert not watch.closed
print("ready", flush=True)
while not monitor.wait(60):
    pass
print("told")
"""


def test_a_forked_child_does_not_end_it(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    with load(hog, memcg, psi, file):
        assert run_python(FORK, psi) == (0, "ready\ntold\n", "")


def test_watched_from_another_thread(memcg: Path, psi: Path, hog: str, file: Path) -> None:
    with Monitor() as monitor:
        taken: list[Stall] = []
        reader = threading.Thread(target=lambda: taken.extend(take(monitor, 1)))
        reader.start()
        monitor.watch_stall(psi, "some", STALL, WINDOW)
        with load(hog, memcg, psi, file):
            reader.join(PATIENCE)
        assert taken


@pytest.mark.parametrize(
    ("kind", "stall", "window", "words"),
    [
        ("any", 0.1, 2, "kind must be one of some, full"),
        ("some", 0, 2, "stall must be"),
        ("some", -1, 2, "stall must be"),
        ("some", 2.1, 2, "stall must be"),
        ("some", 1e-9, 2, "at least a microsecond"),
        ("some", float("nan"), 2, "stall must be"),
        ("some", 0.1, 0, "window must be"),
        ("some", 0.1, 10.1, "window must be"),
        ("some", 0.1, float("nan"), "window must be"),
        ("some", 0.1, float("inf"), "window must be"),
    ],
)
def test_what_is_no_trigger(psi: Path, kind: str, stall: float, window: float, words: str) -> None:
    with Monitor() as monitor:
        with pytest.raises(ValueError, match=words):
            monitor.watch_stall(psi, kind, stall, window)
        assert monitor.watches == ()


def release() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def test_the_kernels_own_rule_is_in_the_error(psi: Path) -> None:
    with Monitor() as monitor:
        if release() >= (6, 4) and privileged():
            monitor.watch_stall(psi, "some", 0.01, 0.1)
            return
        words = "at least 0.5 seconds" if release() < (6, 4) else "2, 4, 6, 8 or 10 seconds"
        with pytest.raises(OSError, match=words) as caught:
            monitor.watch_stall(psi, "some", 0.01, 0.1)
        assert caught.value.errno == errno.EINVAL
        assert monitor.watches == ()


def test_where_there_is_no_stall_to_be_told_of(memcg: Path, psi: Path, tmp_path: Path) -> None:
    with Monitor() as monitor:
        if not is_v2(memcg):
            with pytest.raises(UnsupportedError, match="watch_pressure"):
                monitor.watch_stall(memcg, "some", STALL, WINDOW)
        with pytest.raises(NotACgroupError, match=HOST):
            monitor.watch_stall(tmp_path, "some", STALL, WINDOW)
        with pytest.raises(FileNotFoundError):
            monitor.watch_stall(psi / "none", "some", STALL, WINDOW)
        with pytest.raises(NotADirectoryError):
            monitor.watch_stall(psi / "cgroup.procs", "some", STALL, WINDOW)
        assert monitor.watches == ()


def test_switched_off_is_said(psi: Path) -> None:
    switch = psi / "cgroup.pressure"
    if not switch.exists():
        pytest.skip("this kernel has no cgroup.pressure")
    with Monitor() as monitor:
        watch = monitor.watch_stall(psi, "some", STALL, WINDOW)
        put(switch, "0")
        events: list[Event] = []
        while not events:
            events += monitor.wait(PATIENCE)
        (degraded,) = events
        assert isinstance(degraded, Degraded)
        assert "cgroup.pressure" in degraded.remedy
        assert watch.closed
        assert not watch.removed
        with pytest.raises(UnsupportedError, match="write 1 to"):
            monitor.watch_stall(psi, "some", STALL, WINDOW)
        put(switch, "1")
        again = monitor.watch_stall(psi, "some", STALL, WINDOW)
        put(switch, "0")
        assert [type(event) for event in monitor.wait(PATIENCE)] == [Degraded]
        assert again.closed


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("memcg_trigger_begin", errno.EAGAIN, f"{lib.MEMCG_TRIGGERS} triggers and no more"),
        ("memcg_triggers_open", errno.EAGAIN, "fs.aio-max-nr"),
        ("memcg_triggers_open", errno.ENOSYS, "CONFIG_AIO"),
        ("memcg_triggers_open", errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_what_the_kernel_runs_out_of(
    psi: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: int, words: str
) -> None:
    """A thousand real triggers would say the same, and take the kernel an RCU grace period each to let go of."""

    class Short:
        def __getattr__(self, name: str) -> object:
            return (lambda *_: -error) if name == function else getattr(lib, name)

    with Monitor() as monitor:
        before = os.listdir("/proc/self/fd")
        with monkeypatch.context() as patch:
            patch.setattr(memcg_oom.stalls, "lib", Short())
            with pytest.raises(OSError, match=words) as caught:
                monitor.watch_stall(psi, "some", STALL, WINDOW)
        assert caught.value.errno == error
        assert isinstance(caught.value, UnsupportedError) == (error == errno.ENOSYS)
        assert not monitor.watches
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the eventfd stays for the next
        watch = monitor.watch_stall(psi, "some", STALL, WINDOW)
        assert monitor.watches == (watch,)
