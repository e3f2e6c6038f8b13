"""How much memory does `memcg-oom watch` take with 10,000 cgroups?

What the command has resident (VmRSS) when it says that it is watching, with all cgroups of a tree, against

- a bare interpreter, which is what there is before the first line of any program in Python;
- the same command with one cgroup.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = "memcg-oom watch"
ONE = "memcg-oom watch, one cgroup"
BARE = "bare interpreter"
TARGET = 25  # MB

MB = ("MB", 1_000_000)
SAID = "memcg-oom: watching "
LONGEST = 30.0  # seconds that it takes at the most to look at somebody


def main() -> None:
    args = common.parser(__doc__, rounds=5, cgroups=10_000).parse_args()
    with common.scratch(args.cgroups) as paths:
        watch = [str(Path(sys.executable).with_name("memcg-oom")), "watch"]
        bare = f"import sys, time; print({SAID!r}, file=sys.stderr, flush=True); time.sleep({LONGEST})"
        commands = {
            MANY: [*watch, os.path.dirname(paths[0])],
            ONE: [*watch, paths[0]],
            BARE: [sys.executable, "-c", bare],
        }
        found = common.shuffled(args.rounds, commands, lambda name: resident(commands[name]))

    common.report(
        f"Resident memory of a watcher of {args.cgroups} cgroups",
        MB,
        {name: common.distribution(values) for name, values in found.items()},
        [
            common.figure(MANY, found[MANY], MB, TARGET),
            common.ratio(f"{MANY}, as a multiple of {BARE}", found[MANY], found[BARE]),
            common.ratio(f"{ONE}, as a multiple of {BARE}", found[ONE], found[BARE]),
        ],
        args.json,
        base="bytes",
    )


def resident(command: list[str]) -> int:
    """Bytes, when it says that it is watching."""
    with _running(command) as process:
        assert process.stderr is not None
        if not any(line.startswith(SAID) for line in process.stderr):
            raise RuntimeError(f"{command!r} does not watch")
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.M)[0]) << 10


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
