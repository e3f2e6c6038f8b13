"""cgroup v1, exactly: from eventfd counts and looks at oom_kill to Oom, OomKill and Removed.

What the kernel does (mm/memcontrol-v1.c), and so what the order of things must be:

- It signals an OOM before it kills, so one look at the counter after a signal proves nothing: the watch settles, and
  is looked at again until `settle` seconds after its last signal.
- It signals every cgroup below the one whose limit was hit, so a signal says nothing about who dies: the counter does.
- It signals once more for the removal, 12 to 127 ms after rmdir(2) returned, with nothing to tell that signal from an
  OOM. But all signals of OOMs precede it. So the eventfd is read first and the control file looked at afterwards: if
  it opens, the cgroup was alive after the read, and all that was read were OOMs. If it is gone, exactly one of the
  signals read from here on is the removal's.
"""

from __future__ import annotations

import time

from memcg_oom.accounts import Accounts
from memcg_oom.commit import commit
from memcg_oom.events import Oom, OomKill
from memcg_oom.hierarchy import GONE
from memcg_oom.rounds import Agenda, Round
from memcg_oom.watch import NO_FD, Watch
from memcg_oom.watches import CROWD, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from memcg_oom.accounts import Entry
    from memcg_oom.commit import Change
    from memcg_oom.events import Event
    from memcg_oom.found import Found
    from memcg_oom.monitor import Monitor
    from memcg_oom.registration import Registrations
    from memcg_oom.tree import TreeWatch

# How long the eventfd outlives Removed, in nanoseconds, for a removal's signal that the kernel's workqueue delays.
LATE = 2_000_000_000


