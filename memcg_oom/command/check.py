"""memcg-oom check: what this host offers, and what each missing thing costs."""

from __future__ import annotations

import os
import resource
import sys

from memcg_oom.cgroup import Cgroup
from memcg_oom.command.text import SCHEMA_VERSION, escape
from memcg_oom.complaints import IN_THE_HOSTS
from memcg_oom.hierarchy import Hierarchy
from memcg_oom.mounts import Mount, cgroup_mounts, memory_mount
from memcg_oom.search import HEADROOM
from memcg_oom.sources import Inotify, open_source
from memcg_oom.stalls import HOST, is_privileged
from memcg_oom.victims import named_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Descriptors that are no watches: the standard three, the monitor's own, and what a tree leaves for others.
_OTHER_FDS = 16 + HEADROOM
# What it costs that registrations are refused, by version: v2 counts OOMs as well.
_COUNTERS_ONLY = {
    1: "trees follow cgroups by their counters: kills and removals are told, later, and no OOMs; others refuse",
    2: "trees follow cgroups by their counters: OOMs, kills and removals are told, later; others refuse",
}


class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        value: how it is.
        cost: what is lost by that; empty where nothing is.
        remedy: what to do about it; empty where nothing need be done.
    """

    __slots__ = ("name", "value", "cost", "remedy")

    def __init__(self, name: str, value: str, cost: str = "", remedy: str = "") -> None:
        self.name = name
        self.value = value
        self.cost = cost
        self.remedy = remedy


def check(as_json: bool) -> int:
    """Prints the findings; returns 1 when something is missing, else 0."""
    findings = list(_findings())
    if as_json:
        import json

        rows = [{name: getattr(finding, name) for name in Finding.__slots__} for finding in findings]
        degraded = any(finding.cost for finding in findings)
        print(json.dumps({"v": SCHEMA_VERSION, "event": "check", "degraded": degraded, "findings": rows}))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark = "!" if finding.cost else " "
            print(f"{mark} {finding.name:<{width}}  {escape(finding.value)}")
            if finding.cost:
                print(f"  {'':<{width}}  costs: {finding.cost}\n  {'':<{width}}  remedy: {finding.remedy}")
    sys.stdout.flush()
    return 1 if any(finding.cost for finding in findings) else 0


def _findings() -> Iterator[Finding]:
    yield Finding("kernel", os.uname().release)
    mount = memory_mount()
    yield from _hierarchies(mount)
    if mount is not None:
        yield from _v1(mount) if mount.version == 1 else _v2(mount)
        yield _source(mount)
    yield _swap(mount)
    yield _panic()
    yield _kernel_log(mount)
    yield _stalls()


def _hierarchies(mount: Mount | None) -> Iterator[Finding]:
    others = [other.point for other in cgroup_mounts() if other.version == 2 and not other.has_memory()]
    if mount is None:
        yield Finding(
            "memory hierarchy",
            f"none{' (cgroup v2 at ' + ', '.join(others) + ', without the memory controller)' if others else ''}",
            "nothing can be watched",
            "mount one (mount -t cgroup2 none /sys/fs/cgroup) on a kernel not booted with cgroup_disable=memory",
        )
        return
    part = "" if mount.root == "/" else f", of which {mount.root} is visible"
    yield Finding("memory hierarchy", f"version {mount.version} at {mount.point}{part}")
    if others:
        yield Finding("cgroup v2", f"at {', '.join(others)}, without the memory controller, which is on version 1")


def _v1(mount: Mount) -> Iterator[Finding]:
    yield _registration(mount)
    yield _identity(mount)
    yield _counter(mount)
    yield _scratch(mount)
    yield _descriptors(mount)


def _v2(mount: Mount) -> Iterator[Finding]:
    yield _identity(mount)
    yield _below(mount)
    yield _scratch(mount)
    yield _instances()
    yield _watches(mount)


def _below(mount: Mount) -> Finding:
    name = "memory.events"
    if not mount.local_events:
        return Finding(name, "counts what is below as well")
    return Finding(
        name,
        f"counts each cgroup alone: {mount.point} is mounted with memory_localevents",
        "a kill in a cgroup that is removed at once may be told as unattributed, by a watcher of the whole hierarchy, "
        "or not at all",
        f"mount -o remount,{'ro' if mount.read_only else 'rw'} {mount.point}, without that option",
    )


def _instances() -> Finding:
    """Events come by one inotify instance."""
    limit = _read("/proc/sys/fs/inotify/max_user_instances") or "unknown"
    try:
        inotify = Inotify()
    except OSError as error:
        return Finding(
            "events",
            f"no inotify instance to be had, of {limit} a user: {error.strerror}",
            _COUNTERS_ONLY[2],
            "raise fs.inotify.max_user_instances",
        )
    os.close(inotify.fd)
    return Finding("events", "by inotify: one instance for all cgroups")


def _watches(mount: Mount) -> Finding:
    limit, cgroups = int(_read("/proc/sys/fs/inotify/max_user_watches") or 0), _cgroups(mount)
    value = f"{limit} a user, for {cgroups} cgroups now, one each, and up to two for each that has others in it"
    if limit > 2 * cgroups:
        return Finding("inotify watches", value)
    return Finding(
        "inotify watches",
        value,
        "a tree follows the rest by their counters: what happens in them is told later",
        f"raise fs.inotify.max_user_watches to {4 * cgroups} or more",
    )


def _registration(mount: Mount) -> Finding:
    name = "registration"
    event_control = os.path.join(mount.point, "cgroup.event_control")
    if _read("/sys/kernel/realtime") == "1":
        return Finding(name, "refused: a PREEMPT_RT kernel", _COUNTERS_ONLY[1], "run a kernel without PREEMPT_RT")
    if mount.read_only:
        return Finding(
            name, f"not possible: {mount.point} is mounted read-only", _COUNTERS_ONLY[1], "mount it read-write"
        )
    if not os.access(event_control, os.W_OK):
        return Finding(
            name,
            f"no write permission on {event_control}",
            f"where cgroup.event_control is not writable either, {_COUNTERS_ONLY[1]}",
            "run as root",
        )
    return Finding(name, "permitted")


def _identity(mount: Mount) -> Finding:
    hierarchy = Hierarchy(mount.point)
    try:
        by_id = hierarchy.by_id
    finally:
        hierarchy.close()
    if by_id:
        return Finding("control files", "opened by id")
    return Finding(
        "control files",
        "opened by path, and compared by inode",
        "looks take half as long again, and a renamed cgroup is searched for",
        "grant CAP_DAC_READ_SEARCH",
    )


def _counter(mount: Mount) -> Finding:
    try:
        Cgroup(mount.point).oom_control()
    except KeyError:
        return Finding("kill counter", "none", "nothing can be watched", "run a kernel of 4.13 or later")
    return Finding("kill counter", "oom_kill in memory.oom_control")


def _scratch(mount: Mount) -> Finding:
    if os.access(mount.point, os.W_OK):
        return Finding("new cgroups", "permitted")
    return Finding("new cgroups", f"no write permission on {mount.point}", "run and demo need --parent", "run as root")


def _descriptors(mount: Mount) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cgroups = _cgroups(mount)
    value = f"{soft} (up to {hard}), for {cgroups} cgroups now, one each"
    if hard - _OTHER_FDS >= cgroups:
        return Finding("descriptors", value)
    return Finding(
        "descriptors",
        value,
        "a tree follows the rest by their counters: their kills and removals are told, later, and no OOMs",
        f"raise the hard limit to {cgroups + _OTHER_FDS} or more (LimitNOFILE= in a systemd unit)",
    )


def _swap(mount: Mount | None) -> Finding:
    swaps = (_read("/proc/swaps") or "").splitlines()[1:]
    value = f"{len(swaps)} device{'' if len(swaps) == 1 else 's'}" if swaps else "none"
    accounted = mount is not None and (
        mount.version == 2 or os.path.exists(os.path.join(mount.point, "memory.memsw.limit_in_bytes"))
    )
    return Finding("swap", value + (", counted for each cgroup" if accounted else ", not counted for each cgroup"))


def _panic() -> Finding:
    value = _read("/proc/sys/vm/panic_on_oom") or "unknown"
    if value != "2":
        return Finding("vm.panic_on_oom", value)
    return Finding(
        "vm.panic_on_oom", value, "an OOM in a cgroup panics the host before it can be told", "sysctl vm.panic_on_oom=0"
    )


def _kernel_log(mount: Mount | None) -> Finding:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return Finding(
            "kernel log",
            f"/dev/kmsg is not readable: {error.strerror}",
            "no victim is named, and a kill without a signal (the whole host out of memory, sysrq-f) is told by a "
            "timer, up to a second late",
            "grant CAP_SYSLOG, or set kernel.dmesg_restrict=0",
        )
    by_pid, by_path = named_by(mount is None or Hierarchy.is_root(os.stat(mount.point).st_ino))
    if not (by_pid and by_path):
        return Finding(
            "kernel log",
            f"/dev/kmsg is readable, but from another {'cgroup' if by_pid else 'pid'} namespace than the host's",
            "victims are named in part, or not at all",
            IN_THE_HOSTS,
        )
    return Finding("kernel log", "/dev/kmsg is readable")


def _stalls() -> Finding:
    """Whether there are any to be told of; who does not ask for them loses nothing."""
    try:
        os.close(os.open(HOST, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return Finding("stalls", f"{HOST}: {error.strerror}")
    if is_privileged():
        return Finding("stalls", "told of by pressure stall information")
    return Finding("stalls", "told of by pressure stall information; without CAP_SYS_RESOURCE in windows of 2 to 10 s")


def _source(mount: Mount) -> Finding:
    """Who would tell a tree of new cgroups."""
    name = "discovery"
    hierarchy = Hierarchy(mount.point)
    try:
        source = open_source(hierarchy, None)
        if source.fd >= 0 and source is not hierarchy.inotify:
            os.close(source.fd)
    finally:
        hierarchy.close()
    if source.kind == "fanotify":
        return Finding(name, "by fanotify: one mark for the whole hierarchy")
    if source.kind != "inotify":
        return Finding(
            name,
            "by nobody: neither fanotify nor inotify is to be had",
            "they are found late, by listing all directories again",
            "raise fs.inotify.max_user_instances",
        )
    limit, cgroups = int(_read("/proc/sys/fs/inotify/max_user_watches") or 0), _cgroups(mount)
    value = f"by inotify: a watch for each of {cgroups} directories, of {limit} a user"
    if limit >= cgroups:
        return Finding(name, value)
    return Finding(
        name,
        value,
        "where watches run out, new cgroups are found late",
        f"sysctl fs.inotify.max_user_watches={2 * cgroups}",
    )


def _cgroups(mount: Mount) -> int:
    return sum(1 for _ in os.walk(mount.point))


def _read(path: str) -> str | None:
    """A file of one value, or None where this kernel has it not."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None
