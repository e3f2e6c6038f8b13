"""Work that several processors share for a moment: calls into the C core, which run without the interpreter lock."""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    """Makes all the calls, the first in this thread and each other in one of its own, and returns when all are done.

    The calls must not raise. Where no thread can be had (the host is out of memory, after all) this thread makes them.
    """
    helpers: list[threading.Thread] = []
    own = list(calls[:1])
    try:
        for call in calls[1:]:
            helper = threading.Thread(target=call, name="memcg_oom-helper", daemon=True)
            try:
                helper.start()
            except (RuntimeError, MemoryError):
                own.append(call)
            else:
                helpers.append(helper)
        for call in own:
            call()
    finally:
        for helper in helpers:
            helper.join()
