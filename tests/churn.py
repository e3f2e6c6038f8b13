"""Processes that make, rename, kill in and remove cgroups at random, and the books of what a tree told of it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from memcg_oom import AnyWatch, Created, Event, Monitor, Oom, OomKill, Removed, TreeWatch, Unattributed
from memcg_oom.mounts import memory_mount
from tests.support import MISSED, PATIENCE, Reader, make, start_python

WORKERS = 4


def churn(top: str, hog: str, seed: str) -> None:
    """A worker: at each line of its input (how many cgroups, how many kills) makes, kills in and removes that many.

    Some of them it renames, where that can be done. Sent to an interpreter of its own as it stands, so it brings along
    all that it needs. At most twelve of its cgroups stand at a time, some in others. A kill is by the limit of the
    cgroup, or of the one that it is in. Answers with the kills by the id of the cgroup, and with the ids of all.
    """
    import json
    import os
    import random
    import signal
    import sys
    import time

    dice = random.Random(int(seed))
    v2 = os.path.exists(f"{top}/cgroup.subtree_control")
    limit, no_limit = ("memory.max", "max") if v2 else ("memory.limit_in_bytes", "-1")

    def put(path: str, text: str) -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def remove(path: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                os.rmdir(path)
            except OSError as error:
                # What was reaped may not have left the cgroup yet.
                if error.errno != 16 or time.monotonic() > deadline:  # EBUSY
                    raise
                time.sleep(0.0005)
            else:
                return

    def kill(path: str) -> None:
        """One process, and nobody else in this worker's cgroups: it is the victim."""
        limited = os.path.dirname(path) if os.path.dirname(path) != top and dice.random() < 0.5 else path
        put(f"{limited}/{limit}", "1M")
        pid = os.posix_spawn(hog, [hog, path, str(8 << 20)], os.environ)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"the hog in {path} was not killed: {status}")
        put(f"{limited}/{limit}", no_limit)

    made = renames = 0
    for line in sys.stdin:
        to_make, to_kill = map(int, line.split())
        ids: dict[str, int] = {}
        standing: list[str] = []
        kills: dict[int, int] = {}
        gone: list[int] = []
        while to_make or to_kill or standing:
            if standing and not v2 and dice.random() < 0.05:
                old = dice.choice(standing)
                renames += 1
                new = f"{os.path.dirname(old)}/renamed{renames}"
                os.rename(old, new)
                moved = {one: new + one[len(old) :] for one in standing if f"{one}/".startswith(f"{old}/")}
                standing = [moved.get(one, one) for one in standing]
                ids = {moved.get(one, one): directory_id for one, directory_id in ids.items()}
            leaves = [one for one in standing if not any(other.startswith(one + "/") for other in standing)]
            # Up to 20 ms between two steps, so that a removal beats the look at a kill now and then and not all the
            # time: that race has a test of its own, test_races.py.
            time.sleep(dice.uniform(0, 0.02))
            roll = dice.random()
            if to_make and (not standing or (len(standing) < 12 and roll < 0.5)):
                path = f"{dice.choice([top, top, *standing])}/{made}"
                if path.count("/") - top.count("/") > 3:
                    continue
                if v2:  # from now on nobody can be killed in that one: it has no processes of its own
                    put(f"{os.path.dirname(path)}/cgroup.subtree_control", "+memory")
                os.mkdir(path)
                ids[path] = os.stat(path).st_ino
                standing.append(path)
                made += 1
                to_make -= 1
                # So that the kills are spread over all cgroups, and meet them at any age.
                if dice.random() * (to_make + 1) < to_kill:
                    to_kill -= 1
                    victim = path if v2 else dice.choice(standing)
                    kill(victim)
                    kills[ids[victim]] = kills.get(ids[victim], 0) + 1
            elif leaves:
                path = dice.choice(leaves)
                remove(path)
                standing.remove(path)
                gone.append(ids.pop(path))
            elif to_kill:
                sys.exit("kills are left over")
        print(json.dumps({"kills": kills, "gone": gone}), flush=True)


