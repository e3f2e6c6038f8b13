"""The accounts of version 2: each kill is told once, of the right cgroup, whatever order it is found in."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memcg_oom import Created, Degraded, Event, Monitor, Oom, OomKill, Removed, TreeWatch, Unattributed
from memcg_oom.balance import suspects
from memcg_oom.hierarchy import Hierarchy, Place
from memcg_oom.nodes import Node
from memcg_oom.registration import _V2Slice, registered
from memcg_oom.search import Search
from tests.fake.fake_kernel import take_while
from tests.fake.fake_v2 import FakeV2Cgroup, FakeV2Kernel

SETTLE = 0.05


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeV2Kernel]:
    kernel = FakeV2Kernel(tmp_path, monkeypatch)
    yield kernel
    kernel.close()


def watched(monitor: Monitor, cgroup: FakeV2Cgroup) -> TreeWatch:
    """Its tree; what is made from here on is born under its eyes, whatever ids the file system of the test gives."""
    tree = monitor.watch_tree(cgroup.path, source="inotify")
    tree._watermark = 0
    return tree


def told(events: list[Event]) -> list[tuple[str, str, int]]:
    """Without the time: which event, of which cgroup, its count."""
    return [
        (type(event).__name__, os.path.basename(getattr(event, "cgroup", "")), getattr(event, "count", 0))
        for event in events
    ]


def until_gone(monitor: Monitor, tree: TreeWatch, *cgroups: FakeV2Cgroup) -> list[Event]:
    paths = {os.fspath(cgroup.path) for cgroup in cgroups}
    return take_while(monitor, lambda: paths & {watch.cgroup for watch in tree})


def until_there(monitor: Monitor, tree: TreeWatch, cgroup: FakeV2Cgroup) -> list[Event]:
    return take_while(monitor, lambda: os.fspath(cgroup.path) not in {watch.cgroup for watch in tree})


def count_above(cgroup: FakeV2Cgroup) -> None:
    """A last kill: its news were cancelled by the removal that follows, so that only the cgroup above tells it."""
    local = dict(cgroup.local)
    file = cgroup.path / "memory.events.local"
    before = file.read_text()
    cgroup.count(oom=1, oom_kill=1)
    cgroup.local = local
    fd = os.open(file, os.O_WRONLY)
    os.write(fd, before.encode())
    os.close(fd)


@pytest.mark.parametrize("when", ["before both are found", "between the two"])
def test_a_kill_in_one_that_is_born_with_the_one_above_it(
    kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A pod and its container are made together, and found together."""
    top = kernel.make_v2("top")
    with Monitor(settle=SETTLE) as monitor:
        tree = watched(monitor, top)
        pod = kernel.make_v2("top/pod")
        container = kernel.make_v2("top/pod/container")
        listed = Search._listed

        def listed_and_killed(search: Search, *arguments: object) -> object:
            found = listed(search, *arguments)  # type: ignore[arg-type]
            if not container.local["oom_kill"]:
                container.count(oom=1, oom_kill=1)
            return found

        if when == "between the two":
            monkeypatch.setattr(Search, "_listed", listed_and_killed)
        else:
            container.count(oom=1, oom_kill=1)
        events = take_while(monitor, lambda: not tree.kills)
        container.rmdir()
        events += until_gone(monitor, tree, container)
        pod.rmdir()
        events += until_gone(monitor, tree, pod)
        assert told(events) == [
            ("Created", "pod", 0),
            ("Created", "container", 0),
            ("Oom", "container", 1),
            ("OomKill", "container", 1),
            ("Removed", "container", 0),
            ("Removed", "pod", 0),
        ]


