"""Thousands of cgroups that come, are renamed, lose a task and go, under one tree that covers the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.churn import Size, Workers, covered, judge, settled

# How many cgroups, of which one in ten is killed in; 5,000 take half a minute.
CGROUPS = int(os.environ.get("MEMCG_OOM_CHURN", "0")) or 3 * int(os.environ.get("MEMCG_OOM_ROUNDS", "1000"))
KILLED_IN = 10
# Memory blocks of the interpreter that may stay behind: one for so many cgroups. A leak leaves one for each at least.
CGROUPS_A_BLOCK = 4


@pytest.mark.parametrize("source", ["fanotify", "inotify"])
def test_cgroups_come_are_killed_in_and_go(memcg: Path, hog: str, source: str, figure: dict[str, object]) -> None:
    workers = Workers(memcg, hog)
    try:
        with covered(source) as (clerk, tree):
            # What everything needs once is had after this.
            workers.run(CGROUPS // 5, CGROUPS // 5 // KILLED_IN)
            judge(clerk, tree, workers)
            clerk.wait_for(lambda: settled(clerk, f"{memcg}/"))
            clerk.turn_over()
            warm = Size(clerk, tree)

            workers.run(CGROUPS, CGROUPS // KILLED_IN)
            figure.update(judge(clerk, tree, workers))
            clerk.wait_for(lambda: settled(clerk, f"{memcg}/"))
            degraded = clerk.books.degraded
            clerk.turn_over()
            workers.gone.clear()
            workers.kills.clear()
            after = Size(clerk, tree)

            figure["blocks"] = after.blocks - warm.blocks
            figure["rss"] = f"{after.rss - warm.rss:+} KiB"
            figure["fds"] = after.fds - warm.fds
            assert after.fds == warm.fds
            # Some hundred a watch that somebody else's cgroup has come to.
            foreign = max(0, after.watches - warm.watches)
            # What the log has said of kills is kept for a while, of the last 256.
            lines = 8 * min(256, CGROUPS // KILLED_IN)
            assert after.blocks - warm.blocks <= CGROUPS // CGROUPS_A_BLOCK + lines + 300 * foreign
            assert not degraded
    finally:
        workers.close()
