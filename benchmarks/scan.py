"""How long does it take until all 10,000 cgroups of a tree are found and watched?

Monitor().watch_tree() from the call to its return, with all Python objects and a source that tells of new cgroups from
then on, against the loop of register.py in three forms that find the cgroups first:

- C: nftw(3), which asks stat(2) about every file on the way (limits/scan.c);
- C: readdir(3), which says what is a directory;
- the standard library: os.walk().

None of the three is told of a cgroup that is made meanwhile or later. The tree is one of 100 cgroups with 99 in each.
Every measurement is a process of its own, as in register.py.
"""

from __future__ import annotations

import os
import select
import sys
import time

from benchmarks import common, designs
from memcg_oom import Monitor

OURS = "memcg_oom watch_tree"
NFTW = "C, nftw"
READDIR = "C, readdir"
LIBRARY = "Python os.walk"
TARGET = 0.8

GROUPS = 100


def main() -> None:
    options = common.parser(__doc__, rounds=11, cgroups=10_000, only=IN_PYTHON)
    args = options.parse_args()
    common.raise_descriptor_limit()
    if args.only:
        print(IN_PYTHON[args.only](sys.stdin.read(), args.cgroups))
        return

    with common.compiled("scan") as [program], common.scratch(args.cgroups, groups=GROUPS) as paths:
        size = ["--cgroups", str(args.cgroups + 1)]  # and the topmost
        commands = {
            OURS: [*common.alone("benchmarks.scan", OURS), *size],
            NFTW: [program, "nftw"],
            READDIR: [program, "readdir"],
            LIBRARY: [*common.alone("benchmarks.scan", LIBRARY), *size],
        }
        samples = common.timed(commands, args.rounds, [os.path.dirname(paths[0])])

    common.report(
        f"Finding and watching {args.cgroups} cgroups",
        ("milliseconds", 1_000_000),
        {name: common.distribution(values) for name, values in samples.items()},
        [
            common.ratio(f"{OURS} / {NFTW}", samples[OURS], samples[NFTW], TARGET),
            common.ratio(f"{OURS} / {READDIR}", samples[OURS], samples[READDIR]),
            common.ratio(f"{OURS} / {LIBRARY}", samples[OURS], samples[LIBRARY]),
            common.ratio(f"{LIBRARY} / {NFTW}", samples[LIBRARY], samples[NFTW]),
        ],
        args.json,
    )


def ours(top: str, cgroups: int) -> int:
    with Monitor() as monitor:
        start = time.monotonic_ns()
        tree = monitor.watch_tree(top)
        taken = time.monotonic_ns() - start
        if len(list(tree)) != cgroups:
            raise RuntimeError(f"{tree!r} of {cgroups} cgroups")
    return taken


def library(top: str, cgroups: int) -> int:
    start = time.monotonic_ns()
    epoll = select.epoll()
    watches = {}
    for path, _, _ in os.walk(top):
        eventfd, identity, kills = designs.register(path)
        epoll.register(eventfd, select.EPOLLIN)
        watches[eventfd] = (path, identity, kills)
    taken = time.monotonic_ns() - start
    if len(watches) != cgroups:
        raise RuntimeError(f"{len(watches)} of {cgroups} cgroups")
    return taken


IN_PYTHON = {OURS: ours, LIBRARY: library}

if __name__ == "__main__":
    main()
