"""Nothing while nothing happens."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from memcg_oom import Monitor
from tests.support import Reader, eventually, is_v2, make, run_hog, until_waiting

WATCHES = 1000


def fds_for(cgroup: Path, watches: int) -> int:
    """The epoll set, the bell, the timer, the hierarchy and its spare, the host's counter and its log; and theirs.

    That is an eventfd for each on v1, and the inotify instance on v2.
    """
    return 7 + (1 if is_v2(cgroup) else watches)


def switches(native_id: int) -> int:
    status = Path(f"/proc/self/task/{native_id}/status").read_text()
    return sum(int(count) for count in re.findall(r"ctxt_switches:\s*(\d+)", status))


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_thousand_idle_watches(memcg: Path, hog: str, figure: dict[str, object]) -> None:
    cgroups = [make(memcg / str(number)) for number in range(WATCHES - 1)] + [make(memcg / "busy", "1M")]
    fds, threads = count_fds(), count_threads()
    reader = Reader(Monitor())
    try:
        watches = reader.monitor.watch_many(cgroups)
        assert count_fds() - fds == fds_for(memcg, WATCHES)
        assert count_threads() - threads == 1, "the reader's, which is the test's own"
        assert reader.native_id is not None
        thread = reader.native_id
        time.sleep(2.0)  # a new watch is looked at once, 0.5 s after it was made
        until_waiting(reader.monitor, thread)
        before = switches(thread)
        time.sleep(5.0)
        idle = switches(thread) - before
        figure.update(watches=WATCHES, context_switches=idle, fds=count_fds() - fds)
        assert idle == 0
        run_hog(hog, cgroups[-1])
        reader.wait_until(lambda: reader.ledger.kills[watches[-1]])
        assert list(reader.ledger.by_watch) == [watches[-1]]
    finally:
        reader.finish()
    assert count_fds() == fds
    eventually(lambda: count_threads() == threads)


def test_a_settled_cgroup_is_left_alone(memcg: Path, hog: str, figure: dict[str, object]) -> None:
    """After the last look there is no timer any more."""
    cgroup = make(memcg / "cgroup", "1M")
    reader = Reader(Monitor())
    try:
        watch = reader.monitor.watch(cgroup)
        run_hog(hog, cgroup)
        reader.wait_until(lambda: reader.ledger.kills[watch])
        assert reader.native_id is not None
        thread = reader.native_id
        time.sleep(2.0)
        until_waiting(reader.monitor, thread)
        before = switches(thread)
        time.sleep(2.0)
        figure["context_switches"] = switches(thread) - before
        assert switches(thread) == before
    finally:
        reader.finish()


def test_descriptors_go_with_the_cgroups(memcg: Path) -> None:
    """The eventfd outlives Removed for a while and then is closed, without anything else happening."""
    fds = count_fds()
    reader = Reader(Monitor())
    try:
        for number in range(50):
            reader.monitor.watch(make(memcg / str(number)))
            (memcg / str(number)).rmdir()
        reader.wait_for_removals(50)
        eventually(lambda: count_fds() - fds == fds_for(memcg, 0))
        assert reader.monitor.watches == ()
    finally:
        reader.finish()


def test_a_tree_of_the_whole_host_leaves_no_timer_running(playground: Path) -> None:
    """The kernel log tells of kills, the source of new cgroups: nothing is left to be done now and then."""
    with Monitor(settle=0.05, audit=0.05) as monitor:
        monitor.watch_tree(playground.parent)

        def is_idle() -> bool:
            monitor.wait(0.05)
            return monitor._armed == 0

        eventually(is_idle)
