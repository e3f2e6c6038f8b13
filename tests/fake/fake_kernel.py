"""A fake kernel: memory cgroups made of plain files, whose notifications the test sends itself.

It is for people without root, and for orderings and faults that the real kernel does not produce on demand. The package
takes it for a mounted hierarchy and works in its path mode, since ids cannot be opened on such a file system.
"""

from __future__ import annotations

import collections
import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.discovery
import memcg_oom.hierarchy
import memcg_oom.host
import memcg_oom.kernel_log
import memcg_oom.loop
import memcg_oom.monitor
import memcg_oom.mounts
import memcg_oom.registration
import memcg_oom.sources
import memcg_oom.stalls
import memcg_oom.v1
from memcg_oom import CgroupEvent, Event, Monitor, Oom, OomKill, Removed, TreeWatch, Unattributed, Watch
from memcg_oom._native import lib
from memcg_oom.v1 import V1Watches
from memcg_oom.victims import Victims
from tests.support import PATIENCE

# What is in a new cgroup, beside what counts and what tells its usage.
V1_FILES = {
    "memory.oom_control": "",
    "cgroup.event_control": "",
    "memory.pressure_level": "",
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.max_usage_in_bytes": "0\n",
}
V2_FILES = {
    "memory.events": "",
    "memory.events.local": "",
    "memory.max": "max\n",
    "memory.high": "max\n",
    "memory.peak": "0\n",
    "memory.oom.group": "0\n",
    "cgroup.controllers": "memory\n",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.freeze": "0\n",
    "cgroup.subtree_control": "memory\n",
}
AGES = 10_000.0  # seconds: a period whose end no test lives to see


def escaped(text: bytes) -> bytes:
    """As /dev/kmsg writes it (msg_add_ext_text())."""
    return b"".join(b"%c" % one if 32 <= one < 127 and one != 92 else b"\\x%02x" % one for one in text)


def killed(pid: int, comm: bytes, moment: int = 2, cause: bytes = b"Memory cgroup out of memory") -> bytes:
    """As __oom_kill_process() prints it."""
    text = b"%s: Killed process %d (%s) total-vm:12kB, anon-rss:8kB, file-rss:4kB, shmem-rss:0kB, UID:7 " % (
        cause,
        pid,
        comm,
    )
    return b"3,9,%d,-;%spgtables:52kB oom_score_adj:-5\n" % (moment, escaped(text))


def summary(pid: int, comm: bytes, limit: bytes | None, path: bytes, *, moment: int = 1, cpuset: bytes = b"/") -> bytes:
    """As dump_oom_victim() prints it."""
    where = b"oom_memcg=%s" % limit if limit is not None else b"global_oom"
    text = b"oom-kill:constraint=%s,nodemask=(null),cpuset=%s,mems_allowed=0,%s,task_memcg=%s,task=%s,pid=%d,uid=7" % (
        b"CONSTRAINT_NONE" if limit is None else b"CONSTRAINT_MEMCG",
        cpuset,
        where,
        path,
        comm,
        pid,
    )
    return b"6,8,%d,-;%s\n SUBSYSTEM=mm\n" % (moment, escaped(text))


def v1(monitor: Monitor) -> V1Watches:
    """What does the work."""
    assert isinstance(monitor._watches, V1Watches)
    return monitor._watches


