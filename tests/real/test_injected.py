"""System calls that strace(1) has the kernel refuse, of a monitor of real cgroups: nothing is lost, nothing is left."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE, is_v2, kills_of, make, remove, run_hog

WORKER = Path(__file__).parents[1] / "faults" / "injected.py"
# As the kernel names the calls. What they fail with is no word of a cgroup's end.
ERRORS = {
    "openat": ["EMFILE", "ENOMEM"],
    "open_by_handle_at": ["ENOMEM", "ESTALE"],
    "pread64": ["ENOMEM"],
    "newfstatat": ["ENOMEM"],
    "fstat": ["ENOMEM"],
    "eventfd2": ["EMFILE"],
    "epoll_ctl": ["ENOSPC"],
    "epoll_wait": ["EINTR"],
    "inotify_add_watch": ["ENOSPC"],
    "fanotify_init": ["EMFILE"],
    "fanotify_mark": ["ENODEV"],
    "getdents64": ["ENOMEM"],
    "timerfd_settime": ["ECANCELED"],
    "write": ["ENOMEM"],
}
# What fails when, with what before it.
SCENARIOS = {"register": [], "watch": [], "watch_tree": [], "wait": ["watch"]}


class Worker:
    """The process with the monitor."""

    def __init__(self, hog: str) -> None:
        self.hog = hog
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command: list[str | Path] = [sys.executable, "-W", "ignore", WORKER, str(other.fileno()), str(PATIENCE)]
            self.process = subprocess.Popen(command, pass_fds=[other.fileno()])

    def tell(self, name: str, cgroup: Path) -> dict[str, Any]:
        self._socket.send(json.dumps([name, os.fspath(cgroup)]).encode())
        answer: dict[str, Any] = json.loads(self._socket.recv(1 << 16))
        assert "failed" not in answer, answer["failed"]
        return answer

    def ask(self, name: str, cgroup: Path) -> Any:
        """The same, of what must not fail."""
        answer = self.tell(name, cgroup)
        assert "errno" not in answer, (name, errno.errorcode[answer["errno"]])
        return answer["result"]

    def close(self) -> None:
        self._socket.close()
        self.process.wait()


@pytest.fixture(scope="module")
def worker(hog: str) -> Iterator[Worker]:
    one = Worker(hog)
    yield one
    one.close()


@contextmanager
def traced(pid: int, log: Path, *options: str) -> Iterator[None]:
    """Has strace look at a process meanwhile."""
    command: list[str | Path] = ["strace", "-p", str(pid), "-e", "signal=none", "-o", log, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        assert "attached" in said, said
        yield
        strace.terminate()


def play(worker: Worker, cgroup: Path, scenario: str, log: Path, *options: str) -> int | None:
    """One cgroup, from its making to its end, with strace at work once; what errno that has led to."""
    fds = worker.ask("begin", cgroup)
    for before in SCENARIOS[scenario]:
        worker.ask(before, cgroup)
    kills = 0
    if scenario == "wait":
        run_hog(worker.hog, cgroup)
        kills = 1
    with traced(worker.process.pid, log, *options):
        answer = worker.tell(scenario, cgroup)
    raised: int | None = answer.get("errno")
    if scenario in ("watch", "watch_tree"):
        if raised is not None:
            assert worker.ask("watches", cgroup) == 0
            worker.ask(scenario, cgroup)
        run_hog(worker.hog, cgroup)
        kills = 1
    if kills:
        _, told = worker.ask("until_killed", cgroup)
        assert told == kills_of(cgroup) == kills
    remove(cgroup)
    if kills:
        _, told = worker.ask("until_removed", cgroup)
        assert told == kills
    assert worker.ask("begin", cgroup) == fds
    return raised


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_refused_system_call(
    worker: Worker, playground: Path, tmp_path: Path, figure: dict[str, object], scenario: str
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("apt-get install strace")
    if scenario == "register" and is_v2(playground):
        pytest.skip("cgroup v2 has no registrations")
    log = tmp_path / "log"
    number = 0

    def one(*options: str) -> int | None:
        nonlocal number
        number += 1
        cgroup = make(playground / f"injected_{scenario}_{number}", "4M")
        return play(worker, cgroup, scenario, log, *options)

    one("-e", f"trace={','.join(ERRORS)}")  # what is imported late is
    one("-e", f"trace={','.join(ERRORS)}")
    calls = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    faults = raised = 0
    for call, errors in ERRORS.items():
        for nth in range(1, calls.count(call) + 1):
            for name in errors:
                number_raised = one("-e", f"trace={call}", "-e", f"inject={call}:error={name}:when={nth}")
                if "(INJECTED)" in log.read_text():
                    faults += 1
                    raised += number_raised is not None
                    assert number_raised in (None, getattr(errno, name), errno.EAGAIN), (call, nth, name)
                else:
                    assert number_raised is None
    figure["faults"] = faults
    figure["raised"] = raised
    assert faults
