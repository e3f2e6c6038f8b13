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
from memcg_oom.sizes import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.events import Event

SCHEMA_VERSION = 1

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


def line(event: Event) -> str:
    """The event as a line of aligned columns: local time, event, count, and then what is of no fixed width."""
    seconds, nanoseconds = divmod(event.time_ns, 1_000_000_000)
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{nanoseconds // 1_000_000:03d}"
    count = str(event.count) if isinstance(event, _COUNTED) else ""
    columns = f"{moment}  {kind(event):<13} {count:>5}  "
    if isinstance(event, Unattributed):
        ooms = f", and {event.ooms} OOMs" if event.ooms else ""
        return f"{columns}OOM kills{ooms} in cgroups that came and went unseen, or together"
    if isinstance(event, Degraded):
        return f"{columns}{event.what}; the cost: {event.cost}; the remedy: {event.remedy}"
    assert isinstance(event, CgroupEvent)  # the only other branch of the family
    remark = _remark(event)
    return f"{columns}{event.cgroup}{f'  ({remark})' if remark else ''}"


def _remark(event: CgroupEvent) -> str:
    """What there is to say beside the count."""
    remark = ""
    match event:
        case Oom(late=True):
            remark = "told late by the kernel"
        case OomKill(group=True):
            remark = "the whole group"
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


def json_path(path: str) -> dict[str, str]:
    """The members for a cgroup's path; one that is not UTF-8 has its bytes in base64 beside a readable likeness."""
    raw = os.fsencode(path)
    try:
        return {"cgroup": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"cgroup": raw.decode("utf-8", "replace"), "cgroup_base64": base64.b64encode(raw).decode("ascii")}


def json_event(event: Event) -> dict[str, object]:
    """The event as the object that docs/events.schema.json describes."""
    members: dict[str, object] = {"v": SCHEMA_VERSION, "event": kind(event), "time": json_time(event.time_ns)}
    for name in event.fields():
        if name == "cgroup":
            members |= json_path(event.cgroup)  # type: ignore[attr-defined]
        elif name not in ("time_ns", "watch"):
            members[name] = getattr(event, name)
    return members


class Printer:
    """Prints events on standard output, each flushed: whoever reads the pipe is waiting for it."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._terminal = sys.stdout.isatty()
        self._coloured = self._terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        # In a pipe the bytes of a name are passed on as they are.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]

    def event(self, event: Event) -> None:
        """Prints one."""
        if self._as_json:
            import json

            print(json.dumps(json_event(event)), flush=True)
            return
        text = line(event)
        if self._terminal:
            text = escape(text)
        if self._coloured:
            text = f"\x1b[{EVENTS[kind(event)]}m{text}\x1b[0m"
        print(text, flush=True)
