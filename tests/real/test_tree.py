"""A tree on the real kernel: who is in it, who comes, goes and moves, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memcg_oom import Created, Monitor, OomKill, Removed, TreeWatch, Unattributed
from memcg_oom.host import HostCounter
from memcg_oom.mounts import memory_mount
from tests.support import Independent, Ledger, make, put, remove, run_hog, start_python, take_until, take_until_quiet
from tests.trees import (
    assert_totals,
    assert_well_told,
    catch_up,
    created,
    held,
    holds,
    kinds,
    of,
    standing,
    take_until_let_go,
)

both = pytest.mark.parametrize("source", ["fanotify", "inotify"])


# -- what there is


@both
def test_the_first_scan_finds_all_that_there_is(memcg1: Path, hog: str, source: str) -> None:
    paths = [memcg1 / "a", memcg1 / "a" / "b", memcg1 / "a" / "b" / "c", memcg1 / "a" / "d", memcg1 / "e"]
    for path in paths:
        make(path, "1M")
    run_hog(hog, paths[2])
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        assert (tree.source, tree.cgroup, tree.closed, tree.removed, tree.polled) == (
            source,
            os.fspath(memcg1),
            False,
            False,
            0,
        )
        assert sorted(watch.cgroup for watch in tree) == sorted(map(os.fspath, [memcg1, *paths]))
        assert held(tree) == standing(memcg1)
        assert sorted(watch.cgroup for watch in monitor.watches) == sorted(watch.cgroup for watch in tree)
        # A kill that must be told comes last: the one before the tree, or a Created, would have come with it.
        run_hog(hog, paths[2])
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills.total()))
        assert ledger.kills == {of(tree, paths[2]): 1}
        assert created(ledger) == []
        assert not ledger.other
        assert_totals(tree, ledger)
    assert tree.closed
    assert list(tree) == []


@both
def test_a_tree_of_one_leaf(memcg1: Path, source: str) -> None:
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        assert held(tree) == {memcg1.stat().st_ino: os.fspath(memcg1)}
        assert repr(tree) == f"<TreeWatch {os.fspath(memcg1)!r} open cgroups=1 source={source}>"


# -- who comes and goes


@both
def test_a_burst_of_nested_cgroups(memcg1: Path, source: str) -> None:
    """Those made in a new one before anybody looks at it are told of by nobody: it has to be listed."""
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        for name in "pqr":
            for path in (memcg1 / name, memcg1 / name / "b", memcg1 / name / "b" / "c", memcg1 / name / "d"):
                make(path)
        ledger = catch_up(monitor, tree, memcg1)
        make(memcg1 / "q" / "b" / "c" / "late")
        catch_up(monitor, tree, memcg1, ledger)
        take_until_quiet(monitor, ledger)
        wanted = set(standing(memcg1).values()) - {os.fspath(memcg1)}
        assert created(ledger) == sorted(wanted)
        assert all(kinds(ledger, watch) == [Created] for watch in ledger.by_watch)
        # Nobody hears of a cgroup before the one that it is in.
        order = [event.cgroup for told in ledger.by_watch.values() for event in told]
        parents = [(os.path.dirname(path), path) for path in order if os.path.dirname(path) in wanted]
        assert len(parents) == 10
        assert all(order.index(parent) < order.index(path) for parent, path in parents)


@both
def test_each_that_goes_is_told_once_and_last(memcg1: Path, hog: str, source: str) -> None:
    old = make(memcg1 / "old", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        watch = of(tree, old)
        young = [make(memcg1 / "young"), make(memcg1 / "young" / "inner", "1M")]
        ledger = catch_up(monitor, tree, memcg1)
        watches = [of(tree, path) for path in young]
        for path in (old, young[1]):
            run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total() == 2, ledger)
        for path in (old, *reversed(young)):
            remove(path)
        take_until(monitor, lambda ledger: ledger.removals.total() == 3, ledger)
        take_until_quiet(monitor, ledger)
        assert ledger.removals == {watch: 1, watches[0]: 1, watches[1]: 1}
        assert_well_told(ledger, old={watch})
        assert not ledger.unresolved.total()
        assert held(tree) == {memcg1.stat().st_ino: os.fspath(memcg1)}
        assert_totals(tree, ledger)


@both
def test_a_thousand_come_and_go(memcg1: Path, source: str) -> None:
    """Names are used again at once, so that changes are read of cgroups that are others by now."""
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        ledger = Ledger()
        for number in range(1000):
            stays = number >= 990 and number % 2
            path = make(memcg1 / (f"stays{number}" if stays else str(number % 7)))
            if number % 3:
                make(path / "inner").rmdir()
            if number % 50 == 0:
                ledger.add(monitor.wait(0))
            if not stays:
                path.rmdir()
        catch_up(monitor, tree, memcg1, ledger)
        take_until_quiet(monitor, ledger)
        assert held(tree) == standing(memcg1)
        assert len(held(tree)) == 6
        assert_well_told(ledger)
        assert all(ledger.removals[watch] == 1 for watch in ledger.by_watch if watch not in set(tree))
        assert not ledger.other


@both
def test_made_anew_under_the_same_name(memcg1: Path, hog: str, source: str) -> None:
    """Each is a cgroup of its own: its kills are its own, and each is told of as gone."""
    path = memcg1 / "phoenix"
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        ledger = Ledger()
        for _ in range(5):
            make(path, "1M")
            take_until(monitor, lambda _: holds(tree, path), ledger)
            run_hog(hog, path)
            take_until(monitor, lambda ledger: ledger.kills[of(tree, path)], ledger)
            remove(path)
        make(path, "1M")
        take_until(monitor, lambda ledger: ledger.removals.total() == 5 and held(tree) == standing(memcg1), ledger)
        assert_well_told(ledger)
        assert sorted(ledger.kills.values()) == [1] * 5
        assert ledger.kills[of(tree, path)] == 0
        assert tree.kills == 5


@both
def test_born_and_killed_before_its_watch_stood(memcg1: Path, hog: str, source: str) -> None:
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        outer, inner = make(memcg1 / "outer", "1M"), make(memcg1 / "outer" / "inner", "1M")
        run_hog(hog, outer)
        run_hog(hog, inner)
        run_hog(hog, inner)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 3)
        take_until_quiet(monitor, ledger)
        for path, kills in ((outer, 1), (inner, 2)):
            watch = of(tree, path)
            assert kinds(ledger, watch) == [Created, OomKill]
            assert (ledger.kills[watch], watch.kills) == (kills, kills)
        assert_totals(tree, ledger)


@both
def test_born_renamed_and_killed_before_its_watch_stood(memcg1: Path, hog: str, source: str) -> None:
    """A rename hides an old cgroup from a scan, but not that this one is younger than the tree."""
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        path = make(memcg1 / "old", "1M").rename(memcg1 / "new")
        run_hog(hog, path)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 1)
        assert [(type(event), event.cgroup) for event in ledger.by_watch[of(tree, path)]] == [
            (Created, os.fspath(path)),
            (OomKill, os.fspath(path)),
        ]


@both
def test_came_and_went_unseen(memcg1: Path, hog: str, source: str) -> None:
    """Whose kill that was nobody can know, and a tree of less than the host claims nothing about it."""
    with Monitor(audit=0.05) as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        path = make(memcg1 / "brief", "1M")
        run_hog(hog, path)
        remove(path)
        ledger = take_until_quiet(monitor)
        path = make(memcg1 / "seen", "1M")
        run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total(), ledger)
        take_until_quiet(monitor, ledger)
        assert list(ledger.by_watch) == [of(tree, path)]
        assert not ledger.other
        assert tree.kills == 1


# -- the whole host


def host_root() -> Path:
    mount = memory_mount()
    assert mount is not None
    return Path(mount.point)


@pytest.fixture
def host_kills() -> Iterator[Callable[[], int]]:
    """The host's own count of kills."""
    counter = HostCounter()
    yield counter.read
    os.close(counter.fd)


