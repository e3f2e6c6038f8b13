"""Inside a container: the hierarchy is mounted elsewhere, from its middle, or seen from a cgroup namespace."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memcg_oom import Monitor
from tests.support import (
    PATIENCE,
    Independent,
    eventually,
    kills_of,
    make,
    put,
    run_python,
    start_hog,
    start_python,
    take_until,
)

# Enters the cgroup, then what unshare(1) makes; a hierarchy is mounted at {where}, and what is seen there is printed.
INSIDE = """
import os, subprocess, sys
from memcg_oom import Cgroup, Degraded, Monitor, Oom, OomKill, Removed, RootCgroupError
from memcg_oom.mounts import memory_mount

hog, where, inner = sys.argv[1:]
mount = memory_mount()
print("mount", mount.root, mount.point)
own = Cgroup.of_pid()
print("own", own.path, own.parent)
with Monitor() as monitor:
    watch = monitor.watch(inner)
    subprocess.run([hog, inner, str(256 << 20)])
    seen = []
    while not any(isinstance(event, OomKill) for event in seen):
        seen += monitor.wait(30) or sys.exit("no OomKill")
    print("event", seen[-1].cgroup, seen[-1].count, seen[-1].limit_cgroup)
    print("degraded", [event.what for event in seen if isinstance(event, Degraded)])
"""


def _unshare(namespaces: str, cgroup: Path, setup: str) -> list[str]:
    """The wrapper that puts a process into a cgroup and into new namespaces, and sets these up."""
    script = f'echo 0 > {cgroup}/cgroup.procs; exec unshare {namespaces} sh -c \'{setup}; exec "$@"\' sh "$@"'
    return ["sh", "-c", script, "sh"]


@pytest.fixture
def _needs_namespaces() -> None:
    done = subprocess.run(["unshare", "--mount", "--cgroup", "true"], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"namespaces cannot be made here: {done.stderr.strip()}")


@pytest.mark.usefixtures("_needs_namespaces")
def test_the_root_of_a_cgroup_namespace_is_watched(memcg1: Path, hog: str, tmp_path: Path) -> None:
    pod = make(memcg1 / "pod", "64M")
    setup = f"umount {memcg1.parent.parent} && mount -t cgroup -o memory cgroup {tmp_path}"
    code, out, err = run_python(INSIDE, hog, tmp_path, tmp_path, wrapper=_unshare("--mount --cgroup", pod, setup))
    # The watcher sits in the very cgroup that runs out, and is smaller than the hog.
    assert code == 0, err
    assert f"mount / {tmp_path}" in out
    assert f"own {tmp_path} None" in out
    # Whether it was its own limit or one above cannot be seen from in there.
    assert f"event {tmp_path} 1 None" in out
    assert "a cgroup namespace of its own" in out


@pytest.mark.usefixtures("_needs_namespaces")
def test_a_part_of_the_hierarchy_that_is_mounted_elsewhere_is_watched(memcg1: Path, hog: str, tmp_path: Path) -> None:
    pod = make(memcg1 / "pod")
    make(pod / "web", "1M")
    setup = f"mount --bind {pod} {tmp_path} && umount {memcg1.parent.parent}"
    code, out, err = run_python(INSIDE, hog, tmp_path, tmp_path / "web", wrapper=_unshare("--mount", pod, setup))
    assert code == 0, err
    assert f"mount /{pod.relative_to(memcg1.parent.parent)} {tmp_path}" in out
    assert f"own {tmp_path} None" in out
    assert f"event {tmp_path}/web 1" in out


# A watcher whose cgroup has no memory left, with a ballast in it that is killed again and again; the third argument has
# its pages locked. It says when it watches, then of each event what it is, of whom, how often, and when it was taken.
AT_ITS_LIMIT = """
import ctypes, os, select, sys, time
from memcg_oom import Degraded, Monitor, OomKill

others, own, locked = sys.argv[1:]
with open(own + "/cgroup.procs", "w") as file:
    file.write("0")
with Monitor() as monitor:
    monitor.watch_tree(others)
    monitor.watch(own)
    if locked == "True":
        assert ctypes.CDLL(None, use_errno=True).mlockall(3) == 0  # MCL_CURRENT | MCL_FUTURE
    print("watching", flush=True)
    while not select.select([0], [], [], 0)[0]:
        events = monitor.wait(0.05)
        taken = time.time_ns()
        for event in events:
            is_degraded = isinstance(event, Degraded)
            name = event.what.replace(" ", "_") if is_degraded else os.path.basename(event.cgroup)
            print(type(event).__name__, name, getattr(event, "count", 1), taken, flush=True)
