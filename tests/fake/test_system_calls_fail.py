"""Each system call fails once, in each place, with each errno: in the C core alone, and under the package.

The scenarios, and what must hold in them, are in tests/faults: core.c and user.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.faults.user import SCENARIOS

HERE = Path(__file__).parents[1] / "faults"
CORE = Path(__file__).parents[2] / "csrc"
TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
SOURCES = ("event_control.c", "wait_loop.c", "control_file.c", "discovery.c", "memory_events.c", "triggers.c")
# Beside each other: a scenario waits for the kernel, which takes its time to close an inotify instance.
PROCESSES = 4

# The scenario, the call, the errno, what came of it.
Fault = tuple[str, str, str, str]


def compiled(folder: Path, name: str, *arguments: str | Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail("the tests need a C compiler: apt-get install gcc")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("what stands in for the system calls has glibc's names")
    path = folder / name
    command = [compiler, "-std=c11", "-O1", f"-I{CORE}", "-o", path, *arguments, HERE / "interpose.c", "-ldl"]
    subprocess.run(command, check=True)
    return path


def faults(text: str) -> list[Fault]:
    return [
        (name, call, error, outcome) for name, call, error, outcome in (line.split("\t") for line in text.splitlines())
    ]


@pytest.fixture(scope="module")
def of_core(tmp_path_factory: pytest.TempPathFactory) -> list[Fault]:
    """What came of every fault in the core; or why that was not as it must be."""
    if not CORE.exists():
        pytest.skip("the tests were copied without the C core (csrc)")
    driver = compiled(tmp_path_factory.mktemp("core"), "core", HERE / "core.c", *(CORE / name for name in SOURCES))
    run = subprocess.run([driver, tmp_path_factory.mktemp("cgroups")], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return faults(run.stdout)


@pytest.fixture(scope="module")
def of_package(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Fault], str]:
    """The same of the package; and what was not as it must be, of all scenarios."""
    library = compiled(tmp_path_factory.mktemp("interpose"), "interpose.so", "-shared", "-fPIC")
    names = list(SCENARIOS)
    runs = [
        subprocess.Popen(
            [sys.executable, HERE / "user.py", library, tmp_path_factory.mktemp("user"), *names[part::PROCESSES]],
            env={**os.environ, "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in range(PROCESSES)
    ]
    said = [run.communicate()[0] for run in runs]
    lines = [line for text in said for line in text.splitlines()]
    told = "\n".join(line for line in lines if line.count("\t") == 3)
    wrong = "\n".join(line for line in lines if line.count("\t") != 3)
    assert wrong or not any(run.returncode for run in runs)
    return faults(told), wrong


def test_in_the_core(of_core: list[Fault], figure: dict[str, object]) -> None:
    figure["faults"] = len(of_core)
    figure["calls"] = len({call for _, call, _, _ in of_core})
    figure["scenarios"] = len({name for name, _, _, _ in of_core})
    assert len(of_core) > 1500


def test_under_the_package(of_package: tuple[list[Fault], str], figure: dict[str, object]) -> None:
    found, wrong = of_package
    figure["faults"] = len(found)
    figure["calls"] = len({call for _, call, _, _ in found})
    figure["scenarios"] = len({name for name, _, _, _ in found})
    figure.update(sorted(Counter(outcome for _, _, _, outcome in found).items()))
    assert not wrong, wrong
    assert {name for name, _, _, _ in found} == set(SCENARIOS)


def written(of_core: list[Fault], of_package: list[Fault]) -> str:
    """The table, as it stands in the documentation: without numbers, which are another Python's otherwise."""
    core: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    package: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for table, found in ((core, of_core), (package, of_package)):
        for _, call, error, outcome in found:
            table[call, error].add(outcome)
    rows = [
        f"| `{call}` | {error} | {'; '.join(sorted(core[call, error]))} | {', '.join(sorted(package[call, error]))} |"
        for call, error in sorted(core.keys() | package.keys())
    ]
    return "\n".join([*INTRODUCTION.splitlines(), *rows, ""])


INTRODUCTION = """\
# When a system call fails

Written by `make faults`, from what the tests have seen; see [reliability.md](reliability.md). Each call was made to
fail once in each place where the core, or the package, makes it. Where there is nothing, it is not called there, or
does not fail with that.

- **-errno**: the function, or the row of it, returns the errno, and nothing of it is left.
- **raised**: an `OSError` with the errno; nothing of what was called for is left, and the next try succeeds. Where the
  errno says that a cgroup is gone it is a `FileNotFoundError`.
- **Degraded**: the event says what cannot be done; all kills are told all the same.
- **tolerated**: tried again, or done in another way. Nothing is told of it, and nothing is lost.

| call | errno | the C core | the package |
|---|---|---|---|"""


def test_the_table_is_current(of_core: list[Fault], of_package: tuple[list[Fault], str]) -> None:
    table = written(of_core, of_package[0])
    if os.environ.get("MEMCG_OOM_WRITE_FAULTS"):
        TABLE.write_text(table)
    elif not TABLE.parent.exists():
        pytest.skip("the tests were copied without their documentation")
    assert TABLE.read_text() == table, "make faults writes it anew"
