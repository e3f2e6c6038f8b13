"""memcg-oom watch --summary: a table that is brought up to date in place, for an operator to leave open."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

from memcg_oom.cgroup import Cgroup
from memcg_oom.command.text import describe, escape, line, who_is
from memcg_oom.errors import MemcgError
from memcg_oom.events import Degraded, Oom, OomKill, Removed, Unattributed
from memcg_oom.pods import PodNames
from memcg_oom.sizes import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from memcg_oom.events import Event

# Seconds between two looks at the usage, and at least so many between two drawings.
LOOK = 1.0
PAUSE = 0.1

# Rows that are kept; those that were in trouble longest ago go first, and are counted.
ROWS = 10_000

_ALTERNATE, _NORMAL = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the other screen without a cursor, and back
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"

# What is left out first where there is no room comes last: kills and the cgroup always stay.
_LEFT_OUT = ("last", "ooms", "victim", "limit", "usage", "who")
_HEADS = {
    "kills": "KILLS",
    "ooms": "OOMS",
    "usage": "USAGE",
    "limit": "LIMIT",
    "last": "LAST",
    "victim": "LAST VICTIM",
    "who": "CONTAINER",
    "cgroup": "CGROUP",
}
_NUMBERS = frozenset({"kills", "ooms", "usage", "limit"})
_WIDEST = {"victim": 28, "who": 36}
_CGROUP = 24  # columns that the path has at least, before others are left out for it


class Row:
    """One cgroup that was in trouble."""

    __slots__ = ("cgroup", "ooms", "kills", "last_ns", "victim", "gone")

    def __init__(self, cgroup: str) -> None:
        self.cgroup = cgroup
        self.ooms = self.kills = self.last_ns = 0
        self.victim = ""
        self.gone = False


class Table:
    """What there was in each cgroup that was in trouble.

    Args:
        usage: gives the usage and the limit of a cgroup in words; empty where there is none.
        pods: knows the names of Kubernetes pods.
    """

    def __init__(self, usage: Callable[[str], tuple[str, str]], pods: PodNames | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self.unattributed = self.dropped = 0
        self.said = ""  # what is not as it should be, last of all
        self._usage = usage
        self._pods = pods

    def add(self, event: Event) -> None:
        """Takes note of an event."""
        if isinstance(event, Unattributed):
            self.unattributed += event.count
        elif isinstance(event, Degraded):
            self.said = line(event)
        elif isinstance(event, (Oom, OomKill)):
            row = self.rows.pop(event.cgroup, None) or Row(event.cgroup)
            self.rows[event.cgroup] = row  # behind all others: the first is the one in trouble longest ago
            row.last_ns, row.gone = event.time_ns, False
            if isinstance(event, Oom):
                row.ooms += event.count
            else:
                row.kills += event.count
                if event.victims:
                    row.victim = describe(event.victims[-1])
            if len(self.rows) > ROWS:
                del self.rows[next(iter(self.rows))]
                self.dropped += 1
        elif isinstance(event, Removed) and event.cgroup in self.rows:
            self.rows[event.cgroup].gone = True

    def lines(self, width: int, height: int) -> list[str]:
        """The table, those with the most kills first; no line is longer, and there are no more.

        Args:
            width: columns.
            height: lines.
        """
        rows = sorted(self.rows.values(), key=lambda row: (row.kills, row.ooms, row.last_ns), reverse=True)
        shown = rows[: max(0, height - 3)]
        cells = [self._cells(row) for row in shown]
        columns = self._columns(cells, width)
        lines = [self._title(len(rows), len(shown)), _aligned(_HEADS, columns)]
        lines += [_aligned(one, columns) for one in cells]
        if self.said:
            lines.append(escape(self.said))
        return [_cut(one, width) for one in lines[:height]]

    def _title(self, rows: int, shown: int) -> str:
        kills = sum(row.kills for row in self.rows.values())
        ooms = sum(row.ooms for row in self.rows.values())
        title = f"{rows} in trouble, {kills} OOM kills, {ooms} OOMs, {self.unattributed} unattributed"
        title += f"; {rows - shown} more below" if rows > shown else ""
        return title + (f"; {self.dropped} longest ago dropped" if self.dropped else "")

    def _cells(self, row: Row) -> dict[str, str]:
        usage, limit = ("gone", "") if row.gone else self._usage(row.cgroup)
        return {
            "kills": str(row.kills),
            "ooms": str(row.ooms),
            "usage": usage,
            "limit": limit,
            "last": time.strftime("%H:%M:%S", time.localtime(row.last_ns // 1_000_000_000)),
            "victim": _cut(escape(row.victim), _WIDEST["victim"]),
            "who": _cut(escape(who_is(row.cgroup, self._pods)), _WIDEST["who"]),
            "cgroup": escape(row.cgroup),
        }

    @staticmethod
    def _columns(cells: list[dict[str, str]], width: int) -> dict[str, int]:
        """The columns that there is room for, and their widths."""
        widths = {name: max(len(head), *(len(one[name]) for one in cells), 0) for name, head in _HEADS.items()}
        wanted = min(widths.pop("cgroup"), _CGROUP)
        for name in _LEFT_OUT:
            if sum(widths.values()) + 2 * len(widths) + wanted <= width:
                break
            del widths[name]
        widths["cgroup"] = max(0, width - sum(widths.values()) - 2 * len(widths))
        return widths


def _aligned(cells: dict[str, str], columns: dict[str, int]) -> str:
    """A line; of a path that is too long the end is what tells it from others."""
    parts = []
    for name, width in columns.items():
        text = cells[name]
        if name == "cgroup":
            parts.append(text if len(text) <= width else f"…{text[len(text) - width + 1 :]}" if width > 1 else "")
        else:
            parts.append(text.rjust(width) if name in _NUMBERS else text.ljust(width))
    return "  ".join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"[:width]


def usage_of(cgroup: str) -> tuple[str, str]:
    """The usage and the limit of a cgroup, in words."""
    try:
        one = Cgroup(cgroup)
        usage, limit = one.usage, one.limit
    except (OSError, MemcgError):  # just gone, or the hierarchy's root on v2, which has neither
        return "", ""
    return format_size(usage), "none" if limit is None else format_size(limit)


class Screen:
    """The table on the terminal, as long as the `with` statement lasts; what was there before is there afterwards.

    Attributes:
        table: what it shows.
    """

    def __init__(self) -> None:
        self.table = Table(usage_of, PodNames())
        self._next = 0.0  # when it is to be drawn, in seconds of CLOCK_MONOTONIC
        self._earliest = 0.0
        self._before: signal.Handlers | Callable[..., object] | int | None = None

    def __enter__(self) -> Screen:
        # A handler of Python's, so that waiting ends when the terminal gets another size.
        self._before = signal.signal(signal.SIGWINCH, self._resized)
        sys.stdout.write(_ALTERNATE)
        self.draw()
        return self

    def __exit__(self, *exception: object) -> None:
        sys.stdout.write(_NORMAL)
        sys.stdout.flush()
        signal.signal(signal.SIGWINCH, self._before)

    def _resized(self, *_: object) -> None:
        self._next = 0.0

    def event(self, event: Event) -> None:
        """Takes note of an event, which is shown soon."""
        self.table.add(event)
        self._next = min(self._next, self._earliest)

    def due(self) -> float:
        """Seconds until draw() wants to be called."""
        return max(0.0, self._next - time.monotonic())

    def draw(self) -> None:
        """Brings the terminal up to date, if it is time for that."""
        now = time.monotonic()
        if now < self._next:
            return
        width, height = shutil.get_terminal_size()
        title, *lines = self.table.lines(width, height)
        text = [f"{_BOLD}{title}{_PLAIN}", *lines]
        sys.stdout.write(_HOME + "".join(f"{one}{_END_OF_LINE}\r\n" for one in text[:-1]))
        # Without a new line behind the last one, which would scroll; and what was below goes.
        sys.stdout.write(f"{text[-1]}{_END_OF_LINE}{_END_OF_SCREEN}")
        sys.stdout.flush()
        self._next, self._earliest = now + LOOK, now + PAUSE


def why_not() -> str:
    """Why there can be no table; empty where there can."""
    if not sys.stdout.isatty():
        return "--summary wants a terminal; for programs there is --json"
    if os.environ.get("TERM", "dumb") == "dumb":
        return "--summary wants a terminal that can be drawn on, and TERM says that this one cannot be"
    return ""
