"""Who reports an OOM when the cgroup goes at once?

On cgroup v1 the kernel signals an OOM and the removal of the cgroup on the same eventfd, and nothing in the signal
tells which it was. So cgroups live for a few milliseconds here: a process is killed for want of memory, reaped, and its
cgroup removed in the same breath (limits/race.c). As many others go between them in which the process ends by itself:
whoever reports an OOM there has invented it. All are watched beforehand, by

- memcg_oom: Monitor.watch(); what counts is its Oom, which is what the others report;
- read, then look: reads the eventfd, drops the count; no control file any more is the removal (runc, containerd);
- the same in a thread for each cgroup (cgroups-rs);
- look, then read: gone and one signal is the removal, gone and two are an OOM as well (conmon);
- every signal: each is an OOM, a thread for each cgroup, in Python (BenchExec's KillProcessOnOomThread). Its caller can
  cancel the thread before the process ends; whoever watches what others run cannot;
- polling: the standard library reads oom_kill of every cgroup each 100 ms.

The three in C (limits/rules.c) do nothing else, and so are as early as can be. Each competitor is a process of its own,
in its turn alone, and meets three hosts: a quiet one; a busy one, where two processes for each processor compute; and
one that holds it up, as a quota of processor time, a freezer or a slow console do: stopped while a cgroup dies, it goes
on as soon as the cgroup is gone.

Times run from the last page that the victim was given, as nothing later can be seen from outside before the kernel
signals, to when the competitor has made up its mind; ours when Monitor.wait() has returned the Oom. When the victim was
reaped and its cgroup removed stands beside them.

Then the programs themselves, where they are installed: `runc events`, `ctr events` and podman's conmon, with containers
of their own runtimes, which these remove as soon as they can. And held up: what would report is stopped, and another
removes the cgroup when it is empty, as systemd does with a scope. Here time runs from the kernel's signal, as a process
saw it that was signalled of the same OOM (limits/storm.c), to what they print, looked for each millisecond. memcg_oom
watches the same containers, and is held up as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import common, designs
from memcg_oom import Monitor, Oom, OomKill, Removed
from tests.real import containers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any

    from memcg_oom import AnyWatch

OURS = "memcg_oom"
BENCHEXEC = "every signal (BenchExec)"
POLLING = "polling, each 100 ms"
LOOK = "read, then look (runc, containerd)"
RULES = {LOOK: "after", "the same, a thread each (cgroups-rs)": "thread", "look, then read (conmon)": "before"}

QUIET, BUSY, HELD_UP = HOSTS = ("quiet", "busy", "held up")

LIMIT = 1 << 20  # bytes
BLOCK = 50  # OOMs in a row that one competitor meets
PAUSES = (5_000_000, 15_000_000)  # nanoseconds from one cgroup to the next
OVER = 1.5  # seconds after the last of them: the kernel's signal comes within 0.2, and a Monitor waits 0.25 for another
CONTAINER_OVER = 0.6  # the same of a container, where nothing else is removed meanwhile
PERIOD = 0.1  # seconds from one look of who polls to the next
SPINNERS = 2  # for each processor of a busy host
SPIN = "while True: pass"

KILLED = 137  # 128 and SIGKILL: the exit code of a container

Reports = dict[str, dict[int, int]]  # what was reported of which cgroup, and when first


class Race(NamedTuple):
    """Moments of CLOCK_MONOTONIC, in nanoseconds."""

    last_page: int
    reaped: int
    removed: int


class Outcome:
    """What a competitor reported, on one host.

    Attributes:
        ooms, ends: how many cgroups there were with an OOM and without.
        reported, invented: how many of them it reported as OOMs.
        also: what else it said, and of how many cgroups.
        times: from the beginning to the report, block by block.
    """

    def __init__(self) -> None:
        self.ooms = self.ends = self.reported = self.invented = 0
        self.also: dict[str, int] = {}
        self.times: list[list[int]] = []

    def add(self, begun: dict[int, int], ends: int, reports: Reports) -> None:
        """Takes in a block: when each OOM began, how many ends without one there were, and what was reported."""
        reported = reports["oom"]
        self.ooms += len(begun)
        self.ends += ends
        self.reported += len(begun.keys() & reported.keys())
        self.invented += len(reported.keys() - begun.keys())
        self.times.append([reported[number] - begun[number] for number in begun.keys() & reported.keys()])
        for kind in reports.keys() - {"oom"}:
            self.also[kind] = self.also.get(kind, 0) + len(reports[kind])


def main() -> None:
    options = common.parser(__doc__, rounds=200, each="OOMs, and as many ends without one", only=IN_PYTHON)
    options.add_argument("--containers", type=int, default=200, help="of each runtime (default: %(default)s)")
    options.add_argument("--hosts", nargs="+", choices=HOSTS, default=HOSTS, help="which to meet (default: all)")
    args = options.parse_args()
    common.raise_descriptor_limit()
    if args.only:
        run_alone(IN_PYTHON[args.only])
        return

    with common.compiled("race", "rules", "storm") as [race, rules, storm]:
        commands = {
            OURS: common.alone("benchmarks.races", OURS),
            **{name: [rules, rule] for name, rule in RULES.items()},
            **{name: common.alone("benchmarks.races", name) for name in (BENCHEXEC, POLLING)},
        }
        contests = [(host, name) for host in args.hosts for name in commands]
        outcomes = {contest: Outcome() for contest in contests}
        deaths: dict[str, list[Race]] = {host: [] for host in args.hosts}
        left = args.rounds
        while left:
            count = min(left, BLOCK)
            left -= count
            for host, name in random.sample(contests, len(contests)):
                deaths[host] += contest(commands[name], race, host, count, outcomes[host, name])
        programs = of_programs(args.containers, storm)

    ours = [outcome for (_, name), outcome in outcomes.items() if name == OURS]
    competitors = {f"{name}, {host}": times(outcome.times) for (host, name), outcome in outcomes.items()}
    competitors |= {
        f"{name}, {host}": times(outcome.times) for name, host, outcome in programs if not isinstance(outcome, str)
    }
    common.report(
        f"{args.rounds} OOMs whose cgroup goes at once, between {args.rounds} ends without one",
        ("milliseconds", 1_000_000),
        {name: found for name, found in competitors.items() if found},
        [
            common.figure("memcg_oom: lost", [one.ooms - one.reported for one in ours], ("OOMs", 1), 0),
            common.figure("memcg_oom: invented", [one.invented for one in ours], ("OOMs", 1), 0),
            *chain.from_iterable(
                compared(host, outcomes[host, OURS].times, outcomes[host, LOOK].times)
                for host in args.hosts
                if host != HELD_UP
            ),
        ],
        args.json,
        table={
            "columns": ["watcher", "host", "reported", "invented", "median", "p99", "max", "also"],
            "rows": [
                *chain.from_iterable(
                    [*(row(name, host, outcomes[host, name]) for name in commands), *dying(host, deaths[host])]
                    for host in args.hosts
                ),
                *(row(*program) for program in programs),
            ],
        },
    )


# -- what is reported


def times(blocks: list[list[int]]) -> dict[str, Any] | None:
    """The distribution of all; None where nothing was reported."""
    samples = [*chain(*blocks)]
    return common.distribution(samples) if samples else None


def compared(host: str, ours: list[list[int]], theirs: list[list[int]]) -> list[dict[str, Any]]:
    """The medians of the blocks in which both reported something, set against each other; there may be none."""
    both = [(common.quantile(a, 0.5), common.quantile(b, 0.5)) for a, b in zip(ours, theirs, strict=True) if a and b]
    if not both:
        return []
    return [common.ratio(f"median, {host}, {OURS} / {LOOK}", [a for a, _ in both], [b for _, b in both])]


def row(name: str, host: str, outcome: Outcome | str) -> list[str]:
    """A row of the table; a text is why there is nothing to be told."""
    if isinstance(outcome, str):
        return [name, host, "", "", "", "", "", outcome]
    invented = f"{outcome.invented} of {outcome.ends}" if outcome.ends else ""
    also = ", ".join(f"{count} {what}" for what, count in outcome.also.items())
    return [name, host, f"{outcome.reported} of {outcome.ooms}", invented, *milliseconds(times(outcome.times)), also]


def dying(host: str, races: list[Race]) -> Iterator[list[str]]:
    """What the times are to be held against."""
    for what, moments in (
        ("(the victim is reaped)", [race.reaped - race.last_page for race in races]),
        ("(its cgroup is gone)", [race.removed - race.last_page for race in races]),
    ):
        yield [what, host, "", "", *milliseconds(times([moments])), ""]


def milliseconds(found: dict[str, Any] | None) -> list[str]:
    return ["", "", ""] if found is None else [f"{found[key] / 1e6:,.1f} ms" for key in ("median", "p99", "max")]


# -- cgroups of our own


def contest(command: list[str], race: str, host: str, count: int, outcome: Outcome) -> list[Race]:
    """Cgroups live and go, with an OOM and without, while one competitor watches them; how those with one ended."""
    are_ooms = random.sample([True] * count + [False] * count, 2 * count)
    with common.scratch(len(are_ooms)) as paths, contextlib.ExitStack() as stack:
        for path in paths:
            Path(path, "memory.limit_in_bytes").write_text(str(LIMIT))
        competitor = stack.enter_context(running(command, paths))
        if host == BUSY:
            stack.enter_context(spinners())
        else:
            common.await_quiet()
        lines = [f"{'oom' if is_oom else 'end'} {path}" for path, is_oom in zip(paths, are_ooms, strict=True)]
        arguments = [*map(str, PAUSES), *([str(competitor.pid)] if host == HELD_UP else [])]
        done = subprocess.run([race, *arguments], input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True)
        time.sleep(OVER)
        reports = result(competitor)
    races = [Race(*map(int, line.split())) for line in done.stdout.splitlines()]
    ooms = {number: race for number, race in enumerate(races) if are_ooms[number]}
    outcome.add({number: race.last_page for number, race in ooms.items()}, len(races) - len(ooms), reports)
    return [*ooms.values()]


@contextlib.contextmanager
def running(command: list[str], paths: Iterable[str]) -> Iterator[subprocess.Popen[str]]:
    """A competitor that watches these cgroups, and does not outlive the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            put(process.stdin, *paths, "")
            common.await_word(process, "ready")
            yield process
        finally:
            process.kill()


