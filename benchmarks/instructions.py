"""How many instructions do registering 1,000 cgroups and draining 1,000 signals take, and is that more than it was?

Counted by valgrind's callgrind, so whatever else the machine does has no say in it; what the kernel does for them is
not counted. Three processes: Monitor.watch_many(), the Monitor.wait() that tells 1,000 Oom at once, and a hundred that
tell one each; the same with the standard library; and the registration in plain C (limits/register.c). Of ours it is
told as well how much of it is the C core, with all that it calls, as built for Python. On one processor, or as many
threads as there are would share the work.

What was counted is kept in instructions.json, for each Python, cffi, compiler and C library that it depends on, beside
what was counted there first: what has come of all that was done about it since.

- --store writes what this machine counts;
- --check fails where it is over 5 % above that. Where nothing is stored for what is here, it compares ratios, and
  allows 15 %: of the C core to plain C, and of the whole to the standard library, where another Python of the same
  series has been stored.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common, designs
from memcg_oom import Monitor, Oom
from memcg_oom.mounts import memory_mount

if TYPE_CHECKING:
    from collections.abc import Callable

    Counts = dict[str, float]  # instructions a cgroup
    Stored = dict[str, dict[str, Counts]]  # FIRST and LAST of each environment()

OURS = "memcg_oom"
LIBRARY = "Python standard library"
C = "C"
STORED = common.HERE / "instructions.json"

FIRST, LAST = "first", "last"

WATCH, DRAIN, WAKE = STEPS = ("registration", "signal of many", "signal alone")
ALONE = 100  # signals that come one by one
TOLERANCE = 1.05
FOREIGN_TOLERANCE = 1.15

# A call of these marks where counting begins and where it ends. Nobody else calls them.
BEGIN, END = "getppid", "getpgrp"
AGES = 1000.0  # seconds: cgroups are looked at again only when all is over, or time would have a say

# What ours ends with where somebody was killed on the host meanwhile: then it has read counters to see who.
DISTURBED = 75
ATTEMPTS = 5  # that may be disturbed

CORE = "C core"
# What is checked, and what else was counted that it is held against where nothing was stored for what is here.
REFERENCES = {
    f"{OURS}, {WATCH}": f"{LIBRARY}, {WATCH}",
    f"{OURS}, {WATCH}, {CORE}": f"{C}, {WATCH}",
    f"{OURS}, {DRAIN}": f"{LIBRARY}, {DRAIN}",
    f"{OURS}, {DRAIN}, {CORE}": f"{C}, {WATCH}",
    f"{OURS}, {WAKE}": f"{LIBRARY}, {WAKE}",
}
SERIES = f"Python {sys.version_info.major}.{sys.version_info.minor}."  # as keys of what is stored begin


def main() -> None:
    options = common.parser(__doc__, cgroups=1000, only=IN_PYTHON)
    options.add_argument("--check", action="store_true", help="fail where it takes more than what was stored")
    options.add_argument("--store", action="store_true", help="store what is counted")
    args = options.parse_args()
    common.raise_descriptor_limit()
    if args.only:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        IN_PYTHON[args.only](sys.stdin.read().splitlines())
        return
    if shutil.which("valgrind") is None:
        raise SystemExit("missing: apt-get install valgrind")
    if args.check and (why_not := why_not_here()):
        print(f"instructions are not counted here: {why_not}")
        return

    counts = count(args.cgroups)
    stored: Stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    here = stored.get(environment(), {})
    if args.store:
        stored[environment()] = {FIRST: counts | here.get(FIRST, {}), LAST: counts}
        STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    show(counts, here, args.cgroups, args.json)
    if args.check:
        check(counts, {key: one[LAST] for key, one in stored.items()})


def why_not_here() -> str:
    """Why nothing can be counted on this host, whose fault it is not; empty where it can."""
    mount = memory_mount()
    if mount is None or mount.version != 1:
        return "the memory controller is not on cgroup v1"
    if not os.access(mount.point, os.W_OK):
        return f"{mount.point} is not writable"
    return ""


def environment() -> str:
    """What the counts depend on."""
    compiler = subprocess.run(["cc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return ", ".join(
        (
            f"Python {platform.python_version()}",
            platform.machine(),
            f"cffi {version('cffi')}",
            compiler.partition("\n")[0],
            " ".join(platform.libc_ver()),
        )
    )


def show(counts: Counts, stored: dict[str, Counts], cgroups: int, as_json: bool) -> None:
    rows = []
    for step in STEPS:
        for name in (OURS, LIBRARY, C):
            if (what := f"{name}, {step}") in counts:
                core = counts.get(f"{what}, {CORE}")
                parts = ["", ""] if core is None else [f"{core:,.0f}", f"{counts[what] - core:,.0f}"]
                before = [stored.get(when, {}).get(what) for when in (FIRST, LAST)]
                changes = ["" if one is None else f"{counts[what] / one - 1:+.1%}" for one in before]
                first = "" if before[0] is None else f"{before[0]:,.0f}"
                rows.append([what, f"{counts[what]:,.0f}", *parts, first, *changes])
    common.report(
        f"Instructions a cgroup, of {cgroups} that are registered and signalled",
        ("instructions", 1),
        {what: common.distribution([number]) for what, number in counts.items()},
        [
            common.ratio(f"{what} / {reference}", [counts[what]], [counts[reference]])
            for what, reference in REFERENCES.items()
        ],
        as_json,
        base="instructions",
        table={
            "columns": ["instructions a cgroup", "all", CORE, "interpreter", "at first", "since", "since stored"],
            "rows": rows,
        },
    )


def check(counts: Counts, stored: dict[str, Counts]) -> None:
    """Exits with 1 where it takes more than it did."""
    here = environment()
    too_many = []
    print(f"\nhere: {here}")
    for what, reference in REFERENCES.items():
        if what in stored.get(here, {}):
            change, tolerance = counts[what] / stored[here][what], TOLERANCE
            against = "what is stored"
        else:
            # What the interpreter takes for the same differs by half from one to the next; C is C.
            known = [
                one for key, one in stored.items() if what in one and (what.endswith(CORE) or key.startswith(SERIES))
            ]
            if not known:
                print(f"{what:<40}  not compared: nothing is stored for {SERIES}x")
                continue
            ratio = counts[what] / counts[reference]
            change, tolerance = min(ratio * one[reference] / one[what] for one in known), FOREIGN_TOLERANCE
            against = f"what is stored of others, each as a ratio to: {reference}"
        is_too_much = change > tolerance
        too_many += [what] if is_too_much else []
        print(f"{what:<40}{change - 1:>+8.1%}{' TOO MANY' if is_too_much else ''}, against {against}")
    if too_many:
        raise SystemExit(
            f"more instructions than were stored, by more than {TOLERANCE - 1:.0%} "
            f"(of others {FOREIGN_TOLERANCE - 1:.0%}): {'; '.join(too_many)}\n"
            "if that is meant to be: python -m benchmarks.instructions --store"
        )


def count(cgroups: int) -> Counts:
    """What each step of each competitor takes."""
    counts: Counts = {}
    with common.compiled("register") as [register], common.scratch(cgroups + 1) as paths:
        for name in IN_PYTHON:
            parts = callgrind(common.alone("benchmarks.instructions", name), paths)
            for step, (everything, core), times in zip(STEPS, parts, (cgroups, cgroups, ALONE), strict=True):
                counts[f"{name}, {step}"] = everything / times
                if name == OURS:
                    counts[f"{name}, {step}, {CORE}"] = core / times
        # It has no marks, but does next to nothing else; what there is goes with the difference.
        (one, _), (many, _) = (callgrind([register], some)[-1] for some in (paths[:1], paths))
        counts[f"{C}, {WATCH}"] = (many - one) / cgroups
    return counts


def callgrind(command: list[str], paths: list[str]) -> list[tuple[int, int]]:
    """Runs a command; between the marks, and behind the last one: all instructions, and those of the C core."""
    with tempfile.TemporaryDirectory(prefix="memcg_oom_bench_") as folder:
        counted = [
            # Addresses decide how dictionaries of objects are laid out.
            *("setarch", "--addr-no-randomize", "valgrind", "--tool=callgrind", "--quiet"),
            *(f"--zero-before={BEGIN}", f"--dump-before={END}", f"--callgrind-out-file={folder}/out"),
            *("--compress-strings=no", "--compress-pos=no", *command),
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        for _ in range(ATTEMPTS):
            done = subprocess.run(
                counted, check=False, input="\n".join(paths), capture_output=True, text=True, env=environment
            )
            if done.returncode != DISTURBED:
                break
        if done.returncode:
            raise RuntimeError(f"{command!r} under callgrind ended with {done.returncode}: {done.stderr}")
        files = sorted(Path(folder).glob("out.*")) or [Path(folder, "out")]
        return [cost(file.read_text()) for file in files]


def cost(profile: str) -> tuple[int, int]:
    """The instructions in a file of callgrind's, and those of calls into the C core from outside."""
    everything = core = 0
    caller = callee = ""
    is_call = False
    for line in profile.splitlines():
        name, is_name, value = line.partition("=")
        if is_name:
            if name == "fn":
                caller = value
            elif name == "cfn":
                callee = value
            elif name == "calls":
                is_call = True
        elif line[:1].isdigit():
            number = int(line.split()[-1])
            if not is_call:
                everything += number
            elif callee.startswith("memcg_") and not caller.startswith("memcg_"):
                core += number
            is_call = False
    return everything, core


