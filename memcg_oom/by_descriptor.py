"""Watches by their keys, where each has a descriptor of its own: a list of them takes a third of what a dict does."""

from __future__ import annotations

from memcg_oom.loop import NO_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from memcg_oom.watch import Watch


class ByDescriptor:
    """What a dict from keys to watches does, of which the users of either need the same.

    Attributes:
        rows: the watch with each descriptor, or None.
        others: those that have none, by key.
    """

    __slots__ = ("rows", "others")

    def __init__(self) -> None:
        self.rows: list[Watch | None] = []
        self.others: dict[int, Watch] = {}

    def get(self, key: int) -> Watch | None:
        """The watch with the key, if there is one: its descriptor may be another's by now."""
        fd, rows = key & NO_FD, self.rows
        watch = rows[fd] if fd < len(rows) else self.others.get(key)
        return watch if watch is not None and watch._key == key else None

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def values(self) -> list[Watch]:
        """All of them."""
        return [watch for watch in self.rows if watch is not None] + list(self.others.values())

    def update(self, watches: Iterable[tuple[int, Watch]]) -> None:
        """Takes more in, each with its key."""
        rows = self.rows
        size = len(rows)
        for key, watch in watches:
            fd = key & NO_FD
            if fd == NO_FD:
                self.others[key] = watch
            else:
                if fd >= size:
                    rows.extend([None] * (fd + 1 - size))
                    size = fd + 1
                rows[fd] = watch

    def pop(self, key: int, default: None = None) -> Watch | None:
        """Takes one out, if it is there."""
        watch = self.get(key)
        if watch is None:
            return default
        fd = key & NO_FD
        if fd == NO_FD:
            del self.others[key]
        else:
            self.rows[fd] = None
        return watch