class Workers:
    """The processes that churn, each in a cgroup of its own."""

    def __init__(self, parent: Path, hog: str) -> None:
        code = f"{inspect.getsource(churn)}\nimport sys\nchurn(*sys.argv[1:])"
        self.kills: Counter[int] = Counter()
        self.gone: set[int] = set()
        self._processes: list[subprocess.Popen[str]] = []
        for number in range(WORKERS):
            top = make(parent / f"worker{number}")
            self._processes.append(start_python(code, top, hog, number))

    def run(self, cgroups: int, kills: int) -> None:
        """Has that many made and removed, and waits until it is done."""
        self.kills.clear()
        self.gone.clear()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{cgroups // WORKERS} {kills // WORKERS}\n")
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            answer = json.loads(line)
            self.kills.update({int(one): count for one, count in answer["kills"].items()})
            self.gone.update(answer["gone"])

    def close(self) -> None:
        for process in self._processes:
            with process:
                process.kill()


def host_kills() -> int:
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(dict(lines)["oom_kill"])


class Books:
    """What was told, by the id of the cgroup: the watches themselves would not be let go of if they were kept."""

    def __init__(self) -> None:
        self.created: Counter[int] = Counter()
        self.kills: Counter[int] = Counter()
        self.ooms: Counter[int] = Counter()
        self.removed: Counter[int] = Counter()
        self.unresolved = 0
        self.unattributed = 0
        self.wrong: list[str] = []  # events out of their order
        self.degraded: list[str] = []

    def add(self, event: Event) -> None:
        match event:
            case Created(watch=watch):
                self.created[one(watch)] += 1
                if one(watch) in self.kills or one(watch) in self.ooms:
                    self.wrong.append(f"told before it was created: {event}")
            case OomKill(watch=watch, count=count):
                self.kills[one(watch)] += count
                if self.removed[one(watch)]:
                    self.wrong.append(f"after its removal: {event}")
            case Oom(watch=watch, count=count, late=late):
                self.ooms[one(watch)] += count
                if self.removed[one(watch)] and not late:
                    self.wrong.append(f"after its removal: {event}")
            case Removed(watch=watch, unresolved=unresolved):
                self.removed[one(watch)] += 1
                self.unresolved += unresolved
            case Unattributed(count=count):
                self.unattributed += count
            case _:
                self.degraded.append(repr(event))

    def __repr__(self) -> str:
        told = {name: dict(getattr(self, name)) for name in ("created", "kills", "ooms", "removed")}
        return f"{told}, {self.unattributed} of nobody, {self.unresolved} unresolved, {self.wrong}, {self.degraded}"

    def missed(self, kills: Counter[int]) -> int:
        """How many of these kills were not told with their cgroup."""
        return sum(count - self.kills[cgroup] for cgroup, count in kills.items())

    @property
    def told(self) -> int:
        """Kills of the whole host, whoever else lives on it."""
        return self.kills.total() + self.unattributed


def one(watch: AnyWatch) -> int:
    return watch._place.directory_id


class Clerk(Reader):
    """Keeps books instead of events."""

    def __init__(self, monitor: Monitor) -> None:
        self.books = Books()
        # The host's kills when the tree began, not to be told by it: somebody else may have killed while it did.
        self.least = self.most = 0
        super().__init__(monitor)

    def _take(self, events: list[Event]) -> None:
        with self._changed:
            for event in events:
                self.books.add(event)
            self._changed.notify_all()

    def turn_over(self) -> None:
        """Begins new books, as everything in the old ones is in order."""
        with self._changed:
            self.least += self.books.told
            self.most += self.books.told
            self.books = Books()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Waits for something that the kernel, too, has a part in: it is asked again and again, events or not."""
        deadline = threading.Event()
        timer = threading.Timer(PATIENCE, deadline.set)
        timer.start()
        try:
            while not deadline.is_set():
                with self._changed:
                    if self.error is not None:
                        raise self.error
                    if condition():
                        return
                    self._changed.wait(0.05)
        finally:
            timer.cancel()
            timer.join()
        with self._changed:
            raise AssertionError(f"what was waited for did not come; there was {self.books}")


@contextlib.contextmanager
def covered(source: str) -> Iterator[tuple[Clerk, TreeWatch]]:
    """A tree at the root of the hierarchy, and its reader."""
    mount = memory_mount()
    assert mount is not None
    monitor = Monitor()
    clerk = Clerk(monitor)
    try:
        clerk.least = host_kills()
        tree = monitor.watch_tree(mount.point, source=source)
        clerk.most = host_kills()
        yield clerk, tree
    finally:
        clerk.finish()


def rss() -> int:
    """In KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 10


class Size:
    """How much of everything this process and the monitor hold; what other cgroups of the host need is left out."""

    def __init__(self, clerk: Clerk, tree: TreeWatch) -> None:
        monitor = clerk.monitor
        with monitor._lock:  # nothing is under way
            gc.collect()
            self.blocks = sys.getallocatedblocks()
            self.rss = rss()
            watches = monitor._watches.by_key.values()
            has_eventfds = not os.path.exists(f"{tree.cgroup}/cgroup.subtree_control")
            self.fds = len(os.listdir("/proc/self/fd")) - has_eventfds * sum(not watch.polled for watch in watches)
            self.watches = len(watches)
            self.members = len(tree._members)


def settled(clerk: Clerk, own: str) -> bool:
    """Whether nothing of our own cgroups is left in the monitor: the late signals of removals were awaited."""
    with clerk.monitor._lock:
        own_watches = [watch for watch in clerk.monitor._watches.by_key.values() if watch.cgroup.startswith(own)]
        return not any(watch.removed or watch._trouble.gone or watch._trouble.round for watch in own_watches)


def judge(clerk: Clerk, tree: TreeWatch, workers: Workers) -> dict[str, int]:
    """Holds what was told against what the workers did, and against what the host has counted since."""
    at_the_end = host_kills()
    # Somebody else may be killing on this host, beside us and after us: hence two bounds instead of `==`.
    clerk.wait_for(lambda: clerk.books.told >= at_the_end - clerk.most)
    try:
        clerk.wait_for(lambda: clerk.books.unattributed >= clerk.books.missed(workers.kills))
    except AssertionError as error:
        kills = clerk.books.kills
        wrong = {one: (count, kills[one]) for one, count in workers.kills.items() if kills[one] != count}
        raise AssertionError(
            f"host {host_kills()}, {clerk.least} to {clerk.most} at first; done and told: {wrong}; "
            f"told of others: {set(kills) - set(workers.kills)}"
        ) from error
    clerk.wait_for(lambda: all(clerk.books.removed[cgroup] for cgroup in clerk.books.created if cgroup in workers.gone))
    with clerk._changed:
        books = clerk.books
        told, at_most = books.told, host_kills() - clerk.least
        assert told <= at_most, "kills that there were not"
        assert not books.wrong
        done, kills = workers.gone, workers.kills
        known = {cgroup for cgroup in books.created if cgroup in done}
        missed = books.missed(kills)
        # By what a cgroup was told to have lost too many, which a kill that was not told of must not make up for.
        invented = sum(max(0, books.kills[cgroup] - kills[cgroup]) for cgroup in done)
        result = {
            "cgroups": len(done),
            "unseen": len(done) - len(known),
            "kills": kills.total(),
            "unattributed": missed,
            "unresolved": books.unresolved,
            "invented": invented,
            "host": at_most,
            "told": told,
        }
        assert invented == 0
        assert all(books.created[cgroup] == books.removed[cgroup] == 1 for cgroup in known)
        assert not [cgroup for cgroup in books.removed if cgroup in done and cgroup not in known]
        assert missed <= max(1, kills.total() * MISSED)
        assert not [watch for watch in map(tree.member, done) if watch is not None and not watch.removed]
        return result
