"""Trees that follow the host: the first scan, and who comes, goes and moves afterwards."""

from __future__ import annotations

import os

from memcg_oom._native import lib
from memcg_oom.commit import commit
from memcg_oom.events import Created
from memcg_oom.search import Search
from memcg_oom.sources import MOVED_TO, open_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memcg_oom.commit import Change as StateChange
    from memcg_oom.complaints import Complaints
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Hierarchy
    from memcg_oom.loop import Loop
    from memcg_oom.monitor import Monitor
    from memcg_oom.sources import Change, Source
    from memcg_oom.tree import TreeWatch
    from memcg_oom.v1 import V1Watches
    from memcg_oom.v2 import V2Watches
    from memcg_oom.watch import Watch

# Changes that are kept while a tree is scanned; with more, it is scanned once more.
BACKLOG = 100_000


class Discovery:
    """All trees of one monitor.

    Synchronization: none; the monitor's lock is held around every call, but for Search, which changes nothing here.
    """

    def __init__(self, monitor: Monitor, loop: Loop, watches: V1Watches | V2Watches, complaints: Complaints) -> None:
        self.trees = watches.trees
        self.sources: dict[str, Source] = {}
        # Of monitor.py: what is called before somebody new is watched, of whom the log has not said anything yet.
        self.hear_log: Callable[[], None] = lambda: None
        self._monitor = monitor
        self._loop = loop
        self._watches = watches
        self._complaints = complaints
        self._pending: list[Change] = []  # read, and not acted upon
        self._reading = False  # whether changes may have been read and lost
        self._incomplete = False  # whether some could not be acted upon

    def take_over(self, hierarchy: Hierarchy) -> list[int]:
        """Reads from now on what the hierarchy's own instance says, on v2; returns the descriptor, if there is one."""
        if hierarchy.inotify is None:
            return []
        self.sources[hierarchy.inotify.kind] = hierarchy.inotify
        return [hierarchy.inotify.fd]

    def open_source(self, kind: str | None) -> Source:
        """The source of that kind (None: of the best); a new one joins the epoll set.

        Raises:
            OSError: the kind that was asked for is not to be had.
        """
        assert self._watches.hierarchy is not None  # opened with the first watch
        for known in self.sources.values():
            if kind == known.kind or (kind is None and not self._is_own(known)):
                return known
        source = open_source(self._watches.hierarchy, kind)
        if source.fd >= 0 and not self._is_own(source):
            try:
                self._loop.add([self._loop.key(source.fd, lib.MEMCG_UNREAD)])
                self.sources[source.kind] = source
            except BaseException:
                os.close(source.fd)
                raise
        return source

    def covering(self) -> TreeWatch | None:
        """The oldest tree that covers the hierarchy."""
        hierarchy = self._watches.hierarchy
        assert hierarchy is not None  # opened with the first watch
        covering = (tree for tree in self.trees if hierarchy.is_root(tree._place.directory_id) and not tree.closed)
        return next(covering, None)

    @property
    def needs_audit(self) -> bool:
        """Whether there is something that only an audit finds."""
        return self._incomplete or bool([tree for tree in self.trees if tree._unfollowed])

    # -- from now on

    def hear(self) -> None:
        """Reads what the sources have to say, and takes note of renames; the rest is for discover()."""
        if not self.sources:
            return
        # What an exception loses on the way, a rescan finds.
        reading, self._reading = self._reading, True
        changes: list[Change] = []
        scanning = bool([tree for tree in self.trees if tree._backlog is not None])
        for source in self.sources.values():
            changes += source.changes(scanning)
        self._watches.changed(changes)
        for tree in self.trees:
            if tree._backlog is not None:
                tree._backlog += changes
                if len(tree._backlog) > BACKLOG:
                    tree._backlog.clear()
                    tree._source.overflowed = True
        self._pending += changes
        self._reading = reading
        self._apply([change for change in changes if change[2] & MOVED_TO])

    def discover(self) -> None:
        """Acts upon what was heard, and lists everything again where something was lost."""
        if self._pending:
            self._apply(self._pending)
            self._pending = []
        lost = [source for source in self.sources.values() if source.overflowed]
        for source in lost:
            events: list[Event] = []
            commit(self._complaints.overflowed(source.kind, events) + self._watches.tell(events))
        if lost or self._reading:
            self._rescan()
            for source in lost:
                source.overflowed = False
            self._reading = False

    def drain(self) -> bool:
        """Reads and acts upon all that there is to hear at this moment; whether there was anything."""
        self.hear()
        heard = bool(self._pending)
        self.discover()
        return heard

    def audit(self) -> bool:
        """Finds everything that can be found now; whether that is all there is."""
        self.hear()
        self.discover()
        if self._incomplete:
            self._rescan()
        for tree in self.trees:
            if tree._backlog is None and tree._unfollowed:
                self._incomplete |= not self._search(tree, Search.unfollowed_again)
        return not self._incomplete

    def _apply(self, changes: list[Change]) -> None:
        for tree in self.trees if changes else ():
            if tree._backlog is None:
                self._incomplete |= not self._search(tree, lambda search: search.changed(changes))

    def _rescan(self) -> None:
        complete = True
        for tree in self.trees:
            if tree._backlog is None and self._search(tree, Search.everywhere):
                tree._doubted.clear()
            else:
                complete = False
        self._incomplete = not complete
        self._watches.overtaken()

    def _search(self, tree: TreeWatch, how: Callable[[Search], None]) -> bool:
        """Searches a tree for what is new in it and takes that in; whether everything could be read."""
        assert self._watches.hierarchy is not None  # opened with the first watch
        self._watches.hierarchy.follow([tree._place])  # a rename at or above it is told to nobody
        search = Search(self._watches.hierarchy, tree)
        try:
            how(search)
            tree._doubted = dict.fromkeys(search.doubted, False) | tree._doubted
            self._take_in(search, [], created=True)
        except BaseException:
            search.undo()
            raise
        self._watches.missed(search.missed)
        if search.there:
            if doubtful := [watch for watch in self._watches.polled.values() if search.may_have_gone(watch)]:
                self._watches.sweep(doubtful)
            for watch in [watch for watch in tree._left_out if search.has_gone(watch)]:
                self.let_go(watch)
                self._watches.forget(watch)
        return search.complete

    def _take_in(self, search: Search, changes: list[StateChange], *, created: bool) -> None:
        tree = search.tree
        if search.found:
            self.hear_log()
        if search.found or search.followed or search.troubles or changes:
            self._watches.watch(
                self._monitor,
                search.found,
                search.registrations,
                tree,
                told=lambda watches, time_ns, events: (
                    changes + self._tell(search, watches if created else [], time_ns, events)
                ),
                also=search.tree._also,
            )

    def _tell(self, search: Search, watches: list[Watch], time_ns: int, events: list[Event]) -> list[StateChange]:
        events += [Created(time_ns=time_ns, cgroup=watch.cgroup, watch=watch) for watch in watches]
        changes: list[StateChange] = []
        if search.unfollowed or search.followed:
            unfollowed = {**search.tree._unfollowed, **search.unfollowed}
            for directory_id in search.followed:
                unfollowed.pop(directory_id, None)
            changes.append((search.tree, "_unfollowed", unfollowed))
        for trouble in search.troubles:
            changes += trouble(self._complaints, events)
        return changes

    # -- the beginning and the end

    def begin(self, tree: TreeWatch) -> None:
        """From here on a tree is told of changes; they wait until its scan is over."""
        self.trees.append(tree)

    def scanned(self, search: Search, changes: list[StateChange]) -> None:
        """Takes in what the first scan of a tree has found, and what happened meanwhile.

        Args:
            search: the scan.
            changes: what else is to be committed with it.
        """
        tree = search.tree
        tree._doubted = dict.fromkeys(search.doubted, False)
        self._take_in(search, [*changes, (tree, "closed", False)], created=False)
        self._incomplete |= not search.complete
        self.hear()  # the rest of what happened during the scan
        backlog, tree._backlog = tree._backlog or [], None
        self._incomplete |= not self._search(tree, lambda search: search.changed(backlog))
        tree._watermark = max(tree._members, default=0)
        # Meanwhile another tree may have ended that had the same directories followed.
        unfollowed = {
            directory_id: watch._place
            for directory_id, watch in tree._members.items()
            if not tree._source.follows(directory_id)
        }
        tree._unfollowed |= unfollowed
        if unfollowed:
            self._incomplete |= not self._search(tree, Search.unfollowed_again)
        if self._incomplete:
            self._rescan()  # there may never be an audit
        self.discover()

    def end(self, tree: TreeWatch) -> None:
        """Lets go of a tree and ends its watches; what an exception leaves of that is done by the next call."""
        if tree in self.trees:
            self.trees.remove(tree)
        for directory_id, watch in list(tree._members.items()):
            self._end_membership(tree, watch)
            self._watches.forget(watch)
            del tree._members[directory_id]
        tree._unfollowed.clear()
        self._unfollow(tree, tree._place.directory_id)
        self.drop_unneeded()

    def drop_unneeded(self) -> None:
        """Gives up the sources that no tree needs any more."""
        needed = {tree.source for tree in self.trees}
        sources, unread = self.sources, self._loop.unread
        for kind, source in list(sources.items()):
            if kind not in needed and not self._is_own(source):
                self._loop.unregister(source.fd)
                unread += [source.fd]  # no call from here on: the descriptor is in one of the two, whatever happens
                del sources[kind]

    def _is_own(self, source: Source) -> bool:
        """Whether it is the hierarchy's, which is there with or without trees."""
        return self._watches.hierarchy is not None and source is self._watches.hierarchy.inotify

    def hand_over(self, fds: list[int]) -> list[StateChange]:
        """Puts the descriptors of all sources on a list; returns the changes by which they are not its own any more."""
        fds += [source.fd for source in self.sources.values() if not self._is_own(source)]
        return [(self, "sources", {})]

    def left_out(self) -> list[Watch]:
        """Members that were closed each by itself: their kills are told to nobody, and missing in no ledger."""
        return [watch for tree in self.trees for watch in tree._left_out]

    def _unfollow(self, tree: TreeWatch, directory_id: int) -> None:
        """Has a directory not followed any more for the sake of a tree."""
        others = [one for one in self.trees if one is not tree and one._source is tree._source]
        members = [member for one in others if (member := one.member(directory_id)) is not None]
        if not (members or self._watches.follows(directory_id)):
            tree._source.unfollow(directory_id)

    def let_go(self, watch: Watch) -> None:
        """Ends a membership: the tree keeps what was counted."""
        tree = watch._tree
        if tree is not None:
            self._end_membership(tree, watch)
            tree._members.pop(watch._place.directory_id, None)

    def _end_membership(self, tree: TreeWatch, watch: Watch) -> None:
        directory_id = watch._place.directory_id
        if watch._tree is tree:
            self._unfollow(tree, directory_id)  # before, so that an exception leaves it to the next call
            commit(
                [
                    (tree, "_past_ooms", tree._past_ooms + watch.ooms),
                    (tree, "_past_kills", tree._past_kills + watch.kills),
                    (watch, "_tree", None),
                ]
            )
        tree._unfollowed.pop(directory_id, None)
        tree._left_out.discard(watch)
