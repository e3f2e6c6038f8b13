"""What Monitor.watch_tree() returns."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from memcg_oom.events import Event
    from memcg_oom.hierarchy import Place
    from memcg_oom.monitor import Monitor
    from memcg_oom.sources import Change, Source
    from memcg_oom.watch import Watch


class TreeWatch:
    """A cgroup and all that are in it, those to come as well; made by Monitor.watch_tree().

    Iterating over it gives the Watch of each cgroup that it holds at this moment. The hierarchy's root is not among
    them: the kernel never signals it. Its kills are told all the same.

    Attributes:
        closed: whether the tree, or its monitor, was closed.
        removed: whether its root is gone, and so all the rest.
        source: who tells of new cgroups: "fanotify" (one mark), "inotify" (a watch for each directory), or "audit"
            (nobody: all directories are listed again with each audit).

    Closing the Watch of a single cgroup leaves just that one out.

    Synchronization: close() may be called from any thread; everything else may be read from any.
    """

    __slots__ = (
        "closed",
        "removed",
        "source",
        "_monitor",
        "_place",
        "_source",
        "_members",
        "_past_ooms",
        "_past_kills",
        "_watermark",
        "_backlog",
        "_unfollowed",
        "_doubted",
        "_left_out",
        "_also",
        "__weakref__",
    )

    def __init__(self, monitor: Monitor, place: Place, source: Source, also: frozenset[type[Event]]) -> None:
        self.closed = True  # until it is committed
        self.removed = False
        self.source = source.kind
        self._monitor = monitor
        self._place = place  # of the root
        self._source = source
        self._also = also
        # By the id of the directory. One whose `_tree` is another was not taken in, or is just being let go of.
        self._members: dict[int, Watch] = {}
        self._past_ooms = 0  # of members that are let go of
        self._past_kills = 0
        # The highest id that may be older than the tree; None as long as that is not known, see discovery.py.
        self._watermark: int | None = None
        self._backlog: list[Change] | None = []  # changes since the scan began; None: it is over
        self._unfollowed: dict[int, Place] = {}  # directories of which nobody tells
        # Directory and name of whatever is there and could not be taken in; no name: of all that is in the directory.
        # And whether what was killed there may have been told meanwhile, as nobody's.
        self._doubted: dict[tuple[int, str], bool] = {}
        self._left_out: set[Watch] = set()  # members that were closed each by itself, and still exist

    @property
    def cgroup(self) -> str:
        """The absolute path of its root; after a rename the new one."""
        return self._place.path

    @property
    def ooms(self) -> int:
        """OOMs in all of its cgroups, those that are gone included, since it began: in the units of Watch.ooms.

        Readable after close().
        """
        return self._monitor._total(self, "_past_ooms", "ooms")

    @property
    def kills(self) -> int:
        """OOM kills in all of its cgroups, those that are gone included, since it began: in the units of Watch.kills.

        Readable after close().
        """
        return self._monitor._total(self, "_past_kills", "kills")

    @property
    def polled(self) -> int:
        """How many of its cgroups are followed by their counters alone.

        That is for want of a descriptor, on v2 of an inotify watch. Their kills and their removal are told, later than
        those of others; on v1 their OOMs are not. On v2 those whose memory controller was off when they were found are
        among them.
        """
        return sum(watch.polled for watch in self)

    def __iter__(self) -> Iterator[Watch]:
        """The watches of its cgroups at this moment, neither closed nor removed."""
        return iter(self._monitor._members(self))

    def member(self, directory_id: int) -> Watch | None:
        """The watch of the cgroup with that id (st_ino of its directory), or None; closed and removed ones too."""
        watch = self._members.get(directory_id)
        return watch if watch is not None and watch._tree is self else None

    @property
    def _is_behind(self) -> bool:
        """Whether a rename may have happened without its source having said so."""
        return self._source.overflowed or bool(self._unfollowed)

    def close(self) -> None:
        """Ends all of its watches. From any thread; events of theirs that were not handed out are discarded.

        Closing again does nothing.
        """
        self._monitor._unwatch_tree(self)

    def __repr__(self) -> str:
        state = "removed" if self.removed else "closed" if self.closed else "open"
        return f"<TreeWatch {self.cgroup!r} {state} cgroups={len(list(self))} source={self.source}>"