class FakeKernel:
    """A mount of its own, with the cgroups that the test makes in it.

    Args:
        folder: an empty one.
        monkeypatch: by which the package is made to see the mount.
        version: of cgroups; of version 2 there is no more than the files, and nobody tells when one is removed.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, version: int = 1) -> None:
        folder = folder.resolve()
        self.root = folder / "memory"
        self.root.mkdir()
        self.cgroups: list[FakeCgroup] = []
        self.overrun = False  # whether the log has overwritten what was not read yet
        self.version = version
        if version == 2:
            (self.root / "cgroup.controllers").write_text("memory\n")
            (self.root / "cgroup.subtree_control").write_text("memory\n")
        self._graves = folder / "graves"
        self._graves.mkdir()
        self._monkeypatch = monkeypatch
        device = os.stat(self.root).st_dev
        point = os.fsdecode(
            os.fsencode(self.root).replace(b"\\", rb"\134").replace(b" ", rb"\040").replace(b"\t", rb"\011")
        )
        mountinfo = folder / "mountinfo"
        kind = "cgroup cgroup rw,memory" if version == 1 else "cgroup2 cgroup2 rw"
        mountinfo.write_text(
            f"30 25 {os.major(device)}:{os.minor(device)} / {point} rw,nosuid - {kind}\n",
            errors="surrogateescape",
        )
        monkeypatch.setattr(memcg_oom.mounts, "MOUNTINFO", str(mountinfo))
        monkeypatch.setattr(memcg_oom.hierarchy, "os", _FileSystem(self.root))
        # The host's counter, and its log: one that is never silent would wake every wait().
        self.host_kills = 1000
        self._vmstat = folder / "vmstat"
        self.host_killed(0)
        self.seekable = os.open(self._vmstat, os.O_RDONLY)
        monkeypatch.setattr(memcg_oom.host, "VMSTAT", str(self._vmstat))
        log = folder / "kmsg"
        os.mkfifo(log)
        self._log = os.open(log, os.O_RDWR)
        monkeypatch.setattr(memcg_oom.kernel_log, "KMSG", str(log))
        for module in (memcg_oom.host, memcg_oom.kernel_log):
            monkeypatch.setattr(module, "os", _Log(self))
        self.records: collections.deque[bytes] = (
            collections.deque()
        )  # what was printed and not read yet; in the pipe there is a byte for each
        # It names no victims, unless names_victims() is called: nobody waits for what does not come.
        monkeypatch.setattr(Victims, "_patience", lambda _self, _finds_any: None)

    def make(self, name: str = "a", *, kills: int = 0) -> FakeCgroup:
        """A new cgroup, by its path from the root."""
        cgroup = FakeCgroup(self.root / name, self, kills)
        self.cgroups.append(cgroup)
        return cgroup

    def make_root(self) -> FakeCgroup:
        """The mount's root as the root of the hierarchy, which is a cgroup as well."""
        if self.cgroups and self.cgroups[0].path == self.root:
            return self.cgroups[0]
        inode = os.stat(self.root).st_ino
        for module in (memcg_oom.hierarchy, memcg_oom.monitor):
            self._monkeypatch.setattr(module, "ROOT_ID", inode)
        root = FakeCgroup(self.root, self, 0)
        self.cgroups.insert(0, root)
        return root

    def tree(self, monitor: Monitor, path: Path | None = None, source: str = "inotify") -> TreeWatch:
        """A tree (of everything), that takes whatever is new to it for younger than itself.

        It goes by ids, which in kernfs only grow; the inode numbers of a plain file system do not.
        """
        if path is None:
            path = self.make_root().path
        tree = monitor.watch_tree(path, source=source)
        tree._watermark = 0
        return tree

    def bury(self, path: Path) -> None:
        """Takes a folder out of the mount.

        It is not unlinked: a file system may give an inode number out again at once, which kernfs does not. But another
        is, under its name, so that inotify tells of it.
        """
        path.rename(self._graves / f"{time.monotonic_ns()}-{path.name}")
        path.mkdir()
        path.rmdir()

    def host_killed(self, count: int = 1) -> None:
        """Moves the host's counter of OOM kills."""
        self.host_kills += count
        self._vmstat.write_text(f"nr_free_pages 5\noom_kill {self.host_kills}\nnuma_hit 7\n")

    def log(self, record: str | bytes = "6,1,1,-;Memory cgroup out of memory: Killed process 93 (hog)\n") -> None:
        """Prints to the kernel log."""
        self.records.append(record if isinstance(record, bytes) else record.encode("utf-8", "surrogateescape"))
        os.write(self._log, b".")

    def names_victims(self) -> None:
        """From here on monitors wait for what the log says of victims."""
        self._monkeypatch.setattr(Victims, "_patience", lambda victims, _finds_any: victims._settle)

    def overrun_log(self) -> None:
        """Prints more to the kernel log than it holds."""
        self.overrun = True
        self.log("6,2,2,-;what is left of it\n")

    def close(self) -> None:
        os.close(self._log)
        os.close(self.seekable)
        for cgroup in self.cgroups:
            cgroup.close()


