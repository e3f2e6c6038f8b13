"""Registering many cgroups at once, on all cores; and saying in words why one could not be."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from array import array

from memcg_oom._native import ffi, lib
from memcg_oom.control import OOM
from memcg_oom.errors import RootCgroupError, UnsupportedError, off_error, os_error
from memcg_oom.found import Found
from memcg_oom.hierarchy import GONE, NO_FDS, SLICE, pack_paths
from memcg_oom.mounts import mount_of
from memcg_oom.threads import processors, side_by_side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memcg_oom.commit import Change
    from memcg_oom.control import Control
    from memcg_oom.found import Counters
    from memcg_oom.hierarchy import Hierarchy, Place
    from memcg_oom.sources import Inotify

# struct memcg_registration and struct memcg_attachment, taken over whole; and what stands before rows of them.
_ROW = struct.Struct("=iiiIQQqq")
_V2_ROW = struct.Struct("=iiiIQQ15q")
_HEAD = struct.Struct("=qiiq84s4x")
_V2_HEAD = struct.Struct("=qii")

_NO_LIMIT = 2**31 - 1  # no descriptor is above it


class Registration:
    """What came of one cgroup.

    The eventfd belongs to the Registrations that this is of, until they are handed over.

    Attributes:
        path: as given.
        file: the name of its control file.
        descriptor: its eventfd, on v2 the inotify watch of its memory.events.local; or -errno.
        step: where it failed.
        follower: the inotify watch of its directory, or -errno.
        children: how many cgroups are in it.
        directory_id: the kernfs id of its directory; 0 where not even that was found.
        control_id: that of its control file; 0 likewise, and where v2 has it not for want of the memory controller.
        before: its counters, or what else the control file holds, before it was registered.
        after: and after.
        subtree: on v2 the counters of it and all below; the first of them may be -errno.
    """

    __slots__ = (
        "path",
        "file",
        "descriptor",
        "step",
        "follower",
        "children",
        "directory_id",
        "control_id",
        "before",
        "after",
        "subtree",
    )

    def __init__(self, path: str, file: str, row: tuple[int, ...]) -> None:
        self.path = path
        self.file = file
        (
            self.descriptor,
            self.step,
            self.follower,
            self.children,
            self.directory_id,
            self.control_id,
        ) = row[:6]
        self.before: Counters
        self.after: Counters
        self.subtree: Counters
        if len(row) == 8:  # on v1 one counter twice; with few slices, for thousands are made at once
            self.before = (row[6],)
            self.after = self.before if row[7] == row[6] else (row[7],)
            self.subtree = ()
        else:  # on v2 all of them three times
            width = (len(row) - 6) // 3
            self.before, self.after, self.subtree = row[6 : 6 + width], row[6 + width : -width], row[-width:]

    def found(self, place: Place, *, born: bool = False) -> Found:
        """It is to be watched there, as one that was born under the watcher's eyes or as an old one."""
        if self.descriptor < 0 and self.is_off:
            return Found(place, -1, (), ())
        seen = (0,) * len(self.before) if born else self.before
        return Found(place, self.descriptor, seen, self.after, born=born, subtree=self.subtree)

    @property
    def is_off(self) -> bool:
        """Whether it is a v2 cgroup without the memory controller, or is just going."""
        return (
            self.descriptor == -errno.ENOENT
            and self.step == lib.MEMCG_STEP_CONTROL_FILE
            and not self.control_id
            and len(self.before) > 1
        )

    def error(self) -> OSError:
        """Why it failed, in words."""
        return registration_error(-self.descriptor, self.step, self.path, self.file)


