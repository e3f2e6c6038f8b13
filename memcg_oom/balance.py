"""The ledger of v2: a removed cgroup's last kills and OOMs are in the counters of the cgroup that it was in.

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
    """What one commit tells: in the host's ledger, and in the accounts of all that the cgroups are in."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._kills = 0
        self._opened: dict[Node, tuple[int, int]] = {}
        self._added: dict[Node, tuple[int, int]] = {}

    def open(self, node: Node, kills: int, ooms: int) -> None:
        """Begins the account of a cgroup: so many of its own are told; those below it that this entry adds count too.

        Before its own are added: they are in these numbers.
        """
        self._opened[node] = kills, ooms

    def has_account(self, node: Node) -> bool:
        """Whether somebody keeps the account of a cgroup, once the changes are made."""
        return node.accounted is not None or node in self._opened

    def add(self, node: Node, kills: int, ooms: int, settled: int = 0) -> None:
        """So many of this cgroup are accounted for; of how many of these the host's ledger knows already."""
        if not (kills or ooms):
            return
        self._kills += kills - settled
        for one in node.line():
            if one is not node or node not in self._opened:
                before = self._added.get(one, (0, 0))
                self._added[one] = (before[0] + kills, before[1] + ooms)

    def changes(self) -> list[Change]:
        """The changes by which they are."""
        changes: list[Change] = []
        # Those that are opened after what is below them was added are in both.
        for node in {**self._opened, **self._added}:
            before, more = self._opened.get(node, node.accounted), self._added.get(node, (0, 0))
            if before is not None:
                changes.append((node, "accounted", (before[0] + more[0], before[1] + more[1])))
        return changes + (self._ledger.settle(self._kills) if self._kills else [])


def nearest(node: Node) -> Node | None:
    """The nearest cgroup above that is there and has an account, or None."""
    above = [one for one in node.line() if one is not node and not one.state and one.accounted is not None]
    return above[0] if above else None


def missing(hierarchy: Hierarchy, ancestor: Node) -> tuple[int, int] | None:
    """How many kills and OOMs of what went from below a cgroup, itself not counted, nobody was told of.

    Returns:
        The exact numbers, or None when they did not stand still meanwhile, or somebody has just gone. A kill that is
        counted in the cgroup and not yet in those above would make them too small.
    """
    before, *_ = hierarchy.subtrees([ancestor.place])
    if before[0] < 0 or ancestor.accounted is None:
        return None
    if before[:2] == ancestor.accounted:
        return 0, 0  # no need to read the siblings
    live = [node for node in ancestor.children.values() if node.counters is not None and not node.state]
    known = [ancestor.accounted]
    for node, counters in zip(live, hierarchy.subtrees([node.place for node in live]), strict=True):
        if counters[0] < 0 or node.accounted is None:
            return None
        known.append((counters[0] - node.accounted[0], counters[1] - node.accounted[1]))
    own, *_ = hierarchy.counters([ancestor.place])
    after, *_ = hierarchy.subtrees([ancestor.place])
    if own[0] < 0 or after[:2] != before[:2] or ancestor.counters is None:
        return None
    known.append((own[0] - ancestor.counters[0], own[1] - ancestor.counters[1]))
    kills, ooms = (sum(counts) for counts in zip(*known, strict=True))
    return None if kills > before[0] or ooms > before[1] else (before[0] - kills, before[1] - ooms)


def suspects(gone: Sequence[Node]) -> list[Node]:
    """Those of several that went together in whom somebody may have been killed.

    Not in one that was looked at when it had memory cgroups in it already, and no processes of its own therefore.
    Before it had, somebody may have been killed in it.
    """
    return [node for node in gone if node.counters is not None and not node.inner]