def put(file: IO[str] | None, *lines: str) -> None:
    assert file is not None
    file.writelines(f"{line}\n" for line in lines)
    file.flush()


def result(competitor: subprocess.Popen[str]) -> Reports:
    """What it prints when its input ends."""
    out, _ = competitor.communicate()
    if competitor.returncode:
        raise RuntimeError(f"{competitor.args!r} ended with {competitor.returncode}")
    reports: Reports = defaultdict(dict)
    for line in out.splitlines():
        *kind, number, time_ns = line.split()
        reports[kind[0] if kind else "oom"][int(number)] = int(time_ns)
    return reports


@contextlib.contextmanager
def spinners() -> Iterator[None]:
    """Keeps all processors busy."""
    count = SPINNERS * len(os.sched_getaffinity(0))
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# -- the competitors in Python


def run_alone(compete: Callable[[list[str]], Reports]) -> None:
    """One of them, as a process of its own; in and out it has what limits/rules.c has."""
    paths = [*iter(lambda: sys.stdin.readline().rstrip("\n"), "")]
    for kind, moments in compete(paths).items():
        for number, time_ns in moments.items():
            print(kind, number, time_ns)


def begin(end: Callable[[], object]) -> None:
    """Says that all are watched, and has the end told by another thread, which sleeps until then."""
    print("ready", flush=True)

    def await_end() -> None:
        sys.stdin.read()
        end()

    threading.Thread(target=await_end, daemon=True).start()


def ours(paths: list[str]) -> Reports:
    reports: Reports = {"oom": {}, "killed": {}, "unresolved": {}}
    over = threading.Event()
    with Monitor() as monitor:
        numbers: dict[AnyWatch, int] = {monitor.watch(path): number for number, path in enumerate(paths)}

        def end() -> None:
            over.set()
            monitor.wake()

        begin(end)
        while not over.is_set():
            events = monitor.wait()
            now = time.monotonic_ns()
            for event in events:
                match event:
                    case Oom(watch=watch):
                        reports["oom"].setdefault(numbers[watch], now)
                    case OomKill(watch=watch):
                        reports["killed"].setdefault(numbers[watch], now)
                    case Removed(watch=watch, unresolved=unresolved) if unresolved:
                        reports["unresolved"].setdefault(numbers[watch], now)
    # What is unresolved beside a kill is the second of two OOMs, of which one was not the victim's.
    reports["unresolved"] = {
        number: time_ns for number, time_ns in reports["unresolved"].items() if number not in reports["killed"]
    }
    return reports


def benchexec(paths: list[str]) -> Reports:
    ooms: dict[int, int] = {}
    over = threading.Event()

    def wait(number: int, eventfd: int) -> None:
        os.read(eventfd, 8)
        ooms[number] = time.monotonic_ns()
        os.close(eventfd)

    for number, path in enumerate(paths):
        eventfd, _, _ = designs.register(path)
        os.set_blocking(eventfd, True)
        threading.Thread(target=wait, args=(number, eventfd), daemon=True).start()
    begin(over.set)
    over.wait()
    return {"oom": ooms}


