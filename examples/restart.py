"""Runs a command in a cgroup of its own, and starts it anew when it lost a task to the OOM killer, and only then.

    restart.py CGROUP LIMIT RESTARTS COMMAND [ARGUMENT ...]      such as /sys/fs/cgroup/memory/web 512M 5 ./server

CGROUP is made, with that limit, and removed at the end; cgroup v1 and v2 alike. Who was killed, and at whose limit, is
said on standard output. Half a service is none, so what is left of the command is killed before it is started anew,
after a pause that doubles each time. A command that ends in any other way, by a SIGKILL of somebody else's too, has
ended: its exit code, or 128+N, is the program's own. So has one that was a mere bystander of an OOM.

Tasks in cgroups that the command makes itself are not looked at; Monitor.watch_tree() would.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from memcg_oom import Cgroup, MemcgError, Monitor, OomKill
from memcg_oom.sizes import parse_size

PAUSE = 0.1  # seconds before the first restart
GAVE_UP = 128 + signal.SIGKILL  # the exit code after the last one
# The shell enters by itself (0 is whoever writes it), and then becomes the command.
ENTER = 'echo 0 > "$0/cgroup.procs" && exec "$@"'


def say(text: str) -> None:
    """On standard output, at once."""
    print(text, flush=True)


def describe(kill: OomKill) -> str:
    """Who was killed, and at whose limit."""
    # Tasks and cgroups are named by whoever likes: repr() leaves nothing in a name that a terminal would obey.
    who = ", ".join(f"{victim.comm!r}[{victim.pid}]" for victim in kill.victims) or "the kernel did not say whom"
    limit = "a limit unknown" if kill.limit_cgroup is None else f"the limit of {kill.limit_cgroup!r}"
    return f"lost {kill.count} task(s) at {limit}: {who}"


def killed_in(cgroup: Cgroup) -> int:
    """OOM kills in the cgroup since it was made, by the kernel's own count."""
    return cgroup.oom_control().oom_kill if cgroup.version == 1 else cgroup.events()["oom_kill"]


def live(command: list[str], cgroup: Cgroup, monitor: Monitor) -> tuple[int, list[OomKill]]:
    """Runs the command until it ends or loses a task; its exit code, and what it lost."""
    before = killed_in(cgroup)
    kills: list[OomKill] = []
    with subprocess.Popen(["sh", "-c", ENTER, cgroup.path, *command]) as process:
        try:
            while process.poll() is None and not kills:
                kills += (event for event in monitor.wait() if isinstance(event, OomKill))
        finally:
            process.kill()
            cgroup.kill()
    # Nobody is left, so the counter stands still. What it has counted will be told: the victims take a moment.
    while before + sum(kill.count for kill in kills) < killed_in(cgroup):
        kills += (event for event in monitor.wait() if isinstance(event, OomKill))
    return (process.returncode if process.returncode >= 0 else 128 - process.returncode), kills


def keep_alive(command: list[str], cgroup: Cgroup, restarts: int) -> int:
    """Runs the command as often as need be; the exit code."""
    with Monitor() as monitor:
        monitor.watch(cgroup)
        # wait() then returns when the command has ended, too, also when that was right before it.
        signal.signal(signal.SIGCHLD, lambda *_: monitor.wake())
        for restart in range(1, restarts + 2):
            code, kills = live(command, cgroup, monitor)
            if not kills:
                say(f"ended with {code}")
                return code
            for kill in kills:
                say(describe(kill))
            if restart <= restarts:
                pause = PAUSE * 2 ** (restart - 1)
                say(f"restart {restart} of {restarts} in {pause:g} s")
                time.sleep(pause)
    say("gave up")
    return GAVE_UP


@contextmanager
def container(cgroup: Cgroup, limit: int) -> Iterator[None]:
    """Has the cgroup there for as long as the `with` statement lasts."""
    Cgroup.create(cgroup)
    try:
        cgroup.limit = limit
        yield
    finally:
        remove(cgroup)


def remove(cgroup: Cgroup) -> None:
    """Kills what is in it, and takes it away with all that is below."""
    while cgroup.exists():
        for child in cgroup.children():
            remove(child)
        cgroup.kill()
        try:
            cgroup.remove()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.01)  # what was killed is exiting still


def main() -> int:
    """The program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that nothing is left behind
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    try:
        path, limit, restarts, *command = sys.argv[1:]
        cgroup, size, bound = Cgroup(path), parse_size(limit), int(restarts)
        if bound < 0 or not command:
            raise ValueError("a command is missing" if bound >= 0 else "less than no restarts")
    except ValueError as error:
        print(f"usage: restart.py CGROUP LIMIT RESTARTS COMMAND [ARGUMENT ...] ({error})", file=sys.stderr)
        return os.EX_USAGE
    except (OSError, MemcgError) as error:
        print(f"restart.py: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    try:
        with container(cgroup, size):
            return keep_alive(command, cgroup, bound)
    except (OSError, MemcgError) as error:
        print(f"restart.py: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
