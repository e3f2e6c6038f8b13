"""Registering many cgroups at once, on all cores; and saying in words why one could not be."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from array import array

from memcg_oom._native import ffi, lib
from memcg_oom.errors import RootCgroupError, UnsupportedError, os_error
from memcg_oom.found import Found
from memcg_oom.hierarchy import GONE, NO_FDS, SLICE, pack_paths
from memcg_oom.mounts import mount_of
from memcg_oom.threads import processors, side_by_side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memcg_oom.commit import Change
    from memcg_oom.found import Counters
    from memcg_oom.hierarchy import Hierarchy, Place

# struct memcg_registration, taken over whole; and what stands before the rows of struct memcg_registrations.
_ROW = struct.Struct("=iiiIQQqq")
_HEAD = struct.Struct("=qiiq")

_NO_LIMIT = 2**31 - 1  # no descriptor is above it


class Registration:
    """What came of one cgroup.

    The eventfd belongs to the Registrations that this is of, until they are handed over.

    Attributes:
        path: as given.
        descriptor: its eventfd, or -errno.
        step: where it failed.
        follower: the inotify watch of its directory, or -errno.
        children: how many cgroups are in it.
        directory_id: the kernfs id of its directory; 0 where not even that was found.
        control_id: that of its memory.oom_control; 0 likewise.
        before: its counters before it was registered.
        after: and after.
    """

    __slots__ = (
        "path",
        "descriptor",
        "step",
        "follower",
        "children",
        "directory_id",
        "control_id",
        "before",
        "after",
    )

    def __init__(self, path: str, row: tuple[int, ...]) -> None:
        self.path = path
        (
            self.descriptor,
            self.step,
            self.follower,
            self.children,
            self.directory_id,
            self.control_id,
            before,
            after,
        ) = row
        self.before: Counters = (before,)
        self.after: Counters = (after,)

    def found(self, place: Place, *, born: bool = False) -> Found:
        """It is to be watched there, as one that was born under the watcher's eyes or as an old one."""
        return Found(place, self.descriptor, (0,) * len(self.before) if born else self.before, self.after)

    def error(self) -> OSError:
        """Why it failed, in words."""
        return registration_error(-self.descriptor, self.step, self.path, "memory.oom_control")


