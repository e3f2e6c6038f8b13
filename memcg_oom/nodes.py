"""What is known of each v2 cgroup, once, however many watches it has."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from memcg_oom.found import Counters
    from memcg_oom.hierarchy import Place
    from memcg_oom.watch import Watch

# Of a node that is about to end, or its counters alone.
SWITCHED_OFF = 1
REMOVED = 2


class Node:
    """A cgroup that is watched, or that one is in.

    Attributes:
        place: where and who.
        parent: the node of the cgroup that it is in, where that is known.
        children: the nodes in it, by name.
        watches: its watches; of those that are closed only such as a tree keeps for its ledger.
        counters: what was last read and told; None: nothing, it is not watched or its memory controller is off.
        descriptor: the inotify watch of its memory.events.local; negative: none.
        populated: that of its cgroup.events, while it settles; negative: none.
        control: that of its cgroup.subtree_control, while there are cgroups in it; negative: none.
        since: from where on its kills and OOMs were told: the lowest baseline of a watch.
        accounted: how many of the kills and OOMs that memory.events counts, here and below, were told or are nobody's
            business; None: nobody keeps that account.
        unresolved: OOMs of the present settle that no kill has answered.
        ran_out: whether its limit was hit in the present settle.
        noisy: whether the last look found nothing but memory.max and memory.high at work.
        inner: whether it was looked at when there were memory cgroups in it already. It has no processes of its own
            then (the no-internal-process rule), so that nothing in it is unknown.
        state: 0, or what a look has found and nobody was told of yet: SWITCHED_OFF, REMOVED.
    """

    __slots__ = (
        "place",
        "parent",
        "children",
        "watches",
        "counters",
        "descriptor",
        "populated",
        "control",
        "since",
        "accounted",
        "unresolved",
        "ran_out",
        "noisy",
        "inner",
        "state",
    )

    def __init__(self, place: Place) -> None:
        self.place = place
        self.parent: Node | None = None
        self.children: dict[str, Node] = {}
        self.watches: list[Watch] = []
        self.counters: Counters | None = None
        self.descriptor = self.populated = self.control = -1
        self.since = (0, 0)
        self.accounted: tuple[int, int] | None = None
        self.unresolved = 0
        self.ran_out = False
        self.noisy = False
        self.inner = False
        self.state = 0

    @property
    def has_memory_below(self) -> bool:
        """Whether there are memory cgroups in it."""
        for child in self.children.values():  # noqa: SIM110 - any() would leave a generator half-way
            if child.counters is not None:
                return True
        return False

    def all_below(self) -> Iterator[Node]:
        """It and all below it that are known."""
        found = [self]
        while found:
            node = found.pop()
            yield node
            found += node.children.values()  # not by recursion: a nest may be deeper than Python's stack

    def line(self) -> Iterator[Node]:
        """It and all above it that are known, from the bottom up."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent
