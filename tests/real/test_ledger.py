"""Kills that no signal tells of, and kills that nobody can be told to have had: the host's count says so."""

from __future__ import annotations

import itertools
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import memcg_oom.kernel_log
from memcg_oom import Degraded, Monitor, TreeWatch, Unattributed, Watch
from memcg_oom.mounts import memory_mount
from memcg_oom.v1 import V1Watches
from tests.support import (
    Independent,
    Ledger,
    control,
    eventually,
    kills_of,
    limit_with_room,
    make,
    put,
    remove,
    run_hog,
    start_hog,
    take_until,
    take_until_quiet,
)

CROWD = 2000  # cgroups that nothing happens to
KILLS = 200  # of a noisy neighbour

both = pytest.mark.parametrize("source", ["fanotify", "inotify"])


def host_root() -> Path:
    mount = memory_mount()
    assert mount is not None
    return Path(mount.point)


def host_kills() -> int:
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(dict(lines)["oom_kill"])


def unattributed(ledger: Ledger) -> int:
    return sum(event.count for event in ledger.other if isinstance(event, Unattributed))


def of(tree: TreeWatch, cgroup: Path) -> Watch:
    watch = tree.member(cgroup.stat().st_ino)
    assert watch is not None, f"{cgroup} is not watched"
    return watch


def kill_unseen(hog: str, cgroup: Path) -> None:
    """A cgroup that is made, killed in and removed."""
    make(cgroup, "1M")
    run_hog(hog, cgroup)
    remove(cgroup)


class Host:
    """All kills of this host, against what a monitor that covers it has told of them.

    Somebody else may be killing on this host meanwhile, and is told of as well. So what the host has counted is known
    within two bounds, and what was told has to be between them, sooner or later from below and always from above.

    Attributes:
        ledger: what was told.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.ledger = Ledger()
        self._monitor = monitor
        self._least = host_kills()
        self._most = self._least

    def begins(self) -> None:
        """From here on everything is covered."""
        self._most = host_kills()

    @property
    def told(self) -> int:
        """Every kill once, however many watches have told of it."""
        kills: dict[int, int] = {}
        for watch, count in self.ledger.kills.items():
            cgroup = watch._place.directory_id
            kills[cgroup] = max(count, kills.get(cgroup, 0))
        return sum(kills.values()) + unattributed(self.ledger)

    def foreign(self, own: int) -> int:
        """How many kills at the most were somebody else's: usually none."""
        return host_kills() - self._least - own

    def balance(self) -> Ledger:
        """Takes events until every kill up to now is told of, and then until nothing comes."""
        goal = host_kills() - self._most
        take_until(self._monitor, lambda _: self.told >= goal, self.ledger)
        deadline = time.monotonic() + 2.5  # longer than two sweeps, a settle period apart, and than what comes late
        while time.monotonic() < deadline:
            self.ledger.add(self._monitor.wait(0.5))
            assert self.told <= host_kills() - self._least, "more kills than there were"
        return self.ledger


@contextmanager
def covered(*, trees: int = 1) -> Iterator[tuple[Monitor, Host, list[TreeWatch]]]:
    with Monitor() as monitor:
        host = Host(monitor)
        found = [monitor.watch_tree(host_root()) for _ in range(trees)]
        host.begins()
        yield monitor, host, found


# -- kills without a signal


class Family:
    """A parent with a limit, one child that hangs in its own, and one that is killed in.

    The kernel marks the hanging one, and by that all above it, as out of memory already, and signals nobody when one of
    those runs out as well (mem_cgroup_oom_trylock()). It kills all the same.
    """

    def __init__(self, memcg1: Path, hog: str) -> None:
        self.hog = hog
        self.parent = make(memcg1 / "parent", "8M")
        self.hanging = make(self.parent / "hanging", "1M")
        self.victim = make(self.parent / "victim")
        self.pid = 0
        put(self.hanging / "memory.oom_control", "1")

    def hang(self) -> None:
        """A task of 1 MiB, which is the smaller one when the parent runs out, and so lives on."""
        self.pid = start_hog(self.hog, self.hanging)
        eventually(lambda: control(self.hanging, "under_oom"))

    def kill(self) -> None:
        independent = Independent(self.victim)
        try:
            run_hog(self.hog, self.victim, 32 << 20)
            assert independent.read() == 0, "this kernel signals it"
        finally:
            independent.close()
        assert kills_of(self.victim) == 1

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)


