"""Trees among others, at the end of their life, and where something runs out: queues, watches, descriptors, rights."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memcg_oom import Created, Degraded, Event, Monitor, NotACgroupError, OomKill, Removed, TreeWatch
from tests.support import (
    PATIENCE,
    Ledger,
    limit_with_room,
    make,
    put,
    remove,
    run_hog,
    run_python,
    start_python,
    take_until,
    take_until_quiet,
    until_waiting,
)
from tests.trees import (
    assert_totals,
    assert_well_told,
    assert_works,
    catch_up,
    created,
    descriptors,
    followed,
    held,
    kinds,
    of,
    standing,
    take_until_let_go,
)

both = pytest.mark.parametrize("source", ["fanotify", "inotify"])


def degraded(ledger: Ledger) -> list[str]:
    assert all(type(event) is Degraded for event in ledger.other), ledger.other
    return [event.what for event in ledger.other if isinstance(event, Degraded)]


# -- what is left


@both
@pytest.mark.parametrize(
    "how", ["at once", "one by one", "renamed", "made anew", "closed", "closed, made anew", "nested"]
)
def test_removed_cgroups_leave_nothing(memcg1: Path, source: str, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 50_000_000)
    with Monitor(linger=0.05) as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        fds = descriptors()
        paths = [make(memcg1 / str(number)) for number in range(20)]
        if how == "nested":
            paths = [*(make(path / "inner") for path in paths), *paths]
        ledger = catch_up(monitor, tree, memcg1)
        if how.startswith("closed"):
            for watch in [watch for watch in tree if watch.cgroup != tree.cgroup]:
                watch.close()
        for path in paths:
            if how == "renamed":
                path.rename(memcg1 / f"renamed-{path.name}").rmdir()
            else:
                path.rmdir()
            if how == "one by one":
                ledger.add(monitor.wait(0))
            if how.endswith("made anew"):
                make(path)
        if how.endswith("made anew"):
            catch_up(monitor, tree, memcg1, ledger)
            for path in paths:
                path.rmdir()
        take_until_let_go(monitor, tree, [memcg1], ledger)
        assert followed() == ([1] if source == "inotify" else [])
        assert descriptors() == fds
        assert not tree._left_out
        assert not tree._unfollowed
        assert len(monitor._watches.by_key.values()) == 1


# The waits in between are so short that each cgroup may go at any step of its registration.
FLEETING = """
import os, sys
for number in range(int(sys.argv[2])):
    path = f"{sys.argv[1]}/{number}"
    os.mkdir(path)
    for _ in range(number % 500):
        pass
    os.rmdir(path)
