"""What was told, by cgroup: the numbers behind the metrics, and how long there are any of a cgroup that is gone."""

from __future__ import annotations

import re
import time

from memcg_oom.events import (
    Created,
    Degraded,
    MemoryHigh,
    MemoryMax,
    Oom,
    OomKill,
    Removed,
    Unattributed,
)
from memcg_oom.identity import identify
from memcg_oom.lock import new_lock
from memcg_oom.pods import PodNames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from memcg_oom.events import Event
    from memcg_oom.pods import PodName
    from memcg_oom.watch import AnyWatch

    Counts: TypeAlias = tuple[int, ...]

# What is counted of a cgroup, by the kernel's names, in the order of a row's counts.
KINDS = ("oom", "oom_kill", "max", "high")
_INDEX: dict[type[Event], int] = {Oom: 0, OomKill: 1, MemoryMax: 2, MemoryHigh: 3}
_NOTHING: Counts = (0,) * len(KINDS)

LABELS = ("cgroup", "unit", "runtime", "container_id", "pod_uid", "pod", "namespace", "qos", "machine")
_POD_UID, _POD, _NAMESPACE = map(LABELS.index, ("pod_uid", "pod", "namespace"))  # a uid is always text

# No path: those are absolute.
OVERFLOW = "(overflow)"

# The kubelet makes the folder that a pod's name is found in after the pod's cgroup, so it is looked for again: so many
# seconds apart, and for how long.
NAMING_PERIOD = 2.0
NAMING_PATIENCE = 60.0

# How many causes of Degraded have a series each. There are about a dozen; the words of one may hold a path.
CAUSES = 100

# A backslash that would be taken for the beginning of an escape. That of systemd's \x2d is none.
_AMBIGUOUS = re.compile(r"\\(?=x(?:5c|[89a-f][0-9a-f]))")
_NO_TEXT = re.compile("[\udc80-\udcff]")


def label_text(name: str) -> str:
    r"""A name as the text of a label, which has to be UTF-8: without loss, and most names as they are.

    A byte that is not UTF-8 is written as \x and two digits, 80 to ff. A backslash before what looks like such an
    escape is written as \x5c, and so is one before "x5c".
    """
    plain = _AMBIGUOUS.sub(r"\\x5c", name)
    return _NO_TEXT.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", plain)


class Row:
    """The series of one cgroup, or of all that are in the overflow.

    Attributes:
        path: of the cgroup, when it was first seen.
        labels: in the order of LABELS.
        users: how many watched cgroups are counted here: one; none, when it is gone; more, when one was renamed and
            another made under its path.
    """

    __slots__ = ("path", "labels", "users")

    def __init__(self, path: str, labels: tuple[str, ...]) -> None:
        self.path = path
        self.labels = labels
        self.users = 0


class Snapshot:
    """All numbers as of one moment.

    Attributes:
        counts: of each row.
        told: of all cgroups together, since the beginning.
        unattributed_kills, unattributed_ooms, unresolved: totals, as the events have them.
        watches: of all cgroups that are watched.
        degraded: what was told of by Degraded, each once.
        overflowed: how many of the watched cgroups have no series of their own.
    """

    __slots__ = (
        "counts",
        "told",
        "unattributed_kills",
        "unattributed_ooms",
        "unresolved",
        "watches",
        "degraded",
        "overflowed",
    )

    def __init__(self) -> None:
        self.counts: dict[Row, Counts] = {}
        self.told = _NOTHING
        self.unattributed_kills = self.unattributed_ooms = self.unresolved = 0
        self.watches: list[AnyWatch] = []
        self.degraded: list[str] = []
        self.overflowed = 0


