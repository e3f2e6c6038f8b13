"""memcg-oom run: a command in a cgroup of its own, and what became of it."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import sys
import threading
import time
from contextlib import suppress

from memcg_oom.command.errors import Unavailable, words
from memcg_oom.command.scratch import scratch
from memcg_oom.command.text import SCHEMA_VERSION, describe, escape, json_name, json_record, json_time
from memcg_oom.errors import UnsupportedError
from memcg_oom.events import OomKill
from memcg_oom.monitor import Monitor
from memcg_oom.sizes import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from memcg_oom.cgroup import Cgroup
    from memcg_oom.events import Event

# As env(1) and the shell have them.
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

# What somebody may send to end, pause or prod a command; the rest is this process's own.
FORWARDED = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}
)
_SI_KERNEL = 0x80  # si_code of what the terminal sends, and it sends that to the command as well


def run(command: list[str], memory: int | None, as_json: bool, parent: str | None) -> int:
    """Runs `command` with a limit of `memory` bytes, prints the verdict on standard error, returns the exit code."""
    try:
        with scratch("run", memory, parent) as cgroup, Monitor() as monitor:
            watch = monitor.watch(cgroup)
            try:
                events: list[Event] = []
                with Child(command, cgroup) as child:
                    poll = select.poll()
                    poll.register(monitor.fileno(), select.POLLIN)
                    poll.register(child.pidfd, select.POLLIN)
                    while child.pidfd not in (fd for fd, _ in poll.poll()):
                        events += monitor.wait(0)
                    status = child.reap()
            except ExecError as error:
                print(f"memcg-oom: {words(error)}", file=sys.stderr)
                return NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
            cgroup.kill()  # what the command left behind; now the counters stand still
            events += monitor.wait(0)
            while watch.kills > sum(event.count for event in events if isinstance(event, OomKill)):
                events += monitor.wait()  # it waits for its victims, no longer than the monitor's settle
            verdict = Verdict(cgroup, command, status, watch.ooms, events)
        print(verdict.json() if as_json else verdict.text(), file=sys.stderr)
        return verdict.code
    except Unavailable:
        raise
    except (OSError, ValueError) as error:
        print(f"memcg-oom: {words(error)}", file=sys.stderr)
        return FAILED


class ExecError(OSError):
    """The command could not be executed."""


class Child:
    """The command as a process in its cgroup; signals that come here meanwhile are sent on to it.

    They are blocked, and taken by a thread with sigwaitinfo(2), because that alone tells who sent them: what the
    terminal sends (Ctrl-C) has reached the command already.

    Attributes:
        pidfd: readable when it has exited.
    """

    def __init__(self, command: list[str], cgroup: Cgroup) -> None:
        self._over = False
        self._pid = self.pidfd = -1
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            self._pid = _spawn(command, cgroup, self._mask)
            self.pidfd = os.pidfd_open(self._pid)
            self._forwarder = threading.Thread(target=self._forward, name="memcg_oom-signals", daemon=True)
            self._forwarder.start()
        except BaseException:
            if self._pid >= 0:
                os.kill(self._pid, signal.SIGKILL)  # nobody else has reaped it
                self.reap()
            if self.pidfd >= 0:
                os.close(self.pidfd)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            raise

    def _forward(self) -> None:
        while True:
            info = signal.sigwaitinfo(FORWARDED)
            if self._over:
                return
            if info.si_code != _SI_KERNEL:
                with suppress(ProcessLookupError):  # it has exited; so does this, soon
                    signal.pidfd_send_signal(self.pidfd, info.si_signo)

    def reap(self) -> int:
        """Waits for it to exit and returns its wait status."""
        return os.waitpid(self._pid, 0)[1]

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        assert self._forwarder.ident is not None  # it was started
        signal.pthread_kill(self._forwarder.ident, signal.SIGWINCH)
        self._forwarder.join()
        os.close(self.pidfd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _spawn(command: list[str], cgroup: Cgroup, mask: Iterable[signal.Signals | int]) -> int:
    """Starts the command inside the cgroup: not one page of it is charged elsewhere.

    Raises:
        ExecError: execvp(3) failed.
        OSError: it could not enter the cgroup.
    """
    report, reporter = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _become(command, cgroup, mask, reporter)
    finally:
        os.close(reporter)
    with open(report, "rb") as file:
        failure = file.read()  # empty once execvp(3) has closed the other end
    if failure:
        os.waitpid(pid, 0)
        entered, error = struct.unpack("=ii", failure)
        raise (ExecError if entered else OSError)(error, os.strerror(error), command[0] if entered else cgroup.path)
    return pid


def _become(command: list[str], cgroup: Cgroup, mask: Iterable[signal.Signals | int], reporter: int) -> None:
    entered = False
    try:
        with open(os.path.join(cgroup.path, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write("0")
        entered = True
        for number in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
            signal.SIGINT,
            signal.SIGTERM,
        ):  # Python has its own ideas about them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(reporter, struct.pack("=ii", entered, error.errno or errno.EIO))
    finally:
        os._exit(FAILED)


class Verdict:
    """What became of the command.

    Attributes:
        code: the exit code for the shell.
    """

    def __init__(self, cgroup: Cgroup, command: list[str], status: int, ooms: int, events: list[Event]) -> None:
        self._time_ns = time.time_ns()
        self._command = command
        self._cgroup = cgroup.path
        self._signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.code = 128 + self._signal if self._signal is not None else os.WEXITSTATUS(status)
        try:
            self._peak: int | None = cgroup.peak
        except UnsupportedError:  # v2 before 5.19
            self._peak = None
        self._limit = cgroup.limit
        self._victims = [victim for event in events if isinstance(event, OomKill) for victim in event.victims]
        # The counters themselves rather than what the watch has seen of them: they still stand, and nothing is later.
        if cgroup.version == 1:
            self._ooms, self._kills = ooms, cgroup.oom_control().oom_kill
        else:
            counters = cgroup.events()
            self._ooms, self._kills = counters["oom"], counters["oom_kill"]

    def text(self) -> str:
        """A line for people."""
        end = f"exited with {self.code}" if self._signal is None else f"was killed by {_signal_name(self._signal)}"
        peak = "unknown" if self._peak is None else format_size(self._peak)
        peak += "" if self._limit is None else f" of {format_size(self._limit)}"
        ooms = f"{self._ooms} OOM{'' if self._ooms == 1 else 's'}"
        kills = f"{self._kills} OOM kill{'' if self._kills == 1 else 's'}"
        who = f": {escape(', '.join(map(describe, self._victims)))}" if self._victims else ""
        return f"memcg-oom: {escape(self._command[0])} {end}; peak {peak}; {ooms}, {kills}{who}"

    def json(self) -> str:
        """An object for programs."""
        import json

        return json.dumps(
            {
                "v": SCHEMA_VERSION,
                "event": "exit",
                "time": json_time(self._time_ns),
                **json_name("cgroup", self._cgroup),
                "code": self.code,
                "signal": self._signal,
                "peak": self._peak,
                "limit": self._limit,
                "ooms": self._ooms,
                "kills": self._kills,
                "victims": [json_record(victim) for victim in self._victims],
            }
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
