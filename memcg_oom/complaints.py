"""What the monitor cannot do on this host as it is, in words: each cause is told once."""

from __future__ import annotations

import errno
import os
import time

from memcg_oom.events import Degraded
from memcg_oom.hierarchy import NO_FDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.commit import Change
    from memcg_oom.events import Event

_MORE_FDS = "raise RLIMIT_NOFILE (ulimit -n; LimitNOFILE= in a systemd unit)"

IN_THE_HOSTS = (
    "run it in the host's namespaces (docker run --pid=host --cgroupns=host; hostPID: true), or with all of the host's "
    "/sys/fs/cgroup in it"
)

# What inotify refuses a watch for, and what to do about it: inotify(7).
_INOTIFY_LIMITS = {
    errno.ENOSPC: ("no inotify watches left for more cgroups", "raise fs.inotify.max_user_watches"),
    errno.EMFILE: ("no inotify instance left to follow cgroups with", "raise fs.inotify.max_user_instances"),
}


class _Cause:
    """One that there is, or was."""

    __slots__ = ("told", "event")

    def __init__(self) -> None:
        self.told = False
        self.event: Degraded | None = None  # made, but not told before its changes are committed


class Complaints:
    """Makes Degraded events; those of a cause that was told already are left out."""

    __slots__ = ("_causes",)

    def __init__(self) -> None:
        self._causes: dict[object, _Cause] = {}

    def _once(self, key: object, events: list[Event], what: str, cost: str, remedy: str) -> list[Change]:
        """Adds the event, and returns the changes by which its cause counts as told."""
        cause = self._causes.setdefault(key, _Cause())
        if cause.told or any(event is cause.event for event in events):
            return []
        cause.event = Degraded(time_ns=time.time_ns(), what=what, cost=cost, remedy=remedy)
        events.append(cause.event)
        return [(cause, "told", True)]

    def unreadable(self, error: int, events: list[Event]) -> list[Change]:
        """A look that failed for a reason that is not the cgroup's: it is repeated."""
        if error == errno.EAGAIN:
            return []
        return self._once(
            ("look", error),
            events,
            f"the counters of a cgroup cannot be read: {os.strerror(error)}",
            "events of cgroups in trouble wait until it can be read; kills may become unresolved",
            _MORE_FDS if error in NO_FDS else "let the watcher read memory.oom_control, on v2 memory.events.local",
        )

    def polled(self, error: OSError, of_inotify: bool, events: list[Event]) -> list[Change]:
        """A cgroup of a tree that could not be registered.

        Args:
            error: why.
            of_inotify: whether it was an inotify watch that was refused, as on v2, where OOMs are counted too.
            events: takes the event.
        """
        number = error.errno or errno.EIO
        if of_inotify and number in _INOTIFY_LIMITS:
            what, remedy = _INOTIFY_LIMITS[number]
        elif number in NO_FDS:
            what, remedy = "no descriptors left for more registrations", _MORE_FDS
        else:
            what = f"cgroups cannot be registered: {os.fsdecode(error.filename)}: {error.strerror}"
            remedy = "watch as root, on a kernel and a mount that allow registrations"
        return self._once(
            ("registration", of_inotify, number),
            events,
            what,
            "they are followed by their counters: their OOMs, kills and removals are told, later"
            if of_inotify
            else "they are followed by their counters: their kills and removals are told, later; their OOMs are not",
            remedy,
        )

    def undiscovered(self, error: int, events: list[Event]) -> list[Change]:
        """A directory, or a new cgroup, that could not be opened: it is tried again with each audit, if any."""
        if error == errno.EAGAIN:
            return []
        remedy = _MORE_FDS if error in NO_FDS else "let the watcher read the hierarchy"
        if error == errno.ENAMETOOLONG:
            remedy = "have whoever makes cgroups keep their paths below 4,096 bytes"
        return self._once(
            ("discovery", error),
            events,
            f"cgroups cannot be opened: {os.strerror(error)}",
            "new ones are found late, by an audit (if any); kills in those that go before are unattributed",
            remedy,
        )

    def unfollowed(self, kind: str, events: list[Event]) -> list[Change]:
        """A directory of which nobody tells when a cgroup is made in it."""
        return self._once(
            ("source", kind),
            events,
            "inotify refuses to watch more directories"
            if kind == "inotify"
            else "neither fanotify nor an inotify instance is to be had",
            "cgroups made in them are found late, by an audit (if any); kills in those that go before are unattributed",
            "raise fs.inotify.max_user_watches, or, where that is not used up, let the watcher read them"
            if kind == "inotify"
            else "raise fs.inotify.max_user_instances, or RLIMIT_NOFILE, or grant CAP_SYS_ADMIN on Linux 6.8 or later",
        )

    def overflowed(self, kind: str, events: list[Event]) -> list[Change]:
        """The kernel's queue of changes was full."""
        return self._once(
            ("overflow", kind),
            events,
            f"the queue of {kind} was full: cgroups came and went faster than they were taken note of",
            "all directories are listed again; kills in cgroups that came and went meanwhile are unattributed",
            f"raise fs.{kind}.max_queued_events",
        )

    def no_account(self, events: list[Event]) -> list[Change]:
        """A tree that is not the whole host, where memory.events leaves out what is below."""
        return self._once(
            "localevents",
            events,
            "the hierarchy is mounted with memory_localevents: no cgroup counts what was below it",
            "a kill right before its cgroup is removed may not be told; Removed.unresolved has OOMs without an answer",
            "watch the tree of the hierarchy's root, which the host's counter accounts for, or remount it without",
        )

    def restless(self, events: list[Event]) -> list[Change]:
        """A cgroup whose account could not be opened yet, because something is counted in it all the time."""
        return self._once(
            "restless",
            events,
            "something is counted in a cgroup all the time, so that it is not known yet what was counted before",
            "until it is, a kill right before its cgroup, in there, is removed may not be told",
            "see in memory.events who runs out of memory there without end: tasks that cannot be killed, perhaps",
        )

    @staticmethod
    def no_stalls(cgroup: str, events: list[Event]) -> None:
        """A trigger that the kernel has taken away, while its cgroup is still there; told for each one."""
        what = f"the stalls of {cgroup} are not accounted for any more"
        cost = "they are not told, and the watch is closed"
        remedy = "write 1 to its cgroup.pressure, and watch it again"
        events.append(Degraded(time_ns=time.time_ns(), what=what, cost=cost, remedy=remedy))

    def in_namespace(self, by_pid: bool, by_path: bool, events: list[Event]) -> list[Change]:
        """The log speaks of pids, or of cgroups, that are called otherwise in this process's namespaces."""
        lacking = " and ".join(
            name for name, has_it in (("a pid namespace", by_pid), ("a cgroup namespace", by_path)) if not has_it
        )
        cost = "none is" if not (by_pid or by_path) else "of more than ten kills in five seconds, only some are"
        if by_pid and not by_path:
            cost = "only those are whose tasks were seen when their cgroup's OOM was signalled"
        return self._once(
            ("namespace", lacking),
            events,
            f"the kernel's log can be matched to cgroups in part only: this process is in {lacking} of its own",
            f"OomKill.victims: {cost} found",
            IN_THE_HOSTS,
        )

    def overrun_log(self, events: list[Event]) -> list[Change]:
        """The kernel has overwritten records before they were read."""
        return self._once(
            "overrun",
            events,
            "the kernel's log was written faster than it was read: records were lost",
            "kills without their victims, which are looked for until the settle period is over",
            "boot with a larger log_buf_len, and have the events taken promptly",
        )

    def no_log(self, error: OSError, period: float, events: list[Event]) -> list[Change]:
        """The kernel log cannot be read."""
        late = f"a kill without a signal (the whole host out of memory, sysrq-f) is told up to {period:g} s late, and "
        return self._once(
            "log",
            events,
            f"{os.fsdecode(error.filename)} cannot be read: {error.strerror}",
            f"{late if period else ''}OomKill.victims is empty",
            "grant CAP_SYSLOG, or set kernel.dmesg_restrict=0; or do without: Monitor(victims=False)",
        )
