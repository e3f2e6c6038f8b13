"""How long does it take until an OOM that signals 10,001 cgroups is known in Python?

The limit of a parent of 10,000 children is hit, and the kernel signals all of them and kills in one. From its first
signal to the last event: an Oom of each cgroup and the OomKill of one, out of Monitor.wait(), against

- C: one thread that reads the eventfds which are ready, looks at the counter of each of these cgroups by its identity,
  and then at the parent's until it has moved (limits/storm.c). It knows who will be killed, and so looks at nobody else
  twice;
- the standard library: the same in Python, by path, as it has no open_by_handle_at(2).

Ours reads fewer counters than either: as long as the host's counter and what was told agree, a cgroup that is at its
path was not removed, so its signal is an OOM, and nobody was killed in it. The settle's last look reads them all.

The OOM is real: a process grows in the parent until it is killed. It does so on a processor of its own, as a kernel
that is not preemptible lets nobody else run there while it signals: a watcher that is woken there sleeps on, by chance.

The first signal is what another program sees, which is signalled ahead of the competitor and runs ahead of it
(limits/storm.c too). By the last child it sees the kernel's last signal as well: the kernel signals one cgroup after
the other, and looks for the victim only then. What it needs for that is a part of every figure.

Every competitor is a process of its own, in its turn alone: it registers everything, which is not measured, and sleeps
when the OOM comes. What it has counted is checked: a signal of every cgroup, and one kill.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common, designs
from memcg_oom import Monitor, Oom, OomKill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from memcg_oom import Event

OURS = "memcg_oom"
C = "C"
LIBRARY = "Python stdlib"
C_TARGET = 1.0
LIBRARY_TARGET = 0.5

ROOM = 32 << 20  # bytes for the victim in the parent, whose children count too: 10 KB each
HOG = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'0'); b'x' * (1 << 30)"
TAKEN_DOWN = 10.0  # seconds, at most, for the registrations of the competitor before
QUIET = 1.0  # seconds without a signal or an event that end it; a Monitor's last look comes within them
LONGEST = 60.0  # seconds without a signal, or from it without a kill, after which something is wrong; C's too


class Verdict(NamedTuple):
    """What a competitor prints: two moments of CLOCK_MONOTONIC in nanoseconds, and what it has counted."""

    last_oom: int
    last_kill: int
    ooms: int
    cgroups: int
    kills: int


class Storm(NamedTuple):
    """Nanoseconds from the first signal to the kernel's last, and until the last Oom and the OomKill were known."""

    signal: int
    oom: int
    kill: int


def main() -> None:
    args = common.parser(__doc__, rounds=5, cgroups=10_000, only=IN_PYTHON).parse_args()
    common.raise_descriptor_limit()
    if args.only:
        print(*IN_PYTHON[args.only](sys.stdin.read().splitlines()))
        return

    with common.compiled("storm") as [program], common.scratch(args.cgroups) as children:
        paths = [os.path.dirname(children[0]), *children]
        commands = {name: common.alone("benchmarks.storm", name) for name in IN_PYTHON} | {C: [program, "watch"]}
        storms = common.shuffled(args.rounds, commands, lambda name: storm(name, commands[name], program, paths))

    figures = {
        "last Oom": {name: [one.oom for one in found] for name, found in storms.items()},
        "OomKill": {name: [one.kill for one in found] for name, found in storms.items()},
        "all": {name: [max(one.oom, one.kill) for one in found] for name, found in storms.items()},
    }
    rows = {f"{name}, {figure}": values for figure, found in figures.items() for name, values in found.items()}
    rows["kernel, last signal"] = [one.signal for found in storms.values() for one in found]
    common.report(
        f"From the first signal to the last event, when the limit of a parent of {args.cgroups} cgroups is hit",
        ("milliseconds", 1_000_000),
        {name: common.distribution(values) for name, values in rows.items()},
        [
            common.ratio(f"{figure}, {OURS} / {other}", found[OURS], found[other], target if figure == "all" else None)
            for figure, found in reversed(figures.items())
            for other, target in ((C, C_TARGET), (LIBRARY, LIBRARY_TARGET))
        ],
        args.json,
    )


