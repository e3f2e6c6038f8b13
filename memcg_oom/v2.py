"""cgroup v2, exactly: from inotify and looks at memory.events.local to Oom, OomKill and Removed.

What the kernel does (mm/memcontrol.c, kernel/cgroup/cgroup.c), and so what the order of things must be:

- memory.events.local counts at the very moment; the news of it is limited to one in 10 ms for a file, and rmdir(2)
  cancels what is pending. So the last kill before a removal may never be announced: a cgroup that is in the news is
  looked at again and again until `settle` seconds after them, and once when it empties (cgroup.events).
- What was missed all the same is in the counter of the cgroup above, see balance.py.
- Nobody says of a control file that it is gone: the directory above says so of the cgroup.
- A cgroup whose memory controller is switched off lives on, without counters; they start anew when it comes back. The
  news of either is a write to cgroup.subtree_control above it.
- Nothing is ever renamed.
"""

from __future__ import annotations

import os
import time

from memcg_oom._native import lib
from memcg_oom.balance import Entry, missing, nearest, suspects
from memcg_oom.commit import commit
from memcg_oom.events import MemoryHigh, MemoryMax, Oom, OomKill, Unattributed
from memcg_oom.hierarchy import GONE, OFF
from memcg_oom.loop import NO_FD
from memcg_oom.nodes import REMOVED, SWITCHED_OFF, Node
from memcg_oom.registration import Registrations
from memcg_oom.rounds import GAPS
from memcg_oom.sources import CREATED, DELETED
from memcg_oom.watch import Watch
from memcg_oom.watches import CROWD, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import Any

    from memcg_oom.commit import Change
    from memcg_oom.events import Event, Victim
    from memcg_oom.found import Counters, Found
    from memcg_oom.hierarchy import Place
    from memcg_oom.monitor import Monitor
    from memcg_oom.sources import Change as Happened
    from memcg_oom.tree import TreeWatch

NOTHING: Counters = (0, 0, 0, 0, 0)  # oom_kill, oom, oom_group_kill, max, high
# How often in a row a balance is struck that does not stand still, before it waits for the next look.
_STRIKES = 16
# Nanoseconds after which it is tried again to open accounts that did not stand still.
_OPENING = 250_000_000
# Nanoseconds between two looks at a cgroup of which there is only noise: memory.max and memory.high at work.
_NOISE = 50_000_000


