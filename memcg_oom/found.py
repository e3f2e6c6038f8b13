"""What a search or a registration has found, on its way to be watched."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from memcg_oom.hierarchy import Place

    # What a look reads of a cgroup: its OOM kills, and on v2 what memory.events.local counts beside, see v2.py.
    Counters: TypeAlias = tuple[int, ...]


class Found:
    """A cgroup that is to be watched.

    Attributes:
        place: where and who.
        descriptor: of its registration, an eventfd on v1, an inotify watch on v2; negative: it has none and is followed
            by its counters.
        seen: the counters from which on something is told.
        now: the counters now; none where the memory controller is off.
        born: whether it was born under the watcher's eyes.
        subtree: on v2 the counters of it and all below it, what is gone of that included; the first of them may be
            -errno instead.
    """

    __slots__ = ("place", "descriptor", "seen", "now", "born", "subtree")

    def __init__(
        self,
        place: Place,
        descriptor: int,
        seen: Counters,
        now: Counters,
        *,
        born: bool = False,
        subtree: Counters = (),
    ) -> None:
        self.place = place
        self.descriptor = descriptor
        self.seen = seen
        self.now = now
        self.born = born
        self.subtree = subtree
