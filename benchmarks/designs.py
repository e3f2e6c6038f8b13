"""Designs to be told of many cgroups, each set up in a process of its own and looked at from outside.

Those in C are in limits/designs.c. All follow one protocol: paths of cgroups on standard input up to an empty line,
then they say "empty" and hold what does not depend on how many there are; at the next line they set everything up, say
"ready", behind it what they know of themselves (see Told), and wait. SIGTERM ends them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import select
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common
from memcg_oom import Monitor, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SETTLED = 1.0  # seconds, longer than a new watch settles
IN_BETWEEN = 100  # cycles, after which a Monitor does what has become due
WARM_UP = 50_000  # cycles ahead that do not count
# A Monitor remembers for so many seconds that it wanted to look at a new watch once more. With the default of half a
# second that is as much memory as the machine is fast at the moment.
SHORT_SETTLE = 0.01


class Told(NamedTuple):
    """What a design in Python says of itself, in bytes."""

    strings: int = 0  # the paths that it made for itself
    traced: int = 0  # how much Python's allocator has handed out, for what was set up; 0: not traced


class Grown(NamedTuple):
    """By how much a design grew when it was set up, in bytes."""

    user: int  # of private memory, all of its processes together
    kernel: int  # that the kernel took for it and charged to its cgroup
    told: Told


def python(name: str, *arguments: str, traced: bool = False) -> list[str]:
    """The command of a design of this module."""
    return [sys.executable, *(["-X", "tracemalloc"] if traced else []), "-m", "benchmarks.designs", name, *arguments]


@contextlib.contextmanager
def started(command: Sequence[str], paths: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A design that holds nothing yet; set_up() has it go on."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            process.stdin.write("\n".join([*paths, "", ""]))
            process.stdin.flush()
            common.await_word(process, "empty")
            yield process
        finally:
            process.terminate()


def set_up(process: subprocess.Popen[str]) -> Told:
    """Returns when everything is set up."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return Told(*common.await_word(process, "ready"))


def grown(command: Sequence[str], paths: Sequence[str], home: Path) -> Grown:
    """Sets a design up, in a cgroup of its own that is made at `home`."""
    home.mkdir()
    try:
        # The shell goes there, and becomes what is measured: the kernel charges for all that it does from there on.
        inside = ["sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(home), *command]
        with started(inside, paths) as process:
            before = _user(home), _kernel(home)
            told = set_up(process)
            after = _user(home), _kernel(home)
    finally:
        home.rmdir()
    return Grown(after[0] - before[0], after[1] - before[1], told)


def _user(home: Path) -> int:
    """Bytes of memory that nobody else has, of all processes there."""
    rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (home / "cgroup.procs").read_text().split())
    return sum(int(size) << 10 for rollup in rollups for size in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.M))


def _kernel(home: Path) -> int:
    return int((home / "memory.kmem.usage_in_bytes").read_text())


# -- the designs


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("name", choices=DESIGNS)
    options.add_argument("--cycles", type=int, default=0, help="of a design that watches and closes again and again")
    args = options.parse_args()
    common.raise_descriptor_limit()
    paths = []
    while path := sys.stdin.readline().rstrip("\n"):
        paths.append(path)
    DESIGNS[args.name](paths, args.cycles)


def _gap() -> int:
    """Says that nothing is held yet, waits for the word to go on, and returns what is allocated."""
    gc.collect()
    print("empty", flush=True)
    sys.stdin.readline()
    return tracemalloc.get_traced_memory()[0]


def _ready(before: int, strings: int = 0) -> None:
    gc.collect()
    print("ready", *Told(strings, tracemalloc.get_traced_memory()[0] - before), flush=True)


def ours(paths: list[str], _cycles: int) -> None:
    with Monitor() as monitor:
        monitor.watch(paths[0])  # opens what all watches share
        monitor.wait(SETTLED)
        before = _gap()
        watches = monitor.watch_many(paths)
        monitor.wait(SETTLED)
        _ready(before, _strings(watches, paths))
        monitor.wait()


def _strings(watches: list[Watch], paths: list[str]) -> int:
    """Bytes of the path strings that they hold.

    One that is put together when it is asked for, from the names that cgroups share, is another each time; and one that
    is the caller's own takes no memory here.
    """
    own = {id(path) for path in paths}
    names = [watch.cgroup for watch in watches if watch.cgroup is watch.cgroup]
    return sum(sys.getsizeof(name) for name in names if id(name) not in own)


def ours_again(paths: list[str], cycles: int) -> None:
    with Monitor(settle=SHORT_SETTLE) as monitor:

        def watch_and_close(count: int) -> None:
            for number in range(count):
                monitor.watch(paths[number % len(paths)]).close()
                if number % IN_BETWEEN == 0:
                    monitor.wait(0)
            monitor.wait(SETTLED)

        watch_and_close(WARM_UP)  # what the allocator keeps for the next time is there from now on
        before = _gap()
        watch_and_close(cycles)
        _ready(before)
        monitor.wait()


def library(paths: list[str], _cycles: int) -> None:
    with select.epoll() as epoll:
        before = _gap()
        watches = {}
        for path in paths:
            eventfd, identity, kills = register(path)
            epoll.register(eventfd, select.EPOLLIN)
            watches[eventfd] = (path, identity, kills)
        _ready(before)
        epoll.poll()


def library_again(paths: list[str], cycles: int) -> None:
    with select.epoll() as epoll:
        watches = {}

        def watch_and_close(count: int) -> None:
            for number in range(count):
                path = paths[number % len(paths)]
                eventfd, identity, kills = register(path)
                epoll.register(eventfd, select.EPOLLIN)
                watches[eventfd] = (path, identity, kills)
                epoll.unregister(eventfd)
                del watches[eventfd]
                os.close(eventfd)

        watch_and_close(WARM_UP)
        before = _gap()
        watch_and_close(cycles)
        _ready(before)
        epoll.poll()


def register(cgroup: str) -> tuple[int, int, int]:
    """What the standard library can do to watch one: the eventfd, the inode of the control file, and the counter."""
    control_fd = os.open(f"{cgroup}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    identity = os.stat(control_fd).st_ino
    kills = read_kills(control_fd)
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    event_control_fd = os.open(f"{cgroup}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
    os.write(event_control_fd, b"%d %d" % (eventfd, control_fd))
    os.close(event_control_fd)
    os.close(control_fd)
    return eventfd, identity, kills


def read_kills(control_fd: int) -> int:
    return int(os.pread(control_fd, 256, 0).partition(b"\noom_kill ")[2])


def look(cgroup: str) -> int:
    """The counter, by path: the standard library has no open_by_handle_at(2)."""
    fd = os.open(f"{cgroup}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_kills(fd)
    finally:
        os.close(fd)


def polling(paths: list[str], _cycles: int) -> None:
    before = _gap()
    kills = dict.fromkeys(paths, 0)
    _ready(before)
    while True:
        for path in paths:
            kills[path] = look(path)
        time.sleep(1.0)


DESIGNS: dict[str, Callable[[list[str], int], None]] = {
    "memcg_oom": ours,
    "memcg_oom-again": ours_again,
    "library": library,
    "library-again": library_again,
    "polling": polling,
}

if __name__ == "__main__":
    main()
