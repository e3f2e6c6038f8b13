"""memcg-oom demo: a real OOM kill in a scratch cgroup, and what the watcher says of it."""

from __future__ import annotations

import sys
import time

from memcg_oom.command.run import Child
from memcg_oom.command.scratch import scratch
from memcg_oom.command.text import Printer
from memcg_oom.events import Oom, OomKill, Removed
from memcg_oom.monitor import Monitor
from memcg_oom.sizes import format_size

LIMIT = 32 << 20
# Fills every page, unlike a bytearray, which the kernel backs with nothing until it is written to.
HOG = "b'x' * (256 << 20)"
# Seconds after which something is wrong.
PATIENCE = 30.0


def demo(parent: str | None) -> int:
    """Shows it, and returns 0 if all three events came."""
    printer = Printer(as_json=False)
    seen: set[type] = set()

    def show(until: type) -> None:
        deadline = time.monotonic() + PATIENCE
        while until not in seen and time.monotonic() < deadline:
            for event in monitor.wait(deadline - time.monotonic()):
                printer.event(event)
                seen.add(type(event))

    with Monitor() as monitor:
        with scratch("demo", LIMIT, parent) as cgroup:
            monitor.watch(cgroup)
            print(f"A scratch cgroup with a limit of {format_size(LIMIT)}: {cgroup.path}")
            print(f'A hog in it that wants {format_size(256 << 20)}: python3 -c "{HOG}"')
            print("What the watcher says:\n", flush=True)
            with Child([sys.executable, "-c", HOG], cgroup) as hog:
                hog.reap()
            show(OomKill)
        show(Removed)
    missing = {Oom, OomKill, Removed} - seen
    if missing:
        print(f"memcg-oom: did not come: {', '.join(sorted(kind.__name__ for kind in missing))}", file=sys.stderr)
        return 1
    print("\nOut of memory, killed, removed: each told once. Now your own: memcg-oom watch")
    return 0
