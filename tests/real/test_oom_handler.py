"""OOMs that user space handles, on cgroup v1: a task that faults against a disabled killer, and how it is freed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from memcg_oom import Cgroup, Event, Monitor, Oom, OomKill, OomResolved, Removed, UnsupportedError
from tests.support import (
    PATIENCE,
    Dial,
    Independent,
    control,
    eventually,
    is_v2,
    kills_of,
    make,
    put,
    remove,
    run_hog,
    start_hog,
    take_until,
    take_until_quiet,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "oom_handler.py"
MB = 1 << 20
ROUNDS = int(os.environ.get("MEMCG_OOM_ROUNDS", "200"))


def killer_off(path: Path, limit: str | None = "4M") -> Path:
    cgroup = make(path, limit)
    put(cgroup / "memory.oom_control", "1")
    return cgroup


def take_resolved(monitor: Monitor, events: list[Event]) -> OomResolved:
    """Takes events up to an OomResolved."""
    while not (events and isinstance(events[-1], OomResolved)):
        more = monitor.wait(PATIENCE)
        assert more, f"no OomResolved came after {events}"
        events += more
    return events[-1]


def stuck(cgroup: Path) -> bool:
    return bool(control(cgroup, "under_oom"))


@pytest.mark.parametrize("long", [False, True], ids=["at once", "later"])
def test_freed_by_a_higher_limit(memcg1: Path, hog: str, long: bool) -> None:
    cgroup = killer_off(memcg1 / "a")
    independent = Independent(cgroup)
    with Monitor(settle=0.1) as monitor:
        watch = monitor.watch(cgroup)
        pid = start_hog(hog, cgroup, 16 * MB)
        (oom,) = monitor.wait(PATIENCE)
        assert isinstance(oom, Oom)
        assert oom.count == 1
        if long:
            # Far behind the end of the settle: it is looked at as long as it takes.
            assert monitor.wait(1) == []
        assert stuck(cgroup)
        Cgroup(cgroup).limit = 64 * MB
        events: list[Event] = [oom]
        resolved = take_resolved(monitor, events)
        assert os.waitpid(pid, 0)[1] == 0  # it had enough
        assert [type(event) for event in events] == [Oom, OomResolved]
        assert resolved.watch is watch
        assert resolved.after >= (1 if long else 0)
        assert watch.ooms == independent.read() == 1  # one an episode
        assert watch.kills == 0
        assert monitor.wait(0.5) == []
    independent.close()


def test_freed_by_a_kill(memcg1: Path, hog: str) -> None:
    cgroup = killer_off(memcg1 / "a")
    with Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch(cgroup)
        dial.begin(16 * MB)
        events = monitor.wait(PATIENCE)
        eventually(lambda: stuck(cgroup))
        assert Cgroup(cgroup).largest() == dial.process.pid
        assert Cgroup(cgroup).kill_process(dial.process.pid)
        assert dial.process.wait(PATIENCE) == -signal.SIGKILL
        take_resolved(monitor, events)
        assert [type(event) for event in events] == [Oom, OomResolved]
        assert watch.kills == kills_of(cgroup) == 0  # it was not the kernel's killer
        assert not Cgroup(cgroup).kill_process(dial.process.pid)
        assert not Cgroup(cgroup).kill_process(os.getpid())
        assert Cgroup(cgroup).largest() is None


def test_freed_by_the_killer(memcg1: Path, hog: str) -> None:
    cgroup = killer_off(memcg1 / "a")
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        pid = start_hog(hog, cgroup, 16 * MB)
        events = monitor.wait(PATIENCE)
        eventually(lambda: stuck(cgroup))
        Cgroup(cgroup).oom_kill_disable = False
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        while not (watch.kills and any(isinstance(event, OomResolved) for event in events)):
            more = monitor.wait(PATIENCE)
            assert more, events
            events += more
        assert {type(event) for event in events} == {Oom, OomKill, OomResolved}
        assert sum(isinstance(event, OomResolved) for event in events) == 1
        assert watch.kills == 1


def test_watched_in_the_middle(memcg1: Path, hog: str) -> None:
    cgroup = killer_off(memcg1 / "a")
    pid = start_hog(hog, cgroup, 16 * MB)
    eventually(lambda: stuck(cgroup))
    with Monitor() as monitor:
        monitor.watch(cgroup)
        events: list[Event] = []
        events += monitor.wait(PATIENCE)
        assert [type(event) for event in events] == [Oom]
        Cgroup(cgroup).limit = 64 * MB
        take_resolved(monitor, events)
        assert [type(event) for event in events] == [Oom, OomResolved]
        assert os.waitpid(pid, 0)[1] == 0


def test_one_episode_after_the_other(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    rounds = min(ROUNDS, 100)
    cgroup = killer_off(memcg1 / "a")
    with closing(Independent(cgroup)) as independent, Monitor() as monitor, Dial(hog, cgroup) as dial:
        watch = monitor.watch(cgroup)
        events: list[Event] = []
        for _ in range(rounds):
            dial.begin(6 * MB)
            eventually(lambda: stuck(cgroup))
            while not (events and isinstance(events[-1], Oom)):
                events += monitor.wait(PATIENCE)
            Cgroup(cgroup).limit = 16 * MB
            take_resolved(monitor, events)
            dial.wait()
            dial.set(4096)
            # What was freed may lie in a processor's batch until something else runs there, and would wake the task of
            # the next round when it is given back (uncharge_batch()), before anybody looks. This empties the batches
            # (lru_add_drain_all()).
            put(cgroup / "memory.force_empty", "0")
            Cgroup(cgroup).limit = 4 * MB
        events += take_until_quiet(monitor).by_watch[watch]
        assert [type(event) for event in events] == [Oom, OomResolved] * rounds
        assert watch.ooms == independent.read() >= rounds  # now and then the kernel signals an episode twice
        figure.update(rounds=rounds, resolved=rounds)


@pytest.mark.parametrize("children", [1, 40], ids=["a few", "a crowd"])
def test_everybody_below_is_told(memcg1: Path, hog: str, children: int) -> None:
    """Limit and switch at the parent; new children take the switch over, one that has switched it on waits as well."""
    parent = killer_off(memcg1 / "p")
    cgroups = [make(parent / f"c{number}") for number in range(children)]
    grandchild = make(cgroups[0] / "g")
    assert Cgroup(grandchild).oom_kill_disable
    put(grandchild / "memory.oom_control", "0")
    everybody = [parent, *cgroups, grandchild]
    with Monitor() as monitor:
        watches = monitor.watch_many(everybody)
        for _ in range(2):
            pid = start_hog(hog, grandchild, 16 * MB)
            ledger = take_until(monitor, lambda ledger: len(ledger.ooms) == len(everybody))
            assert all(stuck(cgroup) for cgroup in everybody)
            Cgroup(parent).limit = 64 * MB
            take_until(
                monitor,
                lambda ledger: all(
                    any(type(event) is OomResolved for event in ledger.by_watch[watch]) for watch in watches
                ),
                ledger,
            )
            take_until_quiet(monitor, ledger)
            for watch in watches:
                assert [type(event) for event in ledger.by_watch[watch]] == [Oom, OomResolved]
            assert os.waitpid(pid, 0)[1] == 0
            Cgroup(parent).limit = 4 * MB


def test_nested_ones(memcg1: Path, hog: str) -> None:
    """The limit of the inner one is hit: it is nobody else's business, though the outer one has its killer off too."""
    outer = killer_off(memcg1 / "outer", "64M")
    inner = killer_off(outer / "inner")
    with Monitor() as monitor:
        above, below = monitor.watch_many([outer, inner])
        pid = start_hog(hog, inner, 16 * MB)
        events = monitor.wait(PATIENCE)
        Cgroup(inner).limit = 32 * MB
        take_resolved(monitor, events)
        assert [(type(event), getattr(event, "watch", None)) for event in events] == [
            (Oom, below),
            (OomResolved, below),
        ]
        assert above.ooms == 0
        assert os.waitpid(pid, 0)[1] == 0


