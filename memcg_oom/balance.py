"""The ledger of v2: a removed cgroup's last kills are in the counter of the cgroup that it was in.

memory.events sums the subtree, what is gone of it included, and the kernel counts there at the very moment of a kill
(memcg_memory_event()). So what an ancestor counts beyond what was told of it, less what its live children count beyond
what was told of them, belongs to those that went.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memcg_oom.commit import Change
    from memcg_oom.hierarchy import Hierarchy
    from memcg_oom.ledger import Ledger
    from memcg_oom.nodes import Node


class Entry:
    """The kills that one commit tells: in the host's ledger, and in the accounts of all that the cgroups are in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._count = 0
        self._accounted: dict[Node, int] = {}

    def add(self, node: Node, count: int, *, told: bool = True) -> None:
        """So many kills of this cgroup are accounted for, told now or (not `told`) nobody's business."""
        if told:
            self._count += count
        for one in node.line():
            if one.accounted is not None:
                self._accounted[one] = self._accounted.get(one, one.accounted) + count

    def changes(self) -> list[Change]:
        """The changes by which they are."""
        changes: list[Change] = [(node, "accounted", count) for node, count in self._accounted.items()]
        return changes + (self._ledger.settle(self._count) if self._count else [])


def nearest(node: Node) -> Node | None:
    """The nearest cgroup above that is there and has an account, or None."""
    return next((one for one in node.line() if one is not node and not one.gone and one.accounted is not None), None)


def missing(hierarchy: Hierarchy, ancestor: Node) -> int | None:
    """How many kills of what went from below a cgroup, itself not counted, nobody was told of.

    Returns:
        The exact number, or None when it did not stand still meanwhile, or somebody has just gone.
    """
    before, *_ = hierarchy.subtrees([ancestor.place])
    if before < 0 or ancestor.accounted is None:
        return None
    count = before - ancestor.accounted
    if not count:
        return 0  # all siblings need not be read for that
    live = [node for node in ancestor.children.values() if node.counters is not None and not node.gone]
    for node, kills in zip(live, hierarchy.subtrees([node.place for node in live]), strict=True):
        if kills < 0 or node.accounted is None:
            return None
        count -= kills - node.accounted
    own, *_ = hierarchy.counters([ancestor.place])
    after, *_ = hierarchy.subtrees([ancestor.place])
    if own[0] < 0 or after != before or ancestor.counters is None:
        return None
    return count - (own[0] - ancestor.counters[0])


def suspects(gone: Sequence[Node]) -> list[Node]:
    """Those of several that went together in whom somebody may have been killed.

    A cgroup with memory cgroups in it has no processes of its own (the no-internal-process rule).
    """
    parents = {node.parent for node in gone}
    return [node for node in gone if node.counters is not None and node not in parents]
