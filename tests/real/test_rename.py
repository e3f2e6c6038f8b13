"""A cgroup is its inode: it may be renamed, and another may be made under its old path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memcg_oom import Monitor, OomKill, Watch
from memcg_oom.hierarchy import Hierarchy
from tests.support import Independent, Ledger, Reader, make, remove, run_hog, take_until


@pytest.fixture(params=["by id", "by path"], autouse=True)
def _way_to_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by path":
        monkeypatch.setattr(Hierarchy, "_can_open_by_id", lambda _: False)


def kill_and_take(monitor: Monitor, watch: Watch, cgroup: Path, hog: str) -> Ledger:
    run_hog(hog, cgroup)
    return take_until(monitor, lambda ledger: ledger.kills[watch])


def test_renamed_while_watched(memcg1: Path, hog: str) -> None:
    old, new = make(memcg1 / "old", "1M"), memcg1 / "new"
    with Monitor() as monitor:
        watch = monitor.watch(old)
        assert {event.cgroup for event in kill_and_take(monitor, watch, old, hog).by_watch[watch]} == {str(old)}
        old.rename(new)
        ledger = kill_and_take(monitor, watch, new, hog)
        assert {event.cgroup for event in ledger.by_watch[watch]} == {str(new)}
        assert watch.cgroup == str(new)
        assert watch.kills == 2
        new.rename(old)
        ledger = kill_and_take(monitor, watch, old, hog)
        assert {event.cgroup for event in ledger.by_watch[watch]} == {str(old)}
        remove(old)
        ledger = take_until(monitor, lambda ledger: ledger.removals[watch])
        assert ledger.by_watch[watch][-1].cgroup == str(old)


def test_an_ancestor_renamed_while_watched(memcg1: Path, hog: str) -> None:
    cgroup = make(make(make(memcg1 / "a") / "b") / "c", "1M")
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        (memcg1 / "a").rename(memcg1 / "z")
        moved = memcg1 / "z" / "b" / "c"
        ledger = kill_and_take(monitor, watch, moved, hog)
        assert {event.cgroup for event in ledger.by_watch[watch]} == {str(moved)}
        (memcg1 / "z" / "b").rename(memcg1 / "z" / "y")
        moved = memcg1 / "z" / "y" / "c"
        ledger = kill_and_take(monitor, watch, moved, hog)
        assert {event.cgroup for event in ledger.by_watch[watch]} == {str(moved)}
        remove(moved)
        assert take_until(monitor, lambda ledger: ledger.removals[watch]).ooms[watch] == 0


def test_renamed_and_removed_without_a_word_before(memcg1: Path) -> None:
    old, new = make(memcg1 / "old"), memcg1 / "new"
    with Monitor() as monitor:
        watch = monitor.watch(old)
        old.rename(new)
        new.rmdir()
        ledger = take_until(monitor, lambda ledger: ledger.removals[watch])
        assert ledger.by_watch[watch] == ledger.by_watch[watch][-1:]
        assert ledger.by_watch[watch][0].cgroup == str(old)  # where it was last seen


def test_renamed_with_a_namesake_under_the_old_path(memcg1: Path, hog: str) -> None:
    old, new = make(memcg1 / "old", "1M"), memcg1 / "new"
    with Monitor() as monitor:
        watch = monitor.watch(old)
        old.rename(new)
        make(old, "1M")
        run_hog(hog, old)  # not the one that is watched
        ledger = kill_and_take(monitor, watch, new, hog)
        assert (watch.kills, watch.ooms) == (1, ledger.ooms[watch])
        assert {event.cgroup for event in ledger.by_watch[watch]} == {str(new)}
        remove(old)
        assert monitor.wait(0.5) == []
        remove(new)
        assert take_until(monitor, lambda ledger: ledger.removals[watch]).unresolved[watch] == 0


def test_two_cgroups_swap_their_names_while_kills_happen(memcg1: Path, hog: str) -> None:
    one, two, spare = make(memcg1 / "one", "1M"), make(memcg1 / "two", "1M"), memcg1 / "spare"
    independents = [Independent(one), Independent(two)]
    try:
        with Monitor() as monitor:
            watches = monitor.watch_many([one, two])
            for swaps in range(10):
                one.rename(spare)
                two.rename(one)
                spare.rename(two)
                run_hog(hog, two if swaps % 2 == 0 else one)  # always the one that was first called "one"
            ledger = take_until(monitor, lambda ledger: ledger.kills.total() >= 10)
            assert (watches[0].kills, watches[1].kills) == (10, 0)
            assert (watches[0].ooms, watches[1].ooms) == (independents[0].read(), 0)
            assert watches[1] not in ledger.by_watch
    finally:
        for independent in independents:
            independent.close()


@pytest.mark.parametrize("victim", ["new", "old"])
def test_made_anew_under_the_same_path(memcg1: Path, hog: str, victim: str, figure: dict[str, object]) -> None:
    """Neither sees the other's events, nor has its victims."""
    path = memcg1 / "phoenix"
    rounds = min(150, int(os.environ.get("MEMCG_OOM_ROUNDS", "150")))
    reader = Reader(Monitor())
    pairs: list[tuple[Watch, Watch]] = []
    counted: list[tuple[int, int]] = []
    try:
        for _ in range(rounds):
            old = reader.monitor.watch(make(path, "1M"))
            if victim == "old":
                independent = Independent(path)
                counted.append((run_hog(hog, path), independent.read()))
                independent.close()
            remove(path)
            new = reader.monitor.watch(make(path, "1M"))
            if victim == "new":
                independent = Independent(path)
                counted.append((run_hog(hog, path), independent.read()))
                independent.close()
            remove(path)
            pairs.append((old, new))
        reader.wait_for_removals(2 * rounds)
    finally:
        reader.finish()
    ledger = reader.ledger
    figure.update(rounds=rounds, kills=ledger.kills.total(), unresolved=ledger.unresolved.total())
    for (old, new), (pid, ooms) in zip(pairs, counted, strict=True):
        hit, spared = (old, new) if victim == "old" else (new, old)
        assert {one.pid for told in ledger.by_watch[hit] if isinstance(told, OomKill) for one in told.victims} <= {pid}
        assert ledger.ooms[hit] == ooms
        assert ledger.kills[hit] + ledger.unresolved[hit] >= 1 >= ledger.kills[hit]
        assert len(ledger.by_watch[spared]) == 1
        assert (ledger.removals[hit], ledger.removals[spared], ledger.unresolved[spared]) == (1, 1, 0)


def test_made_anew_while_the_removal_is_still_unknown(memcg1: Path, hog: str) -> None:
    """The monitor reads nothing until both have had their OOM under the one path."""
    path = memcg1 / "phoenix"
    with Monitor() as monitor:
        watches, counted = [], []
        for _ in range(5):
            watches.append(monitor.watch(make(path, "1M")))
            independent = Independent(path)
            run_hog(hog, path)
            counted.append(independent.read())
            remove(path)
            independent.await_more_than(counted[-1])
            independent.close()
        ledger = take_until(monitor, lambda ledger: ledger.removals.total() >= 5)
        assert [ledger.ooms[watch] for watch in watches] == counted
        assert all(ledger.unresolved[watch] + ledger.kills[watch] >= 1 for watch in watches)
        assert {os.fspath(path)} == {event.cgroup for told in ledger.by_watch.values() for event in told}
