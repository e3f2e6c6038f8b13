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
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from memcg_oom.hierarchy import Hierarchy

    # The kernfs id of a directory, a name in it, whether something was renamed to that name.
    Change: TypeAlias = tuple[int, str, bool]

_READ = 1 << 16  # bytes
_READS = 16  # in a row; what is left keeps the descriptor readable

# inotify(7) and fanotify(7).
_IN_EVENT = struct.Struct("=iIII")
_IN_MOVED_TO = 0x80
_IN_Q_OVERFLOW = 0x4000
_FAN_EVENT = struct.Struct("=IBBHQii")
_FAN_MOVED_TO = 0x80
_FAN_Q_OVERFLOW = 0x4000
_FAN_HEADER = 4  # of a record: its type and its length
_FAN_FSID = 8
_FAN_HANDLE = struct.Struct("=IiQ")  # struct file_handle of kernfs: 8 bytes, type 0xfe, the id


class Source:
    """The base: nobody tells. Each directory has to be listed again and again.

    Attributes:
        kind: its name.
        fd: readable when there are changes; -1: never.
        inotify_fd: what a registration is to follow directories with; -1: nothing.
        follows_all: whether every directory of the hierarchy is followed, without being named.
        overflowed: whether changes were lost since this was last set to False.
    """

    kind = "audit"
    follows_all = False

    def __init__(self) -> None:
        self.fd = -1
        self.inotify_fd = -1
        self.overflowed = False

    def changes(self) -> list[Change]:
        """What has changed since the last call."""
        return []

    def follow(self, directory_fd: int, directory_id: int) -> bool:
        """Follows an open directory; whether that is done."""
        return self.follows_all

    def followed(self, directory_id: int, watch: int) -> bool:
        """Takes note of what the registration of a cgroup did about its directory; whether it is followed."""
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

    def changes(self) -> list[Change]:
        """What has changed since the last call."""
        found: list[Change] = []
        for data in self._packets():
            offset = 0
            while offset < len(data):
                length, _, _, header, mask, _, _ = _FAN_EVENT.unpack_from(data, offset)
                if mask & _FAN_Q_OVERFLOW:
                    self.overflowed = True
                else:
                    handle = offset + header + _FAN_HEADER + _FAN_FSID
                    _, _, directory_id = _FAN_HANDLE.unpack_from(data, handle)
                    name = data[handle + _FAN_HANDLE.size : offset + length].partition(b"\0")[0]
                    found.append((directory_id, os.fsdecode(name), bool(mask & _FAN_MOVED_TO)))
                offset += length
        return found


class Inotify(Source):
    """One inotify instance with a watch on each directory.

    Raises:
        OSError: no instance left (EMFILE, fs.inotify.max_user_instances).
    """

    kind = "inotify"

    def __init__(self, _hierarchy: Hierarchy) -> None:
        super().__init__()
        self.fd = self.inotify_fd = check(lib.memcg_inotify_open(), "inotify")
        self._directories: dict[int, int] = {}  # by watch descriptor
        self._watches: dict[int, int] = {}  # and the other way round

    def changes(self) -> list[Change]:
        """What has changed since the last call."""
        found: list[Change] = []
        for data in self._packets():
            offset = 0
            while offset < len(data):
                watch, mask, _, length = _IN_EVENT.unpack_from(data, offset)
                offset += _IN_EVENT.size
                if mask & _IN_Q_OVERFLOW:
                    self.overflowed = True
                elif length and (directory_id := self._directories.get(watch)) is not None:
                    name = data[offset : offset + length].partition(b"\0")[0]
                    found.append((directory_id, os.fsdecode(name), bool(mask & _IN_MOVED_TO)))
                offset += length
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
        watch = self._watches.pop(directory_id, None)
        if watch is not None:
            del self._directories[watch]
            lib.memcg_inotify_remove(self.fd, watch)

    def discard(self, watch: int) -> None:
        """Lets go of what a registration did about a directory, if nobody has taken note of it."""
        if watch >= 0 and watch not in self._directories:
            lib.memcg_inotify_remove(self.fd, watch)


SOURCES: dict[str, Callable[[Hierarchy], Source]] = {"fanotify": Fanotify, "inotify": Inotify}


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
    if kind is not None:
        return SOURCES[kind](hierarchy)
    for make in SOURCES.values():
        try:
            return make(hierarchy)
        except OSError:  # not on this kernel, not with these privileges, none left: the next one does as well
            continue
    return Source()
