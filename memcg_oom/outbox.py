"""Events that were made and not handed out yet: those that are ready, and those that wait for a victim's name."""

from __future__ import annotations

import time

from memcg_oom.commit import commit
from memcg_oom.events import OomKill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.commit import Change
    from memcg_oom.events import Event, Victim
    from memcg_oom.watch import AnyWatch


class Queue:
    """What is held back of one watch: an OomKill whose victims are looked for, and whatever came after it.

    Attributes:
        events: each with the moment at which it waits no longer, in nanoseconds of CLOCK_MONOTONIC.
        victims: those that were found and are not in an event yet, in their order.
    """

    __slots__ = ("events", "victims")

    def __init__(self, events: tuple[tuple[Event, int], ...], victims: tuple[Victim, ...] = ()) -> None:
        self.events = events
        self.victims = victims

    @property
    def missing(self) -> int:
        """How many victims are looked for."""
        return sum(lacking(event) for event, _ in self.events) - len(self.victims)

    def leave(self, now: int) -> tuple[list[Event], Queue | None, int]:
        """Who leaves at this moment.

        Kills and victims of one cgroup are in the same order. So they are put together as soon as there are as many of
        the one as of the other. Where it came to no such moment nobody knows which victim is missing: then one that
        waits alone gets what was found, and of several nobody.

        Returns:
            Those who leave, who stays (None: nobody), and how many victims are missing in those who leave.
        """
        left: list[Event] = []
        rest, victims, short = list(self.events), self.victims, 0
        while rest:
            needs = [lacking(event) for event, _ in rest]
            if sum(needs) == len(victims):
                for (event, _), need in zip(rest, needs, strict=True):
                    left.append(named(event, victims[:need]) if need else event)
                    victims = victims[need:]
                return left, None, short
            event, until = rest[0]
            if needs[0] and until > now:
                break
            if needs[0] and needs[0] == sum(needs) and len(victims) < needs[0]:
                event, short, victims = named(event, victims), short + needs[0] - len(victims), ()
            elif needs[0]:
                short, victims = short + needs[0], ()
            left.append(event)
            del rest[0]
        return left, Queue(tuple(rest), victims) if rest else None, short


def lacking(event: Event) -> int:
    """How many victims an event waits for."""
    return event.count if isinstance(event, OomKill) and not event.victims else 0


def named(event: Event, victims: tuple[Victim, ...]) -> Event:
    """The event with its victims. Where a whole group is killed its first victim is counted, and told of, twice."""
    by_pid: dict[int, Victim] = {}
    for victim in victims:
        by_pid.setdefault(victim.pid, victim)
    return event.__replace__(victims=tuple(by_pid.values()))


class Outbox:
    """All events that were made and not handed out.

    One hand, the monitor's, puts events in, with the lock held. One waiter takes them out: it looks what there is, and
    counts it as handed out by setting `next` when no call stands between that and its return.

    Attributes:
        events: those that are ready, in their order; those before `next` were handed out.
        next: the index of the first that was not.
        waiting: what is held back, by watch.
        patience: nanoseconds that an OomKill waits for its victims; None: they are not looked for.
    """

    __slots__ = ("events", "next", "waiting", "patience")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.next = 0
        self.waiting: dict[AnyWatch, Queue] = {}
        self.patience: int | None = None

    def __len__(self) -> int:
        return len(self.events) - self.next

    def put(self, events: list[Event]) -> list[Change]:
        """The changes that add events; they come to be when committed."""
        if not events:
            return []
        if self.patience is None or not (self.waiting or OomKill in set(map(type, events))):
            return [(self, "events", self.events + events)]
        until = time.monotonic_ns() + self.patience
        ready: list[Event] = []
        queues: dict[AnyWatch, Queue] = {}
        for event in events:
            watch: AnyWatch | None = getattr(event, "watch", None)
            queue = None if watch is None else queues.get(watch) or self.waiting.get(watch)
            if watch is None or (queue is None and not lacking(event)):
                ready.append(event)
            elif queue is None:
                queues[watch] = Queue(((event, until),))
            else:
                queues[watch] = Queue((*queue.events, (event, until)), queue.victims)
        changes: list[Change] = [(self, "events", self.events + ready)] if ready else []
        if queues:
            changes.append((self, "waiting", self.waiting | queues))
        return changes

    def first(self) -> tuple[list[Event], int]:
        """The first that somebody still waits for, if any, and what `next` is once it is handed out."""
        for index in range(self.next, len(self.events)):
            if wanted(self.events[index]):
                return [self.events[index]], index + 1
        return [], len(self.events)

    def all(self) -> tuple[list[Event], int]:
        """All that somebody still waits for, and what `next` is once they are handed out."""
        return [event for event in self.events[self.next :] if wanted(event)], len(self.events)

    def tidy(self) -> None:
        """Lets go of what was handed out, once that is all: by then it costs nothing."""
        if self.next == len(self.events):
            commit([(self, "events", []), (self, "next", 0)])


def wanted(event: Event) -> bool:
    """Whether somebody still waits for it: a watch yields nothing after it was closed."""
    watch = getattr(event, "watch", None)
    return watch is None or not watch.closed
