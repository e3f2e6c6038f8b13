"""What the commands have in common that watch trees: watch and export."""

from __future__ import annotations

import resource
import sys

from memcg_oom.mounts import is_below

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.events import Event
    from memcg_oom.monitor import Monitor
    from memcg_oom.tree import TreeWatch


def watch_trees(monitor: Monitor, cgroups: list[str], also: list[type[Event]]) -> list[TreeWatch]:
    """Watches trees. One that lies in another is watched with it, and would be told of twice."""
    return [
        monitor.watch_tree(cgroup, also=also)
        for cgroup in dict.fromkeys(cgroups)
        if not any(other != cgroup and is_below(cgroup, other) for other in cgroups)
    ]


def sources(trees: list[TreeWatch]) -> str:
    """Who tells of what is to come in them, in words."""
    return " and ".join(dict.fromkeys(tree.source for tree in trees))


def say(text: str) -> None:
    """Says something to the operator, on standard error."""
    print(f"memcg-oom: {text}", file=sys.stderr, flush=True)


def number(count: int, what: str) -> str:
    """So many of something, in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def allow_all_fds() -> None:
    """A watch takes a descriptor, and the usual soft limit of 1,024 is there for select(2), which nobody calls here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
