"""A kill and the removal of its cgroup in the same millisecond, a thousand times over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memcg_oom import Monitor, Watch
from memcg_oom.hierarchy import Hierarchy
from tests.support import MISSED, Independent, Reader, make, remove, run_hog, take_until

ROUNDS = int(os.environ.get("MEMCG_OOM_ROUNDS", "1000"))


def race(reader: Reader, hog: str, parent: Path, rounds: int) -> dict[Watch, tuple[int, int]]:
    """Kill, reap, remove at once; for each watch what the test's own eventfd counted: OOMs, and everything."""
    counted: dict[Watch, tuple[int, int]] = {}
    independents: list[tuple[Watch, Independent, int]] = []
    try:
        for number in range(rounds):
            cgroup = make(parent / str(number), "1M")
            watch = reader.monitor.watch(cgroup)
            independent = Independent(cgroup)
            run_hog(hog, cgroup)
            # The victim was reaped, so all that it caused was signalled: this is the number of OOMs.
            independents.append((watch, independent, independent.read()))
            remove(cgroup)
        reader.wait_for_removals(rounds)
        for watch, independent, ooms in independents:
            independent.await_more_than(ooms)
            counted[watch] = (ooms, independent.read())
    finally:
        for _, independent, _ in independents:
            independent.close()
    return counted


def judge(reader: Reader, counted: dict[Watch, tuple[int, int]], figure: dict[str, object]) -> int:
    """Holds what was told against what was counted; the number of kills that were not told as such."""
    ledger = reader.ledger
    rounds = len(counted)
    figure["rounds"] = rounds
    figure["lost"] = sum(max(0, total - 1 - ledger.ooms[watch]) for watch, (_, total) in counted.items())
    figure["invented"] = sum(max(0, ledger.ooms[watch] - (total - 1)) for watch, (_, total) in counted.items())
    figure["kills told"] = sum(ledger.kills.values())
    figure["unresolved"] = sum(ledger.unresolved.values())
    figure["late"] = sum(ledger.late.values())
    for watch, (ooms, total) in counted.items():
        assert total == ooms + 1, "the kernel signals a removal once"
        assert ledger.ooms[watch] == total - 1 == watch.ooms
        assert ledger.kills[watch] == watch.kills <= 1
        assert ledger.kills[watch] + ledger.unresolved[watch] >= 1, "a kill that nothing accounts for"
        assert ledger.removals[watch] == 1
        assert watch.removed
    assert not [event for event in ledger.after_removal if not getattr(event, "late", False)]
    assert not ledger.other
    return sum(not ledger.kills[watch] for watch in counted)


def test_kill_reap_and_remove_at_once(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    reader = Reader(Monitor())
    try:
        counted = race(reader, hog, memcg1, ROUNDS)
    finally:
        reader.finish()
    missed = judge(reader, counted, figure)
    figure["missed"] = missed
    assert missed <= ROUNDS * MISSED


def test_the_same_with_a_reader_that_sleeps_up_to_60_ms(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    reader = Reader(Monitor(), wait_pause=0.06)
    try:
        counted = race(reader, hog, memcg1, ROUNDS)
    finally:
        reader.finish()
    figure["missed"] = judge(reader, counted, figure)


def test_the_same_with_a_reader_that_sleeps_after_each_event(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    reader = Reader(Monitor(), event_pause=0.06)
    try:
        counted = race(reader, hog, memcg1, min(ROUNDS, 150))
    finally:
        reader.finish()
    figure["missed"] = judge(reader, counted, figure)


def test_the_same_where_files_cannot_be_opened_by_id(
    memcg1: Path, hog: str, figure: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hierarchy, "_can_open_by_id", lambda _: False)
    reader = Reader(Monitor())
    try:
        counted = race(reader, hog, memcg1, min(ROUNDS, 200))
    finally:
        reader.finish()
    figure["missed"] = judge(reader, counted, figure)


def test_plain_removals_are_no_ooms(memcg1: Path, figure: dict[str, object]) -> None:
    with Monitor() as monitor:
        watches = monitor.watch_many([make(memcg1 / str(number)) for number in range(ROUNDS)])
        for watch in watches:
            Path(watch.cgroup).rmdir()
        ledger = take_until(monitor, lambda ledger: ledger.removals.total() >= ROUNDS)
        figure.update(removed=ledger.removals.total(), ooms=ledger.ooms.total())
        assert [ledger.by_watch[watch] == ledger.by_watch[watch][-1:] for watch in watches] == [True] * ROUNDS
        assert all(ledger.removals[watch] == 1 for watch in watches)
        assert ledger.ooms.total() == ledger.kills.total() == ledger.unresolved.total() == 0
        assert not ledger.other
        assert monitor.watches == ()


def test_removals_while_others_read_and_write(memcg1: Path, figure: dict[str, object]) -> None:
    """Watched, removed and waited for one after the other, so that each removal stands alone."""
    reader = Reader(Monitor())
    try:
        for number in range(200):
            cgroup = make(memcg1 / str(number))
            reader.monitor.watch(cgroup)
            cgroup.rmdir()
        reader.wait_for_removals(200)
    finally:
        reader.finish()
    figure.update(removed=reader.removed, ooms=reader.ledger.ooms.total())
    assert reader.ledger.removals.total() == len(reader.ledger.removals) == 200
    assert reader.ledger.ooms.total() == reader.ledger.kills.total() == reader.ledger.unresolved.total() == 0