@pytest.fixture
def family(memcg1: Path, hog: str) -> Iterator[Family]:
    made = Family(memcg1, hog)
    yield made
    made.end()


def quiet(monitor: Monitor) -> None:
    """Takes what has come so far, and the one look that a new watch gets, and the hanging task's signals."""
    take_until_quiet(monitor)


def test_a_kill_that_the_kernel_does_not_signal(family: Family) -> None:
    with Monitor(audit=3600.0) as monitor:  # no timer: the log alone
        watches = monitor.watch_many([family.parent, family.hanging, family.victim])
        family.hang()
        quiet(monitor)
        family.kill()
        ledger = take_until(monitor, lambda ledger: ledger.kills)
        take_until_quiet(monitor, ledger)
        # The hanging one may try again, in vain, when memory comes free above it.
        assert set(ledger.by_watch) <= {watches[1], watches[2]}
        assert ledger.kills == {watches[2]: 1}
        assert not ledger.ooms[watches[2]]
        assert not ledger.other


def test_the_same_where_the_log_cannot_be_read(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg_oom.kernel_log, "KMSG", "/nonexistent/kmsg")
    with Monitor(audit=0.1) as monitor:
        watches = monitor.watch_many([family.parent, family.hanging, family.victim])
        first = take_until(monitor, lambda ledger: ledger.other)
        family.hang()
        take_until_quiet(monitor, first)
        [degraded] = first.other
        assert isinstance(degraded, Degraded)
        assert degraded.what.startswith("/nonexistent/kmsg cannot be read")
        assert "0.1 s" in degraded.cost
        assert "CAP_SYSLOG" in degraded.remedy
        family.kill()
        ledger = take_until(monitor, lambda ledger: ledger.kills)
        take_until_quiet(monitor, ledger)
        # The hanging one may try again, in vain, when memory comes free above it.
        assert set(ledger.by_watch) <= {watches[1], watches[2]}
        assert ledger.kills == {watches[2]: 1}
        assert not ledger.ooms[watches[2]]
        assert not ledger.other


def test_without_audits_it_waits_for_another_look(family: Family) -> None:
    with Monitor(audit=None, victims=False) as monitor:
        watches = monitor.watch_many([family.parent, family.hanging, family.victim])
        family.hang()
        quiet(monitor)
        family.kill()
        assert not take_until_quiet(monitor).kills, "told, and by nothing that should look"
        put(family.victim / "memory.limit_in_bytes", "1M")
        run_hog(family.hog, family.victim)
        ledger = take_until(monitor, lambda ledger: ledger.kills[watches[2]] >= 2)
        take_until_quiet(monitor, ledger)
        assert ledger.kills == {watches[2]: 2}
        assert ledger.ooms[watches[2]] > 0
        assert not ledger.other


def test_kills_told_twice_do_not_hide_one_that_was_not_signalled(family: Family, memcg1: Path, hog: str) -> None:
    """Two watches of one cgroup both tell its kill: for the ledger it is one kill."""
    twice = make(memcg1 / "twice", "1M")
    with Monitor(audit=3600.0) as monitor:
        watches = monitor.watch_many([twice, twice, family.hanging, family.victim])
        family.hang()
        quiet(monitor)
        family.kill()
        run_hog(hog, twice)
        ledger = take_until(monitor, lambda ledger: ledger.kills[watches[0]] and ledger.kills[watches[1]])
        take_until_quiet(monitor, ledger)
        assert ledger.kills == {watches[0]: 1, watches[1]: 1, watches[3]: 1}


# -- kills that are nobody's


