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

import os
import time
from itertools import compress, repeat

from memcg_oom.accounts import Accounts
from memcg_oom.alarms import Alarm, Alarms
from memcg_oom.by_descriptor import ByDescriptor
from memcg_oom.commit import commit
from memcg_oom.control import OOM
from memcg_oom.events import Oom, OomKill, OomResolved, ooms
from memcg_oom.hierarchy import GONE
from memcg_oom.loop import NO_FD
from memcg_oom.rounds import GAPS, Agenda, Round
from memcg_oom.trouble import CALM, SharedTrouble, Trouble
from memcg_oom.watch import Watch
from memcg_oom.watches import CROWD, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from memcg_oom.accounts import Entry
    from memcg_oom.commit import Change, Column
    from memcg_oom.events import Event
    from memcg_oom.found import Found
    from memcg_oom.hierarchy import Place
    from memcg_oom.monitor import Monitor
    from memcg_oom.registration import Registrations
    from memcg_oom.tree import TreeWatch
    from memcg_oom.watch import Signalled

# How long the eventfd outlives Removed, in nanoseconds, for a removal's signal that the kernel's workqueue delays.
LATE = 2_000_000_000
# The same for a threshold, whose end takes the kernel RCU grace periods (mem_cgroup_usage_unregister_event()): where
# hundreds go at once they queue for them.
ALARM_LATE = 30_000_000_000


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
        self.by_key: ByDescriptor = ByDescriptor()
        self._accounts = Accounts(self._ledger, self.trees)
        self.alarms = Alarms()
        self._linger = linger
        self._agenda = Agenda()

    @property
    def next_due(self) -> int:
        """When due() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all."""
        return min((due for due in (self._agenda.next_due(), self.alarms.next_due()) if due), default=0)

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
            Watch(monitor, one.place, self._loop.key(one.descriptor if one.descriptor >= 0 else NO_FD), one.seen[0])
            for one in found
        ]
        try:
            keys = [watch._key for watch in watches]
            polled = [watch for watch in watches if watch.polled]
            signalled = [watch for watch in watches if not watch.polled] if polled else watches
            self._loop.add([watch._key for watch in signalled])
            time_ns = time.time_ns()
            events: list[Event] = []
            changes = told(watches, time_ns, events)
            columns: list[Column] = [(watches, "closed", repeat(False))]
            self._accounts.join(watches, tree)
            entry = self._accounts.entry()
            for watch, one in zip(watches, found, strict=True):
                if one.now[0] > watch._seen:
                    changes += self._kills(watch, one.now[0], time_ns, events, entry)
                    changes += self._look_at_others([watch], watches)
            self.by_key.update(zip(keys, watches, strict=True))
            self.polled.update((watch._key, watch) for watch in polled if not self._is_root(watch))
            if tree is not None:
                tree._members.update((watch._place.directory_id, watch) for watch in watches)
                columns.append((watches, "_tree", repeat(tree)))
            if signalled:
                newcomers = SharedTrouble()
                columns.append((signalled, "_trouble", repeat(newcomers)))
                self._rest(signalled, [newcomers], self._settle, changes)
            for one_registrations in registrations:
                changes += one_registrations.hand_over()
            entry.commit(changes + self._outbox.put(events), *columns)
        except BaseException:
            for watch in watches:
                if watch.closed:
                    self.by_key.pop(watch._key, None)
                    self.polled.pop(watch._key, None)
                    self._accounts.leave(watch)
            raise
        return watches

    def set_alarm(self, alarm: Alarm, registrations: Registrations) -> None:
        """Watches for what an alarm is registered for; its descriptor belongs to it from here on."""
        try:
            self._loop.add([alarm._key])
            self.alarms.by_key[alarm._key] = alarm
            commit([(alarm, "closed", False), *registrations.hand_over()])
        except BaseException:
            if alarm.closed:
                self.alarms.by_key.pop(alarm._key, None)
            raise

    def hand_over(self, fds: list[int]) -> list[Change]:
        """Puts the watches' descriptors on a list; returns the changes by which they, and the watches, are not here."""
        fds += [watch._eventfd for watch in self.by_key.values() if not watch.polled]
        fds += [alarm._eventfd for alarm in self.alarms.by_key.values()]
        return [(self, "by_key", ByDescriptor()), (self, "polled", {}), (self.alarms, "by_key", {})]

    def forget_alarm(self, alarm: Alarm) -> None:
        """Ends an alarm, if it has not ended."""
        self.alarms.put_off(alarm)
        by_key, key, fd = self.alarms.by_key, alarm._key, alarm._eventfd
        if key in by_key:
            self._loop.unregister(fd)
            unread = self._loop.unread
            unread += [fd]  # no call from here on, as in forget()
            del by_key[key]

    def forget(self, watch: Watch) -> None:
        """Ends a watch, if it has not ended; as long as it is a member of a tree, its kills are accounted for."""
        key, fd = watch._key, watch._eventfd
        if key in self.by_key:
            if watch.polled:
                self.polled.pop(key, None)
                self.by_key.pop(key)
            else:
                self._loop.unregister(fd)
                unread, rows = self._loop.unread, self.by_key.rows
                unread += [fd]  # no call from here on: the descriptor is in one of the two, whatever happens
                rows[fd] = None
        if watch._tree is None:
            self._accounts.leave(watch)

    def absorb(self, signals: Iterable[tuple[int, int]], now: int, consumed: Change) -> list[Place]:
        """Takes what was read from the eventfds; whoever it is for is put down for a look.

        Args:
            signals: (key, count) pairs; keys of closed watches are passed over.
            now: when they were read, in nanoseconds of CLOCK_MONOTONIC.
            consumed: the change by which the signals count as taken.

        Returns:
            Where somebody is to be looked at.
        """
        changes = [consumed]
        events: list[Event] = []
        troubles: list[Trouble] = []
        helds: list[int] = []
        live: list[Watch] = []
        living: list[Trouble] = []
        ooms: list[int] = []
        gone: list[Signalled] = []
        alarmed: list[Alarm] = []
        for key, count in signals:
            watch: Watch | Alarm | None = self.by_key.get(key) or self.alarms.by_key.get(key)
            if watch is None or watch.closed:
                continue
            trouble = watch._trouble
            if trouble.is_shared:
                trouble = watch._trouble = Trouble(trouble.round)  # as _own_trouble, which thousands had to call
            held = trouble.held + count
            troubles.append(trouble)
            helds.append(held)
            if watch.removed:
                # Of all signals since the cgroup was gone one is the removal's and the rest are OOMs.
                late = max(0, held - 1) - max(0, trouble.held - 1)
                if not late:
                    continue
                if isinstance(watch, Alarm):
                    events.append(watch._event(late, time.time_ns()))
                else:
                    changes.append((watch, "ooms", watch.ooms + late))
                    events.append(Oom(time_ns=time.time_ns(), cgroup=watch.cgroup, watch=watch, count=late, late=True))
            elif trouble.gone:
                gone.append(watch)
            elif isinstance(watch, Alarm):
                alarmed.append(watch)
            else:
                live.append(watch)
                living.append(trouble)
                ooms.append(trouble.signals + count)
        changes += self.alarms.signalled(alarmed, now)
        if gone:
            self._rest(gone, [watch._trouble for watch in gone], self._linger, changes)
        columns: list[Column] = [(troubles, "held", helds), (living, "signals", ooms)]
        if live:
            round_ = Round(live, now + self._settle, 0)
            self._agenda.add(now, round_)
            columns.append((living, "round", repeat(round_)))
        commit(changes + self._outbox.put(events), *columns)
        return [watch._place for watch in live]

    def due(self, now: int, drained: bool) -> None:
        """Does what the agenda has for this moment.

        Args:
            now: when the eventfds were last read, in nanoseconds of CLOCK_MONOTONIC.
            drained: whether all that were ready were read. If not, one of those that are left may hold what decides
                about a removal, which waits then.
        """
        self._look_at_alarms(now)
        postponed = []
        while (round_ := self._agenda.first(now)) is not None:
            members = round_.members()
            if members and members[0]._trouble.gone:
                if members[0].removed:
                    for watch in members:
                        if isinstance(watch, Alarm):
                            self.forget_alarm(watch)
                        elif isinstance(watch, Watch):
                            self.let_go(watch)
                            self.forget(watch)
                elif drained:
                    self._remove(members)
                else:
                    postponed.append(round_)
            elif members:
                self._look(round_, [watch for watch in members if isinstance(watch, Watch)])
            self._agenda.drop_first()
        for round_ in postponed:
            self._agenda.add(now, round_)

    def _look_at_alarms(self, now: int) -> None:
        """Looks at whoever is due and tells what is new of them."""
        for alarms in self.alarms.due(now):
            assert self.hierarchy is not None  # there are watches, so it was opened
            found = self.hierarchy.look([alarm._place for alarm in alarms], alarms[0]._control)
            self.hierarchy.follow([alarm._place for alarm, (value, _) in zip(alarms, found, strict=True) if value >= 0])
            after, time_ns = time.monotonic_ns(), time.time_ns()
            changes: list[Change] = []
            events: list[Event] = []
            gone: list[Signalled] = []
            unread: list[Alarm] = []
            for alarm, (value, _) in zip(alarms, found, strict=True):
                if value >= 0:
                    changes += alarm._judge(value, after, time_ns, events)
                elif -value in GONE:
                    gone.append(alarm)
                else:
                    unread.append(alarm)
                    changes += self._complaints.unreadable(-value, events)
            entry = self._accounts.entry()
            changes += self._went(gone, time_ns, events, entry)
            entry.commit(changes + self._outbox.put(events))
            self.alarms.looked_at(alarms)
            self.alarms.postpone(unread, after + GAPS[-1])

    def _look(self, round_: Round, watches: list[Watch]) -> None:
        """Looks at everybody of a round and tells what is new."""
        before = time.monotonic_ns()
        settled = before >= round_.deadline
        # The first stands for all, though a batch may hold the signals of several OOMs. Where its killer is on and that
        # of others is off, these are looked at from the deadline on: an OomResolved of theirs comes then at the
        # earliest, and there is none of those whose tasks are free again by then.
        if round_.killer_off is None and len(watches) >= CROWD:
            round_.killer_off = self._is_killer_off(watches[0])
        if settled or len(watches) < CROWD or round_.killer_off or self._host_killed(round_):
            unsettled, complete = self._read(watches, settled)
        else:
            unsettled, complete = True, self._tell_ooms([watch for watch in watches if watch._trouble.held])
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
        places = [watch._place for watch in watches]
        paths = [place.path for place in places]
        elsewhere = self.hierarchy.moved(places, paths)
        time_ns = time.time_ns()
        at_paths = [not is_elsewhere for is_elsewhere in elsewhere]
        here = list(compress(watches, at_paths))
        troubles = [watch._trouble for watch in here]
        counts = [trouble.held for trouble in troubles]
        commit(
            self._outbox.put(ooms(time_ns, list(compress(paths, at_paths)), here, counts)),
            (here, "ooms", [watch.ooms + count for watch, count in zip(here, counts, strict=True)]),
            (troubles, "unresolved", [trouble.unresolved + trouble.held for trouble in troubles]),
            (troubles, "held", repeat(0)),
        )
        others = [watch for watch in watches if watch._trouble.held]
        return not others or self._read(others, settled=False)[1]

    def sweep(self, watches: list[Watch]) -> bool:
        """Looks at watches out of turn and tells what is new; whether all of them could be read."""
        _, complete = self._read(
            [watch for watch in watches if not (watch.closed or watch._trouble.gone)], settled=False
        )
        self._account([watch for watch in watches if watch.closed and watch._tree is not None])
        return complete

    def _account(self, watches: list[Watch]) -> None:
        """Takes note of kills of which nobody wants to be told."""
        assert self.hierarchy is not None
        entry = self._accounts.entry()
        gone = []
        killed = False
        for watch, (kills, _) in zip(watches, self.hierarchy.look([watch._place for watch in watches]), strict=True):
            if kills >= 0:
                entry.add(watch, kills)
                killed |= kills > watch._accounted
            elif -kills in GONE:
                gone.append(watch)
        entry.commit(self.muddle() if killed else [])
        for watch in gone:
            self.let_go(watch)
            self.forget(watch)

    def _read(self, watches: list[Watch], settled: bool) -> tuple[bool, bool]:
        """Reads the counters, tells what is new; whether anybody is not settled, and whether all could be read."""
        assert self.hierarchy is not None  # there are watches, so it was opened
        counters = self.hierarchy.look([watch._place for watch in watches])
        self._follow(
            [
                watch
                for watch, (kills, under_oom) in zip(watches, counters, strict=True)
                if kills > watch._seen
                or (kills >= 0 and (watch._trouble.held or bool(watch._trouble.stuck) > under_oom))
            ]
        )
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        entry = self._accounts.entry()
        gone = []
        unsettled = False
        complete = True
        killed: list[Watch] = []
        for watch, (kills, under_oom) in zip(watches, counters, strict=True):
            trouble = watch._trouble
            if kills >= 0:
                if trouble.held:
                    changes += self._ooms(watch, trouble.held, time_ns, events)
                if kills > watch._seen:
                    changes += self._kills(watch, kills, time_ns, events, entry)
                    killed.append(watch)
                stuck = trouble.stuck
                if stuck and not under_oom:
                    changes += self._resolved(watch, time_ns, events)
                elif under_oom and not stuck and trouble.round is not None and self._is_killer_off(watch):
                    stuck = trouble.round.deadline - self._settle  # when its signal was read
                    changes.append((watch._own_trouble, "stuck", stuck))
                if not settled or (stuck and under_oom):
                    unsettled = True
                else:
                    changes.append((watch, "_trouble", CALM))
            elif -kills in GONE:
                # One that has an eventfd is signalled for its removal; if it was just swept, that has yet to come.
                if watch.polled or trouble.round is not None:
                    gone.append(watch)
            else:
                unsettled = True
                complete = False
                changes += self._complaints.unreadable(-kills, events)
        changes += self._went(gone, time_ns, events, entry)
        changes += self._look_at_others(killed, watches)
        entry.commit(changes + self._outbox.put(events))
        return unsettled, complete

    def _look_at_others(self, killed: list[Watch], read: list[Watch]) -> list[Change]:
        """Puts the other watches of cgroups in which somebody was killed down for a look, but for those just read.

        To the ledger the kill is told, so no audit would find it for them. Who is in a round is looked at anyway.
        """
        keys = set().union(*map(self._accounts.others, killed)) - {watch._key for watch in read} if killed else ()
        others = [other for key in keys if (other := self.by_key.get(key)) is not None]
        others = [other for other in others if other._trouble.round is None and not other.polled]
        changes: list[Change] = []
        if others:
            late = SharedTrouble()
            changes += [(other, "_trouble", late) for other in others]
            self._rest(others, [late], 0, changes)
        return changes

    def _is_killer_off(self, watch: Watch) -> bool:
        """Whether a cgroup that is under OOM waits for somebody to help: the killer is off where the limit was hit.

        That is here or above; the file says under_oom in all that are below. Where the killer is on it says so as well,
        for the moment until it kills (mem_cgroup_oom()).
        """
        assert self.hierarchy is not None
        path, is_off = watch.cgroup, False
        while True:
            try:
                with open(os.path.join(path, OOM.file), "rb") as file:
                    lines = file.read().split(b"\n")
            except OSError:  # going, or moved: the next look finds it where it is
                return is_off
            if b"under_oom 1" not in lines:
                return is_off  # so it was hit in the one below
            is_off = b"oom_kill_disable 1" in lines
            if path == self.hierarchy.mount.point:
                return is_off
            path = os.path.dirname(path)

    def _went(self, watches: Sequence[Signalled], time_ns: int, events: list[Event], entry: Entry) -> list[Change]:
        """What a look did not find any more: the last signals are awaited, where there are any."""
        now = time.monotonic_ns()
        changes: list[Change] = [(watch._own_trouble, "gone", now) for watch in watches]
        polled: list[Watch] = []
        signalled: list[Signalled] = []
        for watch in watches:
            if isinstance(watch, Watch) and watch.polled:
                polled.append(watch)
            else:
                signalled.append(watch)
        if polled:
            for watch in polled:
                if watch._trouble.stuck:
                    changes += self._resolved(watch, time_ns, events)
                # It has no signals to say how many.
                _, told = self._claimed(watch, 1, time_ns, events, entry, gone=now)
                changes += told + self._removed(watch, 0, time_ns, events)
            self._rest(polled, [watch._trouble for watch in polled], LATE, changes)
        if signalled:
            self._rest(signalled, [watch._trouble for watch in signalled], self._linger, changes)
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

    def _remove(self, watches: Sequence[Signalled]) -> None:
        """Nothing more came of these: what was held is what they are watched for, and the removal's own signal."""
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        entry = self._accounts.entry()
        for watch in watches:
            trouble = watch._trouble
            unresolved = 0
            if isinstance(watch, Alarm):
                if trouble.held > 1:
                    events.append(watch._event(trouble.held - 1, time_ns))
                    changes.append((trouble, "held", 1))
            elif isinstance(watch, Watch):
                unresolved = trouble.unresolved
                if trouble.held > 1:
                    changes += self._ooms(watch, trouble.held - 1, time_ns, events)
                    unresolved += trouble.held - 1
                if trouble.stuck:
                    changes += self._resolved(watch, time_ns, events)
                claimed, told = self._claimed(watch, unresolved, time_ns, events, entry, gone=trouble.gone)
                changes += told
                unresolved = max(0, unresolved - claimed)
            changes += self._removed(watch, unresolved, time_ns, events)
        if ooms := [watch for watch in watches if isinstance(watch, Watch)]:
            self._rest(ooms, [watch._trouble for watch in ooms], LATE, changes)
        if alarms := [watch for watch in watches if isinstance(watch, Alarm)]:
            self._rest(alarms, [watch._trouble for watch in alarms], ALARM_LATE, changes)
        entry.commit(changes + self._outbox.put(events))

    def _claimed(
        self, watch: Watch, most: int, time_ns: int, events: list[Event], entry: Entry, *, gone: int
    ) -> tuple[int, list[Change]]:
        """Tells the kills of a removed cgroup that the log alone knows of; how many there are."""
        victims, settled, changes = self.claim(watch, most, gone)
        if victims:
            count = len(victims)
            about: dict[str, Any] = {"time_ns": time_ns, "cgroup": watch.cgroup, "watch": watch}
            events.append(OomKill(**about, count=count, victims=tuple(victims), limit_cgroup=self.limit(victims)))
            entry.add(watch, watch._seen + count, settled)
            changes += [(watch, "kills", watch.kills + count), (watch, "_seen", watch._seen + count)]
        return len(victims), changes

    def _rest(
        self, watches: Sequence[Signalled], troubles: Iterable[Trouble], period: int, changes: list[Change]
    ) -> None:
        """Puts watches down for the end of a period that starts now, with nothing to be done before."""
        deadline = time.monotonic_ns() + period
        round_ = Round(watches, deadline, None)
        self._agenda.add(deadline, round_)
        changes += [(trouble, "round", round_) for trouble in troubles]

    @staticmethod
    def _ooms(watch: Watch, count: int, time_ns: int, events: list[Event]) -> list[Change]:
        events.append(Oom(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, count=count))
        trouble = watch._trouble
        return [
            (watch, "ooms", watch.ooms + count),
            (trouble, "unresolved", trouble.unresolved + count),
            (trouble, "held", trouble.held - count),
        ]

    @staticmethod
    def _resolved(watch: Watch, time_ns: int, events: list[Event]) -> list[Change]:
        after = (time.monotonic_ns() - watch._trouble.stuck) / 1e9
        events.append(OomResolved(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, after=after))
        return [(watch._trouble, "stuck", 0)]

    def _kills(self, watch: Watch, kills: int, time_ns: int, events: list[Event], entry: Entry) -> list[Change]:
        count = kills - watch._seen
        about: dict[str, Any] = {"time_ns": time_ns, "cgroup": watch.cgroup, "watch": watch}
        events.append(OomKill(**about, count=count, limit_cgroup=self._limit_of(watch, count)))
        entry.add(watch, kills)
        changes: list[Change] = [(watch, "kills", watch.kills + count), (watch, "_seen", kills)]
        trouble = watch._trouble
        # The OOMs of this very look are not in `unresolved` yet, so they are added here as well as by _ooms().
        if unresolved := trouble.unresolved + trouble.held:
            changes.append((trouble, "unresolved", max(0, unresolved - count)))
        return changes

    def _limit_of(self, watch: Watch, kills: int) -> str | None:
        """Whose limit was hit, by the signals: they go to that cgroup and to all that are below it.

        It is the topmost that was as often signalled as the victim's, if it is known that the one above was not. A kill
        that no signal is left for came of something else.
        """
        assert self.hierarchy is not None
        if kills > watch._trouble.unresolved + watch._trouble.held:
            return None
        tree, top, signals = watch._tree, watch, watch._trouble.signals
        while signals:
            parent = top._place.parent
            if os.path.dirname(top.cgroup) == self.hierarchy.mount.point and self.hierarchy.is_whole:
                return top.cgroup  # above it is the root, which has no limit
            above = None if tree is None or parent is None else tree.member(parent.directory_id)
            if above is None or above.closed or above.polled or above._trouble.signals not in (0, signals):
                return None
            if not above._trouble.signals:
                return top.cgroup
            top = above
        return None
