"""An OOM that signals many cgroups, while some of them are renamed and removed: told by presence, not by a look."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from memcg_oom import Monitor
from memcg_oom.watches import CROWD
from tests.support import Independent, Reader, eventually, make, put, remove, run_hog, start_hog

ROUNDS = max(1, int(os.environ.get("MEMCG_OOM_ROUNDS", "1000")) // 50)
CHILDREN = 40
TOUCHED = 25  # of them are renamed or removed while the kernel signals


@pytest.mark.parametrize("how", ["a tree", "single watches"])
def test_removals_and_renames_in_the_middle(memcg1: Path, hog: str, how: str, figure: dict[str, object]) -> None:
    assert CHILDREN - TOUCHED >= CROWD // 2
    dice = random.Random(how)
    told = signalled = removed = 0
    for number in range(ROUNDS):
        top = make(memcg1 / str(number))
        children = [make(top / f"c{child}") for child in range(CHILDREN)]
        independent = {os.stat(child).st_ino: Independent(child) for child in children}
        reader = Reader(Monitor())
        try:
            if how == "a tree":
                watches = {watch._place.directory_id: watch for watch in reader.monitor.watch_tree(top)}
            else:
                watches = {watch._place.directory_id: watch for watch in reader.monitor.watch_many(children)}
            put(top / "memory.limit_in_bytes", str(int((top / "memory.usage_in_bytes").read_text()) + (1 << 20)))
            victim = children.pop()
            pid = start_hog(hog, victim)
            gone = set()
            for child in dice.sample(children, TOUCHED):
                time.sleep(dice.uniform(0, 0.0006))
                children.remove(child)
                if dice.random() < 0.3:
                    children.append(child.rename(child.with_name(f"{child.name}-renamed")))
                else:
                    gone.add(os.stat(child).st_ino)
                    child.rmdir()
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            for one in gone:
                independent[one].await_more_than(0)
            reader.wait_for_removals(len(gone))
            eventually(lambda: all(watches[one]._trouble.round is None for one in watches if one not in gone))  # noqa: B023
            expected = {one: own.read() - (one in gone) for one, own in independent.items()}
            assert {one: watches[one].ooms for one in independent} == expected
            assert {one for one in independent if watches[one].kills} == {os.stat(victim).st_ino}
            assert {one for one in independent if watches[one].removed} == gone
            told += sum(watches[one].ooms for one in independent)
            signalled += sum(expected.values())
            removed += len(gone)
            # Whoever was renamed carries the new path once there is something to tell.
            put(top / "memory.limit_in_bytes", "-1")
            for child in children[:1] + children[-1:]:
                put(child / "memory.limit_in_bytes", "1M")
                run_hog(hog, child)
                watch = watches[os.stat(child).st_ino]
                eventually(lambda: watch.kills)  # noqa: B023
                assert watch.cgroup == os.fspath(child)
        finally:
            reader.finish()
            for own in independent.values():
                own.close()
        for child in [*children, victim]:
            remove(child)
    figure.update(rounds=ROUNDS, ooms=signalled, told=told, removed=removed)