class _Switch:
    """The cgroup.subtree_control of a cgroup, as what was written to."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node


def _bounds(rows: Iterable[tuple[Watch, Node, Found]]) -> tuple[dict[Node, Counters], dict[Node, Counters]]:
    """From where on, and up to where, the counters of each cgroup are told to those that begin to watch it.

    It may be found more than once, and its counters may have been read and told since it was.
    """
    seen: dict[Node, Counters] = {}
    latest: dict[Node, Counters] = {}
    for _, node, one in rows:
        if one.now:
            seen[node] = min(seen.get(node, one.seen), one.seen)
            latest[node] = max(latest.get(node, node.counters or one.now), one.now)
    return seen, latest


class V2Watches(Watches):
    """All that one monitor watches on cgroup v2.

    As on v1 each method works out what is to change and then commits it.

    Args:
        shared: as Watches.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.nodes: dict[int, Node] = {}
        self._also: dict[Watch, frozenset[type[Event]]] = {}  # what is told of some beside the usual
        self._settling: dict[Node, int] = {}  # until when, in nanoseconds of CLOCK_MONOTONIC
        self._resting: list[tuple[int, list[Node]]] = []  # new ones, which are looked at once when they have settled
        self._urgent: dict[Node, None] = {}  # to be looked at now
        self._touched: dict[Node, int] = {}  # noisy ones in the news, and when they are to be looked at
        self._leaving: dict[Node, int] = {}  # gone, or off, and not told yet; when that was found
        self._strangers: set[Node] = set()  # in which somebody came and went unseen
        self._unsettled: set[Node] = set()  # whose account did not stand still: what it misses is nobody's, later
        self._unopened: dict[Node, Counters] = {}  # whose account is not open yet; what its subtree counted last
        self._opens_at = 0  # when that is tried again
        self._prepaid = 0  # kills that the ledger has told as nobody's, before they were found missing in an account
        self._next = 0
        self._step = 0
        self._host = -1
        self._again = False

    # -- watching

    def watch(
        self,
        monitor: Monitor,
        found: list[Found],
        registrations: Sequence[Registrations],
        tree: TreeWatch | None = None,
        *,
        told: Callable[[list[Watch], int, list[Event]], list[Change]] = lambda _watches, _time_ns, _events: [],
        also: frozenset[type[Event]] = frozenset(),
    ) -> list[Watch]:
        """Watches cgroups, all or none.

        Args:
            monitor: whose they are.
            found: the cgroups.
            registrations: that their inotify watches come from.
            tree: that they become members of.
            told: adds what else is to be told, before anything of theirs, and returns further changes.
            also: MemoryMax, MemoryHigh: whether to tell of these.
        """
        assert self.hierarchy is not None
        made: list[Node] = []
        watches: list[Watch] = []
        try:
            nodes = [self._node(one.place, made) for one in found]
            self._secure(found, nodes, registrations)
            for one, node in zip(found, nodes, strict=True):
                low = one.descriptor if one.descriptor >= 0 else NO_FD
                watches.append(Watch(monitor, node.place, self._loop.key(low), 0))
            if also:
                self._also.update((watch, also) for watch in watches)
            time_ns = time.time_ns()
            events: list[Event] = []
            changes = told(watches, time_ns, events)
            changes += [(watch, "closed", False) for watch in watches]
            if tree is not None and self._is_local and not self._is_accounted_by_host(tree):
                changes += self._complaints.no_account(events)
            entry = Entry(self._ledger)
            rows = list(zip(watches, nodes, found, strict=True))
            members: dict[Node, list[Watch]] = {}
            for watch, node, one in rows:
                if tree is not None and not one.born and node.parent is not None and node.parent.accounted is not None:
                    # An old one that was overlooked: what it counted meanwhile is nobody's who goes next.
                    self._strangers.add(node.parent)
                members.setdefault(node, list(node.watches)).append(watch)
            changes += self._begin(rows, time_ns, events, entry)
            changes += [(node, "watches", there) for node, there in members.items()]
            self.by_key.update((watch._key, watch) for watch in watches)
            self.polled.update(
                (watch._key, watch)
                for watch, node, one in rows
                if not self._is_root(watch) and ((one.now and watch.polled) or not self._tells_of_end(node, tree))
            )
            if tree is not None:
                tree._members.update((watch._place.directory_id, watch) for watch in watches)
                changes += [(watch, "_tree", tree) for watch in watches]
            for one_registrations in registrations:
                changes += one_registrations.hand_over()
            self._resting.append((time.monotonic_ns() + self._settle, nodes))
            # Those above have no processes of their own from here on: what was killed in them before is theirs.
            parents = [node.parent for node in nodes]
            above = [parent for parent in parents if parent is not None and parent.watches and not parent.inner]
            self._urgent.update(dict.fromkeys(above))
            commit(changes + entry.changes() + self._outbox.put(events))
            if tree is not None and not self._is_local:
                self._open_accounts(found)
        except BaseException:
            for watch in watches:
                if watch.closed:
                    self.by_key.pop(watch._key, None)
                    self.polled.pop(watch._key, None)
                    self._also.pop(watch, None)
            for node in made:
                self._drop(node)
            raise
        return watches

    def _secure(self, found: list[Found], nodes: list[Node], registrations: Sequence[Registrations]) -> None:
        """Makes good what somebody else did since they were registered.

        News of them that were read before it was known whose these are: they are looked at. Inotify watches that were
        let go of: they are made anew.
        """
        assert self.hierarchy is not None
        inotify = self.hierarchy.inotify
        if inotify is None:
            return
        if [one for one in registrations if one.strays != inotify.strays]:
            self._urgent.update(dict.fromkeys(nodes))
        if not [one for one in registrations if one.removals != inotify.removals]:
            return
        for one in found:
            if one.descriptor >= 0:
                path = f"{one.place.path}/{self.hierarchy.control_file}"
                one.descriptor = inotify.add_file(path, self.nodes[one.place.directory_id])

    def _begin(
        self, rows: list[tuple[Watch, Node, Found]], time_ns: int, events: list[Event], entry: Entry
    ) -> list[Change]:
        """Cgroups have one more watch, or their first; it is the same whatever watches were there before."""
        changes: list[Change] = []
        seen, latest = _bounds(rows)
        begun: set[Node] = set()
        for watch, node, one in rows:
            if not one.now:
                continue  # the memory controller is off
            if node not in begun:
                begun.add(node)
                since = seen[node][:2]
                if one.born and node.accounted is None and not self._is_local:
                    self._open_account(node, one.now, latest[node], one.subtree, entry)
                if node.counters is None:
                    new = [("counters", latest[node]), ("since", since), ("descriptor", one.descriptor)]
                    changes += [(node, name, value) for name, value in new]
                    if one.descriptor >= 0 and self.hierarchy is not None and self.hierarchy.inotify is not None:
                        self.hierarchy.inotify.own(one.descriptor, node)
                    entry.add(node, latest[node][0] - since[0], latest[node][1] - since[1])
                else:
                    changes += self._advance(node, latest[node], time_ns, events, entry)
                    if since < node.since:
                        entry.add(node, node.since[0] - since[0], node.since[1] - since[1])
                        changes.append((node, "since", since))
            changes += self._differences(watch, one.seen, latest[node], time_ns, events)
        return changes

    def _open_account(self, node: Node, now: Counters, latest: Counters, subtree: Counters, entry: Entry) -> None:
        """Begins the account of a cgroup that is new, its counters as well: all that it counts is to be told.

        Args:
            node: the cgroup.
            now: its counters when memory.events was read.
            latest: up to where they are told.
            subtree: what memory.events counted.
            entry: takes it.
        """
        if subtree[0] > now[0] or subtree[1] > now[1]:
            self._strangers.add(node)  # perhaps of one that was in it and gone before anybody looked into it
        entry.open(node, latest[0], latest[1])

    def _open_accounts(self, found: list[Found]) -> None:
        """Finds out how many kills memory.events has counted of which nobody is to be told."""
        for one in found:
            node = self.nodes[one.place.directory_id]
            if one.now and node.accounted is None and node.counters is not None:
                self._unopened[node] = one.subtree[:2]
        for _ in range(_STRIKES):
            self._open_more()
            if not self._unopened:
                return
        self._opens_at = time.monotonic_ns() + _OPENING

    def _open_more(self) -> None:
        """Opens the accounts that stand still.

        When memory.events has not moved since before what is below was read last, all that it counts is known; else
        everything is read once more.
        """
        assert self.hierarchy is not None
        nodes = [node for node in self._unopened if node.accounted is None and node.counters is not None]
        opening: dict[Node, Counters] = {}
        changes: list[Change] = []
        for node, counters in zip(nodes, self.hierarchy.subtrees([node.place for node in nodes]), strict=True):
            if counters[:2] == self._unopened[node]:
                changes.append((node, "accounted", counters[:2]))
            elif counters[0] >= 0:
                opening[node] = counters[:2]  # else it is just going
        commit([*changes, (self, "_unopened", opening)])
        if opening:
            self._read([node for node in self.nodes.values() if not opening.keys().isdisjoint(node.line())], ())

    @property
    def _is_local(self) -> bool:
        """Whether memory.events leaves out what is below."""
        return self.hierarchy is not None and self.hierarchy.mount.local_events

    def _is_accounted_by_host(self, tree: TreeWatch) -> bool:
        """Whether the kills in a tree that nobody was told of are missing in the ledger of the host."""
        assert self.hierarchy is not None
        return self.covering is not None or self.hierarchy.is_root(tree._place.directory_id)

    # -- the nodes

    def _node(self, place: Place, made: list[Node]) -> Node:
        """The node of a cgroup; a new one is put on the list."""
        node = self.nodes.get(place.directory_id)
        if node is None:
            node = Node(place)
            made.append(node)
            self.nodes[place.directory_id] = node
        if node.parent is None and not self._is_top(place):
            parent = self._parent(place, made)
            if parent is not None:
                node.parent = parent
                parent.children[os.path.basename(place.path)] = node
                self._follow_control(parent)
        return node

    def _is_top(self, place: Place) -> bool:
        """Whether nothing above it can be seen."""
        assert self.hierarchy is not None
        return place.path == self.hierarchy.mount.point or self.hierarchy.is_root(place.directory_id)

    def _parent(self, place: Place, made: list[Node]) -> Node | None:
        """The node of the cgroup above; of one that is in no tree the directory is followed for its sake."""
        assert self.hierarchy is not None
        hierarchy = self.hierarchy
        if place.parent is not None and (known := self.nodes.get(place.parent.directory_id)) is not None:
            return known
        path = os.path.dirname(place.path)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None  # so it is gone itself, which the first look finds
        if status.st_dev != hierarchy.device:
            return None
        parent = self.nodes.get(status.st_ino)
        if parent is None:
            parent = Node(hierarchy.place(path, status.st_ino, 0))
            made.append(parent)
            self.nodes[status.st_ino] = parent
        if hierarchy.inotify is not None and not self._is_followed(parent):
            with hierarchy.directory(parent.place) as fd:
                hierarchy.inotify.follow(fd, status.st_ino)
        return parent

    def _is_followed(self, node: Node) -> bool:
        """Whether somebody tells what becomes of its children."""
        assert self.hierarchy is not None
        inotify = self.hierarchy.inotify
        return inotify is not None and inotify.follows(node.place.directory_id)

    def _tells_of_end(self, node: Node, tree: TreeWatch | None) -> bool:
        """Whether somebody tells when it is removed."""
        follows_all = tree is not None and tree._source.follows_all
        return node.parent is not None and (follows_all or self._is_followed(node.parent))

    def follows(self, directory_id: int) -> bool:
        """Whether a directory has to be followed for the sake of a watch in it."""
        node = self.nodes.get(directory_id)
        watches = [] if node is None else [watch for child in node.children.values() for watch in child.watches]
        alone = [
            one for one in watches if one._tree is None or one._place.directory_id == one._tree._place.directory_id
        ]
        return bool(alone)

    def _follow_control(self, node: Node) -> None:
        if node.control < 0 and self.hierarchy is not None and self.hierarchy.inotify is not None:
            # Where no watch is left for it: what is switched on is found by the next search.
            path = f"{node.place.path}/cgroup.subtree_control"
            node.control = self.hierarchy.inotify.add_file(path, _Switch(node))

    def _unfollow(self, node: Node, name: str) -> None:
        descriptor = getattr(node, name)
        if descriptor >= 0:
            if self.hierarchy is not None and self.hierarchy.inotify is not None:
                self.hierarchy.inotify.remove_file(descriptor)  # first, so that an exception leaves it to the next call
            commit([(node, name, -1)])

    def _drop(self, node: Node) -> None:
        """Forgets a node that nobody watches any more, and those above that were there for its sake."""
        dropped = []
        at: Node | None = node
        while at is not None and self._cut_off(at):
            dropped.append(at)
            above, at = at.parent, None
            if above is not None and not above.children:
                self._unfollow(above, "control")
                at = above
        for one in reversed(dropped):
            self.nodes.pop(one.place.directory_id, None)  # the last: what an exception leaves is found again

    def _cut_off(self, node: Node) -> bool:
        """Takes a node that nobody watches any more from the one above it; whether nothing is below it either."""
        if node.watches:
            return False
        self._unfollow(node, "descriptor")
        self._unfollow(node, "populated")
        commit([(node, "counters", None), (node, "accounted", None)])
        for known in (self._settling, self._urgent, self._touched, self._unopened):
            known.pop(node, None)
        self._strangers.discard(node)
        self._unsettled.discard(node)
        if node.children:
            return False
        self._unfollow(node, "control")
        inotify = self.hierarchy.inotify if self.hierarchy is not None else None
        directory_id = node.place.directory_id
        if inotify is not None and not [tree for tree in self.trees if tree.member(directory_id)]:
            inotify.unfollow(directory_id)
        parent, name = node.parent, os.path.basename(node.place.path)
        if parent is not None and parent.children.get(name) is node:
            del parent.children[name]
            if not parent.children:
                parent.inner = False
        return True

    def hand_over(self, fds: list[int]) -> list[Change]:
        """As on v1, but the watches have no descriptors of their own."""
        return [(self, "by_key", {}), (self, "polled", {})]

    def forget(self, watch: Watch) -> None:
        """Ends a watch, if it has not ended; as long as it is a member of a tree, its kills are accounted for."""
        self.by_key.pop(watch._key, None)
        self.polled.pop(watch._key, None)
        self._also.pop(watch, None)
        if watch._tree is None:
            node = self.nodes.get(watch._place.directory_id)
            if node is not None:
                commit([(node, "watches", [one for one in node.watches if one is not watch])])
                self._drop(node)

    # -- the news

    @property
    def unheard(self) -> bool:
        """An exception came after they were read."""
        return (
            self.hierarchy is not None and self.hierarchy.inotify is not None and bool(self.hierarchy.inotify.touched)
        )

    def hear(self, now: int) -> list[Place]:
        """Takes note of what the inotify instance has said; returns where somebody is in trouble.

        That is in the cgroups of which there is news, and in all that are below: the OOM is counted where the limit is.
        """
        inotify = self.hierarchy.inotify if self.hierarchy is not None else None
        if inotify is None:
            return []
        touched = inotify.touched
        for owner in touched:
            if isinstance(owner, _Switch):
                self._switched(owner.node)
            elif isinstance(owner, Node) and owner.counters is not None and not owner.state:
                self._touch(owner, now)
        inotify.touched = []
        news = [owner for owner in touched if isinstance(owner, Node) and owner in self._urgent]
        return [node.place for node in dict.fromkeys(below for one in news for below in one.all_below())]

    def _touch(self, node: Node, now: int) -> None:
        if node in self._settling and node.noisy:
            self._touched.setdefault(node, now + _NOISE)
        else:
            self._urgent[node] = None
            self._step = 0
            if node.populated < 0 and self.hierarchy is not None and self.hierarchy.inotify is not None:
                node.populated = self.hierarchy.inotify.add_file(f"{node.place.path}/cgroup.events", node)
        self._settling[node] = now + self._settle
        self._next = min(self._next or now, now)

    def _switched(self, node: Node) -> None:
        """Something may have been written to its cgroup.subtree_control."""
        for child in node.children.values():
            if child.watches and not child.state:
                self._urgent[child] = None
        self._next = time.monotonic_ns()

    def changed(self, changes: Iterable[Happened]) -> None:
        """Takes note of what has happened to names in directories.

        Who is known by one of them may be gone; and in one that was made and removed since, of whom nobody heard (it
        was there before its directory was followed, and gone before that was listed), or that could not be taken in,
        somebody may have been killed.
        """
        assert self.hierarchy is not None  # somebody is there to tell of it
        fresh: set[tuple[int, str]] = set()  # made, and not removed
        for directory_id, name, mask in changes:
            parent = self.nodes.get(directory_id)
            if parent is None:
                continue
            child = parent.children.get(name)
            if child is not None and not child.state:
                self._urgent[child] = None
            if mask & DELETED:
                doubted = [tree._doubted for tree in self.trees if (directory_id, name) in tree._doubted]
                for known in doubted:
                    del known[directory_id, name]
                if (
                    (directory_id, name) in fresh
                    or mask & CREATED
                    or doubted
                    or child is None
                    or self.hierarchy.moved([child.place])[0] != lib.MEMCG_ELSEWHERE
                ):
                    self._strangers.add(parent)
                fresh.discard((directory_id, name))
            if mask & CREATED:
                fresh.add((directory_id, name))

    def missed(self, directory_ids: Iterable[int]) -> None:
        """Takes note of directories in which somebody came and went unseen."""
        self._strangers.update(node for one in directory_ids if (node := self.nodes.get(one)) is not None)

    def overtaken(self) -> None:
        """News were lost: everybody is to be looked at."""
        self._urgent.update((node, None) for node in self.nodes.values() if node.watches)
        self._strangers.update(node for node in self.nodes.values() if node.accounted is not None)

    # -- looking

    @property
    def next_due(self) -> int:
        """When due() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all."""
        dues = [self._resting[0][0]] if self._resting else []
        if self._unopened:
            dues.append(self._opens_at)
        if self._settling or self._urgent or self._leaving or self._strangers:
            dues.append(max(self._next, 1))
        return min(dues, default=0)

    def absorb(self, signals: Iterable[tuple[int, int]], now: int, consumed: Change) -> list[Place]:
        """There are no eventfds; only the timer and the bell are read."""
        commit([consumed])
        return []

    def due(self, now: int, drained: bool) -> None:
        """Looks at whoever is to be looked at now."""
        before = time.monotonic_ns()
        while self._resting and self._resting[0][0] <= before:
            self._read([node for node in self._resting[0][1] if node.watches], ())
            self._resting.pop(0)
        if self._unopened and self._opens_at <= before:
            self._open_more()
            self._opens_at = time.monotonic_ns() + _OPENING
            if self._unopened:
                events: list[Event] = []
                commit(self._complaints.restless(events) + self.tell(events))
        if self._urgent:
            urgent = list(self._urgent)
            self._read(urgent, ())
            for node in urgent:
                self._urgent.pop(node, None)
        if self._settling and self._next <= before:
            settled = [node for node, deadline in self._settling.items() if deadline <= before]
            if len(self._settling) < CROWD or self._host_killed():
                nodes = list(self._settling)
            else:
                nodes = settled + [node for node, at in self._touched.items() if at <= before]
            self._again |= not self._read(list(dict.fromkeys(nodes)), frozenset(settled))
            for node in nodes:
                self._touched.pop(node, None)
            after = time.monotonic_ns()
            self._step += 1
            self._next = after + max(GAPS[min(self._step, len(GAPS)) - 1], 4 * (after - before))

    def _host_killed(self) -> bool:
        """As V1Watches has it: a kill moves the host's counter before it moves the cgroup's."""
        assert self.counter is not None  # opened with the hierarchy
        host = self.counter.read()
        moved, self._host = host != self._host, host
        worth = moved or self._again
        self._again = moved
        return worth

    def sweep(self, watches: list[Watch]) -> bool:
        """Looks at watches out of turn and tells what is new; whether all of them could be read."""
        ids = dict.fromkeys(watch._place.directory_id for watch in watches)
        return self._read([node for one in ids if (node := self.nodes.get(one)) is not None], ())

    def _read(self, nodes: Sequence[Node], settled: Collection[Node]) -> bool:
        """Reads the counters, tells what is new; whether all could be read.

        Args:
            nodes: whose.
            settled: those of them that need not be looked at again.
        """
        assert self.hierarchy is not None  # there are watches, so it was opened
        nodes = [
            node
            for node in nodes
            if node.watches and not node.state and not self.hierarchy.is_root(node.place.directory_id)
        ]
        off = [node for node in nodes if node.counters is None]
        if off:
            self._attach(off)
        nodes = [node for node in nodes if node.counters is not None and node not in self._leaving]
        found = self.hierarchy.counters([node.place for node in nodes])
        now = time.monotonic_ns()
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        entry = Entry(self._ledger)
        leaving: list[Node] = []
        done: list[Node] = []
        for node, counters in zip(nodes, found, strict=True):
            if counters[0] >= 0 and node.counters is not None and counters[1] > node.counters[1]:
                node.ran_out = True  # before those are told of who were killed for it
        complete = True
        for node, counters in zip(nodes, found, strict=True):
            error = -counters[0]
            if error <= 0:
                changes += self._advance(node, counters, time_ns, events, entry)
                if node.inner != node.has_memory_below:
                    changes.append((node, "inner", not node.inner))
                if node in settled:
                    changes += [(node, "unresolved", 0), (node, "ran_out", False)]
                    done.append(node)
            elif error in GONE or error == OFF:
                changes.append((node, "state", SWITCHED_OFF if error == OFF else REMOVED))
                leaving.append(node)
            else:
                complete = False
                changes += self._complaints.unreadable(error, events)
                self._settling.setdefault(node, now + self._settle)  # so that it is tried again
        self._leaving.update((node, now) for node in leaving)
        commit(changes + entry.changes() + self._outbox.put(events))
        for node in done + leaving:
            self._settling.pop(node, None)
            self._unfollow(node, "populated")
        return complete

    def _advance(self, node: Node, counters: Counters, time_ns: int, events: list[Event], entry: Entry) -> list[Change]:
        """What is new of a cgroup, for all of its watches."""
        before = node.counters
        assert before is not None  # it is watched, and its memory controller is on
        if counters == before:
            return []
        kills, ooms = counters[0] - before[0], counters[1] - before[1]
        entry.add(node, kills, ooms)
        changes: list[Change] = [
            (node, "counters", counters),
            (node, "noisy", not (kills or ooms)),
            (node, "unresolved", max(0, node.unresolved + ooms - kills)),
        ]
        limit = self._limit_of(node, ooms, kills) if kills else None
        if kills and [watch for watch in node.watches if watch.closed]:
            changes += self.muddle()  # the ledger alone is told of some
        for watch in node.watches:
            changes += self._differences(watch, before, counters, time_ns, events, limit=limit)
        return changes

    @staticmethod
    def _limit_of(node: Node, ooms: int, kills: int) -> str | None:
        """Whose limit was hit: the one cgroup here and above that ran out of memory in the present settle.

        A kill that no OOM of its own is left for came of another one's.
        """
        ran_out = [one for one in node.line() if one.ran_out]
        if len(ran_out) != 1 or (ran_out[0] is node and kills > node.unresolved + ooms):
            return None
        return ran_out[0].place.path

    def _differences(
        self,
        watch: Watch,
        before: Counters,
        counters: Counters,
        time_ns: int,
        events: list[Event],
        *,
        victims: tuple[Victim, ...] = (),
        limit: str | None = None,
    ) -> list[Change]:
        """What is new, for one watch."""
        if counters == before or (watch.closed and watch._tree is not None):
            return []  # of a closed one the tree's ledger alone has to know
        kills, ooms, groups, maxes, highs = (now - then for now, then in zip(counters, before, strict=True))
        changes: list[Change] = []
        about: dict[str, Any] = {"time_ns": time_ns, "cgroup": watch.cgroup, "watch": watch}
        also = self._also.get(watch, frozenset())
        if highs and MemoryHigh in also:
            events.append(MemoryHigh(**about, count=highs))
        if maxes and MemoryMax in also:
            events.append(MemoryMax(**about, count=maxes))
        if ooms:
            events.append(Oom(**about, count=ooms))
            changes.append((watch, "ooms", watch.ooms + ooms))
        if kills:
            events.append(OomKill(**about, count=kills, group=groups > 0, victims=victims, limit_cgroup=limit))
            changes.append((watch, "kills", watch.kills + kills))
        return changes

    def _attach(self, nodes: list[Node]) -> None:
        """Has a look whether the memory controller was switched on; its counters begin at 0 then."""
        assert self.hierarchy is not None
        registrations = Registrations(
            self.hierarchy,
            [node.place.path for node in nodes],
            [node.place.directory_id for node in nodes],
            inotify=self.hierarchy.inotify,
        )
        try:
            changes = registrations.hand_over()
            events: list[Event] = []
            entry = Entry(self._ledger)
            time_ns = time.time_ns()
            rows = zip(nodes, registrations.all, strict=True)
            # Those above come first: what is below one without an account has none either.
            for node, row in sorted(rows, key=lambda pair: pair[0].place.path.count("/")):
                if row.control_id and row.after[0] >= 0:
                    if row.descriptor >= 0 and self.hierarchy.inotify is not None:
                        self.hierarchy.inotify.own(row.descriptor, node)
                    node.counters = NOTHING
                    node.place.control = row.control_id - node.place.directory_id
                    node.descriptor = row.descriptor
                    if not self._is_local and node.parent is not None and entry.has_account(node.parent):
                        self._open_account(node, row.after, row.after, row.subtree, entry)
                    changes += self._advance(node, row.after, time_ns, events, entry)
                elif -row.descriptor in GONE and not row.is_off:
                    if node.parent is not None:
                        self._strangers.add(node.parent)  # it may have had counters that nobody has read
                    self._leaving[node] = time.monotonic_ns()
                    changes.append((node, "state", REMOVED))
                elif not row.is_off:
                    changes += self._complaints.unreadable(-row.descriptor, events)
                    self._settling[node] = time.monotonic_ns() + self._settle  # so that it is tried again
            commit(changes + entry.changes() + self._outbox.put(events))
        except BaseException:
            registrations.undo()
            raise

    # -- the end

    def part(self) -> None:
        """Tells of those that are gone, and of what was counted of them last."""
        if not (self._leaving or self._strangers):
            return
        for _ in range(_STRIKES):
            self.drain()
            if self._urgent:
                self._read(list(self._urgent), ())
                self._urgent.clear()
            for node in [node for node in self._leaving if not node.state]:
                del self._leaving[node]  # an exception came before its end was committed
                self._urgent[node] = None
            groups: dict[Node | None, list[Node]] = {}
            for node in self._leaving:
                groups.setdefault(nearest(node), []).append(node)
            doubted = {one for tree in self.trees for one, _ in tree._doubted}
            strangers = self._strangers | self._unsettled | {self.nodes[one] for one in doubted if one in self.nodes}
            doubtful = {node if node.accounted is not None and not node.state else nearest(node) for node in strangers}
            for ancestor in doubtful:
                groups.setdefault(ancestor, [])
            gone = len(self._leaving)
            assert self.hierarchy is not None
            sums = {one: (0, 0) if one is None else missing(self.hierarchy, one) for one in groups}
            if not self.drain() and not self._urgent and None not in sums.values() and len(self._leaving) == gone:
                for ancestor, group in groups.items():
                    self._farewell(ancestor, group, *(sums[ancestor] or (0, 0)), strangers=ancestor in doubtful)
                self._strangers -= strangers
                self._unsettled -= strangers
                if not (self._strangers or self._unsettled or self._unopened):
                    self._prepaid = 0  # what is left of it is in no account
                return
            # Whoever could not be read is gone as well, perhaps.
            for one in [one for one in sums if one is not None and sums[one] is None]:
                self._urgent.update((node, None) for node in (one, *one.children.values()) if node.watches)
        if min(self._leaving.values(), default=0) + self._settle < time.monotonic_ns():
            # So much is going on that nobody can tell what is whose, or an account cannot be had. What only a cgroup
            # above has counted is told as nobody's: by the ledger, or when somebody goes and the account stands still.
            self._unsettled.update(one for one in groups if one is not None)
            for group in groups.values():
                self._farewell(None, group, 0, 0, strangers=True)
            self._strangers -= strangers
        self._next = time.monotonic_ns() + GAPS[-1]

    @property
    def is_parting(self) -> bool:
        """As Watches."""
        return bool(self._leaving or self._strangers)

    def told_as_nobodys(self, count: int) -> list[Change]:
        """As Watches. Where no account lacks anything, they are in none: tasks of the root cgroup, say."""
        lacking = self._lacking()
        prepaid = self._prepaid + count if lacking else 0
        return [(self, "_prepaid", prepaid), (self, "_strangers", self._strangers | lacking)]

    def _lacking(self) -> set[Node]:
        """The cgroups whose memory.events has counted more than was told; not those below one that has not."""
        assert self.hierarchy is not None  # there are watches, so it was opened
        accounted = [node for node in self.nodes.values() if node.accounted is not None and not node.state]
        level = [node for node in accounted if node.parent is None or node.parent.accounted is None]
        lacking: set[Node] = set()
        while level:
            found = zip(level, self.hierarchy.subtrees([node.place for node in level]), strict=True)
            moved = [node for node, counters in found if counters[:2] != node.accounted]
            lacking.update(moved)
            below = [child for node in moved for child in node.children.values()]
            level = [child for child in below if child.accounted is not None and not child.state]
        return lacking

    def _farewell(self, ancestor: Node | None, group: list[Node], kills: int, ooms: int, *, strangers: bool) -> None:
        """Tells the end of some that went from below one cgroup, with what of theirs nobody was told of yet.

        Args:
            ancestor: that one, or None.
            group: those that went.
            kills: of how many in what went nobody was told.
            ooms: the same.
            strangers: whether some of it may be somebody else's.
        """
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        entry = Entry(self._ledger)
        if (kills or ooms) and ancestor is not None:
            prepaid = min(kills, self._prepaid)
            strangers = strangers or prepaid > 0
            if strangers:
                for tree in self.trees:
                    tree._doubted = dict.fromkeys(tree._doubted, True)
            entry.add(ancestor, kills, ooms, prepaid)
            changes += self._attribute(
                ancestor, group, kills - prepaid, ooms, strangers=strangers, time_ns=time_ns, events=events
            )
            changes.append((self, "_prepaid", self._prepaid - prepaid))
        # A cgroup goes after those that were in it.
        for node in sorted(group, key=lambda node: -node.place.path.count("/")):
            if node.state == SWITCHED_OFF:
                changes += [(node, "counters", None), (node, "unresolved", 0), (node.place, "control", None)]
                changes += [(node, "accounted", None), (node, "state", 0)]
                continue
            unresolved = 0
            if ancestor is None and node.counters is not None:
                # No counter tells it, but the log may.
                named, settled = self._named(node)
                if named:
                    entry.add(node, named, 0, settled)
                    changes += self._last(node, named, 0, time_ns, events)
                unresolved = max(0, node.unresolved - named)
            for watch in node.watches:
                if watch.removed:
                    continue  # an exception came after its end was told
                changes += self._removed(watch, unresolved, time_ns, events)
        commit(changes + entry.changes() + self._outbox.put(events))
        for node in group:
            self._leaving.pop(node, None)
            self._let_go(node)

    def _attribute(
        self,
        ancestor: Node,
        group: list[Node],
        kills: int,
        ooms: int,
        *,
        strangers: bool,
        time_ns: int,
        events: list[Event],
    ) -> list[Change]:
        """Tells what only the counters of a cgroup know of some that went from below it."""
        changes: list[Change] = []
        owners = [node for node in group if node.counters]
        if ooms and len(owners) == 1 and not strangers:
            changes += self._last(owners[0], 0, ooms, time_ns, events)
            ooms = 0
        killed_in = suspects(group)
        if kills and len(killed_in) == 1 and not strangers:
            changes += self._last(killed_in[0], kills, 0, time_ns, events)
            kills = 0
        for node in killed_in if kills else ():
            if (named := min(kills, self._named(node)[0])) > 0:
                changes += self._last(node, named, 0, time_ns, events)
                kills -= named
        if kills or ooms:
            victims, told = self.nobodys(kills, ancestor.place.path)
            changes += told
            events.append(Unattributed(time_ns=time_ns, count=kills, ooms=ooms, victims=victims))
        return changes

    def _last(self, node: Node, kills: int, ooms: int, time_ns: int, events: list[Event]) -> list[Change]:
        """What only the counters above, or the log, know of a cgroup that is gone."""
        counters = node.counters
        assert counters is not None  # or it could not have counted any
        found = (counters[0] + kills, counters[1] + ooms, *counters[2:])
        changes: list[Change] = []
        for watch in node.watches:
            victims, _, told = self.claim(watch) if kills else ([], 0, [])
            if len(victims) > kills:
                victims, told = [], []
            limit = self.limit(victims)
            changes += told
            changes += self._differences(watch, counters, found, time_ns, events, victims=tuple(victims), limit=limit)
        return changes

    def _named(self, node: Node) -> tuple[int, int]:
        """How many kills in a cgroup that is gone the log tells of, and nobody has been told; known to the ledger."""
        claims = [self.claim(watch) for watch in node.watches if not watch.removed]
        return (
            max((len(victims) for victims, _, _ in claims), default=0),
            max((settled for _, settled, _ in claims), default=0),
        )

    def _let_go(self, node: Node) -> None:
        """After its end was told, or that of its counters."""
        self._unfollow(node, "descriptor")
        if not node.state:
            return
        self._strangers.discard(node)
        self._unsettled.discard(node)
        for watch in list(node.watches):
            self.let_go(watch)
            self.forget(watch)
