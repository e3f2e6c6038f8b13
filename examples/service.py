"""Watches a tree of cgroups in an asyncio service, beside its other tasks: here a server that tells the totals.

    service.py CGROUP SOCKET             such as /sys/fs/cgroup/memory /run/ooms.sock

Each event is a line of JSON on standard output; whoever connects to the Unix socket gets the totals so far. SIGTERM
cancels the task that iterates. Nothing is lost by that: what was not handed out stays in the monitor, and another task
goes on with it for a moment, since the kernel signals an OOM before it kills. The totals are the last line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from contextlib import suppress

from memcg_oom import Event, MemcgError, Monitor, Oom, OomKill, Removed

GRACE = 1.0  # seconds: twice the monitor's settle, the first for the kill, the second for its victims


def say(what: object) -> None:
    """A line on standard output, at once; JSON escapes whatever a name may hold."""
    print(json.dumps(what), flush=True)


class Service:
    """What was told of a tree, and the tasks around it."""

    def __init__(self, monitor: Monitor, root: str) -> None:
        self.monitor = monitor
        self.tree = monitor.watch_tree(root)
        self.totals: dict[str, Counter[str]] = {"ooms": Counter(), "kills": Counter()}

    def take(self, event: Event) -> None:
        """Counts one event. It awaits nothing, so that a cancellation comes before it or after."""
        match event:
            case Oom(cgroup=path, count=count):
                self.totals["ooms"][path] += count
                say({"oom": path, "count": count})
            case OomKill(cgroup=path, count=count, victims=victims):
                self.totals["kills"][path] += count
                say({"kill": path, "count": count, "victims": [victim.comm for victim in victims]})

    async def watch(self) -> None:
        """Takes events until the tree is gone. May be cancelled, and begun anew, at any time."""
        async for event in self.monitor:
            self.take(event)
            if isinstance(event, Removed) and event.cgroup == self.tree.cgroup:
                return

    async def answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(ConnectionError):
            writer.write(json.dumps(self.totals).encode() + b"\n")
            await writer.drain()
        writer.close()


async def serve(root: str, path: str) -> None:
    """Runs until SIGTERM, or until the tree is gone."""
    with Monitor() as monitor:
        service = Service(monitor, root)
        server = await asyncio.start_unix_server(service.answer, path)
        try:
            watching = asyncio.create_task(service.watch())
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, watching.cancel)
            say("watching")
            with suppress(asyncio.CancelledError):
                await watching
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(service.watch(), GRACE)  # whose timeout is a cancellation too
        finally:
            server.close()
            with suppress(FileNotFoundError):  # from Python 3.13 on the server does it
                os.unlink(path)
        for event in monitor.wait(0):
            service.take(event)
        say(service.totals)


def main() -> int:
    """The program."""
    try:
        root, path = sys.argv[1:]
        asyncio.run(serve(root, path))
    except ValueError as error:
        print(f"usage: service.py CGROUP SOCKET ({error})", file=sys.stderr)
        return os.EX_USAGE
    except (OSError, MemcgError) as error:
        print(f"service.py: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
