"""Usage thresholds of cgroup v1, against the real kernel and an independent eventfd on the same threshold."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memcg_oom import Event, Monitor, OomKill, Removed, UnsupportedError, UsageCrossed, UsageWatch
from memcg_oom.hierarchy import Hierarchy
from tests.support import Dial, Independent, eventually, is_v2, make, remove, run_hog, take_until_quiet

MB = 1 << 20
USAGE = "memory.usage_in_bytes"
ROUNDS = int(os.environ.get("MEMCG_OOM_ROUNDS", "300"))
MANY = min(500, 2 * ROUNDS)
JITTER = 0.05  # seconds that going to and fro is collected for


@pytest.fixture(params=["by id", "by path"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by path":
        monkeypatch.setattr(Hierarchy, "_can_open_by_id", lambda _: False)
    return str(request.param)


def take(monitor: Monitor, until: Callable[[UsageCrossed], object]) -> list[UsageCrossed]:
    """The crossings up to one of which the condition holds."""
    found: list[UsageCrossed] = []
    while not (found and until(found[-1])):
        events = monitor.wait(60)
        assert events, f"no crossing came after {found}"
        for event in events:
            assert isinstance(event, UsageCrossed), event
            found.append(event)
    return found


def quiet(monitor: Monitor, wait: float = 0.3) -> list[Event]:
    """What still comes."""
    events: list[Event] = []
    while more := monitor.wait(wait):
        events += more
    return events


def counts(events: list[Any]) -> int:
    return sum(event.count for event in events)


def test_crossings_in_both_directions(memcg1: Path, hog: str, way: str, figure: dict[str, object]) -> None:
    rounds, threshold = 20, 16 * MB
    cgroup = make(memcg1 / "a")
    independent = Independent(cgroup, USAGE, str(threshold))
    events: list[Any] = []
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch_usage(cgroup, threshold, interval=JITTER)
        assert not watch.above
        for _ in range(rounds):
            dial.set(32 * MB)
            events += take(monitor, lambda event: event.above)
            assert watch.above
            dial.set(4 * MB)
            events += take(monitor, lambda event: not event.above)
            assert not watch.above
        events += quiet(monitor)
        assert {(event.cgroup, event.watch, event.threshold) for event in events} == {(str(cgroup), watch, threshold)}
        assert all((event.usage >= threshold) == event.above for event in events)
        changes = [event.above for event in events]
        assert [above for at, above in enumerate(changes) if at == 0 or changes[at - 1] != above] == [
            *([True, False] * rounds)
        ]
        assert counts(events) == independent.read() >= 2 * rounds
        figure.update(rounds=rounds, events=len(events), signals=counts(events), independent=independent.count)
        dial.close()
        remove(cgroup)
        (removed,) = take_until_quiet(monitor).by_watch[watch]
        assert isinstance(removed, Removed)
        assert watch.removed
        assert monitor.watches == ()
    independent.await_more_than(counts(events))
    assert independent.read() == counts(events) + 1  # the removal's own
    independent.close()


def test_going_to_and_fro_at_the_threshold_is_collected(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    threshold = 64 * MB
    cgroup = make(memcg1 / "a")
    independent = Independent(cgroup, USAGE, str(threshold))
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch_usage(cgroup, threshold, interval=3600)  # ends after the test
        dial.set(threshold + MB // 2)
        events = take(monitor, lambda event: event.above)
        assert len(events) == 1
        for _ in range(50):  # by less than the margin of 1 MiB
            dial.set(threshold - 3 * MB // 4)
            assert monitor.wait(0) == []
            dial.set(threshold + 3 * MB // 4)
            assert monitor.wait(0) == []
        assert independent.read() > events[0].count
        figure["signals that made no event"] = independent.count - events[0].count
        assert watch.above
        dial.set(threshold // 2)
        events += take(monitor, lambda event: not event.above)
        assert len(events) == 2
        assert counts(events) == independent.read()
    independent.close()


def test_what_was_collected_is_told_at_the_end_of_the_interval(memcg1: Path, hog: str) -> None:
    threshold = 64 * MB
    cgroup = make(memcg1 / "a")
    independent = Independent(cgroup, USAGE, str(threshold))
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch_usage(cgroup, threshold, interval=JITTER)
        dial.set(threshold + MB // 2)
        events: list[Any] = take(monitor, lambda event: event.above)
        # Within the margin; the kernel takes note of most such ways, not of each.
        while independent.read() == events[0].count:
            dial.set(threshold + MB // 2)
            dial.set(threshold - 3 * MB // 4)
        events += take(monitor, lambda event: event.above == (event.usage >= threshold))
        assert not watch.above
        events += quiet(monitor)
        assert counts(events) == independent.read()
    independent.close()


def test_there_and_back_before_anybody_looks(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a")
    independent = Independent(cgroup, USAGE, str(16 * MB))
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        monitor.watch_usage(cgroup, 16 * MB, interval=JITTER)
        dial.set(32 * MB)
        dial.set(4 * MB)
        (event,) = take(monitor, lambda _: True)
        assert not event.above
        assert event.usage < 16 * MB
        assert event.count == independent.read() >= 2
        assert quiet(monitor) == []
    independent.close()


def test_a_share_of_the_limit_and_other_words_for_bytes(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a", "64M")
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watches = [monitor.watch_usage(cgroup, words) for words in ("50%", "32M", 32 * MB, 32 * MB + 4095)]
        assert {watch.threshold for watch in watches} == {32 * MB}
        share = monitor.watch_usage(cgroup, "0.01 %")
        assert share.threshold == 64 * MB // 10_000 // 4096 * 4096
        share.close()
        dial.set(48 * MB)
        told: set[UsageWatch] = set()
        while len(told) < 4:
            told |= {event.watch for event in take(monitor, lambda event: event.above)}
        assert told == set(watches)


def test_memory_and_swap_together(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a", "64M")
    if not (cgroup / "memory.memsw.limit_in_bytes").exists():
        with Monitor() as monitor, pytest.raises(UnsupportedError, match="swapaccount=1"):
            monitor.watch_usage(cgroup, "32M", swap=True)
        pytest.skip("this kernel does not account for swap: that this is said was tried")
    (cgroup / "memory.memsw.limit_in_bytes").write_text("128M")
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch_usage(cgroup, "25%", swap=True)
        assert (watch.threshold, watch.swap) == (32 * MB, True)
        dial.set(48 * MB)
        (event,) = take(monitor, lambda event: event.above)
        assert event.watch is watch
        assert event.usage >= 32 * MB


@pytest.mark.parametrize(
    ("threshold", "error", "words"),
    [
        (0, ValueError, "at least a page"),
        (-1, ValueError, "at least a page"),
        (4095, ValueError, "at least a page"),
        (2**63, ValueError, "below 2\\*\\*63"),
        ("100X", ValueError, "not a size"),
        ("", ValueError, "not a size"),
        ("0%", ValueError, "share of the limit"),
        ("101%", ValueError, "share of the limit"),
        ("nan%", ValueError, "share of the limit"),
        ("x%", ValueError, "share of the limit"),
        ("5%5", ValueError, "share of the limit"),
        (1.5, TypeError, "a number of bytes"),
        (True, TypeError, "a number of bytes"),
        (None, TypeError, "a number of bytes"),
        ("90%", UnsupportedError, "no limit of its own"),
    ],
)
def test_what_is_no_threshold(memcg1: Path, threshold: Any, error: type[Exception], words: str) -> None:
    with Monitor() as monitor:
        with pytest.raises(error, match=words):
            monitor.watch_usage(memcg1, threshold)
        assert monitor.watches == ()


@pytest.mark.parametrize("interval", [-1.0, float("nan"), float("inf")])
def test_what_is_no_interval(memcg1: Path, interval: float) -> None:
    with Monitor() as monitor, pytest.raises(ValueError, match="interval"):
        monitor.watch_usage(memcg1, 1 * MB, interval=interval)


def test_where_nothing_can_be_watched(memcg1: Path, tmp_path: Path) -> None:
    with Monitor() as monitor:
        with pytest.raises(FileNotFoundError):
            monitor.watch_usage(memcg1 / "none", "1M")
        with pytest.raises(NotADirectoryError):
            monitor.watch_usage(memcg1 / USAGE, "1M")
        with pytest.raises(OSError, match="not a cgroup"):
            monitor.watch_usage(tmp_path, "1M")
        assert monitor.watches == ()
    with pytest.raises(ValueError, match="closed"):
        monitor.watch_usage(memcg1, "1M")


def test_once_a_hierarchy_is_open_the_errors_are_the_same(memcg1: Path, tmp_path: Path) -> None:
    with Monitor() as monitor:
        watch = monitor.watch(memcg1)
        for threshold, swap in (("1M", False), ("90%", False), ("1M", True), ("90%", True)):
            with pytest.raises(OSError, match="not a cgroup"):
                monitor.watch_usage(tmp_path, threshold, swap)
            with pytest.raises(FileNotFoundError):
                monitor.watch_usage(memcg1 / "none", threshold, swap)
        assert monitor.watches == (watch,)


def test_on_v2_the_nearest_thing_is_named(memcg: Path) -> None:
    if not is_v2(memcg):
        pytest.skip("the memory controller of this host is on cgroup v1")
    with Monitor() as monitor:
        with pytest.raises(UnsupportedError, match="MemoryHigh") as caught:
            monitor.watch_usage(memcg, "1M")
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(UnsupportedError, match="watch_stall"):
            monitor.watch_pressure(memcg, "low")
        assert monitor.watches == ()


def test_the_hierarchys_root_has_a_usage(playground: Path, memcg1: Path, hog: str) -> None:
    root = playground.parent
    used = int((root / USAGE).read_text())
    with Monitor() as monitor, Dial(hog, make(memcg1 / "a")) as dial:
        watch = monitor.watch_usage(root, used + 128 * MB)
        dial.set(512 * MB)
        assert take(monitor, lambda event: event.above)[-1].watch is watch
        assert watch in monitor.watches


def test_two_hundred_thresholds_of_one_cgroup(memcg1: Path, hog: str) -> None:
    """Or fewer, where the processor is emulated: the kernel takes some 10 ms for each."""
    cgroup = make(memcg1 / "a")
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watches = [
            monitor.watch_usage(cgroup, (16 + number) * MB, interval=JITTER) for number in range(min(200, ROUNDS))
        ]
        independent = Independent(cgroup, USAGE, str(60 * MB))
        dial.set(300 * MB)
        events: list[Any] = []
        while not all(watch.above for watch in watches):
            events += take(monitor, lambda event: event.above)
        dial.set(4 * MB)
        while any(watch.above for watch in watches):
            events += take(monitor, lambda event: not event.above)
        events += quiet(monitor)
        for watch in watches:
            own = [event for event in events if event.watch is watch]
            assert [event.above for event in own] in ([True, False], [True, True, False], [True, False, False]), own
            assert counts(own) >= 2
        at_60 = [event for event in events if event.threshold == 60 * MB]
        assert counts(at_60) == independent.read()
        independent.close()


def test_one_threshold_on_each_of_five_hundred(memcg1: Path, hog: str) -> None:
    cgroups = [make(memcg1 / str(number)) for number in range(MANY)]
    with Monitor() as monitor:
        watches = {cgroup: monitor.watch_usage(cgroup, "8M", interval=JITTER) for cgroup in cgroups}
        assert len(monitor.watches) == MANY
        chosen = cgroups[:: MANY // 10]
        for cgroup in chosen:
            with Dial(hog, cgroup) as dial:
                dial.set(16 * MB)
                assert take(monitor, lambda event: event.above)[-1].watch is watches[cgroup]
            assert take(monitor, lambda event: not event.above)[-1].watch is watches[cgroup]
        for cgroup in cgroups:
            remove(cgroup)
        ledger = take_until_quiet(monitor)
        assert set(ledger.removals) == set(watches.values())
        assert set(ledger.removals.values()) == {1}
        told = {event.watch for events in ledger.by_watch.values() for event in events if type(event) is UsageCrossed}
        assert told <= {watches[cgroup] for cgroup in chosen}


def test_registering_does_not_hold_up_a_wait(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    """A registration blocks its caller for milliseconds, in the kernel; whoever is in wait() is told meanwhile."""
    cgroup, victim = make(memcg1 / "a"), make(memcg1 / "victim", "1M")
    registered: list[UsageWatch] = []
    over = threading.Event()

    def register() -> None:
        while not over.is_set():
            registered.append(monitor.watch_usage(cgroup, 64 * MB))

    with Monitor() as monitor:
        monitor.watch(victim)
        thread = threading.Thread(target=register)
        thread.start()
        kills = 0
        try:
            while kills < 20 or len(registered) < 20:
                run_hog(hog, victim)
                while not any(isinstance(event, OomKill) for event in monitor.wait(60)):
                    pass
                kills += 1
        finally:
            over.set()
            thread.join()
    figure.update(registered=len(registered), kills=kills)


def test_a_kill_and_a_removal_at_once(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    """The crossings of one that goes at once: none lost, none invented, whatever beat the look."""
    independent: dict[UsageWatch, Independent] = {}
    events: list[Any] = []
    with Monitor() as monitor:
        for number in range(ROUNDS):
            cgroup = make(memcg1 / str(number))
            watch = monitor.watch_usage(cgroup, 4 * MB, interval=JITTER)
            independent[watch] = Independent(cgroup, USAGE, str(4 * MB))
            with Dial(hog, cgroup) as dial:
                dial.set(12 * MB)
            remove(cgroup)
            events += monitor.wait(0)
        while not all(watch.removed for watch in independent):
            events += monitor.wait(60)
        # A removal's own signal may be so late that one before it is known for a crossing only by then.
        eventually(lambda: all(its.read() > 0 for its in independent.values()))
        events += quiet(monitor, 1)
    late = 0
    for watch, its in independent.items():
        own = [event for event in events if event.watch is watch]
        kinds = [type(event) for event in own]
        assert kinds.count(Removed) == 1
        late += kinds[-1] is not Removed
        its.ooms = counts([event for event in own if isinstance(event, UsageCrossed)])
        eventually(lambda: its.read() > its.ooms)  # noqa: B023
        assert its.read() == its.ooms + 1
        its.close()
    figure.update(rounds=ROUNDS, signals=sum(one.count - 1 for one in independent.values()), late=late)
    figure.update(told=sum(one.ooms for one in independent.values()))


def test_a_renamed_one(memcg1: Path, hog: str, way: str) -> None:
    cgroup = make(memcg1 / "a")
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch_usage(cgroup, "16M")
        cgroup = cgroup.rename(memcg1 / "b")
        make(memcg1 / "a")
        dial.set(32 * MB)
        (event,) = take(monitor, lambda event: event.above)
        assert event.cgroup == watch.cgroup == str(cgroup)


def test_closed_ones_tell_nothing(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a")
    before = set(os.listdir("/proc/self/fd"))
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        first, second = (monitor.watch_usage(cgroup, "16M") for _ in range(2))
        first.close()
        first.close()
        assert monitor.watches == (second,)
        dial.set(32 * MB)
        assert {event.watch for event in take(monitor, lambda event: event.above)} == {second}
        second.close()
        dial.set(4 * MB)
        assert quiet(monitor) == []
        assert repr(first).startswith("<UsageWatch ")
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.fixture(autouse=True)
def _nothing_swaps() -> None:
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("with swap the usage is not what the process has")