class V1Watches(Watches):
    """All that one monitor watches on cgroup v1.

    Each method works out what is to change and then commits it, so that an exception in between (Ctrl-C, MemoryError)
    leaves everything to the next call. A round is put on the agenda before, and taken off after the commit: looked at
    once too often is no harm.

    Synchronization: none; the monitor's lock is held around every call.

    Args:
        linger: nanoseconds.
        shared: as Watches.
    """

    def __init__(self, *, linger: int, **shared: Any) -> None:
        super().__init__(**shared)
        self._accounts = Accounts(self._ledger, self.trees)
        self._linger = linger
        self._agenda = Agenda()

    @property
    def next_due(self) -> int:
        """When due() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all."""
        return self._agenda.next_due()

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
        """Watches cgroups, all or none; their descriptors belong to the watches from here on.

        A kill between the baseline and the registration is told at once. One whose OOM was signalled before the
        registration may still be on its way, so a new watch settles too, with one look at the end.

        Args:
            monitor: whose they are.
            found: the cgroups.
            registrations: that the eventfds come from.
            tree: that they become members of.
            also: nothing; v1 has none of it.
            told: adds what else is to be told, before anything of theirs, and returns further changes.
        """
        watches = [
            Watch(monitor, one.place, self.key(one.descriptor if one.descriptor >= 0 else NO_FD), one.seen[0], also)
            for one in found
        ]
        try:
            signalled = [watch for watch in watches if not watch.polled]
            self.add_to_loop([watch._key for watch in signalled])
            time_ns = time.time_ns()
            events: list[Event] = []
            changes = told(watches, time_ns, events)
            changes += [(watch, "closed", False) for watch in watches]
            self._accounts.join(watches, tree)
            entry = self._accounts.entry()
            for watch, one in zip(watches, found, strict=True):
                if one.now[0] > watch._seen:
                    changes += self._kills(watch, one.now[0], time_ns, events, entry)
            self.by_key.update((watch._key, watch) for watch in watches)
            self.polled.update((watch._key, watch) for watch in watches if watch.polled and not self._is_root(watch))
            if tree is not None:
                tree._members.update((watch._place.directory_id, watch) for watch in watches)
                changes += [(watch, "_tree", tree) for watch in watches]
            if signalled:
                self._rest(signalled, self._settle, changes)
            for one_registrations in registrations:
                changes += one_registrations.hand_over()
            entry.commit(changes + self._outbox.put(events))
        except BaseException:
            for watch in watches:
                if watch.closed:
                    self.by_key.pop(watch._key, None)
                    self.polled.pop(watch._key, None)
                    self._accounts.leave(watch)
            raise
        return watches

    def descriptors(self) -> list[int]:
        """Those that are the watches' own."""
        return [watch._eventfd for watch in self.by_key.values() if not (watch.closed or watch.polled)]

    def forget(self, watch: Watch) -> None:
        """Ends a watch, if it has not ended; as long as it is a member of a tree, its kills are accounted for."""
        key, fd = watch._key, watch._eventfd
        if key in self.by_key:
            if watch.polled:
                self.polled.pop(key, None)
            else:
                self._unregister(fd)
                unread = self._unread
                unread += [fd]  # no call from here on: the descriptor is in one of the two, whatever happens
            del self.by_key[key]
        if watch._tree is None:
            self._accounts.leave(watch)

    def absorb(self, signals: Iterable[tuple[int, int]], now: int, consumed: Change) -> bool:
        """Takes what was read from the eventfds; whoever it is for is put down for a look.

        Args:
            signals: (key, count) pairs; keys of closed watches are passed over.
            now: when they were read, in nanoseconds of CLOCK_MONOTONIC.
            consumed: the change by which the signals count as taken.

        Returns:
            Whether there is anybody to look at.
        """
        changes = [consumed]
        events: list[Event] = []
        live, gone = [], []
        for key, count in signals:
            watch = self.by_key.get(key)
            if watch is None or watch.closed:
                continue
            held = watch._held + count
            changes.append((watch, "_held", held))
            if watch.removed:
                # Of all signals since the cgroup was gone one is the removal's and the rest are OOMs.
                late = max(0, held - 1) - max(0, watch._held - 1)
                if late:
                    changes.append((watch, "ooms", watch.ooms + late))
                    events.append(Oom(time_ns=time.time_ns(), cgroup=watch.cgroup, watch=watch, count=late, late=True))
            elif watch._gone:
                gone.append(watch)
            else:
                live.append(watch)
        if gone:
            self._rest(gone, self._linger, changes)
        if live:
            round_ = Round(live, now + self._settle, 0)
            self._agenda.add(now, round_)
            changes += round_.join()
        commit(changes + self._outbox.put(events))
        return bool(live)

    def due(self, now: int, drained: bool) -> None:
        """Does what the agenda has for this moment.

        Args:
            now: when the eventfds were last read, in nanoseconds of CLOCK_MONOTONIC.
            drained: whether all that were ready were read. If not, one of those that are left may hold what decides
                about a removal, which waits then.
        """
        postponed = []
        while (round_ := self._agenda.first(now)) is not None:
            members = round_.members()
            if members and members[0]._gone:
                if members[0].removed:
                    for watch in members:
                        self.let_go(watch)
                        self.forget(watch)
                elif drained:
                    self._remove(members)
                else:
                    postponed.append(round_)
            elif members:
                self._look(round_, members)
            self._agenda.drop_first()
        for round_ in postponed:
            self._agenda.add(now, round_)

    def _look(self, round_: Round, watches: list[Watch]) -> None:
        """Looks at everybody of a round and tells what is new."""
        before = time.monotonic_ns()
        settled = before >= round_.deadline
        if settled or len(watches) < CROWD or self._host_killed(round_):
            unsettled, complete = self._read(watches, settled)
        else:
            unsettled, complete = True, self._tell_ooms([watch for watch in watches if watch._held])
        round_.again |= not complete
        if unsettled:
            after = time.monotonic_ns()
            self._agenda.add(round_.next_look(after, after - before), round_)

    def _host_killed(self, round_: Round) -> bool:
        """Whether the counters of a crowd are worth a look: the host has killed, and not everything is told.

        Once more the next time, as the host's counter rises before the cgroup's.
        """
        assert self.counter is not None  # opened with the hierarchy
        host = self.counter.read()
        moved, round_.host = host != round_.host, host
        worth = (moved or round_.again) and self._ledger.missing(host) > 0
        round_.again = moved
        return worth

    def _tell_ooms(self, watches: list[Watch]) -> bool:
        """Tells the OOMs of watches whose kills are not worth a look; whether that could be done.

        A cgroup that is at its path was not removed before, so no signal that was read is its removal's. To know that
        takes half as long as to read its counter. The others are looked at.
        """
        assert self.hierarchy is not None  # there are watches, so it was opened
        moved = self.hierarchy.moved([watch._place for watch in watches])
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        for watch, is_elsewhere in zip(watches, moved, strict=True):
            if not is_elsewhere:
                changes += self._ooms(watch, watch._held, time_ns, events)
        commit(changes + self._outbox.put(events))
        _, complete = self._read([watch for watch in watches if watch._held], settled=False)
        return complete

    def sweep(self, watches: list[Watch]) -> bool:
        """Looks at watches out of turn and tells what is new; whether all of them could be read."""
        _, complete = self._read([watch for watch in watches if not (watch.closed or watch._gone)], settled=False)
        self._account([watch for watch in watches if watch.closed and watch._tree is not None])
        return complete

    def _account(self, watches: list[Watch]) -> None:
        """Takes note of kills of which nobody wants to be told."""
        assert self.hierarchy is not None
        entry = self._accounts.entry()
        for watch, kills in zip(watches, self.hierarchy.look([watch._place for watch in watches]), strict=True):
            if kills >= 0:
                entry.add(watch, kills)
        entry.commit([])

    def _read(self, watches: list[Watch], settled: bool) -> tuple[bool, bool]:
        """Reads the counters, tells what is new; whether anybody is not settled, and whether all could be read."""
        assert self.hierarchy is not None  # there are watches, so it was opened
        counters = self.hierarchy.look([watch._place for watch in watches])
        self._follow(
            [
                watch
                for watch, kills in zip(watches, counters, strict=True)
                if kills > watch._seen or (kills >= 0 and watch._held)
            ]
        )
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        entry = self._accounts.entry()
        gone = []
        unsettled = False
        complete = True
        for watch, kills in zip(watches, counters, strict=True):
            if kills >= 0:
                if watch._held:
                    changes += self._ooms(watch, watch._held, time_ns, events)
                if kills > watch._seen:
                    changes += self._kills(watch, kills, time_ns, events, entry)
                if settled:
                    changes += [(watch, "_round", None), (watch, "_unresolved", 0)]
                else:
                    unsettled = True
            elif -kills in GONE:
                # One that has an eventfd is signalled for its removal; if it was just swept, that has yet to come.
                if watch.polled or watch._round is not None:
                    gone.append(watch)
            else:
                unsettled = True
                complete = False
                changes += self._complaints.unreadable(-kills, events)
        changes += self._went(gone, time_ns, events)
        entry.commit(changes + self._outbox.put(events))
        return unsettled, complete

    def _went(self, watches: list[Watch], time_ns: int, events: list[Event]) -> list[Change]:
        """What a look did not find any more: the last signals are awaited, where there are any."""
        changes: list[Change] = [(watch, "_gone", True) for watch in watches]
        if signalled := [watch for watch in watches if not watch.polled]:
            self._rest(signalled, self._linger, changes)
        if polled := [watch for watch in watches if watch.polled]:
            for watch in polled:
                changes += self._removed(watch, 0, time_ns, events)
            self._rest(polled, LATE, changes)
        return changes

    def _follow(self, watches: list[Watch]) -> None:
        """Brings the paths of those of whom something is to be told up to date.

        Members of a tree are renamed when its source says so, as long as it does; what is above the tree has no source.
        """
        assert self.hierarchy is not None
        places = {
            watch._place if watch._tree is None or watch._tree._is_behind else watch._tree._place for watch in watches
        }
        self.hierarchy.follow(list(places))

    def _remove(self, watches: list[Watch]) -> None:
        """Nothing more came of these: what was held is their OOMs and the removal's own signal."""
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        for watch in watches:
            unresolved = watch._unresolved
            if watch._held > 1:
                changes += self._ooms(watch, watch._held - 1, time_ns, events)
                unresolved += watch._held - 1
            changes += self._removed(watch, unresolved, time_ns, events)
        self._rest(watches, LATE, changes)
        commit(changes + self._outbox.put(events))

    def _rest(self, watches: list[Watch], period: int, changes: list[Change]) -> None:
        """Puts watches down for the end of a period that starts now, with nothing to be done before."""
        deadline = time.monotonic_ns() + period
        round_ = Round(watches, deadline, None)
        self._agenda.add(deadline, round_)
        changes += round_.join()

    @staticmethod
    def _ooms(watch: Watch, count: int, time_ns: int, events: list[Event]) -> list[Change]:
        events.append(Oom(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, count=count))
        return [
            (watch, "ooms", watch.ooms + count),
            (watch, "_unresolved", watch._unresolved + count),
            (watch, "_held", watch._held - count),
        ]

    @staticmethod
    def _kills(watch: Watch, kills: int, time_ns: int, events: list[Event], entry: Entry) -> list[Change]:
        count = kills - watch._seen
        events.append(OomKill(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, count=count))
        entry.add(watch, kills)
        # The OOMs of this very look are not in `_unresolved` yet, so they are added here as well as by _ooms().
        unresolved = max(0, watch._unresolved + watch._held - count)
        return [(watch, "kills", watch.kills + count), (watch, "_seen", kills), (watch, "_unresolved", unresolved)]