"""


@both
def test_those_that_go_while_they_are_registered_leave_nothing(
    memcg1: Path, source: str, monkeypatch: pytest.MonkeyPatch, figure: dict[str, object]
) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 50_000_000)
    with Monitor(linger=0.05) as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        fds = descriptors()
        ledger = Ledger()
        with start_python(FLEETING, memcg1, 3000) as process:
            while process.poll() is None:
                ledger.add(monitor.wait(0.001))
        take_until_let_go(monitor, tree, [memcg1], ledger)
        figure["seen"] = len(ledger.by_watch)
        assert all(kinds(ledger, watch) == [Created, Removed] for watch in ledger.by_watch)
        assert followed() == ([1] if source == "inotify" else [])
        assert descriptors() == fds
        assert not ledger.other


@both
def test_a_tree_that_is_closed_leaves_nothing(memcg1: Path, source: str) -> None:
    for name in "abc":
        make(make(memcg1 / name) / "inner")
    with Monitor() as monitor:
        single = monitor.watch(memcg1 / "a")  # what the first watch brings along is there already
        fds = descriptors()
        tree = monitor.watch_tree(memcg1, source=source)
        assert followed() == ([7] if source == "inotify" else [])
        tree.close()
        assert tree.closed
        assert list(tree) == []
        assert descriptors() == fds
        assert monitor.watches == (single,)
        tree.close()
        make(memcg1 / "new").rmdir()
        (memcg1 / "b" / "inner").rmdir()
        assert take_until_quiet(monitor).by_watch == {}
        again = monitor.watch_tree(memcg1, source=source)
        assert held(again) == standing(memcg1)


# -- several


@pytest.mark.parametrize("first", [0, 1], ids=["the first closed", "the second closed"])
@pytest.mark.parametrize("sources", list(itertools.product(["fanotify", "inotify"], repeat=2)), ids="-".join)
@pytest.mark.parametrize("where", ["same", "nested"])
def test_two_trees(memcg1: Path, hog: str, sources: tuple[str, str], where: str, first: int) -> None:
    """Each has every event; when one is closed the other goes on, in each directory that both had."""
    a = make(memcg1 / "a")
    deep = make(a / "deep")
    roots = {"same": (memcg1, memcg1), "nested": (memcg1, a)}[where]
    with Monitor(linger=0.05, settle=0.1) as monitor:
        trees = [monitor.watch_tree(root, source=source) for root, source in zip(roots, sources, strict=True)]
        assert [tree.source for tree in trees] == list(sources)
        assert [held(tree) for tree in trees] == [standing(root) for root in roots]
        assert_works(monitor, trees, a, hog)
        trees[first].close()
        left, root = trees[1 - first], roots[1 - first]
        for parent in {root, a, deep}:
            assert_works(monitor, [left], parent, hog)
        assert held(left) == standing(root)
        assert held(trees[first]) == {}


@both
def test_a_tree_beside_another(memcg1: Path, hog: str, source: str) -> None:
    """Neither is told of what is in the other."""
    roots = [make(memcg1 / name) for name in "ab"]
    with Monitor(linger=0.05, settle=0.1) as monitor:
        trees = [monitor.watch_tree(root, source=source) for root in roots]
        for tree, root in zip(trees, roots, strict=True):
            assert_works(monitor, [tree], root, hog)
        trees[0].close()
        assert_works(monitor, trees[1:], roots[1], hog)


@both
def test_a_single_watch_beside_the_tree(memcg1: Path, hog: str, source: str) -> None:
    path = make(memcg1 / "a", "1M")
    with Monitor() as monitor:
        before = monitor.watch(path)
        tree = monitor.watch_tree(memcg1, source=source)
        after = monitor.watch(path)
        watches = [before, of(tree, path), after]
        assert len(set(watches)) == 3
        assert held(tree) == standing(memcg1)
        run_hog(hog, path)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 3)
        take_until_quiet(monitor, ledger)
        assert [ledger.kills[watch] for watch in watches] == [1, 1, 1]
        assert len({ledger.ooms[watch] for watch in watches}) == 1
        assert tree.kills == 1
        before.close()
        assert held(tree) == standing(memcg1)
        tree.close()
        run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total() == 4, ledger)
        remove(path)
        take_until(monitor, lambda ledger: ledger.removals.total(), ledger)
        take_until_quiet(monitor, ledger)
        assert [ledger.kills[watch] for watch in watches] == [1, 1, 2]
        assert [ledger.removals[watch] for watch in watches] == [0, 0, 1]


@both
def test_a_member_that_is_closed_stays_out(memcg1: Path, hog: str, source: str) -> None:
    """It is the only one that is left out: those in it stay, and those to come in it are found."""
    path = make(memcg1 / "a", "1M")
    inner = make(path / "inner", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        watch = of(tree, path)
        watch.close()
        who = path.stat().st_ino

        def without() -> dict[int, str]:
            return {key: value for key, value in standing(memcg1).items() if key != who}

        assert held(tree) == without()
        run_hog(hog, path)
        new = make(path / "new", "1M")
        monitor._discovery._reading = True  # as if something had been read and lost: all is listed again
        for victim in (inner, new):
            run_hog(hog, victim)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills.total() == 2))
        assert watch not in ledger.by_watch
        assert held(tree) == without()
        assert not monitor._discovery._reading
        moved = path.rename(memcg1 / "b")
        run_hog(hog, moved / "new")
        take_until(monitor, lambda ledger: ledger.kills.total() == 3, ledger)
        assert held(tree) == without()
        for one in (moved / "inner", moved / "new", moved):
            remove(one)
        take_until(monitor, lambda ledger: ledger.removals.total() == 2, ledger)
        take_until_quiet(monitor, ledger)
        assert watch not in ledger.by_watch
        # One that is made under its name is another.
        make(moved)
        catch_up(monitor, tree, memcg1, ledger)
        assert kinds(ledger, of(tree, moved)) == [Created]


# -- the end


@both
def test_the_root_of_the_tree_removed(memcg1: Path, hog: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 50_000_000)
    root = make(memcg1 / "root")
    path = make(root / "a", "1M")
    make(path / "b")
    with Monitor() as monitor:
        tree = monitor.watch_tree(root, source=source)
        run_hog(hog, path)
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills.total()))
        watches = set(tree)
        for one in (path / "b", path, root):
            remove(one)
        assert not tree.removed
        take_until(monitor, lambda _: tree.removed, ledger)
        take_until(monitor, lambda ledger: ledger.removals.total() == 3, ledger)
        assert {watch for watch in watches if ledger.removals[watch] == 1} == watches
        assert held(tree) == {}
        assert not tree.closed
        assert "removed" in repr(tree)
        take_until_let_go(monitor, tree, [], ledger)
        assert sum(followed()) == 0
        assert_totals(tree, ledger)
        # A namesake is none of its business.
        make(make(root) / "a")
        assert take_until_quiet(monitor).by_watch == {}
        assert held(tree) == {}
        tree.close()
        assert tree.closed


@both
def test_closed_while_another_thread_waits(memcg1: Path, hog: str, source: str) -> None:
    for number in range(50):
        make(memcg1 / str(number), "1M")
    with Monitor() as monitor:
        monitor.watch(memcg1).close()  # what the first watch brings along is there already
        monitor.wait(0)
        fds = descriptors()
        for number in range(10):
            tree = monitor.watch_tree(memcg1, source=source)
            taken: list[Event] = []
            stop = threading.Event()

            def take(taken: list[Event] = taken, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    taken += monitor.wait(PATIENCE)

            thread = threading.Thread(target=take)
            thread.start()
            try:
                until_waiting(monitor, thread.native_id)
                tree.close()
                assert held(tree) == {}
                run_hog(hog, memcg1 / str(number))
                make(memcg1 / "new").rmdir()
            finally:
                stop.set()
                monitor.wake()
                thread.join(PATIENCE)
            assert not thread.is_alive()
            assert taken == []
            monitor.wait(0)
            assert descriptors() == fds


@both
def test_the_monitor_closed_while_another_thread_scans(memcg1: Path, source: str, figure: dict[str, object]) -> None:
    """At whatever moment: watch_tree() either was through, or says that the monitor is closed; nothing stays open."""
    for number in range(300):
        make(make(memcg1 / str(number)) / "inner")
    outcomes = {"through": 0, "refused": 0}
    fds = descriptors()
    for number in range(40):
        monitor = Monitor()
        told: list[object] = []

        def scan(monitor: Monitor = monitor, told: list[object] = told) -> None:
            try:
                told.append(monitor.watch_tree(memcg1, source=source))
            except BaseException as error:
                told.append(error)

        thread = threading.Thread(target=scan)
        thread.start()
        time.sleep(number * 0.002)  # another moment of the scan each time
        monitor.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        (outcome,) = told
        if isinstance(outcome, TreeWatch):
            outcomes["through"] += 1
            assert outcome.closed
        else:
            assert isinstance(outcome, ValueError), outcome
            assert str(outcome) == "the monitor is closed"
            outcomes["refused"] += 1
        outcome = None
        told.clear()
        assert descriptors() == fds
    figure.update(outcomes)
    assert outcomes["refused"]


@both
def test_four_threads_at_once(memcg1: Path, hog: str, source: str) -> None:
    for number in range(200):
        make(make(memcg1 / str(number)) / "inner")
    path = make(memcg1 / "victim", "1M")
    start = threading.Barrier(4)
    trees: list[TreeWatch] = []
    with Monitor() as monitor:

        def scan() -> None:
            start.wait()
            trees.append(monitor.watch_tree(memcg1, source=source))

        threads = [threading.Thread(target=scan) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(trees) == 4
        assert len(monitor._discovery.sources) == 1
        for tree in trees:
            assert held(tree) == standing(memcg1)
        run_hog(hog, path)
        make(memcg1 / "new")
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == len(created(ledger)) == 4)
        for tree in trees:
            assert held(tree) == standing(memcg1)
            assert tree.kills == 1
            tree.close()
        assert not ledger.other
        assert followed() == []


@both
def test_after_a_fork_the_childs_is_closed_and_the_parents_works(memcg1: Path, hog: str, source: str) -> None:
    path = make(memcg1 / "old", "1M")
    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg1, source=source)
        before = descriptors()
        make(memcg1 / "unread")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert monitor.closed
                assert tree.closed
                assert list(tree) == []
                assert tree.kills == 0
                tree.close()
                monitor.close()
                assert not followed()
                assert descriptors() < before - 5
                with pytest.raises(ValueError, match="closed"):
                    monitor.watch_tree(memcg1, source=source)
                with Monitor() as own:
                    assert held(own.watch_tree(memcg1, source=source)) == standing(memcg1)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not tree.closed
        run_hog(hog, path)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total())
        catch_up(monitor, tree, memcg1, ledger)
        assert created(ledger) == [os.fspath(memcg1 / "unread")]
        assert_works(monitor, [tree], memcg1 / "unread", hog)


# -- refusals


def test_refusals(memcg1: Path, tmp_path: Path) -> None:
    """None leaves anything behind, first watch or not: the fixture counts descriptors, this test all else."""
    file = tmp_path / "file"
    file.touch()
    gone = make(memcg1 / "gone")
    gone.rmdir()
    cases: list[tuple[object, type[Exception], str | None]] = [
        (gone, FileNotFoundError, None),
        (memcg1 / "memory.oom_control", NotADirectoryError, None),
        (file, NotADirectoryError, None),
        (tmp_path, NotACgroupError, None),
        ("/proc/self", NotACgroupError, None),
        ("", ValueError, None),
        ("a\0b", ValueError, None),
        (b"a\0b", ValueError, None),
        (memcg1, ValueError, "x"),
        (memcg1, ValueError, ""),
        (memcg1, ValueError, "audit"),
        (3.5, TypeError, None),
        *((gone, FileNotFoundError, source) for source in ("fanotify", "inotify")),
    ]
    for first in (True, False):
        with Monitor() as monitor:
            if not first:
                monitor.watch(memcg1)
            count, fds = len(monitor.watches), descriptors()
            for root, error, source in cases:
                with pytest.raises(error):
                    monitor.watch_tree(root, source=source)  # type: ignore[arg-type]
                assert len(monitor.watches) == count
                assert not monitor._discovery.trees
                assert not monitor._discovery.sources
                assert followed() == []
            assert descriptors() <= fds + 4  # the hierarchy's and the audit's, which the first watch would bring
            assert not monitor.wait(0)
            tree = monitor.watch_tree(memcg1)
        with pytest.raises(ValueError, match="the monitor is closed"):
            monitor.watch_tree(memcg1)
        tree.close()


@both
def test_the_root_removed_while_it_is_scanned(memcg1: Path, source: str, figure: dict[str, object]) -> None:
    """It was there for the first look. Either there is a tree, which is told of as removed, or it never was."""
    outcomes = {"trees": 0, "refused": 0}
    with Monitor(linger=0.05) as monitor:
        kept = monitor.watch_tree(make(memcg1 / "kept"), source=source)
        for number in range(100):
            root = make(memcg1 / "root")

            def gone(root: Path = root, pause: float = number * 2e-6) -> None:
                end = time.perf_counter() + pause
                while time.perf_counter() < end:
                    pass
                root.rmdir()

            thread = threading.Thread(target=gone)
            thread.start()
            try:
                tree = monitor.watch_tree(root, source=source)
            except FileNotFoundError:
                outcomes["refused"] += 1
            else:
                outcomes["trees"] += 1
                thread.join()
                take_until(monitor, lambda _: tree.removed)  # noqa: B023
                tree.close()
            thread.join()
        figure.update(outcomes)
        assert monitor._discovery.trees == [kept]
        assert followed() == ([1] if source == "inotify" else [])
        assert held(kept) == standing(memcg1 / "kept")


# -- limits of the kernel


@contextlib.contextmanager
def lowered(name: str, value: int) -> Iterator[Callable[[], None]]:
    """A limit of the whole host, lowered for a moment; one run at a time, or two would restore each other's.

    Yields what puts it back earlier than at the end.
    """
    path = Path("/proc/sys/fs", name)
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = path.read_text().strip()
        try:
            put(path, str(value))
            yield lambda: put(path, old)
        finally:
            put(path, old)


def watch_tree_with_queue(monitor: Monitor, root: Path, source: str, length: int) -> TreeWatch:
    """The kernel looks at the length when the instance is made, so it needs to be low for no longer than that."""
    with lowered(f"{source}/max_queued_events", length):
        return monitor.watch_tree(root, source=source)


@both
def test_the_queue_overflows(memcg1: Path, hog: str, source: str) -> None:
    """What was not queued is found by listing everything; nothing of it is told twice, or with an old name."""
    for number in range(100):
        make(make(memcg1 / f"old{number}") / "inner", "1M")
    with Monitor() as monitor:
        tree = watch_tree_with_queue(monitor, memcg1, source, 16)
        old = set(tree)
        for number in range(300):
            path = make(memcg1 / f"new{number}", "1M" if number == 299 else None)
            if number % 3 == 0:
                path.rmdir()
            elif number % 3 == 1:
                make(path.rename(memcg1 / f"moved{number}") / "inner")
        for number in range(100):
            path = memcg1 / f"old{number}"
            if number % 2:
                path.rename(memcg1 / f"aged{number}")
            else:
                (path / "inner").rmdir()
                path.rmdir()
        victims = [memcg1 / "new299", memcg1 / "aged99" / "inner"]
        for victim in victims:
            run_hog(hog, victim)
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 2)
        catch_up(monitor, tree, memcg1, ledger)
        take_until_quiet(monitor, ledger)
        assert held(tree) == standing(memcg1)
        for victim in victims:
            assert ledger.kills[of(tree, victim)] == 1
            assert {event.cgroup for event in ledger.by_watch[of(tree, victim)]} == {os.fspath(victim)}
        assert kinds(ledger, of(tree, victims[0])) == [Created, OomKill]
        assert ledger.removals.total() == 100
        assert_well_told(ledger, old=old)
        # Once more, and nobody complains again.
        for number in range(300):
            make(memcg1 / f"again{number}")
        catch_up(monitor, tree, memcg1, ledger)
        assert len(degraded(ledger)) == 1
        assert f"the queue of {source} was full" in degraded(ledger)[0]
        assert_works(monitor, [tree], memcg1 / "again7", hog)


@both
def test_the_queue_overflows_while_the_tree_is_scanned(memcg1: Path, source: str) -> None:
    for top in range(10):
        make(memcg1 / str(top))
        for number in range(100):
            make(memcg1 / str(top) / f"old{number}")
    stop = threading.Event()

    def churn() -> None:
        for number in itertools.count():
            path = make(memcg1 / str(number % 10) / f"new{number}")
            if number % 2:
                path = path.rename(path.parent / f"moved{number}")
            if number % 5 or number > 200:
                path.rmdir()
            if stop.is_set():
                return

    with Monitor() as monitor:
        trees = [watch_tree_with_queue(monitor, memcg1, source, 16)]
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            trees += [monitor.watch_tree(memcg1, source=source) for _ in range(5)]
        finally:
            stop.set()
            thread.join(PATIENCE)
        ledger = Ledger()
        for tree in trees:
            catch_up(monitor, tree, memcg1, ledger)
        take_until(monitor, lambda ledger: ledger.other, ledger)
        take_until_quiet(monitor, ledger)
        assert len(degraded(ledger)) == 1
        for tree in trees:
            assert held(tree) == standing(memcg1)


def test_no_inotify_watches_left(memcg1: Path, hog: str) -> None:
    """Cgroups in directories that nobody tells of are found by the audit, until there is room to follow them again."""
    first = make(memcg1 / "first")
    second = make(memcg1 / "second")
    make(second / "old")
    with Monitor(audit=0.05) as monitor:
        tree = monitor.watch_tree(first, source="inotify")
        # Below what is in use already, so that whatever others give back meanwhile makes no room.
        with lowered("inotify/max_user_watches", 1) as restore:
            inner = make(first / "inner")  # told of, and not followed
            ledger = catch_up(monitor, tree, first)
            other = monitor.watch_tree(second, source="inotify")  # found by the scan, and not followed
            assert held(other) == standing(second)
            assert followed() == [1]
            victims = [make(inner / "a", "1M"), make(second / "b", "1M"), make(second / "old" / "c", "1M")]
            for victim in victims:
                run_hog(hog, victim)
            take_until(monitor, lambda ledger: ledger.kills.total() == 3, ledger)
            assert held(tree) == standing(first)
            assert held(other) == standing(second)
            deep = make(victims[0] / "deep")  # and in what was found like that
            catch_up(monitor, tree, first, ledger)
            moved = victims[1].rename(second / "moved")
            catch_up(monitor, other, second, ledger)
            restore()
        deadline = time.monotonic() + PATIENCE
        while (tree._unfollowed or other._unfollowed) and time.monotonic() < deadline:
            ledger.add(monitor.wait(0.01))
        assert followed() == [len(standing(first)) + len(standing(second))]
        assert not monitor._discovery.needs_audit
        assert [
            event.cgroup for watch in ledger.kills for event in ledger.by_watch[watch] if type(event) is Created
        ] == [os.fspath(victim) for victim in victims]
        assert set(ledger.kills.values()) == {1}
        assert_well_told(ledger)
        assert len(degraded(ledger)) == 1
        assert "inotify refuses to watch" in degraded(ledger)[0]
        put(victims[0] / "memory.limit_in_bytes", "-1")  # its OOMs are not what is looked at
        put(moved / "memory.limit_in_bytes", "-1")
        for parent in (deep, moved, second / "old"):
            assert_works(monitor, [tree if parent is deep else other], parent, hog)


def test_an_unfollowed_cgroup_that_goes_leaves_nothing(memcg1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 50_000_000)
    with Monitor(audit=0.05, linger=0.05) as monitor:
        tree = monitor.watch_tree(memcg1, source="inotify")
        with lowered("inotify/max_user_watches", 1):
            path = make(make(memcg1 / "a") / "b")
            ledger = catch_up(monitor, tree, memcg1)
            assert len(tree._unfollowed) == 2
            path.rmdir()
            path.parent.rmdir()
            take_until_let_go(monitor, tree, [memcg1], ledger)
            assert not tree._unfollowed
            assert not monitor._discovery.needs_audit
        assert ledger.removals.total() == 2


# -- rights

# Gives up capabilities in every set of this process, as capset(2) has it; root alone is not enough then.
DROP = """
import ctypes, os, subprocess, sys, time
from memcg_oom import *
hog, parent = sys.argv[1:3]
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
for index in range(3):
    for capability in map(int, sys.argv[3].split()):
        sets[index] &= ~(1 << capability)
