"""The mounted memory hierarchy, of either version, and control files in it by identity.

A cgroup is its inode; a path is only where to look. The C core opens memory.oom_control by its kernfs id, through
open_by_handle_at(2): that finds the very file after a rename, never a namesake that was made under the old path, and
fails with ESTALE once it is gone. Where CAP_DAC_READ_SEARCH is missing it opens the path and compares inode numbers,
and a path that leads nowhere, or to another, is looked for by the inodes on the way to it before it counts as gone.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from contextlib import contextmanager

from memcg_oom._native import ffi, lib
from memcg_oom.commit import close_all, close_and_commit
from memcg_oom.control import OOM
from memcg_oom.errors import NotACgroupError, check
from memcg_oom.mounts import mount_of
from memcg_oom.paths import directory_status, read_file
from memcg_oom.sources import Inotify
from memcg_oom.threads import processors, side_by_side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol, TypeVar

    from memcg_oom.commit import Change
    from memcg_oom.control import Control
    from memcg_oom.found import Counters
    from memcg_oom.mounts import Mount

    class _Part(Protocol):
        """What one thread looks at."""

        def run(self) -> None: ...

    _Kind = TypeVar("_Kind", bound=_Part)

# What a look at a control file fails with when its cgroup was removed, and with nothing else.
GONE = frozenset({errno.ESTALE, errno.ENOENT, errno.ENODEV})
# What a look at a v2 cgroup says that is there without the memory controller; no look fails with it by itself.
OFF = errno.ENOMEDIUM
# Out of descriptors: this process, the system.
NO_FDS = frozenset({errno.EMFILE, errno.ENFILE})

# A rename may overtake a search by path; so many in a row are nobody's habit.
_OVERTAKEN = 8

# Below this many a thread costs more than it saves.
SLICE = 256

_COUNTERS = struct.Struct("=qqqqq")  # struct memcg_counters

# Bytes of directory entries that are listed at once.
_LISTING = 1 << 16

# kernfs gives the root of a hierarchy the first id (cgroup_setup_root() relies on it); a namespace's root has another.
ROOT_ID = 1


class Place:
    """Where a cgroup is, and who it is.

    Attributes:
        parent: the place whose name its path goes on from: a rename of that one moves this one.
        name: its name there; without a parent the absolute path.
        directory_id: the kernfs id (st_ino) of its directory.
        control: how far from that the id of its control file is, which was made right after it: a small number costs
            no memory. None where there is no such file: on v2 where the memory controller is off.
    """

    __slots__ = ("parent", "name", "directory_id", "control")

    def __init__(self, parent: Place | None, name: str, directory_id: int, control_id: int) -> None:
        self.parent = parent
        self.name = name
        self.directory_id = directory_id
        self.control = control_id - directory_id if control_id else None

    @property
    def control_id(self) -> int:
        """The kernfs id (st_ino) of its memory.oom_control, on v2 of its memory.events.local; 0 where it has none."""
        return 0 if self.control is None else self.directory_id + self.control

    @property
    def path(self) -> str:
        """The absolute path where it was last seen."""
        parent = self.parent
        if parent is None:
            return self.name
        names = [self.name]
        while parent is not None:  # no recursion: a hierarchy may be deeper than Python's stack
            names.append(parent.name)
            parent = parent.parent
        names.reverse()
        return "/".join(names)

    @path.setter
    def path(self, path: str) -> None:
        place = self
        while place.parent is not None:
            path, _, place.name = path.rpartition("/")
            place = place.parent
        place.name = path


class TracedPlace(Place):
    """Where a cgroup is, for those who cannot open files by id.

    Attributes:
        base: the topmost directory of the file system on the way to it.
        lineage: the inodes from below `base` down to its own.
    """

    __slots__ = ("base", "lineage")

    base: str
    lineage: tuple[int, ...]


class Hierarchy:
    """An open door to the memory hierarchy: the descriptor that ids are resolved through, and a spare one.

    The spare descriptor is given up for a moment when a look finds none left, so that looks work when fds have run out.

    Synchronization: the caller's; a Monitor looks under its lock.

    Attributes:
        device: st_dev of everything in it.
        mount: the mount by which `path` was reached.
        version: 1 or 2.
        control_file: the name of what is read of each cgroup: memory.oom_control, on v2 memory.events.local.
        by_id: whether ids can be opened, which takes CAP_DAC_READ_SEARCH; else paths are, and inodes compared.
        is_whole: whether the hierarchy's own root is what is mounted, not a cgroup namespace's or another one's.
        inotify: on v2 the instance that tells of events in all cgroups, or None where there was none to be had.
        inotify_fd: its descriptor; or a negative number, on v2 -errno: why there is none.

    Args:
        path: any cgroup of the hierarchy.

    Raises:
        OSError: `path` does not exist or is no directory.
        NotACgroupError: it is not in the memory hierarchy.
    """

    def __init__(self, path: str) -> None:
        self.device = directory_status(path).st_dev
        self.mount: Mount = mount_of(path, self.device)
        self.version = self.mount.version
        self.control_file = "memory.oom_control" if self.version == 1 else "memory.events.local"
        self._door: list[int] = []  # what it is open by, and so long
        self._spare: list[int] = []  # one, or none while it is given up
        self.inotify: Inotify | None = None
        self.inotify_fd = -1
        try:
            # As everywhere: what opens a descriptor puts it on a list, for which there is memory then.
            self._door.extend(map(os.open, [self.mount.point], [os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC]))
            self._fd = self._door[0]
            if self.version == 2:
                try:
                    self.inotify = Inotify()
                    self.inotify_fd = self.inotify.fd
                except OSError as error:  # whoever wants to follow something says so
                    self.inotify_fd = -(error.errno or errno.EIO)
            self.is_whole = self.is_root(os.fstat(self._fd).st_ino)
            self.by_id = self._can_open_by_id()
            self._take_spare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the descriptors up; harmless when done again, and in a forked child too."""
        fds: list[int] = []
        close_and_commit(fds, self.hand_over(fds))

    def hand_over(self, fds: list[int]) -> list[Change]:
        """Puts the descriptors on a list; returns the changes by which they are not its own any more."""
        fds += self._spare + self._door
        changes: list[Change] = [(self, "_spare", []), (self, "_door", [])]
        if self.inotify is not None and self.inotify.fd >= 0:
            fds.append(self.inotify.fd)
            changes.append((self.inotify, "fd", -1))
        return changes

    def _can_open_by_id(self) -> bool:
        """Tries it on the mount's own root: privilege, kernel and file system decide, so nothing else is asked."""
        own_id = os.fstat(self._fd).st_ino
        fd = lib.memcg_open_by_id(self._fd, own_id)
        if fd < 0:
            if -fd in NO_FDS:
                raise OSError(-fd, os.strerror(-fd), self.mount.point)
            return False
        try:
            return os.fstat(fd).st_ino == own_id
        finally:
            os.close(fd)

    def path_in_log(self, name: str) -> str | None:
        """Where a cgroup is that the kernel's log names, from the hierarchy's own root; None: it cannot be seen here.

        To a cgroup namespace mountinfo says where that is from the namespace's root (cgroup_show_path()), which helps
        only if the whole hierarchy is mounted.
        """
        if self.is_whole:
            return os.path.normpath(f"{self.mount.point}/{name}")
        return self.mount.path_of(name)

    @property
    def id_fd(self) -> int:
        """The descriptor that ids are resolved through, or -1 where they cannot be."""
        return self._fd if self.by_id else -1

    @staticmethod
    def is_root(directory_id: int) -> bool:
        """Whether that is the root of the hierarchy, which the kernel never signals."""
        return directory_id == ROOT_ID

    def place(self, path: str, directory_id: int, control_id: int) -> Place:
        """Where the cgroup is that was just found at `path`.

        Raises:
            FileNotFoundError: it was removed meanwhile.
        """
        if self.by_id:
            return Place(None, path, directory_id, control_id)
        place = TracedPlace(None, path, directory_id, control_id)
        place.base, place.lineage = self._lineage(path, directory_id)
        return place

    def find(self, path: str) -> Place:
        """Where the cgroup is that has this path now.

        Raises:
            FileNotFoundError, NotADirectoryError: there is none.
            NotACgroupError, UnsupportedError: it is not in this hierarchy.
        """
        status = directory_status(path)
        if status.st_dev != self.device:
            mount_of(path, status.st_dev)
            raise NotACgroupError(errno.EXDEV, "not in the memory hierarchy of what is watched already", path)
        return self.place(path, status.st_ino, self._control_id(path))

    def _control_id(self, path: str) -> int:
        """The id of the control file in the cgroup at the path; 0 on v2 where it has none."""
        try:
            return os.stat(os.path.join(path, self.control_file)).st_ino
        except FileNotFoundError:
            if self.version == 1 or not os.path.exists(path):
                raise
            return 0

    def child(self, parent: Place, name: str, directory_id: int, control_id: int) -> Place:
        """Where a cgroup is that was found in the directory of another."""
        if not isinstance(parent, TracedPlace):
            return Place(parent, name, directory_id, control_id)
        place = TracedPlace(parent, name, directory_id, control_id)
        place.base, place.lineage = parent.base, (*parent.lineage, directory_id)
        return place

    @contextmanager
    def directory(self, place: Place) -> Iterator[int]:
        """The open directory of a cgroup: that very one, wherever it is now.

        Raises:
            OSError: an errno of GONE: it was removed.
        """
        fds: list[int] = []  # one, or -errno; it is put there by the call that opens it, so that Ctrl-C leaves none
        try:
            self._open_directory(place, fds)
            if -fds[0] in NO_FDS and self._spare:
                self._give_up_spare()
                fds.clear()
                self._open_directory(place, fds)
            yield check(fds[0], place.path)
        finally:
            if fds and fds[0] >= 0:
                os.close(fds[0])  # the first call here: no signal handler runs before it
            self._take_spare()

    def tasks(self, place: Place, length: int) -> list[int]:
        """The processes in a cgroup, by the pids that this process sees; none if it is not at its path, or unreadable.

        Args:
            place: where it is.
            length: of the list, in bytes; what is beyond is left out.
        """
        path = place.path
        try:
            text = read_file(f"{path}/cgroup.procs", length)
            status = os.stat(path)
        except OSError:
            return []
        # Afterwards: who came to this path before it was opened is still here, or has made room for another.
        if (status.st_ino, status.st_dev) != (place.directory_id, self.device):
            return []
        return [int(pid) for pid in text[: text.rfind(b"\n") + 1].split()]

    def _open_directory(self, place: Place, fds: list[int]) -> None:
        if self.by_id:
            self._open_by_path_or_id(place, fds)
            return
        for _ in range(_OVERTAKEN):
            try:
                if self.moved([place])[0]:
                    path = self._path_by_lineage(place)
                    if path is None:
                        fds.append(-errno.ESTALE)
                        return
                    place.path = path
                fds.extend(map(os.open, [place.path], [os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC]))
            except OSError as error:
                if error.errno not in GONE:
                    fds.append(-(error.errno or errno.EIO))
                    return
                continue
            if os.fstat(fds[0]).st_ino == place.directory_id:
                return
            close_all(fds)
        fds.append(-errno.EAGAIN)

    def _open_by_path_or_id(self, place: Place, fds: list[int]) -> None:
        """At its path, which is much cheaper for a directory with many beside it; by its id if it is not there."""
        try:
            fds.extend(map(os.open, [place.path], [os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC]))
        except OSError as error:
            if error.errno not in GONE and error.errno != errno.ENOTDIR:
                fds.append(-(error.errno or errno.EIO))
                return
        else:
            status = os.fstat(fds[0])
            if (status.st_dev, status.st_ino) == (self.device, place.directory_id):
                return
            close_all(fds)
        fds.extend(map(lib.memcg_open_by_id, [self._fd], [place.directory_id]))

    @staticmethod
    def children(directory_fd: int) -> list[tuple[str, int]]:
        """The names and ids of the cgroups in an open directory."""
        found: list[tuple[str, int]] = []
        names = ffi.new("char[]", _LISTING)
        ids = ffi.new("uint64_t[]", _LISTING // lib.MEMCG_ENTRY)
        while count := check(lib.memcg_list(directory_fd, names, _LISTING, ids), "getdents64"):
            listed = os.fsdecode(bytes(ffi.buffer(names))).split("\0", count)[:count]
            found += zip(listed, ffi.unpack(ids, count), strict=True)
        return found

    def look(self, places: Sequence[Place], control: Control = OOM) -> list[tuple[int, int]]:
        """Reads the control file of each v1 cgroup.

        An errno of GONE proves that the cgroup is gone; EAGAIN that nobody could tell just now.

        Args:
            places: the cgroups; control_id is that of the file.
            control: the file, and what is read of it.

        Returns:
            For each its value (of memory.oom_control, oom_kill) or -errno, and whether the file says under_oom.
        """
        found = self._look(places, control)
        if min(found, default=(0, 0))[0] < 0:
            self._look_again(places, control, found)
        return found

    def _look_again(self, places: Sequence[Place], control: Control, found: list[tuple[int, int]]) -> None:
        """A second look where the first has failed for a reason that need not last."""
        short = [i for i, (value, _) in enumerate(found) if -value in NO_FDS]
        if short:
            self._give_up_spare()
            for i, result in zip(short, self._look([places[i] for i in short], control), strict=True):
                found[i] = result
        gone = [i for i, (value, _) in enumerate(found) if -value in GONE]
        if gone and self.by_id:
            # The kernel says ESTALE as well when it has no memory for the inode. What is still at its path is not
            # gone, or is just going: look again. What is not may have been renamed: gone is what is not found twice.
            moved = self.moved([places[i] for i in gone])
            again = self._look([places[i] for i in gone], control)
            for i, where, result in zip(gone, moved, again, strict=True):
                found[i] = result if where == lib.MEMCG_ELSEWHERE else (-errno.EAGAIN, 0)
        elif gone:
            for i in gone:
                found[i] = self._look_elsewhere(places[i], control)
        self._take_spare()

    def counters(self, places: Sequence[Place]) -> list[Counters]:
        """Reads what memory.events.local of each v2 cgroup counts; the first of them may be -errno instead.

        An errno of GONE proves that the cgroup is gone, OFF that it is there without the memory controller; EAGAIN says
        that nobody could tell just now.
        """
        found = self._count(places)
        if min(found, default=(0,))[0] < 0:
            self._count_again(places, found)
        return found

    def _count_again(self, places: Sequence[Place], found: list[Counters]) -> None:
        """As _look_again()."""
        short = [i for i, counters in enumerate(found) if -counters[0] in NO_FDS]
        if short:
            self._give_up_spare()
            for i, counters in zip(short, self._count([places[i] for i in short]), strict=True):
                found[i] = counters
            self._take_spare()
        lost = [i for i, counters in enumerate(found) if -counters[0] in GONE]
        for i, moved in zip(lost, self.moved([places[i] for i in lost]), strict=True):
            if moved == lib.MEMCG_UNKNOWN:
                found[i] = (-errno.EAGAIN, 0, 0, 0, 0)
            elif moved == lib.MEMCG_HERE:  # nothing is ever renamed on v2
                try:
                    is_same = self._control_id(places[i].path) == places[i].control_id
                except FileNotFoundError:
                    continue
                except OSError as error:
                    found[i] = (-(error.errno or errno.EIO), 0, 0, 0, 0)
                    continue
                # The kernel says ESTALE as well when it has no memory for the inode. And of one that is just going the
                # controller's files go before the rest of it (kill_css() in cgroup_destroy_locked()).
                is_off = not is_same and not self.controls_memory(os.path.dirname(places[i].path))
                found[i] = (-OFF if is_off else -errno.EAGAIN, 0, 0, 0, 0)

    @staticmethod
    def controls_memory(path: str) -> bool:
        """Whether the memory controller is on in what is in a v2 cgroup (cgroup.subtree_control)."""
        try:
            with open(f"{path}/cgroup.subtree_control", "rb") as file:
                return b"memory" in file.read().split()
        except FileNotFoundError:
            return False

    def _count(self, places: Sequence[Place]) -> list[Counters]:
        slices = self._in_slices(_Counting, places)
        return [counters for one in slices for counters in _COUNTERS.iter_unpack(one.found)]

    def subtrees(self, places: Sequence[Place]) -> list[Counters]:
        """Reads what memory.events of each v2 cgroup counts: of all that is and was in it, itself included."""
        found = bytearray(_COUNTERS.size * len(places))
        lib.memcg_subtree_many(
            self.device,
            ffi.from_buffer("uint64_t[]", array("Q", [place.directory_id for place in places])),
            ffi.from_buffer(pack_paths([place.path for place in places])),
            len(places),
            ffi.from_buffer("struct memcg_counters[]", found),
        )
        return list(_COUNTERS.iter_unpack(found))

    def _in_slices(self, kind: Callable[[Hierarchy, Sequence[Place]], _Kind], places: Sequence[Place]) -> list[_Kind]:
        """Has one call each look at a part; several, on several processors, where that pays."""
        if len(places) < 2 * SLICE:
            slices = [kind(self, places)]
            slices[0].run()
        else:
            size = -(-len(places) // min(processors(), len(places) // SLICE))
            slices = [kind(self, places[at : at + size]) for at in range(0, len(places), size)]
            side_by_side([one.run for one in slices])
        return slices

    def _look(self, places: Sequence[Place], control: Control) -> list[tuple[int, int]]:
        slices = self._in_slices(lambda *part: _Slice(control, *part), places)
        return [row for one in slices for row in zip(one.values, one.under_oom, strict=True)]

    def _give_up_spare(self) -> None:
        close_all(self._spare)

    def _take_spare(self) -> None:
        if not self._spare:
            try:
                self._spare.extend(map(os.dup, [self._fd]))
            except OSError as error:
                if error.errno not in NO_FDS:
                    raise
                # Somebody was faster; the next look tries again.

    def follow(self, places: Sequence[Place]) -> None:
        """Brings the paths of cgroups that were renamed, or lie in one that was, up to date."""
        elsewhere = self.moved(places)
        if any(elsewhere):
            moved = [place for place, has_moved in zip(places, elsewhere, strict=True) if has_moved]
            self._give_up_spare()
            for place in moved:
                try:
                    found = self._path_by_id(place) if self.by_id else self._path_by_lineage(place)
                except OSError:
                    found = None  # it went, or moved on, while it was looked for: the next event says where to
                place.path = found or place.path
            self._take_spare()

    def moved(self, places: Sequence[Place], paths: Sequence[str] | None = None) -> array[int]:
        """Whether each cgroup is not at its path: it was renamed, or it is gone (MEMCG_ELSEWHERE).

        Args:
            places: the cgroups.
            paths: theirs, of whoever has made them up already.

        Returns:
            For each 0 (MEMCG_HERE), or else MEMCG_ELSEWHERE, or MEMCG_UNKNOWN where nobody could tell just now.
        """
        moved = array("B", bytes(len(places)))
        lib.memcg_moved_many(
            self.device,
            ffi.from_buffer("uint64_t[]", array("Q", [place.directory_id for place in places])),
            ffi.from_buffer(pack_paths([place.path for place in places] if paths is None else paths)),
            len(places),
            ffi.from_buffer("uint8_t[]", moved),
        )
        return moved

    def _path_by_id(self, place: Place) -> str | None:
        with self.directory(place) as fd:
            path = os.readlink(f"/proc/self/fd/{fd}")
        # A cgroup that was moved out of what is mounted here has no path: the kernel gives "/". To the path of one that
        # was removed just now it adds " (deleted)".
        return path if path != "/" and os.stat(path).st_ino == place.directory_id else None

    def _look_elsewhere(self, place: Place, control: Control) -> tuple[int, int]:
        """The second look where paths are all there is: a renamed cgroup has to be found before it can be read."""
        for _ in range(_OVERTAKEN):
            try:
                path = self._path_by_lineage(place)
            except OSError as error:
                if error.errno in NO_FDS and self._spare:
                    self._give_up_spare()
                elif error.errno not in GONE:  # a directory on the way may be renamed under the search
                    return -(error.errno or errno.EIO), 0
                continue
            if path is None:
                return -errno.ESTALE, 0
            place.path = path
            (found,) = self._look([place], control)
            if -found[0] not in GONE:
                return found
        return -errno.EAGAIN, 0

    def _lineage(self, path: str, directory_id: int) -> tuple[str, tuple[int, ...]]:
        """The topmost directory of this file system on the way to the cgroup, and the inodes from below it."""
        ids: list[int] = []
        step = os.path.realpath(path)  # a symbolic link is in no listing of a cgroup
        while (status := os.stat(step)).st_dev == self.device:
            ids.insert(0, status.st_ino)
            base, step = step, os.path.dirname(step)
            if step == base:
                break
        if not ids or ids[-1] != directory_id:
            raise FileNotFoundError(errno.ENOENT, "the cgroup was replaced by another while it was registered", path)
        return base, tuple(ids[1:])

    def _path_by_lineage(self, place: Place) -> str | None:
        """Where the cgroup is now, level by level by inode; None when the listing of its parent lacks it.

        A cgroup with children cannot be removed, and v1 renames stay within the parent: so an ancestor that is
        missing from its parent's listing proves that everything below it is gone.
        """
        assert isinstance(place, TracedPlace)  # whoever comes here cannot open by id
        path = place.base
        for inode in place.lineage:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.inode() == inode:
                        path = entry.path
                        break
                else:
                    return None
        return path


class _Slice:
    """What one thread looks at."""

    def __init__(self, control: Control, hierarchy: Hierarchy, places: Sequence[Place]) -> None:
        self.values = array("q", bytes(8 * len(places)))
        self.under_oom = array("B", bytes(len(places)))
        self._control = control
        self._hierarchy = hierarchy
        self._ids = array("Q", [place.control_id for place in places])
        self._paths = b"" if hierarchy.by_id else pack_paths([place.path for place in places])

    def run(self) -> None:
        lib.memcg_look_many(
            self._control.struct,
            self._hierarchy.id_fd,
            self._hierarchy.device,
            ffi.from_buffer("uint64_t[]", self._ids),
            ffi.from_buffer(self._paths),
            len(self._ids),
            ffi.from_buffer("int64_t[]", self.values),
            ffi.from_buffer("uint8_t[]", self.under_oom),
        )


class _Counting:
    """The same on v2."""

    def __init__(self, hierarchy: Hierarchy, places: Sequence[Place]) -> None:
        self.found = bytearray(_COUNTERS.size * len(places))
        self._hierarchy = hierarchy
        self._ids = array("Q", [place.control_id for place in places])
        self._paths = b"" if hierarchy.by_id else pack_paths([place.path for place in places])

    def run(self) -> None:
        lib.memcg_count_many(
            self._hierarchy.id_fd,
            self._hierarchy.device,
            ffi.from_buffer("uint64_t[]", self._ids),
            ffi.from_buffer(self._paths),
            len(self._ids),
            ffi.from_buffer("struct memcg_counters[]", self.found),
        )


def pack_paths(paths: Sequence[str]) -> bytes:
    """Absolute paths as the C core takes them: each with its NUL, one behind the other."""
    return os.fsencode("\0".join(paths) + "\0")
