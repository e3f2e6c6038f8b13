"""What the benchmarks share: scratch cgroups, compiled competitors, rounds, distributions and the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import memcg_oom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeVar

    _Result = TypeVar("_Result")

HERE = Path(__file__).parent
LIMITS = HERE / "limits"

# The headings of verdicts().
VERDICTS = ["ratio", "median", "spread over the rounds", "target", ""]


def parser(
    description: str | None,
    *,
    rounds: int | None = None,
    each: str = "of all competitors",
    cgroups: int | None = None,
    only: Iterable[str] | None = None,
) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark.

    Args:
        description: the docstring of the script.
        rounds: the default of --rounds; None: the script has none.
        each: what a round is.
        cgroups: the default of --cgroups; None: the script has none.
        only: who may be named to run alone, in a process of its own; None: the script starts none of its own.
    """
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("--json", action="store_true", help="one JSON document with all samples instead of a table")
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds, help=f"{each} (default: %(default)s)")
    if cgroups is not None:
        options.add_argument("--cgroups", type=int, default=cgroups, help="how many (default: %(default)s)")
    if only is not None:
        text = "run one competitor, once, on the paths in standard input"
        options.add_argument("--only", choices=list(only), help=text)
    return options


def alone(module: str, name: str) -> list[str]:
    """The command that runs one competitor of a script in a process of its own."""
    return [sys.executable, "-m", module, "--only", name]