class Registrations:
    """Cgroups registered for the notifications of a control file; several threads share the work.

    On v1 each has an eventfd, and the descriptors are in buffers that close them when they are freed. So whatever
    happens on the way, wherever an exception comes from: unless the changes of hand_over() are committed, nothing of
    this stays behind. On v2 each has a watch of the one inotify instance;
    those of which nobody takes note go by undo().

    Attributes:
        all: in the order of the paths.
        removals: how many watches the instance had lost when this began: what is lost since may be one of these.
        strays: the same of news whose owner was not known: what has come since may be of these.
        control: what they were registered for, on v1.

    Args:
        hierarchy: that the cgroups are in.
        paths: absolute paths.
        ids: the kernfs ids of their directories; what is at a path counts only if it has the id. None: it counts.
        inotify: on v1 to follow their directories, on v2 for their events; None: there is none.
        follow: whether to follow their directories, on v2.
        highest_fd: an eventfd above it counts as one too many.
        control: what to register for, on v1.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        paths: Sequence[str],
        ids: Sequence[int] | None = None,
        *,
        inotify: Inotify | None = None,
        follow: bool = False,
        highest_fd: int = _NO_LIMIT,
        control: Control = OOM,
    ) -> None:
        self.control = control
        self._version = hierarchy.version
        self._inotify = inotify
        self.removals, self.strays = (0, 0) if inotify is None else (inotify.removals, inotify.strays)
        inotify_fd = hierarchy.inotify_fd if inotify is None else inotify.fd
        how: dict[str, object] = {"count": 0, "inotify_fd": inotify_fd}
        if hierarchy.version == 1:
            how |= {"mount_fd": hierarchy.id_fd, "highest_fd": highest_fd, "control": control.fields}
        else:
            how |= {"follow": follow}
        kind = _Slice if hierarchy.version == 1 else _V2Slice
        if len(paths) >= SLICE and hierarchy.version == 1:
            _grow_descriptor_table(len(paths))
        threads = max(1, min(processors(), len(paths) // SLICE))
        size = -(-len(paths) // threads)
        file = control.file if hierarchy.version == 1 else hierarchy.control_file
        self._slices = [
            kind(
                hierarchy.device,
                file,
                paths[start : start + size],
                None if ids is None else ids[start : start + size],
                how,
            )
            for start in range(0, len(paths), size or 1)
        ]
        # The interpreter lock is released in the core: the slices really run side by side. The first is this thread's.
        try:
            side_by_side([one.run for one in self._slices])
            self.all = [registration for one in self._slices for registration in one.registrations()]
        except BaseException:
            self.undo()
            raise

    def give_up(self, index: int) -> None:
        """Closes one of them."""
        if self._version == 2:
            self._discard(self.all[index])
            return
        for one in self._slices:
            if index < len(one.paths):
                os.close(one.buffer.rows[index].eventfd)
                one.buffer.rows[index].eventfd = -1
                return
            index -= len(one.paths)

    def undo(self) -> None:
        """Lets go at once of what was not handed over; an exception that somebody keeps would keep the buffers."""
        for one in self._slices:
            if self._version == 1:
                lib.memcg_unregister_many(one.buffer)
            else:
                for registration in one.registrations() if one.buffer.count else ():
                    self._discard(registration)
                one.buffer.count = 0

    def _discard(self, registration: Registration) -> None:
        if self._inotify is not None:
            self._inotify.discard(registration.descriptor)
            self._inotify.discard(registration.follower)

    def hand_over(self) -> list[Change]:
        """The changes by which the descriptors belong to somebody else."""
        return [(one.buffer, "count", 0) for one in self._slices]


class _Slice:
    """What one thread registers."""

    struct = "struct memcg_registrations *"
    head, row = _HEAD, _ROW

    def __init__(
        self, device: int, file: str, paths: Sequence[str], ids: Sequence[int] | None, how: dict[str, object]
    ) -> None:
        self.paths = paths
        self._file = file
        self.buffer = self._keep(ffi.new(self.struct, {**how, "rows": len(paths)}))
        self._device = device
        self._packed = pack_paths(paths)
        self._ids = None if ids is None else array("Q", ids)

    @staticmethod
    def _keep(buffer: ffi.CData) -> ffi.CData:
        return ffi.gc(buffer, lib.memcg_unregister_many)

    def run(self) -> None:
        """Registers them; in a thread of its own, or not."""
        ids = ffi.NULL if self._ids is None else ffi.from_buffer("uint64_t[]", self._ids)
        self._register(self._device, ids, ffi.from_buffer(self._packed), len(self.paths), self.buffer)

    @staticmethod
    def _register(device: int, ids: ffi.CData, paths: ffi.CData, count: int, buffer: ffi.CData) -> None:
        lib.memcg_register_many(device, ids, paths, count, buffer)

    def registrations(self) -> list[Registration]:
        """What came of them."""
        data = ffi.buffer(self.buffer, self.head.size + len(self.paths) * self.row.size)
        rows = self.row.iter_unpack(data[self.head.size :])
        return [Registration(path, self._file, row) for path, row in zip(self.paths, rows, strict=True)]


class _V2Slice(_Slice):
    """What one thread attaches to."""

    struct = "struct memcg_attachments *"
    head, row = _V2_HEAD, _V2_ROW

    @staticmethod
    def _keep(buffer: ffi.CData) -> ffi.CData:
        return buffer

    @staticmethod
    def _register(device: int, ids: ffi.CData, paths: ffi.CData, count: int, buffer: ffi.CData) -> None:
        lib.memcg_attach_many(device, ids, paths, count, buffer)


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
            if hierarchy.is_root(one.directory_id) and registrations.control is OOM:
                raise root_error(one.path)
            if one.descriptor < 0:
                raise off_error(one.path) if one.is_off and os.path.isdir(one.path) else one.error()
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
        "the root cgroup: the kernel never says that it is out of memory (v1 accepts the registration); watch the "
        "cgroups below it, all of them with watch_tree()",
        path,
    )


# What to do about an errno, by the step that it came from.
_ADVICE = {
    (lib.MEMCG_STEP_EVENT_CONTROL, errno.EACCES): "registering needs write permission there",
    (lib.MEMCG_STEP_EVENT_CONTROL, errno.EPERM): "registering needs write permission there",
    (lib.MEMCG_STEP_EVENT_CONTROL, errno.EROFS): "the hierarchy is mounted read-only, and registering is a write",
    (lib.MEMCG_STEP_FOLLOW, errno.EMFILE): "no inotify instance left; raise fs.inotify.max_user_instances",
    (lib.MEMCG_STEP_FOLLOW, errno.ENOSPC): "no inotify watches left; raise fs.inotify.max_user_watches",
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
    # Of an instance that was not to be had: a watch takes no descriptor.
    if error in NO_FDS and (step, error) not in _ADVICE:
        return os_error(error, cgroup, "no descriptors left for another watch; raise RLIMIT_NOFILE (ulimit -n)")
    # ENODEV comes from a file that was open, ESTALE from a cgroup that is not the one meant: whatever is at the path
    # now, that cgroup has gone.
    is_gone = error == errno.ENODEV or (error in GONE and _is_removed(cgroup))
    if error == errno.ESTALE or (step != lib.MEMCG_STEP_CGROUP and is_gone):
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
