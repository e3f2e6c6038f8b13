"""How events look: aligned lines for people, JSON lines for programs."""

from __future__ import annotations

import base64
import os
import sys
import time

from memcg_oom.events import (
    CgroupEvent,
    Degraded,
    MemoryHigh,
    MemoryMax,
    Oom,
    OomKill,
    OomResolved,
    Pressure,
    Removed,
    Stall,
    Unattributed,
    UsageCrossed,
)
from memcg_oom.identity import identify
from memcg_oom.pods import PodNames
from memcg_oom.sizes import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from memcg_oom.events import Event, Victim
    from memcg_oom.record import Record

SCHEMA_VERSION = 1

_ID = 12  # letters of a container's id that are enough for people, as everywhere

# What there is, and its colour on a terminal.
EVENTS = {
    "created": "2",
    "oom": "33",
    "oom_kill": "1;31",
    "oom_resolved": "32",
    "memory_max": "2",
    "memory_high": "2",
    "usage_crossed": "36",
    "pressure": "36",
    "stall": "36",
    "removed": "2",
    "unattributed": "1;31",
    "degraded": "35",
}
_COUNTED = (Oom, OomKill, MemoryMax, MemoryHigh, UsageCrossed, Pressure, Stall, Unattributed)


def kind(event: Event) -> str:
    """Its name in lines and objects: OomKill is "oom_kill"."""
    return kind_name(type(event))


def kind_name(event_type: type[Event]) -> str:
    """The same of a class."""
    name = event_type.__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def escape(text: str) -> str:
    """With everything that a terminal would act on, and what is no text at all, written as an escape."""
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode("ascii")
        for letter in text
    )


def line(event: Event, pods: PodNames | None = None) -> str:
    """The event as a line of aligned columns: local time, event, count, and then what is of no fixed width.

    Args:
        event: what happened.
        pods: knows the names of Kubernetes pods; None: they are told by their uids.
    """
    seconds, nanoseconds = divmod(event.time_ns, 1_000_000_000)
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{nanoseconds // 1_000_000:03d}"
    count = str(event.count) if isinstance(event, _COUNTED) else ""
    columns = f"{moment}  {kind(event):<13} {count:>5}  "
    if isinstance(event, Unattributed):
        ooms = f", and {event.ooms} OOMs" if event.ooms else ""
        who = f"  ({', '.join(map(describe, event.victims))})" if event.victims else ""
        return f"{columns}OOM kills{ooms} in cgroups that came and went unseen, or together{who}"
    if isinstance(event, Degraded):
        return f"{columns}{event.what}; the cost: {event.cost}; the remedy: {event.remedy}"
    assert isinstance(event, CgroupEvent)  # the only other branch of the family
    who, remark = who_is(event.cgroup, pods), _remark(event)
    return f"{columns}{event.cgroup}{f'  [{who}]' if who else ''}{f'  ({remark})' if remark else ''}"


def who_is(cgroup: str, pods: PodNames | None = None) -> str:
    """What a cgroup was made for, in a few words; empty where its path does not say."""
    identity = identify(cgroup)
    words = []
    if identity.pod:
        name = pods.find(identity.pod) if pods is not None else None
        words.append(f"pod {identity.pod}" if name is None else f"pod {name.namespace}/{name.name}")
    if identity.container:
        words.append(f"{identity.runtime or 'container'} {identity.container[:_ID]}")
    if identity.machine:
        words.append(f"machine {identity.machine}")
    return ", ".join(words) or identity.unit or ""


def describe(victim: Victim) -> str:
    """A victim in a few words: its memory is what it had for itself, file pages left out."""
    sizes = [size for size in (victim.anon_rss, victim.shmem_rss) if size is not None]
    return f"{victim.comm}[{victim.pid}]{f' {format_size(sum(sizes))}' if sizes else ''}"


def _remark(event: CgroupEvent) -> str:
    """What there is to say beside the count."""
    remark = ""
    match event:
        case Oom(late=True):
            remark = "told late by the kernel"
        case OomKill(group=group, victims=victims, limit_cgroup=limit):
            said = ["the whole group"] * group + [", ".join(map(describe, victims))] * bool(victims)
            if limit is not None and limit != event.cgroup:
                said.append(f"at the limit of {limit}")
            remark = "; ".join(said)
        case OomResolved(after=after):
            remark = f"after {after:.3f} s"
        case Removed(unresolved=unresolved) if unresolved:
            remark = f"outcome unknown of {unresolved} OOM{'s' if unresolved > 1 else ''}"
        case UsageCrossed(threshold=threshold, above=above, usage=usage):
            remark = f"{format_size(usage)}, {'above' if above else 'below'} {format_size(threshold)}"
        case Pressure(level=level, repeated=repeated):
            remark = f"{level}, still" if repeated else level
        case Stall(kind=kind):
            remark = kind
    return remark


def json_time(time_ns: int) -> str:
    """RFC 3339, in UTC, with nanoseconds."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def json_name(member: str, name: str) -> dict[str, object]:
    """The members for a name; one that is not UTF-8 has its bytes in base64 beside a readable likeness."""
    raw = os.fsencode(name)
    try:
        return {member: raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {member: raw.decode("utf-8", "replace"), f"{member}_base64": base64.b64encode(raw).decode("ascii")}


def json_record(record: Record, leave_out: Container[str] = ()) -> dict[str, object]:
    """The members for the fields of a record."""
    members: dict[str, object] = {}
    for name in record.fields():
        value = getattr(record, name)
        if name in leave_out:
            continue
        if isinstance(value, str):
            members |= json_name(name, value)
        elif isinstance(value, tuple):
            members[name] = [json_record(one) for one in value]
        else:
            members[name] = value
    return members


def json_event(event: Event, pods: PodNames | None = None) -> dict[str, object]:
    """The event as the object that docs/events.schema.json describes; pods: as line() has it."""
    members: dict[str, object] = {"v": SCHEMA_VERSION, "event": kind(event), "time": json_time(event.time_ns)}
    members |= json_record(event, leave_out=("time_ns", "watch"))
    if isinstance(event, CgroupEvent) and (identity := _json_identity(event.cgroup, pods)):
        members["identity"] = identity
    return members


def _json_identity(cgroup: str, pods: PodNames | None) -> dict[str, object]:
    """What is known of it, and nothing else."""
    identity = identify(cgroup)
    members = {name: value for name, value in json_record(identity).items() if value is not None}
    if identity.pod and pods is not None and (name := pods.find(identity.pod)) is not None:
        members |= {"pod_namespace": name.namespace, "pod_name": name.name}
    return members


class Printer:
    """Prints events on standard output, each flushed: whoever reads the pipe is waiting for it."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._pods = PodNames()
        self._terminal = sys.stdout.isatty()
        self._coloured = self._terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        # In a pipe the bytes of a name are passed on as they are.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def due(self) -> float | None:
        """Seconds until draw() wants to be called; None: never."""
        return None

    def draw(self) -> None:
        """There is nothing that has to be kept up to date."""

    def event(self, event: Event) -> None:
        """Prints one."""
        if self._as_json:
            import json

            print(json.dumps(json_event(event, self._pods)), flush=True)
            return
        text = line(event, self._pods)
        if self._terminal:
            text = escape(text)
        if self._coloured:
            text = f"\x1b[{EVENTS[kind(event)]}m{text}\x1b[0m"
        print(text, flush=True)
