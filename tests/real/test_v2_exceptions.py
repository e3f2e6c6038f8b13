"""cgroup v2, against the real kernel: exceptions anywhere inside the monitor lose nothing."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from memcg_oom import Monitor, Unattributed
from tests.support import PATIENCE, QUIET, Ledger, event_count, make, run_hog
from tests.trees import assert_well_told, held, standing

# After so many there are no more: on an emulated processor one look may take longer than the pause between two.
MOST = 400
ROUNDS = min(60, int(os.environ.get("MEMCG_OOM_ROUNDS", "60")))


class Bang(Exception):
    """Raised by a signal handler, wherever the thread happens to be."""


@pytest.fixture
def bangs() -> Iterator[list[str]]:
    """Raises them in Monitor._receive(), so before anything is handed out, at some moment of each 20 ms."""
    where: list[str] = []
    dice = random.Random(1)

    def bang(number: int, frame: FrameType | None) -> None:
        if len(where) < MOST:
            # A steady rhythm could end every look before it has got anywhere.
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0003, 0.02))
        innermost = frame
        while frame is not None and frame.f_code is not Monitor._receive.__code__:
            frame = frame.f_back
        if frame is not None and innermost is not None:
            where.append(innermost.f_code.co_name)
            raise Bang

    before = signal.signal(signal.SIGALRM, bang)
    try:
        yield where
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_storm_of_exceptions_from_signal_handlers(
    memcg2: Path, hog: str, bangs: list[str], figure: dict[str, object]
) -> None:
    """Hundreds of them, during a storm of kills and removals; each cgroup goes as soon as its process was killed."""
    before, ooms_before = (event_count(memcg2, key, below=True) for key in ("oom_kill", "oom"))
    ledger = Ledger()

    def storm() -> None:
        for number in range(ROUNDS):
            cgroup = make(memcg2 / str(number), "1M")
            run_hog(hog, cgroup)
            cgroup.rmdir()

    def nobodys(field: str) -> int:
        return sum(getattr(event, field) for event in ledger.other if isinstance(event, Unattributed))

    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg2)
        worker = threading.Thread(target=storm)
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        worker.start()
        deadline = time.monotonic() + PATIENCE
        while worker.is_alive() or ledger.kills.total() + nobodys("count") < ROUNDS:
            assert time.monotonic() < deadline, "kills were lost"
            with suppress(Bang):
                ledger.add(monitor.wait(0.01))
        signal.setitimer(signal.ITIMER_REAL, 0)
        worker.join(PATIENCE)
        while events := monitor.wait(QUIET):
            ledger.add(events)
        figure |= {"exceptions": len(bangs), "in": len(set(bangs)), "kills": ledger.kills.total()}
        figure["unattributed"] = nobodys("count")
        assert len(bangs) >= 100
        assert event_count(memcg2, "oom_kill", below=True) - before == ROUNDS
        assert ledger.kills.total() + nobodys("count") == ROUNDS
        assert set(ledger.kills.values()) <= {1}
        assert ledger.ooms.total() + nobodys("ooms") == event_count(memcg2, "oom", below=True) - ooms_before
        assert tree.kills == ledger.kills.total()
        assert_well_told(ledger)
        assert held(tree) == standing(memcg2)
