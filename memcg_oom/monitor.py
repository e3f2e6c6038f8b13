"""The Monitor: one descriptor that tells what happens to many cgroups."""

from __future__ import annotations

import errno
import math
import os
import struct
import time
import warnings
import weakref

from memcg_oom._native import ffi, lib
from memcg_oom.alarms import (
    Alarm,
    PressureWatch,
    UsageWatch,
    check_threshold,
    parse_threshold,
    pressure_control,
    usage_control,
)
from memcg_oom.audit import Audit
from memcg_oom.commit import close_all, close_and_commit, commit
from memcg_oom.complaints import Complaints
from memcg_oom.discovery import Discovery
from memcg_oom.errors import UnsupportedError, check, os_error
from memcg_oom.events import MemoryHigh, MemoryMax
from memcg_oom.hierarchy import ROOT_ID, Hierarchy
from memcg_oom.ledger import Ledger
from memcg_oom.lock import new_lock
from memcg_oom.loop import Loop
from memcg_oom.outbox import Outbox
from memcg_oom.paths import absolute
from memcg_oom.registration import Registrations, registered
from memcg_oom.search import Search
from memcg_oom.sources import check_kind
from memcg_oom.stalls import Stalls, StallWatch, check_trigger, find, open_trigger
from memcg_oom.tree import TreeWatch
from memcg_oom.trouble import CALM
from memcg_oom.v1 import V1Watches
from memcg_oom.v2 import V2Watches
from memcg_oom.victims import Victims
from memcg_oom.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from typing_extensions import Self

    from memcg_oom.commit import Change
    from memcg_oom.control import Control
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Place
    from memcg_oom.paths import StrPath
    from memcg_oom.watch import AnyWatch

    _Alarm = TypeVar("_Alarm", bound=Alarm)
    _Begun = TypeVar("_Begun")

_SIGNAL = struct.Struct("=QQ")  # struct memcg_signal
_LONGEST = 2**31 - 1  # milliseconds that epoll_wait(2) takes at once
_FOR_EVER = 2.0**61  # nanoseconds: 73 years, and two of them still fit what the kernel takes

_monitors: weakref.WeakSet[Monitor] = weakref.WeakSet()


class _OvertakenError(Exception):
    """What was begun was begun for nothing: another thread was first."""


