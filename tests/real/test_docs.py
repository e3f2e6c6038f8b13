"""What the documentation says: its programs are run, with real kills, and print what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from memcg_oom import Cgroup
from tests.pages import blocks
from tests.support import Dial, eventually, make, remainder, remove

ROOT = Path(__file__).parents[2]
MEMORY = "/sys/fs/cgroup/memory"  # as the documentation has it
INTERVAL = 5.0  # seconds after which the kernel names the cgroups of victims again


@dataclass(frozen=True)
class Program:
    """A program of a page, and what the page says that it prints; None where it does not say."""

    page: str
    line: int
    text: str
    prints: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def programs() -> list[Program]:
    """Those that watch a cgroup called web, which is for whoever runs them to make, fill and remove."""
    found = []
    for page in pages():
        name = os.fspath(page.relative_to(ROOT))
        if name in ("docs/notifications.md", "docs/tutorial.md"):
            continue  # which have tests of their own
        listed = blocks(page)
        for number, (language, text, line) in enumerate(listed):
            if language == "python":
                behind = next((one for one in listed[number + 1 :] if one[0] != "sh"), None)
                found.append(Program(name, line, text, behind[1] if behind and not behind[0] else None))
    return found


def eventfds(pid: int) -> int:
    """How many a process has: a monitor has one for itself, and one for each cgroup that it watches."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sum("eventfd" in one for one in found)


def fill(cgroup: Path) -> None:
    """As the README does it."""
    subprocess.run(["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec tail /dev/zero', cgroup], check=False)


@pytest.mark.parametrize("program", programs(), ids=str)
def test_a_program(memcg1: Path, program: Program) -> None:
    web = make(memcg1 / "web", "32M")
    text = program.text.replace(MEMORY, os.fspath(memcg1))
    with (
        subprocess.Popen(
            [sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdout is not None
        wanted = 1 if "register(" in program.text else 2 + ("uvloop" in program.text)
        eventually(lambda: process.poll() is not None or eventfds(process.pid) >= wanted)
        assert process.poll() is None, process.communicate()[1]
        if "victim" in program.text:
            time.sleep(INTERVAL)
        fill(web)
        # All that is said before the cgroup goes.
        said = 1 if program.prints is None else sum("gone" not in line for line in program.prints.splitlines())
        out = "".join(process.stdout.readline() for _ in range(said))
        remove(web)
        ends = "Removed" in program.text or "register(" in program.text
        if not ends:
            process.terminate()
        more, errors = remainder(process)
    assert process.returncode == (0 if ends else -signal.SIGTERM), errors
    assert not errors
    out = (out + more).replace(os.fspath(memcg1), MEMORY)
    assert out == program.prints if program.prints is not None else out.strip()


def test_the_shell_in_the_readme(memcg1: Path) -> None:
    """What it has people type makes, fills and removes the cgroup that its program watches."""
    listed = [text for language, text, _ in blocks(ROOT / "README.md") if language == "sh" and "/web" in text]
    make_it, _, fill_it, remove_it = "".join(listed).replace(MEMORY, os.fspath(memcg1)).splitlines()
    subprocess.run(["sh", "-c", make_it], check=True)
    assert Cgroup(memcg1 / "web").limit == 32 << 20
    assert subprocess.run(["sh", "-c", fill_it], check=False).returncode == 128 + signal.SIGKILL
    subprocess.run(["sh", "-c", remove_it], check=True)
    assert not (memcg1 / "web").exists()


def test_the_program_of_the_alarms(memcg1: Path, hog: str) -> None:
    """It wants a cgroup that fills slowly."""
    (text,) = (text for language, text, _ in blocks(ROOT / "docs" / "notifications.md") if language == "python")
    cgroup = make(memcg1 / "web", "64M")
    text = text.replace(MEMORY, os.fspath(memcg1))
    with subprocess.Popen([sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            eventually(lambda: eventfds(process.pid) == 3)  # its bell and the two
            with Dial(hog, cgroup) as dial:
                dial.set(62 << 20)
                assert re.fullmatch(r"nearly full: \d+ bytes\n", process.stdout.readline())
            remove(cgroup)
            assert "some room again\n" in remainder(process)[0]
            assert process.returncode == 0
        finally:
            process.kill()


def test_the_tutorial(memcg: Path, tmp_path: Path) -> None:
    """Step by step: programs are saved by the names that it gives them, and what is to be typed is typed."""
    page = ROOT / "docs" / "tutorial.md"
    names = re.findall(r"`(\w+\.py)`:?\n", page.read_text())
    listed = blocks(page)
    steps = 0
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, what in (("python3", ""), ("memcg-oom", " -m memcg_oom")):
        python = os.path.join(os.path.dirname(sys.executable), "python3")
        (programs / name).write_text(f'#!/bin/sh\nexec {python}{what} "$@"\n')
        (programs / name).chmod(0o755)
    time.sleep(INTERVAL)
    for number, (language, text, line) in enumerate(listed):
        if language == "python":
            (tmp_path / names.pop(0)).write_text(text)
        if language == "sh":
            typed = text.replace(f"{MEMORY}/tutorial", os.fspath(memcg / "tutorial"))
            done = subprocess.run(
                ["sh", "-c", typed],
                cwd=tmp_path,
                env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            expected = listed[number + 1]
            assert not expected[0], f"line {line}: nothing says what it prints"
            assert without_figures(done.stdout) == without_figures(expected[1])
            steps += 1
    assert not names
    assert steps >= 4


def without_figures(text: str) -> str:
    """Pids and sizes differ from run to run."""
    return re.sub(r"\[\d+\]|\d+(\.\d+)? MiB", "#", text)
