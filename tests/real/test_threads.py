"""Other threads, signal handlers, forked children, Ctrl-C."""

from __future__ import annotations

import dis
import errno
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from memcg_oom import Event, Monitor, Removed, Watch
from tests.support import (
    PATIENCE,
    Independent,
    Ledger,
    eventually,
    make,
    remove,
    run_hog,
    run_python,
    start_hog,
    take_until,
    until_waiting,
)

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def handled(number: signal.Signals, handler: Handler) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def calling(action: Callable[[], object]) -> Handler:
    """A handler that does just that."""
    return lambda number, frame: action()


@pytest.fixture
def _watchdog() -> Iterator[None]:
    """A deadlock is a failure, not a run that hangs: a lock that is waited for gives way to an exception."""

    def bark(number: int, frame: FrameType | None) -> None:
        raise AssertionError("deadlock")

    with handled(signal.SIGALRM, bark):
        signal.alarm(int(PATIENCE))
        try:
            yield
        finally:
            signal.alarm(0)


class Waiter(threading.Thread):
    """One wait() without a timeout, in a thread."""

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(daemon=True)
        self.monitor = monitor
        self.result: list[Event] | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.monitor.wait()
        except BaseException as error:
            self.result = error

    def until_blocked(self) -> None:
        assert self.native_id is not None
        until_waiting(self.monitor, self.native_id)

    def outcome(self) -> list[Event] | BaseException | None:
        self.join(PATIENCE)
        assert not self.is_alive(), "the wait() did not end"
        return self.result


# -- close() and wake()


def test_close_ends_a_blocked_wait(memcg: Path) -> None:
    for number in range(200):
        monitor = Monitor()
        watch = monitor.watch(make(memcg / str(number)))
        waiter = Waiter(monitor)
        if number % 2:
            waiter.until_blocked()
        monitor.close()
        outcome = waiter.outcome()
        if isinstance(outcome, ValueError):
            assert number % 2 == 0, "only a wait() that begins after close() may say so"
        else:
            assert outcome == []
        assert monitor.closed
        assert watch.closed


def test_close_ends_a_blocked_iteration(memcg: Path) -> None:
    monitor = Monitor()
    monitor.watch(memcg)
    seen: list[Event] = []
    thread = threading.Thread(target=lambda: seen.extend(monitor))
    thread.start()
    assert thread.native_id is not None
    until_waiting(monitor, thread.native_id)
    monitor.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert seen == []


def test_wake_from_another_thread(memcg: Path) -> None:
    with Monitor() as monitor:
        monitor.watch(memcg)
        for number in range(200):
            waiter = Waiter(monitor)
            if number % 2:
                waiter.until_blocked()
            monitor.wake()
            assert waiter.outcome() == []


def test_a_wake_before_the_wait_counts() -> None:
    with Monitor() as monitor:
        monitor.wake()
        monitor.wake()
        assert monitor.wait() == []
        start = time.monotonic()
        assert monitor.wait(0.05) == []
        assert time.monotonic() - start >= 0.05, "two wakes before one wait are one"


