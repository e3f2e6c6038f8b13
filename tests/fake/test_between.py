"""What other threads do between a registration, which holds no lock, and the moment from which on it is watched."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.monitor
from memcg_oom import Created, Monitor, OomKill, Watch
from memcg_oom.registration import registered
from memcg_oom.search import Search
from memcg_oom.sources import Inotify
from memcg_oom.v2 import V2Watches
from tests.fake.fake_kernel import FakeKernel, take_while
from tests.fake.fake_v2 import FakeV2Kernel


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    kernel = FakeKernel(tmp_path, monkeypatch)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeV2Kernel]:
    kernel = FakeV2Kernel(tmp_path, monkeypatch)
    yield kernel
    kernel.close()


def in_another_thread(call: Callable[[], Any]) -> Any:
    """What came of a call, which is over when this returns."""
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(call()))
    thread.start()
    thread.join()
    (outcome,) = outcomes
    return outcome


def once(monkeypatch: pytest.MonkeyPatch, target: object, name: str, then: Callable[[], None], *, before: bool) -> None:
    """Does something right before, or right after, the next call of a function."""
    really = getattr(target, name)

    def called(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(target, name, really)
        if before:
            then()
        outcome = really(*arguments, **options)
        if not before:
            then()
        return outcome

    monkeypatch.setattr(target, name, called)


def settled(monitor: Monitor) -> None:
    """Waits until nobody is looked at without there being news of him."""
    watches = monitor._watches
    assert isinstance(watches, V2Watches)
    take_while(monitor, lambda: watches._resting or watches._settling)


def test_two_threads_that_are_first(kernel2: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has opened an inotify instance and registered with it; both watches hear of what happens."""
    mine, theirs = kernel2.make_v2("a"), kernel2.make_v2("b")
    watches: list[Watch] = []
    with Monitor(settle=0.05) as monitor:
        once(
            monkeypatch,
            memcg_oom.monitor,
            "registered",
            lambda: watches.append(in_another_thread(lambda: monitor.watch(theirs.path))),
            before=False,
        )
        watches.append(monitor.watch(mine.path))
        for cgroup, watch in ((theirs, watches[0]), (mine, watches[1])):
            settled(monitor)
            cgroup.count(oom=1, oom_kill=1)
            events = take_while(monitor, lambda watch=watch: not watch.kills)  # type: ignore[misc]
            assert [event.cgroup for event in events if isinstance(event, OomKill)] == [watch.cgroup]


def test_a_registration_is_undone_while_another_finds_it(
    kernel2: FakeV2Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody has taken note of is let go of, and not what somebody has just then."""
    cgroup, other = kernel2.make_v2("a"), kernel2.make_v2("b")
    watches: list[Watch] = []
    threads: list[threading.Thread] = []

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    def watch_as_well() -> None:
        monkeypatch.setattr(memcg_oom.monitor, "registered", registered)
        threads.append(threading.Thread(target=lambda: watches.append(monitor.watch(cgroup.path))))
        threads[0].start()
        threads[0].join(0.2)  # it may have to wait for us

    with Monitor(settle=0.05) as monitor:
        monitor.watch(other.path)
        monkeypatch.setattr(memcg_oom.monitor, "registered", fails)
        once(monkeypatch, Inotify, "_remove", watch_as_well, before=True)
        with pytest.raises(KeyboardInterrupt):
            monitor.watch(cgroup.path)
        threads[0].join()
        (watch,) = watches
        settled(monitor)
        cgroup.count(oom=1, oom_kill=1)
        take_while(monitor, lambda: not watch.kills)


def test_a_tree_ends_while_another_is_scanned(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same directories followed; the one that begins goes on hearing of them."""
    kernel.make("top")
    kernel.make("top/a")
    with Monitor(settle=0.05, audit=None) as monitor:
        first = monitor.watch_tree(kernel.root / "top", source="inotify")
        once(monkeypatch, Search, "scan", lambda: in_another_thread(first.close), before=False)
        tree = monitor.watch_tree(kernel.root / "top", source="inotify")
        kernel.make("top/new")
        kernel.make("top/a/new")
        events = take_while(monitor, lambda: len(list(tree)) < 4)
        assert sum(isinstance(event, Created) for event in events) == 2
        assert not tree._unfollowed


def test_an_overflow_while_a_tree_is_scanned(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is scanned once more, also where there are no audits."""
    kernel.make("top")
    with Monitor(settle=0.05, audit=None) as monitor:
        other = monitor.watch_tree(kernel.make("other").path, source="inotify")

        def made_and_lost() -> None:
            other._source.overflowed = True
            kernel.make("top/new")
            monitor._discovery.sources["inotify"].changes(scanning=False)  # nobody hears of it
            monitor.wait(0.05)

        once(monkeypatch, Search, "scan", made_and_lost, before=False)
        tree = monitor.watch_tree(kernel.root / "top", source="inotify")
        assert sorted(Path(watch.cgroup).name for watch in tree) == ["new", "top"]


@pytest.mark.parametrize("how", ["watch", "watch_tree", "watch_usage"])
def test_what_a_watch_has_to_tell_at_once_wakes_whoever_waits(kernel: FakeKernel, how: str) -> None:
    """Here that the log cannot be read; nothing else is due soon."""
    (kernel.root.parent / "kmsg").unlink()
    path = kernel.make("top").path
    with Monitor(settle=60, audit=None) as monitor:
        poll = select.poll()
        poll.register(monitor.fileno(), select.POLLIN)
        assert monitor.wait(0) == []
        if how == "watch_usage":
            monitor.watch_usage(path, 1 << 20)
        else:
            getattr(monitor, how)(path)
        assert poll.poll(1000)
        assert monitor.wait(0)
