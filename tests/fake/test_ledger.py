"""The host's count of kills against what was told: the arithmetic by brute force, the audits by a fake kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memcg_oom.audit
import memcg_oom.host
import memcg_oom.kernel_log
import memcg_oom.monitor
from memcg_oom import Degraded, Event, Monitor, OomKill, Unattributed
from memcg_oom._native import lib
from memcg_oom.audit import CHUNK, GRACE, SHARE, Audit
from memcg_oom.commit import commit
from memcg_oom.complaints import Complaints
from memcg_oom.ledger import Ledger
from tests.fake.fake_kernel import AGES, FakeKernel, brief, replace_in_lib, take, take_while
from tests.support import PATIENCE, readable


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    fake.close()


# -- the arithmetic


class World:
    """Kills in two steps, the host's counter and then the cgroup's; and all that an Audit asks of a monitor."""

    def __init__(self, cgroups: int = 3) -> None:
        self.now = 10**9
        self.host = 1000
        self.counters = [0] * cgroups
        self.seen = [0] * cgroups
        self.rising: list[int] = []  # of these cgroups the counters have yet to rise
        self.unseen = 0  # kills in cgroups that nobody watches
        self.ledger = Ledger()
        # What an Audit wants.
        self.by_key: dict[int, int] = {i: i for i in range(cgroups)}
        self.polled: dict[int, int] = {}
        self.covering: object = self
        self.is_parting = False  # here nothing parts
        self.needs_audit = False
        self.complete = True
        self.events: list[Event] = []
        self.sweeps: list[list[int]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.cost = 0  # nanoseconds for a look

    def told_as_nobodys(self, _count: int) -> list[Any]:
        """As v1 has it."""
        return []

    def begin_kill(self, cgroup: int | None) -> None:
        self.host += 1
        if cgroup is None:
            self.unseen += 1
        else:
            self.rising.append(cgroup)

    def end_kill(self, index: int = 0) -> None:
        self.counters[self.rising.pop(index)] += 1

    def end_kills(self) -> None:
        while self.rising:
            self.end_kill()

    def kill(self, cgroup: int) -> None:
        self.begin_kill(cgroup)
        self.end_kill(-1)

    def look(self, cgroup: int) -> None:
        """Tells what is new in one."""
        if (count := self.counters[cgroup] - self.seen[cgroup]) > 0:
            commit([*self.ledger.settle(count)])
            self.seen[cgroup] = self.counters[cgroup]

    def untold(self) -> int:
        """Kills in the cgroups that are watched: those that will be told."""
        return sum(self.counters) - sum(self.seen) + len(self.rising)

    def claimed(self) -> int:
        return sum(event.count for event in self.events if isinstance(event, Unattributed))

    # What an Audit wants.

    def read(self) -> int:
        host = self.host
        self.meanwhile()
        return host

    def sweep(self, watches: list[int]) -> bool:
        self.sweeps.append(watches)
        for cgroup in watches:
            self.meanwhile()
            self.now += self.cost
            self.look(cgroup)
        self.meanwhile()
        return self.complete

    def audit(self) -> bool:
        return self.complete

    def left_out(self) -> list[int]:
        return []

    def nobodys(self, _count: int) -> tuple[tuple[()], list[Any]]:
        return (), []

    def settled(self) -> list[Any]:
        return []

    def tell(self, events: list[Event]) -> list[Any]:
        self.events += events
        return []

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return 0


def auditor(world: World, monkeypatch: pytest.MonkeyPatch, *, settle: int = 100 * GRACE, period: int = 10**12) -> Audit:
    monkeypatch.setattr(memcg_oom.audit, "time", world)
    watches: Any = world
    audit = Audit(
        watches=watches,
        discovery=watches,
        complaints=Complaints(),
        ledger=world.ledger,
        victims=watches,
        settle=settle,
        period=period,
    )
    audit._counter = watches
    audit._has_log = True  # so nothing is periodic
    commit(world.ledger.open(world.host))
    return audit


def step_until_idle(audit: Audit, world: World, most: int = 1000) -> int:
    """Makes every step at its time; how many there were."""
    for steps in range(most):
        if not audit.due:
            return steps
        world.now = max(world.now, audit.due)
        audit.step(world.now)
    pytest.fail(f"an audit is due after {most} steps still")


def look_at_all_meanwhile(world: World, dice: random.Random) -> None:
    for cgroup in range(3):
        if dice.randrange(2):
            world.begin_kill(dice.choice([None, 0, 1, 2]))
        if world.rising and dice.randrange(2):
            world.end_kill(0)
        world.look(cgroup)


@pytest.mark.parametrize("seed", range(300))
def test_the_ledger_claims_what_is_missing_and_nothing_else(seed: int) -> None:
    dice = random.Random(seed)
    world = World()
    # Kills that are nobody's business: of before, some of them told.
    for _ in range(dice.randrange(5)):
        world.begin_kill(dice.choice([None, 0, 1, 2]))
    world.end_kills()
    for cgroup in range(3):
        world.look(cgroup)
    commit(world.ledger.open(world.host))
    world.unseen = 0
    for _ in range(200):
        match dice.randrange(6):
            case 0:
                world.begin_kill(dice.choice([None, 0, 1, 2]))
            case 1 if world.rising:
                world.end_kill(dice.randrange(len(world.rising)))
            case 2:
                world.look(dice.randrange(3))
            case 3:
                # What may be missing is never less than what is.
                assert world.ledger.missing(world.host) >= world.unseen
            case 4:
                # As an audit has it: the host first, then everybody; meanwhile it goes on.
                host, missing = world.host, world.unseen + world.untold()
                look_at_all_meanwhile(world, dice)
                assert world.ledger.proven(host) <= missing
            case 5 if world.unseen:
                commit(world.ledger.settle(1))
                world.unseen -= 1
    world.end_kills()
    for cgroup in range(3):
        world.look(cgroup)
    assert world.ledger.missing(world.host) == world.ledger.proven(world.host) == world.unseen


@pytest.mark.parametrize("seed", range(100))
def test_kills_under_way_when_the_ledger_begins(seed: int) -> None:
    # Told a moment later, they are in the opening balance that was read before: it has to come down.
    dice = random.Random(seed)
    world = World()
    for _ in range(dice.randrange(1, 10)):
        world.begin_kill(dice.choice([0, 1, 2]))
    for _ in range(dice.randrange(3)):
        if world.rising:
            world.end_kill()
        world.look(dice.randrange(3))
    commit(world.ledger.open(world.host))
    while world.untold():
        if world.rising and dice.randrange(2):
            world.end_kill(dice.randrange(len(world.rising)))
        world.look(dice.randrange(3))
        assert world.ledger.proven(world.host) == 0
        if dice.randrange(2):
            assert world.ledger.missing(world.host) == 0
    assert world.ledger.missing(world.host) == 0
    world.begin_kill(None)
    assert world.ledger.missing(world.host) == world.ledger.proven(world.host) == 1


# -- the audit, by itself


@pytest.mark.parametrize("seed", range(200))
def test_an_audit_claims_what_is_missing_and_nothing_else(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # No kill is so slow that its cgroup's counter rises only two settle periods after the host's.
    dice = random.Random(seed)
    world = World()
    audit = auditor(world, monkeypatch)
    kills = 60

    def something() -> None:
        nonlocal kills
        if kills and not dice.randrange(4):
            kills -= 1
            world.begin_kill(dice.choice([None, 0, 1, 2]))
            audit.call(world.now)
        if world.rising and not dice.randrange(8):
            world.end_kill(dice.randrange(len(world.rising)))

    moments = 0
    while kills or audit.due:
        moments += 1
        assert moments < 5000, "an audit is due for ever"
        something()
        if not dice.randrange(8):
            world.look(dice.randrange(3))
        if audit.due and not dice.randrange(3):
            world.now = max(world.now, audit.due)
            if audit._rest is None:
                world.end_kills()
            world.meanwhile = something
            audit.step(world.now)
            world.meanwhile = lambda: None
            assert world.claimed() <= world.unseen, "a kill was claimed that will be told"
    world.end_kills()
    audit.call(world.now)
    step_until_idle(audit, world)
    assert world.untold() == 0
    assert world.claimed() == world.unseen


def test_unattributed_takes_two_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    audit = auditor(world, monkeypatch)
    world.begin_kill(None)
    world.begin_kill(None)
    world.kill(1)
    audit.call(world.now)
    assert audit.due == world.now + GRACE
    world.now = audit.due
    audit.step(world.now)
    assert (world.sweeps, world.claimed(), world.untold()) == ([[0, 1, 2]], 0, 0)
    assert audit.due == world.now + audit._settle
    assert step_until_idle(audit, world) == 1
    assert (world.sweeps, brief(world.events)) == ([[0, 1, 2]] * 2, [("Unattributed", 2)])
    audit.call(world.now)
    assert step_until_idle(audit, world) == 1
    assert len(world.sweeps) == 2, "what was claimed is looked for again"


def test_a_kill_counted_late_is_not_unattributed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    audit = auditor(world, monkeypatch)
    world.begin_kill(0)
    audit.call(world.now)
    world.now = audit.due
    audit.step(world.now)
    world.end_kill()
    step_until_idle(audit, world)
    assert (world.events, world.untold()) == ([], 0)


def test_one_kill_after_another_counted_late(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two sweeps find one kill missing each, but not the same one.
    world = World()
    audit = auditor(world, monkeypatch)
    world.begin_kill(0)
    audit.call(world.now)
    world.now = audit.due
    audit.step(world.now)
    world.end_kill()
    world.begin_kill(1)
    world.now = audit.due
    audit.step(world.now)
    assert world.events == []
    world.end_kill()
    step_until_idle(audit, world)
    assert (world.events, world.untold()) == ([], 0)


def test_nothing_is_unattributed_while_something_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    audit = auditor(world, monkeypatch)
    world.complete = False
    world.begin_kill(None)
    audit.call(world.now)
    for _ in range(10):
        world.now = audit.due
        audit.step(world.now)
    assert world.events == []
    assert len(world.sweeps) == 10
    world.complete = True
    step_until_idle(audit, world)
    assert (len(world.sweeps), brief(world.events)) == (12, [("Unattributed", 1)])


def test_one_unreadable_chunk_makes_the_sweep_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2 * CHUNK + 1)
    audit = auditor(world, monkeypatch)
    world.begin_kill(None)
    audit.call(world.now)
    for sweep in range(4):
        for chunk in range(3):
            world.complete = chunk != sweep
            world.now = audit.due
            audit.step(world.now)
        # The first three lacked a chunk each; the fourth is the first whole one.
        assert world.events == [], sweep
    world.complete = True
    step_until_idle(audit, world)
    assert brief(world.events) == [("Unattributed", 1)]


def test_a_sweep_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2 * CHUNK + 5)
    audit = auditor(world, monkeypatch)
    world.kill(0)
    audit.call(world.now)
    world.now = audit.due
    for chunk in (range(CHUNK), range(CHUNK, 2 * CHUNK), range(2 * CHUNK, 2 * CHUNK + 5)):
        assert 0 < audit.due <= world.now
        audit.step(world.now)
        assert world.sweeps[-1] == list(chunk)
    assert audit.due == 0


def test_a_call_during_a_sweep_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(CHUNK + 1)
    audit = auditor(world, monkeypatch)
    world.kill(0)
    audit.call(world.now)
    world.now = audit.due
    audit.step(world.now)
    world.kill(1)  # in the chunk that was looked at
    audit.call(world.now)
    audit.step(world.now)
    assert world.untold() == 1
    assert audit.due
    step_until_idle(audit, world)
    assert world.untold() == 0


def test_a_call_during_a_sweep_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(CHUNK + 1)
    audit = auditor(world, monkeypatch)
    world.kill(0)
    audit.call(world.now)
    world.now = audit.due
    audit.step(world.now)
    audit.call(world.now)  # there was nothing to it
    assert step_until_idle(audit, world) <= 3


def test_sweeps_take_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(10)
    world.cost = GRACE
    audit = auditor(world, monkeypatch)
    began, swept = world.now, 0
    for _ in range(50):
        world.kill(3)
        audit.call(world.now)
        while audit.due:
            before = world.now = max(world.now, audit.due)
            audit.step(world.now)
            swept += world.now - before
    assert len(world.sweeps) >= 50
    assert swept <= (world.now - began + (SHARE - 1) * 10 * GRACE) / SHARE
    assert world.untold() == 0


def test_the_twentieth_does_not_keep_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    audit = auditor(world, monkeypatch)
    for _ in range(2):
        world.kill(0)
        audit.call(world.now)
        assert audit.due == world.now + GRACE
        step_until_idle(audit, world)


def test_without_a_reason_nobody_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    audit = auditor(world, monkeypatch)
    world.kill(0)
    world.look(0)
    audit.call(world.now)
    assert step_until_idle(audit, world) == 1
    assert world.sweeps == []


def test_the_polled_are_swept_with_each_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    audit = auditor(world, monkeypatch, period=1000 * GRACE)
    world.polled = {2: 2}
    assert audit.next_due() == world.now + audit._period
    for _ in range(3):
        world.now = audit.due
        audit.step(world.now)
        assert audit.due == world.now + audit._period
    assert world.sweeps == [[2]] * 3
    world.polled = {}
    assert step_until_idle(audit, world) == 1


@pytest.mark.parametrize("reason", ["", "polled", "undiscovered", "no log"])
def test_periodic_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    world = World()
    audit = auditor(world, monkeypatch)
    if reason == "polled":
        world.polled = {0: 0}
    elif reason == "undiscovered":
        world.needs_audit = True
    elif reason == "no log":
        audit._has_log = False
    assert audit.next_due() == (world.now + audit._period if reason else 0)
    off = auditor(world, monkeypatch, period=0)
    assert off.next_due() == 0
    off.call(world.now)
    assert off.next_due() == 0


# -- the audit, in a monitor


def count_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The timeout of each memcg_wait() from here on."""
    waits: list[int] = []

    def counted(epoll_fd: int, timeout: int, batch: Any) -> int:
        waits.append(timeout)
        return int(lib.memcg_wait(epoll_fd, timeout, batch))

    replace_in_lib(monkeypatch, memcg_wait=counted)
    return waits