class FakeCgroup:
    """One memory cgroup.

    Attributes:
        path: where it is now; a test that renames a folder above it sets it anew.
    """

    def __init__(self, path: Path, kernel: FakeKernel, kills: int) -> None:
        self.path = path
        self.kernel = kernel
        self.kills = kills
        self.ooms = 0  # on v2, where they are counted and not signalled
        self._below = [0, 0]  # on v2, the OOMs and kills in what is and was in it
        self.killer_off = self.under_oom = False
        self.gone = False
        self._eventfds: list[int] = []
        self._alarms: list[int] = []  # eventfds for a threshold, or pressure
        path.mkdir(exist_ok=path == kernel.root)
        (path / "cgroup.procs").touch()
        for name, text in (V1_FILES if kernel.version == 1 else V2_FILES).items():
            (path / name).write_text(text)
        self._write_control()
        self.use(0)

    def _write_control(self) -> None:
        if self.kernel.version == 1:
            text = f"oom_kill_disable {self.killer_off:d}\nunder_oom {self.under_oom:d}\noom_kill {self.kills}\n"
            self._write("memory.oom_control", text)
        else:
            self._write("memory.events.local", f"oom {self.ooms}\noom_kill {self.kills}\n")
            self._write("memory.events", f"oom {self.ooms + self._below[0]}\noom_kill {self.kills + self._below[1]}\n")

    def _count_above(self, ooms: int, kills: int) -> None:
        """On v2 whatever is counted is counted in all that it is in."""
        for one in self.kernel.cgroups if self.kernel.version == 2 else ():
            if one.path in self.path.parents:
                one._below = [one._below[0] + ooms, one._below[1] + kills]
                one._write_control()

    def _write(self, name: str, text: str) -> None:
        """In place and with one write, so that the file stays the same one and is never seen half written."""
        fd = os.open(self.path / name, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def listen(self) -> int:
        """Takes the registration that was written since the last call, if there is one; how many there are now."""
        file = self.path / "cgroup.event_control"
        if self.kernel.version == 1 and not self.gone and (line := file.read_text()):
            eventfd, control_fd, *argument = line.split(" ")
            assert int(control_fd) >= 0
            assert os.readlink(f"/proc/self/fd/{eventfd}") == "anon_inode:[eventfd]"
            (self._alarms if argument else self._eventfds).append(os.dup(int(eventfd)))
            os.truncate(file, 0)
        return len(self._eventfds)

    def use(self, usage: int) -> None:
        """Has so many bytes in use."""
        file = "memory.usage_in_bytes" if self.kernel.version == 1 else "memory.current"
        (self.path / file).write_text(f"{usage}\n")

    def alarm(self, count: int = 1) -> None:
        """Signals everybody who is registered for something else than OOM."""
        self.listen()
        assert self._alarms, "nobody is registered"
        for fd in self._alarms:
            os.eventfd_write(fd, count)

    def oom(self, count: int = 1) -> None:
        """Signals that many OOMs to everybody who is registered; on v2, counts them."""
        if self.kernel.version == 2:
            self.ooms += count
            self._count_above(count, 0)
            self._write_control()
            return
        assert self.listen(), "nobody is registered"
        for fd in self._eventfds:
            os.eventfd_write(fd, count)

    def kill(self, count: int = 1) -> None:
        """Moves the counters, the host's first."""
        self.kernel.host_killed(count)
        self.count_kill(count)

    def log_kill(self, pid: int, *, limit: FakeCgroup | None = None, named: bool = True) -> None:
        """Has the log tell of a kill in it; named: with the line that says where."""
        path, limit_path = (f"/{one.path.relative_to(one.kernel.root)}" for one in (self, limit or self))
        if named:
            self.kernel.log(summary(pid, b"hog", limit_path.encode(), path.encode()))
        self.kernel.log(killed(pid, b"hog"))

    def tasks(self, *pids: int) -> None:
        """Who is in it."""
        (self.path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))

    def count_kill(self, count: int = 1) -> None:
        """Moves its own counter alone: the host's has moved before."""
        self.kills += count
        self._count_above(0, count)
        self._write_control()

    def sleep(self, under_oom: bool, *, killer_off: bool) -> None:
        """What memory.oom_control says of tasks that ran out of memory."""
        self.under_oom, self.killer_off = under_oom, killer_off
        self._write_control()

    def rename(self, name: str) -> None:
        """Gives it another name within its parent."""
        self.listen()
        self.path = self.path.rename(self.path.parent / name)

    def rmdir(self) -> None:
        """Removes it; the signal of that comes when the test calls removal_signal()."""
        self.listen()
        self.gone = True
        self.kernel.bury(self.path)

    def removal_signal(self) -> None:
        """The one signal that the removal sends."""
        assert self.gone
        for fd in self._eventfds + self._alarms:
            os.eventfd_write(fd, 1)

    def oom_before_removal(self, count: int) -> None:
        """OOMs that were signalled before the removal and are read after it."""
        assert self.gone
        for fd in self._eventfds:
            os.eventfd_write(fd, count)

    def close(self) -> None:
        for fds in (self._eventfds, self._alarms):
            while fds:
                os.close(fds.pop())