def accounted_for(tree: TreeWatch, ledger: Ledger) -> int:
    """Kills, in whichever cgroup, each once: a tree has one watch of each."""
    return tree.kills + unattributed(ledger)


def unattributed(ledger: Ledger) -> int:
    return sum(event.count for event in ledger.other if type(event) is Unattributed)


@both
@pytest.mark.parametrize("beside", ["alone", "beside a single watch", "after a single watch", "beside a smaller tree"])
def test_every_kill_of_the_host_is_accounted_for(
    memcg1: Path, hog: str, source: str, host_kills: Callable[[], int], beside: str
) -> None:
    """One kill whose cgroup is seen, told by two watches perhaps, and one whose cgroup is not.

    Other processes of this machine may kill as well: then only the bounds hold, and it is tried again.
    """
    for number in range(20):
        with Monitor(settle=0.1) as monitor:
            if beside == "beside a smaller tree":
                monitor.watch_tree(memcg1, source=source)
            before = host_kills()
            tree = monitor.watch_tree(host_root(), source=source)
            begun = host_kills()
            seen = make(memcg1 / f"seen-{number}", "1M")
            brief = make(memcg1 / f"brief-{number}", "1M")
            if beside == "beside a single watch":
                monitor.watch(seen)
            run_hog(hog, brief)
            remove(brief)
            run_hog(hog, seen)
            if beside == "after a single watch":
                monitor.watch(seen)
                run_hog(hog, seen)
            ours = host_kills() - begun
            ledger = take_until(monitor, lambda ledger: accounted_for(tree, ledger) >= ours)  # noqa: B023
            take_until_quiet(monitor, ledger, 0.5)
            after = host_kills()
            assert accounted_for(tree, ledger) <= after - before, "a kill that was invented"
            assert not [watch for watch in ledger.by_watch if watch.cgroup == os.fspath(brief)]
            kills = 2 if beside == "after a single watch" else 1
            assert of(tree, seen).kills == kills
            if after - before == kills + 1:
                assert (tree.kills, unattributed(ledger)) == (kills, 1)
                return
    pytest.skip("others killed all the time on this machine, so that nothing exact can be said")