def polling(paths: list[str]) -> Reports:
    ooms: dict[int, int] = {}
    left = dict(enumerate(paths))
    over = threading.Event()
    begin(over.set)
    while not over.wait(PERIOD):
        for number, path in [*left.items()]:
            try:
                kills = designs.look(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
                del left[number]
            else:
                if kills:
                    ooms.setdefault(number, time.monotonic_ns())
    return {"oom": ooms}


IN_PYTHON = {OURS: ours, BENCHEXEC: benchexec, POLLING: polling}


# -- containers


class Program(NamedTuple):
    """A program that reports OOMs of containers.

    Attributes:
        name: of the program.
        runtime: of the containers, as tests.real.containers has it.
        process: what only the process has in its command line that is signalled.
    """

    name: str
    runtime: str
    process: bytes


PROGRAMS = (
    Program("runc events", "runc", b"\0events\0"),
    Program("ctr events (containerd)", "ctr", b"containerd-shim"),
    Program("conmon (podman)", "podman", b"conmon\0"),
)


def of_programs(count: int, storm: str) -> list[tuple[str, str, Outcome | str]]:
    """Who, where, and what became of so many containers of each; of what is not installed, the package."""
    outcomes: list[tuple[str, str, Outcome | str]] = []
    contests: dict[tuple[Program, str], tuple[Outcome, Outcome]] = {}
    for host in (QUIET, HELD_UP):
        for program in PROGRAMS:
            if why_not := containers.missing(program.runtime):
                outcomes.append((program.name, host, why_not))
                continue
            theirs, ours = contests[program, host] = Outcome(), Outcome()
            outcomes += [(program.name, host, theirs), (f"{OURS}, beside {program.name}", host, ours)]
    with tempfile.TemporaryDirectory(prefix="memcg_oom_bench_") as folder, common.scratch(1) as [parent]:
        rootfs = Path(folder, "rootfs")
        if contests:
            containers.build_rootfs(rootfs)
        for _ in range(count):
            for program, host in random.sample([*contests], len(contests)):
                with containers.RUNTIMES[program.runtime](rootfs, Path(parent)) as container:
                    signalled, *reports = live_and_die(program, host, container, storm)
                for outcome, said in zip(contests[program, host], reports, strict=True):
                    outcome.add({0: signalled}, 0, said)
    return outcomes


def live_and_die(
    program: Program, host: str, container: containers.Container, storm: str
) -> tuple[int, Reports, Reports]:
    """Lets a container run out of memory; when that was signalled, what the program said of it, and what ours."""
    clock_command = [storm, "clock", os.fspath(container.cgroup)]
    with (
        running(common.alone("benchmarks.races", OURS), [os.fspath(container.cgroup)]) as competitor,
        subprocess.Popen(clock_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clock,
        Reporter(program, container) as reporter,
        contextlib.ExitStack() as held_up,
    ):
        common.await_word(clock, "ready")
        if host == HELD_UP:
            for pid in (competitor.pid, *processes(program, container)):
                os.kill(pid, signal.SIGSTOP)
                held_up.callback(os.kill, pid, signal.SIGCONT)
        container.start()
        if host == HELD_UP:
            remove_when_empty(container.cgroup)
            held_up.close()
        if container.wait() != KILLED:
            raise RuntimeError(f"{program.name}: the container was not killed")
        container.remove()
        time.sleep(CONTAINER_OVER)
        signalled = int(clock.communicate()[0])
        return signalled, {"oom": {0: reporter.reported} if reporter.reported else {}}, result(competitor)


def processes(program: Program, container: containers.Container) -> list[int]:
    """Those of a program that watch a container: all that is its own has its folder in the command line."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if program.process in command and os.fsencode(container._folder) in command:
                pids.append(int(path.parent.name))
    if not pids:
        raise RuntimeError(f"{program.name}: no process watches the container")
    return pids


def remove_when_empty(cgroup: Path) -> None:
    """Removes it as soon as the kernel lets it."""
    while True:
        try:
            cgroup.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return


class Reporter(threading.Thread):
    """Looks for a runtime's report while it is entered.

    Attributes:
        reported: when it was there, in nanoseconds of CLOCK_MONOTONIC; 0: never.
    """

    def __init__(self, program: Program, container: containers.Container) -> None:
        super().__init__()
        self.reported = 0
        self._over = threading.Event()
        self._container = container
        self._has_reported: Callable[[], object] = container.reports
        if program.runtime == "podman":
            # Podman itself takes a tenth of a second to say what conmon notes in this file, for which there is no
            # other way than the container's folder.
            self._has_reported = (container._folder / "oom").exists

    def run(self) -> None:
        """The thread."""
        while not self._over.wait(0.001):
            if self._has_reported():
                self.reported = time.monotonic_ns()
                return

    def __enter__(self) -> Reporter:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()


if __name__ == "__main__":
    main()
