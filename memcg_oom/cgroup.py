"""One memory cgroup as an object: what its control files say, and what can be done to it."""

from __future__ import annotations

import errno
import os
import time

from memcg_oom.errors import UnsupportedError
from memcg_oom.mounts import memory_cgroup_of, mount_of
from memcg_oom.paths import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self

    from memcg_oom.paths import StrPath

# Seconds that killed processes may take to exit; those that hold much memory take a while.
_EXIT = 10.0

# PAGE_COUNTER_MAX in bytes, or what rounding leaves of it, is how v1 writes "no limit"; no real limit comes near it.
_UNLIMITED = 2**62


class OomControl:
    """What memory.oom_control said at one moment.

    Attributes:
        oom_kill_disable: whether the OOM killer is off, so that tasks sleep instead.
        under_oom: whether tasks sleep so at this moment, here or because of a cgroup above.
        oom_kill: OOM kills in this cgroup since it was made.
    """

    __slots__ = ("oom_kill_disable", "under_oom", "oom_kill")

    def __init__(self, oom_kill_disable: bool, under_oom: bool, oom_kill: int) -> None:
        self.oom_kill_disable = oom_kill_disable
        self.under_oom = under_oom
        self.oom_kill = oom_kill

    def __repr__(self) -> str:
        return (
            f"OomControl(oom_kill_disable={self.oom_kill_disable}, under_oom={self.under_oom}, "
            f"oom_kill={self.oom_kill})"
        )


