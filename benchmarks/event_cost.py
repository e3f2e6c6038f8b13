"""Does it cost more to tell an OOM of one cgroup when many others are watched?

The time of one Monitor.wait() that tells one Oom, whose signal is there already, with 100, 1,000 and 10,000 watches,
against what the standard library does for one signal, with as many eventfds:

- epoll: select.epoll, a read, the counter and the path looked at, as in wake_latency.py;
- poll: the same with select.poll, which asks about every descriptor each time, and so cannot be flat.

What counts is that with many it costs as much as with few. Each design is a process of its own that holds all of its
sets of watches at once and takes them in turn, so that all find the processor's caches alike. Between two signals the
cgroup settles.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks import common
from benchmarks.wake_latency import SETTLE, look
from memcg_oom import Monitor, Oom

if TYPE_CHECKING:
    from collections.abc import Callable

    # Signals one of its watches, and returns how many nanoseconds it took to tell that.
    OneEvent = Callable[[], int]

OURS = "memcg_oom wait"
EPOLL = "Python epoll"
POLL = "Python poll"
TARGET = 1.2

COUNTS = (100, 1_000, 10_000)
WARM_UP = 10  # events more, ahead of the others, that do not count
PAUSE = 2 * SETTLE  # seconds


def main() -> None:
    options = common.parser(__doc__, rounds=5, only=IN_PYTHON)
    options.add_argument("--events", type=int, default=100, help="of each set in a round (default: %(default)s)")
    options.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of watches (default: %(default)s)")
    args = options.parse_args()
    common.raise_descriptor_limit()
    counts: list[int] = sorted(args.counts)
    if args.only:
        paths = sys.stdin.read().splitlines()
        print(json.dumps(in_turn([IN_PYTHON[args.only](paths[:count]) for count in counts], args.events)))
        return

    size = ["--counts", *map(str, counts), "--events", str(args.events)]
    with common.scratch(counts[-1]) as paths:

        def run(name: str) -> list[list[int]]:
            common.await_quiet()
            command = [*common.alone("benchmarks.event_cost", name), *size]
            done = subprocess.run(command, input="\n".join(paths), stdout=subprocess.PIPE, text=True, check=True)
            found: list[list[int]] = json.loads(done.stdout)
            return found

        rounds = common.shuffled(args.rounds, IN_PYTHON, run)

    samples = {
        f"{name}, {count:,}": [one[i] for one in found]
        for name, found in rounds.items()
        for i, count in enumerate(counts)
    }
    medians = common.medians(samples)
    least, *more = [f"{count:,}" for count in counts]
    common.report(
        "One Oom of one of so many watches",
        ("microseconds", 1000),
        {name: common.distribution([*chain(*found)]) for name, found in samples.items()},
        [
            *(
                common.ratio(
                    f"{name}, {count} / {name}, {least}",
                    medians[f"{name}, {count}"],
                    medians[f"{name}, {least}"],
                    target,
                )
                for name, target in ((OURS, TARGET), (EPOLL, None), (POLL, None))
                for count in more
            ),
            *(
                common.ratio(f"{count}, {OURS} / {name}", medians[f"{OURS}, {count}"], medians[f"{name}, {count}"])
                for count in (least, *more)
                for name in (EPOLL, POLL)
            ),
        ],
        args.json,
    )


def in_turn(sets: list[OneEvent], events: int) -> list[list[int]]:
    """What the events of each set took, set after set, in a new order each time."""
    found: list[list[int]] = [[] for _ in sets]
    for _ in range(WARM_UP + events):
        for number in random.sample(range(len(sets)), len(sets)):
            found[number].append(sets[number]())
    return [taken[WARM_UP:] for taken in found]


def ours(paths: list[str]) -> OneEvent:
    monitor = Monitor(settle=SETTLE)
    watches = monitor.watch_many(paths)
    monitor.wait(PAUSE)

    def one_event() -> int:
        os.eventfd_write(random.choice(watches)._eventfd, 1)
        start = time.monotonic_ns()
        events = monitor.wait()
        taken = time.monotonic_ns() - start
        if [type(event) for event in events] != [Oom] or monitor.wait(PAUSE):
            raise RuntimeError("the cgroups of the benchmark are in somebody's hands")
        return taken

    return one_event


def library(poll: select.epoll | select.poll, paths: list[str]) -> OneEvent:
    watches = {os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK): (path, os.stat(path)) for path in paths}
    for eventfd in watches:
        poll.register(eventfd, select.EPOLLIN)  # POLLIN is the same
    eventfds = [*watches]

    def one_event() -> int:
        os.eventfd_write(random.choice(eventfds), 1)
        start = time.monotonic_ns()
        for eventfd, _ in poll.poll():
            os.eventfd_read(eventfd)
            known = look(*watches[eventfd])
        time.sleep(PAUSE)
        return known - start

    return one_event


IN_PYTHON: dict[str, Callable[[list[str]], OneEvent]] = {
    OURS: ours,
    EPOLL: lambda paths: library(select.epoll(), paths),
    POLL: lambda paths: library(select.poll(), paths),
}

if __name__ == "__main__":
    main()
