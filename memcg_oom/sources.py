"""Who tells that cgroups come, go and move: one fanotify mark, or one inotify watch a directory, or nobody.

None of them is taken at its word: a change names a directory and a name in it, and whoever hears of it looks at what
is there now. So events that the kernel merged, and those that others have overtaken, do no harm.
"""

from __future__ import annotations

import os
import struct

from memcg_oom._native import lib
from memcg_oom.errors import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from memcg_oom.hierarchy import Hierarchy

    # The kernfs id of a directory, a name in it, and what has happened to it; fanotify merges what nobody has read yet.
    Change: TypeAlias = tuple[int, str, int]

_READ = 1 << 16  # bytes
_READS = 16  # in a row; what is left keeps the descriptor readable

# inotify(7) and fanotify(7), which have these in common.
MOVED_TO = 0x80
CREATED = 0x100
DELETED = 0x200
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_IN_EVENT = struct.Struct("=iIII")
_FAN_EVENT = struct.Struct("=IBBHQii")
_FAN_HEADER = 4  # of a record: its type and its length
_FAN_FSID = 8
_FAN_HANDLE = struct.Struct("=IiQ")  # struct file_handle of kernfs: 8 bytes, type 0xfe, the id


class Source:
    """The base: nobody tells. Each directory has to be listed again and again.

    Attributes:
        kind: its name.
        fd: readable when there are changes; -1: never.
        follows_all: whether every directory of the hierarchy is followed, without being named.
        overflowed: whether changes were lost since this was last set to False.
    """

    kind = "audit"
    follows_all = False

    def __init__(self) -> None:
        self.fd = -1
        self.overflowed = False

    def changes(self, scanning: bool) -> list[Change]:
        """What has changed since the last call.

        Args:
            scanning: whether another thread may be having directories followed, see followed().
        """
        return []

    def follow(self, directory_fd: int, directory_id: int) -> bool:
        """Follows an open directory; whether that is done."""
        return self.follows_all

    def followed(self, directory_id: int, watch: int) -> bool:
        """Takes note of what the registration of a cgroup did about its directory; whether it is followed."""
        return self.follows_all

    def follows(self, directory_id: int) -> bool:
        """Whether a directory is followed."""
        return self.follows_all

    def unfollow(self, directory_id: int) -> None:
        """Lets go of a directory, also of one that is gone."""

    def discard(self, watch: int) -> None:
        """Lets go of what a registration did about a directory, if nobody has taken note of it."""

    def _packets(self) -> Iterator[bytes]:
        for _ in range(_READS):
            try:
                yield os.read(self.fd, _READ)
            except BlockingIOError:
                return


class Fanotify(Source):
    """One mark on the file system sees all of the hierarchy, also what is outside the tree and the namespace.

    Raises:
        OSError: no privilege (CAP_SYS_ADMIN), or not on this kernel (cgroups have it from 6.8 or so on).
    """

    kind = "fanotify"
    follows_all = True

    def __init__(self, hierarchy: Hierarchy) -> None:
        super().__init__()
        point = hierarchy.mount.point
        self.fd = check(lib.memcg_fanotify_open(os.fsencode(point)), point)

    def changes(self, scanning: bool) -> list[Change]:
        """As Source."""
        found: list[Change] = []
        for data in self._packets():
            offset = 0
            while offset < len(data):
                length, _, _, header, mask, _, _ = _FAN_EVENT.unpack_from(data, offset)
                if mask & _OVERFLOW:
                    self.overflowed = True
                else:
                    handle = offset + header + _FAN_HEADER + _FAN_FSID
                    _, _, directory_id = _FAN_HANDLE.unpack_from(data, handle)
                    name = data[handle + _FAN_HANDLE.size : offset + length].partition(b"\0")[0]
                    found.append((directory_id, os.fsdecode(name), mask))
                offset += length
        return found


