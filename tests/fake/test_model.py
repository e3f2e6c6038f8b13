"""A model of what a kernel may do, in any order, and what a monitor must make of it.

Hypothesis makes up the orders: cgroups come, are renamed, run out of memory, lose tasks and go, while watches and trees
begin and end, descriptors run out, looks fail, exceptions strike, and somebody waits now and then. The model knows what
has really happened, so it knows what may be told at any moment, and what must have been told in the end.

There is no real time in it. A clock that only the model moves stands in for the clock of the package, and its timer
only says when it would have gone off. So a failure is the same on every machine.

MEMCG_OOM_EXAMPLES is how many orders are tried; with it they are other ones each time, which --hypothesis-seed repeats.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import memcg_oom.audit
import memcg_oom.complaints
import memcg_oom.kernel_log
import memcg_oom.monitor
import memcg_oom.outbox
import memcg_oom.registration
import memcg_oom.stalls
import memcg_oom.v1
import memcg_oom.victims
from memcg_oom import (
    CgroupEvent,
    Created,
    Degraded,
    Event,
    Monitor,
    Oom,
    OomKill,
    Removed,
    TreeWatch,
    Unattributed,
    Watch,
)
from memcg_oom._native import ffi, lib
from tests.conftest import open_fds
from tests.fake.fake_kernel import FakeCgroup, FakeKernel, killed, replace_in_lib, summary
from tests.fake.test_faults import Strike

MILLISECOND = 1_000_000
SETTLE, LINGER = 500 * MILLISECOND, 250 * MILLISECOND

# How long the kernel takes at the most: from an OOM's signal to the end of what comes of it, and from a removal to its
# own signal. The first is below a settle period, the second beyond a linger: then what it tells of comes late.
KILLS_WITHIN = 300 * MILLISECOND
SIGNALS_REMOVAL_WITHIN = 1_500 * MILLISECOND

# An exception may strike what was just opened; it is closed all the same.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed scandir iterator", "ignore:unclosed file")

PIDS = 10_000_000  # above the highest that there can be: nobody has these
MODULES = ("audit", "complaints", "monitor", "outbox", "registration", "stalls", "v1", "victims")
NAMES = ("a", "b", "c")
MOST = 6  # cgroups at once

EXAMPLES = os.environ.get("MEMCG_OOM_EXAMPLES")

WHICH = st.integers(0, 7)
FEW = st.integers(1, 3)
PERIODS = st.sampled_from([0, 1, 20, 60, 240, 260, 490, 510, 1100, 2500])  # milliseconds


class Clock:
    """The module time, as far as the package needs it: it stands still until the model moves it."""

    def __init__(self) -> None:
        self.now = 10**15

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1e9

    def time(self) -> float:
        return self.now / 1e9


def eventfd_id(fd: int) -> bytes:
    """The same for all descriptors of one eventfd."""
    return Path(f"/proc/self/fdinfo/{fd}").read_bytes().partition(b"eventfd-id:")[2].split()[0]


class NobodyWakesIt(AssertionError):
    """A wait without an end began, and neither a signal nor the timer would ever have ended it."""


@dataclass(eq=False)
class Kill:
    """One kill, of which the steps come in their order, between those of others.

    Attributes:
        cgroup: where.
        pid: who.
        by: when all of it is done, at the latest.
        steps: those that are left.
        signals: of its cgroup, the one that announced it included; 0: nothing did.
        counted: whether the cgroup's counter has moved.
    """

    cgroup: Cgroup
    pid: int
    by: int
    steps: list[str]
    signals: int
    counted: bool = False

    @property
    def began(self) -> bool:
        """Whether the host has counted it."""
        return "host" not in self.steps


@dataclass(eq=False)
class Cgroup:
    """What has really happened to one.

    Attributes:
        fake: the files.
        directory_id: its id.
        signals: OOMs that were signalled to it, whoever was listening.
        kills: all kills in it.
        paths: where it ever was.
        removed_at: when it was removed.
        removal_by: when that is signalled at the latest.
    """

    fake: FakeCgroup
    directory_id: int
    signals: int = 0
    kills: list[Kill] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    removed_at: int = 0
    removal_by: int = 0

    def began(self) -> int:
        return sum(kill.began for kill in self.kills)


@dataclass(eq=False)
class Told:
    """What was told of one watch, and from where on it should be.

    Attributes:
        cgroup: of which.
        signals: its signals when the watch began.
        before: its kills that had been counted then.
        under_way: how many there were beside these: nobody signals them to this watch.
        ooms, kills, victims, removed, unresolved: what was told.
        late: OOMs that were told after the removal; what became of them is unresolved, too.
        calm: its signals when it was last known to have settled.
        events: how many there were.
    """

    cgroup: Cgroup
    signals: int
    before: frozenset[Kill]
    under_way: int
    ooms: int = 0
    kills: int = 0
    victims: set[int] = field(default_factory=set)
    removed: bool = False
    unresolved: int = 0
    late: int = 0
    calm: int = 0
    events: int = 0


class Machine(RuleBasedStateMachine):
    """One host, one monitor.

    A precondition asks for nothing that the monitor has a say in, nor the clock, which its waits move: hypothesis wants
    the same rules each time, and where Ctrl-C strikes depends on the order in which the file system lists its entries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fds = open_fds()
        self.folder = Path(tempfile.mkdtemp(prefix="memcg_oom_model_"))
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.armed = 0
        self.kernel = FakeKernel(self.folder, self.patch)
        self.root = self.note(self.kernel.make_root())
        self.cgroups: list[Cgroup] = []  # that there are
        self.gone: list[Cgroup] = []  # whose removal was not signalled yet
        self.by_id: dict[int, Cgroup] = {self.root.directory_id: self.root}
        self.under_way: list[Kill] = []
        self.pid = PIDS
        self.eventfds: dict[int, int] = {}  # the signals of a cgroup when one was registered
        self.told: dict[Watch, Told] = {}
        self.trees: list[TreeWatch] = []
        self.tree_of: dict[Watch, TreeWatch] = {}
        self.closed: list[Watch] = []
        self.covering: TreeWatch | None = None
        self.host_before = 0  # the host's counter when the covering tree began
        self.not_covered: dict[Cgroup, int] = {}  # kills of before that
        self.unattributed = 0
        self.unnamed: set[int] = set()  # pids of what was told as nobody's
        self.without_descriptors = self.blind = False
        self.looks_again = 0  # when whoever could not be looked at is looked at again, at the latest
        self.reasons: set[str] = set()  # why there may be Degraded events
        for name in MODULES:
            self.patch.setattr(getattr(memcg_oom, name), "time", self.clock)
        self.patch.setattr(memcg_oom.victims, "_is_first", lambda _kind, _inode: True)
        self.patch.setattr(memcg_oom.victims, "_is_dying", self.is_dying)
        replace_in_lib(
            self.patch,
            memcg_wait=self.wait_for_events,
            memcg_timer_arm=self.arm,
            memcg_register_many=self.register_many,
            memcg_look_many=self.look_many,
        )

    @initialize(log=st.sampled_from(["names", "names", "says", "hidden", "unwanted"]), polled=st.booleans())
    def begin(self, log: str, polled: bool) -> None:
        self.log = log
        if log == "names":
            self.kernel.names_victims()
        elif log == "hidden":
            self.patch.setattr(memcg_oom.kernel_log, "KMSG", str(self.folder / "none"))
            self.reasons.add("log")
        unwanted = log == "unwanted"  # and no audits either: what signals and looks tell is all that there is
        self.monitor = Monitor(
            settle=SETTLE / 1e9, linger=LINGER / 1e9, audit=None if unwanted else 1.0, victims=not unwanted
        )
        if polled:
            self.monitor.fileno()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else it has failed before
                self.everything_is_told()
        finally:
            self.give_up()
        assert open_fds() == self.fds

    def give_up(self) -> None:
        self.monitor.close()
        self.kernel.close()
        self.patch.undo()
        shutil.rmtree(self.folder)

    # -- what stands in for the system

    def arm(self, _fd: int, due: int) -> int:
        self.armed = due
        return 0

    def wait_for_events(self, epoll_fd: int, timeout: int, batch: Any) -> int:
        count = int(lib.memcg_wait(epoll_fd, 0, batch))
        if not (count or batch.unread) and timeout:
            ends = [self.clock.now + timeout * MILLISECOND] if timeout > 0 else []
            ends += [max(self.armed, self.clock.now)] if self.armed else []
            if not ends:
                raise NobodyWakesIt
            self.pass_time(min(ends))
            count = int(lib.memcg_wait(epoll_fd, 0, batch))
        batch.time_ns = self.clock.now
        return count

    def register_many(self, *arguments: Any) -> None:
        lib.memcg_register_many(*arguments)
        _, _, packed, count, registrations = arguments
        for index, raw in enumerate(bytes(ffi.buffer(packed)).split(b"\0")[:count]):
            row, path = registrations.rows[index], Path(os.fsdecode(raw))
            if row.eventfd < 0:
                continue
            if self.without_descriptors:
                os.close(row.eventfd)
                (path / "cgroup.event_control").write_text("")
                row.eventfd, row.step = -errno.EMFILE, lib.MEMCG_STEP_EVENTFD
                continue
            cgroup = next(one for one in self.cgroups if one.fake.path == path)
            cgroup.fake.listen()
            self.eventfds[row.eventfd] = cgroup.signals

    def look_many(self, *arguments: Any) -> None:
        lib.memcg_look_many(*arguments)
        *_, count, values, _ = arguments
        if self.blind:
            for index in range(count):
                values[index] = -errno.EMFILE

    def is_dying(self, pid: int) -> bool | None:
        return True if any(kill.pid == pid and kill.began for kill in self.under_way) else None

    def pass_time(self, moment: int) -> None:
        """Until then all happens that the kernel has promised."""
        for kill in [kill for kill in self.under_way if kill.by <= moment]:
            self.go_on(kill, len(kill.steps))
        for cgroup in [cgroup for cgroup in self.gone if cgroup.removal_by <= moment]:
            self.signal_removal(cgroup)
        self.clock.now = max(self.clock.now, moment)

    def end_registrations(self) -> None:
        """Those that were closed again. The kernel has no descriptor of them; the fake one's would keep them polled."""
        watches = self.monitor._watches.by_key.values()
        held = {eventfd_id(watch._eventfd) for watch in watches if not (watch.polled or watch.closed)}
        for cgroup in self.by_id.values():
            fds = cgroup.fake._eventfds
            for fd in [fd for fd in fds if eventfd_id(fd) not in held]:
                fds.remove(fd)
                os.close(fd)

    # -- what the kernel does

    def note(self, fake: FakeCgroup) -> Cgroup:
        return Cgroup(fake, fake.path.stat().st_ino, paths={str(fake.path)})

    def below(self, cgroup: Cgroup) -> list[Cgroup]:
        """It and all that are in it."""
        return [one for one in self.cgroups if one.fake.path.is_relative_to(cgroup.fake.path)]

    def free_names(self, parent: Path) -> list[str]:
        return [name for name in NAMES if not (parent / name).exists()]

    def some(self, which: int) -> Cgroup:
        return self.cgroups[which % len(self.cgroups)]

    def begin_kill(self, cgroup: Cgroup, *, named: bool, signalled: bool) -> Kill:
        self.pid += 1
        steps = [*(["summary"] if named else []), "host", "counter", "line"]
        kill = Kill(cgroup, self.pid, self.clock.now + KILLS_WITHIN, steps, cgroup.signals * signalled)
        cgroup.kills.append(kill)
        self.under_way.append(kill)
        cgroup.fake.tasks(*(one.pid for one in self.under_way if one.cgroup is cgroup))
        return kill

    def go_on(self, kill: Kill, steps: int) -> None:
        """Does the next steps of a kill."""
        for _ in range(min(steps, len(kill.steps))):
            step = kill.steps.pop(0)
            fake = kill.cgroup.fake
            if step == "summary":
                path = b"/" + os.fsencode(fake.path.relative_to(self.kernel.root)).removeprefix(b".")
                self.print(summary(kill.pid, b"hog", path, path, moment=self.clock.now // 1000))
            elif step == "host":
                self.kernel.host_killed()
            elif step == "counter":
                fake.count_kill()
                kill.counted = True
            else:
                self.print(killed(kill.pid, b"hog", moment=self.clock.now // 1000))
        if not kill.steps:
            self.under_way.remove(kill)

    def print(self, record: bytes) -> None:
        if self.monitor._victims._log is not None:  # what was printed before it was opened is never read
            self.kernel.log(record)

    def signal_removal(self, cgroup: Cgroup) -> None:
        cgroup.fake.removal_signal()
        self.gone.remove(cgroup)

    @precondition(lambda self: len(self.cgroups) < MOST)
    @rule(which=WHICH, nested=st.booleans(), name=WHICH)
    def make(self, which: int, nested: bool, name: int) -> None:
        parent = self.some(which).fake.path if nested and self.cgroups else self.kernel.root
        names = self.free_names(parent)
        if names and len(parent.relative_to(self.kernel.root).parts) < 2:
            path = (parent / names[name % len(names)]).relative_to(self.kernel.root)
            cgroup = self.note(self.kernel.make(str(path)))
            self.cgroups.append(cgroup)
            self.by_id[cgroup.directory_id] = cgroup

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH, name=WHICH)
    def rename(self, which: int, name: int) -> None:
        cgroup = self.some(which)
        before = cgroup.fake.path
        if names := self.free_names(before.parent):
            inside = [one for one in self.below(cgroup) if one is not cgroup]
            cgroup.fake.rename(names[name % len(names)])
            for one in inside:
                one.fake.path = cgroup.fake.path / one.fake.path.relative_to(before)
            for one in (cgroup, *inside):
                one.paths.add(str(one.fake.path))
            # What is told late of one that is gone has the names that those above it have by then.
            for one in self.by_id.values():
                for path in map(Path, [*one.paths]):
                    if path.is_relative_to(before):
                        one.paths.add(str(cgroup.fake.path / path.relative_to(before)))

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH, at_once=st.booleans())
    def remove(self, which: int, at_once: bool) -> None:
        """A task is counted before it dies, and a cgroup with one in it stays; what the log says may come later."""
        cgroup = self.some(which)
        if len(self.below(cgroup)) > 1:
            return
        for kill in [kill for kill in self.under_way if kill.cgroup is cgroup]:
            while kill.steps and kill.steps != ["line"]:
                self.go_on(kill, 1)
        cgroup.fake.rmdir()
        self.cgroups.remove(cgroup)
        self.gone.append(cgroup)
        cgroup.removed_at = self.clock.now
        cgroup.removal_by = self.clock.now + SIGNALS_REMOVAL_WITHIN
        if at_once:
            self.signal_removal(cgroup)

    @rule(which=WHICH)
    def removal_is_signalled(self, which: int) -> None:
        if not self.gone:
            return
        self.signal_removal(self.gone[which % len(self.gone)])

    @rule(which=WHICH, count=FEW)
    def run_out_at_the_last_moment(self, which: int, count: int) -> None:
        """An OOM of a cgroup above is signalled to one that is going."""
        if not self.gone:
            return
        cgroup = self.gone[which % len(self.gone)]
        cgroup.fake.oom_before_removal(count)
        cgroup.signals += count

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH, count=FEW, victim=st.none() | WHICH, steps=st.integers(0, 4), named=st.booleans())
    def run_out(self, which: int, count: int, victim: int | None, steps: int, named: bool) -> None:
        """An OOM is signalled to a cgroup and all below; one of them may lose a task, now or a moment later."""
        below = self.below(self.some(which))
        for cgroup in below:
            for fd in cgroup.fake._eventfds:
                os.eventfd_write(fd, count)
            cgroup.signals += count
        if victim is not None:
            self.go_on(self.begin_kill(below[victim % len(below)], named=named, signalled=True), steps)

    @rule(which=WHICH, steps=st.integers(0, 4), named=st.booleans())
    def kill_unsignalled(self, which: int, steps: int, named: bool) -> None:
        """The whole host ran out of memory, say; the victim may be in the root as well."""
        everywhere = [self.root, *self.cgroups]
        self.go_on(self.begin_kill(everywhere[which % len(everywhere)], named=named, signalled=False), steps)

    @precondition(lambda self: len(self.cgroups) > 1)
    @rule(which=WHICH, others=FEW, steps=st.lists(st.integers(1, 4), min_size=2, max_size=2), named=st.booleans())
    def kill_two(self, which: int, others: int, steps: list[int], named: bool) -> None:
        """At once, on two processors; the log names one of them at the most."""
        victims = [self.some(which), self.some(which + others)]
        for cgroup in victims:
            self.run_out(self.cgroups.index(cgroup), 1, None, 0, False)
        self.take(self.monitor.wait(0))
        kills = [self.begin_kill(cgroup, named=named and cgroup is victims[0], signalled=True) for cgroup in victims]
        for kill, count in zip(kills, steps, strict=True):
            self.go_on(kill, count)
        self.take(self.monitor.wait(0))

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH, named=st.booleans())
    def kill_and_remove(self, which: int, named: bool) -> None:
        """All of it in the same moment."""
        cgroup = self.some(which)
        if self.below(cgroup) == [cgroup]:
            self.run_out(self.cgroups.index(cgroup), 1, 0, 4, named)
            self.remove(self.cgroups.index(cgroup), True)

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH, is_watched_now=st.booleans(), before=st.integers(0, 2), late=st.integers(0, 2))
    def removal_is_signalled_late(self, which: int, is_watched_now: bool, before: int, late: int) -> None:
        """When it has counted as removed for long: the kernel's workqueue had other things to do."""
        cgroup = self.some(which)
        if self.below(cgroup) != [cgroup]:
            return
        if is_watched_now:  # so it is looked at, signal or not
            self.watch(self.cgroups.index(cgroup))
        self.remove(self.cgroups.index(cgroup), False)
        for count in (before, late):
            if count:
                self.run_out_at_the_last_moment(self.gone.index(cgroup), count)
            self.wait(0)
            self.wait_until(self.clock.now + 600 * MILLISECOND)
        self.signal_removal(cgroup)

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH, count=FEW, late=st.integers(0, 1))
    def run_out_in_vain_and_remove(self, which: int, count: int, late: int) -> None:
        """Nobody was killed, and everybody knows it, when it is removed."""
        cgroup = self.some(which)
        if self.below(cgroup) == [cgroup]:
            self.run_out(self.cgroups.index(cgroup), count, None, 0, False)
            self.everything_is_told()
            self.remove(self.cgroups.index(cgroup), False)
            if late:
                self.run_out_at_the_last_moment(self.gone.index(cgroup), late)

    @rule(which=WHICH, steps=FEW)
    def kill_goes_on(self, which: int, steps: int) -> None:
        if not self.under_way:
            return
        self.go_on(self.under_way[which % len(self.under_way)], steps)

    @rule()
    def log_is_overrun(self) -> None:
        if self.monitor._victims._log is None:
            return
        if self.kernel.records:
            os.read(self.kernel._log, len(self.kernel.records))
            self.kernel.records.clear()
        self.kernel.overrun_log()
        self.reasons.add("overrun")

    # -- what the user does

    @contextmanager
    def no_descriptors(self) -> Iterator[None]:
        """What may fail when there are none left."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EMFILE or not (self.without_descriptors or self.blind):
                raise

    def print_what_was_counted(self) -> None:
        """The line follows the counter within microseconds; a watch that begins in these takes it for its own."""
        for kill in [kill for kill in self.under_way if kill.counted]:
            self.go_on(kill, 1)

    def adopt(self, begun: Iterable[Watch] = ()) -> None:
        """Takes note of new watches: those that have just begun, and those of cgroups that are new to a tree."""
        just_now = set(begun)
        for watch in self.monitor._watches.by_key.values():
            if watch not in self.told:
                cgroup = self.by_id[watch._place.directory_id]
                signals = cgroup.signals if watch.polled else self.eventfds[watch._eventfd]
                before = [kill for kill in cgroup.kills if kill.counted and watch in just_now]
                under_way = len(cgroup.kills) - len(before)
                self.told[watch] = Told(cgroup, signals, frozenset(before), under_way, calm=signals)
                if watch._tree is not None:
                    self.tree_of[watch] = watch._tree

    @precondition(lambda self: self.cgroups)
    @rule(which=WHICH)
    def watch(self, which: int) -> None:
        self.print_what_was_counted()
        with self.no_descriptors():
            self.adopt([self.monitor.watch(self.some(which).fake.path)])

    @precondition(lambda self: self.cgroups)
    @rule(chosen=st.sets(WHICH, max_size=4), and_one_that_is_gone=st.booleans())
    def watch_many(self, chosen: set[int], and_one_that_is_gone: bool) -> None:
        cgroups = list(dict.fromkeys(self.some(which) for which in sorted(chosen)))
        paths = [cgroup.fake.path for cgroup in cgroups]
        if and_one_that_is_gone:
            paths.append(self.kernel.root / "never")
        before = len(self.monitor.watches)
        self.print_what_was_counted()
        with self.no_descriptors():
            watches = self.monitor.watch_many(paths, skip_gone=and_one_that_is_gone)
            assert [watch.cgroup for watch in watches] == [str(cgroup.fake.path) for cgroup in cgroups]
            self.adopt(watches)
            before += len(watches)
        assert len(self.monitor.watches) == before

    @rule(which=WHICH, whole=st.booleans())
    def watch_tree(self, which: int, whole: bool) -> None:
        if len([tree for tree in self.trees if not tree.closed]) >= 2:
            return
        path = self.kernel.root if whole or not self.cgroups else self.some(which).fake.path
        if path == self.kernel.root:
            self.settle()  # the ledger begins anew: what is missing in it is nobody's from here on
        self.print_what_was_counted()
        with self.no_descriptors():
            self.begin_tree(self.kernel.tree(self.monitor, path))

    def begin_tree(self, tree: TreeWatch) -> None:
        self.trees.append(tree)
        self.adopt(tree._members.values())
        if tree._place.directory_id == self.root.directory_id and self.covering is None:
            self.cover(tree)

    def cover(self, tree: TreeWatch | None) -> None:
        """From here on its ledger has to balance."""
        self.covering = tree
        self.host_before = self.kernel.host_kills
        self.not_covered = {cgroup: len(cgroup.kills) for cgroup in self.by_id.values()}
        self.unattributed = 0

    @rule(which=st.integers(0, 20))
    def close_watch(self, which: int) -> None:
        watches = [watch for watch in self.monitor.watches if isinstance(watch, Watch)]
        if not watches:
            return
        watch = watches[which % len(watches)]
        watch.close()
        self.closed.append(watch)
        watch.close()

    @rule(which=WHICH)
    def close_tree(self, which: int) -> None:
        if not self.trees:
            return
        tree = self.trees[which % len(self.trees)]
        if tree is self.covering:
            self.everything_is_told()  # as above
        self.trees.remove(tree)
        tree.close()
        if tree is self.covering:
            whole = [one for one in self.trees if one._place.directory_id == self.root.directory_id]
            self.cover(whole[0] if whole else None)
        tree.close()

    @rule(out=st.booleans())
    def descriptors_run_out(self, out: bool) -> None:
        self.without_descriptors = out
        self.reasons.add("descriptors")

    # Without audits nobody looks again at one that is followed by its counter and went at such a moment.
    @precondition(lambda self: self.log != "unwanted")
    @rule(blind=st.booleans())
    def looks_fail(self, blind: bool) -> None:
        self.blind = blind
        self.looks_again = self.clock.now + 250 * MILLISECOND
        self.reasons.add("descriptors")

    @rule(milliseconds=PERIODS)
    def nobody_waits(self, milliseconds: int) -> None:
        self.pass_time(self.clock.now + milliseconds * MILLISECOND)

    @rule(milliseconds=PERIODS)
    def wait(self, milliseconds: int) -> None:
        self.take(self.monitor.wait(milliseconds / 1e3))
        if not milliseconds:
            self.ooms_are_told_at_once()

    def wait_until(self, moment: int) -> None:
        """As whoever does nothing else."""
        while self.clock.now < moment:
            self.take(self.monitor.wait((moment - self.clock.now) / 1e9))

    @rule()
    def iterate(self) -> None:
        if not self.monitor._outbox:
            return
        self.take(self.monitor._receive(None, one=True))

    @rule()
    def wait_for_the_timer(self) -> None:
        if not self.armed:
            return
        self.pass_time(self.armed)
        self.take(self.monitor.wait(0))

    @rule(moment=st.integers(0, 400))
    def struck(self, moment: int) -> None:
        """Ctrl-C, somewhere in a wait."""
        if sys.version_info < (3, 11):
            return
        try:
            with Strike(moment):
                events = self.monitor.wait(0)
        except KeyboardInterrupt:
            events = []
            self.end_registrations()
        self.take(events)

    @rule()
    def all_is_quiet(self) -> None:
        self.everything_is_told()

    # -- what may be told

    def take(self, events: Iterable[Event]) -> None:
        self.adopt()
        for event in events:
            if isinstance(event, CgroupEvent):
                assert isinstance(event.watch, Watch)
                assert not event.watch.closed
                told = self.told[event.watch]
                assert event.cgroup in told.cgroup.paths
                self.take_of(event, told)
                told.events += 1
            elif isinstance(event, Unattributed):
                assert self.covering is not None
                assert event.count > 0
                self.unattributed += event.count
                assert len(event.victims) <= event.count
                for victim in event.victims:
                    assert victim.pid not in self.unnamed
                    self.unnamed.add(victim.pid)
            else:
                assert isinstance(event, Degraded)
                assert self.reasons, event

    def take_of(self, event: CgroupEvent, told: Told) -> None:
        cgroup = told.cgroup
        if isinstance(event, Oom):
            told.ooms += event.count
            assert event.count > 0
            assert event.late == told.removed
            told.late += event.count if event.late else 0
            assert not event.watch.polled
            assert told.ooms <= cgroup.signals - told.signals, "an OOM was invented"
            return
        assert not told.removed, "Removed is the last"
        if isinstance(event, OomKill):
            told.kills += event.count
            assert event.count > 0
            others = self.of_namesakes(cgroup)
            assert told.kills <= cgroup.began() - len(told.before) + len(others), "a kill was invented"
            assert len(event.victims) <= event.count
            pids = {kill.pid for kill in [*cgroup.kills, *others] if kill not in told.before}
            for victim in event.victims:
                assert victim.pid in pids, "a victim of another cgroup, or of before"
                assert victim.pid not in told.victims, "a victim that was told"
                told.victims.add(victim.pid)
        elif isinstance(event, Removed):
            assert cgroup.fake.gone
            told.removed = True
            assert isinstance(event.watch, Watch)
            assert event.watch.polled or self.clock.now >= cgroup.removed_at + LINGER
            told.unresolved = event.unresolved
            assert 0 <= event.unresolved <= cgroup.signals - told.calm, "these had settled"
        else:
            assert isinstance(event, Created)
            assert not told.events, "Created is the first"
            assert event.watch in self.tree_of

    def of_namesakes(self, cgroup: Cgroup) -> list[Kill]:
        """Those in others that were at a path of it and are gone like it, and that nobody has ever watched.

        The log has the path alone, so these may be told as kills in it, if all of it happened between two looks.
        """
        watched = {told.cgroup for told in self.told.values()}
        others = [one for one in self.by_id.values() if one.fake.gone and one.paths & cgroup.paths]
        others = [one for one in others if cgroup.fake.gone and one is not cgroup and one not in watched]
        return [kill for one in others for kill in one.kills if kill.began]

    def ooms_are_told_at_once(self) -> None:
        for watch, told in self.told.items():
            if not (
                watch.closed or watch.polled or told.cgroup.fake.gone or self.blind or self.clock.now < self.looks_again
            ):
                assert watch.ooms == told.cgroup.signals - told.signals, "an OOM was not told at once"

    @invariant()
    def totals_are_what_was_told(self) -> None:
        if not hasattr(self, "monitor") or self.monitor._outbox or self.monitor._outbox.waiting:
            return
        for watch, told in self.told.items():
            if not watch.closed:
                assert (watch.ooms, watch.kills, watch.removed) == (told.ooms, told.kills, told.removed)

    # -- what must have been told in the end

    def settle(self) -> None:
        """Lets the kernel do what is left, and waits until nothing is due any more."""
        self.without_descriptors = self.blind = False
        for kill in list(self.under_way):
            self.go_on(kill, len(kill.steps))
        for cgroup in list(self.gone):
            self.signal_removal(cgroup)
        idle = self.clock.now + 8_000 * MILLISECOND
        while True:
            events = self.monitor.wait(0)
            self.take(events)
            if not (self.armed or events):
                return
            if self.clock.now > idle:
                assert self.log == "hidden" or self.monitor._watches.polled, "something is due for ever"
                return
            self.pass_time(max(self.armed, self.clock.now + 40 * MILLISECOND))

    def everything_is_told(self) -> None:
        self.settle()
        for watch, told in self.told.items():
            if watch.closed:
                continue
            cgroup = told.cgroup
            assert told.ooms == (0 if watch.polled else cgroup.signals - told.signals), "an OOM was lost"
            missed = len(cgroup.kills) - len(told.before) - told.kills
            unsignalled = told.under_way + sum(kill.signals <= told.signals for kill in cgroup.kills)
            if cgroup.fake.gone:
                is_root = watch in self.tree_of and watch._place is self.tree_of[watch]._place
                assert told.removed or (watch.polled and is_root and self.log == "unwanted"), (
                    "nobody is told of the end"
                )
                admitted = told.unresolved + told.late
                assert watch.polled or missed <= admitted + unsignalled, "a kill was lost, and nothing says so"
            elif self.log != "unwanted":
                # The root has no look at the end of a settle: what is under way when a tree begins may be before that.
                assert 0 <= missed <= (told.under_way if cgroup is self.root else 0), "a kill was lost"
            else:
                assert watch.polled or missed <= unsignalled, "a kill was lost that was signalled"
            told.calm = cgroup.signals
        for tree in self.trees:
            root = self.by_id[tree._place.directory_id]
            if not root.fake.gone:
                there = {one.directory_id for one in self.below(root)}
                there -= {watch._place.directory_id for watch in self.closed if self.tree_of.get(watch) is tree}
                assert {watch._place.directory_id for watch in tree} == there
        if self.covering is not None and self.log != "unwanted":
            self.the_ledger_balances()

    def the_ledger_balances(self) -> None:
        kills = missable = 0
        for cgroup in self.by_id.values():
            watches = [(watch, told) for watch, told in self.told.items() if told.cgroup is cgroup]
            # Each kill once, however many watches tell it: by its number in the cgroup's counter.
            told = {
                number
                for _, told in watches
                for number in range(len(told.before), len(told.before) + told.kills)
                if number >= self.not_covered.get(cgroup, 0)
            }
            kills += len(told)
            if any(watch.closed for watch, _ in watches):
                missable += len(cgroup.kills) - len(told)
        kills += self.unattributed
        host = self.kernel.host_kills - self.host_before
        assert kills <= host, "the ledger has more than the host"
        assert kills >= host - missable, "the ledger has less than the host"


set_hypothesis_home_dir(Path(__file__).parents[2] / ".cache" / "hypothesis")


def test_a_kill_of_which_another_watch_of_the_cgroup_was_told() -> None:
    """To the ledger it is told, so no audit finds it."""
    machine = Machine()
    try:
        machine.begin("says", False)
        machine.make(0, False, 0)
        machine.watch(0)
        machine.everything_is_told()
        machine.watch(0)  # which settles, and so is looked at
        machine.kill_unsignalled(1, 3, False)
        machine.wait_for_the_timer()
        assert [watch.kills for watch in machine.told] == [1, 1]
        machine.everything_is_told()
    finally:
        machine.give_up()


settings.register_profile(
    "model",
    max_examples=int(EXAMPLES or 400),
    stateful_step_count=50,
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
TestModel = Machine.TestCase
TestModel.settings = settings.get_profile("model")