assert libc.capset(header, sets) == 0
"""
CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN = 2, 21

RIGHTS = """
events = []
def standing():
    return {os.stat(directory).st_ino: directory for directory, _, _ in os.walk(parent)}
def held():
    watches = list(tree)
    found = {watch._place.directory_id: watch.cgroup for watch in watches}
    assert len(found) == len(watches)
    return found
def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, (events, held(), standing())
        events.extend(monitor.wait(0.02))
def make(path):
    os.mkdir(path)
    with open(path + "/memory.limit_in_bytes", "w") as file:
        file.write("1M")
def kill(path):
    before = [event for event in events if type(event) is OomKill]
    assert subprocess.run([hog, path, "8388608"]).returncode == -9
    until(lambda: sum(type(event) is OomKill for event in events) > len(before))
    assert [event.cgroup for event in events if type(event) is OomKill][len(before):] == [path]
make(parent + "/a")
make(parent + "/a/b")
monitor = Monitor()
try:
    monitor.watch_tree(parent, source="fanotify").close()
    fanotify = "fanotify"
except PermissionError:
    fanotify = "PermissionError"
tree = monitor.watch_tree(parent)
assert held() == standing()
kill(parent + "/a/b")
make(parent + "/a/b/c")
make(parent + "/a/b/c/d")
until(lambda: held() == standing())
kill(parent + "/a/b/c/d")
os.rename(parent + "/a/b", parent + "/a/x")
kill(parent + "/a/x/c/d")
os.rename(parent + "/a", parent + "/t")
make(parent + "/a")
kill(parent + "/t/x")
kill(parent + "/a")
make(parent + "/t/x/c/new")
os.rename(parent + "/t", parent + "/u")
kill(parent + "/u/x/c/new")
until(lambda: held() == standing())
for path in sorted(standing().values(), key=len, reverse=True)[:-1]:
    os.rmdir(path)
