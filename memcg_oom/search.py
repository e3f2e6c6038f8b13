"""Looking for the cgroups of a tree: all of them, or where something has changed.

Whatever a source says has happened, what is there now is looked at, by the id of the directory: a cgroup that is not
known is new, one that is known under another path was renamed. So it makes no difference in what order things happened,
and a rescan is the same for every directory at once.

A cgroup that was born under the tree's eyes has the baseline 0: what was killed in it before its watch stood is told.
kernfs ids only grow, so that is one whose id is above the highest that the first scan knew. Just the changes from
during the scan are ambiguous, since a rename can hide an old cgroup from it: with them, only what was not renamed
counts as born.
"""

from __future__ import annotations

import errno
import os
import resource
import stat

from memcg_oom._native import lib
from memcg_oom.errors import off_error
from memcg_oom.found import Found
from memcg_oom.hierarchy import GONE
from memcg_oom.registration import Registrations
from memcg_oom.sources import CREATED, MOVED_TO, Inotify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from memcg_oom.commit import Change as StateChange
    from memcg_oom.complaints import Complaints
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Hierarchy, Place
    from memcg_oom.registration import Registration
    from memcg_oom.sources import Change
    from memcg_oom.tree import TreeWatch
    from memcg_oom.watch import Watch

# Descriptors that a tree leaves for everybody else in the process; of a low limit, an eighth.
HEADROOM = 64
# Newcomers that are registered at once: what is kept of each meanwhile is more than what stays.
_AT_ONCE = 2048


class _Newcomer:
    """A cgroup that the tree does not hold.

    Attributes:
        parent: that it was found in; None for the tree's own root.
        name: its name there.
        directory_id: its id.
        born: whether it may have been born under the tree's eyes.
    """

    __slots__ = ("parent", "name", "directory_id", "born")

    def __init__(self, parent: Place | None, name: str, directory_id: int, born: bool) -> None:
        self.parent = parent
        self.name = name
        self.directory_id = directory_id
        self.born = born

    def path(self) -> str:
        """Where it was found."""
        return self.name if self.parent is None else f"{self.parent.path}/{self.name}"


