"""The audit: when the host killed and nobody told of it, look for the kill.

A global OOM, sysrq-f, and an OOM above a cgroup whose OOM killer is off send no signal. The host's counter rises all
the same, and so does the victim's.
"""

from __future__ import annotations

import time

from memcg_oom.commit import close_and_commit, commit
from memcg_oom.events import Unattributed
from memcg_oom.host import HostCounter
from memcg_oom.kernel_log import KernelLog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memcg_oom.commit import Change
    from memcg_oom.complaints import Complaints
    from memcg_oom.discovery import Discovery
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Hierarchy
    from memcg_oom.ledger import Ledger
    from memcg_oom.v1 import V1Watches
    from memcg_oom.v2 import V2Watches
    from memcg_oom.victims import Victims
    from memcg_oom.watch import Watch

# Nanoseconds from the call for an audit to its beginning: an OOM that was signalled is told by then without it.
GRACE = 50_000_000
# How many cgroups are looked at in a row, before whoever else is ready gets a turn.
CHUNK = 512
# Of the time, sweeps take no more than one part in so many: a noisy neighbour's kills must not cost us the host.
SHARE = 20


class Audit:
    """Compares the host's counter with the ledger, and sweeps the counters of all watches when they differ.

    A sweep is made in chunks, one a step(). Kills count as unattributed when a second sweep, a settle period after the
    first, does not explain those from before the first either: that may have been faster than a cgroup's counter.

    Synchronization: none; the monitor's lock is held around every call.

    Attributes:
        due: when step() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all.

    Args:
        watches: whose counters are swept.
        discovery: finds cgroups that appeared and are not watched yet.
        complaints: makes Degraded events.
        ledger: what was told.
        victims: what reads the log.
        settle: nanoseconds.
        period: nanoseconds; 0: no audits.
    """

    def __init__(
        self,
        *,
        watches: V1Watches | V2Watches,
        discovery: Discovery,
        complaints: Complaints,
        ledger: Ledger,
        victims: Victims,
        settle: int,
        period: int,
    ) -> None:
        self.due = 0
        self._watches = watches
        self._discovery = discovery
        self._complaints = complaints
        self._ledger = ledger
        self._victims = victims
        self._settle = settle
        self._period = period
        self._counter: HostCounter | None = None
        self._log: KernelLog | None = None
        self._has_log = False
        self._rest: list[Watch] | None = None  # of the sweep that is under way
        self._host = 0  # the host's counter when it began
        self._complete = True  # whether all that it looked at could be read
        self._cost = 0  # nanoseconds
        self._earliest = 0  # when the next may begin
        self._began = 0  # when it did
        self._suspected = 0  # the host's counter when a sweep began that did not explain all of its kills; 0: none
        self._ripe = 0  # from when on a sweep that does not either says that they are nobody's
        self._again = False  # whether it was called for meanwhile

    def open(self, hierarchy: Hierarchy, add_to_loop: Callable[[list[int]], None]) -> list[Change]:
        """Opens the host's counter and its log, for close() also if this fails.

        Args:
            hierarchy: that is watched.
            add_to_loop: adds descriptors to the epoll set, none of them too.

        Returns:
            The changes by which audits are made.

        Raises:
            OSError: EMFILE, and whatever keeps /proc/vmstat from being read.
        """
        counter = self._counter = HostCounter()
        events: list[Event] = []
        changes: list[Change] = []
        host = counter.read()
        try:
            self._log = KernelLog() if self._victims.wanted else None
        except OSError as error:
            changes = self._complaints.no_log(error, self._period / 1e9, events)
        changes += self._victims.open(self._watches, hierarchy, self._log, events)
        add_to_loop([] if self._log is None else [self._log.fd])
        return [
            *changes,
            (self._watches, "counter", counter),
            (self, "_has_log", self._log is not None),
            *self._ledger.open(host),
            *self._watches.tell(events),
        ]

    def cover(self) -> None:
        """Begins the ledger anew: from now on all kills of the host are its business."""
        assert self._counter is not None  # opened with the first watch
        commit(self._ledger.open(self._counter.read()) + self._victims.begin_anew())

    def close(self) -> None:
        """Closes what open() has opened; harmless when done again."""
        fds: list[int] = []
        close_and_commit(fds, self.hand_over(fds))

    def hand_over(self, fds: list[int]) -> list[Change]:
        """Puts what open() has opened on a list; returns the changes by which it is not its own any more."""
        opened = [one for one in (self._counter, self._log) if one is not None and one.fd >= 0]
        fds += [one.fd for one in opened]
        return [(one, "fd", -1) for one in opened]

    def next_due(self) -> int:
        """When step() wants to be called, at the latest; 0: not at all."""
        if not self.due and self._is_periodic():
            self.due = time.monotonic_ns() + self._period
        return self.due

    def _is_periodic(self) -> bool:
        """Whether there is something that nothing but an audit tells of."""
        if not self._period or self._counter is None:
            return False
        return not self._has_log or bool(self._watches.polled) or self._discovery.needs_audit

    def call(self, now: int, delay: int = GRACE) -> None:
        """Asks for an audit: something may have been killed."""
        if not self._period:
            return
        if self._rest is None:
            at = now + delay
            self.due = min(self.due, at) if self.due else at
        else:
            self._again = True

    def step(self, now: int) -> None:
        """Does what is due, in a few milliseconds at most; more may be due afterwards."""
        assert self._counter is not None  # something is watched, or nothing would be due
        if self._rest is None:
            self._again = False
            host = self._counter.read()
            missing = self._ledger.missing(host) > 0
            if not missing:
                self._suspected = 0
            if not (missing or self._watches.polled or self._discovery.needs_audit):
                self._next(now)
                return
            if now < self._earliest:
                self.due = self._earliest
                return
            self._host, self._began = host, now
            # A tree in which something cannot be opened is listed again: that takes its share too.
            before = time.monotonic_ns()
            self._complete = self._discovery.audit()
            self._cost = time.monotonic_ns() - before
            self._rest = list((self._watches.by_key if missing else self._watches.polled).values())
            if missing:
                self._rest += self._discovery.left_out()
        chunk, rest = self._rest[:CHUNK], self._rest[CHUNK:]
        before = time.monotonic_ns()
        # In this order, and the rest is cut off afterwards: an exception finds everything still to be looked at.
        self._complete = self._watches.sweep(chunk) and self._complete
        after = time.monotonic_ns()
        self._cost += after - before
        self._rest = rest or None
        self.due = after
        if not rest:
            self._earliest = after + (SHARE - 1) * self._cost
            self._balance(after)

    def _balance(self, now: int) -> None:
        """After a sweep."""
        missing = self._ledger.proven(self._host)
        if self._complete and not self._watches.is_parting:
            # It may have been called for before a settle period was over: then the first suspicion stands.
            is_ripe = not self._suspected or self._began >= self._ripe
            if self._suspected and is_ripe and (suspects := self._ledger.proven(self._suspected)):
                self._unattributed(suspects)
                missing -= suspects
            if not missing:
                self._suspected = 0
            elif is_ripe:
                self._suspected, self._ripe = self._host, now + self._settle
        if missing or not self._complete:
            self.due = max(self._earliest, now + self._settle)
        else:
            self._next(now)

    def _unattributed(self, count: int) -> None:
        """So many kills are nobody's. Where the watches do not cover the host that is nobody's business."""
        events: list[Event] = []
        changes = self._ledger.settle(count)
        if self._watches.covering is not None:
            victims, told = self._victims.nobodys(count)
            events.append(Unattributed(time_ns=time.time_ns(), count=count, victims=victims))
            changes += told + self._watches.told_as_nobodys(count)
        else:
            changes += self._victims.settled()
        commit(changes + self._watches.tell(events))

    def _next(self, now: int) -> None:
        if self._again:
            self.due = now + GRACE
        else:
            self.due = now + self._period if self._is_periodic() else 0
