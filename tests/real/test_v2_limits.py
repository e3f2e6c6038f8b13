"""cgroup v2 at its limits, against the real kernel: what inotify has runs out, and there are many cgroups."""

from __future__ import annotations

import errno
import os
import resource
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memcg_oom import Degraded, Monitor, Unattributed
from memcg_oom._native import lib
from tests.support import (
    Ledger,
    Reader,
    event_count,
    make,
    put,
    remove,
    run_hog,
    take_until,
    take_until_quiet,
)
from tests.trees import held, of, standing

INOTIFY = Path("/proc/sys/fs/inotify")
MANY = int(os.environ.get("MEMCG_OOM_MANY", "20000"))


@contextmanager
def limited(name: str, value: int) -> Iterator[None]:
    """With another limit of inotify's."""
    file = INOTIFY / name
    before = file.read_text()
    put(file, str(value))
    try:
        yield
    finally:
        put(file, before.strip())


def watches_taken() -> int:
    """By everybody in this process."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":
                found += Path(f"/proc/self/fdinfo/{name}").read_text().count("inotify wd:")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return found


def test_no_watches_left(memcg2: Path, hog: str) -> None:
    cgroups = [make(memcg2 / f"c{i}", "1M") for i in range(40)]
    with Monitor(audit=0.1) as monitor, limited("max_user_watches", 20):
        with pytest.raises(OSError, match=r"raise fs\.inotify\.max_user_watches") as caught:
            monitor.watch_many(cgroups)
        assert caught.value.errno == errno.ENOSPC
        assert watches_taken() == 0
        tree = monitor.watch_tree(memcg2)
        assert held(tree) == standing(memcg2)
        assert 20 <= tree.polled <= 41
        ledger = Ledger()
        for cgroup in cgroups:
            run_hog(hog, cgroup)
        take_until(monitor, lambda ledger: ledger.kills.total() == len(cgroups), ledger)
        for cgroup in cgroups:
            remove(cgroup)
        new = make(memcg2 / "new", "1M")
        run_hog(hog, new)
        take_until(monitor, lambda ledger: ledger.kills.total() == 41 and ledger.removals.total() == 40, ledger)
        take_until_quiet(monitor, ledger)
        assert set(ledger.kills.values()) == {1}
        assert set(ledger.removals.values()) == {1}
        assert held(tree) == standing(memcg2)
        degraded = [event for event in ledger.other if isinstance(event, Degraded)]
        assert any("max_user_watches" in event.remedy for event in degraded), degraded
        assert len({event.what for event in degraded}) == len(degraded) == len(ledger.other)


def test_no_instance_left(memcg2: Path, hog: str) -> None:
    cgroup = make(memcg2 / "a", "1M")
    with limited("max_user_instances", 0), Monitor(audit=0.1) as monitor:
        with pytest.raises(OSError, match="max_user_instances") as caught:
            monitor.watch(cgroup)
        assert caught.value.errno == errno.EMFILE
        tree = monitor.watch_tree(memcg2)
        one = of(tree, cgroup)
        assert tree.polled == 2
        run_hog(hog, cgroup)
        ledger = take_until(monitor, lambda ledger: ledger.kills[one])
        remove(cgroup)
        take_until(monitor, lambda ledger: ledger.removals[one], ledger)
        take_until_quiet(monitor, ledger)
        assert (ledger.kills[one], ledger.removals[one]) == (1, 1)
        degraded = [event for event in ledger.other if isinstance(event, Degraded)]
        assert degraded == ledger.other
        assert any("max_user_instances" in event.remedy for event in degraded), degraded
        assert not any("RLIMIT_NOFILE (" in event.remedy for event in degraded), degraded


def test_a_queue_that_overflows(memcg2: Path, hog: str) -> None:
    before = event_count(memcg2, "oom_kill", below=True)
    with limited("max_queued_events", 16), Monitor() as monitor:
        tree = monitor.watch_tree(memcg2, source="inotify")
        cgroups = [make(memcg2 / f"c{i}", "1M") for i in range(60)]
        for cgroup in cgroups:
            run_hog(hog, cgroup)
        for cgroup in cgroups[::2]:
            remove(cgroup)
        ledger = take_until_quiet(monitor)
        kills = event_count(memcg2, "oom_kill", below=True) - before
        unattributed = sum(event.count for event in ledger.other if isinstance(event, Unattributed))
        assert kills == len(cgroups)
        assert ledger.kills.total() + unattributed == kills
        assert set(ledger.kills.values()) <= {1}
        assert sorted(held(tree).values()) == sorted(standing(memcg2).values())
        assert ledger.kills.total() >= len(cgroups) // 2
        assert any(isinstance(event, Degraded) and "was full" in event.what for event in ledger.other)


def test_twenty_thousand(memcg2: Path, hog: str, figure: dict[str, object]) -> None:
    with limited("max_user_watches", 4 * MANY), Monitor() as monitor:
        cgroups = [memcg2 / f"c{i}" for i in range(MANY)]
        for cgroup in cgroups:
            cgroup.mkdir()
        started = time.perf_counter()
        tree = monitor.watch_tree(memcg2)
        figure["watch_tree"] = f"{time.perf_counter() - started:.2f} s"
        assert len(list(tree)) == MANY + 1
        assert tree.polled == 0
        ledger = take_until_quiet(monitor)
        chosen = cgroups[:: MANY // 50]
        for cgroup in chosen:
            put(cgroup / "memory.max", "1M")
            run_hog(hog, cgroup)
            cgroup.rmdir()
            ledger.add(monitor.wait(0))
        take_until(monitor, lambda ledger: ledger.removals.total() == len(chosen), ledger)
        take_until_quiet(monitor, ledger)
        assert not ledger.other
        assert ledger.kills.total() == len(chosen)
        assert set(ledger.kills.values()) == {1}


def test_neighbours_that_are_always_at_work(memcg2: Path, hog: str) -> None:
    """Kills go on in some cgroups while others are killed in and removed: what is whose has to stand still first."""
    rounds, noise = 60, [make(memcg2 / f"n{i}", "1M") for i in range(2)]
    before = event_count(memcg2, "oom_kill", below=True)
    over = threading.Event()

    def work(cgroup: Path) -> None:
        while not over.is_set():
            run_hog(hog, cgroup)

    with Monitor() as monitor:
        tree = monitor.watch_tree(memcg2)
        reader = Reader(monitor)
        workers = [threading.Thread(target=work, args=[cgroup]) for cgroup in noise]
        for worker in workers:
            worker.start()
        for i in range(rounds):
            cgroup = make(memcg2 / f"r{i}", "1M")
            run_hog(hog, cgroup)
            cgroup.rmdir()
        over.set()
        for worker in workers:
            worker.join()
        kills = event_count(memcg2, "oom_kill", below=True) - before

        def unattributed() -> int:
            return sum(event.count for event in reader.ledger.other if isinstance(event, Unattributed))

        reader.wait_until(lambda: reader.ledger.kills.total() + unattributed() >= kills)
        time.sleep(1)
        assert reader.ledger.kills.total() + unattributed() == kills
        for cgroup in noise:
            assert reader.ledger.kills[of(tree, cgroup)] == event_count(cgroup, "oom_kill")
        assert all(reader.ledger.kills[one] <= 1 for one in reader.ledger.by_watch if one.cgroup not in map(str, noise))
        reader.finish()


def slab() -> int:
    """Bytes that the kernel has taken for its objects."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(line[1]) << 10 for line in lines if line[0] in ("Slab:", "Percpu:"))


