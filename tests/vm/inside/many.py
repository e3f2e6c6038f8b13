"""As many cgroups as the kernel can hold. Runs inside a machine of its own, see tests/vm/test_host_ooms.py."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

from memcg_oom import Created, Degraded, Monitor, Oom, OomKill, Removed, TreeWatch
from tests.support import PATIENCE, QUIET, Independent, kills_of, make, put, readable, remove, start_hog

ROOT = Path("/sys/fs/cgroup/memory")
MANY = ROOT / "many"
SIZES = (100, 1_000, 10_000, 65_000)  # the kernel numbers memory cgroups with 16 bits (MEM_CGROUP_ID_MAX)
FOLDER = 250  # cgroups in one directory
ROUNDS = 20


def to_be_made() -> Iterator[Path]:
    yield MANY
    for folder in count():
        yield MANY / str(folder)
        for number in range(FOLDER):
            yield MANY / str(folder) / str(number)


class Told:
    """What the monitor told, in numbers."""

    def __init__(self, monitor: Monitor) -> None:
        self.created: set[str] = set()
        self.ooms: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.removed: set[str] = set()
        self.degraded: list[Degraded] = []
        self._monitor = monitor

    def take(self, timeout: float) -> bool:
        events = self._monitor.wait(timeout)
        for event in events:
            match event:
                case Created(cgroup=cgroup):
                    self.created.add(cgroup)
                case Oom(cgroup=cgroup, count=number):
                    self.ooms[cgroup] += number
                case OomKill(cgroup=cgroup, count=number):
                    self.kills[cgroup] += number
                case Removed(cgroup=cgroup):
                    self.removed.add(cgroup)
                case Degraded():
                    self.degraded.append(event)
        return bool(events)

    def until(self, condition: Callable[[], object]) -> float:
        """Takes events until the condition holds; returns the milliseconds of the last turn."""
        deadline = time.monotonic() + 2 * PATIENCE
        spent = 0.0
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not come"
            if readable(self._monitor.fileno(), 1.0):
                start = time.perf_counter()
                self.take(0)
                spent = time.perf_counter() - start
        return spent * 1000

    def quiet(self) -> None:
        """Until nothing has come for twice the settle period."""
        while self.take(QUIET):
            pass


def live_and_die(told: Told, hog: str, cgroup: Path) -> tuple[float, float]:
    """Makes a cgroup and has it run out of memory; what it took to tell of the one and of the other."""
    make(cgroup, "1M")
    created = told.until(lambda: str(cgroup) in told.created)
    pid = start_hog(hog, cgroup, 4 << 20)
    oom = told.until(lambda: told.ooms[str(cgroup)])
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    told.until(lambda: told.kills[str(cgroup)])
    remove(cgroup)
    return created, oom


def run_out_at_once(told: Told, tree: TreeWatch, hog: str) -> None:
    """Has a cgroup run out of memory that nearly all others are in: one kill, and a signal to each."""
    everybody = {watch.cgroup for watch in tree}
    assert len(everybody) == SIZES[-1]
    independent = Independent(MANY)
    put(MANY / "memory.limit_in_bytes", str(int((MANY / "memory.usage_in_bytes").read_text()) + (8 << 20)))
    assert os.WIFSIGNALED(os.waitpid(start_hog(hog, MANY, 64 << 20), 0)[1])
    told.until(lambda: told.kills[str(MANY)] and told.ooms.keys() >= everybody)
    told.quiet()
    assert {told.ooms[cgroup] for cgroup in everybody} == {independent.read()}
    assert told.kills[str(MANY)] == kills_of(MANY) == 1
    independent.close()


def among(size: int, hog: str, figure: dict[str, object]) -> float:
    """Watches the so many that there are, with a few that come and go; the milliseconds that it took to tell an Oom."""
    with Monitor() as monitor:
        start = time.monotonic()
        tree = monitor.watch_tree(ROOT)
        figure[f"{size} watched in"] = f"{time.monotonic() - start:.2f} s"
        told = Told(monitor)
        told.quiet()
        assert len(monitor.watches) == len(list(tree)) == size
        probes = [ROOT / f"probe{size}-{number}" for number in range(ROUNDS)]
        created, ooms = zip(*[live_and_die(told, hog, probe) for probe in probes], strict=True)
        told.until(lambda: len(told.removed) == ROUNDS)
        figure[f"a Created among {size}"] = f"{statistics.median(created):.2f} ms"
        names = {str(probe) for probe in probes}
        assert told.created == told.removed == told.ooms.keys() == names
        assert told.kills == dict.fromkeys(names, 1)
        if size == SIZES[-1]:
            run_out_at_once(told, tree, hog)
        assert tree.polled == 0
        assert not told.degraded
    return float(statistics.median(ooms))


def test_65000_cgroups_in_one_monitor(hog: str, figure: dict[str, object]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (70_000, 70_000))
    put(Path("/proc/sys/fs/inotify/max_user_watches"), "70000")
    paths = to_be_made()
    made = 0
    costs = []
    for size in SIZES:
        for path in islice(paths, size - made):
            path.mkdir()
        made = size
        costs.append(among(size, hog, figure))
    for size, cost in zip(SIZES, costs, strict=True):
        figure[f"an Oom among {size}"] = f"{cost:.2f} ms ({cost / costs[0]:.2f})"
