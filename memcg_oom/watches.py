"""What the watches of either version have in common."""

from __future__ import annotations

from memcg_oom.events import Removed
from memcg_oom.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from memcg_oom.by_descriptor import ByDescriptor
    from memcg_oom.commit import Change
    from memcg_oom.complaints import Complaints
    from memcg_oom.events import Event, Victim
    from memcg_oom.hierarchy import Hierarchy, Place
    from memcg_oom.host import HostCounter
    from memcg_oom.ledger import Ledger
    from memcg_oom.loop import Loop
    from memcg_oom.outbox import Outbox
    from memcg_oom.sources import Change as Happened
    from memcg_oom.tree import TreeWatch
    from memcg_oom.watch import AnyWatch

# Of so many that settle together, and more, the host's counter says whether there is anything to look for.
CROWD = 16


class Watches:
    """All that one monitor watches.

    Synchronization: none; the monitor's lock is held around every call.

    Args:
        loop: the monitor's.
        outbox: takes the events.
        complaints: makes the Degraded ones.
        ledger: takes every kill that is told.
        settle: nanoseconds.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        outbox: Outbox,
        complaints: Complaints,
        ledger: Ledger,
        settle: int,
    ) -> None:
        self.hierarchy: Hierarchy | None = None
        self.counter: HostCounter | None = None
        self.by_key: dict[int, Watch] | ByDescriptor = {}
        # Those of them whose removal nobody signals. The hierarchy's root is never removed.
        self.polled: dict[int, Watch] = {}
        # The tree whose members the ledger goes by: it covers the hierarchy, so that every kill is its business.
        self.covering: TreeWatch | None = None
        # Of discovery.py: what is called for each before its end, and to hear of everything that there is to hear.
        self.let_go: Callable[[Watch], None] = lambda _watch: None
        self.drain: Callable[[], bool] = lambda: False
        # Of victims.py: what the log tells of a removed cgroup that its counter could not, and of several together; and
        # at whose limit they were killed.
        self.claim: Callable[..., tuple[list[Victim], int, list[Change]]] = lambda *_: ([], 0, [])
        self.nobodys: Callable[[int, str], tuple[tuple[Victim, ...], list[Change]]] = lambda _count, _below: ((), [])
        self.limit: Callable[[Iterable[Victim]], str | None] = lambda _victims: None
        self.muddle: Callable[[], list[Change]] = list  # kills were told to the ledger alone
        self.trees: list[TreeWatch] = []
        self._loop = loop
        self._outbox = outbox
        self._complaints = complaints
        self._ledger = ledger
        self._settle = settle

    def _is_root(self, watch: Watch) -> bool:
        return self.hierarchy is not None and self.hierarchy.is_root(watch._place.directory_id)

    def tell(self, events: list[Event]) -> list[Change]:
        """The changes by which events are handed to whoever waits."""
        return self._outbox.put(events)

    @staticmethod
    def _removed(watch: AnyWatch, unresolved: int, time_ns: int, events: list[Event]) -> list[Change]:
        events.append(Removed(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, unresolved=unresolved))
        changes: list[Change] = [(watch, "removed", True)]
        if (
            isinstance(watch, Watch)
            and watch._tree is not None
            and watch._place.directory_id == watch._tree._place.directory_id
        ):
            changes.append((watch._tree, "removed", True))
        return changes

    def of(self, directory_ids: Container[int]) -> list[Watch]:
        """All watches of cgroups with such ids."""
        return [watch for watch in self.by_key.values() if watch._place.directory_id in directory_ids]

    def sweep(self, watches: list[Watch]) -> bool:
        """Looks at watches out of turn and tells what is new; whether all of them could be read."""
        raise NotImplementedError

    def all_told(self) -> bool:
        """Whether there is no kill on this host that was not told and may still be somebody's."""
        assert self.counter is not None  # opened with the hierarchy
        return self._ledger.missing(self.counter.read()) <= 0

    # What only one of the versions has to do.

    @property
    def unheard(self) -> bool:
        """Whether news were read of which nobody has taken note, so that hear() is to be called in any case."""
        return False

    def hear(self, now: int) -> list[Place]:
        """Takes note of news beside the signals; returns who is in trouble."""
        return []

    def changed(self, changes: Iterable[Happened]) -> None:
        """Takes note of what has happened to names in directories."""

    def missed(self, directory_ids: Iterable[int]) -> None:
        """Takes note of directories in which somebody came and went unseen."""

    def follows(self, directory_id: int) -> bool:
        """Whether a directory has to be followed for the sake of a watch in it."""
        return False

    def overtaken(self) -> None:
        """News of directories were lost."""
        self.sweep(list(self.polled.values()))

    def part(self) -> None:
        """Tells of those that are gone, where due() has not."""

    @property
    def is_parting(self) -> bool:
        """Whether part() has not come to its end: it may yet tell of kills that the ledger misses."""
        return False

    def told_as_nobodys(self, count: int) -> list[Change]:
        """The changes after the ledger has told so many kills as nobody's."""
        return []
