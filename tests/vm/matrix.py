"""The tests against the real kernel, on other kernels: each a row of a table, two machines at a time.

python -m tests.vm.matrix WHEEL [ROW ...]: a row is a series of kernels and the version of cgroups that has the memory
controller (6.1:v2), or a kernel's file and that (/boot/vmlinuz:v2). Without rows: all of ROWS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.vm import machine

ROWS = ("5.10:v1", "5.10:v2", "6.1:v1", "6.1:v2", "6.12:v2", "6.18:v2", "newest:v2")

# What the kernel has a say in; the rest is the same on every kernel. TESTS= names others.
TESTS = {
    "v1": (
        *("baseline", "broadcast", "identity", "ledger", "oom_handler", "pressure", "races", "rename", "stall"),
        *("tree", "usage", "victims"),
    ),
    "v2": (
        "churn",
        "idle",
        "oom_handler",
        "stall",
        "usage",
        "v2_cgroup",
        "v2_events",
        "v2_exceptions",
        "v2_limits",
        "victims",
    ),
}

# Emulated, so fewer rounds.
SETTINGS = "MEMCG_OOM_ROUNDS=50 MEMCG_OOM_CHURN=300 MEMCG_OOM_MANY=1000 MEMCG_OOM_SPOOFED=20"

# What is asked for by the environment counts there too.
HANDED_ON = ("MEMCG_OOM_RACES", "MEMCG_OOM_SOAK")

# Seconds after which a machine counts as hung.
PATIENCE = 3600.0


@dataclass
class Outcome:
    """What became of a row.

    Attributes:
        row: as it was asked for.
        release: of the kernel; empty where there was none.
        passed, failed, skipped: how many tests.
        seconds: how long it took.
        why: why it counts as failed; empty where it passed.
        failures: each test that failed, and what pytest said of it.
    """

    row: str
    release: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    why: str = ""
    failures: list[str] = field(default_factory=list)

    def judge(self, code: int, junit: Path, log: Path) -> None:
        """Takes over what became of the tests: pytest's exit code, its JUnit file, and where its output is."""
        suite = ElementTree.parse(junit).getroot().find("testsuite")  # noqa: S314 - our own pytest wrote it
        assert suite is not None, f"{junit} has no testsuite"
        self.failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        self.skipped = int(suite.attrib["skipped"])
        self.passed = int(suite.attrib["tests"]) - self.failed - self.skipped
        for test in suite.iter("testcase"):
            for said in [*test.findall("failure"), *test.findall("error")]:
                self.failures.append(f"{self.row} {test.get('classname')}::{test.get('name')}\n{said.text}")
        if code != 0 or self.failed:
            self.why = f"pytest ended with {code}, see {log}"
        elif not self.passed:
            self.why = "no test ran"

    def cells(self) -> list[str]:
        """What of it stands in a table, after its name."""
        counts = (self.passed, self.failed, self.skipped, round(self.seconds))
        return [*map(str, counts), f"FAILED: {self.why}" if self.why else "ok"]


# The heads of the columns of these cells.
CELLS = ["passed", "failed", "skipped", "seconds", ""]


def kernel(row: str) -> tuple[Path, str, str]:
    """The kernel of a row, its release and the version of cgroups.

    Raises:
        ValueError: there is no such row.
        OSError: the kernel is not there, or could not be had.
    """
    name, _, version = row.rpartition(":")
    if version not in TESTS or not (name in machine.SUITES or "/" in name):
        known = ", ".join(machine.SUITES)
        raise ValueError(f"{row!r}: rows are SERIES:VERSION, like 6.1:v2, of {known}; or /path/to/vmlinuz:VERSION")
    if "/" in name:
        Path(name).open("rb").close()
        return Path(name), "", version
    try:
        vmlinuz = machine.kernel(name)
    except subprocess.CalledProcessError:
        raise OSError(f"the kernel {name} could not be downloaded from {machine.SUITES[name]}") from None
    return vmlinuz, (vmlinuz.parent / "release").read_text().strip(), version


def run(row: str, base: Path, reports: Path, tests: str = "") -> Outcome:
    """Boots the kernel of a row and runs the tests in it; whatever goes wrong is in the outcome.

    Args:
        row: see ROWS.
        base: made by machine.initramfs().
        reports: a folder for the JUnit file and all that the machine printed.
        tests: for pytest; empty: TESTS.
    """
    outcome = Outcome(row)
    begun = time.monotonic()
    name = row.replace("/", "_").replace(":", "-")
    junit = reports / f"{name}.xml"
    junit.unlink(missing_ok=True)
    try:
        vmlinuz, outcome.release, version = kernel(row)
        files = tests or " ".join(f"tests/real/test_{name}.py" for name in TESTS[version])
        settings = " ".join([SETTINGS, *(f"{name}={os.environ[name]}" for name in HANDED_ON if name in os.environ)])
        command = (
            "echo 1 > /proc/sys/kernel/printk; uname -r\n"
            f"{settings} python3 -m pytest -q --color=no -p no:cacheprovider --junitxml=/results {files}"
        )
        log = reports / f"{name}.log"
        code, _ = machine.run(vmlinuz, version, base, command, timeout=PATIENCE, memory=2048, results=junit, log=log)
        outcome.judge(code, junit, log)
    except (OSError, ValueError, AssertionError, subprocess.SubprocessError, ElementTree.ParseError) as error:
        outcome.why = str(error)
    outcome.seconds = time.monotonic() - begun
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """The outcomes, a line for each."""
    lines = [["kernel", "cgroups", *CELLS]]
    for outcome in outcomes:
        name, _, version = outcome.row.rpartition(":")
        kernel = f"{name} ({outcome.release})" if outcome.release else name
        lines.append([kernel, version, *outcome.cells()])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells, one below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 0
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def conclude(outcomes: list[Outcome], lines: str, reports: Path) -> int:
    """Prints what failed in the rows and then their table; 1 where a row failed, for the program to end with."""
    for outcome in outcomes:
        for failure in outcome.failures:
            print(f"{failure}\n")
    print(f"{lines}\n\nJUnit files and what was printed: {reports}")
    return 1 if any(outcome.why for outcome in outcomes) else 0


def main() -> int:
    """The program; 1 where a row failed, 2 where nothing could be tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.matrix")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("rows", nargs="*", default=ROWS)
    arguments = parser.parse_args()
    why_not = machine.missing()
    if why_not:
        print(f"no virtual machines: {why_not}", file=sys.stderr)
        return 2
    reports = machine.CACHE / "kernels" / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        hog = Path(directory, "hog")
        subprocess.run(["gcc", "-O2", "-static", "-o", hog, machine.ROOT / "tests" / "hog.c"], check=True)
        base = machine.initramfs(Path(directory), str(hog), arguments.wheel)
        with ThreadPoolExecutor(max_workers=2) as pool:
            futures = [pool.submit(run, row, base, reports, os.environ.get("TESTS", "")) for row in arguments.rows]
            outcomes = [future.result() for future in futures]
    return conclude(outcomes, table(outcomes), reports)


if __name__ == "__main__":
    sys.exit(main())
