"""How long does it take to watch 10,000 cgroups?

Monitor().watch_many() from the call to its return, with all Python objects, against

- C: a plain loop of one thread that opens, identifies, reads, registers and adds to an epoll set (limits/register.c);
- the standard library: the same loop in Python, with os.eventfd() and select.epoll. It has no name_to_handle_at(2), so
  it takes the inode number of os.stat() for the identity.

Every measurement is a process of its own, in which the call is the first of its kind, as it is in a watcher that
starts. It takes the paths from its standard input, and prints how many nanoseconds passed.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time

from benchmarks import common
from memcg_oom import Monitor

OURS = "memcg_oom watch_many"
C = "C, one thread"
LIBRARY = "Python standard library"
TARGET = 0.9


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--cgroups", type=int, default=10_000, help="how many (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=11, help="of all competitors (default: %(default)s)")
    options.add_argument("--only", choices=IN_PYTHON, help="run one competitor, once, on the paths in standard input")
    args = options.parse_args()
    common.raise_descriptor_limit()
    if args.only:
        print(IN_PYTHON[args.only](sys.stdin.read().splitlines()))
        return

    with common.compiled("register") as [program], common.scratch(args.cgroups) as paths:
        commands = {OURS: _python(OURS), C: [program], LIBRARY: _python(LIBRARY)}
        samples: dict[str, list[int]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name in random.sample(list(commands), len(commands)):
                # The process before has closed its eventfds, but their registrations are taken down one by one by
                # the kernel's workers, which the next competitor would have to share the processors with.
                common.await_quiet()
                done = subprocess.run(
                    commands[name], input="\n".join(paths), stdout=subprocess.PIPE, text=True, check=True
                )
                samples[name].append(int(done.stdout))

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


def _python(name: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.register", "--only", name]


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
        control_fd = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        identity = os.stat(control_fd).st_ino
        kills = int(os.pread(control_fd, 256, 0).partition(b"\noom_kill ")[2])
        eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        event_control_fd = os.open(f"{path}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        os.write(event_control_fd, b"%d %d" % (eventfd, control_fd))
        os.close(event_control_fd)
        os.close(control_fd)
        epoll.register(eventfd, select.EPOLLIN)
        watches[eventfd] = (path, identity, kills)
    return time.monotonic_ns() - start


IN_PYTHON = {OURS: ours, LIBRARY: library}

if __name__ == "__main__":
    main()
