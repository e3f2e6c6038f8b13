"""cgroup v2 on a host of its own: out of memory as a whole, and mounted otherwise. See tests/vm/test_host_ooms.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from memcg_oom import Degraded, Monitor, OomKill, Unattributed
from tests.support import (
    PATIENCE,
    event_count,
    kills_of,
    make,
    put,
    remove,
    run_hog,
    start_hog,
    take_until,
    take_until_quiet,
)
from tests.trees import of

ROOT = Path("/sys/fs/cgroup")
MORE_THAN_THERE_IS = 4 << 30  # bytes


def host_kills() -> int:
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(dict(lines)["oom_kill"])


@pytest.mark.parametrize("way", ["watched", "in a tree"])
def test_a_kill_for_the_whole_host_is_told_in_the_victims_cgroup(hog: str, way: str) -> None:
    put(Path("/proc/sys/vm/overcommit_memory"), "1")  # a hog may want more than there is
    top = make(ROOT / "top")
    cgroup = make(top / "victim")
    before = host_kills()
    with Monitor() as monitor:
        one = monitor.watch(cgroup) if way == "watched" else of(monitor.watch_tree(ROOT), cgroup)
        pid, _ = os.waitpid(start_hog(hog, cgroup, MORE_THAN_THERE_IS, adjust=1000), 0)
        ledger = take_until(monitor, lambda ledger: ledger.kills[one])
        take_until_quiet(monitor, ledger)
        assert host_kills() - before == kills_of(cgroup) == ledger.kills.total() == ledger.kills[one]
        assert ledger.ooms.total() == 0  # no limit of a cgroup was hit
        assert not [event for event in ledger.other if isinstance(event, Unattributed)]
        (kill,) = [event for event in ledger.by_watch[one] if isinstance(event, OomKill)]
        assert [(victim.pid, victim.oom_memcg) for victim in kill.victims] == [(pid, "/")]
        assert kill.limit_cgroup == str(ROOT)
    remove(cgroup)
    remove(top)


def test_a_log_that_is_overrun(hog: str) -> None:
    """What was printed before the kill is gone, and said to be; what was printed after it is read."""
    put(Path("/proc/sys/kernel/printk_devkmsg"), "on\n")  # else it takes ten lines in five seconds
    cgroup = make(ROOT / "victim", "16M")
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        take_until_quiet(monitor)
        with Path("/dev/kmsg").open("wb", buffering=0) as log:
            for number in range(20_000):
                log.write(b"<7>noise %d %s" % (number, b"x" * 100))
        pid, _ = os.waitpid(start_hog(hog, cgroup, 64 << 20), 0)
        ledger = take_until(monitor, lambda ledger: ledger.kills[watch] and ledger.other)
        (degraded,) = ledger.other
        assert isinstance(degraded, Degraded)
        assert "records were lost" in degraded.what
        (kill,) = [event for event in ledger.by_watch[watch] if isinstance(event, OomKill)]
        assert [victim.pid for victim in kill.victims] == [pid]
        with Path("/dev/kmsg").open("wb", buffering=0) as log:
            pid, _ = os.waitpid(start_hog(hog, cgroup, 64 << 20), 0)
            for number in range(20_000):
                log.write(b"<7>noise %d %s" % (number, b"x" * 100))
        ledger = take_until(monitor, lambda ledger: ledger.kills[watch])
        (kill,) = [event for event in ledger.by_watch[watch] if isinstance(event, OomKill)]
        assert not ledger.other  # said once
        assert [victim.pid for victim in kill.victims] == []
    remove(cgroup)


def test_where_memory_events_counts_each_cgroup_alone(hog: str) -> None:
    def check() -> str:
        done = subprocess.run(["python3", "-m", "memcg_oom", "check"], check=False, capture_output=True, text=True)
        return done.stdout + done.stderr

    assert "memory_localevents" not in check()
    subprocess.run(["mount", "-o", "remount,memory_localevents", ROOT], check=True)
    assert "memory_localevents" in check()
    top = make(ROOT / "top")
    with Monitor() as monitor:
        monitor.watch_tree(top)
        (degraded,) = monitor.wait(PATIENCE)
        assert isinstance(degraded, Degraded)
        assert "memory_localevents" in degraded.what
    before = host_kills()
    with Monitor(audit=0.1) as monitor:
        tree = monitor.watch_tree(ROOT)
        stays = make(top / "stays", "1M")
        ledger = take_until(monitor, lambda _: stays in {Path(watch.cgroup) for watch in tree})
        run_hog(hog, stays)
        take_until(monitor, lambda ledger: ledger.kills[of(tree, stays)], ledger)
        for i in range(10):
            cgroup = make(top / f"c{i}", "1M")
            run_hog(hog, cgroup)
            cgroup.rmdir()

        def told() -> int:
            nobodys = [event.count for event in ledger.other if isinstance(event, Unattributed)]
            return ledger.kills.total() + sum(nobodys)

        take_until(monitor, lambda _: told() == 11, ledger)
        take_until_quiet(monitor, ledger)
        assert host_kills() - before == told() == 11
        assert event_count(top, "oom_kill", below=True) == 0  # so nothing above says whose they were
        assert ledger.kills[of(tree, stays)] == 1
        assert not [event for event in ledger.other if isinstance(event, Degraded)]
    remove(stays)
    remove(top)