class Registrations:
    """Cgroups registered for their OOM notifications; several threads share the work.

    The descriptors are in buffers that close them when they are freed. So whatever happens on the way, wherever an
    exception comes from: unless the changes of hand_over() are committed, nothing of this stays behind.

    Attributes:
        all: in the order of the paths.

    Args:
        hierarchy: that the cgroups are in.
        paths: absolute paths.
        ids: the kernfs ids of their directories; what is at a path counts only if it has the id. None: it counts.
        inotify_fd: an inotify instance that is to follow their directories, or -1.
        highest_fd: an eventfd above it counts as one too many.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        paths: Sequence[str],
        ids: Sequence[int] | None = None,
        *,
        inotify_fd: int = -1,
        highest_fd: int = _NO_LIMIT,
    ) -> None:
        if len(paths) >= SLICE:
            _grow_descriptor_table(len(paths))
        threads = max(1, min(processors(), len(paths) // SLICE))
        size = -(-len(paths) // threads)
        how = {"count": 0, "mount_fd": hierarchy.id_fd, "inotify_fd": inotify_fd, "highest_fd": highest_fd}
        self._slices = [
            _Slice(
                hierarchy.device, paths[start : start + size], None if ids is None else ids[start : start + size], how
            )
            for start in range(0, len(paths), size or 1)
        ]
        # The interpreter lock is released in the core: the slices really run side by side. The first is this thread's.
        try:
            side_by_side([one.run for one in self._slices])
        except BaseException:
            self.undo()
            raise
        self.all = [registration for one in self._slices for registration in one.registrations()]

    def give_up(self, index: int) -> None:
        """Closes one of them."""
        for one in self._slices:
            if index < len(one.paths):
                os.close(one.buffer.rows[index].eventfd)
                one.buffer.rows[index].eventfd = -1
                return
            index -= len(one.paths)

    def undo(self) -> None:
        """Closes at once what was not handed over; an exception that somebody keeps would keep the buffers."""
        for one in self._slices:
            lib.memcg_unregister_many(one.buffer)

    def hand_over(self) -> list[Change]:
        """The changes by which the descriptors belong to somebody else."""
        return [(one.buffer, "count", 0) for one in self._slices]


class _Slice:
    """What one thread registers."""

    def __init__(self, device: int, paths: Sequence[str], ids: Sequence[int] | None, how: dict[str, int]) -> None:
        self.paths = paths
        self.buffer = ffi.gc(
            ffi.new("struct memcg_registrations *", {**how, "rows": len(paths)}), lib.memcg_unregister_many
        )
        self._device = device
        self._packed = pack_paths(paths)
        self._ids = None if ids is None else array("Q", ids)

    def run(self) -> None:
        """Registers them; in a thread of its own, or not."""
        ids = ffi.NULL if self._ids is None else ffi.from_buffer("uint64_t[]", self._ids)
        lib.memcg_register_many(self._device, ids, ffi.from_buffer(self._packed), len(self.paths), self.buffer)

    def registrations(self) -> list[Registration]:
        """What came of them."""
        data = ffi.buffer(self.buffer, _HEAD.size + len(self.paths) * _ROW.size)
        rows = _ROW.iter_unpack(data[_HEAD.size :])
        return [Registration(path, row) for path, row in zip(self.paths, rows, strict=True)]


def registered(hierarchy: Hierarchy, registrations: Registrations, skip_gone: bool) -> list[tuple[Registration, Place]]:
    """All that were registered, each with its place.

    Args:
        hierarchy: that they are in.
        registrations: by path.
        skip_gone: leave out those that do not exist, instead of failing.

    Raises:
        OSError: one could not be registered.
    """
    found = []
    for index, one in enumerate(registrations.all):
        try:
            if one.descriptor < 0:
                raise one.error()
            if hierarchy.is_root(one.directory_id):
                raise root_error(one.path)
            found.append((one, hierarchy.place(one.path, one.directory_id, one.control_id)))
        except FileNotFoundError as error:
            if not skip_gone or error.filename != one.path:
                raise
            if one.descriptor >= 0:
                registrations.give_up(index)
    return found


def _grow_descriptor_table(count: int) -> None:
    """Makes room for so many more descriptors at once.

    The kernel doubles the table when it is full, and where threads share it waits for an RCU grace period each time
    (expand_fdtable()): a third of the time of a first registration of 10,000.
    """
    try:
        lowest_free = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            os.close(fcntl.fcntl(lowest_free, fcntl.F_DUPFD_CLOEXEC, lowest_free + count))
        finally:
            os.close(lowest_free)
    except OSError as error:
        if error.errno != errno.EINVAL and error.errno not in NO_FDS:
            raise
        # Beyond the limit: the registration that finds no descriptor says so, with its path.


def root_error(path: str) -> RootCgroupError:
    """Why memory.oom_control of the root is refused."""
    return RootCgroupError(
        errno.EINVAL,
        "the root cgroup: the kernel would accept the registration and never signal it; watch the cgroups below",
        path,
    )


# What to do about an errno, by the step that it came from.
_ADVICE = {
    (lib.MEMCG_STEP_EVENT_CONTROL, errno.EACCES): "registering needs write permission there",
    (lib.MEMCG_STEP_EVENT_CONTROL, errno.EPERM): "registering needs write permission there",
    (lib.MEMCG_STEP_EVENT_CONTROL, errno.EROFS): "the hierarchy is mounted read-only, and registering is a write",
    (lib.MEMCG_STEP_WRITE, errno.EINVAL): "the kernel takes no registration for this control file and argument",
}
# The errnos that mean: not on this kernel.
_UNSUPPORTED = {
    (lib.MEMCG_STEP_CONTROL_FILE, errno.ENODATA): "this kernel does not count OOM kills (oom_kill came with 4.13)",
    (lib.MEMCG_STEP_WRITE, errno.EOPNOTSUPP): "a PREEMPT_RT kernel refuses every registration of this interface",
}


def registration_error(error: int, step: int, cgroup: str, control_file: str) -> OSError:
    """The one clear error for a failed registration: what failed, at which file, and what to do.

    Args:
        error: the errno.
        step: enum memcg_step, as the core left it.
        cgroup: the absolute path.
        control_file: the name of the file that was to be registered for.
    """
    if error == errno.EXDEV:
        try:
            mount_of(cgroup, os.stat(cgroup).st_dev)
        except OSError as reason:
            return reason
    if error in NO_FDS:
        return os_error(error, cgroup, "no descriptors left for another watch; raise RLIMIT_NOFILE (ulimit -n)")
    # ENODEV comes from a file that was open: whatever is at the path now, that cgroup has gone.
    if step != lib.MEMCG_STEP_CGROUP and (error == errno.ENODEV or (error in GONE and _is_removed(cgroup))):
        return FileNotFoundError(errno.ENOENT, "the cgroup was removed while it was being registered", cgroup)
    file = {
        lib.MEMCG_STEP_CONTROL_FILE: os.path.join(cgroup, control_file),
        lib.MEMCG_STEP_EVENT_CONTROL: os.path.join(cgroup, "cgroup.event_control"),
        lib.MEMCG_STEP_WRITE: os.path.join(cgroup, "cgroup.event_control"),
    }.get(step, cgroup)
    if (step, error) in _UNSUPPORTED:
        return UnsupportedError(error, _UNSUPPORTED[step, error], file)
    return os_error(error, file, _ADVICE.get((step, error), ""))


def _is_removed(cgroup: str) -> bool:
    """Whether the directory goes too, where a file of it has gone: rmdir(2) takes the files first."""
    deadline = time.monotonic() + 0.5
    while os.path.exists(cgroup):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
