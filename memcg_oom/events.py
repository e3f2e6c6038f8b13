"""What a Monitor tells: one immutable, keyword-only object an event."""

from __future__ import annotations

from itertools import repeat

from memcg_oom.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.alarms import PressureWatch, UsageWatch
    from memcg_oom.stalls import StallWatch
    from memcg_oom.watch import AnyWatch, Watch

_set = object.__setattr__  # a record's own __init__ alone may set its fields


class Event(Record):
    """The base of all events. Two events are equal when they are of one class and all their fields are.

    Attributes:
        time_ns: when it was read, in nanoseconds of CLOCK_REALTIME (as time.time_ns()).
    """

    __slots__ = ("time_ns",)
    time_ns: int

    def __init__(self, *, time_ns: int) -> None:
        _set(self, "time_ns", time_ns)


class Victim(Record):
    """A task that the OOM killer killed, in the words of the kernel's log (__oom_kill_process(), dump_oom_victim()).

    Attributes:
        pid: as the host's first pid namespace counts, whatever namespace the reader is in.
        comm: the name of the task, at most 15 bytes that it has chosen itself; what is not UTF-8 has surrogate escapes,
            as os.fsdecode() makes them.
        uid: its real user, as the first user namespace counts; None on a kernel before 5.5.
        anon_rss, file_rss, shmem_rss: resident memory of each kind, in bytes; None where the line lacks it.
        total_vm: the size of its address space, in bytes, or None likewise.
        oom_memcg: the cgroup whose limit was hit, as a path from the hierarchy's root; "/" where the whole host was out
            of memory (or part of it that tasks are bound to); None where the kernel did not say: it does at most ten
            times in five seconds, for all of the host.
        task_memcg: the cgroup that the task was in, or None, as before.
    """

    __slots__ = (
        "pid",
        "comm",
        "uid",
        "anon_rss",
        "file_rss",
        "shmem_rss",
        "total_vm",
        "oom_memcg",
        "task_memcg",
    )
    pid: int
    comm: str
    uid: int | None
    anon_rss: int | None
    file_rss: int | None
    shmem_rss: int | None
    total_vm: int | None
    oom_memcg: str | None
    task_memcg: str | None

    def __init__(
        self,
        *,
        pid: int,
        comm: str,
        uid: int | None,
        anon_rss: int | None,
        file_rss: int | None,
        shmem_rss: int | None,
        total_vm: int | None,
        oom_memcg: str | None,
        task_memcg: str | None,
    ) -> None:
        _set(self, "pid", pid)
        _set(self, "comm", comm)
        _set(self, "uid", uid)
        _set(self, "anon_rss", anon_rss)
        _set(self, "file_rss", file_rss)
        _set(self, "shmem_rss", shmem_rss)
        _set(self, "total_vm", total_vm)
        _set(self, "oom_memcg", oom_memcg)
        _set(self, "task_memcg", task_memcg)


class CgroupEvent(Event):
    """The base of all events of one cgroup.

    Attributes:
        cgroup: the absolute path; after a rename, the new one. A name that is not UTF-8 has surrogate escapes, as
            os.fsdecode() makes them.
        watch: what it belongs to, as Monitor.watch() or another of its methods has returned it.
    """

    __slots__ = ("cgroup", "watch")
    cgroup: str
    watch: AnyWatch

    def __init__(self, *, time_ns: int, cgroup: str, watch: AnyWatch) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)


class Oom(CgroupEvent):
    """The kernel declared the cgroup out of memory, because its limit or that of one above it was hit.

    On v2 only the one is told of whose own limit was hit. Nobody need have died, and who did may have been in another
    cgroup: see OomKill.

    Attributes:
        count: notifications of the kernel (mem_cgroup_oom_notify()) since the last Oom; on v2 by how much `oom` of
            memory.events.local moved. Often many for one kill.
        late: the kernel was late with the removal's own signal, so this one could be told from it only after Removed.
            Whether it killed is then not known: it comes on top of Removed.unresolved.
    """

    __slots__ = ("count", "late")
    watch: Watch
    count: int
    late: bool

    def __init__(self, *, time_ns: int, cgroup: str, watch: Watch, count: int, late: bool = False) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "count", count)
        _set(self, "late", late)


