"""What the benchmarks share: scratch cgroups, compiled competitors, distributions and the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
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
    from collections.abc import Iterator, Sequence
    from typing import Any

LIMITS = Path(__file__).parent / "limits"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("--json", action="store_true", help="one JSON document with all samples instead of a table")
    return options


def raise_descriptor_limit() -> None:
    """Raises RLIMIT_NOFILE as far as it goes, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def scratch(count: int) -> Iterator[list[str]]:
    """New cgroups in a directory of their own; all are removed in the end, after Ctrl-C and SIGTERM as well."""
    top = _memory_mount() / f"memcg_oom_bench_{os.getpid()}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    top.mkdir()
    try:
        paths = [str(top / str(i)) for i in range(count)]
        for path in paths:
            os.mkdir(path)
        yield paths
    finally:
        # A second Ctrl-C must not leave half of them behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        with os.scandir(top) as entries:
            for cgroup in [entry.path for entry in entries if entry.is_dir()]:
                os.rmdir(cgroup)
        top.rmdir()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


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
            command = ["cc", "-std=c11", "-O2", "-Wall", "-o", f"{folder}/{name}", str(LIMITS / f"{name}.c")]
            subprocess.run(command, check=True)
        yield [f"{folder}/{name}" for name in names]


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


def distribution(samples: Sequence[float]) -> dict[str, Any]:
    """Nanoseconds: median, p99 and max, and the samples themselves."""
    return {
        "median": statistics.median(samples),
        "p99": quantile(samples, 0.99),
        "max": max(samples),
        "samples": list(samples),
    }


def ratio(what: str, ours: Sequence[float], theirs: Sequence[float], target: float | None = None) -> dict[str, Any]:
    """The median of the ratios within each round, their spread, and whether it is what we want."""
    of_rounds = [a / b for a, b in zip(ours, theirs, strict=True)]
    value = statistics.median(of_rounds)
    return {
        "what": what,
        "value": value,
        "min": min(of_rounds),
        "max": max(of_rounds),
        "rounds": of_rounds,
        "target": target,
        "met": None if target is None else value <= target,
    }


def report(
    title: str,
    unit: tuple[str, int],
    competitors: dict[str, dict[str, Any]],
    ratios: list[dict[str, Any]],
    as_json: bool,
) -> None:
    """Prints what was found.

    Args:
        title: the question.
        unit: for the table, its name and its size in nanoseconds; JSON has nanoseconds.
        competitors: the distribution() of each.
        ratios: what ratio() gave.
        as_json: one JSON document.
    """
    machine = _machine()
    if as_json:
        document = {"title": title, "machine": machine, "unit": "ns", "competitors": competitors, "ratios": ratios}
        print(json.dumps(document, indent=1))
        return
    name, size = unit
    print(f"{title}\n{', '.join(f'{key} {value}' for key, value in machine.items())}\n")
    print(f"{name:<30}{'median':>10}{'p99':>10}{'max':>10}{'n':>7}")
    for competitor, found in competitors.items():
        figures = "".join(f"{found[key] / size:>10.1f}" for key in ("median", "p99", "max"))
        print(f"{competitor:<30}{figures}{len(found['samples']):>7}")
    print(f"\n{'ratio':<50}{'median':>7}   spread over the rounds")
    for one in ratios:
        verdict = ""
        if one["target"] is not None:
            verdict = f"   target at most {one['target']}: {'met' if one['met'] else 'missed'}"
        print(f"{one['what']:<50}{one['value']:>7.2f}   {one['min']:.2f} .. {one['max']:.2f}{verdict}")


def _machine() -> dict[str, str | int]:
    described = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memcg_oom": memcg_oom.__version__,
    }
