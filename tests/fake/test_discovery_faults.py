"""What goes wrong while a tree follows its cgroups: limits, refusals, lost changes, and Ctrl-C at every moment."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.audit
import memcg_oom.hierarchy
import memcg_oom.sources
import memcg_oom.v1
from memcg_oom import CgroupEvent, Degraded, Event, Monitor, TreeWatch
from memcg_oom._native import ffi, lib
from memcg_oom.discovery import Discovery
from memcg_oom.search import Search
from memcg_oom.sources import Inotify, Source
from tests.fake.fake_kernel import AGES, FakeKernel, brief, replace_in_lib, take, take_while
from tests.fake.fake_v2 import FakeV2Kernel
from tests.fake.test_faults import Strike, collect_by_iteration, collect_by_wait, count_fds
from tests.support import limit_with_room


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    fake.close()


def degraded(events: list[Event]) -> list[Degraded]:
    return [event for event in events if isinstance(event, Degraded)]


def paths(tree: TreeWatch) -> set[str]:
    return {watch.cgroup for watch in tree}


# -- registrations that the kernel refuses

REFUSALS = [
    (errno.EMFILE, lib.MEMCG_STEP_EVENTFD, "RLIMIT_NOFILE"),
    (errno.ENFILE, lib.MEMCG_STEP_EVENTFD, "RLIMIT_NOFILE"),
    (errno.ENOMEM, lib.MEMCG_STEP_WRITE, "root"),
    (errno.EOPNOTSUPP, lib.MEMCG_STEP_WRITE, "kernel"),
    (errno.EROFS, lib.MEMCG_STEP_EVENT_CONTROL, "root"),
    (errno.EACCES, lib.MEMCG_STEP_EVENT_CONTROL, "root"),
]


def refusing(error: int, step: int, name: str = "") -> Callable[..., None]:
    """A memcg_register_many() by which those of that name are found, and not registered."""

    def refuse(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        _, _, packed, count, registrations = arguments
        for i, path in enumerate(bytes(ffi.buffer(packed)).split(b"\0")[:count]):
            row = registrations.rows[i]
            if row.eventfd >= 0 and os.fsdecode(path).endswith(name):
                os.close(row.eventfd)
                Path(os.fsdecode(path), "cgroup.event_control").write_text("")
                row.eventfd, row.step = -error, step

    return refuse


@pytest.mark.parametrize("when", ["scanned", "created"])
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: errno.errorcode[refusal[0]])
def test_the_refused_are_followed_by_their_counters(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, int, str], when: str
) -> None:
    error, step, remedy = refusal
    monkeypatch.setattr(memcg_oom.v1, "LATE", 0)
    kernel.make_root()
    replace_in_lib(monkeypatch, memcg_register_many=refusing(error, step))
    with Monitor(settle=0.0, audit=0.02) as monitor:
        events: list[Event] = []
        cgroups = [kernel.make(name) for name in ("a", "b", "a/c")] if when == "scanned" else []
        tree = kernel.tree(monitor)
        cgroups = cgroups or [kernel.make(name) for name in ("a", "b", "a/c")]
        take_while(monitor, lambda: tree.polled < 3, events)
        fds = count_fds()
        assert all(watch.polled for watch in tree)
        for cgroup in cgroups:
            cgroup.kill(2)
        take_while(monitor, lambda: tree.kills < 6, events)
        cgroups[2].rmdir()
        take_while(monitor, lambda: tree.polled == 3, events)
        cgroups[1].rmdir()
        cgroups[0].kill()
        take_while(monitor, lambda: tree.polled > 1 or tree.kills < 7, events)
        take_while(monitor, lambda: len(monitor._watches.by_key.values()) > 2, events)
        (one,) = degraded(events)
        assert remedy in one.remedy
        assert "their OOMs are not" in one.cost
        assert {"root": os.strerror(error), "kernel": "PREEMPT_RT"}.get(remedy, "no descriptors left") in one.what
        names = [name for name, _ in brief(events) if name not in ("OomKill", "Degraded")]
        assert names == (["Created"] * 3 if when == "created" else []) + ["Removed"] * 2
        assert (tree.kills, tree.ooms, count_fds()) == (7, 0, fds)


def test_a_refused_one_beside_one_that_is_not(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.make_root()
    replace_in_lib(monkeypatch, memcg_register_many=refusing(errno.EMFILE, lib.MEMCG_STEP_EVENTFD, "/bad"))
    with Monitor(settle=AGES, linger=0.0, audit=0.02) as monitor:
        tree = kernel.tree(monitor)
        good, bad = kernel.make("good"), kernel.make("bad")
        events = take(monitor, 3)
        assert {(watch.cgroup, watch.polled) for watch in tree} == {(str(good.path), False), (str(bad.path), True)}
        good.oom()
        bad.kill()
        bad.rmdir()
        events += take(monitor, 2)
        assert sorted(brief(events)) == [("Created", 0), ("Created", 0), ("Degraded", 0), ("Oom", 1), ("Removed", 0)]


@pytest.mark.parametrize(("renamed", "replaced"), [(True, False), (False, True), (True, True)])
def test_a_refused_one_that_goes(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, renamed: bool, replaced: bool
) -> None:
    """Without audits its name alone says that it is gone; what it was called before nobody says."""
    replace_in_lib(monkeypatch, memcg_register_many=refusing(errno.EMFILE, lib.MEMCG_STEP_EVENTFD, "/a"))
    with Monitor(settle=0.0, audit=None, victims=False) as monitor:
        kernel.tree(monitor)
        first = kernel.make("a")
        assert sorted(brief(take(monitor, 2))) == [("Created", 0), ("Degraded", 0)]
        (watch,) = monitor._watches.polled.values()
        if renamed:
            first.rename("b")
        first.rmdir()
        if replaced:
            kernel.make("a")
        events = take(monitor, 1 + replaced)
        assert sorted(brief(events)) == [("Created", 0)] * replaced + [("Removed", 0)]
        assert [type(event).__name__ for event in events if getattr(event, "watch", None) is watch] == ["Removed"]


def test_on_v2_the_ooms_of_the_refused_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        lib.memcg_attach_many(*arguments)
        row = arguments[-1].rows[0]
        lib.memcg_inotify_remove(arguments[-1].inotify_fd, row.watch)
        row.watch, row.step = -errno.ENOSPC, lib.MEMCG_STEP_FOLLOW

    kernel = FakeV2Kernel(tmp_path, monkeypatch)
    cgroup = kernel.make_v2()
    replace_in_lib(monkeypatch, memcg_attach_many=refuse)
    with Monitor(settle=AGES, audit=0.02) as monitor:
        tree = monitor.watch_tree(cgroup.path, source="inotify")
        assert tree.polled == 1
        cgroup.count(oom=1)
        events = take(monitor, 2)
        assert brief(events) == [("Degraded", 0), ("Oom", 1)]
        (one,) = degraded(events)
        assert "their OOMs, kills and removals are told, later" in one.cost
        assert "max_user_watches" in one.remedy
    kernel.close()


def test_descriptors_are_left_for_others(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.make_root()
    limit = limit_with_room(20)
    monkeypatch.setattr("memcg_oom.search.resource.getrlimit", lambda _: (limit, limit))
    with Monitor(settle=AGES) as monitor:
        tree = kernel.tree(monitor)
        for i in range(30):
            kernel.make(f"c{i}")
        events = take(monitor, 31)
        assert len(degraded(events)) == 1
        assert 10 < tree.polled < 30
        assert max(watch._eventfd for watch in tree if not watch.polled) <= limit - limit // 8


# -- cgroups that cannot be opened


def test_no_memory_for_the_inode_is_not_gone(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.make_root()
    failing = True

    def stale(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        row = arguments[-1].rows[0]
        if failing:
            os.close(row.eventfd)
            row.eventfd, row.step, row.control_id, row.children = -errno.ESTALE, lib.MEMCG_STEP_CGROUP, 0, 0

    replace_in_lib(monkeypatch, memcg_register_many=stale)
    with Monitor(settle=0.01, audit=0.02) as monitor:
        kernel.tree(monitor)
        cgroup = kernel.make()
        assert monitor.wait(0) == []
        assert monitor._discovery.needs_audit
        (cgroup.path / "cgroup.event_control").write_text("")
        failing = False
        cgroup.kill(2)
        assert brief(take(monitor, 2)) == [("Created", 0), ("OomKill", 2)]
        take_while(monitor, lambda: monitor._discovery.needs_audit)


class ClosedDoor:
    """Makes the opening of directories fail with `error`, as long as there is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.tries = 0
        monkeypatch.setattr(memcg_oom.hierarchy.__dict__["os"], "open", self._open, raising=False)

    def _open(self, path: str, flags: int) -> int:
        if self.error:
            self.tries += 1
            raise OSError(self.error, os.strerror(self.error), path)
        return os.open(path, flags)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_a_directory_that_cannot_be_opened(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    door = ClosedDoor(monkeypatch)
    with Monitor(settle=0.01, audit=0.02) as monitor:
        tree = kernel.tree(monitor)
        door.error = error
        cgroup = kernel.make()
        cgroup.kill()
        events = take_while(monitor, lambda: door.tries < 10)
        (one,) = degraded(events)
        assert len(events) == 1
        assert os.strerror(error) in one.what
        door.error = 0
        assert brief(take(monitor, 2)) == [("Created", 0), ("OomKill", 1)]
        assert paths(tree) == {str(cgroup.path)}
        take_while(monitor, lambda: monitor._discovery.needs_audit)
        # Again: that was said.
        door.error, door.tries = error, 0
        kernel.make("b")
        assert take_while(monitor, lambda: door.tries < 5) == []
        door.error = 0
        assert brief(take(monitor, 1)) == [("Created", 0)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_in_the_rescan_leaves_it_to_the_next(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    door = ClosedDoor(monkeypatch)

    def fail(_: Search) -> None:
        raise error

    with Monitor(settle=0.01, audit=0.02) as monitor:
        kernel.tree(monitor)
        door.error = errno.EACCES
        kernel.make()
        take_while(monitor, lambda: door.tries < 2)
        with monkeypatch.context() as patch:
            patch.setattr(Search, "everywhere", fail)
            with pytest.raises(error):
                take_while(monitor, lambda: True)
        door.error = 0
        assert brief(take(monitor, 1)) == [("Created", 0)]


# -- changes that are lost


def test_an_overflow_lists_everything_again(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    old = kernel.make("old")
    with Monitor(settle=AGES, linger=0.0) as monitor:
        tree = kernel.tree(monitor)
        (source,) = monitor._discovery.sources.values()
        kernel.make("old/new").kill()
        old.rename("renamed")
        with monkeypatch.context() as patch:

            def lose(self: Source, scanning: bool) -> list[Any]:
                os.read(self.fd, 1 << 16)
                self.overflowed = True
                return []

            patch.setattr(type(source), "changes", lose)
            events = monitor.wait(0)
        assert degraded(events)[0].what.startswith("the queue of inotify was full")
        assert sorted(brief(events)) == [("Created", 0), ("Degraded", 0), ("OomKill", 1)]
        assert paths(tree) == {str(kernel.root / "renamed"), str(kernel.root / "renamed" / "new")}
        # Again: that was said.
        source.overflowed = True
        kernel.make("third")
        assert brief(take(monitor, 1)) == [("Created", 0)]
        assert not source.overflowed


def test_the_kernel_says_that_its_queue_was_full(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    with Monitor(settle=AGES) as monitor:
        kernel.tree(monitor)
        (source,) = monitor._discovery.sources.values()
        records = [memcg_oom.sources._IN_EVENT.pack(-1, 0x4000, 0, 0)]
        monkeypatch.setattr(Source, "_packets", lambda _: iter([records.pop()] if records else []))
        assert source.changes(scanning=False) == []
        assert source.overflowed


def test_what_is_said_of_a_directory_before_its_watch_is_known(tmp_path: Path) -> None:
    """A scan has directories followed in the core, and takes note of that later; somebody else reads meanwhile."""
    source = Inotify()
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        watch = lib.memcg_inotify_add(source.fd, directory)
        (tmp_path / "early").mkdir()
        assert source.changes(scanning=True) == []
        assert source.followed(7, watch)
        (tmp_path / "late").mkdir()
        assert [change[:2] for change in source.changes(scanning=True)] == [(7, "early"), (7, "late")]
        assert source.changes(scanning=False) == []
        source.unfollow(7)
        # What is said of one that is let go of is kept by nobody.
        watch = lib.memcg_inotify_add(source.fd, directory)
        (tmp_path / "gone").mkdir()
        assert source.changes(scanning=False) == []
        assert source.followed(7, watch)
        assert source.changes(scanning=True) == []
    finally:
        os.close(directory)
        os.close(source.fd)


@pytest.mark.parametrize("when", ["scanned", "created"])
def test_inotify_watches_run_out(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    full = True

    def full_registration(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        for i in range(arguments[-2]) if full else ():
            row = arguments[-1].rows[i]
            if row.follower >= 0:
                lib.memcg_inotify_remove(arguments[-1].inotify_fd, row.follower)
                row.follower = -errno.ENOSPC

    def full_add(inotify_fd: int, directory_fd: int) -> int:
        return -errno.ENOSPC if full else int(lib.memcg_inotify_add(inotify_fd, directory_fd))

    with Monitor(settle=AGES, linger=0.0, audit=0.02) as monitor:
        if when == "scanned":
            kernel.make("p"), kernel.make("q")
        else:
            tree = kernel.tree(monitor)
        replace_in_lib(monkeypatch, memcg_register_many=full_registration, memcg_inotify_add=full_add)
        if when == "scanned":
            tree = kernel.tree(monitor)
        else:
            kernel.make("p"), kernel.make("q")
        events = take_while(monitor, lambda: len(paths(tree)) < 2)
        kernel.make("p/c").kill()
        take_while(monitor, lambda: not tree.kills, events)
        full = False
        take_while(monitor, lambda: monitor._discovery.needs_audit, events)
        monkeypatch.setattr(Discovery, "audit", lambda _: True)  # no more of these: inotify has to tell
        kernel.make("q/d")
        kernel.make("p/c/e")
        take_while(monitor, lambda: len(paths(tree)) < 5, events)
        (one,) = degraded(events)
        assert "max_user_watches" in one.remedy


def test_an_exception_forgets_nobody_who_is_not_followed(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        row = arguments[-1].rows[0]
        lib.memcg_inotify_remove(arguments[-1].inotify_fd, row.follower)
        row.follower = -errno.ENOSPC

    real = memcg_oom.v1.V1Watches.watch

    def watch(*arguments: Any, **keywords: Any) -> Any:
        real(*arguments, **keywords)
        raise KeyboardInterrupt

    with Monitor(settle=AGES, audit=0.02) as monitor:
        tree = kernel.tree(monitor)
        kernel.make("p")
        with monkeypatch.context() as patch:
            replace_in_lib(patch, memcg_register_many=full)
            patch.setattr(memcg_oom.v1.V1Watches, "watch", watch)
            with pytest.raises(KeyboardInterrupt):
                monitor.wait(0)
        events = take_while(monitor, lambda: not paths(tree))
        kernel.make("p/c")
        take_while(monitor, lambda: len(paths(tree)) < 2, events)


def test_nobody_tells(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.make_root()
    refused = dict.fromkeys(("memcg_inotify_open", "memcg_fanotify_open"), lambda *_: -errno.EMFILE)
    replace_in_lib(monkeypatch, **refused)
    with Monitor(settle=AGES, linger=0.0, audit=0.02) as monitor:
        for source in ("inotify", "fanotify"):
            with pytest.raises(OSError, match="Too many open files"):
                monitor.watch_tree(kernel.root, source=source)
        tree = monitor.watch_tree(kernel.root)
        tree._watermark = 0
        assert tree.source == "audit"
        cgroup = kernel.make("a")
        kernel.make("a/b").kill()
        events = take_while(monitor, lambda: not tree.kills)
        assert [name for name, _ in brief(events)].count("Created") == 2
        (one,) = degraded(events)
        assert "max_user_instances" in one.remedy
        assert cgroup.listen() == 1


# -- exceptions in the middle


def run_through(
    kernel: FakeKernel, name: str, collect: Callable[[Monitor, list[Event], Callable[[], bool]], None]
) -> None:
    """Cgroups that come, are renamed, killed in and removed under a tree: each is told once, and nothing is left."""
    top = kernel.make(name)
    made = [top]
    fds = count_fds()
    try:
        with Monitor(settle=0.001, linger=0.0) as monitor:
            tree = kernel.tree(monitor, top.path)
            events: list[Event] = []
            made.append(kernel.make(f"{name}/a"))
            made[1].kill(2)  # before it is watched
            made.append(kernel.make(f"{name}/a/b"))
            collect(monitor, events, lambda: len(list(tree)) < 3 or tree.kills < 2)
            made[1].rename("z")
            made[2].path = made[1].path / "b"
            for one in made[1:]:
                one.oom(2)
                one.kill()
            collect(monitor, events, lambda: tree.kills < 4 or tree.ooms < 4)
            made[2].rmdir()
            made[2].removal_signal()
            collect(monitor, events, lambda: len(list(tree)) > 2)
            made.append(kernel.make(f"{name}/c"))
            collect(monitor, events, lambda: len(list(tree)) < 3)
            collect(monitor, events, lambda: bool(monitor._outbox))
            told: dict[str, list[tuple[str, int]]] = {}
            for event in events:
                assert isinstance(event, CgroupEvent), event
                name = event.cgroup.rpartition("/")[2]
                told.setdefault("z" if name == "a" else name, []).extend(brief([event]))
            watches = {event.watch for event in events if isinstance(event, CgroupEvent)}
            summed = {
                key: (
                    sum(n for kind, n in pairs if kind == "Oom"),
                    sum(n for kind, n in pairs if kind == "OomKill"),
                    [kind for kind, _ in pairs if kind in ("Created", "Removed")],
                )
                for key, pairs in told.items()
            }
            assert summed == {"z": (2, 3, ["Created"]), "b": (2, 1, ["Created", "Removed"]), "c": (0, 0, ["Created"])}
            assert len(watches) == 3
            assert paths(tree) == {str(top.path), str(made[1].path), str(made[3].path)}
            assert (tree.ooms, tree.kills) == (4, 4)
    finally:
        for one in made:
            one.close()
    if count_fds() != fds:
        gc.collect()
    assert count_fds() == fds, "a descriptor was left"


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator")  # it was just opened; it is closed all the same
@pytest.mark.parametrize("collect", [collect_by_wait, collect_by_iteration], ids=["wait", "iteration"])
def test_ctrl_c_at_every_moment_of_discovery(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    collect: Callable[[Monitor, list[Event], Callable[[], bool]], None],
) -> None:
    monkeypatch.setattr(memcg_oom.v1, "LATE", 0)
    failures = []
    for moment in range(-1, 20000):
        strike = Strike(moment)

        def collect_under_fire(
            monitor: Monitor, events: list[Event], condition: Callable[[], bool], strike: Strike = strike
        ) -> None:
            try:
                with strike:
                    collect(monitor, events, condition)
            except KeyboardInterrupt:
                collect(monitor, events, condition)

        try:
            run_through(kernel, f"c{moment}", collect_under_fire)
        except (AssertionError, RuntimeError) as error:
            failures.append(f"{strike.where}: {str(error).splitlines()[0]}")
        kernel.cgroups.clear()
        if moment >= 0 and not strike.where:
            break
    assert moment > 200
    assert not failures, "\n".join(failures)