def one_instance_each(cgroups: list[Path]) -> list[int]:
    fds = []
    for cgroup in cgroups:
        fds.append(lib.memcg_inotify_open())
        assert lib.memcg_inotify_add_file(fds[-1], os.fsencode(cgroup / "memory.events.local")) > 0
    return fds


def one_descriptor_each(cgroups: list[Path]) -> list[int]:
    epoll = select.epoll()
    fds = [os.open(cgroup / "memory.events.local", os.O_RDONLY) for cgroup in cgroups]
    for fd in fds:
        os.pread(fd, 1000, 0)
        epoll.register(fd, select.EPOLLPRI)
    fds.append(os.dup(epoll.fileno()))
    epoll.close()
    return fds


def test_the_cost_in_kernel_memory(memcg2: Path, figure: dict[str, object]) -> None:
    """Stated, beside other designs; that it is the least of them is what is asserted."""
    cgroups = [make(memcg2 / f"c{i}") for i in range(2000)]
    costs = {}
    with (
        limited("max_user_watches", 100_000),
        limited("max_user_instances", 10_000),
        raised_descriptors(10_000),
        Monitor() as monitor,
    ):
        for name, begin in (
            ("one instance for all", monitor.watch_many),
            ("an instance each", one_instance_each),
            ("a descriptor each", one_descriptor_each),
        ):
            put(Path("/proc/sys/vm/drop_caches"), "2")
            before = slab()
            kept = begin(cgroups)
            put(Path("/proc/sys/vm/drop_caches"), "2")
            costs[name] = (slab() - before) / len(cgroups)
            for one in kept:
                os.close(one) if isinstance(one, int) else one.close()
    figure |= {name: f"{cost:.0f} B" for name, cost in costs.items()}
    assert min(costs, key=lambda name: costs[name]) == "one instance for all"


@contextmanager
def raised_descriptors(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, before[1])))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