until(lambda: held() == standing())
assert len(held()) == 1
told = {}
for event in events:
    told.setdefault(event.watch, []).append(type(event))
assert [types[-1] for types in told.values()] == [Removed] * 6, told
assert sum(types.count(Created) for types in told.values()) == 4, told
assert tree.kills == 6
print(monitor._watches.hierarchy.by_id, fanotify, tree.source)
monitor.close()
"""


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ((), "True fanotify fanotify"),
        ((CAP_DAC_READ_SEARCH,), "False fanotify fanotify"),
        ((CAP_SYS_ADMIN,), "True PermissionError inotify"),
        ((CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN), "False PermissionError inotify"),
    ],
    ids=["by fanotify", "by path and fanotify", "by inotify", "by path and inotify"],
)
def test_without_privileges(memcg1: Path, hog: str, missing: tuple[int, ...], said: str) -> None:
    code, out, err = run_python(DROP + RIGHTS, hog, memcg1, " ".join(map(str, missing)))
    assert (code, err, out) == (0, "", said + "\n")


# -- descriptors


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[Callable[[], None]]:
    """So many are left, and the headroom of a tree, an eighth of all. Yields what ends it earlier."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with_room(spare), hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@both
def test_most_have_no_descriptor(memcg1: Path, hog: str, source: str) -> None:
    paths = [make(memcg1 / f"old{number}", "1M") for number in range(80)]
    with Monitor(audit=0.05, linger=0.05) as monitor, few_descriptors(40) as restore:
        tree = monitor.watch_tree(memcg1, source=source)
        assert held(tree) == standing(memcg1)
        paths += [make(memcg1 / f"new{number}", "1M") for number in range(20)]
        ledger = catch_up(monitor, tree, memcg1)
        assert created(ledger) == sorted(map(os.fspath, paths[80:]))
        polled = [watch for watch in tree if watch.polled]
        assert 101 - 40 <= len(polled) == tree.polled < 101
        assert all(of(tree, path).polled for path in paths[80:])
        # A kill in one that has a descriptor, in one that has none, and in one that is new and has none.
        victims = [
            next(path for path in paths if not of(tree, path).polled),
            next(path for path in paths if of(tree, path).polled),
            paths[-1],
        ]
        for count, victim in enumerate(victims, 1):
            run_hog(hog, victim)
            take_until(monitor, lambda ledger: ledger.kills.total() == count, ledger)  # noqa: B023
            assert ledger.kills[of(tree, victim)] == 1
        # The tree leaves some to others: those take what they want, and are told when there is no more.
        taken = []
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(os.dup(0))
            with pytest.raises(OSError, match="no descriptors left") as refusal:
                monitor.watch(paths[0])
            assert refusal.value.errno == errno.EMFILE
            # Without a single one a kill and a birth still come to light; at the latest when there are some again.
            run_hog_with(taken, hog, victims[1])
            take_until(monitor, lambda ledger: ledger.kills.total() == 4, ledger)
        finally:
            for fd in taken:
                os.close(fd)
        moved = victims[1].rename(memcg1 / "moved")
        catch_up(monitor, tree, memcg1, ledger)
        run_hog(hog, moved)
        take_until(monitor, lambda ledger: ledger.kills.total() == 5, ledger)
        watch = of(tree, moved)
        assert watch.polled
        assert ledger.by_watch[watch][-1].cgroup == os.fspath(moved)
        remove(moved)
        take_until(monitor, lambda ledger: ledger.removals[watch], ledger)
        for path in paths[60:80]:
            path.rmdir()
        take_until(monitor, lambda ledger: ledger.removals.total() == 21, ledger)
        take_until_quiet(monitor, ledger)
        assert held(tree) == standing(memcg1)
        assert max(ledger.removals.values()) == 1
        assert all(kinds(ledger, watch)[-1] is Removed for watch in polled if watch.removed)
        assert_totals(tree, ledger)
        assert [what for what in degraded(ledger) if "registrations" in what] == [
            "no descriptors left for more registrations"
        ]
        restore()
        path = make(memcg1 / "later", "1M")
        run_hog(hog, path)
        take_until(monitor, lambda ledger: ledger.kills.total() == 6, ledger)
        catch_up(monitor, tree, memcg1, ledger)
        assert not of(tree, path).polled


def run_hog_with(taken: list[int], hog: str, cgroup: Path) -> None:
    """A kill while this process has hardly a descriptor; starting the hog and reading its end need a few."""
    given = [taken.pop() for _ in range(4)]
    for fd in given:
        os.close(fd)
    run_hog(hog, cgroup)
    for _ in given:
        taken.append(os.dup(0))


@both
def test_polled_ones_leave_nothing(memcg1: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcg_oom.v1.LATE", 50_000_000)
    with Monitor(audit=0.05, linger=0.05) as monitor, few_descriptors(20):
        tree = monitor.watch_tree(memcg1, source=source)
        fds = descriptors()
        ledger = Ledger()
        for _ in range(2):
            paths = [make(memcg1 / str(number)) for number in range(60)]
            catch_up(monitor, tree, memcg1, ledger)
            assert tree.polled >= 40
            of(tree, paths[-1]).close()
            for path in paths:
                path.rmdir()
            take_until_let_go(monitor, tree, [memcg1], ledger)
            assert not monitor._watches.polled
            assert not tree._left_out
            assert followed() == ([1] if source == "inotify" else [])
            assert descriptors() == fds
        assert ledger.removals.total() == 2 * 59
        assert_well_told(ledger)