@both
def test_the_root_of_the_hierarchy_is_not_among_them(memcg1: Path, source: str) -> None:
    root = host_root()
    with Monitor() as monitor:
        tree = monitor.watch_tree(root, source=source)
        assert os.fspath(root) not in held(tree).values()
        assert os.fspath(memcg1) in held(tree).values()
        assert not any(watch.cgroup == os.fspath(root) for watch in monitor.watches)
        path = make(memcg1 / "new")
        ledger = take_until(monitor, lambda _: holds(tree, path))
        assert kinds(ledger, of(tree, path)) == [Created]
        assert tree.cgroup == os.fspath(root)
        assert not tree.polled


# -- who moves


def renames_of(how: str, memcg1: Path) -> None:
    a, b, t = memcg1 / "a", memcg1 / "b", memcg1 / "t"
    match how:
        case "a leaf":
            (a / "x" / "y").rename(a / "x" / "z")
        case "an inner one":
            a.rename(t)
        case "an inner one, then one in it":
            a.rename(t)
            (t / "x").rename(t / "w")
        case "one in an inner one, then that":
            (a / "x").rename(a / "w")
            a.rename(t)
        case "a chain":
            a.rename(t)
            b.rename(a)
        case "a swap":
            a.rename(t)
            b.rename(a)
            t.rename(b)
        case "a swap with names that begin alike":
            a.rename(memcg1 / "aa")
            b.rename(a)
            (memcg1 / "aa").rename(memcg1 / "a-b")
        case "there and back":
            a.rename(t)
            t.rename(a)
        case "a new one under the old name":
            a.rename(t)
            make(make(a) / "x")
        case "in another's old place":
            b_y = b / "x" / "y"
            b_y.rmdir()
            (b / "x").rmdir()
            b.rmdir()
            a.rename(b)
        case "a ring of three":
            make(memcg1 / "c")
            make(memcg1 / "c" / "x")
            a.rename(t)
            b.rename(a)
            (memcg1 / "c").rename(b)
            t.rename(memcg1 / "c")
        case _:
            raise AssertionError(how)


