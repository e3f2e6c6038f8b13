"""A benchmark that runs in a virtual machine, where this host cannot run it.

The machine (tests/vm) is emulated instruction by instruction: times are long and only their ratios mean something.
Sizes are what they are.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common
from tests.vm import machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

# Of kernels, as tests.vm.machine has them: the newest of Debian's that has the memory controller in this version.
SERIES = {"v1": "6.1", "v2": "newest"}
PATIENCE = 1200.0  # seconds after which the machine counts as hung


def run(
    script: str,
    arguments: Iterable[object],
    version: str,
    *,
    memory: int,
    before: str = "",
    programs: Mapping[str, Path] | None = None,
    packages: Iterable[Path] = (),
) -> dict[str, Any]:
    """The document of a script, as run in a virtual machine.

    Args:
        script: its name in benchmarks.
        arguments: for it.
        version: "v1" or "v2": which has the memory controller.
        memory: the machine's, in MiB.
        before: what the shell is to do ahead of it.
        programs: sources in C, since the machine has no compiler, by where the programs are to be found in it.
        packages: of Python, that it needs.

    Raises:
        SystemExit: there is no machine to be had.
        RuntimeError: the script failed in it.
    """
    if why_not := machine.missing():
        raise SystemExit(f"there is no virtual machine: {why_not}")
    with tempfile.TemporaryDirectory(prefix="memcg_oom_bench_") as name:
        folder = Path(name)
        extra = folder / "extra"
        hog = folder / "hog"
        compile_program(machine.ROOT / "tests" / "hog.c", hog)
        base = machine.initramfs(folder, str(hog))
        for place, source in (programs or {}).items():
            compile_program(source, folder / source.stem)
            machine.copy(folder / source.stem, extra / place.lstrip("/"))
        machine.copy(common.HERE, extra / "work" / "benchmarks")
        for package in packages:
            machine.copy(package, extra / "work" / package.name)
        base.write_bytes(base.read_bytes() + machine.pack(extra, folder / "extra.cpio.gz").read_bytes())
        command = (
            f"echo 1 > /proc/sys/kernel/printk\n{before}\n"
            f"python3 -m benchmarks.{script} --json {' '.join(map(str, arguments))} > /results"
        )
        results = folder / "results"
        code, output = machine.run(
            machine.kernel(SERIES[version]), version, base, command, timeout=PATIENCE, memory=memory, results=results
        )
        if code:
            raise RuntimeError(f"in the virtual machine: {output}")
        document: dict[str, Any] = json.loads(results.read_text())
    here = common.machine()
    document["machine"] |= {"processor": f"emulated by QEMU on {here['processor']}", "commit": here["commit"]}
    return document


def compile_program(source: Path, program: Path) -> None:
    subprocess.run(["cc", "-std=gnu11", "-O2", "-static", "-o", program, source], check=True)


def show(document: dict[str, Any], as_json: bool) -> None:
    """Prints a document as the machine's own report would have been."""
    if as_json:
        print(json.dumps(document, indent=1))
        return
    print(f"{document['title']}\n{', '.join(f'{key} {value}' for key, value in document['machine'].items())}\n")
    common.print_table(*common.rows(document))
    print()
    common.print_table(*common.verdicts(document))
