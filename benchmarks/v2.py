"""What does it take to watch 10,000 cgroups of version 2?

The time, the watcher's own memory and the kernel's, for

- memcg_oom: Monitor().watch_many();
- inotify_simple and asyncinotify: one instance, a watch on memory.events of each cgroup, its counter of kills, and a
  dictionary from the watch to these, which is what a program on top of either begins with;
- C: the same in a plain loop (limits/follow.c).

Monitor follows the directory above as well, for removals, and reads the counters twice, so that no kill is lost between
the baseline and the watch. Every measurement is a process of its own, alone. Its own memory is what is anonymous in it,
the kernel's what its slabs grew by; both from right before to right after, the paths being there before.

Where the host has the memory controller on version 1, this runs in a virtual machine with the newest kernel of Debian's
(tests/vm). That one is emulated instruction by instruction: times are long and only their ratios mean something. Sizes
are what they are.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common, emulated
from memcg_oom import Monitor
from memcg_oom.mounts import memory_mount
from tests.support import control_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Watch = Callable[[list[str]], object]  # returns what is to be held

OURS = "memcg_oom"
SIMPLE = "inotify_simple"
ASYNC = "asyncinotify"
C = "C"
PACKAGES = (SIMPLE, ASYNC)

MEMORY = 2048  # MiB of the machine: 10,000 cgroups take a quarter
INSIDE = Path("/follow")  # the program in C, in the machine, which has no compiler
PASSES = 5
PASS = 0.5  # seconds
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MOST_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")


class Taken(NamedTuple):
    """By one registration of all: nanoseconds, and bytes."""

    time: int
    own: int
    kernel: int


def main() -> None:
    options = common.parser(__doc__, rounds=5, cgroups=10_000, only=IN_PYTHON)
    args = options.parse_args()
    if args.only:
        print(*measured(IN_PYTHON[args.only](), sys.stdin.read().splitlines()))
        return
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise SystemExit(f"missing: pip install {' '.join(missing)}")
    mount = memory_mount()
    if mount is None or mount.version == 1:
        emulated.show(in_a_machine(args.cgroups, args.rounds), args.json)
        return

    with contextlib.ExitStack() as stack:
        program = str(INSIDE) if INSIDE.exists() else stack.enter_context(common.compiled("follow"))[0]
        paths = stack.enter_context(scratch(Path(mount.point), args.cgroups))
        commands = {name: common.alone("benchmarks.v2", name) for name in IN_PYTHON} | {C: [program]}
        taken: dict[str, list[Taken]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name in random.sample([*commands], len(commands)):
                empty_slabs()
                done = subprocess.run(
                    commands[name], input="\n".join(paths), stdout=subprocess.PIPE, text=True, check=True
                )
                taken[name].append(Taken(*map(int, done.stdout.split())))
    report(taken, args.cgroups, args.json)


def empty_slabs() -> None:
    """Has the kernel forget the inodes and names of before, which it keeps for whoever comes next.

    A pass spares what was used since the pass before; what it frees goes some time later.
    """
    for _ in range(PASSES):
        DROP_CACHES.write_text("2")
        time.sleep(PASS)


def report(taken: dict[str, list[Taken]], cgroups: int, as_json: bool) -> None:
    times = {name: [one.time for one in rounds] for name, rounds in taken.items()}
    sizes = {
        what: {name: [getattr(one, field) / cgroups for one in rounds] for name, rounds in taken.items()}
        for what, field in (("own memory", "own"), ("memory of the kernel", "kernel"))
    }
    common.report(
        f"Watching {cgroups} cgroups of version 2",
        ("milliseconds", 1_000_000),
        {name: common.distribution(rounds) for name, rounds in times.items()},
        [
            *(common.ratio(f"time, {OURS} / {other}", times[OURS], times[other]) for other in (SIMPLE, ASYNC, C)),
            *(
                common.figure(f"{what}, {name}", rounds, ("bytes a cgroup", 1))
                for what, found in sizes.items()
                for name, rounds in found.items()
            ),
        ],
        as_json,
        table={
            "columns": ["watcher", "time", "own memory", "of the kernel"],
            "rows": [
                [
                    name,
                    f"{common.quantile(times[name], 0.5) / 1e6:,.0f} ms",
                    *(f"{common.quantile(found[name], 0.5):,.0f} bytes a cgroup" for found in sizes.values()),
                ]
                for name in taken
            ],
        },
    )


# -- where there is version 2


@contextlib.contextmanager
def scratch(mount: Path, count: int) -> Iterator[list[str]]:
    """New cgroups in one of their own; all are removed in the end."""
    needed = count + 1000
    if int(MOST_WATCHES.read_text()) < needed:
        raise SystemExit(f"{MOST_WATCHES} is too low: sysctl fs.inotify.max_user_watches={needed}")
    control_memory(mount)
    top = mount / f"memcg_oom_bench_{os.getpid()}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    top.mkdir()
    try:
        control_memory(top)
        paths = [top / str(number) for number in range(count)]
        for path in paths:
            path.mkdir()
        yield [str(path) for path in paths]
    finally:
        for path in top.iterdir():
            if path.is_dir():
                path.rmdir()
        top.rmdir()


def in_a_machine(cgroups: int, rounds: int) -> dict[str, Any]:
    """The document of this script, as run in a virtual machine.

    Raises:
        SystemExit, RuntimeError: as emulated.run().
    """
    packages = []
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        origin = Path(spec.origin)
        packages.append(origin.parent if origin.name == "__init__.py" else origin)
    return emulated.run(
        "v2",
        ["--cgroups", cgroups, "--rounds", rounds],
        "v2",
        memory=MEMORY,
        before=f"echo 1000000 > {MOST_WATCHES}",
        programs={str(INSIDE): common.LIMITS / "follow.c"},
        packages=packages,
    )


# -- the competitors in Python


def measured(watch: Watch, paths: list[str]) -> Taken:
    own, kernel = anonymous(), slabs()
    start = time.monotonic_ns()
    held = watch(paths)
    took = time.monotonic_ns() - start
    taken = Taken(took, anonymous() - own, slabs() - kernel)
    del held
    return taken


def anonymous() -> int:
    return size_of("/proc/self/status", "RssAnon")


def slabs() -> int:
    return size_of("/proc/meminfo", "Slab")


def size_of(file: str, name: str) -> int:
    """A line "NAME: SIZE kB", in bytes."""
    return int(Path(file).read_text().partition(f"{name}:")[2].split()[0]) << 10


def ours() -> Watch:
    def watch(paths: list[str]) -> object:
        monitor = Monitor()
        return monitor, monitor.watch_many(paths)

    return watch


def simple() -> Watch:
    from inotify_simple import INotify, flags  # noqa: PLC0415 - not in the others' memory

    def watch(paths: list[str]) -> object:
        inotify = INotify(nonblocking=True)
        watches = {}
        for path in paths:
            file = f"{path}/memory.events"
            watch = inotify.add_watch(file, flags.MODIFY)
            watches[watch] = (path, kills(file))
        return inotify, watches

    return watch


def asynchronous() -> Watch:
    from asyncinotify import Inotify, Mask  # noqa: PLC0415 - likewise

    def watch(paths: list[str]) -> object:
        inotify = Inotify()
        watches = {}
        for path in paths:
            file = f"{path}/memory.events"
            watch = inotify.add_watch(file, Mask.MODIFY)
            watches[watch] = (path, kills(file))
        return inotify, watches

    return watch


def kills(file: str) -> int:
    with open(file, "rb") as events:
        return int(events.read().partition(b"\noom_kill ")[2].split()[0])


IN_PYTHON = {OURS: ours, SIMPLE: simple, ASYNC: asynchronous}

if __name__ == "__main__":
    main()
