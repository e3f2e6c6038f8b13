"""memcg-oom listen: the kernel tree's cgroup_event_listener, which counts crossings and knows a removal from one."""

from __future__ import annotations

import os

from memcg_oom.command.signals import Signals
from memcg_oom.eventfd import register
from memcg_oom.hierarchy import GONE, Hierarchy
from memcg_oom.paths import absolute

# Seconds to wait for more signals of a cgroup that is gone; the removal's own comes up to 0.13 s after it.
LINGER = 0.25


def listen(control_file: str, argument: str) -> int:
    """Prints a line for each crossing until the cgroup is removed; returns the exit code."""
    cgroup, name = os.path.split(absolute(control_file))
    line = f"{control_file} {argument}: crossed" if argument else f"{control_file}: crossed"
    hierarchy = Hierarchy(cgroup)
    try:
        place = hierarchy.find(cgroup)  # before it is registered: after that it may go at any moment
        with Signals() as signals, register(cgroup, name, argument) as eventfd:
            while True:
                signals.wait(eventfd)
                # Read first, then look: if the cgroup is alive afterwards, all that was read are crossings.
                count = eventfd.read() or 0
                gone = -hierarchy.look([place])[0][0] in GONE
                if gone:
                    while eventfd.wait(LINGER):
                        count += eventfd.read() or 0
                    count -= 1
                for _ in range(count):
                    print(line, flush=True)
                if gone:
                    print("The cgroup seems to have removed.", flush=True)  # the words of cgroup_event_listener.c
                    break
    finally:
        hierarchy.close()
    return 0
