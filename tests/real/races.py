"""Ten thousand times a kill and the removal of its cgroup at once, for `make races`; not a part of the tests by itself.

By single watches, on v1, and under a tree that covers the host, which is told of a kill that nothing else shows.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from memcg_oom import Monitor
from memcg_oom.mounts import memory_mount
from tests.churn import Clerk, host_kills
from tests.real.test_races import judge, race
from tests.support import Reader, make, remove, run_hog

RACES = int(os.environ.get("MEMCG_OOM_RACES", "10000"))
BLOCK = (
    500  # races after which everything is settled: of a removed cgroup the kernel keeps what takes up one of 65,535 ids
)


def blocks() -> list[int]:
    """So many races each."""
    return [min(BLOCK, RACES - done) for done in range(0, RACES, BLOCK)]


def add(figure: dict[str, object], part: dict[str, object]) -> None:
    for key, value in part.items():
        before = figure.get(key, 0)
        assert isinstance(value, int)
        assert isinstance(before, int)
        figure[key] = before + value


def test_single_watches(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    for number, count in enumerate(blocks()):
        reader = Reader(Monitor())
        try:
            counted = race(reader, hog, make(memcg1 / f"block{number}"), count)
        finally:
            reader.finish()
        part: dict[str, object] = {}
        judge(reader, counted, part)  # an OOM that was lost or invented fails it
        add(figure, part)


def test_a_tree(memcg: Path, hog: str, figure: dict[str, object]) -> None:
    mount = memory_mount()
    assert mount is not None
    with Monitor() as monitor:
        clerk = Clerk(monitor)
        try:
            clerk.least = host_kills()
            tree = monitor.watch_tree(mount.point)
            clerk.most = host_kills()
            for number, count in enumerate(blocks()):
                add(figure, kill_and_remove(clerk, hog, make(memcg / f"block{number}"), count))
        finally:
            clerk.finish()
    figure["source"] = tree.source


def kill_and_remove(clerk: Clerk, hog: str, parent: Path, count: int) -> dict[str, object]:
    """A block of races; what was told of it."""
    kills: Counter[int] = Counter()
    for number in range(count):
        cgroup = make(parent / str(number), "1M")
        kills[os.stat(cgroup).st_ino] += 1
        run_hog(hog, cgroup)
        remove(cgroup)
    at_the_end = host_kills()
    # Somebody else may be killing on this host, beside us and after us: hence two bounds instead of `==`.
    clerk.wait_for(lambda: clerk.books.told >= at_the_end - clerk.most)
    clerk.wait_for(lambda: clerk.books.unattributed >= clerk.books.missed(kills))
    clerk.wait_for(lambda: all(clerk.books.removed[cgroup] for cgroup in clerk.books.created if cgroup in kills))
    with clerk._changed:
        books = clerk.books
        assert books.told <= host_kills() - clerk.least, "kills that there were not"
        assert not books.wrong
        assert not books.degraded
        invented = sum(max(0, books.kills[cgroup] - 1) for cgroup in kills)
        missed = books.missed(kills)
        assert invented == 0
    found: dict[str, object] = {
        "rounds": count,
        "lost": max(0, missed - books.unattributed),
        "invented": invented,
        "unresolved": books.unresolved,
        "unattributed": missed,
    }
    clerk.turn_over()
    return found