def test_many_threads_wake_and_close_at_once() -> None:
    for _ in range(50):
        monitor = Monitor()
        barrier = threading.Barrier(5)

        def wake(monitor: Monitor = monitor, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                for _ in range(20):
                    monitor.wake()
            except ValueError:
                assert monitor.closed

        def close(monitor: Monitor = monitor, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            monitor.close()

        threads = [threading.Thread(target=target) for target in (wake, wake, close, close)]
        for thread in threads:
            thread.start()
        barrier.wait()
        try:
            while True:
                assert monitor.wait() == []
        except ValueError:
            assert monitor.closed
        for thread in threads:
            thread.join(PATIENCE)


@pytest.mark.usefixtures("_watchdog")
def test_wake_and_close_from_a_signal_handler_in_a_blocked_wait(memcg: Path) -> None:
    main = threading.main_thread()
    assert main.native_id is not None
    native_id = main.native_id
    for action in ("wake", "close"):
        monitor = Monitor()
        monitor.watch(memcg)

        def send(monitor: Monitor = monitor) -> None:
            until_waiting(monitor, native_id)
            signal.pthread_kill(threading.get_ident() if main.ident is None else main.ident, signal.SIGUSR1)

        with handled(signal.SIGUSR1, calling(getattr(monitor, action))):
            thread = threading.Thread(target=send)
            thread.start()
            assert monitor.wait() == []
            thread.join(PATIENCE)
        assert monitor.closed is (action == "close")
        monitor.close()


@pytest.mark.usefixtures("_watchdog")
def test_a_handler_that_runs_while_its_own_thread_holds_the_lock(memcg: Path) -> None:
    monitor = Monitor()
    monitor.watch(memcg)
    with handled(signal.SIGUSR1, lambda *_: monitor.wake()), monitor._lock:
        signal.raise_signal(signal.SIGUSR1)
    assert monitor.wait() == []
    with handled(signal.SIGUSR1, lambda *_: monitor.close()), monitor._lock:
        signal.raise_signal(signal.SIGUSR1)
    assert monitor.closed
    with pytest.raises(ValueError, match="closed"):
        monitor.wait(0)


@pytest.mark.usefixtures("_watchdog")
def test_close_from_a_signal_handler_in_any_moment(memcg: Path) -> None:
    """The handler hits whatever the thread is doing: watching, waiting, asking, closing watches."""
    cgroups = [make(memcg / str(number)) for number in range(4)]
    chance = random.Random(2)
    closed_by_handler = 0
    while closed_by_handler < 500:
        monitor = Monitor()
        with handled(signal.SIGPROF, calling(monitor.close)):
            signal.setitimer(signal.ITIMER_PROF, chance.uniform(1e-6, 1e-3))
            try:
                while True:
                    watches = monitor.watch_many(cgroups)
                    assert monitor.wait(0) == []
                    assert len(monitor.watches) == 4
                    for watch in watches:
                        watch.close()
                    monitor.fileno()
            except ValueError:
                closed_by_handler += 1
                assert monitor.closed
            except OSError as error:
                # On v2: the kernel lets go of a closed inotify instance a while after its last watches were removed.
                if error.errno != errno.EMFILE:
                    raise
                time.sleep(0.1)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                monitor.close()


@pytest.mark.usefixtures("_watchdog")
def test_wake_from_a_signal_handler_in_any_moment(memcg: Path) -> None:
    cgroups = [make(memcg / str(number)) for number in range(4)]
    wakes = 0
    with Monitor() as monitor:

        def wake(number: int, frame: FrameType | None) -> None:
            nonlocal wakes
            wakes += 1
            monitor.wake()

        with handled(signal.SIGPROF, wake):
            signal.setitimer(signal.ITIMER_PROF, 1e-3, 1e-3)
            try:
                while wakes < 300:
                    for watch in monitor.watch_many(cgroups):
                        watch.close()
                    assert monitor.wait(0) == []
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        assert monitor.watches == ()


def test_close_twice_and_use_as_a_context_manager() -> None:
    with Monitor() as monitor:
        monitor.close()
        monitor.close()
    monitor.close()
    assert monitor.closed


# -- one waiter


def test_a_second_waiter_is_an_error(memcg: Path, hog: str) -> None:
    cgroup = make(memcg / "cgroup", "1M")
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        waiter = Waiter(monitor)
        waiter.until_blocked()
        with pytest.raises(RuntimeError, match="one waiter"):
            monitor.wait(0)
        with pytest.raises(RuntimeError, match="one waiter"):
            next(monitor)
        assert not waiter.result
        run_hog(hog, cgroup)
        outcome = waiter.outcome()
        assert isinstance(outcome, list)
        take_until(monitor, lambda ledger: ledger.kills[watch], Ledger(outcome))
        assert monitor.wait(0) == []


def test_watching_and_closing_watches_while_another_thread_waits(memcg1: Path, hog: str) -> None:
    """Four threads make, watch, kill in, and remove cgroups of their own under one waiter."""
    ledger = Ledger()
    monitor = Monitor()
    errors: list[BaseException] = []
    counted: dict[Watch, int] = {}
    closed: list[Watch] = []

    def work(name: str) -> None:
        try:
            for number in range(15):
                cgroup = make(memcg1 / f"{name}{number}", "1M")
                other = monitor.watch(cgroup)
                watch = monitor.watch(cgroup)
                independent = Independent(cgroup)
                run_hog(hog, cgroup)
                counted[watch] = independent.read()
                independent.close()
                other.close()
                closed.append(other)
                remove(cgroup)
        except BaseException as error:
            errors.append(error)
            raise

    def read() -> None:
        for event in monitor:
            ledger.add([event])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    reader = threading.Thread(target=read, daemon=True)
    for thread in [reader, *threads]:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    eventually(lambda: sum(ledger.removals.values()) >= 60 or errors)
    monitor.close()
    reader.join(PATIENCE)
    assert not errors
    assert not reader.is_alive()
    assert len(counted) == 60
    for watch, ooms in counted.items():
        assert (ledger.ooms[watch], ledger.removals[watch]) == (ooms, 1)
        assert ledger.kills[watch] + ledger.unresolved[watch] >= 1 >= ledger.kills[watch]
    assert not any(ledger.removals[watch] for watch in closed)


# -- fork


def in_child(body: Callable[[], None]) -> int:
    """The exit code of a forked child: 0 when the body passed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def expect_closed(monitor: Monitor, watch: Watch, path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: monitor.wait(0),
        monitor.wake,
        monitor.fileno,
        lambda: monitor.watch(path),
        lambda: monitor.watches,
        lambda: iter(monitor),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    assert monitor.closed
    assert watch.closed
    watch.close()
    monitor.close()


def test_a_forked_child_closes_and_exits(memcg1: Path, hog: str) -> None:
    cgroup, other = make(memcg1 / "cgroup", "1M"), make(memcg1 / "other", "1M")
    independent = Independent(cgroup)
    try:
        with Monitor() as monitor:
            watch, second = monitor.watch_many([cgroup, other])
            assert in_child(lambda: expect_closed(monitor, watch, cgroup)) == 0
            assert in_child(watch.close) == 0
            assert in_child(monitor.close) == 0
            assert set(monitor.watches) == {watch, second}
            run_hog(hog, cgroup)
            ledger = take_until(monitor, lambda ledger: ledger.kills[watch] and ledger.ooms[watch])
            assert ledger.ooms[watch] == independent.read()
            run_hog(hog, other)
            take_until(monitor, lambda ledger: ledger.kills[second] and ledger.ooms[second], ledger)
            remove(cgroup)
            take_until(monitor, lambda ledger: ledger.removals[watch], ledger)
    finally:
        independent.close()


def test_fork_while_the_parent_holds_events_and_settles(memcg: Path, hog: str) -> None:
    """The child closes its copies of the timer and the set; the parent's go on."""
    cgroup = make(memcg / "cgroup", "1M")
    with Monitor() as monitor:
        watch = monitor.watch(cgroup)
        run_hog(hog, cgroup)
        first = next(monitor)
        assert in_child(monitor.close) == 0
        ledger = take_until(monitor, lambda ledger: ledger.kills[watch], Ledger([first]))
        remove(cgroup)
        assert in_child(monitor.close) == 0
        take_until(monitor, lambda ledger: ledger.removals[watch], ledger)
        assert (ledger.ooms[watch], ledger.kills[watch]) == (watch.ooms, 1)


def test_fork_while_another_thread_waits(memcg: Path, hog: str) -> None:
    """In an interpreter of its own: forking with threads is what newer Pythons warn of."""
    cgroup = make(memcg / "cgroup", "1M")
    code, out, err = run_python(
        "import os, subprocess, sys, threading, time\n"
        "from memcg_oom import *\n"
        "events = []\n"
        "with Monitor() as monitor:\n"
        "    watch = monitor.watch(sys.argv[1])\n"
        "    def read():\n"
        "        for event in monitor:\n"
        "            events.append(event)\n"
        "    thread = threading.Thread(target=read)\n"
        "    thread.start()\n"
        "    while not monitor._waiting:\n"
        "        time.sleep(0.001)\n"
        "    for _ in range(20):\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        "            assert monitor.closed\n"
        "            monitor.close()\n"
        "            os._exit(0)\n"
        "        assert os.waitpid(pid, 0)[1] == 0\n"
        "    subprocess.run([sys.argv[2], sys.argv[1], '8388608'])\n"
        "    while not watch.kills:\n"
        "        time.sleep(0.001)\n"
        "thread.join()\n"
        "print(watch.ooms, watch.kills)\n",
        cgroup,
        hog,
        options=["-W", "ignore::DeprecationWarning"],
    )
    assert (code, err) == (0, "")
    assert out.split()[1] == "1"


# -- Ctrl-C, and other exceptions that come from nowhere


def test_ctrl_c_in_a_blocked_wait(memcg: Path, hog: str) -> None:
    cgroup = make(memcg / "cgroup", "1M")
    native_id = threading.get_native_id()
    with Monitor() as monitor, handled(signal.SIGINT, signal.default_int_handler):
        watch = monitor.watch(cgroup)

        def interrupt() -> None:
            until_waiting(monitor, native_id)
            os.kill(os.getpid(), signal.SIGINT)

        for wait in (monitor.wait, monitor.__next__, lambda: monitor.wait(1e300)):
            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                wait()
            thread.join(PATIENCE)
        run_hog(hog, cgroup)
        ledger = take_until(monitor, lambda ledger: ledger.kills[watch])
        assert ledger.ooms[watch] == watch.ooms >= 1


class Bang(Exception):
    """Raised by a signal handler, wherever the thread happens to be."""


def is_in_wait(frame: FrameType | None) -> bool:
    """Whether a thread is in Monitor._receive() or in what that calls.

    What wait() and next() do behind it is handing out: an event that was taken and is not returned yet goes with an
    exception, as from any call that Python interrupts. All before it must survive.
    """
    while frame is not None and frame.f_code is not Monitor._receive.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.mark.parametrize("by", ["wait", "next"])
def test_a_storm_of_exceptions_from_signal_handlers(memcg1: Path, hog: str, by: str, figure: dict[str, object]) -> None:
    """Hundreds of them, everywhere inside the monitor, during a storm of kills and removals."""
    rounds = 60
    cgroups = [make(memcg1 / str(number), "1M") for number in range(rounds)]
    independents = [Independent(cgroup) for cgroup in cgroups]
    collected: list[Event] = []
    bangs = 0

    def bang(number: int, frame: FrameType | None) -> None:
        nonlocal bangs
        if is_in_wait(frame):
            bangs += 1
            raise Bang

    # A destructor that the collector happens to run in there swallows an exception, whoever's object it is.
    gc.collect()
    gc.disable()
    try:
        with Monitor() as monitor:
            watches = monitor.watch_many(cgroups)

            storm = threading.Thread(target=_kill_and_remove, args=(hog, cgroups, independents))
            with handled(signal.SIGALRM, bang):
                signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
                try:
                    storm.start()
                    deadline = time.monotonic() + PATIENCE
                    while sum(isinstance(event, Removed) for event in collected) < rounds:
                        assert time.monotonic() < deadline, "removals were lost"
                        with suppress(Bang):
                            collected.extend(monitor.wait(0.01) if by == "wait" else [next(monitor)])
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    storm.join(PATIENCE)
            collected += monitor.wait(0)
            ledger = Ledger(collected)
            figure.update(exceptions=bangs, rounds=rounds, kills=ledger.kills.total())
            figure["unresolved"] = ledger.unresolved.total()
            assert bangs >= 100
            for watch, independent in zip(watches, independents, strict=True):
                independent.await_more_than(independent.ooms)
                assert watch.ooms == independent.read() - 1
                assert ledger.ooms[watch] == watch.ooms
                assert ledger.kills[watch] == watch.kills <= 1
                assert ledger.kills[watch] + ledger.unresolved[watch] >= 1
                assert ledger.removals[watch] == 1
            assert not ledger.after_removal
    finally:
        gc.enable()
        for independent in independents:
            independent.close()


def _kill_and_remove(hog: str, cgroups: list[Path], independents: list[Independent]) -> None:
    for cgroup, independent in zip(cgroups, independents, strict=True):
        pid = start_hog(hog, cgroup)
        os.waitpid(pid, 0)
        independent.ooms = independent.read()
        remove(cgroup)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before 3.11 Python runs signal handlers at other points")
def test_an_exception_at_any_point_leaves_nothing_locked(memcg: Path) -> None:
    """Deterministic: at each point of a wait(), in turn, at which Python may run a signal handler."""
    target = 0
    finished = False
    while not finished:
        target += 1
        monitor = Monitor()
        try:
            monitor.watch(memcg)
            try:
                _bang_at(target, monitor)
                finished = True
            except Bang:
                pass
            assert not monitor._waiting, f"interrupted at point {target}, the monitor thinks that somebody waits"
            assert not monitor._lock.locked(), f"interrupted at point {target}, the lock is held for ever"
        finally:
            monitor.close()
    assert target > 20


def _bang_at(target: int, monitor: Monitor) -> None:
    """monitor.wait(0), with an exception at the given point: on entering a function, behind a call, on looping."""
    points = 0
    package = Path(Monitor.wait.__code__.co_filename).parent
    previous: dict[FrameType, str] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal points
        if not Path(frame.f_code.co_filename).is_relative_to(package):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if name in ("RESUME", "JUMP_BACKWARD") or previous.get(frame, "").startswith("CALL"):
                points += 1
                if points == target:
                    raise Bang
            if name != "CACHE":
                previous[frame] = name
        return trace

    sys.settrace(trace)
    try:
        monitor.wait(0)
    finally:
        sys.settrace(None)


def test_exceptions_in_the_middle_of_watch_many(memcg: Path, figure: dict[str, object]) -> None:
    """All or nothing also then: what was not handed out is either a watch of the monitor or nowhere."""
    cgroups = [make(memcg / str(number)) for number in range(100)]
    bangs = 0
    inside = False

    def bang(number: int, frame: FrameType | None) -> None:
        nonlocal bangs
        if inside:
            bangs += 1
            raise Bang

    with Monitor() as monitor:
        monitor.watch(memcg)  # the first watch opens what all share
        fds = len(os.listdir("/proc/self/fd"))
        with handled(signal.SIGALRM, bang):
            signal.setitimer(signal.ITIMER_REAL, 7e-4, 7e-4)
            try:
                for _ in range(400):
                    try:
                        inside = True
                        monitor.watch_many(cgroups)
                    except Bang:
                        pass
                    finally:
                        inside = False
                    known = monitor.watches
                    assert len(known) in (1, 101), "some of them only"
                    for watch in known[1:]:
                        watch.close()
                    assert len(monitor.watches) == 1
                    assert len(os.listdir("/proc/self/fd")) == fds
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        figure["exceptions"] = bangs
        assert bangs >= 100


# -- the end of the interpreter


ENDINGS = {
    "open": "",
    "deleted": "del monitor\nimport gc\ngc.collect()\n",
    "a thread waits": (
        "import threading, time\n"
        "threading.Thread(target=monitor.wait, daemon=True).start()\n"
        "while not monitor._waiting:\n"
        "    time.sleep(0.001)\n"
    ),
    "in a cycle": "monitor.itself = monitor\ndel monitor\n",
    "forked": "import os\npid = os.fork()\nif pid:\n    assert os.waitpid(pid, 0)[1] == 0\n",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_with_a_monitor_open(memcg: Path, ending: str) -> None:
    script = "import sys\nfrom memcg_oom import *\nmonitor = Monitor()\nmonitor.watch(sys.argv[1])\n" + ENDINGS[ending]
    assert run_python(script, memcg) == (0, "", "")
    code, out, err = run_python(script, memcg, options=["-W", "default"])
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert err.count("ResourceWarning: unclosed <Monitor") == 1 or ending in ("a thread waits", "forked")


def test_a_closed_monitor_warns_of_nothing(memcg: Path) -> None:
    script = "import sys\nfrom memcg_oom import *\nwith Monitor() as m:\n    m.watch(sys.argv[1])\n"
    assert run_python(script, memcg, options=["-W", "error"]) == (0, "", "")


def test_watches_of_another_process_survive_this_one(memcg: Path) -> None:
    """A process that is killed takes only its own registrations with it."""
    with Monitor() as monitor:
        watch = monitor.watch(make(memcg / "cgroup"))
        script = (
            "import sys, os\nfrom memcg_oom import *\n"
            "monitor = Monitor()\nmonitor.watch(sys.argv[1])\nos.kill(os.getpid(), 9)"
        )
        assert run_python(script, memcg / "cgroup")[0] == -signal.SIGKILL
        (memcg / "cgroup").rmdir()
        take_until(monitor, lambda ledger: ledger.removals[watch])
