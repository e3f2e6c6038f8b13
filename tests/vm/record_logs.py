"""Records what kernels say of OOM kills, in machines of their own: the files in tests/logs.

python -m tests.vm.record_logs [ROW ...]: rows as of tests.vm.matrix. Without rows: all that it has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vm import machine, matrix

LOGS = machine.ROOT / "tests" / "logs"
COMMAND = "echo 1 > /proc/sys/kernel/printk; python3 -m tests.vm.inside.record_logs"


def record(row: str, base: Path) -> Path:
    """Writes the file of a row; returns its name.

    Args:
        row: see tests.vm.matrix.
        base: made by machine.initramfs().

    Raises:
        ValueError: there is no such row, or what was recorded is no JSON.
        OSError: there is no kernel for it.
        AssertionError: a case failed.
    """
    vmlinuz, _, version = matrix.kernel(row)
    results = base.parent / "results"
    code, output = machine.run(vmlinuz, version, base, COMMAND, memory=512, results=results)
    assert code == 0, output
    recorded = json.loads(results.read_text())
    name = row.rpartition(":")[0]
    file = LOGS / f"{recorded['release'] if '/' in name else name}-{version}.json"
    file.write_text(json.dumps(recorded, indent=1) + "\n")
    return file


def main() -> int:
    """The program; 1 where a row failed, 2 where nothing could be tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.record_logs")
    parser.add_argument("rows", nargs="*", default=matrix.ROWS)
    arguments = parser.parse_args()
    why_not = machine.missing()
    if why_not:
        print(f"no virtual machines: {why_not}", file=sys.stderr)
        return 2
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        hog = Path(directory, "hog")
        subprocess.run(["gcc", "-O2", "-static", "-o", hog, machine.ROOT / "tests" / "hog.c"], check=True)
        base = machine.initramfs(Path(directory), str(hog))
        for row in arguments.rows:
            try:
                file = record(row, base)
            except (OSError, ValueError, AssertionError, subprocess.SubprocessError) as error:
                failed = True
                print(f"{row}: FAILED: {error}", flush=True)
            else:
                print(f"{row}: {file.relative_to(machine.ROOT)}, {file.stat().st_size} bytes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