class Cgroup:
    """A memory cgroup, by its path; it need not exist yet. Nothing is kept open: each access is a look.

    Two of them are equal when their paths are.

    Synchronization: may be used from any thread.

    Args:
        path: of its directory; os.PathLike objects, Cgroups among them, will do.

    Raises:
        ValueError: an empty path, or one with a NUL.
        NotACgroupError: outside any mounted v1 memory hierarchy.
        UnsupportedError: in a cgroup v2 hierarchy.

    Every property and method raises OSError for what the kernel refuses: FileNotFoundError once the cgroup is gone,
    PermissionError, NotADirectoryError for a file.
    """

    __slots__ = ("path", "version", "_mount_point")

    def __init__(self, path: StrPath) -> None:
        self.path = absolute(path)
        mount = mount_of(self.path, _device(self.path))
        if mount.version == 2:
            raise UnsupportedError(errno.EOPNOTSUPP, "a cgroup of version 2; this release knows version 1", self.path)
        self.version = mount.version
        self._mount_point = mount.point

    @classmethod
    def of_pid(cls, pid: int | None = None) -> Self:
        """The cgroup that a process is in; None is the calling process. See proc_pid_cgroup(5).

        The kernel says "/" for a process that has exited and waits to be reaped.

        Raises:
            ProcessLookupError: there is no such process.
            UnsupportedError: no v1 memory hierarchy is mounted.
            NotACgroupError: its cgroup is outside what is mounted here.
        """
        return cls(memory_cgroup_of(pid))

    @classmethod
    def create(cls, path: StrPath) -> Self:
        """Makes a new cgroup, with mkdir(2); its parent must exist.

        Raises:
            FileExistsError, PermissionError, FileNotFoundError: as os.mkdir().
        """
        cgroup = cls(path)
        os.mkdir(cgroup.path)
        return cgroup

    def remove(self) -> None:
        """Removes it, with rmdir(2).

        Raises:
            OSError: EBUSY while it has processes or children.
        """
        os.rmdir(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return os.path.basename(self.path)

    @property
    def parent(self) -> Cgroup | None:
        """The cgroup that it is in, or None for the topmost that is mounted."""
        return None if self.path == self._mount_point else Cgroup(os.path.dirname(self.path))

    def children(self) -> list[Cgroup]:
        """The cgroups in it, by name."""
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return [Cgroup(os.path.join(self.path, name)) for name in names]

    def exists(self) -> bool:
        """Whether there is a memory cgroup at the path now."""
        return os.path.exists(self._file("memory.oom_control"))

    @property
    def usage(self) -> int:
        """Memory in use, in bytes (memory.usage_in_bytes)."""
        return int(self._read("memory.usage_in_bytes"))

    @property
    def peak(self) -> int:
        """The most that was in use so far, in bytes (memory.max_usage_in_bytes)."""
        return int(self._read("memory.max_usage_in_bytes"))

    @property
    def limit(self) -> int | None:
        """The limit in bytes (memory.limit_in_bytes), or None for no limit.

        Setting it rounds down to pages, as the kernel does. OSError: EBUSY when the usage cannot be brought below it,
        EINVAL when it is above the limit with swap (memory.memsw.limit_in_bytes), or on the root.
        """
        limit = int(self._read("memory.limit_in_bytes"))
        return None if limit >= _UNLIMITED else limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and not 0 <= limit < 2**63:
            # The kernel reads more than 64 bits as what is left of them, which may be next to nothing.
            raise ValueError(f"limit must be None or a number of bytes from 0 to 2**63 - 1, not {limit!r}")
        self._write("memory.limit_in_bytes", str(-1 if limit is None else limit))

    def oom_control(self) -> OomControl:
        """What memory.oom_control says now."""
        lines = (line.split() for line in self._read("memory.oom_control").splitlines())
        values = {line[0]: int(line[1]) for line in lines}
        return OomControl(bool(values["oom_kill_disable"]), bool(values["under_oom"]), values["oom_kill"])

    def pids(self) -> list[int]:
        """The processes in it, without those of its children (cgroup.procs)."""
        return [int(line) for line in self._read("cgroup.procs").split()]

    def kill(self) -> int:
        """Kills every process in it, without those of its children, and waits until none is left.

        Those that are forked meanwhile are killed too. They are not reaped, which is their parents' business. No other
        process is hit, even when a pid is used anew in between: each is held by a pidfd and asked for its cgroup
        before it is signalled.

        Returns:
            How many were sent SIGKILL.

        Raises:
            TimeoutError: after 10 seconds some are still there; SIGKILL does not end a frozen process, or one that
                sleeps uninterruptibly.
        """
        deadline = time.monotonic() + _EXIT
        seen: set[tuple[int, int]] = set()
        signalled = 0
        # Until all are gone: who was in the middle of fork(2) when SIGKILL came has a child that is not listed yet.
        while processes := self._processes():
            for process in processes:
                if process not in seen:
                    seen.add(process)
                    signalled += self._kill(process)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"{len(processes)} processes do not exit after SIGKILL", self._file("cgroup.procs")
                )
            time.sleep(0.001)
        return signalled

    def _kill(self, process: tuple[int, int]) -> bool:
        import signal  # noqa: PLC0415 - brings enum along, which is a third of what this package costs to import

        try:
            pidfd = os.pidfd_open(process[0])
        except ProcessLookupError:
            return False  # it has exited by itself
        try:
            if process not in self._processes():
                return False
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def _processes(self) -> list[tuple[int, int]]:
        """Each process with its start time (proc_pid_stat(5)): a pid alone may have been somebody else's before."""
        found = []
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    found.append((pid, int(file.read().rpartition(b")")[2].split()[19])))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has exited since it was listed
        return found

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _read(self, name: str) -> str:
        try:
            with open(self._file(name), "rb") as file:
                return file.read().decode("ascii")
        except OSError as error:
            raise self._explained(error, name) from None

    def _write(self, name: str, value: str) -> None:
        try:
            fd = os.open(self._file(name), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise self._explained(error, name, f", writing {value!r}") from None

    def _explained(self, error: OSError, name: str, doing: str = "") -> OSError:
        # ENODEV is what an open control file says once its cgroup is gone.
        number = errno.ENOENT if error.errno == errno.ENODEV else error.errno or errno.EIO
        return OSError(number, os.strerror(number) + doing, self._file(name))

    def __fspath__(self) -> str:
        return self.path

    def __eq__(self, other: object) -> bool:
        return self.path == other.path if isinstance(other, Cgroup) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"


def _device(path: str) -> int:
    """st_dev of the path; what does not exist yet belongs to where it would be made."""
    while True:
        try:
            return os.stat(path).st_dev
        except FileNotFoundError:
            path = os.path.dirname(path)
