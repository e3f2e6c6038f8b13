"""Trees that follow a fake kernel: its folders are plain ones, so inotify tells of them for real."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.hierarchy
import memcg_oom.monitor
from memcg_oom import CgroupEvent, Created, Event, Monitor, Oom, OomKill, Removed, TreeWatch
from memcg_oom._native import lib
from memcg_oom.hierarchy import Hierarchy, Place
from memcg_oom.watches import CROWD
from tests.fake.fake_kernel import AGES, FakeCgroup, FakeKernel, brief, replace_in_lib, take, take_while, v1
from tests.support import Ledger, readable


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    fake.close()


def paths(tree: TreeWatch) -> set[str]:
    return {watch.cgroup for watch in tree}


def names(kernel: FakeKernel, events: list[Event]) -> list[tuple[str, str]]:
    """The events as pairs: the name, the cgroup."""
    return [
        (type(event).__name__, os.path.relpath(event.cgroup, kernel.root))
        for event in events
        if isinstance(event, CgroupEvent)
    ]


def remove(cgroup: FakeCgroup) -> None:
    cgroup.rmdir()
    cgroup.removal_signal()


# -- the scan


@pytest.mark.parametrize("of", ["the root", "a cgroup"])
def test_a_tree_holds_what_there_is(kernel: FakeKernel, of: str) -> None:
    made = [kernel.make(name, kills=3) for name in ("p", "p/q", "p/q/r", "p/s", "z")]
    with Monitor(settle=AGES) as monitor:
        tree = kernel.tree(monitor, None if of == "the root" else made[0].path)
        inside = made if of == "the root" else made[:4]
        assert paths(tree) == {str(cgroup.path) for cgroup in inside}
        assert set(monitor.watches) == set(tree)
        assert (tree.source, tree.ooms, tree.kills, tree.polled, tree.closed, tree.removed) == (
            "inotify",
            0,
            0,
            0,
            False,
            False,
        )
        assert monitor.wait(0) == []
        for cgroup in made:
            cgroup.kill(2)
            if cgroup in inside:
                cgroup.oom()
            else:
                assert not cgroup.listen()
        ledger = Ledger(take(monitor, 2 * len(inside)))
        assert {(watch.cgroup, ledger.ooms[watch], ledger.kills[watch]) for watch in ledger.by_watch} == {
            (str(cgroup.path), 1, 2) for cgroup in inside
        }
        assert (tree.ooms, tree.kills) == (len(inside), 2 * len(inside))


def test_the_root_counts_its_own_kills(kernel: FakeKernel) -> None:
    root = kernel.make_root()
    with Monitor(settle=0.0) as monitor:
        tree = kernel.tree(monitor)
        assert list(tree) == []
        root.kill()
        kernel.log()
        (event,) = take(monitor, 1)
        assert isinstance(event, OomKill)
        assert event.cgroup == str(kernel.root)
        assert not root.listen()


def test_nobody_wakes_for_a_tree_in_which_nothing_happens(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.make()
    with Monitor(settle=0.0, audit=0.02) as monitor:
        tree = kernel.tree(monitor)
        take_while(monitor, lambda: any(watch._trouble.round for watch in tree))
        waits: list[int] = []

        def counted(epoll_fd: int, timeout: int, batch: Any) -> int:
            waits.append(timeout)
            return int(lib.memcg_wait(epoll_fd, timeout, batch))

        replace_in_lib(monkeypatch, memcg_wait=counted)
        assert monitor.wait(0.3) == []
        assert len(waits) <= 2


def test_what_happens_during_the_scan(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.make("p")
    old = kernel.make("p/old", kills=5)
    new: list[FakeCgroup] = []

    def meanwhile(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        if not new:
            # p is followed; its children are listed next. One is renamed, which hides that it is old.
            new.append(kernel.make("p/new"))
            new[0].kill(2)
            old.rename("renamed")
            kernel.make("p/brief").rmdir()

    replace_in_lib(monkeypatch, memcg_register_many=meanwhile)
    with Monitor(settle=AGES) as monitor:
        tree = monitor.watch_tree(kernel.root / "p", source="inotify")
        events = monitor.wait(0)
        assert paths(tree) == {str(kernel.root / name) for name in ("p", "p/new", "p/renamed")}
        assert ("OomKill", 5) not in brief(events)
        old.kill()
        old.oom()
        assert ("OomKill", 1) in brief(take_while(monitor, lambda: not monitor._outbox and tree.ooms == 0))


def test_a_root_that_goes_before_the_scan(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make("p")

    def meanwhile(*arguments: Any) -> None:
        if not cgroup.gone:
            cgroup.rmdir()
        lib.memcg_register_many(*arguments)

    with Monitor() as monitor:
        with monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_register_many=meanwhile)
            with pytest.raises(FileNotFoundError):
                monitor.watch_tree(cgroup.path, source="inotify")
        assert monitor.watches == ()
        assert monitor._discovery.trees == []
        assert monitor._discovery.sources == {}
        assert monitor.wait(0) == []


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["TreeWatch", "Search"])
def test_a_tree_that_is_not_made_leaves_nothing(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, where: str, error: type[BaseException]
) -> None:
    cgroup = kernel.make("p")

    def fail(*_: object) -> None:
        raise error

    with Monitor() as monitor:
        monitor.watch(cgroup.path)
        fds = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(memcg_oom.monitor, where, fail)
            with pytest.raises(error):
                monitor.watch_tree(cgroup.path, source="inotify")
        assert monitor._discovery.sources == {}
        assert len(os.listdir("/proc/self/fd")) == fds


# -- who comes and goes


def test_created_and_removed(kernel: FakeKernel) -> None:
    kernel.make("p")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        assert not readable(monitor.fileno())
        cgroup = kernel.make("p/c")
        cgroup.kill(2)  # before its watch stands
        assert readable(monitor.fileno())
        events = take(monitor, 2)
        assert names(kernel, events) == [("Created", "p/c"), ("OomKill", "p/c")]
        assert brief(events) == [("Created", 0), ("OomKill", 2)]
        cgroup.oom()
        cgroup.kill()
        assert brief(take(monitor, 2)) == [("Oom", 1), ("OomKill", 1)]
        assert (tree.ooms, tree.kills) == (1, 3)
        remove(cgroup)
        assert names(kernel, take(monitor, 1)) == [("Removed", "p/c")]
        assert paths(tree) == {str(kernel.root / "p")}
        assert (tree.ooms, tree.kills) == (1, 3)


def test_a_whole_tree_at_once(kernel: FakeKernel) -> None:
    with Monitor(settle=AGES) as monitor:
        tree = kernel.tree(monitor)
        for name in ("a", "a/b", "a/b/c", "a/d", "e"):
            kernel.make(name).kill()
        events = take(monitor, 10)
        made = [event.cgroup for event in events if isinstance(event, Created)]
        assert sorted(made) == sorted(paths(tree))
        assert paths(tree) == {str(kernel.root / name) for name in ("a", "a/b", "a/b/c", "a/d", "e")}
        assert tree.kills == 5
        # The first of each cgroup is its Created.
        assert {type(told[0]) for told in Ledger(events).by_watch.values()} == {Created}
        kernel.make("a/b/c/d")
        assert names(kernel, take(monitor, 1)) == [("Created", "a/b/c/d")]


def test_gone_before_the_look(kernel: FakeKernel) -> None:
    with Monitor(settle=AGES) as monitor:
        tree = kernel.tree(monitor)
        for _ in range(3):
            kernel.make("brief").rmdir()
        assert monitor.wait(0) == []
        assert list(tree) == []
        assert not monitor._discovery.needs_audit
        assert not readable(monitor.fileno())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_gone_in_the_middle_of_the_look(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        inotify = monitor._discovery.sources["inotify"]
        cgroup = kernel.make("brief")

        def meanwhile(*arguments: Any) -> None:
            if moment == "before" and not cgroup.gone:
                cgroup.rmdir()
            lib.memcg_register_many(*arguments)
            if moment == "after" and not cgroup.gone:
                cgroup.rmdir()
                cgroup.removal_signal()

        replace_in_lib(monkeypatch, memcg_register_many=meanwhile)
        if moment == "before":
            assert monitor.wait(0) == []
        else:
            assert names(kernel, take(monitor, 2)) == [("Created", "brief"), ("Removed", "brief")]
        assert list(tree) == []
        assert set(inotify._watches) <= set(tree._members)  # type: ignore[attr-defined]


def test_registered_and_gone_leaves_no_inotify_watch(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is not removed stays until the limit of inotify watches is reached: the kernel never takes it away.
    added: list[int] = []
    removed: list[int] = []

    def gone_at_the_write(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        row = arguments[-1].rows[0]
        added.append(row.follower)
        os.close(row.eventfd)
        row.eventfd, row.step = -errno.ENODEV, lib.MEMCG_STEP_WRITE
        cgroup.gone = True
        kernel.bury(cgroup.path)

    def noted(fd: int, watch: int) -> int:
        removed.append(watch)
        return int(lib.memcg_inotify_remove(fd, watch))

    with Monitor(settle=AGES) as monitor:
        kernel.tree(monitor)
        cgroup = kernel.make()
        replace_in_lib(monkeypatch, memcg_register_many=gone_at_the_write, memcg_inotify_remove=noted)
        assert monitor.wait(0) == []
        assert added == removed != []


def test_what_was_never_followed_is_not_let_go_of(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    followers: list[int] = []
    removed: list[int] = []

    def gone_before(*arguments: Any) -> None:
        cgroup.gone = True
        kernel.bury(cgroup.path)
        lib.memcg_register_many(*arguments)
        followers.append(arguments[-1].rows[0].follower)

    def noted(fd: int, watch: int) -> int:
        removed.append(watch)
        return int(lib.memcg_inotify_remove(fd, watch))

    with Monitor(settle=AGES) as monitor:
        kernel.tree(monitor)
        cgroup = kernel.make()
        replace_in_lib(monkeypatch, memcg_register_many=gone_before, memcg_inotify_remove=noted)
        assert monitor.wait(0) == []
        assert followers == [-errno.EBADF]
        assert removed == []


def test_a_path_that_was_removed_is_nobodys(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel adds " (deleted)" to the path of a directory that goes while it is asked for."""
    file_system: Any = memcg_oom.hierarchy.__dict__["os"]
    cgroup = kernel.make()
    old = str(cgroup.path)
    hierarchy = Hierarchy(old)
    try:
        hierarchy.by_id = True  # in which way paths are asked for
        place = Place(None, old, os.stat(old).st_ino, 0)
        cgroup.rename("b")
        new = str(cgroup.path)
        replace_in_lib(monkeypatch, memcg_open_by_id=lambda _fd, _id: os.open(new, os.O_RDONLY | os.O_CLOEXEC))
        said: list[str] = []

        def removed_first(link: str) -> str:
            shutil.rmtree(new)
            said.append(os.readlink(link))
            return said[-1]

        with monkeypatch.context() as patch:
            patch.setattr(file_system, "readlink", removed_first, raising=False)
            hierarchy.follow([place])
        assert said == [f"{new} (deleted)"]
        assert place.path == old
    finally:
        hierarchy.close()