@both
@pytest.mark.parametrize(
    "how",
    [
        "a leaf",
        "an inner one",
        "an inner one, then one in it",
        "one in an inner one, then that",
        "a chain",
        "a swap",
        "a swap with names that begin alike",
        "there and back",
        "a new one under the old name",
        "in another's old place",
        "a ring of three",
    ],
)
def test_paths_after_renames(memcg1: Path, hog: str, source: str, how: str) -> None:
    """All between two waits; both sides have members below them, which move along."""
    for top in (memcg1 / "a", memcg1 / "b"):
        make(make(make(top) / "x") / "y", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        old = set(tree)
        renames_of(how, memcg1)
        ledger = catch_up(monitor, tree, memcg1)
        # Each that can be killed in is, and says where it is.
        victims = [Path(path) for path in standing(memcg1).values() if path.endswith(("/x/y", "/x/z", "/w/y"))]
        assert victims
        for victim in victims:
            run_hog(hog, victim)
            watch = of(tree, victim)
            take_until(monitor, lambda ledger: ledger.kills[watch], ledger)  # noqa: B023
            assert {event.cgroup for event in ledger.by_watch[watch]} == {os.fspath(victim)}
        assert_well_told(ledger, old=old)
        assert not ledger.other


@both
@pytest.mark.parametrize("inside", [".", "inner"], ids=["leaf", "inner"])
def test_paths_after_a_rename_and_signals_in_one_batch(memcg1: Path, hog: str, source: str, inside: str) -> None:
    """A rename, the birth of a namesake and both kills before anybody looks; each is told under its own name."""
    old, new = make(memcg1 / "old", "1M"), memcg1 / "new"
    if inside != ".":
        make(old / inside, "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        watch = of(tree, old / inside)
        old.rename(new)
        run_hog(hog, new / inside)
        make(old, "1M")
        run_hog(hog, old)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 2)
        assert {event.cgroup for event in ledger.by_watch[watch]} == {os.fspath(new / inside)}
        assert kinds(ledger, of(tree, old)) == [Created, OomKill]
        assert {event.cgroup for event in ledger.by_watch[of(tree, old)]} == {os.fspath(old)}
        assert watch.kills == of(tree, old).kills == 1


@both
def test_the_root_of_the_tree_renamed(memcg1: Path, hog: str, source: str) -> None:
    """Nobody tells of that: the root is in a directory that is not the tree's."""
    root = make(memcg1 / "root", "1M")
    make(root / "inner", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(root, source=source)
        watch = of(tree, root / "inner")
        moved = root.rename(memcg1 / "moved")
        make(make(root) / "inner")  # namesakes, which are not the tree's
        run_hog(hog, moved / "inner")
        ledger = take_until(monitor, lambda ledger: ledger.kills.total())
        assert {event.cgroup for event in ledger.by_watch[watch]} == {os.fspath(moved / "inner")}
        assert tree.cgroup == os.fspath(moved)
        run_hog(hog, moved)
        take_until(monitor, lambda ledger: ledger.kills.total() == 2, ledger)
        new = make(moved / "new", "1M")
        run_hog(hog, new)
        take_until(monitor, lambda ledger: ledger.kills.total() == 3, ledger)
        catch_up(monitor, tree, moved, ledger)
        assert {event.cgroup for event in ledger.by_watch[of(tree, new)]} == {os.fspath(new)}
        assert all(ledger.kills[one] == 1 for one in tree)


@both
def test_created_in_a_tree_whose_root_was_renamed(memcg1: Path, source: str) -> None:
    root = make(memcg1 / "root")
    with Monitor() as monitor:
        tree = monitor.watch_tree(root, source=source)
        moved = root.rename(memcg1 / "moved")
        new = make(moved / "new")
        ledger = take_until(monitor, lambda ledger: ledger.by_watch)
        assert created(ledger) == [os.fspath(new)]
        assert held(tree) == standing(moved)


@both
def test_a_thousand_renames(memcg1: Path, hog: str, source: str) -> None:
    """Read in batches of whatever size: at the end everybody is where the file system has them."""
    names = [f"{number}" for number in range(20)]
    for name in names:
        make(make(memcg1 / name) / "inner")
    who = make(memcg1 / "0" / "victim", "1M").stat().st_ino
    free = "spare"
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        watches = set(tree)
        ledger = Ledger()
        for number in range(1000):
            slot = number * 7 % len(names)
            (memcg1 / names[slot]).rename(memcg1 / free)
            names[slot], free = free, names[slot]
            if number % 100 == 99:
                catch_up(monitor, tree, memcg1, ledger)
        assert not ledger.by_watch
        path = Path(standing(memcg1)[who])
        run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total(), ledger)
        assert {event.cgroup for event in ledger.by_watch[of(tree, path)]} == {os.fspath(path)}
        assert set(tree) == watches
        assert not ledger.other


@both
def test_renamed_and_removed_without_a_word_before(memcg1: Path, source: str) -> None:
    make(memcg1 / "old")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        watch = of(tree, memcg1 / "old")
        (memcg1 / "old").rename(memcg1 / "new").rmdir()
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.removals.total()))
        assert list(ledger.by_watch) == [watch]
        assert kinds(ledger, watch) == [Removed]
        assert held(tree) == standing(memcg1)


