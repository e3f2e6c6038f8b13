"""How long does it take from the kernel's signal to the event in `async for`?

From the moment before another process signals the eventfd to the loop's body, under asyncio's own loop, against

- a bare reader: loop.add_reader() on the eventfd; its callback reads it and sets a future, which a task awaits. That
  is the least with which asyncio hands a signal to a task. Ours does more between the signal and the event: it looks at
  the counter by its identity and checks the path, without which nothing may be told, makes the event with its time and
  its count, and puts the cgroup down for its next look;
- the same reader, whose task looks at the counter and at the path too, by path: what the standard library would have
  to do to be as sure.

Signals come as in wake_latency.py.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from benchmarks import common
from benchmarks.wake_latency import LONGEST, SETTLE, WARM_UP, latencies, look, report, signals_parser
from memcg_oom import Monitor, Oom

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from benchmarks.wake_latency import Arrival

OURS = "memcg_oom async for"
BARE = "bare asyncio reader"
LOOKING = "asyncio reader that looks"
TARGET = 1.3


def main() -> None:
    args = signals_parser(__doc__, rounds=5).parse_args()

    with common.compiled("signaller") as [signaller], common.scratch(1) as [cgroup]:
        identity = os.stat(cgroup)
        competitors: dict[str, Callable[[], list[int]]] = {
            OURS: lambda: ours(cgroup, signaller, args.signals),
            BARE: lambda: reader(signaller, args.signals, time.monotonic_ns),
            LOOKING: lambda: reader(signaller, args.signals, lambda: look(cgroup, identity)),
        }
        samples = common.shuffled(args.rounds, competitors, lambda name: competitors[name]())

    title = f"From the signal to the event under asyncio, {args.signals} signals a round"
    report(title, {(OURS, BARE): (TARGET, None), (OURS, LOOKING): (None, None)}, samples, args.json)


def ours(cgroup: str, signaller: str, signals: int) -> list[int]:
    with Monitor(settle=SETTLE) as monitor:
        watch = monitor.watch(cgroup)
        return latencies(signaller, signals, watch._eventfd, _in_a_loop(_events(monitor), signals))


async def _events(monitor: Monitor) -> AsyncIterator[Arrival]:
    async for event in monitor:
        now = time.monotonic_ns()
        if isinstance(event, Oom):
            yield now, event.count


def reader(signaller: str, signals: int, known: Callable[[], int]) -> list[int]:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        return latencies(signaller, signals, eventfd, _in_a_loop(_signals(eventfd, known), signals))
    finally:
        os.close(eventfd)


async def _signals(eventfd: int, known: Callable[[], int]) -> AsyncIterator[Arrival]:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[int] = loop.create_future()
    loop.add_reader(eventfd, lambda: arrived.set_result(os.eventfd_read(eventfd)))
    try:
        while True:
            count = await arrived
            yield known(), count
            # The callback is not called again before the loop runs, which it does when this is awaited.
            arrived = loop.create_future()
    finally:
        loop.remove_reader(eventfd)


def _in_a_loop(arrivals: AsyncIterator[Arrival], signals: int) -> Iterator[Arrival]:
    """What arrives in an event loop, which runs from when the first is asked for until all have arrived."""

    async def collect() -> list[Arrival]:
        found: list[Arrival] = []
        async for arrival in arrivals:
            found.append(arrival)
            if sum(count for _, count in found) == WARM_UP + signals:
                break
        return found

    yield from asyncio.run(asyncio.wait_for(collect(), LONGEST + (WARM_UP + signals) * 0.1))


if __name__ == "__main__":
    main()
