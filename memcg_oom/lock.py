"""A lock that is entered and left in one step, which no signal handler can come into."""

from __future__ import annotations

import sys
import threading


def new_lock() -> threading.Lock:
    """A lock to be taken with `with`: whoever is interrupted holds it inside the block, and nowhere else.

    The one of the standard library is like that until Python 3.13. Since then `with` calls its __enter__() like any
    function, and signal handlers may run when a function in C returns: on 3.14 more than half of the interruptions of a
    loop that does nothing but take and leave it left it held for ever.
    """
    lock = threading.Lock()
    if sys.version_info < (3, 14):
        return lock

    def enter(_: object) -> None:
        # Neither where an iterator, in C, gives its next item, nor where Python code returns, is a signal looked for.
        while True:  # a handler that raises StopIteration ends the iterator, and nothing is held
            for _ in iter(lock.acquire, None):
                return

    # Left by the function in C, which no handler comes before; `with` looks for both in the class, and there alone.
    methods = {name: getattr(lock, name) for name in ("__exit__", "acquire", "release", "locked")}
    made: threading.Lock = type("Lock", (), {"__slots__": (), "__enter__": enter, **methods})()
    return made
