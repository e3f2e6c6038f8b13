"""What is known of a watch from its first signal to its last look; most watches are in none, most of the time."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.rounds import Round


class Trouble:
    """The state of a watch of cgroup v1 that was signalled, or is to be looked at, see v1.py.

    Attributes:
        round: that it waits in; None: in none.
        held: signals read from the eventfd that are not told yet.
        unresolved: OOMs of the present settle that no kill has answered.
        signals: how many OOMs there were in the present settle.
        stuck: since when its tasks sleep for want of memory, in nanoseconds of CLOCK_MONOTONIC; 0: they do not.
        gone: when a look had found the cgroup removed, in nanoseconds of CLOCK_MONOTONIC; Removed follows when its
            signals are in. 0: none has.
        is_shared: whether it is that of many watches, of which nothing is to be known but the round.
    """

    __slots__ = ("round", "held", "unresolved", "signals", "stuck", "gone")
    is_shared = False

    def __init__(self, round_: Round | None = None) -> None:
        self.round = round_
        self.held = 0
        self.unresolved = 0
        self.signals = 0
        self.stuck = 0
        self.gone = 0


class SharedTrouble(Trouble):
    """That of many watches; whoever has to take note of something gets one of its own."""

    __slots__ = ()
    is_shared = True


# Of all that are in none.
CALM = SharedTrouble()
