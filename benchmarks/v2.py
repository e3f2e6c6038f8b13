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
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common
from memcg_oom import Monitor
from memcg_oom.mounts import memory_mount
from tests.support import control_memory
from tests.vm import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Watch = Callable[[list[str]], object]  # returns what is to be held

OURS = "memcg_oom"
SIMPLE = "inotify_simple"
ASYNC = "asyncinotify"
C = "C"
PACKAGES = (SIMPLE, ASYNC)

SERIES = "newest"  # of kernels, as tests.vm.machine has them
MEMORY = 2048  # MiB of the machine: 10,000 cgroups take a quarter
PATIENCE = 1200.0  # seconds after which the machine counts as hung
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
        document = in_a_machine(["--json", "--cgroups", str(args.cgroups), "--rounds", str(args.rounds)])
        if args.json:
            print(json.dumps(document, indent=1))
        else:
            show(document)
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


def show(document: dict[str, Any]) -> None:
    """Prints a document as the machine's own report would have been."""
    print(f"{document['title']}\n{', '.join(f'{key} {value}' for key, value in document['machine'].items())}\n")
    common.print_table(*common.rows(document))
    print()
    common.print_table(*common.verdicts(document))


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


def in_a_machine(arguments: list[str]) -> dict[str, Any]:
    """The document of this script, as run in a virtual machine.

    Raises:
        SystemExit: there is no machine to be had.
        RuntimeError: the script failed in it.
    """
    if why_not := machine.missing():
        raise SystemExit(f"the memory controller is on version 1 here, and there is no virtual machine: {why_not}")
    with tempfile.TemporaryDirectory(prefix="memcg_oom_bench_") as name:
        folder = Path(name)
        hog = folder / "hog"
        for program, source in (
            (hog, machine.ROOT / "tests" / "hog.c"),
            (folder / "follow", common.LIMITS / "follow.c"),
        ):
            subprocess.run(["cc", "-std=gnu11", "-O2", "-static", "-o", program, source], check=True)
        base = machine.initramfs(folder, str(hog))
        extra = folder / "extra"
        machine.copy(folder / "follow", extra / INSIDE.relative_to("/"))
        machine.copy(common.HERE, extra / "work" / "benchmarks")
        for package in PACKAGES:
            spec = find_spec(package)
            assert spec is not None
            assert spec.origin is not None
            origin = Path(spec.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            machine.copy(source, extra / "work" / source.name)
        base.write_bytes(base.read_bytes() + machine.pack(extra, folder / "extra.cpio.gz").read_bytes())
        command = (
            f"echo 1 > /proc/sys/kernel/printk; echo 1000000 > {MOST_WATCHES}\n"
            f"python3 -m benchmarks.v2 {' '.join(arguments)} > /results"
        )
        results = folder / "results"
        code, output = machine.run(
            machine.kernel(SERIES), "v2", base, command, timeout=PATIENCE, memory=MEMORY, results=results
        )
        if code:
            raise RuntimeError(f"in the virtual machine: {output}")
        document: dict[str, Any] = json.loads(results.read_text())
    here = common.machine()
    document["machine"] |= {"processor": f"emulated by QEMU on {here['processor']}", "commit": here["commit"]}
    return document


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