def ooms(time_ns: int, cgroups: list[str], watches: list[Watch], counts: list[int]) -> list[Event]:
    """An Oom of each of many watches: half the work of making them one by one."""
    made: list[Event] = list(map(object.__new__, repeat(Oom, len(watches))))
    values = {"time_ns": repeat(time_ns), "cgroup": cgroups, "watch": watches, "count": counts, "late": repeat(False)}
    for name, column in values.items():
        any(map(_set, made, repeat(name), column))  # it returns None, so any() goes through them all
    return made


class OomKill(CgroupEvent):
    """The OOM killer killed tasks of this very cgroup: its oom_kill counter moved.

    Attributes:
        count: by how much it moved since it was last read (oom_kill of memory.oom_control, on v2 of
            memory.events.local). Of a removed cgroup the last may be known from the kernel's log alone, or on v2 from
            the counter of the one above.
        group: on v2, whether the kernel killed the whole cgroup, as memory.oom.group says. It counts its first victim
            twice then, so that `count` is too high by one for each time.
        victims: who they were, as far as the kernel's log tells it for certain; empty where it may not be read, or with
            Monitor(victims=False). The event waits for that, `settle` seconds at the most.
        limit_cgroup: the absolute path of the cgroup whose limit was hit, where that is known: this one, or one above
            it; the hierarchy's root where the whole host was out of memory.
    """

    __slots__ = ("count", "group", "victims", "limit_cgroup")
    watch: Watch
    count: int
    group: bool
    victims: tuple[Victim, ...]
    limit_cgroup: str | None

    def __init__(
        self,
        *,
        time_ns: int,
        cgroup: str,
        watch: Watch,
        count: int,
        group: bool = False,
        victims: tuple[Victim, ...] = (),
        limit_cgroup: str | None = None,
    ) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "count", count)
        _set(self, "group", group)
        _set(self, "victims", victims)
        _set(self, "limit_cgroup", limit_cgroup)


class _Counted(CgroupEvent):
    __slots__ = ("count",)
    watch: Watch
    count: int

    def __init__(self, *, time_ns: int, cgroup: str, watch: Watch, count: int) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "count", count)


class MemoryMax(_Counted):
    """The cgroup's memory was about to go over its memory.max, and was reclaimed; v2, only with also=[MemoryMax].

    Attributes:
        count: how many times since it was last read ("max" of memory.events.local).
    """

    __slots__ = ()


class MemoryHigh(_Counted):
    """The cgroup's memory went over its memory.high, and its tasks were slowed down; v2, only with also=[MemoryHigh].

    Attributes:
        count: how many times since it was last read ("high" of memory.events.local).
    """

    __slots__ = ()


class OomResolved(CgroupEvent):
    """On v1, where the OOM killer is off: the tasks that an OOM had put to sleep are free again.

    Somebody raised the limit, killed a task, or switched the killer on. The kernel tells nobody of that, so
    memory.oom_control is looked at as long as its under_oom is 1.

    Attributes:
        after: seconds from the Oom to the look that found it over: looks are 10 ms apart at first, and up to 250 ms
            apart when it takes long.
    """

    __slots__ = ("after",)
    watch: Watch
    after: float

    def __init__(self, *, time_ns: int, cgroup: str, watch: Watch, after: float) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "after", after)


class UsageCrossed(CgroupEvent):
    """On v1, the usage of a cgroup crossed a threshold.

    The kernel signals either direction and does not say which (__mem_cgroup_threshold()), so the usage is read. It has
    gone below when it is a 64th of the threshold, at most 1 MiB, below it: what goes to and fro closer than that is
    collected, and told at the end of an interval.

    Attributes:
        threshold: in bytes.
        above: whether the usage was at the threshold or above it.
        usage: in bytes, as it was read then; of a cgroup that was gone by then 0.
        count: the kernel's signals since the last of these events. With an even one it may be where it was before.
    """

    __slots__ = ("threshold", "above", "usage", "count")
    watch: UsageWatch
    threshold: int
    above: bool
    usage: int
    count: int

    def __init__(
        self, *, time_ns: int, cgroup: str, watch: UsageWatch, threshold: int, above: bool, usage: int, count: int
    ) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "threshold", threshold)
        _set(self, "above", above)
        _set(self, "usage", usage)
        _set(self, "count", count)


