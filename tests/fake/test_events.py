"""The events themselves, and the box that they leave by."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memcg_oom import (
    CgroupEvent,
    Created,
    Degraded,
    Event,
    MemoryHigh,
    MemoryMax,
    Monitor,
    Oom,
    OomKill,
    OomResolved,
    PodNames,
    Pressure,
    Removed,
    Stall,
    Unattributed,
    UsageCrossed,
    Victim,
    Watch,
)
from memcg_oom.command.text import EVENTS, json_event, kind_name, line
from memcg_oom.commit import commit
from memcg_oom.outbox import Outbox
from tests.fake.fake_kernel import AGES, FakeKernel

VICTIM = Victim(
    pid=93,
    comm="hog",
    uid=0,
    anon_rss=8192,
    file_rss=4096,
    shmem_rss=0,
    total_vm=16384,
    oom_memcg="/a",
    task_memcg=None,
)
VALUES: dict[str, object] = {
    "time_ns": 12,
    "cgroup": "/a",
    "count": 3,
    "group": True,
    "victims": (VICTIM,),
    "limit_cgroup": "/a",
    "ooms": 5,
    "after": 1.5,
    "threshold": 4096,
    "above": True,
    "usage": 8192,
    "level": "low",
    "repeated": True,
    "kind": "some",
    "late": True,
    "unresolved": 4,
    "what": "w",
    "cost": "c",
    "remedy": "r",
}
FIELDS: dict[type[Event], tuple[str, ...]] = {
    Event: ("time_ns",),
    CgroupEvent: ("time_ns", "cgroup", "watch"),
    Oom: ("time_ns", "cgroup", "watch", "count", "late"),
    OomKill: ("time_ns", "cgroup", "watch", "count", "group", "victims", "limit_cgroup"),
    MemoryMax: ("time_ns", "cgroup", "watch", "count"),
    MemoryHigh: ("time_ns", "cgroup", "watch", "count"),
    OomResolved: ("time_ns", "cgroup", "watch", "after"),
    UsageCrossed: ("time_ns", "cgroup", "watch", "threshold", "above", "usage", "count"),
    Pressure: ("time_ns", "cgroup", "watch", "level", "count", "repeated"),
    Stall: ("time_ns", "cgroup", "watch", "kind", "count"),
    Removed: ("time_ns", "cgroup", "watch", "unresolved"),
    Created: ("time_ns", "cgroup", "watch"),
    Unattributed: ("time_ns", "count", "ooms", "victims"),
    Degraded: ("time_ns", "what", "cost", "remedy"),
}
SCHEMA = Path(__file__).parents[2] / "docs" / "events.schema.json"
ALL = pytest.mark.parametrize("kind", list(FIELDS), ids=lambda kind: str(kind.__name__))


@pytest.fixture
def watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Watch, Watch]]:
    kernel = FakeKernel(tmp_path, monkeypatch)
    with Monitor(settle=AGES) as monitor:
        first, second = monitor.watch_many([kernel.make(name).path for name in "ab"])
        yield first, second
    kernel.close()


def arguments(kind: type[Event], watch: Watch) -> dict[str, Any]:
    return {name: watch if name == "watch" else VALUES[name] for name in FIELDS[kind]}


@ALL
def test_fields(kind: type[Event], watches: tuple[Watch, Watch]) -> None:
    event = kind(**arguments(kind, watches[0]))
    assert kind.fields() == event.fields() == FIELDS[kind]
    assert {name: getattr(event, name) for name in event.fields()} == arguments(kind, watches[0])


@pytest.mark.parametrize("kind", [kind for kind in FIELDS if kind not in (Event, CgroupEvent)])
def test_each_is_printed_and_in_the_schema(kind: type[Event], watches: tuple[Watch, Watch]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked where jsonschema is installed")
    event = kind(**arguments(kind, watches[0]))
    assert kind_name(kind) in EVENTS
    assert kind_name(kind) in line(event)
    members = json.loads(json.dumps(json_event(event)))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(members)
    assert members.keys() == {"v", "event", "time", *FIELDS[kind]} - {"time_ns", "watch"}


POD = "0cb8aa3c-6d0e-4f3e-8a6e-0123456789ab"
CONTAINER = 16 * "3f2a"


@pytest.mark.parametrize(
    ("cgroup", "words", "identity"),
    [
        (
            f"/sys/fs/cgroup/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{CONTAINER}.scope",
            "pod shop/web-0, containerd 3f2a3f2a3f2a",
            {
                "unit": f"cri-containerd-{CONTAINER}.scope",
                "slice": f"kubepods-pod{POD.replace('-', '_')}.slice",
                "runtime": "containerd",
                "container": CONTAINER,
                "pod": POD,
                "qos": "Guaranteed",
                "pod_namespace": "shop",
                "pod_name": "web-0",
            },
        ),
        ("/sys/fs/cgroup/system.slice/ssh.service", "ssh.service", {"unit": "ssh.service", "slice": "system.slice"}),
        (r"/sys/fs/cgroup/machine.slice/machine-qemu\x2d1\x2dweb.scope", "machine web", None),
        ("/sys/fs/cgroup/web", "", {}),
    ],
    ids=["pod", "unit", "machine", "nothing"],
)
def test_what_the_cgroup_was_made_for(
    tmp_path: Path, watches: tuple[Watch, Watch], cgroup: str, words: str, identity: dict[str, object] | None
) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked where jsonschema is installed")
    (tmp_path / "pods" / f"shop_web-0_{POD}").mkdir(parents=True)
    pods = PodNames(str(tmp_path / "pods"))
    event = OomKill(time_ns=1, cgroup=cgroup, watch=watches[0], count=1)
    assert line(event, pods).endswith(f"  {cgroup}  [{words}]" if words else f"  {cgroup}")
    members = json.loads(json.dumps(json_event(event, pods)))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(members)
    if identity is not None:
        assert members.get("identity", {}) == identity
    # Where nobody knows the name the uid is told.
    assert ("shop/web-0" in line(event)) is False
    assert (POD in line(event)) == ("pod" in words)


def test_names_that_are_not_utf_8(watches: tuple[Watch, Watch]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked where jsonschema is installed")
    victim = VICTIM.__replace__(comm="h\udcff", task_memcg="/\udcfe")
    event = OomKill(time_ns=1, cgroup="/a", watch=watches[0], count=1, victims=(victim,), limit_cgroup="/\udcfd")
    members = json.loads(json.dumps(json_event(event)))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(members)
    assert base64.b64decode(members["victims"][0]["comm_base64"]) == b"h\xff"
    assert base64.b64decode(members["victims"][0]["task_memcg_base64"]) == b"/\xfe"
    assert base64.b64decode(members["limit_cgroup_base64"]) == b"/\xfd"


def test_defaults(watches: tuple[Watch, Watch]) -> None:
    assert Oom(time_ns=1, cgroup="/a", watch=watches[0], count=1).late is False
    assert OomKill(time_ns=1, cgroup="/a", watch=watches[0], count=1).group is False
    assert Removed(time_ns=1, cgroup="/a", watch=watches[0]).unresolved == 0


@ALL
def test_immutable(kind: type[Event], watches: tuple[Watch, Watch]) -> None:
    event = kind(**arguments(kind, watches[0]))
    for name in (*event.fields(), "anything"):
        with pytest.raises(AttributeError, match=f"{kind.__name__} is immutable"):
            setattr(event, name, 0)
        with pytest.raises(AttributeError, match=f"{kind.__name__} is immutable"):
            delattr(event, name)
    assert event == kind(**arguments(kind, watches[0]))
    assert not hasattr(event, "__dict__")


@ALL
def test_keywords_only_and_all_of_them(kind: type[Event], watches: tuple[Watch, Watch]) -> None:
    given = arguments(kind, watches[0])
    make: Callable[..., Event] = kind
    with pytest.raises(TypeError):
        make(*given.values())
    with pytest.raises(TypeError):
        make(**given, surplus=1)
    for name in given.keys() - {"late", "unresolved", "group", "ooms", "repeated", "victims", "limit_cgroup"}:
        with pytest.raises(TypeError, match=name):
            make(**{key: value for key, value in given.items() if key != name})


@ALL
def test_equality_and_hash(kind: type[Event], watches: tuple[Watch, Watch]) -> None:
    given = arguments(kind, watches[0])
    event, same = kind(**given), kind(**given)
    assert event == same
    assert hash(event) == hash(same)
    assert len({event, same}) == 1
    for name in given:
        other = kind(**{**given, name: watches[1] if name == "watch" else "other"})
        assert event != other
        assert len({event, other}) == 2
    assert event != tuple(given.values())
    assert event is not None


def test_events_of_two_kinds_are_never_equal(watches: tuple[Watch, Watch]) -> None:
    kill = OomKill(time_ns=1, cgroup="/a", watch=watches[0], count=1)
    removed = Removed(time_ns=1, cgroup="/a", watch=watches[0], unresolved=1)
    assert kill != removed
    assert len({kill, removed}) == 2


def test_repr(watches: tuple[Watch, Watch]) -> None:
    watch = watches[0]
    assert (
        repr(Oom(time_ns=5, cgroup="/x\udcff", watch=watch, count=2))
        == rf"Oom(time_ns=5, cgroup='/x\udcff', watch={watch!r}, count=2, late=False)"
    )
    assert repr(Degraded(time_ns=5, what="a", cost="b", remedy="c")) == (
        "Degraded(time_ns=5, what='a', cost='b', remedy='c')"
    )


def test_match_by_keywords(watches: tuple[Watch, Watch]) -> None:
    def describe(event: Event) -> str:
        match event:
            case Oom(cgroup=cgroup, count=count, late=False):
                return f"{count} in {cgroup}"
            case Oom(late=True):
                return "late"
            case OomKill(watch=watch, count=1) if watch is watches[0]:
                return "one"
            case CgroupEvent(cgroup=cgroup):
                return cgroup
            case Event(time_ns=time_ns):
                return str(time_ns)
        return ""

    given: dict[str, Any] = {"time_ns": 9, "cgroup": "/a", "watch": watches[0]}
    assert describe(Oom(**given, count=2)) == "2 in /a"
    assert describe(Oom(**given, count=2, late=True)) == "late"
    assert describe(OomKill(**given, count=1)) == "one"
    assert describe(Removed(**given)) == "/a"
    assert describe(Degraded(time_ns=9, what="", cost="", remedy="")) == "9"
    with pytest.raises(TypeError):
        match Oom(**given, count=2):
            case Oom(9):  # type: ignore[misc]
                pass


# -- the outbox


def kills(watch: Watch, *counts: int) -> list[Event]:
    return [OomKill(time_ns=1, cgroup="/a", watch=watch, count=count) for count in counts]


def numbers(events: list[Event]) -> list[int]:
    return [event.count for event in events if isinstance(event, OomKill)]


def take(box: Outbox, found: tuple[list[Event], int]) -> list[int]:
    """Hands out what first() or all() found, as the monitor does."""
    events, box.next = found
    return numbers(events)


def test_the_outbox_keeps_the_order(watches: tuple[Watch, Watch]) -> None:
    box = Outbox()
    assert (len(box), bool(box), box.first(), box.all()) == (0, False, ([], 0), ([], 0))
    commit(box.put(kills(watches[0], 1, 2)))
    commit(box.put(kills(watches[1], 3)))
    assert len(box) == 3
    assert numbers(box.all()[0]) == [1, 2, 3]
    assert len(box) == 3, "found, but not handed out yet"
    assert take(box, box.all()) == [1, 2, 3]
    assert (len(box), take(box, box.all())) == (0, [])


def test_the_outbox_one_by_one(watches: tuple[Watch, Watch]) -> None:
    box = Outbox()
    commit(box.put(kills(watches[0], 1, 2, 3)))
    assert take(box, box.first()) == [1]
    assert len(box) == 2
    commit(box.put(kills(watches[0], 4)))
    box.tidy()  # some are left, so nothing is moved
    assert take(box, box.first()) == [2]
    assert len(box) == 2
    assert take(box, box.all()) == [3, 4]
    assert take(box, box.first()) == []
    box.tidy()
    assert (box.events, box.next) == ([], 0)


def test_the_outbox_is_not_changed_before_the_commit(watches: tuple[Watch, Watch]) -> None:
    box = Outbox()
    changes = box.put(kills(watches[0], 1))
    assert len(box) == 0
    assert box.put([]) == []
    commit(changes)
    assert len(box) == 1


def test_the_outbox_skips_closed_watches(watches: tuple[Watch, Watch]) -> None:
    closed, kept = watches
    box = Outbox()
    commit(box.put(kills(closed, 1) + kills(kept, 2) + kills(closed, 3) + kills(kept, 4) + kills(closed, 5)))
    closed.close()
    assert take(box, box.first()) == [2]
    assert take(box, box.all()) == [4]
    degraded = Degraded(time_ns=1, what="", cost="", remedy="")
    commit(box.put([*kills(closed, 6), degraded]))
    events, box.next = box.first()
    assert events == [degraded]
    assert take(box, box.first()) == []


def test_commit_stops_at_what_cannot_be_stored(watches: tuple[Watch, Watch]) -> None:
    # It cannot fail on slots; should a name be wrong, that is not passed over in silence.
    watch = watches[0]
    with pytest.raises(AttributeError):
        commit([(watch, "ooms", 5), (watch, "no_such_slot", 1)])
    assert watch.ooms == 5
