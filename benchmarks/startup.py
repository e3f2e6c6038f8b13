"""How much longer does Python take to start when it imports memcg_oom?

From the start of `python -I -c` to its end, on its own and with `import memcg_oom`; for scale, with
`import dataclasses` and with `import asyncio`, which the package does not import before somebody iterates in a loop.

It is the interpreter that the virtual environment was made from, which is told where the package and cffi are: what an
editable installation adds to the start of every interpreter is not the package's.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import memcg_oom
from benchmarks import common

OURS = "import memcg_oom"
BARE = "bare interpreter"
ASYNCIO = "import asyncio"
DATACLASSES = "import dataclasses"
TARGET = 20  # milliseconds over a bare interpreter

MS = ("milliseconds", 1_000_000)
BLOCK = 20  # starts of each in a round


def main() -> None:
    args = common.parser(__doc__, rounds=5, each=f"{BLOCK} starts of each").parse_args()
    where = [str(Path(one).parent) for one in (Path(memcg_oom.__file__).parent, _file("cffi").parent)]
    prepare = f"import sys; sys.path += {where!r}; "
    statements = {BARE: "pass", OURS: OURS, ASYNCIO: ASYNCIO, DATACLASSES: DATACLASSES}

    def run(name: str) -> int:
        command = [_interpreter(), "-I", "-c", prepare + statements[name]]
        before = time.monotonic_ns()
        subprocess.run(command, check=True)
        return time.monotonic_ns() - before

    common.shuffled(1, statements, run)  # whatever is not in the page cache yet
    rounds = [common.shuffled(BLOCK, statements, run) for _ in range(args.rounds)]
    median = {name: [common.quantile(one[name], 0.5) for one in rounds] for name in statements}
    more = {name: [a - b for a, b in zip(median[name], median[BARE], strict=True)] for name in statements}
    common.report(
        "Starting Python",
        MS,
        {name: common.distribution([taken for one in rounds for taken in one[name]]) for name in statements},
        [
            common.figure(f"{OURS}, over {BARE}", more[OURS], MS, TARGET),
            common.figure(f"{ASYNCIO}, over {BARE}", more[ASYNCIO], MS),
            common.figure(f"{DATACLASSES}, over {BARE}", more[DATACLASSES], MS),
            common.ratio(f"{OURS}, as a multiple of {BARE}", median[OURS], median[BARE]),
            common.ratio(f"{ASYNCIO}, as a multiple of {BARE}", median[ASYNCIO], median[BARE]),
        ],
        args.json,
    )


def _interpreter() -> str:
    base: str = getattr(sys, "_base_executable", "") or sys.executable
    return base


def _file(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None  # memcg_oom has it
    assert spec.origin is not None  # a package of files
    return Path(spec.origin)


if __name__ == "__main__":
    main()
