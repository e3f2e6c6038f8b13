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
        own = self._watches.hierarchy.inotify  # there with or without trees
        for known in self.sources.values():
            if kind == known.kind or (kind is None and known is not own):
                return known
        source = open_source(self._watches.hierarchy, kind)
        if source.fd >= 0 and source is not own:
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
        return self._incomplete or any(tree._unfollowed for tree in self.trees)

    # -- from now on

    def hear(self) -> None:
        """Reads what the sources have to say, and takes note of renames; the rest is for discover()."""
        if not self.sources:
            return
        # What an exception loses on the way, a rescan finds.
        reading, self._reading = self._reading, True
        changes: list[Change] = []
        scanning = any(tree._backlog is not None for tree in self.trees)
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
            tree._doubted.update(search.doubted)
            self._take_in(search, [], created=True)
        except BaseException:
            search.undo()
            raise
        self._watches.missed(search.missed)
        if search.vanished:
            paths = set(search.vanished)
            self._watches.sweep([watch for watch in self._watches.polled.values() if watch.cgroup in paths])
            for watch in [watch for watch in tree._left_out if watch.cgroup in paths]:
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
        tree._doubted.update(search.doubted)
        self._take_in(search, [*changes, (tree, "closed", False)], created=False)
        self._incomplete |= not search.complete
        self.hear()  # the rest of what happened during the scan
        backlog, tree._backlog = tree._backlog or [], None
        self._incomplete |= not self._search(tree, lambda search: search.changed(backlog))
        tree._watermark = max(tree._members, default=0)
        self.discover()

    def end(self, tree: TreeWatch) -> list[Source]:
        """Lets go of a tree; returns the sources that nobody needs any more, which are the caller's to close."""
        if tree in self.trees:
            self.trees.remove(tree)
        for watch in list(tree._members.values()):
            self.let_go(watch)
        tree._unfollowed.clear()
        self._unfollow(tree._source, tree._place.directory_id)
        return self.unneeded()

    def unneeded(self) -> list[Source]:
        """Gives up the sources that no tree needs any more; they are the caller's to close."""
        needed = {tree.source for tree in self.trees}
        own = None if self._watches.hierarchy is None else self._watches.hierarchy.inotify
        unneeded = [kind for kind, source in self.sources.items() if kind not in needed and source is not own]
        return [self.sources.pop(kind) for kind in unneeded]

    def left_out(self) -> list[Watch]:
        """Members that were closed each by itself: their kills are told to nobody, and missing in no ledger."""
        return [watch for tree in self.trees for watch in tree._left_out]

    def _unfollow(self, source: Source, directory_id: int) -> None:
        in_a_tree = any(tree.member(directory_id) for tree in self.trees if tree._source is source)
        if not (in_a_tree or self._watches.follows(directory_id)):
            source.unfollow(directory_id)

    def let_go(self, watch: Watch) -> None:
        """Ends a membership: the tree keeps what was counted."""
        tree = watch._tree
        if tree is None:
            return
        directory_id = watch._place.directory_id
        commit(
            [
                (tree, "_past_ooms", tree._past_ooms + watch.ooms),
                (tree, "_past_kills", tree._past_kills + watch.kills),
                (watch, "_tree", None),
            ]
        )
        tree._members.pop(directory_id, None)
        tree._unfollowed.pop(directory_id, None)
        tree._left_out.discard(watch)
        self._unfollow(tree._source, directory_id)
