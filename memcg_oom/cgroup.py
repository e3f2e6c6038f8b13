"""One memory cgroup as an object: what its control files say, and what can be done to it."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager, suppress

from memcg_oom.commit import close_all
from memcg_oom.errors import NotACgroupError, UnsupportedError, off_error
from memcg_oom.mounts import memory_cgroup_of, mount_of
from memcg_oom.paths import absolute
from memcg_oom.sizes import UNLIMITED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from memcg_oom.paths import StrPath

# Seconds that killed processes may take to exit; those that hold much memory take a while.
_EXIT = 10.0

# Processes that are held by descriptors at the same time.
_AT_ONCE = 256

# What v1 and v2 call the same thing.
_FILES = {
    "usage": ("memory.usage_in_bytes", "memory.current"),
    "peak": ("memory.max_usage_in_bytes", "memory.peak"),
    "limit": ("memory.limit_in_bytes", "memory.max"),
}


class OomControl:
    """What memory.oom_control said at one moment, with the names of mem_cgroup_oom_control_read().

    Synchronization: a copy, for any thread.

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

    Attributes:
        path: absolute and normal.
        version: of cgroups, 1 or 2.

    Args:
        path: of its directory; os.PathLike objects, Cgroups among them, will do.

    Raises:
        TypeError: not a path.
        ValueError: an empty path, or one with a NUL.
        NotACgroupError: outside any mounted hierarchy with the memory controller.
        OSError: what is above it may not be searched, or is no directory.

    Every property and method raises OSError for what the kernel refuses: FileNotFoundError once the cgroup is gone,
    PermissionError, NotADirectoryError for a file; NotACgroupError for what a v2 cgroup has not because the memory
    controller is off there, UnsupportedError for what this version, this kernel or the root cgroup has not.
    """

    __slots__ = ("path", "version", "_mount_point")

    def __init__(self, path: StrPath) -> None:
        self.path = absolute(path)
        mount = mount_of(self.path, _device(self.path))
        self.version = mount.version
        self._mount_point = mount.point

    @classmethod
    def of_pid(cls, pid: int | None = None) -> Self:
        """The cgroup that a process is in; None is the calling process. See proc_pid_cgroup(5).

        The kernel says "/" for a process that has exited and waits to be reaped.

        Raises:
            ProcessLookupError: there is no such process.
            UnsupportedError: no memory hierarchy is mounted.
            NotACgroupError: its cgroup is outside what is mounted here.
        """
        return cls(memory_cgroup_of(pid))

    @classmethod
    def create(cls, path: StrPath) -> Self:
        """Makes a new cgroup, with mkdir(2); its parent must exist.

        On v2 the memory controller is switched on for the children of the parent, where it is not on yet (+memory in
        its cgroup.subtree_control). It stays on when the cgroup is removed.

        Raises:
            FileExistsError, PermissionError, FileNotFoundError: as os.mkdir().
            OSError: on v2, EBUSY: there are processes in the parent itself (the no-internal-process rule).
            NotACgroupError: on v2, the memory controller is off in the parent itself. Then no cgroup is left behind.
        """
        cgroup = cls(path)
        os.mkdir(cgroup.path)
        if cgroup.version == 2:
            try:
                cgroup._switch_on()
            except BaseException:
                os.rmdir(cgroup.path)
                raise
        return cgroup

    def _switch_on(self) -> None:
        above = os.path.dirname(self.path)
        with open(os.path.join(self.path, "cgroup.controllers"), "rb") as file:
            if b"memory" in file.read().split():
                return
        with open(os.path.join(above, "cgroup.controllers"), "rb") as file:
            if b"memory" not in file.read().split():
                raise NotACgroupError(
                    errno.EINVAL,
                    "the memory controller is off there, and so for what is made in it; write +memory to "
                    f"cgroup.subtree_control of {os.path.dirname(above)}",
                    above,
                )
        switch = os.path.join(above, "cgroup.subtree_control")
        try:
            _write(switch, "+memory")
        except OSError as error:
            advice = {
                errno.EBUSY: "there are processes in the cgroup itself, so that its children cannot be controlled (the "
                "no-internal-process rule); move them into a child",
                errno.EACCES: "switching the memory controller on needs write permission; run as root, or in a "
                "delegated cgroup",
            }.get(error.errno or 0, error.strerror or "")
            raise OSError(error.errno, f"{advice}, writing '+memory'", switch) from None

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
        """The cgroup that it is in, or None for the topmost that is mounted.

        Raises:
            NotACgroupError, OSError: as the constructor.
        """
        return None if self.path == self._mount_point else Cgroup(os.path.dirname(self.path))

    def children(self) -> list[Cgroup]:
        """The cgroups in it, by name.

        Raises:
            NotACgroupError, OSError: as the constructor; FileNotFoundError: it is gone.
        """
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return [Cgroup(os.path.join(self.path, name)) for name in names]

    def exists(self) -> bool:
        """Whether there is a cgroup at the path now; on v2 its memory controller may be off.

        Raises nothing: what may not be looked at counts as not there.
        """
        return os.path.exists(self._file("memory.oom_control" if self.version == 1 else "cgroup.procs"))

    @property
    def usage(self) -> int:
        """Memory in use, in bytes (v1: memory.usage_in_bytes, v2: memory.current)."""
        return int(self._read(self._named("usage")))

    @property
    def peak(self) -> int:
        """The most that was in use so far, in bytes (v1: memory.max_usage_in_bytes, v2: memory.peak, from 5.19 on)."""
        return int(self._read(self._named("peak")))

    @property
    def limit(self) -> int | None:
        """The limit in bytes (v1: memory.limit_in_bytes, v2: memory.max), or None for no limit.

        Setting it rounds down to pages, as the kernel does. OSError: on v1 EBUSY when the usage cannot be brought below
        it, EINVAL when it is above the limit with swap (memory.memsw.limit_in_bytes), or on the root. v2 kills instead
        when the usage cannot be brought below it.

        Raises:
            ValueError: when set: not from 0 to 2**63 - 1.
        """
        return self._get_limit(self._named("limit"))

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self._set_limit(self._named("limit"), limit)

    @property
    def high(self) -> int | None:
        """v2: from how many bytes on its tasks are slowed down and reclaimed from (memory.high); None: never.

        Setting it rounds down to pages, as the kernel does.

        Raises:
            ValueError: when set: not from 0 to 2**63 - 1.
            UnsupportedError: on v1.
        """
        self._only(2, "memory.high", "memory.soft_limit_in_bytes is the nearest thing")
        return self._get_limit("memory.high")

    @high.setter
    def high(self, high: int | None) -> None:
        self._only(2, "memory.high", "memory.soft_limit_in_bytes is the nearest thing")
        self._set_limit("memory.high", high)

    @property
    def oom_group(self) -> bool:
        """v2: whether an OOM kills all of its tasks and of those below, not just one.

        See memory.oom.group, from 4.19 on.
        """
        self._only(2, "memory.oom.group", "a watcher can kill() the rest")
        return self._read("memory.oom.group") == "1\n"

    @oom_group.setter
    def oom_group(self, group: bool) -> None:
        self._only(2, "memory.oom.group", "a watcher can kill() the rest")
        self._write("memory.oom.group", str(int(group)))

    def events(self, *, local: bool = True) -> dict[str, int]:
        """v2: the kernel's counters, by the kernel's names: low, high, max, oom, oom_kill, oom_group_kill (5.17), ...

        Args:
            local: of this cgroup alone (memory.events.local, from 5.3 on), or with those below it, gone ones included
                (memory.events).

        Raises:
            UnsupportedError: on v1, and where this kernel has not that file.
        """
        self._only(2, "memory.events", "oom_control() tells of OOM kills")
        text = self._read("memory.events.local" if local else "memory.events")
        return {name: int(value) for name, value in (line.split() for line in text.splitlines())}

    def _named(self, what: str) -> str:
        return _FILES[what][self.version - 1]

    def _only(self, version: int, what: str, instead: str) -> None:
        if self.version != version:
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                f"{what} is of cgroup v{version}, and this one is v{self.version}: {instead}",
                self.path,
            )

    def _get_limit(self, name: str) -> int | None:
        text = self._read(name)
        return None if text == "max\n" or int(text) >= UNLIMITED else int(text)

    def _set_limit(self, name: str, limit: int | None) -> None:
        if limit is not None and not 0 <= limit < 2**63:
            # The kernel reads more than 64 bits as what is left of them, which may be next to nothing.
            raise ValueError(f"a limit must be None or a number of bytes from 0 to 2**63 - 1, not {limit!r}")
        self._write(name, ("-1" if self.version == 1 else "max") if limit is None else str(limit))

    def oom_control(self) -> OomControl:
        """v1: what memory.oom_control says now."""
        self._only(1, "memory.oom_control", "events() tells of OOM kills")
        lines = (line.split() for line in self._read("memory.oom_control").splitlines())
        values = {line[0]: int(line[1]) for line in lines}
        return OomControl(bool(values["oom_kill_disable"]), bool(values["under_oom"]), values["oom_kill"])

    @property
    def under_oom(self) -> bool:
        """v1: whether tasks sleep for want of memory, here or because of a cgroup above (memory.oom_control)."""
        return self.oom_control().under_oom

    @property
    def oom_kill_disable(self) -> bool:
        """v1: whether the OOM killer is off, so that tasks that run out of memory sleep (memory.oom_control).

        They wake when the limit is raised, a task is killed, or this is set to False, which kills one of them. Cgroups
        that are made in it take it over. Somebody has to see to it that they are not asleep for ever: see
        oom_killer_disabled(). OSError: EINVAL on the root.
        """
        return self.oom_control().oom_kill_disable

    @oom_kill_disable.setter
    def oom_kill_disable(self, disable: bool) -> None:
        self._only(1, "oom_kill_disable", "memory.high slows its tasks down instead")
        self._write("memory.oom_control", str(int(disable)))

    @contextmanager
    def oom_killer_disabled(self) -> Iterator[Self]:
        """v1: has the OOM killer off as long as the `with` statement lasts, and puts back what was before.

        A process that is killed puts nothing back: have a supervisor do it, such as systemd with ExecStopPost=.

        Raises:
            OSError: as oom_kill_disable. A cgroup that is gone at the end is no error.
        """
        before = self.oom_kill_disable
        try:
            self.oom_kill_disable = True
            yield self
        finally:
            if not before:
                with suppress(FileNotFoundError):
                    self.oom_kill_disable = False

    @property
    def frozen(self) -> bool:
        """v2: whether its tasks, and those below, are stopped (cgroup.events); set it to stop them, and to let go.

        They stop soon after it was set, not at once. SIGKILL ends them all the same. See cgroup.freeze, from 5.2 on.
        """
        self._only(2, "cgroup.freeze", "the freezer controller is a hierarchy of its own")
        return "frozen 1" in self._read("cgroup.events").splitlines()

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._only(2, "cgroup.freeze", "the freezer controller is a hierarchy of its own")
        self._write("cgroup.freeze", str(int(frozen)))

    def pids(self) -> list[int]:
        """The processes in it, without those of its children (cgroup.procs), as this process's pid namespace counts.

        Those that are outside of the namespace are left out; on v2 many kernels list each as 0 (cgroup_procs_show()).
        """
        return [int(line) for line in self._read("cgroup.procs").split()]

    def largest(self) -> int | None:
        """The process in it, or below it, with the most memory; None where there is none.

        Resident memory, file and shared pages included (proc_pid_statm(5)).

        Returns:
            Its pid, not the size.
        """
        sizes = {}
        for _, (pid, _) in self._all_processes():
            # Suppressed: it has exited since it was listed.
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/statm", "rb") as file:
                sizes[pid] = int(file.read().split()[1])
        return max(sizes, key=lambda pid: sizes[pid], default=None)

    def kill_process(self, pid: int) -> bool:
        """Kills one process in it, or below it; whether it was there. It is not waited for.

        No other process is hit, even when the pid is used anew in between: see kill().

        Raises:
            PermissionError: it may not be signalled. With hidepid (proc(5)) one that is not seen counts as gone.
        """
        return any(cgroup._kill([process], set()) for cgroup, process in self._all_processes() if process[0] == pid)

    def _all_processes(self) -> list[tuple[Cgroup, tuple[int, int]]]:
        """Those in it and below it, each with the cgroup that it is in."""
        found = [(self, process) for process in self._processes()]
        for child in self.children():
            with suppress(FileNotFoundError):  # it has gone since it was listed
                found += child._all_processes()
        return found

    def kill(self) -> int:
        """Kills every process in it, without those of its children, and waits until none is left.

        On v2 from 5.14 on the kernel does that (cgroup.kill) where there are no children; else they are killed singly.
        Those that are forked meanwhile are killed too. They are not reaped, which is their parents' business. No other
        process is hit, even when a pid is used anew in between: each is held by a pidfd and asked for its cgroup
        before it is signalled.

        Returns:
            How many were sent SIGKILL, without those that cgroup.kill alone has seen.

        Raises:
            TimeoutError: after 10 seconds some are still there; SIGKILL does not end a frozen process, or one that
                sleeps uninterruptibly.
            PermissionError: one may not be signalled. With hidepid (proc(5)) those that are not seen count as gone.
        """
        deadline = time.monotonic() + _EXIT
        seen: set[tuple[int, int]] = set()
        signalled = self._kill_at_once(seen)
        # Until nobody is listed: who was in the middle of fork(2) when SIGKILL came has a child that is not listed yet,
        # and who has exited since may have passed on to another.
        while pids := self.pids():
            new = [process for process in _started(pids) if process not in seen]
            for start in range(0, len(new), _AT_ONCE):
                signalled += self._kill(new[start : start + _AT_ONCE], seen)
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"{len(pids)} processes do not exit after SIGKILL", self._file("cgroup.procs")
                )
            time.sleep(0.001)
        return signalled

    def _kill_at_once(self, seen: set[tuple[int, int]]) -> int:
        """Has the kernel kill all of them, where it can, without those below; returns how many there were."""
        if self.version == 1 or self.children():
            return 0
        processes = self._processes()
        try:
            _write(self._file("cgroup.kill"), "1")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EOPNOTSUPP):  # before 5.14, not ours, threaded
                return 0
            raise self._explained(error, "cgroup.kill") from None
        seen.update(processes)
        return len(processes)

    def _kill(self, processes: list[tuple[int, int]], seen: set[tuple[int, int]]) -> int:
        """Kills those of them that are still in it, and notes whom it has dealt with; returns how many it signalled.

        Once all are held the cgroup is listed once more for all of them: to list it for each would take so long that
        processes which fork get ahead.
        """
        import signal  # noqa: PLC0415 - brings enum along, which is a third of what this package costs to import

        pidfds: list[int] = []
        held = []
        signalled = 0
        try:
            for process in processes:
                try:
                    pidfds.extend(map(os.pidfd_open, (process[0],)))
                    held.append(process)
                except ProcessLookupError:
                    pass  # it has exited by itself
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE) and pidfds:
                        break  # the others are for the next time
                    raise
                seen.add(process)
            still = set(self._processes())
            for process, pidfd in zip(held, pidfds, strict=True):
                if process in still:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        signalled += 1
        finally:
            close_all(pidfds)
        return signalled

    def _processes(self) -> list[tuple[int, int]]:
        return _started(self.pids())

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
            _write(self._file(name), value)
        except OSError as error:
            raise self._explained(error, name, f", writing {value!r}") from None

    def _explained(self, error: OSError, name: str, doing: str = "") -> OSError:
        if error.errno == errno.ENOENT and self.version == 2 and self.exists() and name.startswith("memory."):
            if not os.path.exists(self._file("cgroup.events")):
                return UnsupportedError(errno.EOPNOTSUPP, f"the root cgroup has no {name}", self.path)
            if not os.path.exists(self._file("memory.events")):
                return off_error(self.path)
            return UnsupportedError(errno.EOPNOTSUPP, f"this kernel has no {name}", self.path)
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


def _started(pids: list[int]) -> list[tuple[int, int]]:
    """Each process with its start time (proc_pid_stat(5)): a pid alone may have been somebody else's before."""
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                found.append((pid, int(file.read().rpartition(b")")[2].split()[19])))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has exited since it was listed
    return found


def _write(path: str, value: str) -> None:
    """One write(2), as control files want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _device(path: str) -> int:
    """st_dev of the path; what does not exist yet belongs to where it would be made."""
    while True:
        try:
            return os.stat(path).st_dev
        except FileNotFoundError:
            path = os.path.dirname(path)
