"""The fake kernel with cgroups of version 2, whose counters the test moves itself; inotify tells of them as it does.

Not played are the limit of one wake-up in 10 ms, and that rmdir(2) cancels one that is pending.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.fake.fake_kernel import FakeKernel

KEYS = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")


class FakeV2Kernel(FakeKernel):
    """As FakeKernel; the topmost cgroup stands for one that is not the hierarchy's root."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, monkeypatch, version=2)

    def make_v2(self, name: str = "a") -> FakeV2Cgroup:
        """A new cgroup with the memory controller on, by its path from the root."""
        return FakeV2Cgroup(self.root / name, self)

    def bury(self, path: Path) -> None:
        """As FakeKernel; but nothing is told of one that came and went under the name."""
        stand_in = self._graves / "stand-in"
        stand_in.mkdir()
        path.rename(self._graves / f"{time.monotonic_ns()}-{path.name}")
        stand_in.rename(path)
        path.rmdir()


class FakeV2Cgroup:
    """One cgroup of version 2."""

    def __init__(self, path: Path, kernel: FakeV2Kernel) -> None:
        self.path = path
        self.kernel = kernel
        self.local = dict.fromkeys(KEYS, 0)
        path.mkdir()
        (path / "cgroup.procs").touch()
        (path / "cgroup.subtree_control").write_text("memory\n")
        (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
        self.switch_on()

    def switch_off(self) -> None:
        """Has the cgroup above write -memory to its cgroup.subtree_control."""
        for name in ("memory.events.local", "memory.events"):
            (self.path / name).rename(self.kernel._graves / f"{time.monotonic_ns()}-{name}")
        (self.path.parent / "cgroup.subtree_control").write_text("\n")

    def switch_on(self) -> None:
        """The same with +memory; the counters begin at 0."""
        self.local = dict.fromkeys(KEYS, 0)
        for name in ("memory.events.local", "memory.events"):
            _write(self.path / name, self.local)
        if (control := self.path.parent / "cgroup.subtree_control").exists():
            control.write_text("memory\n")

    def count(self, **more: int) -> None:
        """Moves its counters, and those of all that it is in; kills move the host's first."""
        if kills := more.get("oom_kill", 0):
            self.kernel.host_killed(kills)
        for key, number in more.items():
            self.local[key] += number
        _write(self.path / "memory.events.local", self.local)
        at = self.path
        while (at / "memory.events").exists():
            lines = (line.split() for line in (at / "memory.events").read_text().splitlines())
            counters = {key: int(value) for key, value in lines}
            _write(at / "memory.events", {key: value + more.get(key, 0) for key, value in counters.items()})
            at = at.parent

    def rmdir(self) -> None:
        """Removes it."""
        self.kernel.bury(self.path)


def _write(file: Path, counters: dict[str, int]) -> None:
    """In place and with one write, so that the file stays the same one and is never seen half written."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, "".join(f"{key} {value}\n" for key, value in counters.items()).encode())
    finally:
        os.close(fd)