"""


class DiedError(Exception):
    """The watcher has ended, with that exit code."""


class AtItsLimit:
    """That watcher, and what it has told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.counts: Counter[tuple[str, str]] = Counter()
        self.moments: dict[tuple[str, str], int] = {}  # of the first of them since that was cleared
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"

    def until(self, kind: str, name: str, count: int) -> None:
        assert self.process.stdout is not None
        while self.counts[kind, name] < count:
            line = self.process.stdout.readline()
            if not line:
                raise DiedError(self.process.wait(PATIENCE))
            said, who, number, moment = line.split()
            self.counts[said, who] += int(number)
            self.moments.setdefault((said, who), int(moment))


@contextlib.contextmanager
def ballast(hog: str, cgroup: Path) -> Iterator[Callable[[], int]]:
    """Fills a cgroup until something is killed in it, itself before anybody else, again and again; how often so far."""
    killed = 0
    is_over = threading.Event()

    def fill() -> None:
        nonlocal killed
        while not is_over.is_set():
            # Before it enters: it would not be the first to be killed until then.
            script = 'echo 1000 > /proc/self/oom_score_adj && exec "$@"'
            command = ["sh", "-c", script, "sh", hog, os.fspath(cgroup), str(256 << 20)]
            killed += subprocess.run(command, check=False).returncode == -signal.SIGKILL

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield lambda: killed
    finally:
        is_over.set()
        thread.join()


ROUNDS_AT_LIMIT = int(os.environ.get("MEMCG_OOM_ROUNDS_AT_LIMIT", "20"))


@pytest.mark.parametrize("locked", [False, True], ids=["as it is", "locked"])
def test_a_watcher_whose_own_cgroup_has_no_memory_left(
    memcg1: Path, hog: str, locked: bool, figure: dict[str, object]
) -> None:
    """It goes on, and tells every OOM and every kill of others; its own cgroup's too. Or it dies, and that is seen.

    Between the end of a task that was killed, which nobody finds any more, and that of its memory the kernel knows
    nobody but the watcher to kill.
    """
    others, own = make(memcg1 / "others"), make(memcg1 / "own", "64M")
    web = make(others / "web", "1M")
    with contextlib.ExitStack() as stack, start_python(AT_ITS_LIMIT, others, own, locked) as process:
        stack.callback(process.kill)
        watcher = AtItsLimit(process)
        independent = stack.enter_context(contextlib.closing(Independent(web)))
        late: list[int] = []
        try:
            with ballast(hog, own) as killed:
                eventually(lambda: killed() >= 2 or process.poll() is not None)
                for number in range(ROUNDS_AT_LIMIT):
                    watcher.moments.clear()
                    ooms = watcher.counts["Oom", web.name]
                    pid = start_hog(hog, web)
                    select.select([independent.fd], [], [])
                    signalled = time.time_ns()
                    os.waitpid(pid, 0)
                    watcher.until("OomKill", web.name, number + 1)
                    watcher.until("Oom", web.name, ooms + 1)
                    late.append(watcher.moments["Oom", web.name] - signalled)
                    independent.read()
            watcher.until("OomKill", own.name, kills_of(own))
            watcher.until("Oom", web.name, independent.read())
            process.communicate("", timeout=PATIENCE)
        except DiedError:
            figure["died after"] = len(late)
            assert process.returncode == -signal.SIGKILL
            assert kills_of(own) == killed() + 1
        else:
            assert process.returncode == 0
            assert watcher.counts["OomKill", web.name] == kills_of(web) == ROUNDS_AT_LIMIT
            assert watcher.counts["OomKill", own.name] == kills_of(own) == killed()
        assert watcher.counts["Oom", web.name] <= independent.read()
        figure["ballast killed"] = killed()
        figure["degraded"] = [what for kind, what in watcher.counts if kind == "Degraded"]
        if late:
            late.sort()
            figure["late"] = ", ".join(f"{late[len(late) * part // 100] / 1e6:.2f}" for part in (10, 50, 90)) + " ms"
            figure["longest"] = f"{late[-1] / 1e6:.2f} ms"


def test_a_watcher_that_is_the_victim_of_its_own_limit_dies_visibly(memcg1: Path, hog: str) -> None:
    """By SIGKILL, which whoever has started it sees, and another watcher tells."""
    others, own = make(memcg1 / "others"), make(memcg1 / "own", "64M")
    with Monitor() as monitor, start_python(AT_ITS_LIMIT, others, own, False) as process:
        watch = monitor.watch(own)
        AtItsLimit(process)
        put(Path(f"/proc/{process.pid}/oom_score_adj"), "1000")
        pid = start_hog(hog, own, 256 << 20)
        assert process.wait(PATIENCE) == -signal.SIGKILL
        os.waitpid(pid, 0)
        ledger = take_until(monitor, lambda ledger: ledger.kills[watch] >= kills_of(own))
        victims = [victim.pid for event in ledger.by_watch[watch] for victim in getattr(event, "victims", ())]
        assert not victims or process.pid in victims