class Pressure(CgroupEvent):
    """On v1, memory was reclaimed from a cgroup with so much effort (vmpressure_event()).

    The first one after an interval without any is told at once, what repeats itself once an interval.

    Attributes:
        level: "low", "medium" or "critical": the level that was asked for, or a higher one.
        count: the kernel's signals since the last of these events; it may be hundreds a second.
        repeated: whether there was one in the interval before as well.
    """

    __slots__ = ("level", "count", "repeated")
    watch: PressureWatch
    level: str
    count: int
    repeated: bool

    def __init__(
        self, *, time_ns: int, cgroup: str, watch: PressureWatch, level: str, count: int, repeated: bool = False
    ) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "level", level)
        _set(self, "count", count)
        _set(self, "repeated", repeated)


class Stall(CgroupEvent):
    """Tasks waited for memory for longer than was asked for (pressure stall information, psi_trigger_poll()).

    Attributes:
        cgroup: of the whole host "/proc/pressure/memory".
        kind: "some" of the tasks waited, or all of them ("full").
        count: how many windows with that were told by the kernel since the last of these events.
    """

    __slots__ = ("kind", "count")
    watch: StallWatch
    kind: str
    count: int

    def __init__(self, *, time_ns: int, cgroup: str, watch: StallWatch, kind: str, count: int) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "kind", kind)
        _set(self, "count", count)


class Removed(CgroupEvent):
    """The cgroup is gone: the last event of its watch, but for a signal that the kernel has sent late.

    On v1 its control file was found gone, and then the removal's own signal was awaited, where one was to come
    (`linger`). On v2 the directory above said so, or a look has found it.

    Attributes:
        unresolved: OOMs, of those reported, whose outcome nobody can know because the cgroup went before its counter
            could be read once more, and the kernel's log did not tell it; with those that are late an upper bound of
            the kills that are missing from its OomKill events.
    """

    __slots__ = ("unresolved",)
    unresolved: int

    def __init__(self, *, time_ns: int, cgroup: str, watch: AnyWatch, unresolved: int = 0) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "cgroup", cgroup)
        _set(self, "watch", watch)
        _set(self, "unresolved", unresolved)


class Created(CgroupEvent):
    """A tree has found a cgroup that was not there when it began; the first event of its watch.

    Told by trees only. `cgroup` is where it was found.
    """

    __slots__ = ()
    watch: Watch


class Unattributed(Event):
    """Tasks were killed for want of memory that no cgroup's counter shows: theirs came and went unseen.

    Told by a tree that covers a whole hierarchy, from its root; on v2 by any tree, of what the counter of a cgroup in
    it says, when several that were in that one went in the same moment.

    Attributes:
        count: how many, by oom_kill in /proc/vmstat, or in memory.events; 0 where there are only `ooms` to tell.
        ooms: on v2, how many OOMs there were of which nobody can tell whose they are.
        victims: who they were, as OomKill.victims.
    """

    __slots__ = ("count", "ooms", "victims")
    count: int
    ooms: int
    victims: tuple[Victim, ...]

    def __init__(self, *, time_ns: int, count: int, ooms: int = 0, victims: tuple[Victim, ...] = ()) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "count", count)
        _set(self, "ooms", ooms)
        _set(self, "victims", victims)


class Degraded(Event):
    """Something that the monitor cannot do on this host as it is; said once for each cause.

    It is not about one watch, and the Monitor goes on. Only of a stall that the kernel has stopped accounting for is it
    said for each, and that watch is closed.

    Attributes:
        what: what does not work, with the reason.
        cost: what the reader of events loses by it.
        remedy: what to do about it.
    """

    __slots__ = ("what", "cost", "remedy")
    what: str
    cost: str
    remedy: str

    def __init__(self, *, time_ns: int, what: str, cost: str, remedy: str) -> None:
        _set(self, "time_ns", time_ns)
        _set(self, "what", what)
        _set(self, "cost", cost)
        _set(self, "remedy", remedy)
