"""Kills that the kernel signals to nobody. Runs inside a machine with little memory, see tests/vm/test_host_ooms.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memcg_oom import Degraded, Monitor, Oom, OomKill, TreeWatch, Unattributed
from tests.support import (
    PATIENCE,
    Independent,
    control,
    eventually,
    kills_of,
    make,
    put,
    remove,
    run_hog,
    start_hog,
)

ROOT = Path("/sys/fs/cgroup/memory")
A, AB, C = ROOT / "a", ROOT / "a/b", ROOT / "c"
KMSG = Path("/dev/kmsg")

MORE_THAN_THERE_IS = 4 << 30  # bytes
NEVER = 3600.0  # seconds: a timer that has no part in what is tried
SETTLE = 0.2  # seconds
QUIET = 2.5 * SETTLE  # seconds of silence after which nothing more is expected


def host_kills() -> int:
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(dict(lines)["oom_kill"])


class Told:
    """What a monitor told since this was made, and what the kernel counted meanwhile."""

    def __init__(self, monitor: Monitor) -> None:
        self.ooms: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.unattributed = 0
        self.victims: list[int] = []
        self.limits: set[str | None] = set()
        self.degraded: list[Degraded] = []
        self._monitor = monitor
        # A new watch is looked at once more when it is as old as the settle period. Nothing here is to be told by that.
        self.quiet()
        assert not self.ooms
        assert not self.kills
        self._before = host_kills()

    @property
    def owed(self) -> int:
        return host_kills() - self._before - self.kills.total() - self.unattributed

    def take(self, timeout: float) -> bool:
        events = self._monitor.wait(timeout)
        for event in events:
            match event:
                case Oom(cgroup=cgroup, count=count):
                    self.ooms[cgroup] += count
                case OomKill(cgroup=cgroup, count=count, victims=victims, limit_cgroup=limit):
                    self.kills[cgroup] += count
                    self.victims += [victim.pid for victim in victims]
                    self.limits.add(limit)
                case Unattributed(count=count, victims=victims):
                    self.unattributed += count
                    self.victims += [victim.pid for victim in victims]
                case Degraded():
                    self.degraded.append(event)
        return bool(events)

    def quiet(self) -> None:
        while self.take(QUIET):
            pass

    def balance(self) -> None:
        """Waits until as many kills were told as there were, and sees that no more are."""
        deadline = time.monotonic() + PATIENCE
        while self.owed:
            assert time.monotonic() < deadline, f"{self.owed} kills were not told; {self.kills} were"
            self.take(0.5)
        self.quiet()
        assert self.owed == 0, self.kills


@pytest.fixture(scope="module", autouse=True)
def _only_hogs_and_victims_die() -> None:
    for pid in ("self", str(os.getppid())):
        put(Path("/proc", pid, "oom_score_adj"), "-1000")
    put(Path("/proc/sys/vm/overcommit_memory"), "1")  # a hog may want more than there is
    for cgroup in (A, AB, C):
        make(cgroup)


@pytest.fixture(params=["log", "timer"])
def monitor(request: pytest.FixtureRequest) -> Iterator[Monitor]:
    """One that hears of kills by the log alone, and one that has no log."""
    hidden = KMSG.with_name("hidden")
    if request.param == "timer":
        KMSG.rename(hidden)
    try:
        with Monitor(settle=SETTLE, audit=NEVER if request.param == "log" else 0.2) as monitor:
            yield monitor
    finally:
        if request.param == "timer":
            hidden.rename(KMSG)


@pytest.fixture
def tree(monitor: Monitor) -> TreeWatch:
    return monitor.watch_tree(ROOT)


@pytest.fixture
def told(request: pytest.FixtureRequest, monitor: Monitor, tree: TreeWatch) -> Told:
    told = Told(monitor)
    assert tree.polled == 0
    # Who has no log is told so, once.
    without = "timer" in request.node.name
    assert [event.what.split()[0] for event in told.degraded] == ["/dev/kmsg"] * without, told.degraded
    return told


def sysrq_kill(cgroup: Path) -> int:
    """Has sysrq-f kill a process of the cgroup: nothing else is as killable. Its pid."""
    script = f"echo $$ > {cgroup}/cgroup.procs; echo 1000 > /proc/$$/oom_score_adj; echo ready; exec sleep {PATIENCE}"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        put(Path("/proc/sysrq-trigger"), "f")
        assert victim.wait() == -signal.SIGKILL
        return victim.pid


@pytest.mark.parametrize("cgroup", [AB, ROOT], ids=["nested", "root"])
def test_a_kill_for_the_whole_host_is_told_in_the_victims_cgroup(
    told: Told, tree: TreeWatch, hog: str, cgroup: Path
) -> None:
    signals = {each: Independent(each) for each in (A, AB, C)}
    before = kills_of(cgroup)
    pid, hog_status = os.waitpid(start_hog(hog, cgroup, MORE_THAN_THERE_IS, adjust=0), 0)
    assert os.WIFSIGNALED(hog_status)
    assert kills_of(cgroup) == before + 1
    told.balance()
    assert told.kills == {str(cgroup): 1}
    assert told.victims == ([] if told.degraded else [pid])
    assert told.limits == ({None} if told.degraded else {str(ROOT)})
    assert tree.kills == 1
    # The kernel itself says nothing, so neither do we.
    assert [each.read() for each in signals.values()] == [0, 0, 0]
    assert not told.ooms
    for each in signals.values():
        each.close()


def test_many_kills_for_the_whole_host_add_up_in_each_cgroup(told: Told, tree: TreeWatch, hog: str) -> None:
    cgroups = (ROOT, A, AB, C)
    before = {str(cgroup): kills_of(cgroup) for cgroup in cgroups}
    hogs = [start_hog(hog, cgroup, MORE_THAN_THERE_IS, 4, adjust=0) for cgroup in (ROOT, AB, C)]
    while hogs:
        told.take(0.1)
        hogs = [pid for pid in hogs if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    told.balance()
    after = {str(cgroup): kills_of(cgroup) for cgroup in cgroups}
    assert told.kills == {cgroup: after[cgroup] - before[cgroup] for cgroup in after if cgroup != str(A)}
    assert after[str(A)] == before[str(A)]
    assert tree.kills == told.kills.total() >= 12  # no child of any hog can have had enough
    assert told.unattributed == 0
    assert not told.ooms


@pytest.mark.parametrize("cgroup", [AB, ROOT], ids=["nested", "root"])
def test_a_kill_by_sysrq_is_told_in_the_victims_cgroup(told: Told, cgroup: Path) -> None:
    before = kills_of(cgroup)
    sysrq_kill(cgroup)
    assert kills_of(cgroup) == before + 1
    told.balance()
    assert told.kills == {str(cgroup): 1}
    assert not told.ooms


@contextmanager
def command(adjust: int) -> Iterator[subprocess.Popen[str]]:
    """memcg-oom watch, from when it watches, with an oom_score_adj."""
    arguments = [sys.executable, "-m", "memcg_oom", "watch", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stderr is not None
            assert "watching" in watching.stderr.readline()
            put(Path(f"/proc/{watching.pid}/oom_score_adj"), str(adjust))
            yield watching
        finally:
            watching.kill()


def test_a_watcher_with_the_units_adjustment_outlives_a_host_without_memory(hog: str) -> None:
    """And tells who died."""
    with command(-900) as watching:
        pid, hog_status = os.waitpid(start_hog(hog, AB, MORE_THAN_THERE_IS, adjust=0), 0)
        assert os.WIFSIGNALED(hog_status)
        assert watching.stdout is not None
        told = json.loads(watching.stdout.readline())
        assert (told["event"], told["cgroup"], told["count"]) == ("oom_kill", str(AB), 1)
        assert [victim["pid"] for victim in told["victims"]] == [pid]
        assert watching.poll() is None
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(PATIENCE) == 0


def test_a_watcher_that_is_the_victim_dies_visibly(told: Told) -> None:
    """By SIGKILL; another watcher tells of it."""
    with command(1000) as watching:
        put(Path("/proc/sysrq-trigger"), "f")
        assert watching.wait(PATIENCE) == -signal.SIGKILL
        told.balance()
        assert told.kills == {str(ROOT): 1}
        assert told.victims == ([] if told.degraded else [watching.pid])


def test_a_kill_in_a_cgroup_that_came_and_went_unseen_is_unattributed(told: Told) -> None:
    unseen = make(ROOT / "unseen")
    pid = sysrq_kill(unseen)
    remove(unseen)  # before the monitor has had a turn
    told.balance()
    assert told.unattributed == 1
    assert not told.kills
    assert told.victims == ([] if told.degraded else [pid])


def test_kills_above_a_cgroup_that_hangs_are_told_without_a_signal(told: Told, tree: TreeWatch, hog: str) -> None:
    above = make(ROOT / "above", "64M")
    hanging, beside = make(above / "hanging", "8M"), make(above / "beside")
    put(hanging / "memory.oom_control", "1")
    eventually(lambda: told.take(0) or {str(above), str(hanging), str(beside)} <= {watch.cgroup for watch in tree})
    signals = {each: Independent(each) for each in (above, hanging, beside)}
    sleeper = start_hog(hog, hanging, 32 << 20, adjust=0)
    try:
        eventually(lambda: control(hanging, "under_oom"))
        for cgroup in (beside, above):
            hog_status = os.waitpid(start_hog(hog, cgroup, 128 << 20, adjust=0), 0)[1]
            assert os.WIFSIGNALED(hog_status)
        # Who hangs has the kernel think that all of it is being dealt with (mem_cgroup_oom_trylock()).
        assert {each: one.read() for each, one in signals.items()} == {above: 0, hanging: 1, beside: 0}
        told.balance()
        assert told.kills == {str(beside): 1, str(above): 1}
        assert told.ooms == {str(hanging): 1}
    finally:
        os.kill(sleeper, signal.SIGKILL)
        os.waitpid(sleeper, 0)
    # The counterpart: nobody hangs any more, and so everybody is signalled.
    eventually(lambda: not control(hanging, "under_oom"))
    hog_status = os.waitpid(start_hog(hog, beside, 128 << 20, adjust=0), 0)[1]
    assert os.WIFSIGNALED(hog_status)
    told.balance()
    assert told.ooms == {str(each): one.read() for each, one in signals.items()}
    assert all(one.count for one in signals.values())
    assert told.kills == {str(beside): 2, str(above): 1}
    for one in signals.values():
        one.close()
    for cgroup in (hanging, beside, above):
        remove(cgroup)


def test_without_audits_such_a_kill_waits_for_the_next_look(hog: str) -> None:
    with Monitor(settle=SETTLE, audit=None, victims=False) as monitor:
        monitor.watch_tree(ROOT)
        told = Told(monitor)
        sysrq_kill(C)
        told.quiet()
        assert told.owed == 1
        put(C / "memory.limit_in_bytes", "4M")
        put(Path("/proc/self/oom_score_adj"), "0")  # run_hog() starts one that can be killed
        try:
            run_hog(hog, C)
        finally:
            put(Path("/proc/self/oom_score_adj"), "-1000")
        told.balance()
        assert told.kills == {str(C): 2}
        assert told.ooms[str(C)] > 0
