"""What the watches of either version have in common."""

from __future__ import annotations

from contextlib import suppress

from memcg_oom._native import lib
from memcg_oom.errors import check
from memcg_oom.events import Removed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Iterable

    from memcg_oom.commit import Change, Outbox
    from memcg_oom.complaints import Complaints
    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Hierarchy
    from memcg_oom.host import HostCounter
    from memcg_oom.ledger import Ledger
    from memcg_oom.sources import Change as Happened
    from memcg_oom.tree import TreeWatch
    from memcg_oom.watch import Watch

# Of so many that settle together, and more, the host's counter says whether there is anything to look for.
CROWD = 16

_SERIALS = 2**31  # the high half of a key, but for the bit that is MEMCG_UNREAD


class Watches:
    """All that one monitor watches.

    Synchronization: none; the monitor's lock is held around every call.

    Args:
        epoll: the monitor's; watches leave it here.
        outbox: takes the events.
        complaints: makes the Degraded ones.
        ledger: takes every kill that is told.
        unread: takes descriptors that left the epoll set, to be closed when no wait() reads them any more.
        settle: nanoseconds.
    """

    def __init__(
        self,
        *,
        epoll: select.epoll,
        outbox: Outbox,
        complaints: Complaints,
        ledger: Ledger,
        unread: list[int],
        settle: int,
    ) -> None:
        self.hierarchy: Hierarchy | None = None
        self.counter: HostCounter | None = None
        self.by_key: dict[int, Watch] = {}
        # Those of them whose removal nobody signals. The hierarchy's root is never removed.
        self.polled: dict[int, Watch] = {}
        # The tree whose members the ledger goes by: it covers the hierarchy, so that every kill is its business.
        self.covering: TreeWatch | None = None
        # Of discovery.py: what is called for each before its end, and to hear of everything that there is to hear.
        self.let_go: Callable[[Watch], None] = lambda _watch: None
        self.drain: Callable[[], bool] = lambda: False
        self.trees: list[TreeWatch] = []
        self._serial = 0
        self._epoll = epoll
        self._outbox = outbox
        self._complaints = complaints
        self._ledger = ledger
        self._unread = unread
        self._settle = settle

    def key(self, fd: int, flags: int = 0) -> int:
        """A key of the epoll set that was never there before; with NO_FD one for what is not in the set."""
        self._serial = (self._serial + 1) % _SERIALS
        return flags | self._serial << 32 | fd

    def add_to_loop(self, keys: list[int]) -> None:
        """Adds descriptors to the epoll set, all or none.

        Raises:
            OSError: ENOMEM, ENOSPC (fs.epoll.max_user_watches).
        """
        check(lib.memcg_loop_add(self._epoll.fileno(), keys, len(keys)), "epoll")

    def _is_root(self, watch: Watch) -> bool:
        return self.hierarchy is not None and self.hierarchy.is_root(watch._place.directory_id)

    def tell(self, events: list[Event]) -> list[Change]:
        """The changes by which events are handed to whoever waits."""
        return self._outbox.put(events)

    def _unregister(self, fd: int) -> None:
        # Out of the epoll set before it is closed: a forked child's copy would keep it there.
        with suppress(FileNotFoundError):  # an exception came the last time, right here
            self._epoll.unregister(fd)

    def leave_loop(self, fd: int) -> None:
        """Takes a descriptor out of the epoll set; it is closed when no wait() reads it any more."""
        self._unregister(fd)
        self._unread.append(fd)

    @staticmethod
    def _removed(watch: Watch, unresolved: int, time_ns: int, events: list[Event]) -> list[Change]:
        events.append(Removed(time_ns=time_ns, cgroup=watch.cgroup, watch=watch, unresolved=unresolved))
        changes: list[Change] = [(watch, "removed", True)]
        if watch._tree is not None and watch._place.directory_id == watch._tree._place.directory_id:
            changes.append((watch._tree, "removed", True))
        return changes

    def sweep(self, watches: list[Watch]) -> bool:
        """Looks at watches out of turn and tells what is new; whether all of them could be read."""
        raise NotImplementedError

    # What only one of the versions has to do.

    def hear(self, now: int) -> bool:
        """Takes note of news beside the signals; whether anybody is to be looked at."""
        return False

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
