"""The OOM handler of BenchExec on this package: the same class, which calls every OOM one, and nothing else.

BenchExec's own takes whatever comes on its eventfd for an OOM: the removal of the cgroup as well, unless cancel() was
called before; and an OOM that cancel() overtakes is none. Here the monitor tells the two apart, and cancel() has the
thread look once more. The rest is as it was: KillProcessOnOomThread of benchexec/oomhandler.py in BenchExec 3.35, whose
constructor has been (cgroups, pid_to_kill, callbackFn) since 2.0. It is for cgroup v1; on v2 BenchExec starts none. An
OOM of a cgroup above is taken for the run's own, there as here.

To try it, put this file in the place of BenchExec's, or have it used by a program that runs BenchExec:

    benchexec.oomhandler.KillProcessOnOomThread = KillProcessOnOomThread
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from memcg_oom import Cgroup, Monitor, Oom, Removed

LATE = 2.0  # seconds after a removal until which the monitor may still tell an OOM that was before


class Cgroups(Protocol):
    """What the thread wants of BenchExec's cgroups: the path of the one that "memory" is in."""

    def __getitem__(self, subsystem: str) -> str | os.PathLike[str]:
        """The cgroup's directory."""


class KillProcessOnOomThread(threading.Thread):
    """Kills a run that is out of memory, and lifts its limit so that it can end.

    The kernel's own killer is off meanwhile: it kills one task, and a run that has lost one may go on for ever.

    Synchronization: cancel() may be called from any thread, before start() too.

    Args:
        cgroups: of the run.
        pid_to_kill: the process to be killed first.
        callbackFn: is called with "memory" before anything is killed, at most once.

    Raises:
        OSError, MemcgError: the cgroup cannot be watched.
    """

    def __init__(
        self,
        cgroups: Cgroups,
        pid_to_kill: int,
        callbackFn: Callable[[str], object] = lambda reason: None,
    ) -> None:
        super().__init__()
        self.name = f"KillProcessOnOomThread-{self.name}"
        self._finished = threading.Event()
        self._pid_to_kill = pid_to_kill
        self._callback = callbackFn
        self._cgroup = Cgroup(cgroups["memory"])
        # No log, no audits, no timer: nothing that would run beside a benchmark, and victims are of no interest.
        self._monitor = Monitor(victims=False, audit=None)
        try:
            self._monitor.watch(self._cgroup)
        except BaseException:
            self._monitor.close()
            raise
        self._switch_killer(off=True)

    def run(self) -> None:
        """Waits for an OOM, or the end of the cgroup, or cancel()."""
        with self._monitor:
            try:
                if self._runs_out():
                    self._callback("memory")
                    self._kill()
            finally:
                # Should anybody run out from here on, there is no one else to help.
                self._switch_killer(off=False)

    def cancel(self) -> None:
        """Ends the thread. An OOM that was before is told, one that comes after is not."""
        self._finished.set()
        with suppress(ValueError):  # it has ended already
            self._monitor.wake()

    def _runs_out(self) -> bool:
        timeout = None
        while True:
            finished = self._finished.is_set()  # in this order: the look is after cancel()
            events = self._monitor.wait(0 if finished else timeout)
            if any(isinstance(event, Oom) for event in events):
                return True
            if finished or (timeout is not None and not events):
                return False
            if any(isinstance(event, Removed) for event in events):
                timeout = LATE

    def _kill(self) -> None:
        logging.debug("Killing process %s, whose cgroup is out of memory.", self._pid_to_kill)
        _kill_process(self._pid_to_kill)
        try:
            for pid in self._cgroup.pids():
                _kill_process(pid)
            # To exit takes memory as well. The limit with swap goes first: it must not be the lower one.
            with_swap = Path(self._cgroup, "memory.memsw.limit_in_bytes")
            if with_swap.exists():
                with_swap.write_text("-1")
            self._cgroup.limit = None
        except OSError as error:  # the cgroup may be gone
            logging.debug("Nothing more to be done about an OOM: %s", error)

    def _switch_killer(self, *, off: bool) -> None:
        try:
            self._cgroup.oom_kill_disable = off
        except OSError as error:  # v2 has no such switch; the cgroup may be gone
            logging.debug("The kernel's OOM killer cannot be switched %s: %s", "off" if off else "on", error)


def _kill_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:  # it may be gone
        logging.debug("Process %s cannot be killed: %s", pid, error)


if __name__ == "__main__":
    sys.exit("benchexec.py: not a program; it takes the place of benchexec/oomhandler.py, see its first lines")
