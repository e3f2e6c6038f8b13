"""Registering many cgroups at once, on all cores, all or nothing; and saying in words why one could not be."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading

from memcg_oom._native import ffi, lib
from memcg_oom.errors import RootCgroupError, UnsupportedError, os_error
from memcg_oom.hierarchy import GONE, NO_FDS, ROOT_ID, pack_paths
from memcg_oom.mounts import mount_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Below this many a thread costs more than it saves.
SLICE = 256

# struct memcg_registration, taken over whole.
_ROW = struct.Struct("=iiQQqq")


class Registration:
    """One cgroup's: its eventfd, its identity, its oom_kill counter before and after."""

    __slots__ = ("path", "eventfd", "directory_id", "control_id", "kills_before", "kills_after")

    def __init__(self, path: str, row: tuple[int, ...]) -> None:
        self.path = path
        self.eventfd, _, self.directory_id, self.control_id, self.kills_before, self.kills_after = row


def register_many(device: int, paths: Sequence[str], skip_gone: bool) -> list[Registration]:
    """Registers for the OOM notifications of cgroups in the hierarchy `device`, in the order of `paths`.

    Args:
        device: st_dev of the hierarchy.
        paths: absolute paths.
        skip_gone: leave out those that do not exist, instead of failing.

    Raises:
        OSError: one could not be registered; then none is, and no descriptor is left open.
    """
    if len(paths) >= SLICE:
        _grow_descriptor_table(len(paths))
    threads = max(1, min(len(os.sched_getaffinity(0)), len(paths) // SLICE))
    size = -(-len(paths) // threads)
    slices = [_Slice(device, paths[start : start + size], skip_gone) for start in range(0, len(paths), size)]
    # The interpreter lock is released in the core: the slices really run side by side. The first is this thread's.
    helpers = [threading.Thread(target=one.run, name="memcg_oom-register", daemon=True) for one in slices[1:]]
    try:
        for helper in helpers:
            helper.start()
        slices[0].run()
        for helper in helpers:
            helper.join()
        for one in slices:
            if one.error is not None:
                raise one.error
    except BaseException:
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
        for one in slices:
            one.undo()
        raise
    return [registration for one in slices for registration in one.registrations]


def _grow_descriptor_table(count: int) -> None:
    """Makes room for so many more descriptors at once.

    The kernel doubles the table when it is full, and where threads share it waits for an RCU grace period each time
    (expand_fdtable()): a third of the time of a first registration of 10,000.
    """
    lowest_free = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(fcntl.fcntl(lowest_free, fcntl.F_DUPFD_CLOEXEC, lowest_free + count))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EMFILE):
            raise
        # Beyond the limit: the registration that finds no descriptor says so, with its path.
    finally:
        os.close(lowest_free)


class _Slice:
    """What one thread registers."""

    def __init__(self, device: int, paths: Sequence[str], skip_gone: bool) -> None:
        self.registrations: list[Registration] = []
        self.error: BaseException | None = None
        self._device = device
        self._paths = paths
        self._skip_gone = skip_gone
        # Each buffer stays known until the end, so that undo() finds every descriptor even after an interruption.
        self._buffers: list[ffi.CData] = []

    def run(self) -> None:
        try:
            self._register()
        except BaseException as error:
            self.error = error  # raised again by register_many(), in the caller's thread

    def _register(self) -> None:
        paths = self._paths
        while paths:
            buffer = ffi.new("struct memcg_registration[]", len(paths))
            ffi.memmove(buffer, b"\xff" * ffi.sizeof(buffer), ffi.sizeof(buffer))  # eventfd -1: none
            self._buffers.append(buffer)
            done = lib.memcg_register_many(self._device, ffi.from_buffer(pack_paths(paths)), len(paths), buffer)
            rows = list(_ROW.iter_unpack(ffi.buffer(buffer)[: (done + 1) * _ROW.size]))
            for path, row in zip(paths, rows[:done], strict=False):
                registration = Registration(path, row)
                if registration.directory_id == ROOT_ID:
                    raise root_error(path)
                self.registrations.append(registration)
            if done == len(paths):
                return
            failed, step = rows[done][:2]
            error = registration_error(-failed, step, paths[done], "memory.oom_control")
            if not (self._skip_gone and isinstance(error, FileNotFoundError)):
                raise error
            paths = paths[done + 1 :]

    def undo(self) -> None:
        for buffer in self._buffers:
            for row in _ROW.iter_unpack(ffi.buffer(buffer)):
                if row[0] >= 0:
                    os.close(row[0])


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
    # Once the directory was open, a file that is missing means a removal, unless the directory is still there.
    if error in GONE and step != lib.MEMCG_STEP_CGROUP and (error == errno.ENODEV or not os.path.exists(cgroup)):
        return FileNotFoundError(errno.ENOENT, "the cgroup was removed while it was being registered", cgroup)
    file = {
        lib.MEMCG_STEP_CONTROL_FILE: os.path.join(cgroup, control_file),
        lib.MEMCG_STEP_EVENT_CONTROL: os.path.join(cgroup, "cgroup.event_control"),
        lib.MEMCG_STEP_WRITE: os.path.join(cgroup, "cgroup.event_control"),
    }.get(step, cgroup)
    if (step, error) in _UNSUPPORTED:
        return UnsupportedError(error, _UNSUPPORTED[step, error], file)
    return os_error(error, file, _ADVICE.get((step, error), ""))
