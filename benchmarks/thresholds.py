"""Does registering usage thresholds, which takes the kernel milliseconds each, hold up whoever waits for OOMs?

The time from another process's signal to the return of Monitor.wait(), as in wake_latency.py, while

- nobody registers anything: the baseline;
- a thread registers 200 thresholds on one cgroup, and again, as long as signals come;
- a thread registers one on each of 500 cgroups;
- the loop registers them itself, between two looks at the descriptor: what a design without a second thread has to do.

And the time that one registration takes: Monitor.watch_usage() against the same system calls of the standard library.
"""

from __future__ import annotations

import os
import threading
import time
from itertools import chain, cycle
from typing import TYPE_CHECKING

from benchmarks import common
from benchmarks.wake_latency import LONGEST, SETTLE, latencies, signals_parser
from memcg_oom import Monitor, Oom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.wake_latency import Arrival
    from memcg_oom import AnyWatch

QUIET = "nobody registers"
ONE = "200 on one cgroup"
MANY = "one on each of 500"
INSIDE = "by the loop itself"
OURS = "memcg_oom"
LIBRARY = "Python standard library"

THRESHOLDS = 200
CGROUPS = 500
SIZES = [(16 + i) << 20 for i in range(THRESHOLDS)]
REGISTRATIONS = 100


def main() -> None:
    args = signals_parser(__doc__, rounds=3).parse_args()
    common.raise_descriptor_limit()

    with common.compiled("signaller") as [signaller], common.scratch(1 + CGROUPS) as [watched, *cgroups]:
        one = [(cgroups[0], size) for size in SIZES]
        many = [(cgroup, SIZES[0]) for cgroup in cgroups]
        loops: dict[str, Callable[[], list[int]]] = {
            QUIET: lambda: beside(watched, signaller, args.signals, []),
            ONE: lambda: beside(watched, signaller, args.signals, one),
            MANY: lambda: beside(watched, signaller, args.signals, many),
            INSIDE: lambda: inside(watched, signaller, args.signals, one),
        }
        waits = common.shuffled(args.rounds, loops, lambda name: loops[name]())
        registering = {OURS: ours, LIBRARY: library}
        registrations = common.shuffled(args.rounds, registering, lambda name: registering[name](one))

    worst = {name: [max(one) for one in rounds] for name, rounds in waits.items()}
    median = common.medians(waits)
    one_median = common.medians(registrations)
    common.report(
        "From the signal to the event while thresholds are registered; and one registration",
        ("microseconds", 1000),
        {
            **{f"loop, {name}": common.distribution([*chain(*rounds)]) for name, rounds in waits.items()},
            **{
                f"one registration, {name}": common.distribution([*chain(*rounds)])
                for name, rounds in registrations.items()
            },
        },
        [
            *(common.ratio(f"median, {name} / {QUIET}", median[name], median[QUIET]) for name in (ONE, MANY, INSIDE)),
            *(common.ratio(f"worst, {name} / {QUIET}", worst[name], worst[QUIET]) for name in (ONE, MANY, INSIDE)),
            common.ratio(f"registration, {OURS} / {LIBRARY}", one_median[OURS], one_median[LIBRARY]),
        ],
        args.json,
    )


def beside(watched: str, signaller: str, signals: int, thresholds: list[tuple[str, int]]) -> list[int]:
    """What the loop sees while a thread registers all the thresholds, and again."""
    over = threading.Event()

    def register() -> None:
        while not over.is_set():
            watches: list[AnyWatch] = []
            for cgroup, size in thresholds:
                if not over.is_set():
                    watches.append(monitor.watch_usage(cgroup, size))
            for watch in watches:
                watch.close()

    with Monitor(settle=SETTLE) as monitor:
        watch = monitor.watch(watched)
        thread = threading.Thread(target=register)
        if thresholds:
            thread.start()
        try:
            return latencies(signaller, signals, watch._eventfd, _arrivals(monitor, lambda: None, LONGEST))
        finally:
            over.set()
            if thresholds:
                thread.join()


def inside(watched: str, signaller: str, signals: int, thresholds: list[tuple[str, int]]) -> list[int]:
    """What it sees when it registers them itself, whenever there is nothing to read."""
    endless = cycle(thresholds)
    with Monitor(settle=SETTLE) as monitor:
        watch = monitor.watch(watched)

        def register() -> None:
            monitor.watch_usage(*next(endless)).close()

        return latencies(signaller, signals, watch._eventfd, _arrivals(monitor, register, 0.0))


def _arrivals(monitor: Monitor, otherwise: Callable[[], None], timeout: float) -> Iterator[Arrival]:
    while True:
        events = monitor.wait(timeout)
        now = time.monotonic_ns()
        if ooms := sum(event.count for event in events if isinstance(event, Oom)):
            yield now, ooms
        else:
            otherwise()


def ours(thresholds: Iterable[tuple[str, int]]) -> list[int]:
    found = []
    with Monitor() as monitor:
        for cgroup, size in [*thresholds][:REGISTRATIONS]:
            before = time.monotonic_ns()
            monitor.watch_usage(cgroup, size)
            found.append(time.monotonic_ns() - before)
    return found


def library(thresholds: Iterable[tuple[str, int]]) -> list[int]:
    found, eventfds = [], []
    for cgroup, size in [*thresholds][:REGISTRATIONS]:
        before = time.monotonic_ns()
        eventfds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        usage = os.open(f"{cgroup}/memory.usage_in_bytes", os.O_RDONLY)
        control = os.open(f"{cgroup}/cgroup.event_control", os.O_WRONLY)
        os.write(control, f"{eventfds[-1]} {usage} {size}".encode())
        os.close(control)
        os.close(usage)
        found.append(time.monotonic_ns() - before)
    for eventfd in eventfds:
        os.close(eventfd)
    return found


if __name__ == "__main__":
    main()
