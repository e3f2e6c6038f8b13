"""All benchmarks, one after the other: what each found is kept, and a report made of it.

`python -m benchmarks` takes a while and wants the machine for itself; `--quick` only tries everything, in two minutes,
and leaves what is kept alone. Names of scripts pick some of them. Targets that are missed fail nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common, report

# What each script is called with, for figures and for a try. Not tried are many and v2, which take minutes in a virtual
# machine, and instructions, which `make bench-check` runs. The report has them in this order, and the first of them
# ahead of the table of all targets.
FULL: dict[str, list[str]] = {
    "races": [],
    "register": [],
    "scan": [],
    "storm": [],
    "wake_latency": [],
    "async_latency": [],
    "event_cost": [],
    "many": [],
    "thresholds": [],
    "scrape_delay": [],
    "idle": [],
    "memory": [],
    "leaks": [],
    "command": [],
    "startup": [],
    "instructions": [],
    "v2": [],
}
FEW = ["--cgroups", "1000", "--rounds", "1"]
QUICK: dict[str, list[str]] = {
    "races": ["--rounds", "2", "--containers", "0", "--hosts", "held up"],
    "register": FEW,
    "scan": FEW,
    "storm": FEW,
    "wake_latency": ["--rounds", "1", "--signals", "30"],
    "async_latency": ["--rounds", "1", "--signals", "30"],
    "event_cost": ["--rounds", "1", "--events", "30", "--counts", "100", "1000"],
    "thresholds": ["--rounds", "1", "--signals", "30"],
    "scrape_delay": [*FEW, "--signals", "30"],
    "idle": ["--cgroups", "1000", "--seconds", "2"],
    "memory": ["--cgroups", "4000", "--rounds", "1"],
    "leaks": ["--cycles", "20000"],
    "command": FEW,
    "startup": ["--rounds", "1"],
}
TRIED = common.HERE.parent / ".cache" / "bench"


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FULL)} (default: all)")
    options.add_argument("--quick", action="store_true", help=f"just try everything; results and report go to {TRIED}")
    options.add_argument("--report-only", action="store_true", help="make the report of what is kept")
    args = options.parse_args()
    if unknown := sorted(set(args.names) - set(FULL)):
        options.error(f"no such benchmark: {', '.join(unknown)}")
    folder = TRIED if args.quick else common.HERE
    failed = []
    if not args.report_only:
        scripts = QUICK if args.quick else FULL
        failed = run({name: scripts.get(name, []) for name in args.names or scripts}, folder / "results")
    summarize(folder / "results", [name for name in FULL if not args.names or name in args.names])
    print(f"\nreport: {report.write(folder, FULL)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(scripts: dict[str, list[str]], results: Path) -> list[str]:
    """Runs scripts and keeps what they found; returns the names of those that failed, which do not stop the others."""
    failed = []
    for number, (name, arguments) in enumerate(scripts.items(), 1):
        print(f"[{number:>2}/{len(scripts)}] {name:<15}", end="", flush=True)
        start = time.monotonic()
        # What it has to say besides goes to the terminal.
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(f"{time.monotonic() - start:>7.1f} s{'' if done.returncode == 0 else '  failed'}", flush=True)
        if done.returncode == 0:
            report.keep(json.loads(done.stdout), results / f"{name}.json")
        else:
            failed.append(name)
    return failed


def summarize(results: Path, names: list[str]) -> None:
    """A table of all ratios of what is kept."""
    lines = []
    for name in names:
        path = results / f"{name}.json"
        if path.exists():
            lines += [[name, *line] for line in common.verdicts(json.loads(path.read_text()))[1]]
    if lines:
        print()
        common.print_table(["benchmark", *common.VERDICTS], lines)


if __name__ == "__main__":
    sys.exit(main())
