"""When to look again: watches that share a moment share a round."""

from __future__ import annotations

import heapq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from memcg_oom.watch import Signalled

# Nanoseconds from one look of a settling watch to the next: dense while the kill is likely, sparse later.
GAPS = (100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000)

_LONGEST_GAP = 250_000_000  # between two looks at one that takes long


class Round:
    """Watches that are to be looked at together, again and again until a deadline.

    A watch is in one round at most, that of its trouble; when it joins another, the old round skips it.

    Attributes:
        watches: all that ever joined.
        deadline: in nanoseconds of CLOCK_MONOTONIC; the last look is at or after it.
        step: how many looks there were; None for a round that only waits for its deadline.
        host: the host's count of kills, as of the last look; None before the first.
        again: whether it had moved then, or not everything could be read.
        killer_off: whether the OOM killer is off for a crowd; None: that was not looked at.
    """

    __slots__ = ("watches", "deadline", "step", "host", "again", "killer_off")

    def __init__(self, watches: Sequence[Signalled], deadline: int, step: int | None) -> None:
        self.watches = watches
        self.deadline = deadline
        self.step = step
        self.host: int | None = None
        self.again = False
        self.killer_off: bool | None = None

    def members(self) -> list[Signalled]:
        """Those that have not left."""
        return [watch for watch in self.watches if watch._trouble.round is self]

    def next_look(self, now: int, cost: int) -> int:
        """When to look again.

        Args:
            now: the present moment.
            cost: how long the last look took, in nanoseconds. A crowd is looked at less often, so that looks take no
                more than a fifth of the time; the one at the deadline makes up for it.
        """
        gap = GAPS[-1]
        if self.step is not None:
            gap = GAPS[min(self.step, len(GAPS) - 1)]
            self.step += 1
        gap = max(gap, 4 * cost)
        if now < self.deadline:
            return min(now + gap, self.deadline)
        # Past its deadline is only one that could not be read, or whose tasks sleep: again and again, till it is over.
        return now + max(gap, min((now - self.deadline) // 16, _LONGEST_GAP))


class Agenda:
    """Rounds in the order in which they are due."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Round]] = []
        self._serial = 0  # keeps rounds of one moment in their order, and from being compared

    def add(self, due: int, round_: Round) -> None:
        """Puts a round down for a moment, in nanoseconds of CLOCK_MONOTONIC."""
        self._serial += 1
        heapq.heappush(self._heap, (due, self._serial, round_))

    def next_due(self) -> int:
        """The earliest moment; 0 when there is none."""
        return self._heap[0][0] if self._heap else 0

    def first(self, now: int) -> Round | None:
        """The first that is due; it stays."""
        return self._heap[0][2] if self._heap and self._heap[0][0] <= now else None

    def drop_first(self) -> None:
        """Takes it off. What was added meanwhile is due later, or as early but behind it."""
        heapq.heappop(self._heap)
