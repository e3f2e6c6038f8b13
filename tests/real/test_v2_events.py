"""cgroup v2, against the real kernel: what is told of one cgroup, of several, and of a tree."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.search
from memcg_oom import (
    MemoryHigh,
    MemoryMax,
    Monitor,
    NotACgroupError,
    Oom,
    OomKill,
    Removed,
    RootCgroupError,
    Unattributed,
    Watch,
)
from memcg_oom._native import lib
from memcg_oom.hierarchy import Hierarchy
from memcg_oom.mounts import memory_mount
from memcg_oom.registration import Registrations
from tests.support import (
    MISSED,
    QUIET,
    Ledger,
    Reader,
    control_memory,
    event_count,
    eventually,
    kills_of,
    make,
    put,
    remove,
    run_hog,
    take_until,
    take_until_quiet,
)
from tests.trees import assert_well_told, catch_up, created, of

ROUNDS = int(os.environ.get("MEMCG_OOM_ROUNDS", "500"))

WAYS = pytest.mark.parametrize("way", ["watched", "in a tree"])


def watch(monitor: Monitor, cgroup: Path, way: str) -> Watch:
    if way == "watched":
        return monitor.watch(cgroup)
    return of(monitor.watch_tree(cgroup.parent), cgroup)


@WAYS
def test_a_kill(memcg2: Path, hog: str, way: str) -> None:
    cgroup = make(memcg2 / "a", "4M")
    with Monitor() as monitor:
        one = watch(monitor, cgroup, way)
        run_hog(hog, cgroup)
        ledger = take_until(monitor, lambda ledger: ledger.kills[one])
        take_until_quiet(monitor, ledger)
        assert ledger.kills[one] == one.kills == kills_of(cgroup) == 1
        assert ledger.ooms[one] == one.ooms == event_count(cgroup, "oom") > 0
        assert set(ledger.by_watch) == {one}
        assert [type(event) for event in ledger.by_watch[one]][-1] is OomKill
        remove(cgroup)
        take_until(monitor, lambda ledger: ledger.removals[one], ledger)
        assert ledger.by_watch[one][-1] == Removed(
            time_ns=ledger.by_watch[one][-1].time_ns, cgroup=str(cgroup), watch=one, unresolved=0
        )
        assert one.removed
        assert not take_until_quiet(monitor).by_watch
        assert one not in monitor.watches


def test_races_in_a_tree(memcg2: Path, hog: str, figure: dict[str, object]) -> None:
    """Each cgroup is removed as soon as its only process was killed."""
    before, ooms_before = (event_count(memcg2, key, below=True) for key in ("oom_kill", "oom"))
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg2)
        reader = Reader(monitor)
        for i in range(ROUNDS):
            cgroup = make(memcg2 / f"r{i}", "1M")
            run_hog(hog, cgroup)
            cgroup.rmdir()

        def unattributed(field: str) -> int:
            return sum(getattr(event, field) for event in reader.ledger.other if isinstance(event, Unattributed))

        reader.wait_until(lambda: reader.ledger.kills.total() + unattributed("count") >= ROUNDS)
        time.sleep(QUIET)
        ledger = reader.ledger
        figure |= {"rounds": ROUNDS, "told": ledger.kills.total(), "unattributed": unattributed("count")}
        figure |= {"removed": reader.removed, "ooms": ledger.ooms.total()}
        kills = event_count(memcg2, "oom_kill", below=True) - before
        assert kills == ROUNDS
        assert ledger.kills.total() + unattributed("count") == kills
        assert max(ledger.kills.values()) == 1
        assert unattributed("count") <= ROUNDS * MISSED
        ooms = event_count(memcg2, "oom", below=True) - ooms_before
        assert ledger.ooms.total() + unattributed("ooms") == ooms
        assert tree.kills == ledger.kills.total()
        assert_well_told(ledger)
        reader.finish()


@WAYS
def test_the_limit_above(memcg2: Path, hog: str, way: str) -> None:
    parent = make(memcg2 / "p", "4M")
    child, other = make(parent / "c"), make(parent / "d")
    with Monitor() as monitor:
        if way == "watched":
            above, below, beside = monitor.watch_many([parent, child, other])
        else:
            tree = monitor.watch_tree(parent)
            above, below, beside = of(tree, parent), of(tree, child), of(tree, other)
        run_hog(hog, child)
        ledger = take_until(monitor, lambda ledger: ledger.kills[below] and ledger.ooms[above])
        take_until_quiet(monitor, ledger)
        assert (ledger.ooms[above], ledger.kills[above]) == (event_count(parent, "oom"), 0)
        assert (ledger.ooms[below], ledger.kills[below]) == (0, 1)
        assert beside not in ledger.by_watch


def test_equal_limits(memcg2: Path, hog: str) -> None:
    parent = make(memcg2 / "p", "4M")
    child = make(parent / "c", "4M")
    with Monitor() as monitor:
        above, below = monitor.watch_many([parent, child])
        run_hog(hog, child)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills[below]))
        for cgroup, one in ((parent, above), (child, below)):
            assert ledger.ooms[one] == event_count(cgroup, "oom")
            assert ledger.kills[one] == kills_of(cgroup)
        assert ledger.kills.total() == 1


def test_oom_group(memcg2: Path, hog: str) -> None:
    cgroup = make(memcg2 / "a", "8M")
    put(cgroup / "memory.oom.group", "1")
    with Monitor() as monitor:
        one = monitor.watch(cgroup)
        run_hog(hog, cgroup, size=64 << 20, processes=4)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills[one]))
        kills = [event for event in ledger.by_watch[one] if isinstance(event, OomKill)]
        assert sum(event.count for event in kills) == kills_of(cgroup) > 1
        assert sum(event.group for event in kills) >= (event_count(cgroup, "oom_group_kill") > 0)


def test_max_and_high_are_told_when_asked_for(memcg2: Path, hog: str) -> None:
    cgroup = make(memcg2 / "a", "4M")
    put(cgroup / "memory.high", "3M")
    with Monitor() as monitor:
        one, other = monitor.watch(cgroup), monitor.watch(cgroup, also=[MemoryMax, MemoryHigh])
        third = monitor.watch(cgroup, also={MemoryHigh})
        run_hog(hog, cgroup)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills[one]))

        def count(watch: Watch, kind: type) -> int:
            return sum(getattr(event, "count", 0) for event in ledger.by_watch[watch] if type(event) is kind)

        for kind, key in ((MemoryMax, "max"), (MemoryHigh, "high")):
            assert count(one, kind) == 0
            assert count(other, kind) == event_count(cgroup, key) > 0
        assert (count(third, MemoryMax), count(third, MemoryHigh)) == (0, event_count(cgroup, "high"))
        assert [ledger.kills[each] for each in (one, other, third)] == [1, 1, 1]
        with pytest.raises(ValueError, match="also must hold nothing but"):
            monitor.watch(cgroup, also=[Oom])


def test_a_removal_with_pending_notifications(memcg2: Path, hog: str) -> None:
    """The kernel holds news back for up to 10 ms, and rmdir(2) cancels what is held back."""
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg2)
        ledger, total = Ledger(), 0
        for i in range(10):
            cgroup = make(memcg2 / f"c{i}", "1M")
            catch_up(monitor, tree, memcg2, ledger)
            one = of(tree, cgroup)
            run_hog(hog, cgroup, processes=5)
            kills, ooms = kills_of(cgroup), event_count(cgroup, "oom")
            cgroup.rmdir()
            take_until(monitor, lambda ledger: ledger.removals[one], ledger)  # noqa: B023
            assert (ledger.kills[one], ledger.ooms[one]) == (kills, ooms)
            total += kills
        take_until_quiet(monitor, ledger)
        assert ledger.kills.total() == total == event_count(memcg2, "oom_kill", below=True) >= 50
        assert not ledger.other


def test_a_namesake(memcg2: Path, hog: str) -> None:
    cgroup = make(memcg2 / "a", "4M")
    with Monitor() as monitor:
        first = monitor.watch(cgroup)
        remove(cgroup)
        make(memcg2 / "a", "4M")
        second = monitor.watch(cgroup)
        run_hog(hog, cgroup)
        ledger = take_until(monitor, lambda ledger: ledger.kills[second] and ledger.removals[first])
        take_until_quiet(monitor, ledger)
        assert (ledger.kills[first], ledger.kills[second], ledger.removals[second]) == (0, 1, 0)


def test_nested_trees_come_and_go(memcg2: Path, hog: str) -> None:
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg2)
        ledger = Ledger()
        pod = make(memcg2 / "pod")
        leaf = make(pod / "leaf", "4M")
        catch_up(monitor, tree, memcg2, ledger)
        assert created(ledger) == [str(pod), str(leaf)]
        one = of(tree, leaf)
        run_hog(hog, leaf)
        leaf.rmdir()
        pod.rmdir()
        take_until(monitor, lambda ledger: ledger.removals.total() == 2, ledger)
        take_until_quiet(monitor, ledger)
        assert ledger.kills == {one: 1}
        # Whose an OOM was that nobody has seen cannot be told when both went together; whose the kill was can.
        assert all(isinstance(event, Unattributed) and event.count == 0 for event in ledger.other)
        assert_well_told(ledger, old=[of(tree, memcg2)])
        assert len(list(tree)) == 1
        assert len(monitor._watches.nodes) == 2  # type: ignore[union-attr] # the root, and what is above it


def kill_in_a_short_life(hog: str, cgroup: Path) -> None:
    make(cgroup, "4M")
    run_hog(hog, cgroup)
    remove(cgroup)


@pytest.mark.parametrize("source", [None, "inotify"])
@pytest.mark.parametrize("whose", ["in a new one", "in one that goes", "of the same name", "of the same name twice"])
def test_a_kill_in_one_that_nobody_saw(memcg2: Path, hog: str, source: str | None, whose: str) -> None:
    """It is nobody's: neither its neighbour's nor that of the cgroup that it was in, which go before anybody looks."""
    q, s, n = memcg2 / "q", memcg2 / "q" / "s", memcg2 / "q" / "n"
    kills = 1 + (whose == "of the same name twice")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg2, source=source)
        ledger = Ledger()
        make(q)
        if whose == "in a new one":
            kill_in_a_short_life(hog, s)
            make(n)
            catch_up(monitor, tree, memcg2, ledger)
            remove(n)
        elif whose == "in one that goes":
            catch_up(monitor, tree, memcg2, ledger)
            kill_in_a_short_life(hog, s)
            remove(q)
        else:
            make(n)
            make(s)
            catch_up(monitor, tree, memcg2, ledger)
            remove(s)
            for _ in range(kills):
                kill_in_a_short_life(hog, s)
            make(s)
            remove(n)
        take_until(monitor, lambda ledger: ledger.other, ledger)
        take_until_quiet(monitor, ledger)
        assert not ledger.kills
        assert not ledger.ooms
        assert [type(event) for event in ledger.other] == [Unattributed]
        assert [(event.count, event.ooms) for event in ledger.other if isinstance(event, Unattributed)] == [
            (kills, kills)
        ]


def test_a_kill_in_one_that_is_found_while_it_goes(memcg2: Path, hog: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files go before its directory does: it is there, cannot be opened, and is nobody that its neighbour is."""
    n, s = memcg2 / "n", memcg2 / "s"

    class Going(Registrations):
        """As they are between what cgroup_destroy_locked() does to the files, and to the directory."""

        def __init__(self, hierarchy: Hierarchy, paths: Sequence[str], *args: Any, **kwargs: Any) -> None:
            super().__init__(hierarchy, paths, *args, **kwargs)
            for index, row in enumerate(self.all):
                if row.path == str(s):
                    self.give_up(index)
                    row.descriptor, row.step = -errno.ENODEV, lib.MEMCG_STEP_CONTROL_FILE

    monkeypatch.setattr(memcg_oom.search, "Registrations", Going)
    with Monitor(audit=None) as monitor:  # or it would be tried again
        tree = monitor.watch_tree(memcg2)
        ledger = Ledger()
        make(n)
        catch_up(monitor, tree, memcg2, ledger)
        make(s, "4M")
        run_hog(hog, s)
        take_until_quiet(monitor, ledger)
        remove(s)
        remove(n)
        take_until(monitor, lambda ledger: ledger.removals.total() == 1, ledger)
        take_until_quiet(monitor, ledger)
        assert not ledger.kills
        assert not ledger.ooms
        assert [(event.count, event.ooms) for event in ledger.other if isinstance(event, Unattributed)] == [(1, 1)]
        assert len(ledger.other) == 1


