"""Tells Prometheus of the OOMs and the OOM kills in one tree of cgroups, on a port.

    sidecar.py CGROUP PORT               such as /sys/fs/cgroup/memory/kubepods 9754

For a single service, or to begin with. The metrics have the names that `memcg-oom export` gives them, see
docs/metrics.md, so its alerts work here too. That one knows pods and TLS as well, and lets go of the series of cgroups
that are gone; here they stay until the program ends, which it does with the tree, or by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys

from memcg_oom import Created, Degraded, MemcgError, Monitor, Oom, OomKill, Removed, Unattributed

try:
    from prometheus_client import Counter, start_http_server
except ImportError:
    sys.exit("sidecar.py: prometheus_client is missing: pip install memcg-oom[prometheus]")

OOMS = Counter("memcg_events_oom", "How often the kernel declared the cgroup out of memory.", ["cgroup"])
KILLS = Counter("memcg_events_oom_kill", "Tasks of the cgroup that the OOM killer killed.", ["cgroup"])
NOBODYS = Counter("memcg_unattributed_kills", "OOM kills that no cgroup's counter shows.")


def label(path: str) -> str:
    r"""The path as text; a byte that is no UTF-8, which a scrape would fail with, as \xe9."""
    return os.fsencode(path).decode(errors="backslashreplace")


def begin(path: str) -> None:
    """Has the series be there, at 0, before something happens: increase() sees nothing else."""
    for counter in (OOMS, KILLS):
        counter.labels(label(path))


def serve(root: str, port: int) -> None:
    """Counts until the tree is gone."""
    with Monitor() as monitor:
        tree = monitor.watch_tree(root)
        for watch in tree:
            begin(watch.cgroup)
        server, thread = start_http_server(port)
        print(f"serving on port {server.server_port}", flush=True)
        try:
            for event in monitor:
                match event:
                    case Created(cgroup=path):
                        begin(path)
                    case Oom(cgroup=path, count=count):
                        OOMS.labels(label(path)).inc(count)
                    case OomKill(cgroup=path, count=count):
                        KILLS.labels(label(path)).inc(count)
                    case Unattributed(count=count):
                        NOBODYS.inc(count)
                    case Removed(cgroup=tree.cgroup):
                        break
                    case Degraded(what=what, cost=cost, remedy=remedy):
                        print(f"{what}; {cost}; {remedy}", file=sys.stderr, flush=True)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def main() -> int:
    """The program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as process 1 of a container it would be deaf to it
    try:
        root, number = sys.argv[1:]
        port = int(number)
    except ValueError as error:
        print(f"usage: sidecar.py CGROUP PORT ({error})", file=sys.stderr)
        return os.EX_USAGE
    try:
        serve(root, port)
    except (OSError, OverflowError, MemcgError) as error:  # OverflowError: no such port
        print(f"sidecar.py: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