# -- totals


@both
def test_totals_outlive_the_cgroups_and_the_tree(
    memcg1: Path, hog: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 100_000_000)
    paths = [make(memcg1 / name, "1M") for name in "abc"]
    # In "c" the limit of the one above is hit: both are signalled, and the kill is in the one below.
    paths.append(make(paths[2] / "below"))
    independents = [Independent(path) for path in paths]
    try:
        with Monitor() as monitor:
            tree = monitor.watch_tree(memcg1, source=source)
            for path in (paths[0], paths[0], paths[1], paths[3]):
                run_hog(hog, path)
            ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 4)
            take_until_quiet(monitor, ledger)
            assert sum(independent.read() for independent in independents) == tree.ooms
            assert_totals(tree, ledger)
            totals = tree.ooms, tree.kills
            for path in (paths[3], *paths[:2]):
                remove(path)
            take_until(monitor, lambda ledger: ledger.removals.total() == 3, ledger)
            assert (tree.ooms, tree.kills) == totals
            take_until_let_go(monitor, tree, [memcg1, paths[2]], ledger)
            assert (tree.ooms, tree.kills) == totals
            assert_totals(tree, ledger)
            tree.close()
            assert (tree.ooms, tree.kills) == totals
        assert (tree.ooms, tree.kills) == totals
    finally:
        for independent in independents:
            independent.close()


@both
def test_totals_after_the_monitor_was_closed(memcg1: Path, hog: str, source: str) -> None:
    path = make(memcg1 / "a", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        run_hog(hog, path)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills.total()))
    assert_totals(tree, ledger)


@both
def test_what_a_closed_member_had_counted_still_counts(
    memcg1: Path, hog: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 100_000_000)
    path = make(memcg1 / "a", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        run_hog(hog, path)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills.total()))
        of(tree, path).close()
        assert_totals(tree, ledger)
        remove(path)
        take_until_let_go(monitor, tree, [memcg1], ledger)
        assert_totals(tree, ledger)


# -- beside the scan

CHURN = """
import os, sys
root, spared = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
number = 0
while os.path.exists(root + "/go-on"):
    top = f"{root}/{number % 10}"
    path = f"{top}/x{number}"
    os.mkdir(path)
    os.mkdir(path + "/y")
    if number % 3:
        os.rmdir(path + "/y")
        os.rename(path, f"{top}/z{number}")
        path = f"{top}/z{number}"
    else:
        os.rename(path + "/y", path + "/z")
    if number % 3 == 1 or number > spared:
        if number % 3 == 0:
            os.rmdir(path + "/z")
        os.rmdir(path)
    number += 1
print(number, flush=True)
"""


