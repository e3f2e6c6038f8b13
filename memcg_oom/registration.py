"""Registering many cgroups at once, on all cores, all or nothing; and saying in words why one could not be."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time

from memcg_oom._native import ffi, lib
from memcg_oom.errors import RootCgroupError, UnsupportedError, os_error
from memcg_oom.hierarchy import GONE, NO_FDS, ROOT_ID, pack_paths
from memcg_oom.mounts import mount_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memcg_oom.commit import Change
    from memcg_oom.hierarchy import Hierarchy, Place

# Below this many a thread costs more than it saves.
SLICE = 256

# struct memcg_registration, taken over whole.
_ROW = struct.Struct("=iiQQqq")
_COUNT = struct.Struct("=q")  # what stands before the rows


class Registration:
    """One cgroup's: its eventfd, where it is, its oom_kill counter before and after.

    The eventfd belongs to the Registrations that this is of, until they are handed over.
    """

    __slots__ = ("place", "eventfd", "kills_before", "kills_after")

    def __init__(self, place: Place, eventfd: int, kills_before: int, kills_after: int) -> None:
        self.place = place
        self.eventfd = eventfd
        self.kills_before = kills_before
        self.kills_after = kills_after


class Registrations:
    """Cgroups registered for their OOM notifications, all or none; several threads share the work.

    The descriptors are in buffers that close them when they are freed. So whatever happens on the way, wherever an
    exception comes from: unless the changes of hand_over() are committed, nothing of this stays behind.

    Attributes:
        all: in the order of the paths.

    Args:
        hierarchy: that the cgroups are in.
        paths: absolute paths.
        skip_gone: leave out those that do not exist, instead of failing.

    Raises:
        OSError: one could not be registered.
    """

    def __init__(self, hierarchy: Hierarchy, paths: Sequence[str], skip_gone: bool) -> None:
        if len(paths) >= SLICE:
            _grow_descriptor_table(len(paths))
        threads = max(1, min(len(os.sched_getaffinity(0)), len(paths) // SLICE))
        size = -(-len(paths) // threads)
        self._slices = [
            _Slice(hierarchy, paths[start : start + size], skip_gone) for start in range(0, len(paths), size)
        ]
        # The interpreter lock is released in the core: the slices really run side by side. The first is this thread's.
        helpers = [
            threading.Thread(target=one.run_aside, name="memcg_oom-register", daemon=True) for one in self._slices[1:]
        ]
        try:
            for helper in helpers:
                helper.start()
            self._slices[0].run()
        except BaseException:
            self._join(helpers)
            self.undo()
            raise
        self._join(helpers)
        for one in self._slices:
            if one.error is not None:
                self.undo()
                raise one.error
        self.all = [registration for one in self._slices for registration in one.registrations]

    @staticmethod
    def _join(helpers: list[threading.Thread]) -> None:
        for helper in helpers:
            if helper.ident is not None:  # it was started
                helper.join()

    def undo(self) -> None:
        """Closes at once what was not handed over; an exception that somebody keeps would keep the buffers."""
        for one in self._slices:
            for buffer in one.buffers:
                lib.memcg_unregister_many(buffer)

    def hand_over(self) -> list[Change]:
        """The changes by which the descriptors belong to somebody else."""
        return [(buffer, "count", 0) for one in self._slices for buffer in one.buffers]


class _Slice:
    """What one thread registers."""

    def __init__(self, hierarchy: Hierarchy, paths: Sequence[str], skip_gone: bool) -> None:
        self.registrations: list[Registration] = []
        self.buffers: list[ffi.CData] = []
        self.error: Exception | None = None
        self._hierarchy = hierarchy
        self._paths = paths
        self._skip_gone = skip_gone

    def run_aside(self) -> None:
        """Runs in a thread of its own; the error is raised again in the caller's."""
        try:
            self.run()
        except Exception as error:
            self.error = error.with_traceback(None)  # without its frames, which would keep the buffers

    def run(self) -> None:
        paths = self._paths
        while paths:
            buffer = ffi.gc(
                ffi.new("struct memcg_registrations *", {"count": 0, "rows": len(paths)}), lib.memcg_unregister_many
            )
            self.buffers.append(buffer)
            device = self._hierarchy.device
            done = lib.memcg_register_many(device, ffi.from_buffer(pack_paths(paths)), len(paths), buffer)
            size = _COUNT.size + min(done + 1, len(paths)) * _ROW.size
            rows = list(_ROW.iter_unpack(ffi.buffer(buffer, size)[_COUNT.size :]))
            for index in range(done):
                self._take(buffer, index, paths[index], rows[index])
            if done == len(paths):
                return
            failed, step = rows[done][:2]
            error = registration_error(-failed, step, paths[done], "memory.oom_control")
            if not (self._skip_gone and isinstance(error, FileNotFoundError) and error.filename == paths[done]):
                raise error
            paths = paths[done + 1 :]

    def _take(self, buffer: ffi.CData, index: int, path: str, row: tuple[int, ...]) -> None:
        eventfd, _, directory_id, control_id, kills_before, kills_after = row
        if directory_id == ROOT_ID:
            raise root_error(path)
        try:
            place = self._hierarchy.place(path, directory_id, control_id)
        except FileNotFoundError:
            if not self._skip_gone:
                raise
            buffer.rows[index].eventfd = -1
            os.close(eventfd)
            return
        self.registrations.append(Registration(place, eventfd, kills_before, kills_after))


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