def test_a_kill_in_one_that_was_there_before_its_directory_was_followed(
    kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is gone before that is listed: all that is heard of it is its end. It is not told of who goes there next."""
    top = kernel.make_v2("top")
    with Monitor(settle=SETTLE) as monitor:
        tree = watched(monitor, top)
        pod = kernel.make_v2("top/pod")
        unseen = kernel.make_v2("top/pod/unseen")
        listed = Search._listed

        def gone_and_listed(search: Search, *arguments: object) -> object:
            if unseen.path.exists():
                unseen.count(oom=1, oom_kill=1)
                unseen.rmdir()
            return listed(search, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Search, "_listed", gone_and_listed)
        events = until_there(monitor, tree, pod)
        take_while(monitor, lambda: not any(isinstance(event, Unattributed) for event in events), events)
        innocent = kernel.make_v2("top/pod/innocent")
        events += until_there(monitor, tree, innocent)
        innocent.rmdir()
        events += until_gone(monitor, tree, innocent)
        assert told(events) == [
            ("Created", "pod", 0),
            ("Unattributed", "", 1),
            ("Created", "innocent", 0),
            ("Removed", "innocent", 0),
        ]


def test_a_kill_in_one_that_has_others_in_it_afterwards(kernel: FakeV2Kernel) -> None:
    """It was not heard of when the first is made in it; it is not told of that one when both go together."""
    top = kernel.make_v2("top")
    with Monitor(settle=SETTLE) as monitor:
        tree = watched(monitor, top)
        pod = kernel.make_v2("top/pod")
        events = until_there(monitor, tree, pod)
        take_while(monitor, lambda: monitor._watches._resting, events)  # type: ignore[union-attr]
        inotify = monitor._watches.hierarchy.inotify  # type: ignore[union-attr]
        assert inotify is not None
        pod.count(oom=1, oom_kill=1)
        inotify.changes(scanning=False)
        inotify.touched.clear()  # the news are lost
        container = kernel.make_v2("top/pod/container")
        events += until_there(monitor, tree, container)
        take_while(monitor, lambda: not tree.kills, events)
        container.rmdir()
        pod.rmdir()
        events += until_gone(monitor, tree, container, pod)
        assert [one for one in told(events) if one[0] == "OomKill"] == [("OomKill", "pod", 1)]


def test_who_is_suspected() -> None:
    """Of those that went together: not one that was looked at with others in it, which have all processes."""
    above, below, off = (Node(Place(None, name, number, 0)) for number, name in enumerate(("/a", "/a/b", "/a/c")))
    above.counters = below.counters = (0, 0, 0, 0, 0)
    below.parent = above
    assert suspects([above, below, off]) == [above, below]
    above.inner = True
    assert suspects([above, below, off]) == [below]


def test_a_kill_that_is_in_no_account_is_held_against_nobody(
    kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of the root cgroup, say: what only a cgroup above counts afterwards is told of whoever went."""
    monkeypatch.setattr("memcg_oom.hierarchy.ROOT_ID", os.stat(kernel.root).st_ino)
    monkeypatch.setattr("memcg_oom.monitor.ROOT_ID", os.stat(kernel.root).st_ino)
    (kernel.root / "cgroup.procs").touch()
    (kernel.root / "cgroup.events").write_text("populated 1\n")
    top = kernel.make_v2("top")
    with Monitor(settle=SETTLE, audit=0.02) as monitor:
        tree = monitor.watch_tree(kernel.root, source="inotify")
        tree._watermark = 0
        events: list[Event] = []
        kernel.host_killed(1)
        kernel.log()
        take_while(monitor, lambda: not any(isinstance(event, Unattributed) for event in events), events)
        for name in "ab":
            cgroup = kernel.make_v2(f"top/{name}")
            events += until_there(monitor, tree, cgroup)
            count_above(cgroup)
            cgroup.rmdir()
            events += until_gone(monitor, tree, cgroup)
    ends = [one for one in told(events) if one[0] in ("Unattributed", "OomKill", "Removed")]
    assert ends == [
        ("Unattributed", "", 1),
        ("OomKill", "a", 1),
        ("Removed", "a", 0),
        ("OomKill", "b", 1),
        ("Removed", "b", 0),
    ]
    assert top.local["oom_kill"] == 0


def test_an_account_that_does_not_stand_still_is_opened_later(
    kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that cannot be killed runs out of memory without end, which is said; when it ends, all is as it should."""
    monkeypatch.setattr("memcg_oom.v2._OPENING", 1_000_000)
    top = kernel.make_v2("top")
    busy, other = kernel.make_v2("top/busy"), kernel.make_v2("top/other")
    subtrees = Hierarchy.subtrees

    def restless(hierarchy: Hierarchy, places: object) -> object:
        busy.count(oom=1)
        return subtrees(hierarchy, places)  # type: ignore[arg-type]

    monkeypatch.setattr(Hierarchy, "subtrees", restless)
    with Monitor(settle=SETTLE) as monitor:
        tree = monitor.watch_tree(top.path, source="inotify")
        events: list[Event] = []
        take_while(monitor, lambda: not any(isinstance(event, Degraded) for event in events), events)
        monkeypatch.setattr(Hierarchy, "subtrees", subtrees)
        take_while(monitor, lambda: monitor._watches._unopened, events)  # type: ignore[union-attr]
        (degraded,) = (event for event in events if isinstance(event, Degraded))
        assert "all the time" in degraded.what
        count_above(other)
        other.rmdir()
        assert told(until_gone(monitor, tree, other)) == [
            ("Oom", "other", 1),
            ("OomKill", "other", 1),
            ("Removed", "other", 0),
        ]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EAGAIN])
def test_a_look_at_one_that_is_gone_fails_once(
    kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    top = kernel.make_v2("top")
    gone = kernel.make_v2("top/gone")
    counters = Hierarchy.counters
    failed: list[bool] = []

    def fails_once(hierarchy: Hierarchy, places: object) -> object:
        found = counters(hierarchy, places)  # type: ignore[arg-type]
        for number, place in enumerate(places):  # type: ignore[arg-type, var-annotated]
            if not failed and not gone.path.exists() and place.path == os.fspath(gone.path):
                failed.append(True)
                found[number] = (-error, 0, 0, 0, 0)
        return found

    with Monitor(settle=SETTLE) as monitor:
        tree = watched(monitor, top)
        take_while(monitor, lambda: monitor._watches._resting)  # type: ignore[union-attr]
        monkeypatch.setattr(Hierarchy, "counters", fails_once)
        gone.rmdir()
        events = until_gone(monitor, tree, gone)
        assert failed
        assert [event for event in events if isinstance(event, Removed)]


def test_two_watches_of_one_cgroup_that_begin_together(kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill comes between the registration of the one and that of the other."""
    cgroup = kernel.make_v2()
    registrations = _V2Slice.registrations

    def killed_in_between(one: _V2Slice) -> object:
        found = registrations(one)
        found[1].after = (1, 1, 0, 0, 0)
        cgroup.count(oom=1, oom_kill=1)
        return found

    monkeypatch.setattr(_V2Slice, "registrations", killed_in_between)
    with Monitor(settle=SETTLE) as monitor:
        watches = monitor.watch_many([cgroup.path, cgroup.path])
        monkeypatch.undo()
        events = take_while(monitor, lambda: monitor._watches._resting)  # type: ignore[union-attr]
        assert told(events) == [("Oom", "a", 1), ("OomKill", "a", 1)] * 2
        assert [watch.kills for watch in watches] == [1, 1]


LEVELS = 1100  # Python's own stack has 1,000


def test_a_nest_that_is_deeper_than_a_stack(kernel: FakeV2Kernel) -> None:
    """An OOM at its top puts all that is below into question."""
    top = kernel.make_v2("top")
    with Monitor(settle=SETTLE) as monitor:
        tree = monitor.watch_tree(top.path, source="inotify")
        path = "top"
        for _ in range(LEVELS):
            path += "/n"
            kernel.make_v2(path)
        events = take_while(monitor, lambda: len(list(tree)) <= LEVELS)
        assert sum(isinstance(event, Created) for event in events) == LEVELS
        top.count(oom=1)
        assert take_while(monitor, lambda: not any(watch.ooms for watch in tree))
        tree.close()
        assert not monitor._watches.nodes  # type: ignore[union-attr]


def test_news_of_which_nobody_knows_yet_whose_they_are(kernel: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread reads them between the registration and its watch."""
    cgroup, other = kernel.make_v2("a"), kernel.make_v2("b")

    def and_killed(*arguments: object) -> object:
        found = registered(*arguments)  # type: ignore[arg-type]
        cgroup.count(oom=1, oom_kill=1)
        assert monitor.wait(0.01) == []
        return found

    with Monitor(settle=60) as monitor:  # nothing else looks at it soon
        monitor.watch(other.path)
        monkeypatch.setattr("memcg_oom.monitor.registered", and_killed)
        watch = monitor.watch(cgroup.path)
        events = take_while(monitor, lambda: not watch.kills)
        assert {type(event) for event in events} == {Oom, OomKill}


def half_removed(cgroup: FakeV2Cgroup) -> None:
    """As rmdir(2) has it for a moment: the controller's files are gone, the rest of the cgroup is there."""
    for name in ("memory.events.local", "memory.events"):
        (cgroup.path / name).rename(cgroup.kernel._graves / f"{cgroup.path.name}-{name}")


def test_a_look_while_the_removal_is_under_way(kernel: FakeV2Kernel) -> None:
    """It is not taken for one whose controller was switched off, of which nothing is owed any more."""
    cgroup = kernel.make_v2()
    with Monitor(settle=SETTLE) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.count(oom=1)
        take_while(monitor, lambda: not watch.ooms)
        half_removed(cgroup)
        assert not monitor._watches.sweep([watch])
        monitor.wait(0)
        cgroup.rmdir()
        (removed,) = take_while(monitor, lambda: not watch.removed)
        assert isinstance(removed, Removed)
        assert removed.unresolved == 1


def test_one_is_found_while_its_removal_is_under_way(kernel: FakeV2Kernel) -> None:
    """Nobody knows what it counted: its kill is not told of its neighbour, nor of the one above."""
    top = kernel.make_v2("top")
    kernel.make_v2("top/other")
    with Monitor(settle=SETTLE) as monitor:
        tree = watched(monitor, top)
        going = kernel.make_v2("top/going")
        going.count(oom=1, oom_kill=1)
        half_removed(going)
        events = take_while(monitor, lambda: not monitor._discovery.needs_audit)
        going.rmdir()
        take_while(monitor, lambda: not any(isinstance(event, Unattributed) for event in events), events)
        assert [one for one in told(events) if one[0] == "OomKill"] == []
        assert not tree.kills
