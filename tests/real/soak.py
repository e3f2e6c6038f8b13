"""Half an hour of churn, for `make soak`: figures at the end, and nothing grown. Not a part of the tests by itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.churn import Size, Workers, covered, judge, settled

SECONDS = float(os.environ.get("MEMCG_OOM_SOAK", "1800"))  # for both sources together
ROUND = 1000  # cgroups, some ten seconds
KILLED_IN = 10
# Memory blocks of the interpreter. Of cgroups that are gone nothing stays behind, however many there were; a thousand
# tasks are remembered until there are more (victims.py), with three blocks each.
GROWN = 4000


@pytest.mark.parametrize("source", ["fanotify", "inotify"])
def test_soak(memcg: Path, hog: str, source: str, figure: dict[str, object]) -> None:
    workers = Workers(memcg, hog)
    totals = dict.fromkeys(("cgroups", "unseen", "kills", "unattributed", "invented", "host", "told"), 0)
    try:
        with covered(source) as (clerk, tree):
            warm: Size | None = None
            until = time.monotonic() + SECONDS / 2
            while warm is None or time.monotonic() < until:
                workers.run(ROUND, ROUND // KILLED_IN)
                result = judge(clerk, tree, workers)
                clerk.wait_for(lambda: settled(clerk, f"{memcg}/"))
                assert not clerk.books.degraded
                clerk.turn_over()
                workers.gone.clear()
                workers.kills.clear()
                after = Size(clerk, tree)
                if warm is None:
                    warm = after  # what everything needs once is had after this
                    continue
                for key in totals:
                    totals[key] += result[key]
            figure.update(totals)
            figure["blocks"] = after.blocks - warm.blocks
            figure["rss"] = f"{after.rss - warm.rss:+} KiB"
            figure["fds"] = after.fds - warm.fds
            figure["watches"] = after.watches - warm.watches
            assert after.fds == warm.fds
            assert after.blocks - warm.blocks <= GROWN
    finally:
        workers.close()
