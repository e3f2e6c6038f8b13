"""Whose victim is it: the kernel's log, matched to the kills that the counters tell.

What the log says of a kill comes after the counter has moved. So when a line is read, the cgroup that it may belong to
is looked at: if no kill there lacks a victim, it belongs to another. Which cgroup that may be is known

- from the path in the log (task_memcg), of the ten kills in five seconds that it names;
- from the pid, where the task was seen in the cgroup before it was killed: when a cgroup's OOM is signalled, which
  is before the kill, its tasks are listed;
- from the pid, where the task is still there and dying: /proc/PID/cgroup;
- because it is the only one whose victim is missing, and no kill on the host is untold.

A pid that was seen only after its line may have been written is believed if that task is dying: it could be another's
by now. What contradicts itself is left out: a victim that is missing costs less than a wrong one.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress

from memcg_oom.commit import commit
from memcg_oom.events import OomKill
from memcg_oom.kernel_log import KernelLog, parse, says_killed
from memcg_oom.mounts import is_below, parse_proc_cgroup
from memcg_oom.outbox import Queue
from memcg_oom.paths import read_file
from memcg_oom.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from memcg_oom.commit import Change
    from memcg_oom.complaints import Complaints
    from memcg_oom.events import Event, Victim
    from memcg_oom.hierarchy import Hierarchy, Place
    from memcg_oom.loop import Loop
    from memcg_oom.outbox import Outbox
    from memcg_oom.v1 import V1Watches
    from memcg_oom.v2 import V2Watches
    from memcg_oom.watch import AnyWatch

# The inodes of the namespaces that the host begins with (include/linux/proc_ns.h).
_FIRST_PID = 0xEFFFFFFC
_FIRST_CGROUP = 0xEFFFFFFB

# Records that are read in a row, and so many where there are events to be handed out.
_RECORDS = 1000
_RECORDS_BRIEFLY = 16
# How often at the most, where it is to be read to the end: somebody may write to it faster than it can be read.
_READS = 64
# Nanoseconds for which a line that nobody wanted yet is kept, and for which it is known whose was not found.
_KEEP = 30_000_000_000
_KEEP_SHORT = 2 * _KEEP
# How many such lines, at the most.
_LINES = 256
# For how long, and how many of them, it is looked at again whose they are.
_AGAIN = 100_000_000
_AGAIN_LINES = 32
_NEVER = 2**63
# Nanoseconds within which no pid comes round again.
_SOON = 1_000_000_000

# Tasks are listed for one part of the time in so many, and up to so many nanoseconds at once after a while without.
_SHARE = 20
_BURST = 3_000_000
# Tasks that are remembered, and bytes of the list of one cgroup that are read.
_TASKS = 65_536
_LISTING = 1 << 16

_PF_EXITING = 0x4
_SIGKILL = 1 << 8


class _Seen:
    """Where a task was listed, and when."""

    __slots__ = ("directory_id", "at")

    def __init__(self, directory_id: int, at: int) -> None:
        self.directory_id = directory_id  # 0: in several
        self.at = at


class _Line:
    """A kill that the log told of, and nobody's counter yet.

    Attributes:
        victim: who.
        at: when it was read, in nanoseconds of CLOCK_MONOTONIC.
        emptied: when the log was last known to be empty before.
        mark: of the loop, from before it was read: what it tells of was counted before a later watch began.
        directory_id: of the cgroup, where the pid tells it; else 0.
        at_path: of the cgroup that was at its path when it was first placed, if there was one; else 0.
        takers: the keys of watches that it was claimed for.
        is_settled: whether the ledger has the kill already, as one that is nobody's business.
    """

    __slots__ = ("victim", "at", "emptied", "mark", "directory_id", "at_path", "takers", "is_settled")

    def __init__(self, victim: Victim, at: int, emptied: int, mark: int) -> None:
        self.victim = victim
        self.at = at
        self.emptied = emptied
        self.mark = mark
        self.directory_id = self.at_path = 0
        self.takers: frozenset[int] = frozenset()
        self.is_settled = False


class Victims:
    """Reads the log and gives every OomKill its victims.

    Synchronization: none; the monitor's lock is held around every call.

    Attributes:
        wanted: whether the log is to be read at all.
        heard: whether the log has spoken of a kill, or may have, since the monitor took note of that.

    Args:
        wanted: as Monitor(victims=).
        loop: the monitor's, which gives the keys.
        outbox: the monitor's, in which events wait for their victims.
        complaints: makes Degraded events.
        settle: nanoseconds that an OomKill waits.
    """

    def __init__(self, *, wanted: bool, loop: Loop, outbox: Outbox, complaints: Complaints, settle: int) -> None:
        self.wanted = wanted
        self.heard = False
        self._loop = loop
        self._outbox = outbox
        self._complaints = complaints
        self._settle = settle
        self._watches: V1Watches | V2Watches | None = None
        self._log: KernelLog | None = None
        self._by_pid = self._by_path = False
        self._emptied = 0  # when the log was last known to be empty, in nanoseconds of CLOCK_MONOTONIC
        self._before = 0  # the same, before the records were read that are to be placed
        self._mark = 0  # of the loop, likewise
        self._seen: dict[int, _Seen] = {}
        self._lines: list[_Line] = []  # that nobody wanted yet
        self._muddled = 0  # until when kills were told without a victim's being looked for, or in vain
        self._untold = 0  # until when the victims of kills that were told as nobody's may come
        self._short: dict[int, tuple[int, int]] = {}  # by the key of a watch: until when, how many it never got
        self._budget = _BURST
        self._listed = 0  # when tasks were last listed
        self._pruned = 0  # when those of long ago were last forgotten

    def open(
        self, watches: V1Watches | V2Watches, hierarchy: Hierarchy, log: KernelLog | None, events: list[Event]
    ) -> list[Change]:
        """The changes by which victims are looked for from here on.

        Args:
            watches: whose.
            hierarchy: theirs.
            log: None where it cannot be read.
            events: what cannot be done is added here.
        """
        if log is None:
            return []
        by_pid, by_path = named_by(hierarchy.is_whole)
        changes = [] if by_pid and by_path else self._complaints.in_namespace(by_pid, by_path, events)
        return [
            *changes,
            (self, "_watches", watches),
            (self, "_log", log),
            (self, "_by_pid", by_pid),
            (self, "_by_path", by_path),
            (self, "_emptied", time.monotonic_ns()),
            (self._outbox, "patience", self._patience(by_pid or by_path)),
        ]

    def _patience(self, finds_any: bool) -> int | None:
        """How long an OomKill waits; None: not at all."""
        return self._settle if finds_any else None

    def begin_anew(self) -> list[Change]:
        """The changes by which what was read so far, and what was told, is nobody's business any more."""
        return [(self, "_lines", []), *self.muddle()]

    def next_due(self) -> int:
        """When release() wants to be called, in nanoseconds of CLOCK_MONOTONIC; 0: not at all."""
        return min((queue.events[0][1] for queue in self._outbox.waiting.values()), default=0)

    # -- who is where

    def look_around(self, places: Iterable[Place]) -> None:
        """Lists the tasks of cgroups that an OOM was signalled to, as far as the time for it goes."""
        if not self._by_pid or self._outbox.patience is None:
            return
        now = time.monotonic_ns()
        self._budget = min(_BURST, self._budget + (now - self._listed) // _SHARE)
        self._listed = now
        if len(self._seen) > _TASKS // 64 and now - self._pruned > self._settle:
            self._pruned = now
            self._seen = {pid: seen for pid, seen in self._seen.items() if now - seen.at < self._settle + _SOON}
        for place in places:
            if self._budget <= 0 or len(self._seen) > _TASKS:
                return
            self._list(place, now)
            after = time.monotonic_ns()
            self._budget -= after - self._listed
            self._listed = after

    def _list(self, place: Place, now: int) -> None:
        """Takes note of who is in a cgroup."""
        for pid in self._hierarchy.tasks(place, _LISTING):
            seen = self._seen.get(pid)
            elsewhere = seen is not None and seen.directory_id != place.directory_id and now - seen.at < self._settle
            self._seen[pid] = _Seen(0 if elsewhere else place.directory_id, now)

    @property
    def _hierarchy(self) -> Hierarchy:
        assert self._watches is not None  # there is a log, so it was opened
        assert self._watches.hierarchy is not None
        return self._watches.hierarchy

    # -- what the log says

    def read(self, *, briefly: bool = False) -> None:
        """Reads the log.

        Args:
            briefly: not to the end of a report that is still being written, where there are events to be handed out:
                nobody is held up by it, and what is left keeps the descriptor readable. But what was said before a
                watch begins has to be read before, or it would be taken for something of it.
        """
        if self._log is None:
            return
        if not self._log.records:
            self._before, self._mark = self._emptied, self._loop.mark()
        started = time.monotonic_ns()
        most = _RECORDS_BRIEFLY if briefly and self._outbox else _RECORDS
        for _ in range(1 if briefly else _READS):  # one that was overrun has more to say
            if self._log.read(most):
                self._emptied = started
                break
        if self._log.overrun:
            events: list[Event] = []
            changes = self._complaints.overrun_log(events)
            muddled = time.monotonic_ns() + self._settle
            changes += [(self, "heard", True), (self, "_muddled", muddled), (self._log, "overrun", False)]
            commit(changes + self._outbox.put(events))
        if self._log.interrupted:
            commit([(self, "heard", True), (self._log, "interrupted", False)])

    @property
    def has_unplaced(self) -> bool:
        """Whether something was read that place() has not seen yet."""
        return self._log is not None and bool(self._log.records)

    def place(self) -> None:
        """Gives what was read to whom it belongs."""
        if self._log is None:
            return
        if self._log.records or (self._lines and self._outbox.waiting):
            self._place_lines()
        if self._outbox.waiting:
            self.read(briefly=True)  # what the looks have found may be in it by now
            if self._log.records:
                self._place_lines()
            self._place_by_exclusion()
            self._release()

    def _place_lines(self) -> None:
        log = self._log
        assert log is not None  # or there would be no lines
        assert self._watches is not None
        records = log.records
        now = time.monotonic_ns()
        victims, summaries = parse(records, log.summaries)
        fresh = [_Line(victim, now, self._before, self._mark) for victim in victims]
        # A task that was listed right afterwards explains an older line, too, or one that has begun to exit.
        again = [line for line in self._lines if not line.directory_id and now - line.at < _AGAIN]
        again = again[-_AGAIN_LINES:] if self._outbox.waiting and self._by_pid else []
        known = self._known_at({path for line in again + fresh if (path := self._path(line.victim)) is not None})
        by_cgroup: dict[int, list[_Line]] = {}
        for line in again + fresh:
            by_cgroup.setdefault(self._whose(line, known, now), []).append(line)
        left = by_cgroup.pop(0, [])
        changes: list[Change] = []
        if by_cgroup:
            watches = self._watches.of(by_cgroup.keys())
            complete = self._watches.sweep(watches) if watches else True
            given = self._given(by_cgroup)
            wanted = {watch._place.directory_id for watch in given}
            there = {watch._place.directory_id for watch in watches if complete and self._is_there(watch)}
            # What nobody wants of a cgroup that was read was told before, or was before anybody watched.
            for directory_id in by_cgroup.keys() - wanted - there:
                left += by_cgroup[directory_id]
            changes.append((self._outbox, "waiting", self._outbox.waiting | given))
        if victims or again:
            kept = [line for line in self._lines if line not in again and line.at + _KEEP >= now]
            changes.append((self, "_lines", sorted(kept + left, key=lambda line: line.at)[-_LINES:]))
        if says_killed(records):
            changes.append((self, "heard", True))
        commit([*changes, (log, "records", log.records[len(records) :]), (log, "summaries", summaries)])

    def _is_there(self, watch: Watch) -> bool:
        """Whether a cgroup still is, where it was last seen."""
        return self._id_of(watch.cgroup) == watch._place.directory_id

    def _given(self, by_cgroup: dict[int, list[_Line]]) -> dict[AnyWatch, Queue]:
        """Gives victims to all watches of their cgroups that lack so many; none where it is not known which are its."""
        given: dict[AnyWatch, Queue] = {}
        # Of a watch that was closed while a kill of it waited: one that was begun since has not seen that kill.
        closed = {watch._place.directory_id for watch in self._outbox.waiting if watch.closed}
        for watch, queue in self._outbox.waiting.items():
            directory_id = watch._place.directory_id
            lines = () if directory_id in closed else by_cgroup.get(directory_id, ())
            mine = tuple(line.victim for line in lines if self._began_before(watch, line))
            if mine and len(mine) <= queue.missing:
                given[watch] = Queue(queue.events, queue.victims + mine)
        return given

    def _place_by_exclusion(self) -> None:
        """Gives what is left to the only cgroup that lacks so many."""
        assert self._watches is not None
        waiting = {watch: queue for watch, queue in self._outbox.waiting.items() if queue.missing}
        if len({watch._place.directory_id for watch in waiting}) != 1:
            return
        now = time.monotonic_ns()
        lines = [
            line
            for line in self._lines
            if not line.directory_id
            and (line.victim.task_memcg is None or not self._by_path)
            and line.at > max(self._muddled, now - self._settle)
        ]
        since = self._muddled + self._settle
        fitting = [
            watch
            for watch, queue in waiting.items()
            if queue.missing == len(lines) and queue.events[0][1] > since and self._began_before(watch, lines[0])
        ]
        if lines and len(fitting) == len(waiting) and self._watches.all_told():
            victims = tuple(line.victim for line in lines)
            given = {watch: Queue(queue.events, queue.victims + victims) for watch, queue in waiting.items()}
            left = [line for line in self._lines if line not in lines]
            commit([(self, "_lines", left), (self._outbox, "waiting", self._outbox.waiting | given)])

    def _known_at(self, paths: set[str]) -> dict[str, list[Watch]]:
        """The watches of all cgroups that are, or were a short time ago, at each of these paths."""
        assert self._watches is not None
        names = paths | {os.path.basename(path) for path in paths}  # not all paths of thousands have to be made up
        known: dict[str, list[Watch]] = {}
        for watch in (*self._watches.by_key.values(), *self._outbox.waiting) if paths else ():
            if isinstance(watch, Watch) and watch._place.name in names:
                known.setdefault(watch.cgroup, []).append(watch)
        return known

    def _whose(self, line: _Line, known: dict[str, list[Watch]], now: int) -> int:
        """The id of the cgroup that a line may belong to, as things are now; 0 where that is not known."""
        if self._by_pid:
            line.directory_id = self._by_task(line, now)
        path = self._path(line.victim)
        if path is None:
            return line.directory_id
        line.at_path = line.at_path or self._id_of(path)
        watches = known.get(path, [])
        ids = {watch._place.directory_id for watch in watches}
        if line.directory_id in ids:
            return line.directory_id  # of several that were there, the one in which the task was
        if line.at_path and line.at_path not in ids:
            return line.at_path
        # The last of them that there was when the line was written. Where they differ, the task was moved; the path is
        # the later word.
        return self._last_of(watches, line.mark) or line.directory_id

    def _last_of(self, watches: list[Watch], mark: int) -> int:
        """The id of the cgroup, of several with one path, that was watched last; 0 where it was perhaps another.

        It was made after the others were gone, and what the log had said till then was read before it was watched.
        """
        last = {
            min(told, key=lambda watch: self._loop.age(watch._key))._place.directory_id
            for moment in (mark, self._loop.mark())
            if (told := [watch for watch in watches if self._loop.is_older(watch._key, moment)])
        }
        return last.pop() if len(last) == 1 else 0

    def _id_of(self, path: str | None) -> int:
        if path is not None:
            with suppress(OSError):  # it is gone, or cannot be seen from here
                status = os.stat(path)
                if status.st_dev == self._hierarchy.device:
                    return status.st_ino
        return 0

    def _by_task(self, line: _Line, now: int) -> int:
        """Where the task was, or is; 0 where that is not certain."""
        pid = line.victim.pid
        seen = self._seen.get(pid)
        if seen is not None and line.at - seen.at > min(self._settle, _SOON):
            seen = None
        was_seen_before = seen is not None and seen.at <= line.emptied
        if not was_seen_before and now - line.emptied > _SOON:
            return 0  # it may have been written long ago, and the pid be another's
        is_dying = _is_dying(pid)
        present = self._id_of(self._path_of_task(pid)) if is_dying is not None else 0
        if seen is None:
            return present if is_dying else 0
        if not was_seen_before and is_dying is False:
            return 0
        # It may have been moved since.
        return 0 if present and present != seen.directory_id else seen.directory_id

    def _path_of_task(self, pid: int) -> str | None:
        """The cgroup that a dying task says it is in; v1 says "/" as soon as it exits (proc_cgroup_show())."""
        mount = self._hierarchy.mount
        try:
            name = parse_proc_cgroup(read_file(f"/proc/{pid}/cgroup"), b"memory" if mount.version == 1 else b"")
        except OSError:  # it is gone, or hidden (hidepid)
            return None
        # On v2 a removed one is marked like that, and another may be called so.
        if name is None or name == "/" or name.endswith(" (deleted)"):
            return None
        return mount.path_of(name)

    def _began_before(self, watch: AnyWatch, line: _Line) -> bool:
        return isinstance(watch, Watch) and self._loop.is_older(watch._key, line.mark)

    # -- who leaves

    def _release(self) -> None:
        """Hands out what has waited long enough, or for nothing more."""
        now = time.monotonic_ns()
        waiting = dict(self._outbox.waiting)
        ready: list[Event] = []
        changes: list[Change] = []
        short: dict[int, tuple[int, int]] = {}
        for watch, queue in self._outbox.waiting.items():
            left, rest, missing = queue.leave(now)
            ready += [self._with_limit(event) for event in left]
            if rest is None:
                del waiting[watch]
            else:
                waiting[watch] = rest
            if missing and isinstance(watch, Watch):
                short[watch._key] = (now + _KEEP_SHORT, self._missed(watch) + missing)
        if short:
            known = {key: one for key, one in self._short.items() if one[0] > now}
            changes = [(self, "_short", known | short), (self, "_muddled", now)]
        if ready:
            changes += [(self._outbox, "waiting", waiting), (self._outbox, "events", self._outbox.events + ready)]
            commit(changes)

    def _missed(self, watch: Watch) -> int:
        """How many victims of kills that were told of a watch were not found."""
        return self._short.get(watch._key, (0, 0))[1]

    def muddle(self) -> list[Change]:
        """The changes by which it counts that kills were told of which nobody waits to know the victims."""
        return [(self, "_muddled", time.monotonic_ns() + self._settle)]

    def _with_limit(self, event: Event) -> Event:
        """The event with what the log says of the limit: it knows better, where it says it of any victim."""
        if not isinstance(event, OomKill) or not event.victims:
            return event
        limits = {victim.oom_memcg for victim in event.victims}
        if limits == {None} or not (self._by_path or "/" in limits):
            return event
        return event.__replace__(limit_cgroup=self.limit(event.victims))

    def limit(self, victims: Iterable[Victim]) -> str | None:
        """The cgroup at whose limit they all were killed, as the log has it."""
        limits = {victim.oom_memcg for victim in victims}
        (limit,) = limits if len(limits) == 1 else (None,)
        if limit == "/":
            return self._hierarchy.mount.point if self._hierarchy.is_whole else None
        return None if limit is None or not self._by_path else self._hierarchy.path_in_log(limit)

    # -- of cgroups that are gone

    def claim(self, watch: Watch, most: int = _LINES, gone: int = _NEVER) -> tuple[list[Victim], int, list[Change]]:
        """Those of a removed cgroup that its counter could not tell any more.

        A path alone says little: another cgroup may have had it since, and be gone as well. But nobody is killed in one
        that is gone, and a kill is printed before its task can exit (task_lock() in oom_kill_process()).

        Args:
            watch: of the cgroup.
            most: how many kills may be missing; the pid tells of more.
            gone: when it was known to be gone, in nanoseconds of CLOCK_MONOTONIC.

        Returns:
            They; of how many the ledger knows; and the changes by which they are told.
        """
        if not self._lines or self._untold > time.monotonic_ns():
            return [], 0, []
        path, directory_id = watch.cgroup, watch._place.directory_id
        own = [
            line
            for line in self._lines
            if watch._key not in line.takers and self._began_before(watch, line) and line.emptied <= gone
        ]
        named = [
            line
            for line in own
            if not line.directory_id and line.at_path in (0, directory_id) and self._path(line.victim) == path
        ]
        if named and (len(named) > most or self._has_namesake(watch)):
            named = []
        mine = [line for line in own if line.directory_id == directory_id or line in named]
        # So many of them were told by the counter, and their victims were not found, or not yet.
        queue = self._outbox.waiting.get(watch)
        mine = mine[self._missed(watch) + (0 if queue is None else queue.missing) :]
        settled = sum(line.is_settled for line in mine)
        return [line.victim for line in mine], settled, [(line, "takers", line.takers | {watch._key}) for line in mine]

    def _has_namesake(self, watch: Watch) -> bool:
        """Whether another cgroup has, or had a short time ago, the path of one that is gone."""
        assert self._watches is not None
        path, directory_id = watch.cgroup, watch._place.directory_id
        others = [one for one in self._watches.by_key.values() if one._place.directory_id != directory_id]
        return self._id_of(path) not in (0, directory_id) or bool([one for one in others if one.cgroup == path])

    def _path(self, victim: Victim) -> str | None:
        if victim.task_memcg is None or not self._by_path:
            return None
        return self._hierarchy.path_in_log(victim.task_memcg)

    def nobodys(self, count: int) -> tuple[tuple[Victim, ...], list[Change]]:
        """Those of so many kills on the host that are nobody's; the changes by which they are told.

        Nothing of what was read so far is anybody else's any more. Where they are not known they may yet come.
        """
        now = time.monotonic_ns()
        victims = self._certain([line for line in self._lines if not line.takers], count)
        untold = now + _KEEP_SHORT if len(victims) < count else self._untold
        return victims, [(self, "_lines", []), (self, "_untold", untold), (self, "_muddled", now)]

    def settled(self) -> list[Change]:
        """The changes by which the kills of all that was read so far are in the ledger, and were told to nobody."""
        return [(line, "is_settled", True) for line in self._lines]

    def nobodys_below(self, count: int, path: str) -> tuple[tuple[Victim, ...], list[Change]]:
        """Those of so many kills somewhere below a cgroup, whose own are gone; the changes by which they are told."""
        rest = [line for line in self._lines if not line.takers]
        named = [line for line in rest if is_below(self._path(line.victim) or "/", path)]
        # One without a name might be among them, and one that is might be of before.
        victims = self._certain(named, count) if len(named) == len(rest) else ()
        return victims, [(line, "takers", frozenset([-1])) for line in named] + self.muddle()

    def _certain(self, lines: list[_Line], count: int) -> tuple[Victim, ...]:
        """The victims, unless somebody else's may be among them."""
        if len(lines) > count or self._outbox.waiting or (lines and lines[0].at <= self._muddled):
            return ()
        return tuple(line.victim for line in lines)


def named_by(is_whole: bool) -> tuple[bool, bool]:
    """Whether pids, and paths of cgroups, are in the kernel's log as this process knows them.

    Args:
        is_whole: whether the whole hierarchy is mounted here.
    """
    return _is_first("pid", _FIRST_PID), is_whole or _is_first("cgroup", _FIRST_CGROUP)


def _is_first(kind: str, inode: int) -> bool:
    """Whether this process is in the namespace that the host began with."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino == inode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
            raise
        return False


def _is_dying(pid: int) -> bool | None:
    """Whether a task was killed or exits; None: it is gone, or cannot be seen."""
    try:
        state, *fields = read_file(f"/proc/{pid}/stat").rpartition(b") ")[2].split(b" ")
        if state in (b"Z", b"X") or int(fields[5]) & _PF_EXITING:
            return True
        lines = read_file(f"/proc/{pid}/status").split(b"\n")
    except OSError:
        return None
    pending = [int(line.split()[1], 16) for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    return bool([mask for mask in pending if mask & _SIGKILL])
