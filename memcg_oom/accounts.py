"""For the ledger every kill is told once, however many watches its cgroup has.

A watch knows up to where the kills of its cgroup are accounted for. Where there are several of one cgroup, in trees
that lie in each other or watched twice, they know it together.
"""

from __future__ import annotations

from memcg_oom.commit import commit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from memcg_oom.commit import Change, Column
    from memcg_oom.ledger import Ledger
    from memcg_oom.tree import TreeWatch
    from memcg_oom.watch import Watch


class _Shared:
    """What several watches of one cgroup know together.

    Attributes:
        since: from where on the counter's kills are accounted for: the lowest baseline of a watch that told any.
        holders: the keys of the watches.
    """

    __slots__ = ("since", "_accounted", "holders")

    def __init__(self, first: Watch) -> None:
        self.since = _baseline(first)
        self._accounted = first._accounted
        self.holders = {first._key}


def _baseline(watch: Watch) -> int:
    return watch._seen - watch.kills


class Accounts:
    """Who keeps the account of which cgroup.

    Synchronization: none; the monitor's lock is held around every call.

    Args:
        ledger: what was told.
        trees: all there are; their members are found through them.
    """

    def __init__(self, ledger: Ledger, trees: list[TreeWatch]) -> None:
        self._ledger = ledger
        self._trees = trees
        self._single: dict[int, Watch] = {}  # the first of each cgroup that is in no tree
        self._shared: dict[int, _Shared] = {}

    def join(self, watches: Iterable[Watch], tree: TreeWatch | None) -> None:
        """Takes note of new watches, before they are members of the tree."""
        for watch in watches:
            directory_id = watch._place.directory_id
            shared = self._shared.get(directory_id)
            if shared is None and (other := self._other(directory_id)) is not None:
                shared = self._shared[directory_id] = _Shared(other)
            if shared is not None:
                shared.holders.add(watch._key)
            if tree is None:
                self._single.setdefault(directory_id, watch)

    def _other(self, directory_id: int) -> Watch | None:
        for tree in self._trees:
            if (member := tree.member(directory_id)) is not None:
                return member
        return self._single.get(directory_id)

    def leave(self, watch: Watch) -> None:
        """A watch has ended; one that has left before is passed over."""
        directory_id = watch._place.directory_id
        if self._single.get(directory_id) is watch:
            del self._single[directory_id]
        shared = self._shared.get(directory_id)
        if shared is not None:
            shared.holders.discard(watch._key)
            if not shared.holders:
                del self._shared[directory_id]

    def others(self, watch: Watch) -> set[int]:
        """The keys of the other watches of its cgroup."""
        shared = self._shared.get(watch._place.directory_id)
        return set() if shared is None else shared.holders - {watch._key}

    def entry(self) -> Entry:
        """A new entry for the ledger."""
        return Entry(self._ledger, self._shared)


class Entry:
    """The kills that one commit tells."""

    def __init__(self, ledger: Ledger, shared: dict[int, _Shared]) -> None:
        self._ledger = ledger
        self._shared = shared
        self._until: dict[Watch | _Shared, int] = {}
        self._since: dict[_Shared, int] = {}
        self._count = 0

    def add(self, watch: Watch, kills: int, settled: int = 0) -> None:
        """Takes what a look at the cgroup found: its counter; of how many of these the ledger knows already."""
        shared = self._shared.get(watch._place.directory_id)
        account = watch if shared is None else shared
        before = self._until.get(account, account._accounted)
        if kills > before:
            self._until[account] = kills
            self._count += kills - before - settled
        if shared is not None:
            since = self._since.get(shared, shared.since)
            if since > _baseline(watch):
                self._since[shared] = _baseline(watch)
                self._count += since - _baseline(watch)

    def commit(self, changes: list[Change], *columns: Column) -> None:
        """Makes all the changes, and those by which the kills are accounted for."""
        if self._count:
            accounted: list[Change] = [(account, "_accounted", kills) for account, kills in self._until.items()]
            since: list[Change] = [(shared, "since", kills) for shared, kills in self._since.items()]
            changes = changes + accounted + since + self._ledger.settle(self._count)
        commit(changes, *columns)
