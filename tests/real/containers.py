"""Containers of real runtimes, each with a memory limit, that run out of memory when they are told to.

with runc(rootfs, parent) as container:  # or ctr, or podman
    ...  # container.cgroup exists, and nothing in it needs memory
    container.start()
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memcg_oom.mounts import memory_mount
from tests.support import PATIENCE, SWAP, eventually, is_v2, put

LIMIT = 64 << 20  # runc's own init is in the cgroup until the container starts, and takes up to 16 MiB
HOG = ("/bin/tail", "/dev/zero")  # a line without end, which tail keeps in memory

# The programs of each runtime, and the Debian packages that have them.
PROGRAMS = {
    "runc": {"runc": "runc", "busybox": "busybox-static"},
    "ctr": {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "busybox": "busybox-static"},
    "podman": {"podman": "podman", "conmon": "conmon", "runc": "runc", "busybox": "busybox-static"},
}

# runc leaves the container to whoever reaps orphans, and nobody would learn its exit code. So this one adopts it.
SHEPHERD = """
import ctypes, os, subprocess, sys
pid_file, *create = sys.argv[1:]
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
subprocess.run(create, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print("created", flush=True)
_, status = os.waitpid(int(open(pid_file).read()), 0)
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
"""


def missing(runtime: str) -> str:
    """Why a runtime cannot run here; empty where it can."""
    packages = {package: None for program, package in PROGRAMS[runtime].items() if shutil.which(program) is None}
    busybox = shutil.which("busybox")
    if busybox is not None:
        with open(busybox, "rb") as file:
            if b"/ld-" in file.read(4096):  # the name of a dynamic linker, which a rootfs of one file has not
                packages["busybox-static"] = None
    return f"missing: apt-get install --no-install-recommends {' '.join(packages)}" if packages else ""


def build_rootfs(directory: Path) -> Path:
    """Makes the file system that all containers share: busybox, and where things are mounted."""
    for name in ("bin", "dev", "etc", "gate", "proc", "run", "sys", "tmp"):
        (directory / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", directory / "bin" / "busybox")
    for name in ("cat", "sh", "sleep", "tail"):
        (directory / "bin" / name).symlink_to("busybox")
    return directory


class Container(ABC):
    """A container that was made and does nothing yet.

    Attributes:
        id: as the runtime knows it.
        cgroup: its memory cgroup, which exists.
    """

    def __init__(self, rootfs: Path, parent: Path, folder: Path) -> None:
        self.id = 2 * uuid.uuid4().hex  # as long as those that Docker and containerd give
        self.cgroup = parent / self.id
        self._rootfs = rootfs
        self._parent = parent
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment: dict[str, str] = {}
        mount = memory_mount()
        assert mount is not None, "no memory cgroups"
        self.within = parent.relative_to(mount.point)  # where it is, in each hierarchy

    @abstractmethod
    def create(self) -> None:
        """Makes the container, its cgroup and whoever reports."""

    @abstractmethod
    def start(self) -> None:
        """Lets it run out of memory; may return only when it has."""

    @abstractmethod
    def wait(self) -> int:
        """Waits for its end and returns its exit code, 128 and the number of a signal if by that."""

    @abstractmethod
    def reports(self) -> list[dict[str, Any]]:
        """What the runtime has said of the container's OOMs so far; it says so some time after the kill."""

    @abstractmethod
    def remove(self) -> None:
        """Has the runtime remove it and its cgroup, if it has not done so at the container's end."""

    @abstractmethod
    def end(self) -> None:
        """Has the runtime kill and forget it, in whatever state."""

    def close(self) -> None:
        """Ends whatever is left of it, in the order in which nothing is made anew."""
        self.end()
        for process in reversed(self._processes):
            with suppress(subprocess.TimeoutExpired):
                process.terminate()
                process.wait(10)
            process.kill()
            process.wait()
        # What a failure has left: shims and conmon have the folder's name in their arguments.
        for pid in _mentioning(self._folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in _mounts_below(self._folder):
            subprocess.run(["umount", "-l", point], check=False)

    def _try(self, command: Iterable[str | Path]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, whichever."""
        return subprocess.run(
            [*command],
            check=False,
            env={**os.environ, **self._environment},
            cwd=self._folder,  # where conmon leaves a file
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def _run(self, *command: str | Path) -> str:
        """Runs a command to its end and returns what it printed."""
        done = self._try(command)
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def _spawn(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Starts a command in the background; its output is in the folder, under its number."""
        number = len(self._processes)
        with (self._folder / f"out{number}").open("wb") as out, (self._folder / f"err{number}").open("wb") as err:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self._processes.append(process)
        return process

    def _lines(self, process: subprocess.Popen[bytes]) -> list[str]:
        """The whole lines that it has printed so far."""
        out = (self._folder / f"out{self._processes.index(process)}").read_bytes().decode()
        return out[: out.rfind("\n") + 1].splitlines()

    def _await_line(self, process: subprocess.Popen[bytes]) -> None:
        """Waits until it has printed something."""

        def has_printed() -> bool:
            self._check_runs(process)
            return bool(self._lines(process))

        eventually(has_printed)

    def _check_runs(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            complaints = (self._folder / f"err{self._processes.index(process)}").read_text()
            raise AssertionError(f"{process.args!r} ended with {process.returncode}: {complaints}")


class Runc(Container):
    """runc alone, as whoever calls it sees it."""

    def create(self) -> None:
        bundle, pid_file = self._folder / "bundle", self._folder / "pid"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._config()))
        # On the initramfs of a virtual machine pivot_root(2) fails.
        create = self._command("create", "--no-pivot", "--bundle", bundle, "--pid-file", pid_file, self.id)
        self._shepherd = self._spawn(sys.executable, "-ISc", SHEPHERD, pid_file, *create)
        self._await_line(self._shepherd)
        # Only when it has registered for OOMs it prints figures.
        self._events = self._spawn(*self._command("events", "--interval", "50ms", self.id))
        self._await_line(self._events)

    def _config(self) -> dict[str, Any]:
        return {
            "ociVersion": "1.0.2",
            "root": {"path": os.fspath(self._rootfs), "readonly": True},
            "process": {"user": {"uid": 0, "gid": 0}, "args": HOG, "env": ["PATH=/bin"], "cwd": "/"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=64k"]},
            ],
            "linux": {
                "cgroupsPath": f"/{self.within}/{self.id}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
                "resources": {"memory": {"limit": LIMIT}},
            },
        }

    def _command(self, *arguments: str | Path) -> list[str | Path]:
        return ["runc", "--root", self._folder / "state", *arguments]

    def start(self) -> None:
        self._run(*self._command("start", self.id))

    def wait(self) -> int:
        return self._shepherd.wait(PATIENCE)

    def reports(self) -> list[dict[str, Any]]:
        events: Iterable[dict[str, Any]] = map(json.loads, self._lines(self._events))
        return [event for event in events if event["type"] == "oom" and event["id"] == self.id]

    def remove(self) -> None:
        self._run(*self._command("delete", self.id))

    def end(self) -> None:
        self._try(self._command("delete", "--force", self.id))


class Ctr(Container):
    """A containerd of its own, and its client ctr; the container is removed when it ends."""

    def create(self) -> None:
        config = self._folder / "config.toml"
        # Without what Kubernetes needs of it; it would want a network.
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        state = ("--root", self._folder / "root", "--state", self._folder / "state")
        daemon = self._spawn("containerd", "--config", config, "--address", self._folder / "sock", *state)

        def answers() -> bool:
            self._check_runs(daemon)
            return self._try(self._command("version")).returncode == 0

        eventually(answers)
        self._events = self._spawn(*self._command("events"))

        def hears() -> bool:
            self._check_runs(self._events)
            self._run(*self._command("namespaces", "label", "default", f"probe={uuid.uuid4().hex}"))
            return bool(self._lines(self._events))

        self._run(*self._command("namespaces", "create", "default"))
        eventually(hears)
        gate = self._folder / "gate"
        gate.mkdir()
        os.mkfifo(gate / "fifo")
        self._task = self._spawn(
            *self._command("run", "--rm", "--null-io", "--rootfs"),
            *("--cgroup", f"/{self.within}/{self.id}", "--memory-limit", str(LIMIT)),
            *("--mount", f"type=bind,src={gate},dst=/gate,options=rbind:ro"),
            *(self._rootfs, self.id, "/bin/sh", "-c", f"read _ < /gate/fifo; exec {' '.join(HOG)}"),
        )

        def waits() -> bool:
            self._check_runs(self._task)
            with suppress(OSError):  # ENXIO: nobody has opened it for reading
                self._gate = os.open(gate / "fifo", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return self._gate >= 0

        eventually(waits)

    _gate = -1  # once the container waits for it

    def _command(self, *arguments: str | Path) -> list[str | Path]:
        return ["ctr", "--address", self._folder / "sock", *arguments]

    def start(self) -> None:
        os.write(self._gate, b"\n")

    def wait(self) -> int:
        return self._task.wait(PATIENCE)

    def reports(self) -> list[dict[str, Any]]:
        events = [re.search(r" (/\S+) (\{.*\})$", line) for line in self._lines(self._events)]
        reports = [{"topic": event[1], **json.loads(event[2])} for event in events if event is not None]
        return [report for report in reports if report["topic"] == "/tasks/oom" and report["container_id"] == self.id]

    def remove(self) -> None:
        self.wait()

    def end(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
        for command in (("task", "rm", "--force"), ("container", "rm")):
            self._try(self._command(*command, self.id))


class Podman(Container):
    """podman with runc; conmon watches the container and has its cgroup removed when it ends."""

    def prepare(self) -> None:
        """Settings that podman needs here, and a name."""
        self.id = f"memcg_oom_{self.id[:12]}"  # a name: podman gives the id itself
        # Its own file of locks: the one in shared memory is the host's. And since version 5 it would not run on v1.
        config = self._folder / "containers.conf"
        config.write_text('[engine]\nlock_type = "file"\n')
        self._environment = {"CONTAINERS_CONF": os.fspath(config), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}

    def create(self) -> None:
        self.prepare()
        self._run(
            *self._command("create", "--rootfs", "--name", self.id, "--cgroup-parent", f"/{self.within}"),
            *("--memory", str(LIMIT), "--network", "none", "--no-hosts", "--log-driver", "none"),
            *("--ulimit", "nofile=1024:2048", "--ulimit", "nproc=1000:2000"),  # podman's own are more than root may
            *(self._rootfs, *HOG),
        )
        self._run(*self._command("init", self.id))
        self.id = str(self._inspect()["Id"])
        self.cgroup = self._parent / f"libpod-{self.id}"

    def _command(self, *arguments: str | Path) -> list[str | Path]:
        folders = {"root": "root", "runroot": "run", "tmpdir": "tmp", "network-config-dir": "networks"}
        return [
            "podman",
            *(f"--{option}={self._folder / folder}" for option, folder in folders.items()),
            # runc keeps its state where it always does: conmon's clean-up would not know of a --runtime-flag.
            *("--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"),
            *arguments,
        ]

    def _inspect(self) -> dict[str, Any]:
        (inspected,) = json.loads(self._run(*self._command("container", "inspect", self.id)))
        return dict(inspected)

    def start(self) -> None:
        self._run(*self._command("start", self.id))

    def wait(self) -> int:
        return int(self._run(*self._command("wait", self.id)))

    def reports(self) -> list[dict[str, Any]]:
        """Of what conmon has noted, of the events, which podman keeps in a file, and of the container's state.

        conmon 2.1.6 makes a file "oom" in the folder that podman was called in; podman 4.3 looks for it elsewhere, so
        that it says nothing itself.
        """
        said = self._run(*self._command("events", "--stream=false", "--format=json", f"--filter=container={self.id}"))
        reports = [event for event in map(json.loads, said.splitlines()) if event["Status"] == "oom"]
        state = self._inspect()["State"]
        if state["OOMKilled"]:
            reports.append(state)
        if (self._folder / "oom").exists():
            reports.append({"conmon": "oom"})
        return reports

    def remove(self) -> None:
        self._run(*self._command("rm", self.id))

    def end(self) -> None:
        self._try(self._command("rm", "--force", "--time=0", "--ignore", self.id))


@contextmanager
def made(kind: type[Container], rootfs: Path, parent: Path) -> Iterator[Container]:
    # A short name: that of a socket must have less than 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="memcg_oom_"))
    try:
        container = kind(rootfs, parent, folder)
        try:
            container.create()
            _forbid_swap(container.cgroup)
            yield container
        finally:
            container.close()
            _remove_cgroups(container.within, keep=parent)
    finally:
        shutil.rmtree(folder)


def _forbid_swap(cgroup: Path) -> None:
    """So that the limit is soon reached, as support.make() does it."""
    if len(SWAP.read_text().splitlines()) > 1:
        put(*((cgroup / "memory.swap.max", "0") if is_v2(cgroup) else (cgroup / "memory.swappiness", "0")))


def _remove_cgroups(within: Path, keep: Path) -> None:
    """Removes what runtimes have made in each hierarchy below a cgroup of ours, and that one in all but the first."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        top = Path(point) / within
        for directory, _, _ in os.walk(top, topdown=False):
            if not (Path(directory) / "cgroup.procs").exists() or keep.samefile(directory):
                continue
            eventually(lambda directory=directory: _emptied(Path(directory)))  # type: ignore[misc]
        for above in within.parents[:-1]:
            with suppress(OSError):  # others of ours are in it: whoever made them removes them
                (Path(point) / above).rmdir()


def _emptied(cgroup: Path) -> bool:
    """Whether it is gone, killing what is in it."""
    with suppress(FileNotFoundError):
        for pid in (cgroup / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):  # EBUSY: what was killed has not exited yet
            cgroup.rmdir()
    return not cgroup.exists()


def _mentioning(folder: Path) -> list[int]:
    """The processes whose arguments have a path in the folder."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(folder) in path.read_bytes():
                pids.append(int(path.parent.name))
    return pids


def _mounts_below(folder: Path) -> list[str]:
    """What is mounted in the folder, the last one first."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]


@contextmanager
def runc(rootfs: Path, parent: Path) -> Iterator[Container]:
    """A container of runc's in a cgroup below the parent."""
    with made(Runc, rootfs, parent) as container:
        yield container


@contextmanager
def ctr(rootfs: Path, parent: Path) -> Iterator[Container]:
    """A container of containerd's in a cgroup below the parent."""
    with made(Ctr, rootfs, parent) as container:
        yield container


@contextmanager
def podman(rootfs: Path, parent: Path) -> Iterator[Container]:
    """A container of podman's in a cgroup below the parent."""
    with made(Podman, rootfs, parent) as container:
        yield container


RUNTIMES = {"runc": runc, "ctr": ctr, "podman": podman}