def shuffled(rounds: int, names: Iterable[str], run: Callable[[str], _Result]) -> dict[str, list[_Result]]:
    """What came of running each competitor, by name, in each round, each round in a new order."""
    found: dict[str, list[_Result]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(list(found), len(found)):
            found[name].append(run(name))
    return found


def timed(commands: Mapping[str, list[str]], rounds: int, paths: Sequence[str]) -> dict[str, list[int]]:
    """What processes print that take paths from their standard input: how many nanoseconds passed.

    Before each of them it gets quiet. The process before has closed its eventfds, but their registrations are taken
    down one by one by the kernel's workers, which the next competitor would have to share the processors with.
    """
    listed = "\n".join(paths)

    def run(name: str) -> int:
        await_quiet()
        done = subprocess.run(commands[name], input=listed, stdout=subprocess.PIPE, text=True, check=True)
        return int(done.stdout)

    return shuffled(rounds, commands, run)


def raise_descriptor_limit() -> None:
    """Raises RLIMIT_NOFILE as far as it goes, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def scratch(count: int, *, groups: int = 0) -> Iterator[list[str]]:
    """New cgroups in a directory of their own; all are removed in the end, after Ctrl-C and SIGTERM as well.

    Args:
        count: how many.
        groups: how many of them hold the others, evenly; 0: all are beside each other.
    """
    top = _memory_mount() / f"memcg_oom_bench_{os.getpid()}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    top.mkdir()
    try:
        paths = [str(top / str(i)) for i in range(groups or count)]
        paths += [f"{paths[i % groups]}/{i}" for i in range(groups, count) if groups]
        for path in paths:
            os.mkdir(path)
        yield paths
    finally:
        # A second Ctrl-C must not leave half of them behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        _remove(str(top))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def _remove(cgroup: str) -> None:
    with os.scandir(cgroup) as entries:
        below = [entry.path for entry in entries if entry.is_dir()]
    for path in below:
        _remove(path)
    os.rmdir(cgroup)


def _memory_mount() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(point)
    raise SystemExit("no cgroup v1 memory hierarchy is mounted here")


@contextlib.contextmanager
def compiled(*names: str) -> Iterator[list[str]]:
    """The programs of limits/, compiled into a temporary directory; their paths, in the order of the names."""
    with tempfile.TemporaryDirectory(prefix="memcg_oom_bench_") as folder:
        for name in names:
            options = ["-std=c11", "-O2", "-Wall", "-pthread", "-o", f"{folder}/{name}"]
            subprocess.run(["cc", *options, str(LIMITS / f"{name}.c")], check=True)
        yield [f"{folder}/{name}" for name in names]


def await_word(process: subprocess.Popen[str], word: str) -> list[int]:
    """Waits until a process says that; the numbers that it says behind it.

    Raises:
        RuntimeError: it says something else, or ends.
    """
    assert process.stdout is not None
    said, *numbers = process.stdout.readline().split() or [""]
    if said != word:
        raise RuntimeError(f"{process.args!r} did not get as far as {word!r}")
    return [int(number) for number in numbers]


def await_quiet(window: float = 0.1, longest: float = 1.0) -> None:
    """Waits until the processors have had next to nothing to do for a while; on a busy host, not for ever."""
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        before = _busy_ticks()
        time.sleep(window)
        if _busy_ticks() - before <= 1:
            return


def _busy_ticks() -> int:
    """Ticks of 10 ms in which a processor was neither idle nor waiting for a disk, all processors together."""
    all_processors = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _idle, _iowait, *interrupts = map(int, all_processors.split()[1:8])
    return user + nice + system + sum(interrupts)


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of them does not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def medians(rounds: Mapping[str, Sequence[Sequence[float]]], share: float = 0.5) -> dict[str, list[float]]:
    """The median, or another quantile, of each round of each competitor."""
    return {name: [quantile(one, share) for one in found] for name, found in rounds.items()}


def distribution(samples: Sequence[float]) -> dict[str, Any]:
    """Median, p99 and max, how many samples there are, and the samples themselves."""
    return {
        "median": statistics.median(samples),
        "p99": quantile(samples, 0.99),
        "max": max(samples),
        "n": len(samples),
        "samples": list(samples),
    }


def ratio(what: str, ours: Sequence[float], theirs: Sequence[float], target: float | None = None) -> dict[str, Any]:
    """The median of the ratios within each round, their spread, and whether it is what we want.

    Args:
        what: "ours / theirs", with the names of the competitors; of what figure, where there are several, ahead of it.
        ours: one each round.
        theirs: the same.
        target: the most that we want; None: there is none.
    """
    return _judged(what, [a / b for a, b in zip(ours, theirs, strict=True)], target)


def figure(
    what: str, rounds: Sequence[float], unit: tuple[str, int], target: float | None = None, *, at_least: bool = False
) -> dict[str, Any]:
    """What has a target of its own and not by comparison; it stands among the ratios.

    Args:
        what: it is.
        rounds: one each.
        unit: its name, and its size in what `rounds` are in; the target is in it.
        target: the most that we want, or the least.
        at_least: which of the two.
    """
    name, size = unit
    return {**_judged(what, [one / size for one in rounds], target, at_least=at_least), "unit": name}


def _judged(what: str, rounds: Sequence[float], target: float | None, *, at_least: bool = False) -> dict[str, Any]:
    value = statistics.median(rounds)
    met = None if target is None else value >= target if at_least else value <= target
    judged = {"what": what, "value": value, "min": min(rounds), "max": max(rounds), "rounds": list(rounds)}
    return {**judged, "target": target, "at_least": at_least, "met": met}


def report(
    title: str,
    unit: tuple[str, int],
    competitors: dict[str, dict[str, Any]],
    ratios: list[dict[str, Any]],
    as_json: bool,
    *,
    base: str = "ns",
    table: dict[str, list[Any]] | None = None,
) -> None:
    """Prints what was found, as a table or as the JSON document that report.md is made of.

    The document has `title`, `machine` (what it ran on: processor, cores, kernel, python, memcg_oom, commit), `unit`
    (of all figures of the competitors, as `base` here), `shown` (the unit of tables and plots, and its size in `unit`),
    `competitors` (by name: what distribution() gives; others than latencies may have other figures), `ratios` (what
    ratio() and figure() give: what, value, min and max over the rounds, rounds, target, at_least, met, and for a figure
    its unit) and, where the distributions are not the answer, `table`: `columns`, a list of headings, and `rows`, each
    a list with as many texts or numbers. Where there is one, it stands in the place of the table of distributions.

    Args:
        title: the question, and of how much.
        unit: for the table, its name and its size in `base`.
        competitors: the distribution() of each.
        ratios: what ratio() and figure() gave.
        as_json: one JSON document.
        base: what all figures of the competitors are in.
        table: see above.
    """
    document: dict[str, Any] = {
        "title": title,
        "machine": machine(),
        "unit": base,
        "shown": list(unit),
        "competitors": competitors,
        "ratios": ratios,
    }
    if table is not None:
        document["table"] = table
    if as_json:
        print(json.dumps(document, indent=1))
        return
    print(f"{title}\n{', '.join(f'{key} {value}' for key, value in document['machine'].items())}\n")
    print_table(*rows(document))
    if ratios:
        print()
        print_table(*verdicts(document))


def rows(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the table of a document."""
    if table := document.get("table"):
        return [str(one) for one in table["columns"]], [[str(one) for one in row] for row in table["rows"]]
    name, size = document["shown"]
    return [name, "median", "p99", "max", "n"], [
        [competitor, *(f"{found[key] / size:,.1f}" for key in ("median", "p99", "max")), str(found["n"])]
        for competitor, found in document["competitors"].items()
        if "median" in found
    ]


def verdicts(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same of its ratios, with their targets."""
    return VERDICTS, [
        [
            one["what"],
            f"{one['value']:,.2f} {one.get('unit', '')}".rstrip(),
            f"{one['min']:,.2f} .. {one['max']:,.2f}",
            "" if one["target"] is None else f"at {'least' if one['at_least'] else 'most'} {one['target']:,}",
            "" if one["met"] is None else "met" if one["met"] else "missed",
        ]
        for one in document["ratios"]
    ]


def print_table(columns: list[str], lines: list[list[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *lines, strict=True)]
    for line in (columns, *lines):
        first, *others = (
            f"{cell:>{width}}" if column else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join((first, *others)).rstrip())


def machine() -> dict[str, str | int]:
    """What this ran on."""
    described = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memcg_oom": memcg_oom.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """Which state of the sources; of a copy without its history nobody knows."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(HERE), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        # Of the results that are being kept nothing is said.
        changed = git("status", "--porcelain", "--", ":/memcg_oom", ":/csrc")
        return git("rev-parse", "--short=10", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
