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

import errno
import os
import time
from contextlib import suppress

from memcg_oom.commit import commit
from memcg_oom.events import Degraded, Oom, OomKill, Removed
from memcg_oom.hierarchy import GONE, NO_FDS
from memcg_oom.rounds import Agenda, Round

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from collections.abc import Iterable

    from memcg_oom.commit import Change, Outbox
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Hierarchy
    from memcg_oom.registration import Registrations
    from memcg_oom.watch import Watch

# How long the eventfd outlives Removed, in nanoseconds, for a removal's signal that the kernel's workqueue delays.
LATE = 2_000_000_000


class V1Watches:
    """All that one monitor watches on cgroup v1.

    Each method works out what is to change and then commits it, so that an exception in between (Ctrl-C, MemoryError)
    leaves everything to the next call. A round is put on the agenda before, and taken off after the commit: looked at
    once too often is no harm.

    Synchronization: none; the monitor's lock is held around every call.

    Args:
        epoll: the monitor's; watches leave it here.
        outbox: takes the events.
        unread: takes descriptors that left the epoll set, to be closed when no wait() reads them any more.
        settle: nanoseconds.
        linger: nanoseconds.
    """

    def __init__(
        self,
        epoll: select.epoll,
        outbox: Outbox,
        unread: list[int],
        settle: int,
        linger: int,
    ) -> None:
        self.hierarchy: Hierarchy | None = None
        self.by_key: dict[int, Watch] = {}
        self._epoll = epoll
        self._outbox = outbox
        self._unread = unread
        self._settle = settle
        self._linger = linger
        self._agenda = Agenda()
        self._failures: frozenset[int] = frozenset()

    @property
    def next_due(self) -> int:
        """When due() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all."""
        return self._agenda.next_due()

    def add(self, watches: list[Watch], registrations: Registrations) -> None:
        """Takes in watches that were just registered, and that are in the epoll set.

        A kill between the baseline and the registration is told at once. One whose OOM was signalled before the
        registration may still be on its way, so a new watch settles too, with one look at the end.

        Args:
            watches: as new.
            registrations: theirs, in the same order; their descriptors belong to the watches from here on.
        """
        time_ns = time.time_ns()
        events: list[Event] = []
        changes: list[Change] = [(watch, "closed", False) for watch in watches]
        for watch, registration in zip(watches, registrations.all, strict=True):
            if registration.kills_after > watch._seen:
                changes += self._kills(watch, registration.kills_after, time_ns, events)
        self.by_key.update((watch._key, watch) for watch in watches)
        self._rest(watches, self._settle, changes)
        commit(changes + self._outbox.put(events) + registrations.hand_over())

    def forget(self, watch: Watch) -> None:
        """Ends a watch, if it has not ended."""
        key, fd = watch._key, watch._eventfd
        if key in self.by_key:
            # Out of the epoll set before it is closed: a forked child's copy would keep it there.
            with suppress(FileNotFoundError):  # an exception came the last time, right here
                self._epoll.unregister(fd)
            unread = self._unread
            unread += [fd]  # no call from here on: the descriptor is in one of the two, whatever happens
            del self.by_key[key]

    def absorb(self, signals: Iterable[tuple[int, int]], now: int, consumed: Change) -> None:
        """Takes what was read from the eventfds, and puts everybody it is for down for a look.

        Args:
            signals: (key, count) pairs; keys of closed watches are passed over.
            now: when they were read, in nanoseconds of CLOCK_MONOTONIC.
            consumed: the change by which the signals count as taken.
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
        assert self.hierarchy is not None  # there are watches, so it was opened
        before = time.monotonic_ns()
        counters = self.hierarchy.look([watch._place for watch in watches])
        after = time.monotonic_ns()
        news = [
            watch._place
            for watch, kills in zip(watches, counters, strict=True)
            if kills > watch._seen or (kills >= 0 and watch._held)
        ]
        if news:
            self.hierarchy.follow(news)
        settled = before >= round_.deadline
        time_ns = time.time_ns()
        changes: list[Change] = []
        events: list[Event] = []
        gone = []
        unsettled = 0
        for watch, kills in zip(watches, counters, strict=True):
            if kills >= 0:
                if watch._held:
                    changes += self._ooms(watch, watch._held, time_ns, events)
                    changes.append((watch, "_held", 0))
                if kills > watch._seen:
                    changes += self._kills(watch, kills, time_ns, events)
                if settled:
                    changes += [(watch, "_round", None), (watch, "_unresolved", 0)]
                else:
                    unsettled += 1
            elif -kills in GONE:
                gone.append(watch)
            else:
                unsettled += 1
                changes += self._failed(-kills, events)
        if gone:
            changes += [(watch, "_gone", True) for watch in gone]
            self._rest(gone, self._linger, changes)
        if unsettled:
            self._agenda.add(round_.next_look(after, after - before), round_)
        commit(changes + self._outbox.put(events))

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
            changes.append((watch, "removed", True))
            events.append(Removed(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, unresolved=unresolved))
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
        return [(watch, "ooms", watch.ooms + count), (watch, "_unresolved", watch._unresolved + count)]

    @staticmethod
    def _kills(watch: Watch, kills: int, time_ns: int, events: list[Event]) -> list[Change]:
        count = kills - watch._seen
        events.append(OomKill(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, count=count))
        # The OOMs of this very look are not in `_unresolved` yet, so they are added here as well as by _ooms().
        unresolved = max(0, watch._unresolved + watch._held - count)
        return [(watch, "kills", watch.kills + count), (watch, "_seen", kills), (watch, "_unresolved", unresolved)]

    def _failed(self, error: int, events: list[Event]) -> list[Change]:
        """A look that failed for a reason that is not the cgroup's: it is repeated; said once for each errno."""
        if error == errno.EAGAIN or error in self._failures:
            return []
        if any(isinstance(event, Degraded) for event in events):
            return []  # the next look says it, should it go on
        events.append(
            Degraded(
                time_ns=time.time_ns(),
                what=f"memory.oom_control cannot be read: {os.strerror(error)}",
                cost="events of cgroups in trouble wait until it can be read; kills may become unresolved",
                remedy="raise RLIMIT_NOFILE (ulimit -n)"
                if error in NO_FDS
                else "let the watcher read memory.oom_control",
            )
        )
        return [(self, "_failures", self._failures | {error})]