class Sweeps:
    """How often, when and how long counters were read out of turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int, int]] = []  # when it began and ended, in nanoseconds; how many it looked at
        original = V1Watches.sweep

        def sweep(watches: V1Watches, chosen: list[Watch]) -> bool:
            before = time.monotonic_ns()
            complete = original(watches, chosen)
            if chosen:
                self.calls.append((before, time.monotonic_ns(), len(chosen)))
            return complete

        monkeypatch.setattr(V1Watches, "sweep", sweep)


def test_kills_elsewhere_are_no_event(memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree_root = make(memcg1 / "tree")
    make(tree_root / "quiet")
    make(memcg1 / "elsewhere", "1M")
    with Monitor() as monitor:
        monitor.watch_tree(tree_root)
        quiet(monitor)
        sweeps = Sweeps(monkeypatch)
        before = host_kills()
        run_hog(hog, memcg1 / "elsewhere")
        kill_unseen(hog, memcg1 / "unseen")
        assert monitor.wait(3) == []
        # Each kill makes for two sweeps at the most, somebody else's too.
        assert 1 <= len(sweeps.calls) <= 2 * (host_kills() - before)


def test_a_noisy_neighbour(memcg1: Path, hog: str, monkeypatch: pytest.MonkeyPatch, figure: dict[str, object]) -> None:
    """The sweeps that somebody else's kills bring about take a twentieth of the time and no more."""
    crowd = make(memcg1 / "crowd")
    for number in range(CROWD):
        make(crowd / str(number))
    noisy = make(memcg1 / "noisy", "1M")
    with Monitor() as monitor:
        monitor.watch_tree(crowd)
        quiet(monitor)
        sweeps = Sweeps(monkeypatch)

        def kill() -> None:
            for _ in range(KILLS):
                run_hog(hog, noisy)

        killer = threading.Thread(target=kill)
        before, start = host_kills(), time.monotonic_ns()
        killer.start()
        while killer.is_alive():
            assert monitor.wait(0.1) == []
        killer.join()
        assert monitor.wait(2) == []
        elapsed, killed = time.monotonic_ns() - start, host_kills() - before
        assert killed >= KILLS
        # A sweep is made in pieces: (when it began and ended, what it took).
        whole: list[tuple[int, int, int]] = []
        pieces: list[tuple[int, int, int]] = []
        for piece in sweeps.calls:
            pieces.append(piece)
            if (looked := sum(count for _, _, count in pieces)) > CROWD:
                assert looked == CROWD + 1, "the crowd and what it is in, each once"
                whole.append((pieces[0][0], piece[1], sum(ended - begun for begun, ended, _ in pieces)))
                pieces = []
        figure["kills"] = killed
        figure["sweeps"] = len(whole)
        figure["share"] = f"{sum(cost for _, _, cost in whole) / elapsed:.1%}"
        figure["longest"] = f"{max(cost for _, _, cost in whole) / 1e6:.1f} ms"
        assert whole
        # Not a matter of how fast the machine is: the pause is measured by what the sweep took.
        for (_, ended, cost), (begun, _, _) in itertools.pairwise(whole):
            assert begun - ended >= 19 * cost


# -- one kill, several watches


@both
def test_several_watches_of_one_cgroup_and_one_kill(memcg1: Path, hog: str, source: str) -> None:
    cgroup = make(memcg1 / "popular", "1M")
    with covered() as (monitor, host, [tree]):
        watches = monitor.watch_many([cgroup, cgroup])
        trees = [monitor.watch_tree(cgroup, source=source), monitor.watch_tree(memcg1, source=source)]
        for kills in (1, 2):
            run_hog(hog, cgroup)
            ledger = host.balance()
            for watch in [*watches, *(of(one, cgroup) for one in [tree, *trees])]:
                assert ledger.kills[watch] == watch.kills == kills
        # Each of them must have counted once: what came unseen afterwards would go under in what was counted too often.
        assert unattributed(ledger) <= host.foreign(2)
        run_hog(hog, cgroup)
        kill_unseen(hog, cgroup / "unseen")
        assert 1 <= unattributed(host.balance()) <= 1 + host.foreign(4)