def mark_begin() -> None:
    # What was there before is not looked through again by the collector: it depends on what else was imported.
    gc.collect()
    gc.freeze()
    os.getppid()


def mark_end() -> None:
    os.getpgrp()


def ours(paths: list[str]) -> None:
    kills = host_kills()
    # Neither the log nor a timer is to wake it: both know of others.
    with Monitor(settle=AGES, audit=None, victims=False) as monitor:
        monitor.watch(paths.pop())  # what only the first one takes
        monitor.wait(0)
        mark_begin()
        watches = monitor.watch_many(paths)
        mark_end()
        for watch in watches:
            os.eventfd_write(watch._eventfd, 1)
        mark_begin()
        events = monitor.wait(0)
        mark_end()
        if [type(event) for event in events] != [Oom] * len(paths):
            raise RuntimeError(f"{len(paths)} signals, and {len(events)} events")
    # Nobody settles, since looks that are due when they are due have no place in here.
    with Monitor(settle=0, audit=None, victims=False) as monitor:
        watch = monitor.watch(paths[0])

        def one_event() -> None:
            os.eventfd_write(watch._eventfd, 1)
            if [type(event) for event in monitor.wait(0)] != [Oom]:
                raise RuntimeError("one signal, and not one event")

        one_by_one(one_event)
    if host_kills() != kills:
        raise SystemExit(DISTURBED)