class Monitor:
    """Tells, through one pollable file descriptor, what happens to every cgroup that it watches.

    Use it as a context manager, or call close(). Take events with wait(), or by iterating: `for event in monitor`
    blocks and yields one at a time; `async for event in monitor` does the same under asyncio. Only close() ends either.

    Synchronization: watch(), watch_many(), watch_tree(), watch_usage(), watch_pressure(), watch_stall(), `watches`, the
    close() of any watch or tree, wake() and close() may be called from any thread while another is in wait(); a second
    wait() meanwhile raises RuntimeError. wake() and close() may be called from a signal handler as well. After fork(2)
    the child's copy is closed and the parent's works on.

    A kill may come without any signal: the whole host ran out of memory, say. So whenever the kernel log tells of one,
    or each `audit` seconds where the log is not read, the host's own count of kills is compared with what was told;
    if some are missing, the counters of all watched cgroups are read.

    The log tells as well who was killed: an OomKill waits for that, `settle` seconds at the most.

    Args:
        settle: seconds for which a cgroup is looked at after its last OOM notification: the kernel signals before it
            kills, up to 74 ms before in trials.
        linger: seconds for which the signals of a removed cgroup are awaited after the last one: the kernel sends
            the removal's own 12 to 127 ms after rmdir(2) returned.
        audit: seconds between two audits where something can be found by them alone; None: no audits at all, and no
            timer. Then a kill without a signal is told when its cgroup is next looked at for another reason, what could
            not be opened or followed at first is not tried again, and that a tree's root is gone which is followed by
            its counter (TreeWatch.polled) is not told on v1.
        victims: whether the kernel log is read (/dev/kmsg; needs CAP_SYSLOG where kernel.dmesg_restrict is 1), which
            wakes the monitor with each of its records. Without it no event names a victim, nor waits for that, and
            audits come by the timer.

    Raises:
        ValueError: a period that is negative, NaN or infinite; an audit period of 0.
        OSError: no descriptors left (EMFILE). It takes three; with the first watch four more (v2: five); with the first
            tree one more where fanotify is to be had (v1: or inotify); with the first stall one more. Each watch takes
            one; on v2 those for stalls alone do.
    """

    def __init__(
        self, *, settle: float = 0.5, linger: float = 0.25, audit: float | None = 1.0, victims: bool = True
    ) -> None:
        settle_ns, linger_ns = _nanoseconds("settle", settle), _nanoseconds("linger", linger)
        audit_ns = 0 if audit is None else _nanoseconds("audit", audit)
        if audit is not None and not audit_ns:
            raise ValueError("audit must be None or a number of seconds above 0")
        self._closing = True  # until there is something to close
        # Taken with `with` alone, into which no signal handler can come. Whoever leaves it last after close() frees the
        # descriptors: hence `with self._leaving, self._lock`.
        self._lock = new_lock()
        self._leaving = _Leaving(self)
        self._waiting = False
        self._woken = False
        self._rung = False  # the bell rings for what an iteration has left in the outbox
        self._is_polled = False  # whether anybody knows the descriptor
        self._batch = ffi.new("struct memcg_batch *")
        self._outbox = Outbox()
        self._loop = Loop()
        self._complaints = Complaints()
        self._stalls = Stalls(self._loop, self._outbox, self._complaints)
        self._bell: _Bell | None = None
        self._timer = -1
        try:
            self._bell = _Bell()
            self._timer = check(lib.memcg_timer_open(), "timerfd")
            self._armed = 0
            self._settle, self._linger, self._audit_period = settle_ns, linger_ns, audit_ns
            self._victims = Victims(
                wanted=bool(victims),
                loop=self._loop,
                outbox=self._outbox,
                complaints=self._complaints,
                settle=settle_ns,
            )
            self._watches, self._discovery, self._audit = self._engine(1)
            self._loop.add([self._bell.fd, self._timer])
        except BaseException:
            self._release()
            raise
        self._closing = False
        _monitors.add(self)

    def _engine(self, version: int) -> tuple[V1Watches | V2Watches, Discovery, Audit]:
        """What does the work, for one version of cgroups."""
        ledger = Ledger()
        shared: dict[str, Any] = {
            "loop": self._loop,
            "outbox": self._outbox,
            "complaints": self._complaints,
            "ledger": ledger,
            "settle": self._settle,
        }
        watches: V1Watches | V2Watches
        watches = V1Watches(linger=self._linger, **shared) if version == 1 else V2Watches(**shared)
        discovery = Discovery(self, self._loop, watches, self._complaints)
        watches.let_go, watches.drain = discovery.let_go, discovery.drain
        discovery.hear_log = self._hear_log
        watches.claim, watches.nobodys = self._victims.claim, self._victims.nobodys_below
        watches.limit, watches.muddle = self._victims.limit, self._victims.muddle
        audit = Audit(
            watches=watches,
            discovery=discovery,
            complaints=self._complaints,
            ledger=ledger,
            victims=self._victims,
            settle=self._settle,
            period=self._audit_period,
        )
        return watches, discovery, audit

    # -- watching

    def watch(self, cgroup: StrPath, *, also: Iterable[type[Event]] = ()) -> Watch:
        """Watches one cgroup: from now on its OOMs, its OOM kills and its removal are told.

        One that is out of memory at this moment, with its OOM killer disabled, is told at once. Kills that were before
        are not. Several watches of one cgroup, here or in other monitors and processes, each get every event.

        Args:
            cgroup: the path of its directory.
            also: MemoryMax and MemoryHigh, where these are wanted too: they can be frequent, and only v2 has them.

        Raises:
            FileNotFoundError: it does not exist, or was removed meanwhile.
            NotADirectoryError: a file.
            NotACgroupError: not a cgroup, or one without the memory controller.
            RootCgroupError: the hierarchy's root, which the kernel never signals.
            UnsupportedError: a v1 kernel that refuses (PREEMPT_RT), or has not what is asked for.
            PermissionError: no read permission on memory.oom_control or no write permission on cgroup.event_control; on
                v2 no read permission on the directory or memory.events.local.
            OSError: whatever else the kernel says: EROFS, EMFILE, ENFILE, ENOMEM; on v2 ENOSPC
                (fs.inotify.max_user_watches).
            ValueError: an empty path, one with a NUL, or the monitor is closed; or `also` holds something else.
            TypeError: not a path.
        """
        return self.watch_many([cgroup], also=also)[0]

    def watch_many(
        self, cgroups: Iterable[StrPath], *, skip_gone: bool = False, also: Iterable[type[Event]] = ()
    ) -> list[Watch]:
        """Watches many cgroups, all or none of them; several threads share the work.

        Args:
            cgroups: the paths of their directories.
            skip_gone: leave out those that do not exist (any more) instead of failing.
            also: as watch().

        Returns:
            Their watches, in the order given.

        Raises:
            OSError, ValueError, TypeError: as watch(); then none of them is watched and no descriptor is left behind.
        """
        paths = [absolute(cgroup) for cgroup in cgroups]
        kinds = _optional(also)
        return self._once_more(lambda: self._watch_many(paths, kinds, skip_gone))

    def _watch_many(self, paths: list[str], kinds: frozenset[type[Event]], skip_gone: bool) -> list[Watch]:
        hierarchy, opened = self._hierarchy(paths, skip_gone)
        if hierarchy is None:
            return []  # nothing given, or all of them gone
        registrations: Registrations | None = None
        watches: list[Watch] = []
        try:
            _check_has(hierarchy, kinds)
            registrations = Registrations(hierarchy, paths, inotify=hierarchy.inotify)
            found = [one.found(place) for one, place in registered(hierarchy, registrations, skip_gone)]
            with self._leaving, self._lock:
                self._begin(hierarchy, opened)
                self._hear_log()
                watches = self._watches.watch(self, found, [registrations], also=kinds)
                self._call()
        except BaseException:
            for watch in watches:
                self._unwatch(watch)
            self._undo(registrations)
            raise
        finally:
            if opened is not None and opened is not self._watches.hierarchy:
                opened.close()
        return watches

    def watch_tree(self, root: StrPath, *, source: str | None = None, also: Iterable[type[Event]] = ()) -> TreeWatch:
        """Watches a cgroup, all that are in it, and all that will be, until the tree is closed.

        A cgroup that appears is told of by Created, and watched from its beginning: what was killed in it before its
        watch stood is told too. When descriptors run out the tree goes on with counters alone, see TreeWatch.polled.
        With the hierarchy's root it covers the host: every kill is told with its cgroup, or, if that came and went
        unseen, as Unattributed.

        Args:
            root: the path of its directory. The hierarchy's root is taken for all that is below it.
            source: who is to tell of new cgroups: "fanotify", "inotify" (see TreeWatch.source). None: on v1 whatever
                another tree of this monitor has already, an inotify that was asked for by name too; else the best.
            also: as watch().

        Returns:
            The tree, after its first scan.

        Raises:
            FileNotFoundError: the root does not exist, or was removed meanwhile.
            NotADirectoryError: a file.
            NotACgroupError: not a cgroup, or one without the memory controller.
            UnsupportedError: v1 has not what is asked for.
            PermissionError: its directory may not be read (on v1, but for the hierarchy's root: searched), or its
                control file. What is in it and may not be looked at is Degraded.
            OSError: it cannot be read; the source asked for is not to be had; no descriptors at all are left.
            ValueError: an empty path, one with a NUL, no such source, or the monitor is closed; or `also` holds
                something else.
            TypeError: not a path.
        """
        path = absolute(root)
        check_kind(source)
        kinds = _optional(also)
        return self._once_more(lambda: self._watch_tree(path, source, kinds))

    def _watch_tree(self, path: str, source: str | None, kinds: frozenset[type[Event]]) -> TreeWatch:
        hierarchy, opened = self._hierarchy([path], skip_gone=False)
        assert hierarchy is not None  # what does not exist was an error
        tree: TreeWatch | None = None
        search: Search | None = None
        try:
            _check_has(hierarchy, kinds)
            place = hierarchy.find(path)
            with self._leaving, self._lock:
                self._begin(hierarchy, opened)
                tree = TreeWatch(self, place, self._discovery.open_source(source), kinds)
                self._discovery.begin(tree)
            search = Search(hierarchy, tree)
            search.scan()
            with self._leaving, self._lock:
                self._check_open()
                covers = hierarchy.is_root(place.directory_id) and self._watches.covering is None
                self._discovery.scanned(search, [(self._watches, "covering", tree)] if covers else [])
                if covers:
                    # What the log has said so far is not the tree's business.
                    self._hear_log()
                    self._audit.cover()
                self._call()
        except BaseException as error:
            self._undo(search)
            if tree is not None:
                self._unwatch_tree(tree)
            else:
                with self._leaving, self._lock:
                    self._discovery.drop_unneeded()
                    self._bury()
            if isinstance(error, OSError):
                self._check_open()  # what failed may have been closed by another thread
            raise
        finally:
            if opened is not None and opened is not self._watches.hierarchy:
                opened.close()
        return tree

    def _hear_log(self) -> None:
        """Has what the log has said so far be of kills before a watch begins; the lock is held."""
        self._victims.read()
        if self._victims.heard or self._victims.has_unplaced:
            self._ring()  # there is nothing left to read that would wake the waiter

    def _hierarchy(self, paths: list[str], skip_gone: bool) -> tuple[Hierarchy | None, Hierarchy | None]:
        """The hierarchy that the first of the cgroups is in, and once more if it was opened for this."""
        with self._leaving, self._lock:
            self._check_open()
            hierarchy = self._watches.hierarchy
        if hierarchy is not None:
            return hierarchy, None
        opened = _open_hierarchy(paths, skip_gone)
        return opened, opened

    def _undo(self, begun: Registrations | Search | None) -> None:
        """Lets go of what was registered and is not watched."""
        if begun is not None:
            # With the lock held: else another thread might take what it has just found to be nobody's.
            with self._leaving, self._lock:
                begun.undo()

    @staticmethod
    def _once_more(begin: Callable[[], _Begun]) -> _Begun:
        try:
            return begin()
        except _OvertakenError:
            return begin()  # with the hierarchy that is there now, and stays

    def _begin(self, hierarchy: Hierarchy, opened: Hierarchy | None) -> None:
        """What the first watch brings along; the lock is held.

        Raises:
            _OvertakenError: another thread's first watch has brought it along meanwhile. What was registered is known
                to another inotify instance.
        """
        self._check_open()
        if self._watches.hierarchy is None and opened is not None:
            watches, discovery, audit = self._engine(opened.version)
            fds = discovery.take_over(opened)
            try:
                changes = audit.open(
                    opened, lambda log: self._loop.add([self._loop.key(fd, lib.MEMCG_UNREAD) for fd in (*fds, *log)])
                )
                commit(
                    [
                        *changes,
                        (watches, "hierarchy", opened),
                        (self, "_watches", watches),
                        (self, "_discovery", discovery),
                        (self, "_audit", audit),
                    ]
                )
            finally:
                if self._audit is not audit:
                    audit.close()
        if self._watches.hierarchy is not hierarchy:
            raise _OvertakenError

    # -- watching for something else than OOM

    def watch_usage(
        self, cgroup: StrPath, threshold: int | str, swap: bool = False, *, interval: float = 1.0
    ) -> UsageWatch:
        """Watches for the usage of a v1 cgroup to cross a threshold, in either direction; see UsageCrossed.

        The registration takes the kernel 8 to 16 ms (it waits for readers, mem_cgroup_usage_register_event()), during
        which other threads run on, also one that is in wait(). How often it crosses is counted by the kernel, which
        looks at the usage once in 128 pages that come or go on a processor: what is shorter than that is not seen.

        Args:
            cgroup: the path of its directory; the hierarchy's root has a usage too.
            threshold: bytes, also as "100M"; or a share of the limit that the cgroup has now, "90%". The kernel rounds
                it down to pages.
            swap: of memory and swap together (memory.memsw.usage_in_bytes).
            interval: seconds for which going to and fro is collected into one event.

        Raises:
            UnsupportedError: a v2 cgroup, which has nothing that means the same; a share where there is no limit; a
                kernel that does not account for swap, or refuses (PREEMPT_RT).
            ValueError, TypeError: no path, no threshold; an interval that is negative, NaN or infinite; the monitor is
                closed.
            OSError: as watch().
        """
        check_threshold(threshold)
        interval_ns = _nanoseconds("interval", interval)

        def make(place: Place, key: int, control: Control, usage: int) -> UsageWatch:
            return UsageWatch(self, place, key, control, interval_ns, usage=usage)

        instead = "memory.high and watch(also=[MemoryHigh]), or watch_stall(), are the nearest things"
        return self._set_alarm(
            cgroup,
            lambda path: usage_control(parse_threshold(path, threshold, swap), swap),
            make,
            f"cgroup v2 signals no usage: {instead}",
        )

    def watch_pressure(
        self, cgroup: StrPath, level: str, mode: str = "default", *, interval: float = 1.0
    ) -> PressureWatch:
        """Watches for memory pressure in a v1 cgroup, of a level or above; see Pressure.

        The signals are those of vmpressure_event().

        Args:
            cgroup: the path of its directory.
            level: "low" (memory is reclaimed), "medium" (the reclaimer has to scan a lot for it), "critical" (an OOM is
                near).
            mode: whose pressure: "default" (its own, and of those below unless somebody there is told), "hierarchy"
                (also if), "local" (its own).
            interval: seconds for which the signals are collected into one event; there may be hundreds a second.

        Raises:
            UnsupportedError: a v2 cgroup, which has stalls instead; a kernel that refuses (PREEMPT_RT).
            ValueError: no such level or mode; an interval that is negative, NaN or infinite; the monitor is closed.
            TypeError: not a path.
            OSError: as watch().
        """
        control = pressure_control(level, mode)
        interval_ns = _nanoseconds("interval", interval)

        def make(place: Place, key: int, control: Control, _value: int) -> PressureWatch:
            return PressureWatch(self, place, key, control, interval_ns, level=level, mode=mode)

        instead = "cgroup v2 has no memory.pressure_level: watch_stall() is the nearest thing"
        return self._set_alarm(cgroup, lambda _: control, make, instead)

    def _set_alarm(
        self,
        cgroup: StrPath,
        find_control: Callable[[str], Control],
        make: Callable[[Place, int, Control, int], _Alarm],
        instead: str,
    ) -> _Alarm:
        path = absolute(cgroup)
        return self._once_more(lambda: self._set_alarm_at(path, find_control, make, instead))

    def _set_alarm_at(
        self,
        path: str,
        find_control: Callable[[str], Control],
        make: Callable[[Place, int, Control, int], _Alarm],
        instead: str,
    ) -> _Alarm:
        hierarchy, opened = self._hierarchy([path], skip_gone=False)
        assert hierarchy is not None  # what does not exist was an error
        registrations: Registrations | None = None
        alarm: _Alarm | None = None
        try:
            if hierarchy.version == 2:
                raise UnsupportedError(errno.EOPNOTSUPP, instead, path)
            hierarchy.find(path)  # or there is nothing in it to be found out about
            control = find_control(path)
            registrations = Registrations(hierarchy, [path], control=control)
            ((row, place),) = registered(hierarchy, registrations, skip_gone=False)
            with self._leaving, self._lock:
                self._begin(hierarchy, opened)
                assert isinstance(self._watches, V1Watches)  # as the hierarchy
                alarm = make(place, self._loop.key(row.descriptor), control, row.after[0])
                self._watches.set_alarm(alarm, registrations)
                self._call()
        except BaseException:
            if alarm is not None:
                self._unwatch(alarm)
            self._undo(registrations)
            raise
        finally:
            if opened is not None and opened is not self._watches.hierarchy:
                opened.close()
        return alarm

    def watch_stall(self, target: StrPath, kind: str, stall: float, window: float) -> StallWatch:
        """Watches for tasks that wait for memory: told each time when they did for `stall` seconds within `window`.

        Needs no memory controller: any v2 cgroup will do, and the whole host, whatever is mounted. The kernel tells at
        most once in a window; in a new watch that may be of a stall from right before it. Several are independent.

        Args:
            target: the path of a v2 cgroup's directory, or "/proc/pressure/memory" for the whole host.
            kind: "some": at least one task waits; "full": all do that could run.
            stall: seconds.
            window: seconds, up to 10; from 0.5 on before Linux 6.4, and without CAP_SYS_RESOURCE a multiple of 2.

        Raises:
            UnsupportedError: a v1 cgroup; pressure stall information is switched off, or not in this kernel.
            NotACgroupError: neither a cgroup nor the host.
            ValueError: no such kind; a stall or a window outside the rules of all kernels; an empty path, or one with a
                NUL; the monitor is closed.
            TypeError: not a path, or no number.
            PermissionError: the file may not be written to.
            OSError: what this kernel has against it (EINVAL), with the reason; FileNotFoundError, EMFILE; EAGAIN: more
                than some 1,024 in one monitor, or fs.aio-max-nr.
        """
        microseconds = check_trigger(kind, stall, window)
        with self._leaving, self._lock:
            self._check_open()
        watch = StallWatch(self, find(target), kind, stall, window)
        fds: list[int] = []
        try:
            open_trigger(watch._place, kind, microseconds, fds)
            with self._leaving, self._lock:
                self._check_open()
                self._stalls.watch(watch, fds)
        except BaseException:
            self._unwatch(watch)
            close_all(fds)
            raise
        return watch

    # -- what is watched

    @property
    def watches(self) -> tuple[AnyWatch, ...]:
        """All watches that are neither closed nor of removed cgroups, those of trees included; the oldest first.

        Raises:
            ValueError: the monitor is closed.
        """
        with self._leaving, self._lock:
            self._check_open()
            shown = [watch for watch in self._all_watches() if self._is_shown(watch)]
        return tuple(sorted(shown, key=lambda watch: watch._key & ~lib.MEMCG_UNREAD))

    def _all_watches(self) -> list[AnyWatch]:
        alarms = self._watches.alarms.by_key if isinstance(self._watches, V1Watches) else {}
        return [*self._watches.by_key.values(), *alarms.values(), *self._stalls.by_key.values()]

    @staticmethod
    def _is_shown(watch: AnyWatch) -> bool:
        """Whether it is one that users know of: not of a removed cgroup, nor the hidden one of the hierarchy's root."""
        is_hidden = isinstance(watch, Watch) and watch._place.directory_id == ROOT_ID
        return not (watch.removed or watch.closed or is_hidden)

    def _members(self, tree: TreeWatch) -> list[Watch]:
        with self._leaving, self._lock:
            return [watch for watch in tree._members.values() if watch._tree is tree and self._is_shown(watch)]

    def _total(self, tree: TreeWatch, past: str, present: str) -> int:
        """A tree's total: of the members that it had, and of those that it has."""
        with self._leaving, self._lock:
            members = [watch for watch in tree._members.values() if watch._tree is tree]
            total: int = getattr(tree, past) + sum(getattr(watch, present) for watch in members)
            return total

    def _unwatch(self, watch: AnyWatch) -> None:
        if self._closing:
            return
        with self._leaving, self._lock:
            if watch.closed:
                return
            if isinstance(watch, StallWatch):
                self._stalls.forget(watch)
            elif isinstance(watch, Alarm):
                assert isinstance(self._watches, V1Watches)  # or there would be no alarm
                self._watches.forget_alarm(watch)
                watch._trouble = CALM
            elif isinstance(watch, Watch):
                if watch._tree is not None and not watch.removed:
                    watch._tree._left_out.add(watch)
                self._watches.forget(watch)
                watch._trouble = CALM
            watch.closed = True
            self._bury()

    def _unwatch_tree(self, tree: TreeWatch) -> None:
        """Ends a tree, in whatever state."""
        if self._closing:
            return
        with self._leaving, self._lock:
            members = tree._members.values()
            commit([(watch, "closed", True) for watch in members] + [(tree, "closed", True), (tree, "_backlog", None)])
            self._discovery.end(tree)
            if self._watches.covering is tree:
                self._audit.cover()
                self._watches.covering = self._discovery.covering()
            self._bury()

    # -- waiting

    def fileno(self) -> int:
        """The descriptor, for select, poll, epoll and event loops: readable while there is something to do.

        wait(0) does it, and returns what came of it, perhaps nothing.

        Raises:
            ValueError: the monitor is closed.
        """
        self._check_open()
        if not self._is_polled:
            with self._leaving, self._lock:
                self._check_open()
                self._is_polled = True
                self._call()
        return self._loop.fileno()

    def wait(self, timeout: float | None = None) -> list[Event]:
        """Waits until there are events and returns them, in the order in which they were made.

        Args:
            timeout: seconds, rounded up to the next millisecond; 0 does what is to be done and returns; None blocks.

        Returns:
            The events; empty when the timeout is over, after wake(), or when the monitor was closed meanwhile.

        Raises:
            ValueError: the timeout is negative or NaN, or the monitor is closed.
            RuntimeError: another wait(), or an iteration, is under way.
            OSError: the host's counter or the kernel's log cannot be read any more; what was read before is kept.
        """
        return self._receive(_deadline(timeout), one=False)

    def _receive(self, deadline: float | None, *, one: bool) -> list[Event]:
        """Waits until the outbox holds something, or the deadline is over, or somebody wakes it or closes.

        Hands out all events that there are then, or `one`, for which it does not wait if there are some left.
        """
        outbox = self._outbox
        entered = False
        try:
            with self._leaving, self._lock:
                self._enter()
                self._waiting = entered = True
            if not (one and outbox):
                self._pass_until(deadline)
            with self._lock:
                events, end = outbox.first() if one else outbox.all()
                if end < len(outbox.events) and self._is_polled and not self._rung:
                    self._rung = True
                    self._ring()  # what is left keeps the descriptor readable
            # No call from here to the return: an exception from a signal handler finds the events here or handed out.
            outbox.next = end
            if not self._closing:
                return events
        except BaseException:
            if entered:
                self._upset()
            raise
        finally:
            if entered:
                self._waiting = False  # first, and here: a call might be interrupted before it does anything
                if self._loop.unread or self._closing:
                    self._come_out()
        return []

    def _enter(self) -> None:
        """What a waiter begins with; the lock is held."""
        self._check_waitable()
        self._outbox.tidy()
        self._arm()

    def _upset(self) -> None:
        """After an exception: what was read is still here.

        Whoever polls the descriptor is to come again, and the timer may have been read without what it was for being
        done.
        """
        self._armed = -1
        if not self._closing:
            self._ring()

    def _pass_until(self, deadline: float | None) -> None:
        while True:
            # Here, and not on the way from a wake-up to its return: whatever was told before was handed out.
            self._audit_if_due()
            # What an exception left behind in the batch comes first.
            timeout = 0 if self._outbox or self._woken or self._batch.count else _milliseconds(deadline)
            self._pass(timeout)
            if self._closing or self._outbox or self._woken:
                self._woken = False
                return
            if deadline is not None and time.monotonic() >= deadline:
                return

    def _pass(self, timeout: int) -> None:
        """One wait of at most `timeout` milliseconds, and what came of it."""
        if not self._batch.count:
            drained = lib.memcg_wait(self._loop.fileno(), timeout, self._batch)
            if drained < 0:
                if drained == -errno.EINTR:
                    return  # the handler has run, or runs now; the caller looks at the clock
                raise os_error(-drained, "epoll")
            self._rung = False  # whatever rang was read
        with self._leaving, self._lock:
            if self._closing:
                return
            batch = self._batch
            now = batch.time_ns
            full = batch.count + batch.unread == lib.MEMCG_BATCH
            if batch.count:
                signals = _SIGNAL.iter_unpack(ffi.buffer(batch.signals, batch.count * _SIGNAL.size))
                if places := self._watches.absorb(signals, now, (batch, "count", 0)):
                    self._victims.look_around(places)
                    self._audit.call(now)
            if batch.unread or self._stalls.unheard:
                self._stalls.hear()
            if batch.unread:
                self._discovery.hear()
            if (batch.unread or self._watches.unheard) and (places := self._watches.hear(now)):
                self._victims.look_around(places)
                self._audit.call(now)
            # A cgroup in trouble may be removed at any moment; new ones can wait until it was looked at, and the log.
            self._watches.due(now, drained=not full)
            self._victims.read(briefly=True)
            self._stalls.due(now)
            self._discovery.discover()
            self._victims.place()
            self._heed(now)
            self._watches.part()
            # Whoever takes what there is comes back, and arms the timer then; who polls the descriptor need not.
            if self._is_polled or not self._outbox:
                self._arm()
            self._bury(waiting=False)

    def _audit_if_due(self) -> None:
        now = time.monotonic_ns()
        if self._audit.due and self._audit.due <= now and not (self._outbox or self._batch.count):
            with self._leaving, self._lock:
                if not self._closing:
                    self._audit.step(now)
                    self._victims.read()
                    self._victims.place()
                    self._heed(now)
                    self._watches.part()
                    self._arm()
                    self._bury(waiting=False)

    def _heed(self, now: int) -> None:
        """Where the log has spoken of a kill, it is looked for."""
        if self._victims.heard:
            self._audit.call(now)
            self._victims.heard = False

    def _come_out(self) -> None:
        with self._leaving, self._lock:
            self._bury()

    def wake(self) -> None:
        """Makes the wait() that is under way, or else the next one, return []. For any thread and any signal handler.

        Raises:
            ValueError: the monitor is closed.
        """
        self._check_open()
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        bell = self._bell  # held, so that a close() meanwhile cannot give its number to somebody else's file
        if bell is not None:
            os.eventfd_write(bell.fd, 1)

    # -- iterating

    def __iter__(self) -> Self:
        """Iterates for ever: only close() ends it.

        Raises:
            ValueError: the monitor is closed.
            RuntimeError: when advanced: another wait(), or iteration, is under way.
            OSError: when advanced: as wait().
        """
        self._check_open()
        return self

    def __next__(self) -> Event:
        while not self._closing:
            try:
                events = self._receive(None, one=True)
            except ValueError:
                if not self._closing:
                    raise
            else:
                if events:
                    return events[0]
        raise StopIteration

    def __aiter__(self) -> Self:
        """The same under asyncio: the loop watches the descriptor, the task that iterates reads.

        Raises:
            ValueError: the monitor is closed.
            RuntimeError: when advanced: another wait(), or iteration, is under way.
            OSError: when advanced: as wait().
        """
        self._check_open()
        return self

    async def __anext__(self) -> Event:
        while not self._closing:
            if not self._outbox:
                await self._readable()
            if not self._closing:
                # Nothing is awaited between reading and returning: a cancellation finds the event here or handed out.
                events = self._receive(time.monotonic(), one=True)
                if events:
                    return events[0]
        raise StopAsyncIteration

    async def _readable(self) -> None:
        import asyncio  # noqa: PLC0415 - takes longer than all of this package; who comes here has it already

        with self._leaving, self._lock:
            self._check_waitable()
            self._arm()
            self._waiting = True
        try:
            loop = asyncio.get_running_loop()
            ready: Future[None] = loop.create_future()
            fd = self._loop.fileno()
            loop.add_reader(fd, _set_ready, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
        finally:
            self._waiting = False
            self._come_out()

    # -- closing

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closing

    def close(self) -> None:
        """Ends everything: all watches, and a wait() that is under way, which returns [].

        What was not handed out is discarded. Of a TreeWatch or Watch the totals can still be read afterwards. Closing
        again does nothing, unless an exception came the last time. May be called from any thread and any signal
        handler: if another thread is inside a call, the descriptors are closed as soon as it comes out.
        """
        self._closing = True
        self._ring()
        self._free_if_closed()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closing", True):  # the constructor cleans up itself when it fails
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:  # a warning may be made an error
                self.close()

    def __repr__(self) -> str:
        if self._closing:
            return "<Monitor closed>"
        return f"<Monitor fd={self._loop.fileno()} watches={len(self._all_watches())}>"

    def _check_open(self) -> None:
        if self._closing:
            raise ValueError("the monitor is closed")

    def _check_waitable(self) -> None:
        self._check_open()
        if self._waiting:
            raise RuntimeError("another wait() of this monitor is under way; a monitor has one waiter")

    def _free_if_closed(self) -> None:
        """Closes the descriptors if close() was called and nobody is inside.

        close() may run in a signal handler, over the very thread that holds the lock, so nobody waits for it here. Who
        holds it comes by when letting go, and finds `_closing` set, which it was before this try.
        """
        if self._closing and self._lock.acquire(blocking=False):
            try:
                if not self._waiting:
                    self._release()
            finally:
                self._lock.release()

    def _release(self) -> None:
        """Closes every descriptor; nobody else is inside, or this is a forked child's copy.

        Only close(2) is called: in a child EPOLL_CTL_DEL and timerfd_settime would act on the parent's, whose files
        these are too.
        """
        self._closing = True
        fds = [self._timer] if self._timer >= 0 else []
        changes: list[Change] = [(self, "_timer", -1)]
        watches = getattr(self, "_watches", None)
        if watches is not None:
            self._stalls.end()
            changes += [(one, "closed", True) for one in (*self._all_watches(), *self._discovery.trees)]
            owners = (watches, self._stalls, self._loop, self._discovery, self._audit, watches.hierarchy)
            for owner in owners:
                changes += [] if owner is None else owner.hand_over(fds)
        close_and_commit(fds, changes)
        self._loop.close()
        self._bell = None

    # -- descriptors

    def _arm(self) -> None:
        wanted = (self._watches.next_due, self._stalls.next_due, self._audit.next_due(), self._victims.next_due())
        due = min((due for due in wanted if due), default=0)
        # What is due already may have been read from the timer just now.
        if due != self._armed or 0 < due <= self._batch.time_ns:
            if lib.memcg_timer_arm(self._timer, due) < 0:
                self._armed = -1
                self._ring()  # whoever waits comes by, and tries again
            else:
                self._armed = due

    def _call(self) -> None:
        """Has whoever waits come by: now, if there is something to be had, else when something is due."""
        self._arm()
        if self._outbox:
            self._ring()

    def _bury(self, *, waiting: bool | None = None) -> None:
        """Closes what left the epoll set, unless a wait() may be reading it: then it is asked to come back and do so.

        A descriptor that is closed under the waiter may get a new owner, whose data the waiter would read.
        """
        if self._loop.unread:
            if self._waiting if waiting is None else waiting:
                self._ring()
            else:
                self._loop.bury()


class _Bell:
    """The eventfd that makes the set readable; closed when the last one who might ring it lets go."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        fd = getattr(self, "fd", None)
        if fd is not None:
            close(fd)


class _Leaving:
    """Around the lock: what there is to do once it is let go."""

    __slots__ = ("_monitor",)

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        self._monitor._free_if_closed()


def _set_ready(ready: Future[None]) -> None:
    if not ready.done():  # the descriptor stays readable until the task has run
        ready.set_result(None)


def _open_hierarchy(paths: list[str], skip_gone: bool) -> Hierarchy | None:
    """The hierarchy of the first cgroup that exists; there is one v1 memory hierarchy on a host."""
    for path in paths:
        try:
            return Hierarchy(path)
        except FileNotFoundError:
            if not skip_gone:
                raise
    return None


def _optional(kinds: Iterable[type[Event]]) -> frozenset[type[Event]]:
    """The kinds of events that are asked for, if they are such as have to be."""
    wanted = frozenset(kinds)
    if not wanted <= {MemoryHigh, MemoryMax}:
        raise ValueError(f"also must hold nothing but MemoryHigh and MemoryMax, not {_names(wanted)}")
    return wanted


def _names(kinds: Iterable[object]) -> str:
    """For messages."""
    return ", ".join(sorted(getattr(kind, "__name__", repr(kind)) for kind in kinds))


def _check_has(hierarchy: Hierarchy, kinds: frozenset[type[Event]]) -> None:
    if kinds and hierarchy.version == 1:
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            f"cgroup v1 does not tell of {_names(kinds)}; memory.failcnt counts what v2 calls max",
            hierarchy.mount.point,
        )


def _nanoseconds(name: str, seconds: float) -> int:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} must be a number of seconds, finite and not negative, not {seconds!r}")
    return int(min(seconds * 1e9, _FOR_EVER))


def _deadline(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout must be None or a number of seconds that is not negative, not {timeout!r}")
    deadline = time.monotonic() + timeout
    return None if deadline == math.inf else deadline


def _milliseconds(deadline: float | None) -> int:
    if deadline is None:
        return -1
    return min(_LONGEST, max(0, math.ceil((deadline - time.monotonic()) * 1000)))


def _close_in_child() -> None:
    for monitor in list(_monitors):
        if not monitor._closing:
            monitor._lock = new_lock()  # the parent's may be held by a thread that is not here
            monitor._waiting = False
            monitor._release()


os.register_at_fork(after_in_child=_close_in_child)