def test_events_that_were_overtaken(kernel: FakeKernel) -> None:
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        one = kernel.make("a")
        one.rename("b")
        other = kernel.make("a")
        other.kill(3)
        one.rename("c")
        events = take(monitor, 3)
        assert sorted(names(kernel, events)) == [("Created", "a"), ("Created", "c"), ("OomKill", "a")]
        assert paths(tree) == {str(kernel.root / "a"), str(kernel.root / "c")}
        assert monitor.wait(0) == []


def test_a_namesake(kernel: FakeKernel) -> None:
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        first = kernel.make("a")
        (created,) = take(monitor, 1)
        remove(first)
        second = kernel.make("a")
        second.kill()
        events = take(monitor, 3)
        assert sorted(brief(events)) == [("Created", 0), ("OomKill", 1), ("Removed", 0)]
        assert isinstance(created, Created)
        assert brief(events, created.watch) == [("Removed", 0)]
        assert paths(tree) == {str(kernel.root / "a")}


def test_renames_move_what_is_below(kernel: FakeKernel) -> None:
    for name in ("p", "p/q", "p/q/r", "px"):
        kernel.make(name)
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        cgroups = kernel.cgroups[1:]
        cgroups[0].rename("n")
        cgroups[1].path = kernel.root / "n" / "q"
        cgroups[1].rename("m")
        cgroups[2].path = kernel.root / "n" / "m" / "r"
        assert monitor.wait(0) == []
        assert paths(tree) == {str(kernel.root / name) for name in ("n", "n/m", "n/m/r", "px")}
        cgroups[2].oom()
        assert names(kernel, take(monitor, 1)) == [("Oom", "n/m/r")]
        kernel.make("n/m/r/new")
        assert names(kernel, take(monitor, 1)) == [("Created", "n/m/r/new")]
        cgroups[2].kill()
        cgroups[2].oom()
        assert names(kernel, take(monitor, 2)) == [("Oom", "n/m/r"), ("OomKill", "n/m/r")]


