"""As many watches as this machine's hard limit of descriptors allows, and more cgroups than that."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from memcg_oom import Degraded, Monitor, TreeWatch
from memcg_oom.search import HEADROOM
from tests.support import kills_of, make, remove, run_hog, take_until, take_until_quiet
from tests.trees import assert_totals, of

BEYOND = 300  # cgroups more than there are descriptors
MOST = 19_000  # watches; where the hard limit is higher it is lowered to what is enough for these


@pytest.fixture
def crowd(memcg1: Path) -> Iterator[list[Path]]:
    """More cgroups than the process may have descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(hard, MOST + 1000)
    paths = [memcg1 / str(number) for number in range(limit + BEYOND)]
    for path in paths:
        path.mkdir()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield paths
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for path in paths:
        if path.exists():
            path.rmdir()


def victims_of(tree: TreeWatch, paths: list[Path]) -> list[Path]:
    """Two that have a descriptor and two that have none."""
    signalled = [path for path in paths if not of(tree, path).polled]
    polled = [path for path in paths if of(tree, path).polled]
    return [signalled[0], signalled[-1], polled[0], polled[-1]]


@pytest.mark.parametrize("source", ["fanotify", "inotify"])
def test_more_cgroups_than_descriptors(
    memcg1: Path, hog: str, crowd: list[Path], source: str, figure: dict[str, object]
) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        figure["limit"] = limit
        figure["signalled"] = signalled = len(monitor.watches) - tree.polled
        figure["polled"] = tree.polled
        assert len(monitor.watches) == len(crowd) + 1
        assert limit - HEADROOM - 100 < signalled < limit - HEADROOM
        ledger = take_until(monitor, lambda ledger: ledger.other)
        degraded = list(ledger.other)
        remedies = [event.remedy for event in degraded if isinstance(event, Degraded)]
        assert sum("RLIMIT_NOFILE" in remedy for remedy in remedies) == 1
        # A small machine has fewer inotify watches than there are cgroups here, which is a limit of its own.
        assert sum("max_user_watches" in remedy for remedy in remedies) == len(degraded) - 1
        assert len(degraded) <= (2 if source == "inotify" else 1)

        # What is left is left to others; a watch of one cgroup takes it, and says so when there is no more.
        taken = []
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.dup(0))
        assert len(taken) >= HEADROOM - 1
        with pytest.raises(OSError, match="no descriptors left") as refusal:
            monitor.watch(crowd[0])
        assert refusal.value.errno == errno.EMFILE
        # The few that are free below the tree's share, as some always are, are kept: a newcomer gets none of them.
        kept = [fd for fd in taken if fd < limit - HEADROOM]
        for fd in taken:
            if fd not in kept:
                os.close(fd)

        victims = victims_of(tree, crowd)
        newcomer = make(memcg1 / "newcomer")
        for victim in [*victims, newcomer]:
            (victim / "memory.limit_in_bytes").write_text("1M")
            run_hog(hog, victim)
        take_until(monitor, lambda ledger: ledger.kills.total() == len(victims) + 1, ledger)
        assert of(tree, newcomer).polled
        for victim in [*victims, newcomer]:
            assert ledger.kills[of(tree, victim)] == kills_of(victim) == 1
        watches = [of(tree, victim) for victim in [*victims, newcomer]]
        for victim in [*victims, newcomer]:
            remove(victim)
        take_until(monitor, lambda ledger: ledger.removals.total() == len(watches), ledger)
        take_until_quiet(monitor, ledger)
        assert ledger.removals == dict.fromkeys(watches, 1)
        assert ledger.kills == dict.fromkeys(watches, 1)
        assert ledger.other == degraded
        assert_totals(tree, ledger)
        for fd in kept:
            os.close(fd)
