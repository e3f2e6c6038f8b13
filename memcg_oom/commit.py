"""All or nothing in memory: a wake-up's changes are worked out first and then made in one uninterruptible step.

Signal handlers written in Python run between bytecodes, and may raise (Ctrl-C does). So does a MemoryError, at any
allocation. Were the state of a watch changed bit by bit, either could leave an OOM told twice or never. A single call
into C that only stores values can be stopped by neither.
"""

from __future__ import annotations

import os
from itertools import starmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from memcg_oom.events import Event

    # The object, the name of its attribute, the new value.
    Change = tuple[Any, str, Any]


def commit(changes: list[Change]) -> None:
    """Makes all the changes, in their order. The attributes are slots or fields of a C struct: no Python code runs."""
    any(starmap(setattr, changes))  # setattr() returns None, so any() goes through them all


def close_all(fds: list[int]) -> None:
    """Takes descriptors off a list and closes them in one step: none twice, none never."""
    any(map(os.close, map(fds.pop, [-1] * len(fds))))


class Outbox:
    """Events that were made and not handed out yet.

    One hand, the monitor's, puts events in, with the lock held. One waiter takes them out: it looks what there is, and
    counts it as handed out by setting `next` when no call stands between that and its return.

    Attributes:
        events: in their order; those before `next` were handed out.
        next: the index of the first that was not.
    """

    __slots__ = ("events", "next")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.next = 0

    def __len__(self) -> int:
        return len(self.events) - self.next

    def put(self, events: list[Event]) -> list[Change]:
        """The changes that add events; they come to be when committed."""
        return [(self, "events", self.events + events)] if events else []

    def first(self) -> tuple[list[Event], int]:
        """The first that somebody still waits for, if any, and what `next` is once it is handed out."""
        for index in range(self.next, len(self.events)):
            if wanted(self.events[index]):
                return [self.events[index]], index + 1
        return [], len(self.events)

    def all(self) -> tuple[list[Event], int]:
        """All that somebody still waits for, and what `next` is once they are handed out."""
        return [event for event in self.events[self.next :] if wanted(event)], len(self.events)

    def tidy(self) -> None:
        """Lets go of what was handed out, once that is all: by then it costs nothing."""
        if self.next == len(self.events):
            commit([(self, "events", []), (self, "next", 0)])


def wanted(event: Event) -> bool:
    """Whether somebody still waits for it: a watch yields nothing after it was closed."""
    watch = getattr(event, "watch", None)
    return watch is None or not watch.closed
