"""Handles the OOMs of a v1 cgroup in user space: grow it up to a ceiling, then kill its largest task.

    oom_handler.py CGROUP CEILING        such as /sys/fs/cgroup/memory/web 512M

The kernel's own killer is off meanwhile, so whoever runs out of memory sleeps until this program has helped. Should
it die, they would sleep for ever. So there are two processes: one handles, as a child of the other, which switches
the killer on again whatever the child dies of, and starts a new one. If the first one dies, the second sees its pipe
end and leaves, which puts the killer back as well. That both die at once is for whoever has started them, such as
systemd with ExecStopPost=, see docs/notifications.md.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

from memcg_oom import Cgroup, MemcgError, Monitor, Oom, OomResolved, Removed
from memcg_oom.sizes import format_size, parse_size

GROWTH = 5 / 4
PAUSE = 0.2  # seconds before a child that died gets a successor


def say(text: str) -> None:
    """On standard output, at once."""
    print(text, flush=True)


def relieve(cgroup: Cgroup, ceiling: int) -> None:
    """Helps tasks that sleep for want of memory."""
    if not cgroup.under_oom:
        return  # somebody has helped already
    limit = cgroup.limit
    if limit is not None and limit < ceiling:
        limit = min(int(limit * GROWTH) + 4096, ceiling)
        try:
            cgroup.limit = limit
        except OSError as error:  # EINVAL: memory.memsw.limit_in_bytes is lower
            say(f"cannot grow: {error}")
        else:
            say(f"grown to {format_size(limit)}")
            return
    pid = cgroup.largest()
    if pid is not None and cgroup.kill_process(pid):
        say(f"killed {pid}")
    else:
        # Nobody says again that they sleep.
        cgroup.oom_kill_disable = False
        say("found nobody to kill: left to the kernel from here on")


def handle(cgroup: Cgroup, ceiling: int) -> None:
    """Handles OOMs until the cgroup is removed, or standard input ends."""
    with ExitStack() as stack:
        try:
            monitor = stack.enter_context(Monitor())
            stack.enter_context(cgroup.oom_killer_disabled())
            monitor.watch(cgroup)
        except (OSError, MemcgError) as error:
            print(f"oom_handler.py: {error}", file=sys.stderr)
            sys.exit(os.EX_UNAVAILABLE)
        say("handling")
        poll = select.poll()
        poll.register(monitor.fileno(), select.POLLIN)
        poll.register(sys.stdin, select.POLLIN)
        while sys.stdin.fileno() not in (fd for fd, _ in poll.poll()):
            for event in monitor.wait(0):
                match event:
                    case Oom():
                        relieve(cgroup, ceiling)
                    case OomResolved(after=after):
                        say(f"resolved after {after:.3f} s")
                    case Removed():
                        return


def supervise(cgroup: Cgroup) -> int:
    """Has a child handle, for as long as the cgroup is there."""
    while cgroup.exists():
        # Its standard input is a pipe that only this process holds: it ends when this one does.
        with subprocess.Popen([sys.executable, __file__, "--child", *sys.argv[1:]], stdin=subprocess.PIPE) as child:
            try:
                child.wait()
            finally:
                child.terminate()
                child.wait()
                if cgroup.exists():
                    cgroup.oom_kill_disable = False  # the child may have had no time for that
        if child.returncode in (0, os.EX_USAGE, os.EX_UNAVAILABLE):
            return child.returncode  # it has said why
        say(f"the handler ended with {child.returncode}")
        time.sleep(PAUSE)
    return 0


def main() -> int:
    """The program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was changed is put back
    is_child = sys.argv[1:2] == ["--child"]
    try:
        path, ceiling = sys.argv[1 + is_child :]
        cgroup, size = Cgroup(path), parse_size(ceiling)
    except ValueError as error:
        print(f"usage: oom_handler.py CGROUP CEILING ({error})", file=sys.stderr)
        return os.EX_USAGE
    except (OSError, MemcgError) as error:
        print(f"oom_handler.py: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    if not is_child:
        return supervise(cgroup)
    handle(cgroup, size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
