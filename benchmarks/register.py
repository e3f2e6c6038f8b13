"""How long does it take to watch 10,000 cgroups?

Monitor().watch_many() from the call to its return, with all Python objects, against

- C: a plain loop of one thread that opens, identifies, reads, registers and adds to an epoll set (limits/register.c);
- the standard library: the same loop in Python, with os.eventfd() and select.epoll. It has no name_to_handle_at(2), so
  it takes the inode number of os.stat() for the identity.

Every measurement is a process of its own, in which the call is the first of its kind, as it is in a watcher that
starts. It takes the paths from its standard input, and prints how many nanoseconds passed.
"""

from __future__ import annotations

import select
import sys
import time

from benchmarks import common, designs
from memcg_oom import Monitor

OURS = "memcg_oom watch_many"
C = "C, one thread"
LIBRARY = "Python standard library"
TARGET = 0.8


def main() -> None:
    options = common.parser(__doc__, rounds=11, cgroups=10_000, only=IN_PYTHON)
    args = options.parse_args()
    common.raise_descriptor_limit()
    if args.only:
        print(IN_PYTHON[args.only](sys.stdin.read().splitlines()))
        return

    with common.compiled("register") as [program], common.scratch(args.cgroups) as paths:
        commands = {name: common.alone("benchmarks.register", name) for name in IN_PYTHON} | {C: [program]}
        samples = common.timed(commands, args.rounds, paths)

    common.report(
        f"Watching {args.cgroups} cgroups",
        ("milliseconds", 1_000_000),
        {name: common.distribution(values) for name, values in samples.items()},
        [
            common.ratio(f"{OURS} / {C}", samples[OURS], samples[C], TARGET),
            common.ratio(f"{OURS} / {LIBRARY}", samples[OURS], samples[LIBRARY]),
            common.ratio(f"{LIBRARY} / {C}", samples[LIBRARY], samples[C]),
        ],
        args.json,
    )


def ours(paths: list[str]) -> int:
    with Monitor() as monitor:
        start = time.monotonic_ns()
        monitor.watch_many(paths)
        return time.monotonic_ns() - start


def library(paths: list[str]) -> int:
    start = time.monotonic_ns()
    epoll = select.epoll()
    watches = {}
    for path in paths:
        eventfd, identity, kills = designs.register(path)
        epoll.register(eventfd, select.EPOLLIN)
        watches[eventfd] = (path, identity, kills)
    return time.monotonic_ns() - start


IN_PYTHON = {OURS: ours, LIBRARY: library}

if __name__ == "__main__":
    main()