def test_where_the_killer_is_on_nothing_is_resolved(memcg1: Path, hog: str) -> None:
    """The file says under_oom for a moment there as well."""
    parent = make(memcg1 / "p", "2M")
    cgroups = [parent, *(make(parent / str(number)) for number in range(3))]
    with Monitor() as monitor:
        watches = monitor.watch_many(cgroups)
        for _ in range(50):
            run_hog(hog, cgroups[1])
        ledger = take_until_quiet(monitor, take_until(monitor, lambda ledger: ledger.kills.total() == 50))
        assert all(ledger.ooms[watch] >= 50 for watch in watches)
        assert {type(event).__name__ for events in ledger.by_watch.values() for event in events} == {"Oom", "OomKill"}


def test_removed_as_soon_as_it_is_freed(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    watches = []
    events: list[Event] = []
    with Monitor() as monitor:
        for number in range(ROUNDS):
            cgroup = killer_off(memcg1 / str(number))
            watches.append(monitor.watch(cgroup))
            pid = start_hog(hog, cgroup, 16 * MB)
            while not watches[-1].ooms:
                events += monitor.wait(PATIENCE)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            remove(cgroup)
        while not all(watch.removed for watch in watches):
            events += monitor.wait(PATIENCE)
    resolved = 0
    for watch in watches:
        kinds = [type(event) for event in events if getattr(event, "watch", None) is watch]
        # One that was not looked at between its sleep and its end is only known to be gone.
        assert kinds in ([Oom, OomResolved, Removed], [Oom, Removed]), kinds
        resolved += OomResolved in kinds
    figure.update(rounds=ROUNDS, resolved=resolved)


# -- the switch


def test_the_switch_is_put_back(memcg1: Path) -> None:
    cgroup = Cgroup(make(memcg1 / "a"))
    assert not cgroup.oom_kill_disable
    assert not cgroup.under_oom
    with cgroup.oom_killer_disabled() as same:
        assert same is cgroup
        assert cgroup.oom_kill_disable
        with cgroup.oom_killer_disabled():
            pass
        assert cgroup.oom_kill_disable  # as it was before
    assert not cgroup.oom_kill_disable
    with pytest.raises(ZeroDivisionError), cgroup.oom_killer_disabled():
        raise ZeroDivisionError
    assert not cgroup.oom_kill_disable


def test_a_cgroup_that_went_meanwhile_is_no_error(memcg1: Path) -> None:
    cgroup = Cgroup(make(memcg1 / "a"))
    with cgroup.oom_killer_disabled():
        cgroup.remove()
    with pytest.raises(FileNotFoundError), cgroup.oom_killer_disabled():
        pass


def test_the_root_has_no_switch(playground: Path, memcg1: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Cgroup(playground.parent).oom_kill_disable = True


def test_v2_has_other_means(memcg: Path, hog: str) -> None:
    if not is_v2(memcg):
        with pytest.raises(UnsupportedError, match="freezer"):
            Cgroup(memcg).frozen = True
        pytest.skip("the memory controller of this host is on cgroup v1")
    cgroup = Cgroup(make(memcg / "a"))
    with pytest.raises(UnsupportedError, match=r"memory\.high"):
        cgroup.oom_kill_disable = True
    with pytest.raises(UnsupportedError), cgroup.oom_killer_disabled():
        pass
    with Dial(hog, Path(cgroup.path)) as dial:
        assert not cgroup.frozen
        cgroup.frozen = True
        eventually(lambda: cgroup.frozen)
        dial.begin(8 * MB)
        assert cgroup.usage < 8 * MB
        cgroup.frozen = False
        dial.wait()
        eventually(lambda: not cgroup.frozen)
        assert cgroup.largest() == dial.process.pid
        assert cgroup.kill_process(dial.process.pid)


# -- the example


@contextmanager
def handler(cgroup: Path, ceiling: str) -> Iterator[subprocess.Popen[str]]:
    """The example at work, from the moment when it handles."""
    process = subprocess.Popen([sys.executable, EXAMPLE, cgroup, ceiling], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "handling\n"
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def child_of(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def test_the_example_grows_to_the_ceiling_and_then_kills_the_largest(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a", "8M")
    with handler(cgroup, "16M") as process, Dial(hog, cgroup) as small:
        assert control(cgroup, "oom_kill_disable") == 1
        small.set(12 * MB)
        assert Cgroup(cgroup).limit in range(12 * MB, 16 * MB + 1)
        small.set(2 * MB)
        pid = start_hog(hog, cgroup, 64 * MB)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        assert Cgroup(cgroup).limit == 16 * MB
        small.set(4 * MB)  # it lives
        small.close()
        remove(cgroup)
        assert process.wait(PATIENCE) == 0
        assert process.stdout is not None
        said = process.stdout.read()
        assert re.search(r"^grown to 16\.0 MiB$", said, re.MULTILINE), said
        assert f"killed {pid}\n" in said
        assert re.search(r"^resolved after \d", said, re.MULTILINE), said
    assert kills_of(memcg1) == 0


def test_the_example_helps_those_below_as_well(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a", "4M")
    child = make(make(cgroup / "b") / "c")
    with handler(cgroup, "4M"):
        pid = start_hog(hog, child, 16 * MB)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert kills_of(child) == 0


def test_the_example_survives_its_own_crash(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a", "4M")
    with handler(cgroup, "4M") as process:
        for _ in range(3):
            os.kill(child_of(process), signal.SIGKILL)
            assert process.stdout is not None
            assert process.stdout.readline() == "the handler ended with -9\n"
            assert process.stdout.readline() == "handling\n"
        run_hog(hog, cgroup)
    assert control(cgroup, "oom_kill_disable") == 0  # SIGTERM
    assert kills_of(cgroup) == 0


def test_a_task_that_sleeps_when_the_example_crashes_is_killed_by_the_kernel(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "a", "4M")
    with handler(cgroup, "4M") as process:
        child = child_of(process)
        os.kill(child, signal.SIGSTOP)  # so that it helps nobody
        pid = start_hog(hog, cgroup)
        eventually(lambda: stuck(cgroup))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        assert kills_of(cgroup) == 1


def test_the_example_puts_the_killer_back_when_its_supervisor_crashes(memcg1: Path) -> None:
    cgroup = make(memcg1 / "a", "4M")
    with handler(cgroup, "4M") as process:
        process.kill()
        eventually(lambda: control(cgroup, "oom_kill_disable") == 0)


@pytest.mark.parametrize(("arguments", "code"), [([], 64), (["x"], 64), (["{}", "much"], 64), (["{}/none", "4M"], 0)])
def test_the_example_says_how_it_is_used(memcg1: Path, arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, *(one.format(memcg1) for one in arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code
    assert ("usage" in done.stderr) == (code == os.EX_USAGE)
    assert "Traceback" not in done.stderr
