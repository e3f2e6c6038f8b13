"""The lock under signals: whoever is interrupted holds it inside the block, and nowhere else."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import pytest

from memcg_oom.lock import new_lock
from tests.support import PATIENCE

INTERRUPTIONS = 3000


class Interrupted(Exception):
    pass


def interrupt(*_: object) -> None:
    raise Interrupted


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def take_and_leave(lock: threading.Lock) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.0001)
    while True:
        with lock:
            pass


def test_an_interruption_leaves_it_free() -> None:
    lock = new_lock()
    for _ in range(INTERRUPTIONS):
        with pytest.raises(Interrupted):
            take_and_leave(lock)
        assert not lock.locked()


def test_an_interruption_ends_the_wait_for_it() -> None:
    lock = new_lock()
    assert lock.acquire(blocking=False)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with pytest.raises(Interrupted), lock:
        pytest.fail("two hold it")
    lock.release()
    assert lock.acquire(blocking=False)


def test_a_handler_may_raise_what_ends_an_iterator() -> None:
    lock = new_lock()
    handled = threading.Event()

    def handler(*_: object) -> None:
        handled.set()
        raise StopIteration

    signal.signal(signal.SIGALRM, handler)
    assert lock.acquire(blocking=False)

    def let_go() -> None:
        handled.wait(PATIENCE)
        lock.release()

    other = threading.Thread(target=let_go)
    other.start()
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with contextlib.suppress(StopIteration), lock:
        assert lock.locked()
    other.join(PATIENCE)
    assert handled.is_set()
    assert not lock.locked()


def test_one_holds_it_at_a_time_and_an_exception_lets_it_go() -> None:
    lock = new_lock()
    inside: list[int] = []
    most: set[int] = set()

    def work(number: int) -> None:
        for _ in range(2000):
            with lock:
                inside.append(number)
                most.add(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert most == {1}
    with pytest.raises(Interrupted), lock:
        raise Interrupted
    assert not lock.locked()
