"""What cgroup v1 signals beside OOM: the crossing of a usage threshold, and memory pressure.

The signals come by an eventfd each, as those of OOMs do, and so does the one of the removal: v1.py reads them and knows
one from the other. Here is what the rest of them means.
"""

from __future__ import annotations

import errno
import math
import os

from memcg_oom.control import Control
from memcg_oom.errors import UnsupportedError
from memcg_oom.events import Pressure, UsageCrossed
from memcg_oom.rounds import GAPS
from memcg_oom.sizes import UNLIMITED, parse_size
from memcg_oom.trouble import Trouble
from memcg_oom.watch import Signalled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from memcg_oom.commit import Change
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Place
    from memcg_oom.monitor import Monitor

LEVELS = ("low", "medium", "critical")
MODES = ("default", "hierarchy", "local")

_PRESSURE = "memory.pressure_level"
_PAGE = os.sysconf("SC_PAGESIZE")
# How far below a threshold the usage counts as having left it: a 64th of it, but no more than this many bytes. The
# kernel looks at the usage once in 128 pages that come or go on a processor (memcg_event_ratelimit()).
_MARGIN = 1 << 20


class Alarm(Signalled):
    """A watch that is not for OOM, on v1.

    Args:
        monitor: whose it is.
        place: where and who; its control_id is that of the file that is looked at.
        key: its low half is the eventfd, and it is of the epoll set.
        control: what it is registered for.
        interval: nanoseconds for which repetition is collected.
    """

    __slots__ = ("_control", "_interval", "_deadline")

    def __init__(self, monitor: Monitor, place: Place, key: int, control: Control, interval: int) -> None:
        super().__init__(monitor, place, key, Trouble())
        self._control = control
        self._interval = interval
        self._deadline = 0  # the end of the present interval, in nanoseconds of CLOCK_MONOTONIC; 0: there is none

    @property
    def _is_urgent(self) -> bool:
        """Whether a signal is to be looked into at once."""
        return True

    def _event(self, count: int, time_ns: int) -> Event:
        """What so many signals are that were read after the cgroup had gone."""
        raise NotImplementedError

    def _judge(self, value: int, now: int, time_ns: int, events: list[Event]) -> list[Change]:
        """What a look has found at a moment, in nanoseconds of CLOCK_MONOTONIC and of CLOCK_REALTIME."""
        raise NotImplementedError