class Series:
    """Counts what is told, by cgroup.

    A cgroup has a row from when it is first seen until `keep` seconds after its removal; one that is made anew under
    its path in that time goes on with it. A cgroup for which there is no room is counted in the overflow's row, until a
    row becomes free: then it gets its own, which begins at 0.

    Synchronization: see(), hold(), take() and tidy() are for one thread; snapshot() may be called from any. The lock is
    held for no longer than a copy of references takes.

    Args:
        keep: seconds for which there are numbers of a removed cgroup.
        limit: how many cgroups have a row of their own.
        say: is given a line for the operator.
        pods: knows the names of Kubernetes pods.
        clock: seconds that do not go back.
    """

    def __init__(
        self,
        *,
        keep: float,
        limit: int,
        say: Callable[[str], None],
        pods: PodNames | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = keep
        self._limit = limit
        self._say = say
        self._pods = PodNames() if pods is None else pods
        self._clock = clock
        self._lock = new_lock()
        self._overflow = Row(OVERFLOW, (OVERFLOW, *[""] * (len(LABELS) - 1)))
        self._rows: dict[str, Row] = {}
        self._row_of: dict[AnyWatch, Row] = {}
        self._held: dict[str, Row] = {}
        # What is in the overflow, who came first is first; and whether that was said.
        self._overflowed: dict[AnyWatch, str] = {}
        self._said = False
        # Rows without a user, and when each goes: the next one first, since all are kept equally long.
        self._expiring: dict[Row, float] = {}
        # Rows of pods without a name, and until when that is looked for.
        self._nameless: dict[Row, float] = {}
        self._next_naming = 0.0
        # What a scrape has copied, under the lock.
        self._counts: dict[Row, Counts] = {self._overflow: _NOTHING}
        self._told = _NOTHING
        self._unattributed_kills = self._unattributed_ooms = self._unresolved = 0
        self._degraded: dict[str, None] = {}

    def snapshot(self) -> Snapshot:
        """All numbers as of this moment."""
        found = Snapshot()
        with self._lock:
            found.counts = self._counts.copy()
            found.told = self._told
            found.unattributed_kills = self._unattributed_kills
            found.unattributed_ooms = self._unattributed_ooms
            found.unresolved = self._unresolved
            found.watches = list(self._row_of)
            found.degraded = list(self._degraded)
            found.overflowed = len(self._overflowed)
        return found

    def see(self, watch: AnyWatch, path: str) -> None:
        """A cgroup that is watched: from now on there are numbers of it."""
        if watch not in self._row_of:
            self._attach(watch, path)

    def hold(self, path: str) -> None:
        """The hierarchy's root: its kills are told, of a watch that nobody was shown, and it is never removed."""
        self._held[path] = row = self._find(path) or self._overflow
        row.users += 1

    def take(self, event: Event) -> None:
        """Counts what an event tells."""
        match event:
            case Created(watch=watch, cgroup=path):
                self.see(watch, path)
            case Oom() | OomKill() | MemoryMax() | MemoryHigh():
                self._count(event)
            case Removed(watch=watch, unresolved=unresolved):
                with self._lock:
                    self._unresolved += unresolved
                self._detach(watch)
            case Unattributed(count=count, ooms=ooms):
                with self._lock:
                    self._unattributed_kills += count
                    self._unattributed_ooms += ooms
            case Degraded(what=what):
                with self._lock:
                    known = what in self._degraded or len(self._degraded) < CAUSES
                    self._degraded[what if known else OVERFLOW] = None

    def tidy(self) -> None:
        """Lets go of what was kept long enough, gives its room to those in the overflow, and looks for pods' names."""
        now = self._clock()
        while self._expiring:
            row, moment = next(iter(self._expiring.items()))
            if moment > now:
                break
            del self._expiring[row], self._rows[row.path]
            self._nameless.pop(row, None)
            with self._lock:
                del self._counts[row]
        while self._overflowed and len(self._rows) < self._limit:
            watch = next(iter(self._overflowed))
            with self._lock:
                path = self._overflowed.pop(watch)
            self._attach(watch, path)
        if self._nameless and now >= self._next_naming:
            self._next_naming = now + NAMING_PERIOD
            names = {pod: self._pods.find(pod) for pod in {row.labels[_POD_UID] for row in self._nameless}}
            for row, until in list(self._nameless.items()):
                self._name(row, names[row.labels[_POD_UID]], last=now >= until)

    def due(self) -> float | None:
        """In how many seconds tidy() has something to do; None: not before the next event."""
        moments = [next(iter(self._expiring.values()))] if self._expiring else []
        if self._nameless:
            moments.append(self._next_naming)
        return max(0.0, min(moments) - self._clock()) if moments else None

    # -- rows

    def _attach(self, watch: AnyWatch, path: str) -> None:
        row = self._find(path)
        with self._lock:
            self._row_of[watch] = self._overflow if row is None else row
            if row is None:
                self._overflowed[watch] = path
        if row is not None:
            row.users += 1
            self._expiring.pop(row, None)
        elif not self._said:
            self._said = True
            self._say(
                f"more than {self._limit} cgroups (--series): what else is told goes to the series of "
                f'cgroup="{OVERFLOW}"'
            )

    def _detach(self, watch: AnyWatch) -> None:
        with self._lock:
            row = self._row_of.pop(watch, None)
            self._overflowed.pop(watch, None)
        if row is not None and row is not self._overflow:
            row.users -= 1
            if not row.users:
                self._expiring[row] = self._clock() + self._keep

    def _find(self, path: str) -> Row | None:
        """The row for a path, a new one if need be; None: there is no room for one."""
        row = self._rows.get(path)
        if row is None and len(self._rows) < self._limit:
            identity = identify(path)
            known = (
                path,
                identity.unit,
                identity.runtime,
                identity.container,
                identity.pod,
                None,
                None,
                identity.qos,
                identity.machine,
            )
            row = self._rows[path] = Row(path, tuple(label_text(text or "") for text in known))
            if identity.pod:
                self._nameless[row] = self._clock() + NAMING_PATIENCE
                self._name(row, self._pods.find(identity.pod))
            with self._lock:
                self._counts[row] = _NOTHING
        return row

    def _name(self, row: Row, name: PodName | None, last: bool = False) -> None:
        """Names a row's pod, if that is known by now; last: as it is afterwards it stays."""
        if name is not None:
            labels = list(row.labels)
            labels[_POD], labels[_NAMESPACE] = name.name, name.namespace
            row.labels = tuple(labels)
        if name is not None or last:
            del self._nameless[row]

    # -- counting

    def _count(self, event: Oom | OomKill | MemoryMax | MemoryHigh) -> None:
        watch, path = event.watch, event.cgroup
        if watch not in self._row_of and path not in self._held:
            self._attach(watch, path)
        row = self._row_of.get(watch) or self._held[path]
        if row in self._nameless:
            # The last moment for it: with other labels it would be another series, which begins at what was counted.
            self._name(row, self._pods.find(row.labels[_POD_UID]), last=True)
        index = _INDEX[type(event)]
        with self._lock:
            self._counts[row] = _more(self._counts[row], index, event.count)
            self._told = _more(self._told, index, event.count)
        if isinstance(event, Oom) and event.late:
            self._detach(watch)  # its Removed was before


def _more(counts: Counts, index: int, count: int) -> Counts:
    return (*counts[:index], counts[index] + count, *counts[index + 1 :])