def test_the_memory_controller_is_switched_off_and_on(memcg2: Path, hog: str) -> None:
    parent = make(memcg2 / "p")
    child = parent / "c"
    child.mkdir()
    with Monitor() as monitor:
        with pytest.raises(NotACgroupError, match="memory controller is off"):
            monitor.watch(child)
        tree = monitor.watch_tree(parent)
        one = of(tree, child)
        ledger = take_until_quiet(monitor)
        for _ in range(2):
            control_memory(parent)
            put(child / "memory.max", "4M")
            run_hog(hog, child)
            assert kills_of(child) == 1
            ledger.kills.clear()
            take_until(monitor, lambda ledger: ledger.kills[one], ledger)
            take_until_quiet(monitor, ledger)
            assert ledger.kills == {one: 1}
            put(parent / "cgroup.subtree_control", "-memory")
            eventually(lambda: not (child / "memory.max").exists())
            take_until_quiet(monitor, ledger)
        assert not ledger.removals
        assert not ledger.other
        assert one.kills == 2
        remove(child)
        take_until(monitor, lambda ledger: ledger.removals[one], ledger)


def test_the_root_is_refused_and_its_tree_is_not(memcg2: Path, hog: str) -> None:
    mount = memory_mount()
    assert mount is not None
    cgroup = make(memcg2 / "a", "4M")
    with Monitor() as monitor:
        with pytest.raises(RootCgroupError):
            monitor.watch(mount.point)
        tree = monitor.watch_tree(mount.point)
        one = of(tree, cgroup)
        run_hog(hog, cgroup)
        cgroup.rmdir()
        ledger = take_until(monitor, lambda ledger: ledger.removals[one])
        take_until_quiet(monitor, ledger)
        assert ledger.kills == {one: 1}
        assert not ledger.other