class Search:
    """One search for cgroups that a tree does not hold yet. What it registers is its own until that is taken in.

    Synchronization: none. The first scan may run beside everything else, any other search under the monitor's lock.

    Attributes:
        tree: where.
        found: to be watched.
        registrations: whose eventfds `found` has.
        there: the id of what is now at each path at which something has happened; 0: nothing.
        left: the ids of directories in which something was renamed and then removed; what it was called before is not
            known.
        missed: the ids of directories in which a cgroup came and went before it was found.
        doubted: what is there and could not be taken in, as TreeWatch has it.
        unfollowed: directories that the source could not follow.
        followed: the ids of those that it could follow after all.
        troubles: what is to be complained of.
        complete: whether everything that there is could be read.
    """

    def __init__(self, hierarchy: Hierarchy, tree: TreeWatch) -> None:
        self.tree = tree
        self.found: list[Found] = []
        self.registrations: list[Registrations] = []
        self.there: dict[str, int] = {}
        self.left: set[int] = set()
        self.missed: set[int] = set()
        self.doubted: set[tuple[int, str]] = set()
        self.unfollowed: dict[int, Place] = {}
        self.followed: list[int] = []
        self.troubles: list[Callable[[Complaints, list[Event]], list[StateChange]]] = []
        self.complete = True
        self._hierarchy = hierarchy
        self._known: set[int] = set()  # found by this search
        source = tree._source
        self._inotify = hierarchy.inotify or (source if isinstance(source, Inotify) else None)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._highest_fd = soft - 1 - min(HEADROOM, soft // 8)

    def undo(self) -> None:
        """Closes what was registered."""
        for registrations in self.registrations:
            registrations.undo()

    # -- where to look

    def scan(self) -> None:
        """Looks everywhere for the first time.

        Raises:
            OSError: the root is gone, or cannot even be read.
        """
        place = self.tree._place
        if self._hierarchy.is_root(place.directory_id):
            # It takes no registration that would ever be signalled; on v1 it counts its own kills.
            now = self._hierarchy.look([place])[0][:1] if self._hierarchy.version == 1 else ()
            if now and now[0] < 0:
                raise OSError(-now[0], os.strerror(-now[0]), place.path)
            with self._hierarchy.directory(place) as fd:
                self._note_following(place, self.tree._source.follow(fd, place.directory_id))
            self.found.append(Found(place, -1, now, now))
            self._below([(place, False)])
        else:
            self._take([_Newcomer(None, place.path, place.directory_id, born=False)])

    def changed(self, changes: list[Change]) -> None:
        """Looks at every name that something has happened to."""
        names: dict[int, dict[str, int]] = {}
        for directory_id, name, mask in changes:
            if self._member(directory_id) is not None:
                here = names.setdefault(directory_id, {})
                here[name] = here.get(name, 0) | mask
        for directory_id, here in names.items():
            parent = self._member(directory_id)
            assert parent is not None  # it was a moment ago
            entries = []
            try:
                with self._hierarchy.directory(parent) as fd:
                    for name, mask in here.items():
                        born = not mask & MOVED_TO
                        if not name:
                            # These file systems take names above NAME_MAX, and fanotify leaves such out.
                            listed = self._hierarchy.children(fd)
                            entries += [(one, one_id, born) for one, one_id in listed]
                            continue
                        status = _status(name, fd)
                        self.there[f"{parent.path}/{name}"] = 0 if status is None else status.st_ino
                        if status is None:
                            if mask & CREATED:
                                self.missed.add(directory_id)
                            if mask & MOVED_TO:
                                self.left.add(directory_id)
                        elif stat.S_ISDIR(status.st_mode):
                            entries.append((name, status.st_ino, born))
            except OSError as error:
                self._failed(error.errno, directory_id)
            self._take(self._newcomers(parent, entries))

    def everywhere(self) -> None:
        """Lists every directory of the tree."""
        members = [watch._place for watch in self.tree._members.values() if watch._tree is self.tree]
        self._below([(place, True) for place in members])

    def unfollowed_again(self) -> None:
        """Lists the directories that nobody tells of, and tries again to have them followed."""
        self._below([(place, True) for place in self.tree._unfollowed.values()])

    def _below(self, parents: Iterable[tuple[Place, bool]]) -> None:
        """Lists directories, those that have others in them, and then whatever is new there."""
        newcomers = []
        for parent, born in parents:
            listed: list[tuple[str, int]] = []
            try:
                with self._hierarchy.directory(parent) as fd:
                    if parent.directory_id in self.tree._unfollowed and self.tree._source.follow(
                        fd, parent.directory_id
                    ):
                        self.followed.append(parent.directory_id)
                    if os.fstat(fd).st_nlink != 2:
                        listed = self._hierarchy.children(fd)
            except OSError as error:
                self._failed(error.errno, parent.directory_id)
            newcomers += self._newcomers(parent, [(name, directory_id, born) for name, directory_id in listed])
        self._take(newcomers)

    def has_gone(self, watch: Watch) -> bool:
        """Whether the cgroup of a watch is at its path no more, though another may be."""
        directory_id: int = watch._place.directory_id
        return self.there.get(watch.cgroup, directory_id) != directory_id

    def may_have_gone(self, watch: Watch) -> bool:
        """The same, or whether it may be one of which that is not known."""
        parent = watch._place.parent
        return self.has_gone(watch) or (parent is not None and parent.directory_id in self.left)

    # -- what is found

    def _member(self, directory_id: int) -> Place | None:
        watch = self.tree.member(directory_id)
        return None if watch is None else watch._place

    def _newcomers(self, parent: Place, entries: list[tuple[str, int, bool]]) -> list[_Newcomer]:
        """Those of a directory's entries (name, id, whether maybe born) that are new; notes those that were renamed."""
        newcomers = []
        for name, directory_id, born in entries:
            watch = self.tree.member(directory_id)
            if watch is not None:
                watch._place.name = name  # another one, if it was renamed
            elif directory_id not in self._known:
                self._known.add(directory_id)
                newcomers.append(_Newcomer(parent, name, directory_id, born))
        return newcomers

    def _take(self, newcomers: list[_Newcomer]) -> None:
        """Registers newcomers, and goes on with what is in them."""
        while newcomers:
            some = newcomers[:_AT_ONCE]
            del newcomers[:_AT_ONCE]
            registrations = Registrations(
                self._hierarchy,
                [newcomer.path() for newcomer in some],
                [newcomer.directory_id for newcomer in some],
                inotify=self._inotify,
                follow=self.tree._source is self._inotify,
                highest_fd=self._highest_fd,
            )
            self.registrations.append(registrations)
            taken = [
                (newcomer, row, place)
                for newcomer, row in zip(some, registrations.all, strict=True)
                if (place := self._one(newcomer, row)) is not None
            ]
            registrations.all.clear()  # what came of them was taken; undo() needs less
            for newcomer, row, place in taken:
                if row.children:
                    newcomers += self._listed(place, newcomer.born)

    def _listed(self, place: Place, born: bool) -> list[_Newcomer]:
        try:
            with self._hierarchy.directory(place) as fd:
                listed = self._hierarchy.children(fd)
        except OSError as error:
            self._failed(error.errno, place.directory_id)
            return []
        return self._newcomers(place, [(name, directory_id, born) for name, directory_id in listed])

    def _one(self, newcomer: _Newcomer, row: Registration) -> Place | None:
        """What became of a newcomer: it is found, with an eventfd or without, or it is gone."""
        error = -row.descriptor
        is_off = row.is_off and (newcomer.parent is None or self._is_off(newcomer.parent, newcomer))
        if is_off and newcomer.parent is None:
            raise off_error(row.path)
        if not is_off and row.descriptor < 0 and (error in GONE or row.control_id == 0 or row.before[0] < 0):
            self.tree._source.discard(row.follower)
            if newcomer.parent is None:
                raise row.error()
            if error not in GONE:
                self._failed(error, newcomer.parent.directory_id, newcomer.name)
            elif self._is_still_there(newcomer.parent, newcomer):
                self._failed(errno.EAGAIN, newcomer.parent.directory_id, newcomer.name)
            else:
                self.missed.add(newcomer.parent.directory_id)
            return None
        if newcomer.parent is None:
            place = self.tree._place
        else:
            place = self._hierarchy.child(newcomer.parent, newcomer.name, newcomer.directory_id, row.control_id)
        if row.descriptor < 0 and not is_off:
            trouble, of_inotify = row.error(), row.step == lib.MEMCG_STEP_FOLLOW
            self.troubles.append(lambda complaints, events: complaints.polled(trouble, of_inotify, events))
        self._note_following(place, self.tree._source.followed(place.directory_id, row.follower))
        self.found.append(row.found(place, born=self._is_born(newcomer)))
        return place

    def _is_born(self, newcomer: _Newcomer) -> bool:
        if newcomer.parent is not None:
            where, doubted = newcomer.parent.directory_id, self.tree._doubted
            if doubted.get((where, newcomer.name)) or doubted.get((where, "")):
                return False  # or it would be told twice
        watermark = self.tree._watermark
        return newcomer.born if watermark is None else newcomer.directory_id > watermark

    def _is_off(self, parent: Place, newcomer: _Newcomer) -> bool:
        """Whether one without the controller's files is there without them, and not just going."""
        return self._is_still_there(parent, newcomer) and not self._hierarchy.controls_memory(parent.path)

    def _is_still_there(self, parent: Place, newcomer: _Newcomer) -> bool:
        """Whether one that could not be opened is there all the same.

        It was looked for by a path that had changed, or the kernel had no memory for its inode, which looks the same.
        """
        try:
            with self._hierarchy.directory(parent) as fd:
                status = _status(newcomer.name, fd)
        except OSError as error:
            return error.errno not in GONE
        return status is not None and status.st_ino == newcomer.directory_id

    def _note_following(self, place: Place, followed: bool) -> None:
        if not followed:
            self.unfollowed[place.directory_id] = place
            kind = self.tree.source
            self.troubles.append(lambda complaints, events: complaints.unfollowed(kind, events))

    def _failed(self, error: int | None, directory_id: int, name: str = "") -> None:
        """A directory or a cgroup that could not be opened: it is gone, or it has to be tried again."""
        number = error or errno.EIO
        if number not in GONE:
            self.complete = False
            self.doubted.add((directory_id, name))
            self.troubles.append(lambda complaints, events: complaints.undiscovered(number, events))


def _status(name: str, directory_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