def test_a_kill_without_a_signal(kernel: FakeKernel) -> None:
    one, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.01) as monitor:
        watches = monitor.watch_many([one.path, other.path])
        assert take_while(monitor, lambda: any(watch._trouble.round for watch in watches)) == []
        other.kill(3)
        assert not readable(monitor.fileno())
        kernel.log()
        assert readable(monitor.fileno())
        (event,) = take(monitor, 1)
        assert isinstance(event, OomKill)
        assert (event.watch, event.count) == (watches[1], 3)
        take_while(monitor, lambda: monitor._audit.due)
        assert not readable(monitor.fileno())


def test_a_log_that_speaks_of_other_things(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        take_while(monitor, lambda: watch._trouble.round)
        kernel.log("6,1,1,-;eth0: link up\n")
        assert readable(monitor.fileno())
        assert monitor.wait(0) == []
        assert not readable(monitor.fileno())
        assert monitor._audit.due == 0


def test_an_overrun_log_is_a_reason(kernel: FakeKernel) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        take_while(monitor, lambda: watch._trouble.round)
        cgroup.kill()
        kernel.overrun_log()
        degraded, kill = take(monitor, 2)
        assert isinstance(degraded, Degraded)
        assert "log_buf_len" in degraded.remedy
        assert brief([kill]) == [("OomKill", 1)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_an_exception_takes_from_the_log(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.0) as monitor:
        watch = monitor.watch(cgroup.path)
        take_while(monitor, lambda: watch._trouble.round)
        cgroup.kill()
        kernel.log()
        log: Any = memcg_oom.kernel_log.__dict__["os"]

        def read(fd: int, _size: int) -> bytes:
            os.read(fd, 1)
            kernel.records.popleft()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(log, "read", read, raising=False)
            with pytest.raises(error):
                monitor.wait(PATIENCE)
        kernel.log("6,1,1,-;eth0: link up\n")
        assert brief(take(monitor, 1)) == [("OomKill", 1)]


def test_a_log_that_may_not_be_read(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memcg_oom.kernel_log, "KMSG", str(tmp_path / "none"))
    one, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.0, audit=0.02) as monitor:
        monitor.watch(one.path)
        monitor.watch(other.path)
        other.kill()
        (degraded, kill) = take(monitor, 2)
        assert isinstance(degraded, Degraded)
        assert str(tmp_path / "none") in degraded.what
        assert "0.02 s" in degraded.cost
        assert "CAP_SYSLOG" in degraded.remedy
        assert brief([kill]) == [("OomKill", 1)]
        one.kill()
        assert brief(take(monitor, 1)) == [("OomKill", 1)]


def test_no_audits(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = kernel.make()
    opened: list[str] = []
    host: Any = memcg_oom.host.__dict__["os"]

    def noted(path: str, flags: int) -> int:
        opened.append(path)
        return os.open(path, flags)

    monkeypatch.setattr(host, "open", noted, raising=False)
    with Monitor(settle=0.0, audit=None, victims=False) as monitor:
        watch = monitor.watch(cgroup.path)
        assert opened == [memcg_oom.host.VMSTAT]
        take_while(monitor, lambda: watch._trouble.round)
        cgroup.kill()
        kernel.log()
        cgroup.oom()
        assert brief(take(monitor, 2)) == [("Oom", 1), ("OomKill", 1)]
        take_while(monitor, lambda: watch._trouble.round)
        assert (monitor._audit.due, monitor._armed) == (0, 0)


@pytest.mark.parametrize("audit", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_periods_that_are_none(audit: float) -> None:
    with pytest.raises(ValueError, match="audit must be"):
        Monitor(audit=audit)


def test_a_host_that_counts_no_kills(kernel: FakeKernel) -> None:
    Path(memcg_oom.host.VMSTAT).write_text("nr_free_pages 5\n")
    cgroup = kernel.make()
    with Monitor(settle=0.05) as monitor:
        tree = kernel.tree(monitor)
        Path(memcg_oom.host.VMSTAT).write_text("nr_free_pages 5\n")
        cgroup.oom()
        cgroup.count_kill()
        kernel.make_root().count_kill()
        events = take(monitor, 2)
        assert brief(events)[:2] == [("Oom", 1), ("OomKill", 1)]
        take_while(monitor, lambda: any(watch._trouble.round for watch in tree), events)
        assert not [event for event in events if isinstance(event, Unattributed)]


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EACCES, errno.EMFILE])
def test_a_host_whose_counter_cannot_be_opened(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    cgroup = kernel.make()
    host: Any = memcg_oom.host.__dict__["os"]

    def refuse(path: str, flags: int) -> int:
        if path == memcg_oom.host.VMSTAT:
            raise OSError(error, os.strerror(error), path)
        return os.open(path, flags)

    with Monitor(settle=AGES) as monitor:
        fds = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(host, "open", refuse, raising=False)
            with pytest.raises(OSError, match="vmstat") as caught:
                monitor.watch(cgroup.path)
        assert caught.value.errno == error
        assert len(os.listdir("/proc/self/fd")) == fds
        (cgroup.path / "cgroup.event_control").write_text("")
        monitor.watch(cgroup.path)
        cgroup.oom()
        assert brief(monitor.wait(PATIENCE)) == [("Oom", 1)]


def test_two_watches_of_one_cgroup_tell_one_kill(kernel: FakeKernel) -> None:
    # Were it taken for two, the kill that nobody signalled would seem to be told.
    twice, other = kernel.make("a"), kernel.make("b")
    with Monitor(settle=0.0) as monitor:
        watches = monitor.watch_many([twice.path, twice.path, other.path])
        take_while(monitor, lambda: any(watch._trouble.round for watch in watches))
        twice.kill()
        other.kill()
        assert monitor._watches.sweep(list(watches[:2]))
        kernel.log()
        events = take(monitor, 3)
        assert [brief(events, watch) for watch in watches] == [[("OomKill", 1)]] * 3


# -- what audits must not do


def test_whoever_polls_gets_everything(kernel: FakeKernel) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(2 * CHUNK + 100)]
    with Monitor(settle=0.0, linger=0.0, audit=0.02) as monitor:
        tree = kernel.tree(monitor)
        events: list[Event] = []
        poll = select.poll()
        poll.register(monitor.fileno(), select.POLLIN)

        def poll_until(count: int) -> None:
            deadline = time.monotonic() + PATIENCE
            while len(events) < count:
                assert poll.poll(PATIENCE * 1000), "nothing keeps the descriptor readable"
                assert time.monotonic() < deadline
                events.extend(monitor.wait(0))

        for cgroup in cgroups[::7]:
            cgroup.kill()
        kernel.log()
        poll_until(len(cgroups[::7]))
        assert sum(event.count for event in events if isinstance(event, OomKill)) == len(cgroups[::7])
        events.clear()
        kernel.make("late").kill()
        poll_until(2)
        assert brief(events) == [("Created", 0), ("OomKill", 1)]
        assert tree.kills == len(cgroups[::7]) + 1


def test_asyncio_gets_everything(kernel: FakeKernel) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(CHUNK + 100)]

    async def count(monitor: Monitor, kills: int) -> None:
        async for event in monitor:
            assert isinstance(event, OomKill)
            kills -= event.count
            if not kills:
                return

    with Monitor(settle=0.0) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        take_while(monitor, lambda: any(watch._trouble.round for watch in watches))
        for _ in range(2):
            for cgroup in cgroups:
                cgroup.kill()
            kernel.log()
            asyncio.run(asyncio.wait_for(count(monitor, len(cgroups)), PATIENCE))


