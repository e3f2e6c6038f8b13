"""memcg-oom watch: every event of the cgroups given, a line each."""

from __future__ import annotations

import os
import resource
import sys
import time

from memcg_oom.command.errors import required_mount
from memcg_oom.command.text import Printer
from memcg_oom.hierarchy import ROOT_ID
from memcg_oom.monitor import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# As timeout(1) has it.
TIMED_OUT = 124


def watch(cgroups: list[str], tree: bool, as_json: bool, count: int | None, timeout: float | None) -> int:
    """Prints events until `count` of them are printed or `timeout` seconds are over; returns the exit code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    if not cgroups:
        cgroups = [required_mount().point]
    _allow_all_fds()
    printer = Printer(as_json)
    printed = 0
    with Monitor() as monitor:
        if tree:
            for cgroup in cgroups:
                os.stat(cgroup)  # one that was named must exist; what is below it may go meanwhile
            monitor.watch_many((path for cgroup in cgroups for path in _walk(cgroup)), skip_gone=True)
        else:
            monitor.watch_many(cgroups)
        watched = len(monitor.watches)
        print(
            f"memcg-oom: watching {watched} cgroup{'' if watched == 1 else 's'}, Ctrl-C ends it",
            file=sys.stderr,
            flush=True,
        )
        while True:
            events = monitor.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for event in events:
                printer.event(event)
                printed += 1
                if printed == count:
                    return 0
            if not events and deadline is not None and time.monotonic() >= deadline:
                return TIMED_OUT


def _walk(cgroup: str) -> Iterator[str]:
    """The cgroup and all below it, without the hierarchy's root, which the kernel never signals."""
    for path, _, _ in os.walk(cgroup):
        try:
            if os.stat(path).st_ino != ROOT_ID:
                yield path
        except FileNotFoundError:
            continue  # removed since it was listed


def _allow_all_fds() -> None:
    """A watch takes a descriptor, and the usual soft limit of 1,024 is there for select(2), which nobody calls here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
