"""One event at a time: for, async for, cancellation, uvloop; and the descriptor that any loop can own."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memcg_oom import CgroupEvent, Event, Monitor, Oom, OomKill, Removed, Watch
from tests.support import PATIENCE, Independent, Ledger, make, readable, remove, run_hog, start_hog, take_until

Run = Callable[[Coroutine[Any, Any, None]], None]


def run_asyncio(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def run_uvloop(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


@pytest.fixture(scope="module", autouse=True)
def _uvloop_has_started() -> None:
    """Its first loop opens a pipe that the process keeps."""
    try:
        import uvloop
    except ImportError:
        return  # and the tests that want it are skipped, with that reason
    uvloop.new_event_loop().close()


without_uvloop = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
both_loops = pytest.mark.parametrize(
    "run", [run_asyncio, pytest.param(run_uvloop, marks=without_uvloop)], ids=["asyncio", "uvloop"]
)


def kill_and_remove(hog: str, cgroup: Path) -> None:
    run_hog(hog, cgroup)
    remove(cgroup)


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


# -- for


def test_an_exception_in_the_body_loses_nothing(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "cgroup", "1M")
    with Monitor() as monitor:
        monitor.watch(cgroup)
        kill_and_remove(hog, cgroup)
        events: list[Event] = []
        while not any(isinstance(event, Removed) for event in events):
            with pytest.raises(ZeroDivisionError):
                for event in monitor:
                    events.append(event)
                    raise ZeroDivisionError
        assert len(set(events)) == len(events)
        ledger = Ledger(events)
    (watch,) = ledger.by_watch
    assert isinstance(watch, Watch)
    assert ledger.ooms[watch] == watch.ooms == 1
    assert ledger.kills[watch] == watch.kills
    assert kinds(events)[-1] is Removed


def test_what_an_iteration_leaves_is_readable_and_waits_for_the_next(memcg: Path, hog: str) -> None:
    cgroups = [make(memcg / str(number), "1M") for number in range(5)]
    with Monitor() as monitor:
        monitor.watch_many(cgroups)
        for cgroup in cgroups:
            run_hog(hog, cgroup)
        first = next(monitor)
        assert readable(monitor.fileno())
        rest = monitor.wait(0)
        assert rest
        ledger = take_until(monitor, lambda ledger: ledger.kills.total() == 5, Ledger([first, *rest]))
        assert ledger.ooms.total() >= 5  # a task may run out more than once before it dies


def test_the_descriptor_is_readable_while_there_is_something_to_do(memcg: Path, hog: str) -> None:
    cgroup = make(memcg / "cgroup", "1M")
    with Monitor(settle=0.05, linger=0.05) as monitor:
        watch = monitor.watch(cgroup)
        assert monitor.wait(0.2) == []
        assert not readable(monitor.fileno())
        run_hog(hog, cgroup)
        assert readable(monitor.fileno())
        assert readable(monitor.fileno()), "level-triggered"
        # Only ever wait(0), and only when told to: the timer of a settling watch shows in the descriptor too.
        ledger = Ledger()
        while not ledger.kills[watch]:
            assert readable(monitor.fileno(), PATIENCE)
            ledger.add(monitor.wait(0))
        remove(cgroup)
        while not ledger.removals[watch]:
            assert readable(monitor.fileno(), PATIENCE)
            ledger.add(monitor.wait(0))


def test_closing_in_the_body_ends_the_loop(memcg: Path, hog: str) -> None:
    cgroup = make(memcg / "cgroup", "1M")
    monitor = Monitor()
    monitor.watch(cgroup)
    run_hog(hog, cgroup)
    seen = []
    for event in monitor:
        seen.append(event)
        monitor.close()
    assert len(seen) == 1
    with pytest.raises(StopIteration):
        next(monitor)


def test_a_removal_does_not_end_the_loop(memcg: Path, hog: str) -> None:
    gone, later = make(memcg / "gone"), make(memcg / "later", "1M")
    with Monitor() as monitor:
        monitor.watch_many([gone, later])
        remove(gone)
        for event in monitor:
            if isinstance(event, Removed):
                run_hog(hog, later)
            if isinstance(event, OomKill):
                assert event.cgroup == str(later)
                break


def test_a_closed_watch_yields_nothing_more(memcg: Path, hog: str) -> None:
    first, second = make(memcg / "1", "1M"), make(memcg / "2", "1M")
    with Monitor() as monitor:
        watches = monitor.watch_many([first, second])
        run_hog(hog, first)
        run_hog(hog, second)
        event = next(monitor)
        assert isinstance(event, CgroupEvent)
        # Events of both may be on hand now; those of the closed one are dropped.
        watches[0].close()
        watches[0].close()
        ledger = take_until(monitor, lambda ledger: ledger.kills[watches[1]])
        remove(first)
        remove(second)
        take_until(monitor, lambda ledger: ledger.removals[watches[1]], ledger)
        assert not ledger.by_watch[watches[0]]
        assert watches[0].closed
        assert monitor.watches == ()


# -- async for


@both_loops
def test_async_for_yields_one_event_at_a_time(memcg1: Path, hog: str, run: Run) -> None:
    cgroup = make(memcg1 / "cgroup", "1M")

    async def main() -> None:
        with Monitor() as monitor:
            watch = monitor.watch(cgroup)
            work = asyncio.get_running_loop().run_in_executor(None, kill_and_remove, hog, cgroup)
            events = []
            async for event in monitor:
                events.append(event)
                if isinstance(event, Removed):
                    break
            await work
            assert kinds(events)[-1] is Removed
            assert sum(event.count for event in events if isinstance(event, Oom)) == watch.ooms == 1

    run(main())


@both_loops
def test_cancellation_loses_nothing(memcg1: Path, hog: str, run: Run, figure: dict[str, object]) -> None:
    """The task that iterates is cancelled again and again, whatever it is doing, during a storm."""
    rounds = 60
    cgroups = [make(memcg1 / str(number), "1M") for number in range(rounds)]
    independents = [Independent(cgroup) for cgroup in cgroups]
    chance = random.Random(3)

    def storm() -> None:
        for cgroup, independent in zip(cgroups, independents, strict=True):
            run_hog(hog, cgroup)
            independent.ooms = independent.read()
            remove(cgroup)

    async def main() -> None:
        cancelled = 0
        events: list[Event] = []

        async def consume() -> None:
            async for event in monitor:
                events.append(event)  # no await between, so what was yielded is here

        with Monitor() as monitor:
            watches = monitor.watch_many(cgroups)
            work = asyncio.get_running_loop().run_in_executor(None, storm)
            while sum(isinstance(event, Removed) for event in events) < rounds:
                task = asyncio.ensure_future(consume())
                await asyncio.sleep(chance.choice([0, 0, 1e-4, 1e-3, 5e-3]))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                cancelled += 1
            await work
            ledger = Ledger(events)
            figure.update(cancelled=cancelled, kills=ledger.kills.total(), unresolved=ledger.unresolved.total())
            for watch, independent in zip(watches, independents, strict=True):
                independent.await_more_than(independent.ooms)
                assert ledger.ooms[watch] == watch.ooms == independent.read() - 1
                assert ledger.kills[watch] == watch.kills <= 1
                assert ledger.kills[watch] + ledger.unresolved[watch] >= 1
                assert ledger.removals[watch] == 1
            assert cancelled > rounds

    try:
        run(main())
    finally:
        for independent in independents:
            independent.close()


@both_loops
def test_a_second_waiter_is_an_error(memcg: Path, hog: str, run: Run) -> None:
    cgroup = make(memcg / "cgroup", "1M")

    async def main() -> None:
        with Monitor() as monitor:
            monitor.watch(cgroup)
            first = asyncio.ensure_future(anext(monitor))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one waiter"):
                await anext(monitor)
            with pytest.raises(RuntimeError, match="one waiter"):
                monitor.wait(0)
            await asyncio.get_running_loop().run_in_executor(None, run_hog, hog, cgroup)
            assert isinstance(await first, Oom)

    run(main())


@both_loops
def test_close_from_anywhere_ends_async_for(memcg: Path, run: Run) -> None:
    async def main() -> None:
        for closer in ("thread", "loop"):
            monitor = Monitor()
            monitor.watch(memcg)

            async def consume(monitor: Monitor = monitor) -> None:
                async for _ in monitor:
                    raise AssertionError("nothing has happened")

            task = asyncio.ensure_future(consume())
            await asyncio.sleep(0)
            if closer == "thread":
                threading.Thread(target=monitor.close).start()
            else:
                monitor.close()
            await asyncio.wait_for(task, PATIENCE)
            with pytest.raises(ValueError, match="closed"):
                aiter(monitor)

    run(main())


@both_loops
def test_watches_come_and_go_while_a_task_iterates(memcg: Path, hog: str, run: Run) -> None:
    async def main() -> None:
        with Monitor() as monitor:
            seen: list[Event] = []

            async def consume() -> None:
                async for event in monitor:
                    seen.append(event)
                    if isinstance(event, OomKill):
                        return

            task = asyncio.ensure_future(consume())
            await asyncio.sleep(0)
            monitor.wake()  # ends no iteration
            monitor.watch(make(memcg / "closed", "1M")).close()
            cgroup = make(memcg / "cgroup", "1M")
            monitor.watch(cgroup)
            pid = start_hog(hog, cgroup)
            await asyncio.wait_for(task, PATIENCE)
            await asyncio.get_running_loop().run_in_executor(None, os.waitpid, pid, 0)
            assert {event.cgroup for event in seen if isinstance(event, CgroupEvent)} == {str(cgroup)}

    run(main())