class _FileSystem:
    """The module os, but for one thing: what lies above the mount is on another file system, as with a real one."""

    close = staticmethod(os.close)  # to be found without memory, as in the module

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path if memcg_oom.mounts.is_below(path, self._root) else "/proc")

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class _Log:
    """The module os, but for the log: a pipe that is readable while there is a record.

    Nothing can be sought in it; the host's counter stands in for that.
    """

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def read(self, fd: int, size: int) -> bytes:
        if self._kernel.overrun:
            self._kernel.overrun = False
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        os.read(fd, 1)
        return self._kernel.records.popleft()  # which takes no memory: a record is read or it is not

    def lseek(self, _fd: int, position: int, how: int) -> int:
        return os.lseek(self._kernel.seekable, position, how)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class FaultyLib:
    """The C core, with some functions replaced."""

    def __init__(self, **replaced: Callable[..., Any]) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


def replace_in_lib(monkeypatch: pytest.MonkeyPatch, **replaced: Callable[..., Any]) -> None:
    """Replaces functions of the C core for the whole package."""
    faulty = FaultyLib(**replaced)
    modules = ("discovery", "hierarchy", "loop", "monitor", "registration", "sources", "stalls")
    for module in (getattr(memcg_oom, name) for name in modules):
        monkeypatch.setattr(module, "lib", faulty)


def brief(events: Iterable[Event], watch: Watch | None = None) -> list[tuple[str, int]]:
    """The events (of one watch) as pairs: the name, the number that it carries."""
    found = []
    for event in events:
        if watch is not None and not (isinstance(event, CgroupEvent) and event.watch is watch):
            continue
        match event:
            case Oom(count=count, late=late):
                found.append(("late Oom" if late else "Oom", count))
            case OomKill(count=count):
                found.append(("OomKill", count))
            case Removed(unresolved=unresolved):
                found.append(("Removed", unresolved))
            case Unattributed(count=count):
                found.append(("Unattributed", count))
            case _:
                found.append((type(event).__name__, 0))
    return found


def take(monitor: Monitor, count: int) -> list[Event]:
    """Takes events until there are that many."""
    events: list[Event] = []
    take_while(monitor, lambda: len(events) < count, events)
    return events


def take_while(
    monitor: Monitor, condition: Callable[[], object], events: list[Event] | None = None, pause: float = 0.01
) -> list[Event]:
    """Takes events as long as the condition holds."""
    events = [] if events is None else events
    deadline = time.monotonic() + PATIENCE
    while condition():
        assert time.monotonic() < deadline, f"what was waited for did not come; there was {events}"
        events += monitor.wait(pause)
    return events


def take_until_settled(monitor: Monitor, *watches: Watch) -> list[Event]:
    """Takes events until none of the watches has another look before it."""
    return take_while(monitor, lambda: any(watch._trouble.round is not None for watch in watches))