def test_kills_while_the_host_is_scanned(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    """Before the tree, after it, or on the way: nothing is told twice, and from the end of the scan on everything."""
    for number in range(CROWD // 4):
        make(memcg1 / str(number))
    old = make(memcg1 / "old", "1M")
    stop = threading.Event()
    new: list[int] = []

    def kill() -> None:
        while not stop.is_set():
            run_hog(hog, old)
            kill_unseen(hog, memcg1 / f"new{len(new)}")
            new.append(1)

    def told_of(ledger: Ledger) -> int:
        return sum(count for watch, count in ledger.kills.items() if watch.cgroup == str(old))

    counts = []
    for _ in range(3):
        stop.clear()
        before = kills_of(old)
        killer = threading.Thread(target=kill)
        killer.start()
        eventually(lambda before=before: kills_of(old) > before)  # type: ignore[misc]
        with covered() as (_, host, _):
            after = kills_of(old)
            stop.set()
            killer.join()
            ledger = host.balance()
            at_most = kills_of(old) - before
            assert kills_of(old) - after <= told_of(ledger) <= at_most
            counts.append((told_of(ledger), unattributed(ledger)))
    figure["told, unattributed"] = counts


# -- unseen


@both
def test_made_killed_in_and_removed_before_anybody_looks(memcg1: Path, hog: str, source: str) -> None:
    with Monitor() as monitor:
        host = Host(monitor)
        monitor.watch_tree(host_root(), source=source)
        host.begins()
        kill_unseen(hog, memcg1 / "unseen")
        ledger = host.balance()
        assert not [watch for watch in ledger.by_watch if watch.cgroup == str(memcg1 / "unseen")]
        assert 1 <= unattributed(ledger) <= 1 + host.foreign(1)
        # Once: the next kill makes for the next audit.
        seen = make(memcg1 / "seen", "1M")
        take_until(monitor, lambda ledger: any(watch.cgroup == str(seen) for watch in ledger.by_watch), ledger)
        for _ in range(3):
            run_hog(hog, seen)
            host.balance()
        [watch] = [watch for watch in ledger.by_watch if watch.cgroup == str(seen)]
        assert ledger.kills[watch] == 3
        assert 1 <= unattributed(ledger) <= 1 + host.foreign(4)


def test_a_removal_that_beats_the_look(memcg1: Path, hog: str) -> None:
    with covered() as (monitor, host, [tree]):
        cgroup = make(memcg1 / "short", "1M")
        take_until(monitor, lambda ledger: any(one.cgroup == str(cgroup) for one in ledger.by_watch), host.ledger)
        watch = of(tree, cgroup)
        independent = Independent(cgroup)
        try:
            run_hog(hog, cgroup)  # nobody is in wait()
            ooms = independent.read()
        finally:
            independent.close()
        remove(cgroup)
        ledger = host.balance()
        # Whether the log names it depends on how many others died in the last five seconds.
        named = ledger.kills[watch]
        kinds = [type(event).__name__ for event in ledger.by_watch[watch]]
        assert kinds == ["Created", "Oom", *["OomKill"] * named, "Removed"]
        assert ledger.ooms[watch] == ooms
        assert ledger.unresolved[watch] == ooms - named
        assert named <= 1 <= named + unattributed(ledger) <= 1 + host.foreign(1)


def test_polled_cgroups(memcg1: Path, hog: str) -> None:
    """With no descriptor left for it, a cgroup is followed by its counter."""
    cgroups = [make(memcg1 / str(number), "1M") for number in range(40)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Monitor() as monitor:
        monitor.watch(memcg1)  # opens all that is opened once
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with_room(20), hard))
        try:
            tree = monitor.watch_tree(memcg1)
            polled = [watch for watch in tree if watch.polled]
            assert len(polled) == tree.polled
            assert 10 < len(polled) < len(cgroups), "the limit is not where it was meant to be"
            first = take_until(monitor, lambda ledger: ledger.other)
            [degraded] = first.other
            assert isinstance(degraded, Degraded)
            assert "RLIMIT_NOFILE" in degraded.remedy
            take_until_quiet(monitor)
            for number in range(3):
                run_hog(hog, Path(polled[number].cgroup))
            ledger = take_until(monitor, lambda ledger: ledger.kills.total() >= 3)
            remove(Path(polled[0].cgroup))
            take_until(monitor, lambda ledger: ledger.removals[polled[0]], ledger)
            take_until_quiet(monitor, ledger)
            assert ledger.kills == dict.fromkeys(polled[:3], 1)
            assert not ledger.ooms
            assert ledger.removals == {polled[0]: 1}
            assert not ledger.other
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- who keeps the ledger


def test_another_tree_takes_over(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "cgroup", "1M")
    with covered(trees=2) as (monitor, before, [first, second]):
        for _ in range(3):
            run_hog(hog, cgroup)
        ledger = before.balance()
        assert ledger.kills[of(first, cgroup)] == ledger.kills[of(second, cgroup)] == 3
        first.close()

        after = Host(monitor)
        run_hog(hog, cgroup)
        for number in range(3):
            kill_unseen(hog, memcg1 / f"unseen{number}")
        ledger = after.balance()
        assert ledger.kills[of(second, cgroup)] == 1
        assert 3 <= unattributed(ledger) <= 3 + after.foreign(4)
        second.close()

        kill_unseen(hog, memcg1 / "again")
        assert monitor.wait(2) == [], "no tree covers the host any more"
