"""Where the memory hierarchies are mounted, and which cgroup a process is in: /proc/self/mountinfo, /proc/PID/cgroup.

Everything is found by what the kernel says, never by a customary path: a hierarchy may be mounted anywhere, more than
once, beside cgroup v2 (hybrid), or from its middle (a bind mount into a container).
"""

from __future__ import annotations

import errno
import os

from memcg_oom.errors import NotACgroupError, UnsupportedError

MOUNTINFO = "/proc/self/mountinfo"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Mount:
    """One mount of a cgroup file system.

    Attributes:
        device: st_dev of everything in it; the same for every mount of one hierarchy.
        root: the cgroup that is mounted, as a path from the hierarchy's root; "/" for the whole.
        point: where it is mounted.
        version: 1 or 2.
        memory: whether the hierarchy may hold memory cgroups; a v1 one says so, of a v2 one has_memory() knows.
        read_only: whether the mount is.
        local_events: whether memory.events of a v2 cgroup leaves out what is below it (memory_localevents).
    """

    __slots__ = ("device", "local_events", "memory", "point", "read_only", "root", "version")

    def __init__(
        self,
        *,
        device: int,
        root: str,
        point: str,
        version: int,
        memory: bool,
        read_only: bool,
        local_events: bool = False,
    ) -> None:
        self.device = device
        self.root = root
        self.point = point
        self.version = version
        self.memory = memory
        self.read_only = read_only
        self.local_events = local_events

    def path_of(self, name: str) -> str | None:
        """Where a cgroup is, given as a path from the hierarchy's root; None: outside of what is mounted here."""
        if not is_below(name, self.root):
            return None
        return os.path.normpath(f"{self.point}/{name[len(self.root.rstrip('/')) :]}")

    def has_memory(self) -> bool:
        """Whether the memory controller is here: it is on one hierarchy at a time, and on none where it is disabled."""
        if self.version == 1:
            return self.memory
        try:
            with open(os.path.join(self.point, "cgroup.controllers"), "rb") as file:
                return b"memory" in file.read().split()
        except FileNotFoundError:  # something else is mounted over it
            return False


def parse_mountinfo(text: bytes) -> Iterator[Mount]:
    """The cgroup mounts among the lines of a mountinfo file, see proc_pid_mountinfo(5)."""
    for line in text.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(kind) < 3 or kind[0] not in (b"cgroup", b"cgroup2"):
            continue
        major, _, minor = fields[2].partition(b":")
        yield Mount(
            device=os.makedev(int(major), int(minor)),
            root=_unescape(fields[3]),
            point=_unescape(fields[4]),
            version=2 if kind[0] == b"cgroup2" else 1,
            memory=kind[0] == b"cgroup2" or b"memory" in kind[2].split(b","),
            read_only=b"ro" in fields[5].split(b",") or b"ro" in kind[2].split(b","),
            local_events=kind[0] == b"cgroup2" and b"memory_localevents" in kind[2].split(b","),
        )


def _unescape(field: bytes) -> str:
    r"""The kernel writes space, tab, newline and backslash as \040, \011, \012 and \134."""
    parts = field.split(b"\\")
    return os.fsdecode(parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:]))


def cgroup_mounts() -> list[Mount]:
    """Every mounted cgroup file system that this process sees, in the order of mounting."""
    with open(MOUNTINFO, "rb") as file:
        return list(parse_mountinfo(file.read()))


def memory_mount() -> Mount | None:
    """The mount that shows the most of the hierarchy that the memory controller is on, or None where there is none."""
    mounts = [mount for mount in cgroup_mounts() if mount.has_memory()]
    return min(mounts, key=lambda mount: len(mount.root), default=None)


def mount_of(path: str, device: int) -> Mount:
    """The mount by which `path`, on the file system `device` (st_dev), is reached.

    Raises:
        NotACgroupError: `path` is on no cgroup file system, or in a hierarchy without the memory controller.
    """
    mounts = [mount for mount in cgroup_mounts() if mount.device == device]
    if not mounts:
        raise NotACgroupError(
            errno.EINVAL, "not a cgroup: no cgroup file system is mounted there (memcg-oom check shows where)", path
        )
    # Several mounts of one hierarchy: the innermost that the path lies in.
    mount = max(mounts, key=lambda mount: len(mount.point) if is_below(path, mount.point) else -1)
    if not mount.has_memory():
        raise NotACgroupError(
            errno.EINVAL,
            f"not a memory cgroup: its hierarchy (version {mount.version}) is without the memory controller, which "
            "memcg-oom check looks for",
            path,
        )
    return mount


def is_below(path: str, ancestor: str) -> bool:
    """Whether `path` is `ancestor` or lies in it; both absolute and normal."""
    return path == ancestor or path.startswith(ancestor.rstrip("/") + "/")


def memory_cgroup_of(pid: int | None = None) -> str:
    """The path of the memory cgroup that a process is in; None is the calling one.

    Raises:
        ProcessLookupError: there is no such process.
        UnsupportedError: no memory hierarchy is mounted.
        NotACgroupError: the cgroup lies outside what is mounted here (in a container), or was removed.
    """
    file_path = f"/proc/{'self' if pid is None else pid}/cgroup"
    try:
        with open(file_path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "no such process", file_path) from None
    mount = memory_mount()
    if mount is None:
        raise UnsupportedError(errno.EOPNOTSUPP, "no memory cgroup hierarchy is mounted", file_path)
    name = parse_proc_cgroup(text, b"memory" if mount.version == 1 else b"")
    if name is None:
        raise UnsupportedError(errno.EOPNOTSUPP, "the process is in no cgroup of the memory hierarchy", file_path)
    path = mount.path_of(name)
    if path is None:
        raise NotACgroupError(errno.EINVAL, f"the cgroup {name} lies outside the mount at {mount.point}", file_path)
    return path


def own_systemd_cgroup() -> str | None:
    """The path of the calling process's cgroup in systemd's own v1 hierarchy, or None where it has none."""
    with open("/proc/self/cgroup", "rb") as file:
        return parse_proc_cgroup(file.read(), b"name=systemd")


def parse_proc_cgroup(text: bytes, controller: bytes) -> str | None:
    """The cgroup of a hierarchy in a /proc/PID/cgroup, as a path from the hierarchy's (or namespace's) root.

    Args:
        text: what the file holds, see proc_pid_cgroup(5).
        controller: one that the v1 hierarchy has, or "name=" and the name of one without any; empty: the v2 one's.
    """
    for line in text.split(b"\n"):
        _, _, rest = line.partition(b":")
        controllers, separator, name = rest.partition(b":")
        if separator and controller in controllers.split(b","):
            return os.fsdecode(name)
    return None