def test_a_rename_above_the_tree(kernel: FakeKernel) -> None:
    kernel.make("above")
    kernel.make("above/t")
    member = kernel.make("above/t/c")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor, kernel.root / "above" / "t")
        member.listen()
        (kernel.root / "above").rename(kernel.root / "moved")
        member.path = kernel.root / "moved" / "t" / "c"
        member.oom()
        assert names(kernel, take(monitor, 1)) == [("Oom", "moved/t/c")]
        assert tree.cgroup == str(kernel.root / "moved" / "t")
        kernel.make("moved/t/new")
        assert names(kernel, take(monitor, 1)) == [("Created", "moved/t/new")]


def test_renamed_while_it_is_opened(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = kernel.make("p")
    file_system: Any = memcg_oom.hierarchy.__dict__["os"]
    with Monitor(settle=AGES, audit=0.02) as monitor:
        tree = kernel.tree(monitor)
        kernel.make("p/new")

        def rename_first(path: str, flags: int) -> int:
            if path == str(parent.path) and parent.path.name == "p":
                parent.rename("q")
            return os.open(path, flags)

        monkeypatch.setattr(file_system, "open", rename_first, raising=False)
        events = take_while(monitor, lambda: len(paths(tree)) < 2)
        assert names(kernel, events) == [("Created", "q/new")]


def test_files_are_no_cgroups(kernel: FakeKernel) -> None:
    with Monitor(settle=AGES) as monitor:
        kernel.tree(monitor)
        (kernel.root / "memory.new_file").touch()
        assert monitor.wait(0) == []


# -- trees side by side, and their end


@pytest.mark.parametrize("first", ["the inner", "the outer"])
def test_a_tree_in_a_tree(kernel: FakeKernel, first: str) -> None:
    kernel.make("p")
    kernel.make("p/q")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        outer = kernel.tree(monitor)
        inner = kernel.tree(monitor, kernel.root / "p")
        kernel.make("p/c")
        assert names(kernel, take(monitor, 2)) == [("Created", "p/c")] * 2
        gone, left = (inner, outer) if first == "the inner" else (outer, inner)
        gone.close()
        gone.close()
        assert gone.closed
        assert not left.closed
        assert list(gone) == []
        later = kernel.make("p/d")
        kernel.make("p/q/e")
        assert names(kernel, take(monitor, 2)) == [("Created", "p/d"), ("Created", "p/q/e")]
        remove(later)
        assert names(kernel, take(monitor, 1)) == [("Removed", "p/d")]
        left.close()
        assert monitor._discovery.sources == {}
        assert monitor.watches == ()


def test_closing_twice_hurts_nobody(kernel: FakeKernel) -> None:
    kernel.make("p")
    with Monitor(settle=AGES) as monitor:
        first = kernel.tree(monitor, kernel.root / "p")
        second = kernel.tree(monitor, kernel.root / "p")
        for _ in range(2):
            first.close()
        kernel.make("p/c")
        assert names(kernel, take(monitor, 1)) == [("Created", "p/c")]
        assert len(list(second)) == 2


def test_a_closed_tree_hands_out_nothing_more(kernel: FakeKernel) -> None:
    cgroup = kernel.make("p")
    with Monitor(settle=AGES) as monitor:
        fds = len(os.listdir("/proc/self/fd"))
        tree = kernel.tree(monitor)
        cgroup.oom()
        cgroup.kill()
        kernel.make("p/c")
        assert isinstance(next(monitor), Oom | OomKill | Created)
        tree.close()
        assert monitor.wait(0) == []
        kernel.make("p/d")
        assert monitor.wait(0) == []
        assert (tree.closed, list(tree), monitor.watches) == (True, [], ())
        # What the first watch brought along stays: the counter, the log, the hierarchy's two.
        cgroup.close()
        assert len(os.listdir("/proc/self/fd")) == fds + 4


def test_one_that_is_left_out(kernel: FakeKernel) -> None:
    one, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        left_out = next(watch for watch in tree if watch.cgroup == str(one.path))
        left_out.close()
        assert paths(tree) == {str(other.path)}
        one.kill()
        kernel.make("a/new")  # what is in it is not left out
        assert names(kernel, take(monitor, 1)) == [("Created", "a/new")]
        one.rename("z")
        monitor._discovery._rescan()
        assert monitor.wait(0) == []
        assert not [event for event in monitor.wait(0.1) if not isinstance(event, CgroupEvent)]


def test_another_in_the_place_of_one_that_is_left_out(kernel: FakeKernel) -> None:
    one = kernel.make("a")
    with Monitor(settle=AGES) as monitor:
        tree = kernel.tree(monitor)
        one.listen()
        next(iter(tree)).close()
        one.rmdir()
        kernel.make("a")
        assert names(kernel, take(monitor, 1)) == [("Created", "a")]
        assert not tree._left_out


def test_a_kill_in_one_that_is_left_out_is_not_unattributed(kernel: FakeKernel) -> None:
    one = kernel.make("a")
    with Monitor(settle=0.0) as monitor:
        tree = kernel.tree(monitor)
        next(iter(tree)).close()
        one.kill()
        kernel.log()
        events = monitor.wait(0.3)
        take_while(monitor, lambda: monitor._audit._rest is not None or monitor._audit._suspected, events)
        assert events == []


def test_unattributed(kernel: FakeKernel) -> None:
    kernel.make("a")
    with Monitor(settle=0.0) as monitor:
        kernel.tree(monitor)
        brief_one = kernel.make("brief")
        brief_one.kill(2)
        brief_one.rmdir()
        kernel.log()
        assert brief(take(monitor, 1)) == [("Unattributed", 2)]


def test_a_tree_of_a_part_calls_nothing_unattributed(kernel: FakeKernel) -> None:
    cgroup = kernel.make("a")
    with Monitor(settle=0.0) as monitor:
        tree = kernel.tree(monitor, cgroup.path)
        kernel.host_killed()
        kernel.log()
        cgroup.kill()
        events = take_while(monitor, lambda: not tree.kills or monitor._audit.due)
        assert brief(events) == [("OomKill", 1)]


def test_the_whole_tree_is_removed(kernel: FakeKernel) -> None:
    made = [kernel.make(name) for name in ("p", "p/q", "p/q/r")]
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor, made[0].path)
        for cgroup in reversed(made):
            remove(cgroup)
        events = take(monitor, 3)
        assert [type(event) for event in events] == [Removed] * 3
        assert tree.removed
        assert list(tree) == []


