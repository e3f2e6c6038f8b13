"""What Monitor.watch() returns, and what a tree consists of; and what all watches are."""

from __future__ import annotations

from memcg_oom.loop import NO_FD
from memcg_oom.trouble import CALM, Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.hierarchy import Place
    from memcg_oom.monitor import Monitor
    from memcg_oom.tree import TreeWatch


class AnyWatch:
    """The base of all watches.

    Attributes:
        removed: whether the cgroup is gone and Removed was made.
        closed: whether the watch, or its monitor, was closed.

    Synchronization: close() may be called from any thread; the attributes may be read from any.
    """

    __slots__ = ("removed", "closed", "_monitor", "_place", "_key")
    _key: int  # its low half is a descriptor, and its high half a serial number, see loop.py

    def __init__(self, monitor: Monitor, place: Place) -> None:
        self.removed = False
        self.closed = True  # until it is committed
        self._monitor = monitor
        self._place = place

    @property
    def cgroup(self) -> str:
        """The absolute path; after a rename the new one, as of the last event."""
        return self._place.path

    def close(self) -> None:
        """Ends the watch: its registration and descriptor go, and nothing of it is handed out any more.

        A member of a tree is left out of it; its later kills are told to nobody, and count in no total. Closing it
        again, or after its monitor was closed, does nothing.
        """
        self._monitor._unwatch(self)

    @property
    def _state(self) -> str:
        """For repr()."""
        return "removed" if self.removed else "closed" if self.closed else "open"


class Signalled(AnyWatch):
    """The base of those that are signalled one by one, on v1 by an eventfd each."""

    __slots__ = ("_trouble",)

    def __init__(self, monitor: Monitor, place: Place, key: int, trouble: Trouble) -> None:
        # Not super(), which takes longer: of watches thousands are made at once.
        AnyWatch.__init__(self, monitor, place)
        self._key = key  # its low half is the eventfd, and it is of the epoll set; on v2 the inotify watch
        self._trouble = trouble

    @property
    def _eventfd(self) -> int:
        return self._key & NO_FD

    @property
    def _own_trouble(self) -> Trouble:
        """Its trouble, to take note of something in it."""
        if self._trouble.is_shared:
            self._trouble = Trouble(self._trouble.round)
        return self._trouble


class Watch(Signalled):
    """One watched cgroup; made by Monitor.watch(), Monitor.watch_many() and Monitor.watch_tree().

    Attributes:
        ooms: OOM notifications of the kernel since the watch began (v2: by the counter oom of memory.events.local): the
            sum of Oom.count.
        kills: OOM kills in this cgroup since the watch began (by oom_kill of memory.oom_control, v2: of
            memory.events.local): the sum of OomKill.count.
        removed, closed: as of any watch.

    The totals move when an event is made, which is before the event is handed out.

    Synchronization: close() may be called from any thread; the attributes may be read from any.
    """

    __slots__ = ("ooms", "kills", "_tree", "_seen", "_accounted")

    def __init__(self, monitor: Monitor, place: Place, key: int, seen: int) -> None:
        Signalled.__init__(self, monitor, place, key, CALM)
        self.ooms = 0
        self.kills = 0
        self._tree: TreeWatch | None = None  # that it is a member of, from when it is committed until it is let go of
        self._seen = seen  # the oom_kill counter when it was last read
        self._accounted = seen  # up to where the ledger has its kills, whichever watch of the cgroup told them

    @property
    def polled(self) -> bool:
        """Whether it is followed by its counters alone, for want of a descriptor, on v2 of an inotify watch.

        See TreeWatch.polled. On v2 it is True too where the memory controller was off when it was found.
        """
        return self._key & NO_FD == NO_FD

    def __repr__(self) -> str:
        return f"<Watch {self.cgroup!r} {self._state} ooms={self.ooms} kills={self.kills}>"
