"""The ledger: what the host counted against what was told.

The host's counter rises before the cgroup's, so whatever was told when the host's counter is read is in it: the host's
figure, less what was told, is never less than what is owed. Read the other way round (the host first, then all
counters) it is never more. The first bound serves to find the opening balance, the second to claim that a kill is
missing; so a kill is claimed only if there was one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.commit import Change


class Ledger:
    """Kills, in numbers.

    Attributes:
        told: kills that were told so far, each once, however many watches its cgroup has.
    """

    __slots__ = ("told", "_opening")

    def __init__(self) -> None:
        self.told = 0
        self._opening = 0  # the host's count less what was told, when it began

    def open(self, host: int) -> list[Change]:
        """The changes by which it begins anew: what is missing so far is nobody's business.

        Args:
            host: the host's counter, read after everything that was told.
        """
        return [(self, "_opening", host - self.told)]

    def missing(self, host: int) -> int:
        """How many kills may be missing, at the most.

        Args:
            host: the host's counter, read after everything that was told.
        """
        # What was told late by a little was not missing when the ledger began.
        self._opening = min(self._opening, host - self.told)
        return host - self.told - self._opening

    def proven(self, host: int) -> int:
        """How many kills are missing, at the least.

        Args:
            host: the host's counter, read before all counters of cgroups were read and what they gave was told.
        """
        return max(0, host - self.told - self._opening)

    def settle(self, count: int) -> list[Change]:
        """The changes by which so many missing kills are accounted for."""
        return [(self, "told", self.told + count)]
