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
import random
import threading
import time
from itertools import chain, cycle
from typing import TYPE_CHECKING

from benchmarks import common
from benchmarks.wake_latency import LONGEST, SETTLE, WARM_UP, latencies
from memcg_oom import Monitor, Oom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.wake_latency import Arrival
    from memcg_oom import AnyWatch

QUIET = "nobody registers"
ONE = "200 on one cgroup"
MANY = "one on each of 500"
INSIDE = "by the loop itself"
OURS = "watch_usage()"
LIBRARY = "standard library"

THRESHOLDS = 200
CGROUPS = 500
SIZES = [(16 + i) << 20 for i in range(THRESHOLDS)]
REGISTRATIONS = 100


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="each 200 signals (default: %(default)s)")
    args = options.parse_args()
    common.raise_descriptor_limit()

    with common.compiled("signaller") as [signaller], common.scratch(1 + CGROUPS) as [watched, *cgroups]:
        one = [(cgroups[0], size) for size in SIZES]
        many = [(cgroup, SIZES[0]) for cgroup in cgroups]
        loops: dict[str, Callable[[], list[int]]] = {
            QUIET: lambda: beside(watched, signaller, []),
            ONE: lambda: beside(watched, signaller, one),
            MANY: lambda: beside(watched, signaller, many),
            INSIDE: lambda: inside(watched, signaller, one),
        }
        waits = _in_any_order(args.rounds, loops)
        registrations = _in_any_order(args.rounds, {OURS: lambda: ours(one), LIBRARY: lambda: library(one)})

    worst = {name: [max(one) for one in rounds] for name, rounds in waits.items()}
    median = {name: [common.quantile(one, 0.5) for one in rounds] for name, rounds in waits.items()}
    registering = {name: [common.quantile(one, 0.5) for one in rounds] for name, rounds in registrations.items()}
    common.report(
        "From the signal to the event while thresholds are registered; and one registration",
        ("microseconds", 1000),
        {
            **{f"loop, {name}": common.distribution([*chain(*rounds)]) for name, rounds in waits.items()},
            **{f"one {name}": common.distribution([*chain(*rounds)]) for name, rounds in registrations.items()},
        },
        [
            *(common.ratio(f"median, {name} / {QUIET}", median[name], median[QUIET]) for name in (ONE, MANY, INSIDE)),
            *(common.ratio(f"worst, {name} / {QUIET}", worst[name], worst[QUIET]) for name in (ONE, MANY, INSIDE)),
            common.ratio(f"registration, {OURS} / {LIBRARY}", registering[OURS], registering[LIBRARY]),
        ],
        args.json,
    )


def _in_any_order(rounds: int, competitors: dict[str, Callable[[], list[int]]]) -> dict[str, list[list[int]]]:
    samples: dict[str, list[list[int]]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name in random.sample(list(competitors), len(competitors)):
            samples[name].append(competitors[name]())
    return samples


def beside(watched: str, signaller: str, thresholds: list[tuple[str, int]]) -> list[int]:
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
            return latencies(signaller, watch._eventfd, _arrivals(monitor, lambda: None, LONGEST))[WARM_UP:]
        finally:
            over.set()
            if thresholds:
                thread.join()


def inside(watched: str, signaller: str, thresholds: list[tuple[str, int]]) -> list[int]:
    """What it sees when it registers them itself, whenever there is nothing to read."""
    endless = cycle(thresholds)
    with Monitor(settle=SETTLE) as monitor:
        watch = monitor.watch(watched)

        def register() -> None:
            monitor.watch_usage(*next(endless)).close()

        return latencies(signaller, watch._eventfd, _arrivals(monitor, register, 0.0))[WARM_UP:]


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