def host_kills() -> int:
    return int(Path("/proc/vmstat").read_text().partition("\noom_kill ")[2].split()[0])


def library(paths: list[str]) -> None:
    mark_begin()
    epoll = select.epoll()
    watches: dict[int, tuple[str, int, int]] = {}
    for path in paths[:-1]:
        eventfd, identity, kills = designs.register(path)
        epoll.register(eventfd, select.EPOLLIN)
        watches[eventfd] = (path, identity, kills)
    mark_end()
    for eventfd in watches:
        os.eventfd_write(eventfd, 1)
    mark_begin()
    events = drained(epoll, watches)
    mark_end()
    if len(events) != len(watches):
        raise RuntimeError(f"{len(watches)} signals, and {len(events)} events")
    alone = min(watches)

    def one_event() -> None:
        os.eventfd_write(alone, 1)
        if len(drained(epoll, watches)) != 1:
            raise RuntimeError("one signal, and not one event")

    one_by_one(one_event)


def drained(epoll: select.epoll, watches: dict[int, tuple[str, int, int]]) -> list[tuple[int, str, int]]:
    events: list[tuple[int, str, int]] = []
    now = time.time_ns()
    for eventfd, _ in epoll.poll(0):
        signals = os.eventfd_read(eventfd)
        path, identity, _ = watches[eventfd]
        if os.stat(f"{path}/memory.oom_control").st_ino == identity:  # so it was not the removal
            events.append((now, path, signals))
    return events


def one_by_one(one_event: Callable[[], None]) -> None:
    one_event()  # what only the first one takes
    mark_begin()
    for _ in range(ALONE):
        one_event()
    mark_end()


IN_PYTHON: dict[str, Callable[[list[str]], None]] = {OURS: ours, LIBRARY: library}

if __name__ == "__main__":
    main()
