"""memcg-oom watch: every event of the trees given, a line each."""

from __future__ import annotations

import time

from memcg_oom.cgroup import Cgroup
from memcg_oom.command.errors import required_mount
from memcg_oom.command.signals import Signals
from memcg_oom.command.text import Printer, kind, kind_name, line
from memcg_oom.command.watching import allow_all_fds, number, say, sources, watch_trees
from memcg_oom.errors import NotACgroupError
from memcg_oom.events import CgroupEvent, Created, Degraded, MemoryHigh, MemoryMax, Oom, OomKill, Removed, Unattributed
from memcg_oom.monitor import Monitor
from memcg_oom.paths import absolute
from memcg_oom.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

    from memcg_oom.command.summary import Screen
    from memcg_oom.events import Event

# As timeout(1) has it.
TIMED_OUT = 124


class Totals:
    """What there was, filtered by cgroup but not by event, for the line at the end."""

    def __init__(self, cgroups: int) -> None:
        self.cgroups = cgroups
        self.ooms = self.kills = self.unattributed = 0

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        if isinstance(event, Created):
            self.cgroups += 1
        elif isinstance(event, Oom):
            self.ooms += event.count
        elif isinstance(event, OomKill):
            self.kills += event.count
        elif isinstance(event, Unattributed):
            self.unattributed += event.count

    def text(self) -> str:
        """The line."""
        return (
            f"{number(self.cgroups, 'cgroup')} seen, {number(self.ooms, 'OOM')}, {number(self.kills, 'OOM kill')}, "
            f"{self.unattributed} unattributed"
        )


class Filter:
    """Which events are wanted.

    Args:
        only: a pattern that is searched for in the path of the cgroup; None: every cgroup.
        kinds: names of events; None: all.
    """

    def __init__(self, only: re.Pattern[str] | None, kinds: frozenset[str] | None) -> None:
        self._only = only
        self._kinds = kinds

    def cgroup(self, path: str) -> bool:
        """Whether a cgroup is wanted."""
        return self._only is None or bool(self._only.search(path))

    def of_interest(self, event: Event) -> bool:
        """Whether the cgroup of an event is wanted; one without a cgroup always is."""
        return not isinstance(event, CgroupEvent) or self.cgroup(event.cgroup)

    @property
    def also(self) -> list[type[Event]]:
        """What has to be asked for, and was."""
        return [one for one in (MemoryMax, MemoryHigh) if self._kinds is not None and kind_name(one) in self._kinds]

    def printed(self, event: Event) -> bool:
        """Whether it is of a kind that is wanted."""
        return self._kinds is None or kind(event) in self._kinds


class Alarms:
    """What is watched for beside OOM, in each of the cgroups that are named.

    Args:
        usage: thresholds, as Monitor.watch_usage() takes them.
        pressure: levels and modes, as Monitor.watch_pressure() does.
        stall: kinds, stalls and windows, as Monitor.watch_stall() does.
    """

    def __init__(
        self, usage: list[str], pressure: list[tuple[str, str]], stall: list[tuple[str, float, float]]
    ) -> None:
        self._usage = usage
        self._pressure = pressure
        self._stall = stall
        self._stall_only: set[str] = set()

    def with_ooms(self, cgroups: list[str]) -> list[str]:
        """Those of the targets that have OOMs too: the host has stalls alone, and so has a cgroup without memory."""
        if self._stall:
            self._stall_only.update(cgroup for cgroup in cgroups if not _has_memory(cgroup))
        return [cgroup for cgroup in cgroups if cgroup not in self._stall_only]

    def begin(self, monitor: Monitor, cgroups: list[str]) -> int:
        """Begins to watch for all of it; returns for how much."""
        count = 0
        for cgroup in dict.fromkeys(cgroups):
            if cgroup not in self._stall_only:
                for threshold in self._usage:
                    monitor.watch_usage(cgroup, threshold)
                for level, mode in self._pressure:
                    monitor.watch_pressure(cgroup, level, mode)
                count += len(self._usage) + len(self._pressure)
            for stall in self._stall:
                monitor.watch_stall(cgroup, *stall)
            count += len(self._stall)
        return count

    def repeats(self, event: Event) -> bool:
        """Whether it is a removal that is told by another watch, or was told by one."""
        if not isinstance(event, Removed) or isinstance(event.watch, Watch):
            return False
        if event.cgroup not in self._stall_only:
            return True
        self._stall_only.discard(event.cgroup)
        return False


def _has_memory(cgroup: str) -> bool:
    """Whether it is in a hierarchy with the memory controller, or may be."""
    try:
        Cgroup(cgroup)
    except NotACgroupError:
        return False
    return True


def watch(
    cgroups: list[str],
    wanted: Filter,
    alarms: Alarms,
    *,
    tree: bool,
    as_json: bool,
    summary: bool,
    count: int | None,
    timeout: float | None,
) -> int:
    """Prints events, or shows what there was in a table; returns the exit code.

    That is until `count` of them are printed or `timeout` seconds are over.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    if not cgroups:
        cgroups = [required_mount().point]
    cgroups = [absolute(cgroup) for cgroup in cgroups]
    allow_all_fds()
    printer: Printer | Screen
    if summary:
        from memcg_oom.command.summary import Screen  # a watcher need not hold what it does not use

        printer = Screen()
    else:
        printer = Printer(as_json)
    with Signals() as signals, Monitor() as monitor:
        followed = _begin(monitor, alarms.with_ooms(cgroups), tree, wanted.also)
        watches = monitor.watches
        more = alarms.begin(monitor, cgroups)
        totals = Totals(sum(wanted.cgroup(watch.cgroup) for watch in watches))
        try:
            alarmed = f", and for {number(more, 'alarm')}" if more else ""
            say(f"watching {number(len(watches), 'cgroup')}{followed}{alarmed}, Ctrl-C ends it")
            with printer:
                return _loop(monitor, signals, printer, wanted, totals, alarms=alarms, count=count, deadline=deadline)
        finally:
            say(totals.text())


def _begin(monitor: Monitor, cgroups: list[str], tree: bool, also: list[type[Event]]) -> str:
    """Begins to watch; returns how."""
    if not cgroups:
        return ""
    if not tree:
        monitor.watch_many(dict.fromkeys(cgroups), also=also)
        return ""
    trees = watch_trees(monitor, cgroups, also)
    polled = sum(one.polled for one in trees)
    alone = f", {polled} of them by their counters alone" if polled else ""
    return f" and those to come (told of by {sources(trees)}){alone}"


def _loop(
    monitor: Monitor,
    signals: Signals,
    printer: Printer | Screen,
    wanted: Filter,
    totals: Totals,
    *,
    alarms: Alarms,
    count: int | None,
    deadline: float | None,
) -> int:
    printed = 0
    while True:
        waits = [printer.due(), None if deadline is None else max(0.0, deadline - time.monotonic())]
        signals.wait(monitor, min((one for one in waits if one is not None), default=None))
        events = monitor.wait(0)
        for event in filter(wanted.of_interest, events):
            if alarms.repeats(event):
                continue
            totals.add(event)
            if wanted.printed(event):
                printer.event(event)
                printed += 1
                if printed == count:
                    return 0
            elif isinstance(event, Degraded):
                say(line(event))  # what is not as it should be is said in any case
        printer.draw()
        if not events and deadline is not None and time.monotonic() >= deadline:
            return TIMED_OUT
