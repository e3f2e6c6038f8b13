"""The kernel signals everybody below the limit that was hit; who was killed is another question."""

from __future__ import annotations

from pathlib import Path

import pytest

from memcg_oom import Cgroup, Monitor, OomKill
from tests.support import (
    QUIET,
    Independent,
    eventually,
    kills_of,
    make,
    remainder,
    run_hog,
    start_python,
    take_until,
    take_until_quiet,
)

CHILDREN = 300


def test_the_parents_limit_with_the_victim_in_one_of_300(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    parent = make(memcg1 / "parent", "4M")
    children = [make(parent / str(number)) for number in range(CHILDREN)]
    everybody = [parent, *children]
    independents = [Independent(cgroup) for cgroup in everybody]
    try:
        with Monitor() as monitor:
            watches = monitor.watch_many(everybody)
            bystander = monitor.watch(memcg1)  # above the limit: not the kernel's business
            run_hog(hog, children[123], 16 << 20)
            ledger = take_until(
                monitor, lambda ledger: len(ledger.ooms) == len(everybody) and ledger.kills.total() == 1
            )
            take_until_quiet(monitor, ledger)
            figure.update(
                got_oom=len(ledger.ooms),
                got_kill=len(ledger.kills),
                kills=ledger.kills.total(),
                ooms=ledger.ooms.total(),
            )
            assert dict(ledger.kills) == {watches[124]: 1}
            assert kills_of(children[123]) == 1
            for watch, independent in zip(watches, independents, strict=True):
                assert ledger.ooms[watch] == watch.ooms == independent.read() > 0
            assert bystander not in ledger.by_watch
            assert not ledger.removals
    finally:
        for independent in independents:
            independent.close()


def test_eight_hogs_at_once_in_one_cgroup(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    cgroup = make(memcg1 / "crowd", "16M")
    independent = Independent(cgroup)
    try:
        with Monitor() as monitor:
            watch = monitor.watch(cgroup)
            for _ in range(5):
                run_hog(hog, cgroup, 16 << 20, processes=8)
            ledger = take_until(monitor, lambda ledger: ledger.kills[watch] >= kills_of(cgroup))
            take_until_quiet(monitor, ledger)
            figure.update(kills=kills_of(cgroup), told=ledger.kills[watch], ooms=ledger.ooms[watch])
            figure["independent"] = independent.read()
            assert ledger.kills[watch] == watch.kills == kills_of(cgroup) >= 5
            assert ledger.ooms[watch] == watch.ooms == independent.read()
    finally:
        independent.close()


def test_signals_without_a_kill(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    """A task that may not be killed runs into its limit again and again: many OOMs and nobody dies."""
    cgroup = make(memcg1 / "tough", "2M")
    independent = Independent(cgroup)
    process = start_python(
        "import os, sys\n"
        "fd = os.open('/proc/self/oom_score_adj', os.O_WRONLY)\n"
        "try:\n"
        "    os.write(fd, b'-1000')\n"
        "except PermissionError:\n"
        "    sys.exit('not allowed')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "os.execv(sys.argv[1], sys.argv[1:])",
        hog,
        cgroup,
        8 << 20,
    )
    try:
        with process, Monitor() as monitor:
            assert process.stdout is not None
            assert process.stdin is not None
            if process.stdout.readline() != "ready\n":
                pytest.skip("an oom_score_adj of -1000 needs CAP_SYS_RESOURCE")
            watch = monitor.watch(cgroup)
            process.stdin.write("\n")
            process.stdin.flush()
            ledger = take_until(monitor, lambda ledger: ledger.ooms[watch] >= 3)
            process.kill()
            process.communicate()
            eventually(lambda: not (cgroup / "cgroup.procs").read_text())
            take_until_quiet(monitor, ledger)
            figure.update(ooms=ledger.ooms[watch], kills=ledger.kills[watch])
            assert ledger.ooms[watch] == independent.read()
            assert ledger.kills[watch] == kills_of(cgroup) == 0
    finally:
        process.kill()
        independent.close()


def test_each_watch_of_one_cgroup_gets_every_event(memcg1: Path, hog: str) -> None:
    """Twice in one monitor, in a second monitor, and in another process.

    The removal's own signal is awaited for longer than usual: an OOM that it is late for is told after Removed.
    """
    cgroup = make(memcg1 / "popular", "1M")
    independent = Independent(cgroup)
    other = start_python(
        "import sys\n"
        "from memcg_oom import *\n"
        "with Monitor(linger=2) as monitor:\n"
        "    watch = monitor.watch(sys.argv[1])\n"
        "    print('ready', flush=True)\n"
        "    for event in monitor:\n"
        "        print(type(event).__name__, getattr(event, 'count', 0), flush=True)\n"
        "        if isinstance(event, Removed):\n"
        "            break\n",
        cgroup,
    )
    try:
        with other, Monitor(linger=2) as first, Monitor(linger=2) as second:
            watches = [first.watch(cgroup), first.watch(cgroup), second.watch(cgroup)]
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            for _ in range(3):
                run_hog(hog, cgroup)
            ledgers = [
                take_until(first, lambda ledger: ledger.kills[watches[0]] >= 3 and ledger.kills[watches[1]] >= 3),
                take_until(second, lambda ledger: ledger.kills[watches[2]] >= 3),
            ]
            lines: list[list[str]] = []
            while sum(int(count) for name, count in lines if name == "OomKill") < 3:
                lines.append(other.stdout.readline().split())
            ooms = independent.read()
            cgroup.rmdir()
            take_until(first, lambda ledger: ledger.removals.total() >= 2, ledgers[0])
            take_until(second, lambda ledger: ledger.removals.total() >= 1, ledgers[1])
            for watch, ledger in zip(watches, [ledgers[0], ledgers[0], ledgers[1]], strict=True):
                assert (ledger.ooms[watch], ledger.kills[watch], ledger.removals[watch]) == (ooms, 3, 1)
            assert first.wait(0) == []
            told, complaint = remainder(other)
            assert complaint == ""
            lines += [line.split() for line in told.splitlines()]
            assert sum(int(count) for name, count in lines if name == "Oom") == ooms
            assert sum(int(count) for name, count in lines if name == "OomKill") == 3
            assert [name for name, _ in lines].index("Removed") == len(lines) - 1
    finally:
        other.kill()
        independent.close()


def test_the_limit_of_the_cgroup_itself(memcg1: Path, hog: str) -> None:
    """Neither the parent nor a sibling is told, and the totals stand in the watch."""
    parent = make(memcg1 / "parent")
    cgroup, sibling = make(parent / "cgroup", "1M"), make(parent / "sibling")
    with Monitor() as monitor:
        watches = monitor.watch_many([parent, Cgroup(cgroup), sibling])
        run_hog(hog, cgroup)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total())
        take_until_quiet(monitor, ledger)
        assert list(ledger.by_watch) == [watches[1]]
        assert [(watch.ooms, watch.kills) for watch in watches] == [(0, 0), (ledger.ooms[watches[1]], 1), (0, 0)]
        event = ledger.by_watch[watches[1]][-1]
        assert isinstance(event, OomKill)
        assert event.cgroup == str(cgroup)
        assert monitor.wait(QUIET / 10) == []
