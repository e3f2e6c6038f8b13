"""How long does it take from the kernel's signal to the Oom event in Python?

From the moment before another process signals the eventfd to the return of Monitor.wait(), against

- C: waits, reads the eventfd, looks at the counter by its identity and checks the path (limits/waiter.c), which is all
  that has to be done before an Oom can be told;
- the standard library: the same in Python, by path, as it has no open_by_handle_at(2).

The signal is a write to the eventfd by another process (limits/signaller.c). When the kernel's own began cannot be
seen from outside; to the waiter both are the same, and so is what it costs to be woken.

A Monitor goes on looking at a cgroup until `settle` seconds after its signal. Each signal here comes when that is over,
as that of a cgroup in its first trouble does. Its looks may have left the processor's caches warmer than a C waiter
finds them, which sleeps all the time.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import time
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks import common
from memcg_oom import Monitor
from memcg_oom.events import Oom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # When everything was known, in nanoseconds of CLOCK_MONOTONIC, and how many signals it was for.
    Arrival = tuple[int, int]

OURS = "memcg_oom wait"
C = "C"
LIBRARY = "Python standard library"
MEDIAN_TARGET = 1.3
P99_TARGET = 1.5

SETTLE = 0.01  # seconds
PAUSES = (15_000_000, 20_000_000)  # nanoseconds from signal to signal, evenly spread: longer than SETTLE
BLOCK = 200  # signals in a row to one competitor
WARM_UP = 10  # more, ahead of them, that do not count
LONGEST = 10.0  # seconds without a signal after which something is wrong; the C waiter's too


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--rounds", type=int, default=5, help=f"each {BLOCK} signals (default: %(default)s)")
    args = options.parse_args()

    samples: dict[str, list[list[int]]] = {OURS: [], C: [], LIBRARY: []}
    with common.compiled("signaller", "waiter") as [signaller, waiter], common.scratch(1) as [cgroup]:
        competitors: dict[str, Callable[[], list[int]]] = {
            OURS: lambda: ours(cgroup, signaller),
            C: lambda: c(cgroup, signaller, waiter),
            LIBRARY: lambda: library(cgroup, signaller),
        }
        for _ in range(args.rounds):
            for name in random.sample(list(competitors), len(competitors)):
                samples[name].append(competitors[name]()[WARM_UP:])

    figures = {
        figure: {name: [common.quantile(one, share) for one in rounds] for name, rounds in samples.items()}
        for figure, share in (("median", 0.5), ("p99", 0.99))
    }
    common.report(
        f"From the signal to the event, {BLOCK} signals a round",
        ("microseconds", 1000),
        {name: common.distribution([*chain(*rounds)]) for name, rounds in samples.items()},
        [
            common.ratio(f"{figure}, {OURS} / {other}", found[OURS], found[other], target)
            for other, targets in ((C, (MEDIAN_TARGET, P99_TARGET)), (LIBRARY, (None, None)))
            for (figure, found), target in zip(figures.items(), targets, strict=True)
        ],
        args.json,
    )


def ours(cgroup: str, signaller: str) -> list[int]:
    with Monitor(settle=SETTLE) as monitor:
        watch = monitor.watch(cgroup)
        # No part of the interface: outside a benchmark, nobody but the kernel signals it.
        return latencies(signaller, watch._eventfd, _events(monitor))


def _events(monitor: Monitor) -> Iterator[Arrival]:
    while events := monitor.wait(LONGEST):
        now = time.monotonic_ns()
        yield now, sum(event.count for event in events if isinstance(event, Oom))


def library(cgroup: str, signaller: str) -> list[int]:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        return latencies(signaller, eventfd, _wake_ups(cgroup, eventfd))
    finally:
        os.close(eventfd)


def _wake_ups(cgroup: str, eventfd: int) -> Iterator[Arrival]:
    identity = os.stat(cgroup)
    with select.epoll() as epoll:
        epoll.register(eventfd, select.EPOLLIN)
        while epoll.poll(LONGEST):
            signals = os.eventfd_read(eventfd)
            fd = os.open(f"{cgroup}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                kills = int(os.pread(fd, 256, 0).partition(b"\noom_kill ")[2])
            finally:
                os.close(fd)
            moved = not os.path.samestat(os.stat(cgroup), identity)
            now = time.monotonic_ns()
            if kills or moved:
                raise RuntimeError("the cgroup of the benchmark is in somebody's hands")
            yield now, signals


def c(cgroup: str, signaller: str, waiter: str) -> list[int]:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        command = [waiter, cgroup, str(eventfd), str(WARM_UP + BLOCK)]
        with subprocess.Popen(command, pass_fds=[eventfd], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # It prints in the end, so this waits until it is through.
            lines = (line.split() for line in process.stdout)
            return latencies(signaller, eventfd, ((int(time_ns), int(signals)) for time_ns, signals in lines))
    finally:
        os.close(eventfd)


def latencies(signaller: str, eventfd: int, arrivals: Iterator[Arrival]) -> list[int]:
    """Starts the signaller and sets what arrives against what it sent: one latency, in nanoseconds, a signal."""
    sent_in_all = WARM_UP + BLOCK
    command = [signaller, str(eventfd), str(sent_in_all), *map(str, PAUSES)]
    # The parent's copy of the eventfd goes on; the signaller's goes when it ends.
    with subprocess.Popen(command, pass_fds=[eventfd], stdout=subprocess.PIPE, text=True) as process:
        known: list[int] = []
        while len(known) < sent_in_all:
            time_ns, signals = next(arrivals, (0, 0))
            if not signals:
                raise RuntimeError(f"of {sent_in_all} signals only {len(known)} arrived")
            known += [time_ns] * signals
        sent, _ = process.communicate()
    return [time_ns - int(line) for time_ns, line in zip(known, sent.split(), strict=True)]


if __name__ == "__main__":
    main()