class Inotify(Source):
    """One inotify instance with a watch on each directory, and on v2 on control files as well.

    Attributes:
        touched: the owners of control files that something was written to, or counted in, in the order of the news;
            whoever takes note of them takes them off.
        removals: how many watches were let go of.
        strays: how often something was said of a file whose owner is not known, not yet perhaps.

    Raises:
        OSError: no instance left (EMFILE, fs.inotify.max_user_instances).
    """

    kind = "inotify"

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[object] = []
        self.removals = self.strays = 0
        self._files: dict[int, object] = {}  # by watch descriptor
        self._directories: dict[int, int] = {}  # by watch descriptor
        self._watches: dict[int, int] = {}  # and the other way round
        # Said of directories whose watch is not known yet: a scan has them followed and takes note of it afterwards.
        self._early: list[tuple[int, str, int]] = []
        self.fd = check(lib.memcg_inotify_open(), "inotify")  # the last that can fail

    def changes(self, scanning: bool) -> list[Change]:
        """As Source."""
        said, self._early = self._early, []
        for data in self._packets():
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _IN_EVENT.unpack_from(data, offset)
                offset += _IN_EVENT.size
                if mask & _OVERFLOW:
                    self.overflowed = True
                elif (owner := self._files.get(watch)) is not None:
                    self.touched.append(owner)
                elif mask & _IGNORED:
                    pass  # of a watch that is gone
                elif not length:
                    self.strays += 1
                else:
                    said.append((watch, os.fsdecode(data[offset : offset + length].partition(b"\0")[0]), mask))
                offset += length
        found: list[Change] = []
        for watch, name, mask in said:
            if (directory_id := self._directories.get(watch)) is not None:
                found.append((directory_id, name, mask))
            elif scanning:
                self._early.append((watch, name, mask))
        return found

    def follow(self, directory_fd: int, directory_id: int) -> bool:
        """Follows an open directory; whether that is done: fs.inotify.max_user_watches may be reached (ENOSPC)."""
        return self.followed(directory_id, lib.memcg_inotify_add(self.fd, directory_fd))

    def followed(self, directory_id: int, watch: int) -> bool:
        """Takes note of what the registration of a cgroup did about its directory; whether it is followed."""
        if watch < 0:
            return False
        self._directories[watch] = directory_id
        self._watches[directory_id] = watch
        return True

    def unfollow(self, directory_id: int) -> None:
        """Lets go of a directory, also of one that is gone: the kernel itself never does."""
        watch = self._watches.get(directory_id)
        if watch is not None:
            self._remove(watch)  # first, so that an exception leaves it to the next call
            del self._directories[watch], self._watches[directory_id]

    def discard(self, watch: int) -> None:
        """Lets go of what a registration did about a directory or a file, if nobody has taken note of it."""
        if watch >= 0 and watch not in self._directories and watch not in self._files:
            self._remove(watch)

    def _remove(self, watch: int) -> None:
        self.removals += 1
        lib.memcg_inotify_remove(self.fd, watch)

    def follows(self, directory_id: int) -> bool:
        """As Source."""
        return directory_id in self._watches

    def add_file(self, path: str, owner: object) -> int:
        """Follows a control file on behalf of an owner; returns the watch, or -errno (ENOSPC, and what open(2) has)."""
        watch = lib.memcg_inotify_add_file(self.fd, os.fsencode(path))
        if watch >= 0:
            self._files[watch] = owner
        return watch

    def own(self, watch: int, owner: object) -> None:
        """Takes note of what a registration did about a file."""
        self._files[watch] = owner

    def remove_file(self, watch: int) -> None:
        """Lets go of a control file, also of one that is gone: the kernel itself never does."""
        if watch in self._files:
            self._remove(watch)  # first, as in unfollow()
            del self._files[watch]


SOURCES = ("fanotify", "inotify")


def check_kind(kind: str | None) -> None:
    """Whether there is such a kind.

    Raises:
        ValueError: there is not.
    """
    if kind is not None and kind not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, or None for the best there is, not {kind!r}")


def open_source(hierarchy: Hierarchy, kind: str | None) -> Source:
    """The source of that kind, or the best that can be had.

    Raises:
        OSError: the kind that was asked for is not to be had.
    """
    for one in SOURCES if kind is None else (kind,):
        try:
            if one == "fanotify":
                return Fanotify(hierarchy)
            return Inotify() if hierarchy.inotify is None else hierarchy.inotify
        except OSError:
            if kind is not None:
                raise
            # Not on this kernel, not with these privileges, none left: the next one does as well.
    return Source()