@both
def test_made_and_removed_while_the_tree_is_scanned(memcg1: Path, source: str, figure: dict[str, object]) -> None:
    """Whether the scan saw a cgroup or the source told of it: it is held once, and nothing that is gone is."""
    for top in range(10):
        make(memcg1 / str(top))
        for number in range(150):
            make(memcg1 / str(top) / f"old{number}")
    old = standing(memcg1)
    go_on = make(memcg1 / "go-on")
    with start_python(CHURN, memcg1, 300) as churn, Monitor() as monitor:
        assert churn.stdout is not None
        try:
            assert churn.stdout.readline() == "ready\n"
            trees = [monitor.watch_tree(memcg1, source=source) for _ in range(3)]
            go_on.rmdir()
            rounds = int(churn.stdout.readline())
        finally:
            churn.kill()
        ledger = Ledger()
        for tree in trees:
            catch_up(monitor, tree, memcg1, ledger)
            assert old.items() <= held(tree).items()
        take_until_quiet(monitor, ledger)
        for tree in trees:
            assert held(tree) == standing(memcg1)
        figure.update(rounds=rounds, cgroups=len(held(trees[0])))
        live = {watch for tree in trees for watch in tree}
        for watch in ledger.by_watch:
            assert kinds(ledger, watch) in ([Created], [Removed], [Created, Removed]), ledger.by_watch[watch]
            assert ledger.removals[watch] == (watch not in live)
        assert not ledger.other


# -- names and depth


@both
def test_forty_levels(memcg1: Path, hog: str, source: str) -> None:
    path = memcg1
    for _ in range(20):
        path = make(path / "down")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        for _ in range(20):
            path = make(path / "down")
        put(path / "memory.limit_in_bytes", "1M")
        ledger = catch_up(monitor, tree, memcg1)
        assert len(created(ledger)) == 20
        run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total(), ledger)
        (memcg1 / "down").rename(memcg1 / "up")
        path = memcg1 / "up" / path.relative_to(memcg1 / "down")
        catch_up(monitor, tree, memcg1, ledger)
        assert of(tree, path).kills == 1
        while path != memcg1:
            remove(path)
            path = path.parent
        take_until(monitor, lambda ledger: ledger.removals.total() == 40, ledger)
        assert held(tree) == standing(memcg1)


NAMES = {
    "spaces": b" two  words ",
    "bytes": b"\xff\xfe not UTF-8",
    "UTF-8": "ümläut-\N{SNOWMAN}".encode(),
    "dots": b"...x",
    "long": b"x" * 255,
    "control": b"\x01\t\"'\\%s",
}


@both
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names(memcg1: Path, hog: str, source: str, name: bytes) -> None:
    text = os.fsdecode(name)
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        path = make(memcg1 / text, "1M")
        inner = make(path / "inner")
        ledger = catch_up(monitor, tree, memcg1)
        run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total(), ledger)
        assert {event.cgroup for event in ledger.by_watch[of(tree, path)]} == {f"{memcg1}/{text}"}
        other = monitor.watch_tree(os.fsencode(path), source=source)
        assert held(other) == standing(path)
        moved = inner.rename(path / text)
        catch_up(monitor, tree, memcg1, ledger)
        assert of(tree, moved).cgroup == of(other, moved).cgroup == f"{memcg1}/{text}/{text}"


def test_a_name_with_a_newline_is_refused_by_the_kernel(memcg1: Path) -> None:
    """So NAMES has none. cgroup_mkdir() says why: it would be unparsable in /proc/PID/cgroup."""
    with pytest.raises(OSError, match="Invalid argument"):
        (memcg1 / "two\nlines").mkdir()
    make(memcg1 / "plain")
    with pytest.raises(OSError, match="Invalid argument"):
        (memcg1 / "plain").rename(memcg1 / "two\nlines")