# -- the gate


class Looks:
    """Counts the looks at a crowd."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.error = 0
        replace_in_lib(monkeypatch, memcg_look_many=self._look)

    def _look(self, *arguments: Any) -> None:
        lib.memcg_look_many(*arguments)
        *_, count, kills, _ = arguments
        self.count += 1
        for i in range(count) if self.error else ():
            kills[i] = -self.error


def steps(monitor: Monitor) -> int:
    """How often the round of the last signals was due."""
    return max((round_.step or 0 for _, _, round_ in v1(monitor)._agenda._heap), default=0)


@pytest.mark.parametrize("size", [CROWD - 1, CROWD])
def test_a_crowd_is_looked_at_when_the_host_has_killed(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(size)]
    looks = Looks(monkeypatch)
    with Monitor(settle=AGES, audit=None) as monitor:
        monitor.watch_many([cgroup.path for cgroup in cgroups])
        for cgroup in cgroups:
            cgroup.oom()
        assert len(take(monitor, size)) == size
        # The host has not killed: nobody looks at the counters of a crowd.
        take_while(monitor, lambda: steps(monitor) < 8)
        first = looks.count
        assert first == 0 if size >= CROWD else first >= 8
        until = steps(monitor) + 5
        take_while(monitor, lambda: steps(monitor) < until)
        assert (looks.count == first) == (size >= CROWD)
        # The host's counter rises first, and the cgroup's before the look after the next.
        kernel.host_killed()
        take_while(monitor, lambda: looks.count < first + 1)
        cgroups[3].count_kill()
        assert brief(take(monitor, 1)) == [("OomKill", 1)]
        after = looks.count
        until = steps(monitor) + 5
        take_while(monitor, lambda: steps(monitor) < until)
        assert (looks.count == after) == (size >= CROWD)
        if size >= CROWD:
            assert after == first + 2


def test_the_gate_does_not_end_a_settle_nor_the_last_look(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(CROWD)]
    looks = Looks(monkeypatch)
    with Monitor(settle=0.3, audit=None) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for cgroup in cgroups:
            cgroup.oom()
        assert len(take(monitor, CROWD)) == CROWD
        take_while(monitor, lambda: steps(monitor) < 4)
        cgroups[0].count_kill()  # the host's counter says nothing of it: only the last look can tell
        events = take_while(monitor, lambda: watches[0]._trouble.round)
        assert brief(events) == [("OomKill", 1)]
        assert looks.count == 1
        assert all(watch._trouble.round is None for watch in watches)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EAGAIN])
def test_the_gate_does_not_keep_a_crowd_that_could_not_be_read(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(CROWD)]
    looks = Looks(monkeypatch)
    with Monitor(settle=AGES, audit=None) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        looks.error = error
        for cgroup in cgroups:
            cgroup.oom()
        cgroups[0].kill()
        events = take_while(monitor, lambda: steps(monitor) < 4)
        assert not [event for event in events if isinstance(event, CgroupEvent)]
        looks.error = 0
        until = steps(monitor) + 5
        take_while(monitor, lambda: steps(monitor) < until, events)
        assert brief(events, watches[0]) == [("Oom", 1), ("OomKill", 1)]
        assert [brief(events, watch) for watch in watches[1:]] == [[("Oom", 1)]] * (CROWD - 1)


def test_in_a_crowd_one_that_was_renamed_or_is_gone_is_looked_at(kernel: FakeKernel) -> None:
    # Of those that are at their paths no counter is read; of others a signal may be the removal's.
    cgroups = [kernel.make(f"c{i}") for i in range(CROWD)]
    with Monitor(settle=AGES, linger=0.0, audit=None) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        for cgroup in cgroups[1:]:
            cgroup.oom()
        cgroups[0].oom()
        remove(cgroups[0])
        cgroups[1].rename("moved")
        events = take(monitor, CROWD + 1)
        assert brief(events, watches[0]) == [("Oom", 1), ("Removed", 1)]
        assert [brief(events, watch) for watch in watches[1:]] == [[("Oom", 1)]] * (CROWD - 1)
        assert watches[1].cgroup == str(kernel.root / "moved")