class UsageWatch(Alarm):
    """A threshold of a cgroup's usage; made by Monitor.watch_usage().

    Attributes:
        threshold: in bytes; whole pages, as the kernel has it.
        swap: whether it is one of memory and swap together.
        above: whether the usage was at the threshold or above it, as of the last event that a look has led to, and
            before the first when the watch began.
        removed, closed: as of any watch.

    Synchronization: as AnyWatch.
    """

    __slots__ = ("threshold", "swap", "above")

    def __init__(
        self, monitor: Monitor, place: Place, key: int, control: Control, interval: int, *, usage: int
    ) -> None:
        super().__init__(monitor, place, key, control, interval)
        self.threshold = int(control.argument)
        self.swap = control.file == _usage_file(swap=True)
        self.above = usage >= self.threshold

    def _event(self, count: int, time_ns: int) -> Event:
        return self._crossed(False, 0, count, time_ns)

    def _crossed(self, above: bool, usage: int, count: int, time_ns: int) -> Event:
        return UsageCrossed(
            time_ns=time_ns,
            cgroup=self.cgroup,
            watch=self,
            threshold=self.threshold,
            above=above,
            usage=usage,
            count=count,
        )

    def _judge(self, value: int, now: int, time_ns: int, events: list[Event]) -> list[Change]:
        over = now >= self._deadline
        changes: list[Change] = []
        stays_from = self.threshold - min(self.threshold // 64, _MARGIN)
        above = value >= (stays_from if self.above and not over else self.threshold)
        if above != self.above or (over and self._trouble.held):
            events.append(self._crossed(above, value, self._trouble.held, time_ns))
            changes += [(self, "above", above), (self._trouble, "held", 0)]
        return [*changes, (self, "_deadline", 0)] if over else changes

    def __repr__(self) -> str:
        return f"<UsageWatch {self.cgroup!r} {self._state} threshold={self.threshold} above={self.above}>"


class PressureWatch(Alarm):
    """A level of memory pressure in a cgroup; made by Monitor.watch_pressure().

    Attributes:
        level, mode: as given to Monitor.watch_pressure().
        removed, closed: as of any watch.

    Synchronization: as AnyWatch.
    """

    __slots__ = ("level", "mode", "_repeating")

    def __init__(
        self, monitor: Monitor, place: Place, key: int, control: Control, interval: int, *, level: str, mode: str
    ) -> None:
        super().__init__(monitor, place, key, control, interval)
        self.level = level
        self.mode = mode
        self._repeating = False  # whether the present interval is not the first

    @property
    def _is_urgent(self) -> bool:
        return not self._repeating

    def _event(self, count: int, time_ns: int) -> Event:
        return Pressure(
            time_ns=time_ns,
            cgroup=self.cgroup,
            watch=self,
            level=self.level,
            count=count,
            repeated=self._repeating,
        )

    def _judge(self, value: int, now: int, time_ns: int, events: list[Event]) -> list[Change]:
        over = now >= self._deadline
        if self._trouble.held and (over or not self._repeating):
            events.append(self._event(self._trouble.held, time_ns))
            changes: list[Change] = [(self._trouble, "held", 0), (self, "_repeating", True)]
            return [*changes, (self, "_deadline", now + self._interval)] if over else changes
        return [(self, "_repeating", False), (self, "_deadline", 0)] if over else []

    def __repr__(self) -> str:
        return f"<PressureWatch {self.cgroup!r} {self._state} level={self.level} mode={self.mode}>"


class Alarms:
    """All of one monitor, and which of them are to be looked at when.

    Synchronization: none; the monitor's lock is held around every call.
    """

    def __init__(self) -> None:
        self.by_key: dict[int, Alarm] = {}
        self._due: dict[Alarm, int] = {}

    def next_due(self) -> int:
        """When one is to be looked at, in nanoseconds of CLOCK_MONOTONIC; 0: none is."""
        return min(self._due.values(), default=0)

    def signalled(self, alarms: Iterable[Alarm], now: int) -> list[Change]:
        """Puts those that are signalled down for a look; returns the changes that go with it."""
        changes: list[Change] = []
        for alarm in alarms:
            deadline = alarm._deadline or now + alarm._interval
            if not alarm._deadline:
                changes.append((alarm, "_deadline", deadline))
            # One that is not urgent may be the removal.
            self._due[alarm] = now if alarm._is_urgent else min(self._due.get(alarm, deadline), now + GAPS[-1])
        return changes

    def due(self, now: int) -> list[list[Alarm]]:
        """Who is to be looked at, those with the same file together; they stay until looked_at()."""
        found: dict[str, list[Alarm]] = {}
        for alarm, at in self._due.items():
            if at <= now:
                found.setdefault(alarm._control.file, []).append(alarm)
        return list(found.values())

    def looked_at(self, alarms: Iterable[Alarm]) -> None:
        """Puts those whose changes were committed down for their next look, if there is one."""
        for alarm in alarms:
            if alarm._deadline and not alarm._trouble.gone:
                self._due[alarm] = alarm._deadline
            else:
                self._due.pop(alarm, None)

    def postpone(self, alarms: Iterable[Alarm], again: int) -> None:
        """Puts those that could not be read down for another try, in nanoseconds of CLOCK_MONOTONIC."""
        for alarm in alarms:
            self._due[alarm] = again

    def put_off(self, alarm: Alarm) -> None:
        """It is not to be looked at any more."""
        self._due.pop(alarm, None)


def _usage_file(swap: bool) -> str:
    return "memory.memsw.usage_in_bytes" if swap else "memory.usage_in_bytes"


def usage_control(threshold: int, swap: bool) -> Control:
    """What a threshold is registered for; see parse_threshold()."""
    return Control(_usage_file(swap), argument=str(threshold))


def pressure_control(level: str, mode: str) -> Control:
    """What a level of pressure is registered for.

    Raises:
        ValueError: no such level, no such mode.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    return Control(_PRESSURE, argument=f"{level},{mode}", read=False)


def _share(threshold: int | str) -> float | None:
    """The share of the limit that "90%" is; None: it is a number of bytes.

    Raises:
        ValueError: no share that a usage can have.
    """
    number, percent, rest = threshold.partition("%") if isinstance(threshold, str) else ("", "", "")
    if not percent:
        return None
    try:
        share = float(number) / 100
    except ValueError:
        share = 0.0
    if rest.strip() or not 0 < share <= 1:
        raise ValueError(f"a share of the limit is above 0 % and at most 100 %, such as '90%', not {threshold!r}")
    return share


def check_threshold(threshold: int | str) -> None:
    """Whether it is one, whatever the cgroup.

    Raises:
        TypeError, ValueError: it is not.
    """
    if _share(threshold) is not None:
        return
    if isinstance(threshold, bool) or not isinstance(threshold, int | str):
        raise TypeError(f"a threshold is a number of bytes, or text such as '100M' or '90%', not {threshold!r}")
    if not _PAGE <= (parse_size(threshold) if isinstance(threshold, str) else threshold) < 2**63:
        raise ValueError(f"a threshold is at least a page ({_PAGE} bytes) and below 2**63, not {threshold!r}")


def parse_threshold(path: str, threshold: int | str, swap: bool) -> int:
    """The bytes of a threshold, in whole pages.

    Args:
        path: the cgroup's.
        threshold: as check_threshold() has let it pass.
        swap: whether it is one of memory and swap together.

    Raises:
        UnsupportedError: a share of a limit that is none; no swap accounting.
        OSError: the limit cannot be read.
    """
    file = os.path.join(path, _usage_file(swap))
    if swap and not os.path.exists(file) and os.path.exists(path):
        raise UnsupportedError(
            errno.EOPNOTSUPP, "this kernel does not account for swap (boot it with swapaccount=1)", file
        )
    if isinstance(threshold, int):
        size = threshold
    elif (share := _share(threshold)) is not None:
        size = math.floor(_limit(os.path.join(path, _limit_file(swap))) * share)
    else:
        size = parse_size(threshold)
    return max(size // _PAGE, 1) * _PAGE


def _limit_file(swap: bool) -> str:
    return "memory.memsw.limit_in_bytes" if swap else "memory.limit_in_bytes"


def _limit(file: str) -> int:
    try:
        with open(file, "rb") as text:
            limit = int(text.read())
    except OSError as error:
        # ENODEV is what an open control file says once its cgroup is gone.
        number = errno.ENOENT if error.errno == errno.ENODEV else error.errno or errno.EIO
        raise OSError(number, os.strerror(number), file) from None
    if limit >= UNLIMITED:
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            "the cgroup has no limit of its own, so that there is no share of it: give the threshold in bytes",
            file,
        )
    return limit
