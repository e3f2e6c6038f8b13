"""How much memory does one watched cgroup take, in user space and in the kernel?

Monitor.watch_many() of 10,000 cgroups, path strings aside, against the designs that others have, each in its smallest
form (designs.py, limits/designs.c):

- the standard library: an eventfd each, os.eventfd() and select.epoll, and a dict of what is known of each;
- C: the same, with a struct of 32 bytes;
- a thread each, as cgroups-rs and Slurm have it, and a process each, as `runc events` and conmon: in C, with the least
  stack and nothing in it, so that theirs take more;
- one inotify instance with a watch for each, which is what cgroup v2 allows.

User space is private memory (/proc/PID/smaps_rollup), by how much it grows from none to all: with what the allocator
holds and nobody uses, without what it had left over before. And, traced, what Python's allocator has handed out, in a
process of its own (tracemalloc), which is exact and does not know of anything else.

The kernel's is what it charges to the cgroup that the process is alone in (memory.kmem.usage_in_bytes): an eventfd is a
file with a directory entry, and there are the registration and the item of the epoll set. What it does not charge, two
small structs for each eventfd, is some 100 bytes more in all designs but that with inotify; which keeps the inode of
each file that it watches instead, some 700 bytes that were there already.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import common, designs

OURS = "memcg_oom"
LIBRARY = "Python standard library"
TRACED = ", traced"
C = "C, epoll"
THREADS = "a thread each"
PROCESSES = "a process each"
INOTIFY = "one inotify instance"
TARGET = 300  # bytes

BYTES = ("bytes", 1)
MOST = {THREADS: 1000, PROCESSES: 200}  # of what takes a multiple and is the same for each


def main() -> None:
    options = common.parser(__doc__, rounds=5, cgroups=10_000)
    args = options.parse_args()
    common.raise_descriptor_limit()

    with common.compiled("designs") as [program], common.scratch(args.cgroups) as paths:
        commands = {
            OURS: designs.python("memcg_oom"),
            OURS + TRACED: designs.python("memcg_oom", traced=True),
            LIBRARY: designs.python("library"),
            LIBRARY + TRACED: designs.python("library", traced=True),
            C: [program, "epoll"],
            THREADS: [program, "threads"],
            PROCESSES: [program, "processes"],
            INOTIFY: [program, "inotify"],
        }
        home = Path(paths[0]).parent / "home"
        # What a path is resolved with is charged to whoever comes first, which is to be none of them.
        for path in paths:
            for file in ("memory.oom_control", "cgroup.event_control"):
                os.stat(f"{path}/{file}")

        def measure(name: str) -> tuple[float, float]:
            common.await_quiet()
            some = paths[: MOST.get(name)]
            grown = designs.grown(commands[name], some, home)
            user = grown.told.traced if name.endswith(TRACED) else grown.user
            return (user - grown.told.strings) / len(some), grown.kernel / len(some)

        found = common.shuffled(args.rounds, commands, measure)

    user = {name: [one for one, _ in rounds] for name, rounds in found.items()}
    kernel = {name: [one for _, one in rounds] for name, rounds in found.items() if not name.endswith(TRACED)}
    common.report(
        f"Memory of one watch of {args.cgroups}",
        BYTES,
        {
            **{f"user, {name}": common.distribution(values) for name, values in user.items()},
            **{f"kernel, {name}": common.distribution(values) for name, values in kernel.items()},
        },
        [
            common.figure(f"user, {OURS}, path strings aside", user[OURS], BYTES, TARGET),
            common.figure(f"user, {OURS}{TRACED}, path strings aside", user[OURS + TRACED], BYTES, TARGET),
            *(common.ratio(f"user, {OURS} / {name}", user[OURS], user[name]) for name in (LIBRARY, THREADS, PROCESSES)),
            common.ratio(f"user, {OURS}{TRACED} / {LIBRARY}{TRACED}", user[OURS + TRACED], user[LIBRARY + TRACED]),
            *(
                common.ratio(f"kernel, {OURS} / {name}", kernel[OURS], kernel[name])
                for name in (LIBRARY, C, THREADS, PROCESSES, INOTIFY)
            ),
        ],
        args.json,
        base="bytes",
    )


if __name__ == "__main__":
    main()
