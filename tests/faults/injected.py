"""injected.py FD PATIENCE: a monitor of real cgroups that does what it is told, one message at a time, each answered.

For tests/real/test_injected.py, which has strace(1) make system calls of it fail. Its own messages come and go by
recvfrom(2) and sendto(2), which nothing else here is made of.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable

from memcg_oom import Event, Monitor, Oom, OomKill, Removed, register


class Worker:
    """What it can be told, by the names of the methods."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._monitor = Monitor(settle=0.2, linger=0.25)
        self._events: list[Event] = []

    def begin(self, _cgroup: str) -> int:
        """A new monitor; how many descriptors there are."""
        self._monitor.close()
        gc.collect()
        fds = len(os.listdir("/proc/self/fd"))
        self._monitor = Monitor(settle=0.2, linger=0.25)
        self._events = []
        return fds

    def watch(self, cgroup: str) -> None:
        self._monitor.watch(cgroup)

    def watch_tree(self, cgroup: str) -> None:
        self._monitor.watch_tree(cgroup)

    def register(self, cgroup: str) -> None:
        register(cgroup, "memory.oom_control").close()

    def wait(self, _cgroup: str) -> None:
        self._events += self._monitor.wait(0)

    def watches(self, _cgroup: str) -> int:
        return len(self._monitor.watches)

    def until_killed(self, cgroup: str) -> list[int]:
        """Waits for a kill; how many OOMs and kills were told by then."""
        return self._until(lambda: self._sum(OomKill, cgroup) > 0, cgroup)

    def until_removed(self, cgroup: str) -> list[int]:
        return self._until(lambda: any(isinstance(event, Removed) for event in self._events), cgroup)

    def _until(self, condition: Callable[[], bool], cgroup: str) -> list[int]:
        deadline = time.monotonic() + self._patience
        while not condition():
            assert time.monotonic() < deadline, f"what was waited for did not come; there was {self._events}"
            self._events += self._monitor.wait(0.1)
        return [self._sum(Oom, cgroup), self._sum(OomKill, cgroup)]

    def _sum(self, kind: type[Oom] | type[OomKill], cgroup: str) -> int:
        return sum(event.count for event in self._events if isinstance(event, kind) and event.cgroup == cgroup)


def main(commands: socket.socket, patience: float) -> None:
    """Does as it is told until nobody is there any more."""
    worker = Worker(patience)
    while command := commands.recv(1 << 16):
        name, cgroup = json.loads(command)
        answer: dict[str, object] = {}
        try:
            answer["result"] = getattr(worker, name)(cgroup)
        except OSError as error:
            answer["errno"] = error.errno
        except Exception as error:
            answer["failed"] = repr(error)
        commands.send(json.dumps(answer).encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as told:
        main(told, float(sys.argv[2]))
