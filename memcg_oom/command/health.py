"""Whether the exporter does its work, as others may ask, and what went wrong in it."""

from __future__ import annotations

import time

from memcg_oom.lock import new_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds in which the watcher comes back from its round: also a sweep of 10,000 cgroups takes no tenth of that.
PATIENCE = 30.0

# Where errors are counted: in making the text of a scrape, in connections (broken off, too slow, no TLS), in those
# refused because there were too many, in writing the text file.
ERRORS = ("scrape", "connection", "busy", "textfile")


class Health:
    """What the watcher's thread is doing, and the errors of the others.

    Synchronization: all of it may be called from any thread.

    Args:
        clock: seconds that do not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = new_lock()
        self._errors = dict.fromkeys(ERRORS, 0)
        self._since: float | None = None
        self._end = "it has not begun"

    def works(self) -> None:
        """The watcher begins a round."""
        self._since, self._end = self._clock(), ""

    def waits(self) -> None:
        """The watcher has done all there was to do, and waits for events."""
        self._since, self._end = None, ""

    @property
    def is_busy(self) -> bool:
        """Whether the watcher is in a round."""
        return self._since is not None

    def ended(self, reason: str) -> None:
        """The watcher takes no events any more."""
        self._end = reason

    def trouble(self) -> str:
        """Why no events are taken; empty, when they are."""
        if self._end:
            return f"the watcher takes no events: {self._end}"
        since = self._since  # once: the watcher may come back from its round meanwhile
        if since is not None and (busy := self._clock() - since) > PATIENCE:
            return f"the watcher has not come back from a round for {busy:.0f} s"
        return ""

    def count(self, where: str) -> None:
        """An error, in one of ERRORS."""
        with self._lock:
            self._errors[where] += 1

    def errors(self) -> dict[str, int]:
        """How many there were, each of ERRORS."""
        with self._lock:
            return self._errors.copy()