def test_signals_go_before_the_rest_of_a_sweep(kernel: FakeKernel) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(3 * CHUNK)]
    with Monitor(settle=0.0) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        take_while(monitor, lambda: any(watch._trouble.round for watch in watches))
        cgroups[-1].kill()
        kernel.log()
        take_while(monitor, lambda: monitor._audit._rest is None, pause=0)
        cgroups[CHUNK].oom()
        (event,) = take(monitor, 1)
        assert brief([event], watches[CHUNK]) == [("Oom", 1)]
        assert brief(take(monitor, 1), watches[-1]) == [("OomKill", 1)]


@pytest.mark.parametrize("audit", [0.02, None])
def test_nobody_wakes_when_nothing_happens(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, audit: float | None
) -> None:
    cgroup = kernel.make()
    with Monitor(settle=0.0, audit=audit) as monitor:
        watch = monitor.watch(cgroup.path)
        cgroup.oom()
        cgroup.kill()
        kernel.log()
        take_while(monitor, lambda: not watch.kills or watch._trouble.round or monitor._audit.due)
        waits = count_waits(monkeypatch)
        assert monitor.wait(0.3) == []
        assert len(waits) == 1


def test_a_call_during_a_sweep_leaves_no_timer(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = [kernel.make(f"c{i}") for i in range(2 * CHUNK + 1)]
    with Monitor(settle=0.0) as monitor:
        watches = monitor.watch_many([cgroup.path for cgroup in cgroups])
        take_while(monitor, lambda: any(watch._trouble.round for watch in watches))
        cgroups[-1].kill()
        kernel.log()
        take_while(monitor, lambda: monitor._audit._rest is None, pause=0)
        kernel.log()  # heard between the second chunk and the third
        assert brief(take(monitor, 1)) == [("OomKill", 1)]
        waits = count_waits(monkeypatch)
        assert monitor.wait(0.5) == []
        assert len(waits) <= 3