def storm(name: str, command: list[str], program: str, paths: list[str]) -> Storm:
    """One OOM as one competitor sees it, which has to see all of it.

    Raises:
        RuntimeError: it did not, or something else went wrong.
    """
    # The registrations of the competitor before are taken down one by one by the kernel's workers.
    common.await_quiet(longest=TAKEN_DOWN)
    parent = Path(paths[0])
    *processors, hogs = sorted(os.sched_getaffinity(0))
    if not processors:
        raise RuntimeError("there is one processor, and two are needed")
    hog_command = [sys.executable, "-c", HOG, str(parent / "cgroup.procs")]
    clock_command = [program, "clock", paths[0], paths[-1]]
    with tempfile.TemporaryFile("w+") as listed:
        listed.write("\n".join(paths))
        listed.seek(0)
        with _running(command, processors, listed) as competitor:
            common.await_word(competitor, "ready")
            # Who registers last is signalled first.
            with _running(clock_command, processors) as clock:
                common.await_word(clock, "ready")
                used = int((parent / "memory.usage_in_bytes").read_text())
                (parent / "memory.limit_in_bytes").write_text(str(used + ROOM))
                with _running(hog_command, [hogs]) as hog:
                    # Asleep until all is over, as this process is not to be woken in the middle of it.
                    verdict = Verdict(*_result(competitor))
                    first, last = _result(clock)
                    if hog.wait() != -signal.SIGKILL:
                        raise RuntimeError("the process in the parent was not killed")
    if verdict.cgroups != len(paths) or verdict.ooms < len(paths) or verdict.kills != 1 or not first or not last:
        raise RuntimeError(f"{name}: 1 OOM and 1 kill of {len(paths)} cgroups, and it told {verdict}")
    if verdict.ooms > len(paths):
        print(f"{name}: {verdict.ooms} signals of {len(paths)} cgroups, so more than one OOM", file=sys.stderr)
    return Storm(last - first, verdict.last_oom - first, verdict.last_kill - first)


@contextlib.contextmanager
def _running(
    command: list[str], processors: list[int], stdin: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """A process on these processors that does not outlive the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)  # and whom it starts
    try:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def _result(process: subprocess.Popen[str]) -> list[int]:
    """The numbers that it prints in the end, which comes when it is through or its input is closed."""
    assert process.stdout is not None
    if process.stdin is not None:
        process.stdin.close()
    words = process.stdout.read().split()
    if process.wait() != 0:
        raise RuntimeError(f"{process.args!r} failed")
    return [int(word) for word in words]


def ours(paths: list[str]) -> Verdict:
    with Monitor() as monitor:
        watch(monitor, paths)
        # What is new is looked at once more.
        if monitor.wait(QUIET):
            raise RuntimeError("the cgroups of the benchmark are in somebody's hands")
        print("ready", flush=True)

        told: list[tuple[int, list[Event]]] = []
        events = monitor.wait(LONGEST)
        while events:
            told.append((time.monotonic_ns(), events))
            events = monitor.wait(QUIET)

    arrivals = [(time_ns, event) for time_ns, events in told for event in events]
    ooms = [(time_ns, event) for time_ns, event in arrivals if isinstance(event, Oom)]
    kills = [(time_ns, event) for time_ns, event in arrivals if isinstance(event, OomKill)]
    if not ooms or not kills or len(ooms) + len(kills) != len(arrivals):
        raise RuntimeError(f"{len(arrivals)} events: {len(ooms)} Oom, {len(kills)} OomKill")
    return Verdict(
        last_oom=ooms[-1][0],
        last_kill=kills[-1][0],
        ooms=sum(event.count for _, event in ooms),
        cgroups=len({event.cgroup for _, event in ooms}),
        kills=sum(event.count for _, event in kills),
    )


def watch(monitor: Monitor, paths: list[str]) -> None:
    """All of them: the parent, which is the first, and the others, which are below it."""
    tree = monitor.watch_tree(paths[0])
    if len(list(tree)) != len(paths):
        raise RuntimeError(f"{tree!r} of {len(paths)} cgroups")


def library(paths: list[str]) -> Verdict:
    registered = [Registered(path) for path in paths]
    victim = registered[0]
    watches = {one.eventfd: one for one in registered}
    with select.epoll() as epoll:
        for eventfd in watches:
            epoll.register(eventfd, select.EPOLLIN)
        print("ready", flush=True)

        last_oom = last_kill = kills = 0
        ready = epoll.poll(LONGEST)
        deadline = time.monotonic() + LONGEST
        while ready or not kills:
            woken = [watches[eventfd] for eventfd, _ in ready]
            for one in woken:
                one.signals += os.eventfd_read(one.eventfd)
            for one in woken or [victim]:
                if killed := one.look():
                    last_kill = time.monotonic_ns()
                    kills += killed
            if woken:
                last_oom = time.monotonic_ns()
            elif time.monotonic() > deadline:
                raise RuntimeError("no kill")
            ready = epoll.poll(QUIET if kills else 0)

    return Verdict(
        last_oom=last_oom,
        last_kill=last_kill,
        ooms=sum(one.signals for one in watches.values()),
        cgroups=sum(one.signals > 0 for one in watches.values()),
        kills=kills,
    )


class Registered:
    """A cgroup that the standard library's competitor watches."""

    __slots__ = ("cgroup", "eventfd", "kills", "signals")

    def __init__(self, cgroup: str) -> None:
        self.cgroup = cgroup
        self.eventfd, _, self.kills = designs.register(cgroup)
        self.signals = 0

    def look(self) -> int:
        """Reads the counter; by how much it rose."""
        before, self.kills = self.kills, designs.look(self.cgroup)
        return self.kills - before


IN_PYTHON = {OURS: ours, LIBRARY: library}

if __name__ == "__main__":
    main()