def test_nothing_is_left_behind(memcg2: Path, hog: str) -> None:
    with Monitor() as monitor:
        for _ in range(20):
            cgroups = [make(memcg2 / f"c{i}") for i in range(20)]
            watches = monitor.watch_many(cgroups)
            for one in watches[:10]:
                one.close()
            for cgroup in cgroups:
                cgroup.rmdir()
            take_until(monitor, lambda ledger: ledger.removals.total() == 10)
        take_until_quiet(monitor)
        assert monitor.watches == ()
        engine = monitor._watches
        assert engine.nodes == {}  # type: ignore[union-attr]
        hierarchy = engine.hierarchy
        assert hierarchy is not None
        assert hierarchy.inotify is not None
        info = Path(f"/proc/self/fdinfo/{hierarchy.inotify.fd}").read_text()
        assert "inotify wd:" not in info


def test_many_cgroups_of_one_instance(memcg2: Path, hog: str, figure: dict[str, object]) -> None:
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    before = limit.read_text()
    limit.write_text("1")
    try:
        cgroups = [make(memcg2 / f"c{i}", "1M") for i in range(1000)]
        with Monitor() as monitor:
            started = time.perf_counter()
            watches = monitor.watch_many(cgroups)
            figure["watch_many"] = f"{(time.perf_counter() - started) * 1000:.0f} ms"
            for i in range(0, 1000, 50):
                run_hog(hog, cgroups[i])
            ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 20)
            take_until_quiet(monitor, ledger)
            assert ledger.kills == {watches[i]: 1 for i in range(0, 1000, 50)}
    finally:
        limit.write_text(before)
