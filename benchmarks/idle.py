"""What does it cost to watch 10,000 cgroups to which nothing happens?

For a minute, of a process that watches them and waits (designs.py, limits/designs.c): context switches, voluntary or
not, and the nanoseconds that it ran (/proc/PID/task/*/schedstat), all of its threads together. Whoever does not run
makes no system call.

- memcg_oom: one thread in Monitor.wait();
- polling: the standard library reads all counters by path, and sleeps for a second, as programs do that read files;
- a thread each, in C, that reads its eventfd.

All of them idle side by side. The kernel log has to be silent meanwhile and shortly before, as its records wake a
Monitor, and kills of others have it look for them; else the minute is begun anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import common, designs

OURS = "memcg_oom"
POLLING = "polling each second"
THREADS = "a thread each"

MS = ("ms", 1_000_000)
SILENCE = 3.0  # seconds before the minute
MINUTES = 10  # that are begun before somebody is to make the kernel log silent


class Cost(NamedTuple):
    """What a process has cost so far."""

    switches: int
    ran: int  # nanoseconds


def main() -> None:
    options = common.parser(__doc__, rounds=1, each="of all side by side", cgroups=10_000)
    options.add_argument("--seconds", type=float, default=60.0, help="how long a minute is (default: %(default)s)")
    args = options.parse_args()
    common.raise_descriptor_limit()

    costs: dict[str, list[Cost]] = {name: [] for name in (OURS, POLLING, THREADS)}
    with (
        common.compiled("designs") as [program],
        common.scratch(args.cgroups) as paths,
        contextlib.ExitStack() as stack,
    ):
        commands = {
            OURS: designs.python("memcg_oom"),
            POLLING: designs.python("polling"),
            THREADS: [program, "threads"],
        }
        processes = {name: stack.enter_context(designs.started(command, paths)) for name, command in commands.items()}
        for process in processes.values():
            designs.set_up(process)
        for _ in range(args.rounds):
            for name, found in _minute(
                {name: process.pid for name, process in processes.items()}, args.seconds
            ).items():
                costs[name].append(found)

    switches = {name: [one.switches for one in found] for name, found in costs.items()}
    ran = {name: [one.ran for one in found] for name, found in costs.items()}
    common.report(
        f"{args.cgroups} watches in {args.seconds:g} seconds in which nothing happens",
        ("context switches", 1),
        {name: common.distribution(found) for name, found in switches.items()},
        [
            common.figure(f"{OURS}, context switches", switches[OURS], ("", 1), 0),
            common.figure(f"{OURS}, ran", ran[OURS], MS, 0),
        ],
        args.json,
        base="context switches",
        table={
            "columns": ["design", "context switches", "ran, ms"],
            "rows": [
                [name, f"{statistics.median(switches[name]):,.0f}", f"{statistics.median(ran[name]) / MS[1]:,.3f}"]
                for name in costs
            ],
        },
    )


def _minute(pids: dict[str, int], seconds: float) -> dict[str, Cost]:
    for _ in range(MINUTES):
        log = _Log()
        time.sleep(SILENCE)
        before = {name: _cost(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        after = {name: _cost(pid) for name, pid in pids.items()}
        if log.is_silent():
            return {
                name: Cost(after[name].switches - before[name].switches, after[name].ran - before[name].ran)
                for name in pids
            }
        print("the kernel log was not silent; once more", file=sys.stderr)
    raise SystemExit("the kernel log does not get silent")


class _Log:
    """The kernel log, from now on."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def is_silent(self) -> bool:
        """Whether it has said nothing since; this is its end."""
        try:
            os.read(self._fd, 8192)
        except BlockingIOError:
            return True
        except BrokenPipeError:  # so much that it was overwritten
            return False
        finally:
            os.close(self._fd)
        return False


def _cost(pid: int) -> Cost:
    switches = ran = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        switches += sum(map(int, re.findall(r"ctxt_switches:\s*(\d+)", (task / "status").read_text())))
        ran += int((task / "schedstat").read_text().split()[0])
    return Cost(switches, ran)


if __name__ == "__main__":
    main()
