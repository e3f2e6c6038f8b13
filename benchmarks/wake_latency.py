"""How long does it take from the kernel's signal to the Oom event in Python?

From the moment before another process signals the eventfd to the return of Monitor.wait(), against

- C: waits, reads the eventfd, looks at the counter by its identity and checks the path (limits/waiter.c), which is all
  that has to be done before an Oom can be told; Monitor(victims=False) is set against it;
- C that also lists the tasks of the cgroup and reads the kernel's log, as a Monitor does that is to name victims;
- the standard library: the first of these in Python, by path, as it has no open_by_handle_at(2).

The signal is a write to the eventfd by another process (limits/signaller.c). When the kernel's own began cannot be
seen from outside; to the waiter both are the same, and so is what it costs to be woken.

A Monitor goes on looking at a cgroup until `settle` seconds after its signal. Each signal here comes when that is over,
as that of a cgroup in its first trouble does. Its looks may have left the processor's caches warmer than a C waiter
finds them, which sleeps all the time.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import time
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks import common, designs
from memcg_oom import Monitor
from memcg_oom.events import Oom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    # When everything was known, in nanoseconds of CLOCK_MONOTONIC, and how many signals it was for.
    Arrival = tuple[int, int]

OURS = "memcg_oom wait"
OURS_WITHOUT = "memcg_oom wait, victims=False"
C = "C"
C_WITH = "C that looks for victims"
LIBRARY = "Python standard library"
MEDIAN_TARGET = 1.3
P99_TARGET = 1.5

SETTLE = 0.01  # seconds
PAUSES = (15_000_000, 20_000_000)  # nanoseconds from signal to signal, evenly spread: longer than SETTLE
WARM_UP = 10  # signals more, ahead of the others, that do not count
LONGEST = 10.0  # seconds without a signal after which something is wrong; the C waiter's too


def main() -> None:
    args = signals_parser(__doc__, rounds=5).parse_args()

    with common.compiled("signaller", "waiter") as [signaller, waiter], common.scratch(1) as [cgroup]:
        competitors: dict[str, Callable[[], list[int]]] = {
            OURS: lambda: ours(cgroup, signaller, args.signals),
            OURS_WITHOUT: lambda: ours(cgroup, signaller, args.signals, victims=False),
            C: lambda: c([waiter, cgroup], signaller, args.signals),
            C_WITH: lambda: c([waiter, cgroup], signaller, args.signals, "victims"),
            LIBRARY: lambda: library(cgroup, signaller, args.signals),
        }
        samples = common.shuffled(args.rounds, competitors, lambda name: competitors[name]())

    title = f"From the signal to the event, {args.signals} signals a round"
    targets = (MEDIAN_TARGET, P99_TARGET)
    pairs = {(OURS, C_WITH): targets, (OURS_WITHOUT, C): targets, (OURS_WITHOUT, LIBRARY): (None, None)}
    report(title, pairs, samples, args.json)


def report(
    title: str,
    pairs: dict[tuple[str, str], tuple[float | None, float | None]],
    samples: dict[str, list[list[int]]],
    as_json: bool,
) -> None:
    """Reports latencies, and how the median and the p99 of one stand to those of another; both may have a target."""
    figures = {"median": common.medians(samples), "p99": common.medians(samples, 0.99)}
    common.report(
        title,
        ("microseconds", 1000),
        {name: common.distribution([*chain(*rounds)]) for name, rounds in samples.items()},
        [
            common.ratio(f"{figure}, {one} / {other}", found[one], found[other], target)
            for (one, other), targets in pairs.items()
            for (figure, found), target in zip(figures.items(), targets, strict=True)
        ],
        as_json,
    )


def signals_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser of a script in which each competitor gets so many signals in a row."""
    options = common.parser(description, rounds=rounds)
    options.add_argument("--signals", type=int, default=200, help="to each in a round (default: %(default)s)")
    return options


def ours(cgroup: str, signaller: str, signals: int, *, victims: bool = True) -> list[int]:
    with Monitor(settle=SETTLE, victims=victims) as monitor:
        watch = monitor.watch(cgroup)
        # No part of the interface: outside a benchmark, nobody but the kernel signals it.
        return latencies(signaller, signals, watch._eventfd, _events(monitor))


def _events(monitor: Monitor) -> Iterator[Arrival]:
    while events := monitor.wait(LONGEST):
        now = time.monotonic_ns()
        yield now, sum(event.count for event in events if isinstance(event, Oom))


def library(cgroup: str, signaller: str, signals: int) -> list[int]:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        return latencies(signaller, signals, eventfd, _wake_ups(cgroup, eventfd))
    finally:
        os.close(eventfd)


def _wake_ups(cgroup: str, eventfd: int) -> Iterator[Arrival]:
    identity = os.stat(cgroup)
    with select.epoll() as epoll:
        epoll.register(eventfd, select.EPOLLIN)
        while epoll.poll(LONGEST):
            signals = os.eventfd_read(eventfd)
            known = look(cgroup, identity)
            yield known, signals


def look(cgroup: str, identity: os.stat_result) -> int:
    """What has to be done before an Oom can be told, by path; when it was done."""
    kills = designs.look(cgroup)
    moved = not os.path.samestat(os.stat(cgroup), identity)
    now = time.monotonic_ns()
    if kills or moved:
        raise RuntimeError("the cgroup of the benchmark is in somebody's hands")
    return now


def c(waiter: list[str], signaller: str, signals: int, *more: str) -> list[int]:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        command = [*waiter, str(eventfd), str(WARM_UP + signals), *more]
        with subprocess.Popen(command, pass_fds=[eventfd], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            # It prints in the end, so this waits until it is through.
            lines = (line.split() for line in process.stdout)
            return latencies(signaller, signals, eventfd, ((int(time_ns), int(count)) for time_ns, count in lines))
    finally:
        os.close(eventfd)


def latencies(signaller: str, signals: int, eventfd: int, arrivals: Iterator[Arrival]) -> list[int]:
    """Starts the signaller and sets what arrives against what it sent: nanoseconds, one for each signal that counts."""
    sent_in_all = WARM_UP + signals
    command = [signaller, str(eventfd), str(sent_in_all), *map(str, PAUSES)]
    # The parent's copy of the eventfd goes on; the signaller's goes when it ends.
    with subprocess.Popen(command, pass_fds=[eventfd], stdout=subprocess.PIPE, text=True) as process:
        known: list[int] = []
        while len(known) < sent_in_all:
            time_ns, count = next(arrivals, (0, 0))
            if not count:
                raise RuntimeError(f"of {sent_in_all} signals only {len(known)} arrived")
            known += [time_ns] * count
        sent, _ = process.communicate()
    return [time_ns - int(line) for time_ns, line in zip(known, sent.split(), strict=True)][WARM_UP:]


if __name__ == "__main__":
    main()
