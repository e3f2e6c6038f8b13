"""memcg-oom export: how long series live, what is counted where, and a server that no client can hold up."""

from __future__ import annotations

import gzip
import os
import random
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from memcg_oom import (
    Created,
    Degraded,
    Event,
    MemoryHigh,
    MemoryMax,
    Monitor,
    Oom,
    OomKill,
    PodNames,
    Removed,
    Unattributed,
    Watch,
)
from memcg_oom.command import health as health_module
from memcg_oom.command.export import Options, _complain_once, export
from memcg_oom.command.health import Health
from memcg_oom.command.series import (
    CAUSES,
    KINDS,
    LABELS,
    NAMING_PATIENCE,
    NAMING_PERIOD,
    OVERFLOW,
    Series,
    label_text,
)
from memcg_oom.command.textfile import NAME, TextFile
from tests.fake.fake_kernel import FakeKernel
from tests.support import PATIENCE, eventually, run_python

if TYPE_CHECKING:
    from memcg_oom.command.metrics import Metrics
    from memcg_oom.command.server import Server

KEEP = 900.0
POD = "0cb81d5e-1f5a-4c1b-9c7e-9a1d3c5b7e9f"
SHORT = 0.5  # seconds: the patience of a server that a test has to wait for


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Told:
    """A watcher's part: events of cgroups that nobody watches, and what was told altogether."""

    def __init__(self, *, limit: int = 100, keep: float = KEEP, pods: PodNames | None = None) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.series = Series(keep=keep, limit=limit, say=self.said.append, pods=pods, clock=self.clock)
        self.counts = dict.fromkeys(KINDS, 0)

    def create(self, path: str) -> Watch:
        watch = cast(Watch, object())
        self.series.take(Created(time_ns=1, cgroup=path, watch=watch))
        return watch

    def tell(self, watch: Watch, path: str, kind: str = "oom_kill", count: int = 1, *, late: bool = False) -> None:
        event: Event
        if kind == "oom":
            event = Oom(time_ns=1, cgroup=path, watch=watch, count=count, late=late)
        elif kind == "oom_kill":
            event = OomKill(time_ns=1, cgroup=path, watch=watch, count=count)
        elif kind == "max":
            event = MemoryMax(time_ns=1, cgroup=path, watch=watch, count=count)
        else:
            event = MemoryHigh(time_ns=1, cgroup=path, watch=watch, count=count)
        self.counts[kind] += count
        self.series.take(event)

    def remove(self, watch: Watch, path: str, unresolved: int = 0) -> None:
        self.series.take(Removed(time_ns=1, cgroup=path, watch=watch, unresolved=unresolved))

    def later(self, seconds: float) -> None:
        self.clock.now += seconds
        self.series.tidy()

    def values(self, kind: str = "oom_kill") -> dict[str, int]:
        """The series of one kind, by path, without an overflow that holds nothing."""
        counts = self.series.snapshot().counts
        values = {row.path: values[KINDS.index(kind)] for row, values in counts.items()}
        if not any(next(iter(counts.values()))):
            del values[OVERFLOW]
        return values

    def labels(self, path: str) -> dict[str, str]:
        (row,) = (row for row in self.series.snapshot().counts if row.path == path)
        return {name: text for name, text in zip(LABELS, row.labels, strict=True) if text}


# -- the life of a series


def test_a_series_begins_at_0_when_its_cgroup_is_first_seen() -> None:
    told = Told()
    watch = cast(Watch, object())
    told.series.see(watch, "/a")
    told.create("/b")
    assert told.values() == {"/a": 0, "/b": 0}
    told.series.take(Created(time_ns=1, cgroup="/a", watch=watch))  # found by the scan and told as well
    told.tell(watch, "/a", count=3)
    told.tell(watch, "/a", "oom", 7)
    assert told.values() == {"/a": 3, "/b": 0}
    assert told.values("oom") == {"/a": 7, "/b": 0}
    assert len(told.series.snapshot().watches) == 2


def test_a_series_is_kept_for_a_while_after_the_removal_and_then_goes() -> None:
    told = Told()
    watch = told.create("/a")
    told.tell(watch, "/a")
    assert told.series.due() is None
    told.remove(watch, "/a")
    assert told.series.due() == KEEP
    told.later(KEEP - 1)
    assert told.values() == {"/a": 1}
    assert told.series.due() == 1
    assert told.series.snapshot().watches == []
    told.later(1)
    assert told.values() == {}
    assert told.series.due() is None
    assert told.series.snapshot().told[KINDS.index("oom_kill")] == 1


def test_a_cgroup_made_anew_goes_on_with_the_counters() -> None:
    told = Told()
    first = told.create("/a")
    told.tell(first, "/a", count=5)
    told.remove(first, "/a")
    told.later(KEEP - 1)
    second = told.create("/a")
    told.later(KEEP)
    assert told.values() == {"/a": 5}
    told.tell(second, "/a")
    told.remove(second, "/a")
    assert told.values() == {"/a": 6}
    told.later(KEEP)
    told.create("/a")
    assert told.values() == {"/a": 0}


def test_an_oom_that_comes_after_the_removal_is_counted_and_leaves_nothing_behind() -> None:
    told = Told()
    watch = told.create("/a")
    told.remove(watch, "/a")
    told.tell(watch, "/a", "oom", late=True)
    assert told.values("oom") == {"/a": 1}
    assert told.series.snapshot().watches == []
    told.later(KEEP)
    assert told.values("oom") == {}
    told.tell(watch, "/a", "oom", late=True)
    assert told.values("oom") == {"/a": 1}
    told.later(KEEP)
    assert told.values("oom") == {}


def test_a_renamed_cgroup_keeps_its_series_and_shares_it_with_who_comes_under_its_old_path() -> None:
    told = Told()
    first = told.create("/a")
    told.tell(first, "/b")
    assert told.values() == {"/a": 1}
    second = told.create("/a")
    told.tell(second, "/a")
    told.remove(first, "/b")
    told.later(KEEP)
    assert told.values() == {"/a": 2}
    told.remove(second, "/a")
    told.later(KEEP)
    assert told.values() == {}


def test_the_root_of_the_hierarchy_has_a_series_that_never_goes_and_is_not_watched() -> None:
    told = Told()
    told.series.hold("/mount")
    told.tell(cast(Watch, object()), "/mount")
    assert told.values() == {"/mount": 1}
    assert told.series.snapshot().watches == []
    told.later(10 * KEEP)
    assert told.values() == {"/mount": 1}


# -- the overflow


def test_what_there_is_no_room_for_is_counted_together() -> None:
    told = Told(limit=2)
    watches = {path: told.create(path) for path in ("/a", "/b", "/c", "/d")}
    for path, watch in watches.items():
        told.tell(watch, path)
    assert told.values() == {"/a": 1, "/b": 1, OVERFLOW: 2}
    assert told.labels(OVERFLOW) == {"cgroup": OVERFLOW}
    assert told.series.snapshot().overflowed == 2
    assert len(told.said) == 1
    assert "--series" in told.said[0]
    told.remove(watches["/c"], "/c")
    assert told.series.snapshot().overflowed == 1
    told.later(KEEP)
    assert told.values() == {"/a": 1, "/b": 1, OVERFLOW: 2}


def test_room_that_becomes_free_goes_to_who_has_waited_longest_and_then_to_newcomers() -> None:
    told = Told(limit=1)
    first, second, third = (told.create(path) for path in ("/a", "/b", "/c"))
    told.tell(second, "/b")
    told.remove(first, "/a")
    told.later(KEEP)
    assert told.values() == {"/b": 0, OVERFLOW: 1}
    told.tell(second, "/b")
    told.tell(third, "/c")
    assert told.values() == {"/b": 1, OVERFLOW: 2}
    told.remove(second, "/b")
    told.remove(third, "/c")
    told.later(KEEP)
    told.tell(told.create("/d"), "/d")
    assert told.values() == {"/d": 1, OVERFLOW: 2}
    assert len(told.said) == 1


def test_no_count_is_lost_and_no_counter_falls_whatever_happens() -> None:
    dice = random.Random(7)
    told = Told(limit=12, keep=50)
    living: dict[Watch, str] = {}
    gone: list[tuple[Watch, str]] = []
    expired = dict.fromkeys(KINDS, 0)
    before: dict[tuple[str, str], int] = {}
    for _ in range(5000):
        what = dice.random()
        if what < 0.25 and len(living) < 30:
            path = f"/{dice.randrange(40)}"
            living[told.create(path)] = path
        elif what < 0.45 and living:
            watch = dice.choice(list(living))
            gone.append((watch, living[watch]))
            told.remove(watch, living.pop(watch))
        elif what < 0.5 and gone:
            told.tell(*gone[-1], "oom", late=True)
        elif what < 0.8 and living:
            watch = dice.choice(list(living))
            told.tell(watch, living[watch], dice.choice(KINDS), dice.randrange(1, 9))
        else:
            told.later(dice.randrange(20))
        snapshot = told.series.snapshot()
        now = {
            (row.path, kind): count
            for row, counts in snapshot.counts.items()
            for kind, count in zip(KINDS, counts, strict=True)
        }
        for key in before.keys() - now.keys():
            expired[key[1]] += before[key]
        assert all(now[key] >= count for key, count in before.items() if key in now)
        before = now
        for index, kind in enumerate(KINDS):
            assert sum(count for key, count in now.items() if key[1] == kind) + expired[kind] == told.counts[kind]
            assert snapshot.told[index] == told.counts[kind]
        assert len(snapshot.counts) <= 1 + 12
        assert len(snapshot.watches) == len(living)
    assert sum(expired.values()) > 0
    assert before[OVERFLOW, "oom_kill"] > 0
    for watch, path in living.items():
        told.remove(watch, path)
    told.later(50)
    assert set(told.values()) == {OVERFLOW}


# -- labels


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/plain/\u6f22", "/plain/\u6f22"),
        ('/"quotes"\n', '/"quotes"\n'),
        ("/caf\udce9", r"/caf\xe9"),
        (r"/caf\xe9", r"/caf\x5cxe9"),
        (r"/dev\x2dmapper.swap", r"/dev\x2dmapper.swap"),
        (r"/\x5c", r"/\x5cx5c"),
        ("/\\\udcff", r"/\\xff"),
        (r"/\xFF\x7f\xe", r"/\xFF\x7f\xe"),
    ],
)
def test_names_that_are_no_text_are_written_without_loss(name: str, text: str) -> None:
    assert label_text(name) == text


def test_different_names_never_have_the_same_label() -> None:
    dice = random.Random(3)
    for _ in range(20_000):
        name = "".join(dice.choices(["\\", "x", "5", "c", "f", "8", "\udcff", "\udc80", "/"], k=dice.randrange(12)))
        text = label_text(name)
        text.encode("utf-8")
        escape = re.compile(r"\\x(5c|[89a-f][0-9a-f])")
        back = escape.sub(lambda found: "\\" if found[1] == "5c" else chr(0xDC00 + int(found[1], 16)), text)
        assert back == name


def test_a_cgroup_is_told_with_what_it_was_made_for(tmp_path: Path) -> None:
    (tmp_path / f"shop_web-0_{POD}").mkdir()
    told = Told(pods=PodNames(str(tmp_path)))
    container = "3f2a" * 16
    path = f"/sys/fs/cgroup/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{container}.scope"
    told.create(path)
    assert told.labels(path) == {
        "cgroup": path,
        "unit": f"cri-containerd-{container}.scope",
        "runtime": "containerd",
        "container_id": container,
        "pod_uid": POD,
        "pod": "web-0",
        "namespace": "shop",
        "qos": "Guaranteed",
    }
    assert told.series.due() is None
    told.create("/machine/qemu/libvirt/x")
    told.create("/libvirt/qemu/vm")
    assert told.labels("/libvirt/qemu/vm") == {"cgroup": "/libvirt/qemu/vm", "runtime": "libvirt", "machine": "vm"}


def test_the_name_of_a_pod_is_looked_for_until_something_is_counted(tmp_path: Path) -> None:
    told = Told(pods=PodNames(str(tmp_path)))
    path = f"/kubepods/burstable/pod{POD}"
    told.create(path)
    nameless = {"cgroup": path, "pod_uid": POD, "qos": "Burstable"}
    told.later(NAMING_PERIOD)
    assert told.labels(path) == nameless
    assert told.series.due() == NAMING_PERIOD
    (tmp_path / f"shop_web-0_{POD}").mkdir()
    told.later(NAMING_PERIOD)
    named = {**nameless, "pod": "web-0", "namespace": "shop"}
    assert told.labels(path) == named
    assert told.series.due() is None


def test_labels_stand_from_the_first_count_on(tmp_path: Path) -> None:
    told = Told(pods=PodNames(str(tmp_path)))
    paths = [f"/kubepods/pod{POD}", f"/kubepods/pod{POD[::-1]}"]
    watches = [told.create(path) for path in paths]
    assert told.series.due() == 0  # the first look, and then every period
    told.tell(watches[0], paths[0])
    (tmp_path / f"shop_web-0_{POD}").mkdir()
    told.later(NAMING_PERIOD)
    assert "pod" not in told.labels(paths[0])
    told.later(NAMING_PATIENCE)
    assert told.series.due() is None


def test_the_first_count_is_the_last_moment_to_find_a_name(tmp_path: Path) -> None:
    told = Told(pods=PodNames(str(tmp_path)))
    path = f"/kubepods/pod{POD}"
    watch = told.create(path)
    (tmp_path / f"shop_web-0_{POD}").mkdir()
    told.tell(watch, path)
    assert told.labels(path)["pod"] == "web-0"


# -- what is of no cgroup


def test_totals_of_the_host() -> None:
    told = Told()
    told.series.take(Unattributed(time_ns=1, count=3, ooms=2))
    told.series.take(Unattributed(time_ns=1, count=4))
    told.remove(told.create("/a"), "/a", unresolved=5)
    for number in (1, 2, 1, *range(2 * CAUSES)):
        told.series.take(Degraded(time_ns=1, what=f"cause {number}", cost="c", remedy="r"))
    snapshot = told.series.snapshot()
    assert (snapshot.unattributed_kills, snapshot.unattributed_ooms, snapshot.unresolved) == (7, 2, 5)
    assert snapshot.degraded[:3] == ["cause 1", "cause 2", "cause 0"]
    assert len(snapshot.degraded) == CAUSES + 1
    assert snapshot.degraded[-1] == OVERFLOW


def test_health_tells_of_a_watcher_that_is_stuck_or_has_ended() -> None:
    clock = Clock()
    health = Health(clock)
    assert "not begun" in health.trouble()
    health.waits()
    clock.now += 10 * health_module.PATIENCE
    assert health.trouble() == ""
    health.works()
    clock.now += health_module.PATIENCE
    assert health.trouble() == ""
    clock.now += 1
    assert "has not come back from a round for 31 s" in health.trouble()
    health.waits()
    assert health.trouble() == ""
    health.ended("no memory")
    assert health.trouble() == "the watcher takes no events: no memory"


# -- the text


@pytest.fixture
def prometheus() -> Any:
    return pytest.importorskip("prometheus_client", reason="metrics are tried where prometheus_client is installed")


def metrics_of(told: Told, health: Health | None = None, kinds: tuple[str, ...] = ("oom", "oom_kill")) -> Metrics:
    from memcg_oom.command.metrics import Metrics

    health = health or Health()
    health.waits()
    return Metrics(told.series, health, kinds)


def registry_of(metrics: Metrics) -> Any:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics)
    return registry


HOSTILE = ['/"', "/\\", "/\\n\n", "/caf\udce9", "/tab\t\r\x1b\x07", "/{a=\u00fc,}", "/\u2028", "/# HELP x"]


def test_hostile_names_come_back_from_either_format(prometheus: Any) -> None:
    from prometheus_client.openmetrics import exposition, parser
    from prometheus_client.parser import text_string_to_metric_families

    parse: Any = parser  # without types
    write: Any = exposition
    told = Told()
    for name in HOSTILE:
        told.tell(told.create(name), name)
    registry = registry_of(metrics_of(told))
    plain = prometheus.generate_latest(registry).decode()
    openmetrics = write.generate_latest(registry).decode()
    for families in (text_string_to_metric_families(plain), parse.text_string_to_metric_families(openmetrics)):
        found = [
            sample.labels["cgroup"]
            for family in families
            for sample in family.samples
            if sample.name == "memcg_events_oom_kill_total" and sample.value == 1
        ]
        assert found == [label_text(name) for name in HOSTILE]


def test_promtool_has_nothing_against_it(prometheus: Any) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    told = Told(limit=len(HOSTILE) - 1)
    for name in HOSTILE:
        told.tell(told.create(name), name)
    told.series.take(Degraded(time_ns=1, what='no "log"\n', cost="c", remedy="r"))
    text = prometheus.generate_latest(registry_of(metrics_of(told, kinds=KINDS)))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_there_are_series_of_what_is_asked_for(prometheus: Any) -> None:
    told = Told()
    told.tell(told.create("/a"), "/a", "max", 2)
    assert b"memcg_events_max" not in prometheus.generate_latest(registry_of(metrics_of(told)))
    text = prometheus.generate_latest(registry_of(metrics_of(told, kinds=("oom", "oom_kill", "max")))).decode()
    assert 'memcg_exporter_told_total{event="max"} 2.0' in text
    assert re.search(r'memcg_events_max_total{cgroup="/a",.*} 2\.0', text)
    assert "memcg_events_high" not in text


def test_a_scrape_is_of_one_moment_and_holds_nobody_up(prometheus: Any) -> None:
    told = Told()
    watch = told.create("/a")
    scrape = iter(metrics_of(told).collect())
    next(scrape)  # it is in the middle
    thread = threading.Thread(target=told.tell, args=(watch, "/a"))
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert told.values() == {"/a": 1}
    kills = next(scrape)
    assert {sample.labels["cgroup"]: sample.value for sample in kills.samples} == {OVERFLOW: 0, "/a": 0}


def test_a_scrape_gives_way_to_a_watcher_at_work_but_not_for_ever(
    prometheus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health()
    registry = registry_of(metrics_of(Told(), health))
    health.works()
    done = threading.Event()

    def scrape() -> None:
        prometheus.generate_latest(registry)
        done.set()

    thread = threading.Thread(target=scrape)
    thread.start()
    assert not done.wait(0.2)
    health.waits()
    assert done.wait(PATIENCE)
    thread.join()
    health.works()
    monkeypatch.setattr("memcg_oom.command.metrics._PAUSES", 0.2)
    start = time.monotonic()
    prometheus.generate_latest(registry)
    assert time.monotonic() - start >= 0.2


def test_a_thread_that_scrapes_always_finds_what_adds_up(prometheus: Any) -> None:
    told = Told(limit=50)
    ending = threading.Event()
    wrong: list[object] = []

    def scrape() -> None:
        while not ending.is_set():
            snapshot = told.series.snapshot()
            if [sum(column) for column in zip(*snapshot.counts.values(), strict=True)] != list(snapshot.told):
                wrong.append(snapshot)

    threads = [threading.Thread(target=scrape) for _ in range(2)]
    for thread in threads:
        thread.start()
    watches = [told.create(f"/{number}") for number in range(80)]
    for number in range(20_000):
        told.tell(watches[number % 80], f"/{number % 80}")
    ending.set()
    for thread in threads:
        thread.join()
    assert not wrong


# -- the server


@contextmanager
def serving(told: Told, health: Health | None = None, **options: Any) -> Iterator[Server]:
    from memcg_oom.command.server import Server

    health = health or Health()
    server = Server("127.0.0.1", 0, registry_of(metrics_of(told, health)), health, **options)
    server.start()
    try:
        yield server
    finally:
        server.close()


def get(url: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; no proxy of the environment is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, headers={name.replace("_", "-"): text for name, text in headers.items()})  # noqa: S310
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_the_server_answers(prometheus: Any) -> None:
    told, health = Told(), Health()
    told.tell(told.create("/a"), "/a")
    with serving(told, health) as server:
        status, headers, body = get(f"{server.url}/metrics")
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b'memcg_events_oom_kill_total{cgroup="/a"' in body
        status, headers, packed = get(f"{server.url}/metrics", accept_encoding="gzip")
        assert headers["Content-Encoding"] == "gzip"
        # But for what the real host counts meanwhile.
        unpacked, plain = (
            re.sub(rb"(?m)^memcg_host_oom_kill_total .*$", b"", text) for text in (gzip.decompress(packed), body)
        )
        assert unpacked == plain
        _, headers, body = get(f"{server.url}/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith(b"# EOF\n")
        _, _, body = get(f"{server.url}/metrics?name[]=memcg_watched_cgroups")
        assert re.findall(rb"^\w+", body, re.MULTILINE) == [b"memcg_watched_cgroups"]
        assert get(f"{server.url}/healthz")[::2] == (200, b"ok\n")
        health.ended("no memory")
        assert get(f"{server.url}/healthz")[::2] == (503, b"the watcher takes no events: no memory\n")
        assert b"memcg_exporter_healthy 0.0" in get(f"{server.url}/metrics")[2]
        assert b"/metrics" in get(f"{server.url}/")[2]
        assert get(f"{server.url}/etc/passwd")[0] == 404
        assert health.errors() == {"scrape": 0, "connection": 0, "busy": 0, "textfile": 0}


def test_head_has_no_body(prometheus: Any) -> None:
    with serving(Told()) as server, connected(server) as client:
        client.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")


def test_a_scrape_that_fails_is_told_and_counted(prometheus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told, health = Told(), Health()
    with serving(told, health) as server:
        monkeypatch.setattr(told.series, "snapshot", lambda: 1 / 0)
        assert get(f"{server.url}/metrics")[::2] == (500, b"ZeroDivisionError\n")
        assert health.errors()["scrape"] == 1


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(cast("tuple[str, int]", server.server_address)) as client:
        client.settimeout(PATIENCE)
        yield client


def read_all(client: socket.socket) -> bytes:
    text = b""
    with suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            text += chunk
    return text


def test_a_client_that_sends_half_a_request_costs_one_thread_for_a_while(
    prometheus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcg_oom.command import server as module

    monkeypatch.setattr(module, "PATIENCE", SHORT)
    health = Health()
    with serving(Told(), health) as server, connected(server) as client:
        start = time.monotonic()
        client.sendall(b"GET /metrics HTT")
        assert get(f"{server.url}/healthz")[0] == 200
        assert read_all(client) == b""
        assert time.monotonic() - start >= SHORT
        assert health.errors()["connection"] == 1


def test_a_client_that_sends_byte_by_byte_has_no_more_time(prometheus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from memcg_oom.command import server as module

    monkeypatch.setattr(module, "PATIENCE", SHORT)
    with serving(Told()) as server, connected(server) as client:
        client.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        with suppress(ConnectionError):
            while time.monotonic() < deadline:
                client.send(b"G")
                time.sleep(SHORT / 10)
                with suppress(BlockingIOError):
                    if not client.recv(1):
                        break
        assert time.monotonic() < deadline, "it was never cut off"


def test_a_client_that_does_not_take_the_answer_is_cut_off(prometheus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from memcg_oom.command import server as module

    monkeypatch.setattr(module, "PATIENCE", SHORT)
    told, health = Told(limit=20_000), Health()
    for number in range(20_000):
        told.create(f"/{number:0200}")
    with serving(told, health) as server, connected(server) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: health.errors()["connection"] == 1)
        assert get(f"{server.url}/healthz")[0] == 200


def test_more_connections_than_there_are_threads_for_are_refused(prometheus: Any) -> None:
    from memcg_oom.command.server import CONNECTIONS

    health = Health()
    with serving(Told(), health) as server:
        hanging = [connected(server) for _ in range(CONNECTIONS)]
        for one in hanging:
            one.__enter__()
        eventually(lambda: len(server._open) == CONNECTIONS)
        status, headers, body = get(f"{server.url}/metrics")
        assert (status, body) == (503, b"too many connections\n")
        assert "Retry-After" in headers
        assert health.errors()["busy"] == 1
        for one in hanging:
            one.__exit__(None, None, None)
        eventually(lambda: get(f"{server.url}/healthz")[0] == 200)


@pytest.mark.parametrize("secured", [False, True])
def test_closing_breaks_off_what_hangs(prometheus: Any, certificates: Path, secured: bool) -> None:
    context = serving(Told(), tls=tls_of(certificates) if secured else None)
    server = context.__enter__()
    with connected(server) as client:
        client.sendall(b"GET")
        eventually(lambda: server._open)
        start = time.monotonic()
        context.__exit__(None, None, None)
        assert time.monotonic() - start < 5  # its patience is 10
        assert read_all(client) == b""


# -- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate and a client's, each of an authority of its own: itself."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made with openssl, which is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "stranger"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"),
            ],
            check=True,
            capture_output=True,
        )
    return folder


def client_of(certificates: Path, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "server.crt")
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
    return context


def tls_of(certificates: Path, client_ca: str | None = None) -> ssl.SSLContext:
    from memcg_oom.command.server import tls_context

    certificate, key = (str(certificates / name) for name in ("server.crt", "server.key"))
    return tls_context(certificate, key, client_ca and str(certificates / client_ca))


def test_tls(prometheus: Any, certificates: Path) -> None:
    health = Health()
    with serving(Told(), health, tls=tls_of(certificates)) as server:
        assert server.url.startswith("https://")
        assert get(f"{server.url}/metrics", client_of(certificates))[0] == 200
        with pytest.raises(urllib.error.URLError):
            get(f"{server.url}/metrics", ssl.create_default_context())
        with connected(server) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP" not in read_all(client)
        eventually(lambda: health.errors()["connection"] == 2)
        assert get(f"{server.url}/healthz", client_of(certificates))[0] == 200


def test_a_client_without_a_certificate_is_refused_where_one_is_wanted(prometheus: Any, certificates: Path) -> None:
    with serving(Told(), tls=tls_of(certificates, "client.crt")) as server:
        assert get(f"{server.url}/metrics", client_of(certificates, "client"))[0] == 200
        for name in (None, "stranger"):
            # With TLS 1.3 the client learns of it when it reads.
            with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
                get(f"{server.url}/metrics", client_of(certificates, name))
        assert get(f"{server.url}/metrics", client_of(certificates, "client"))[0] == 200


def test_a_handshake_that_hangs_is_cut_off(
    prometheus: Any, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcg_oom.command import server as module

    monkeypatch.setattr(module, "PATIENCE", SHORT)
    health = Health()
    with serving(Told(), health, tls=tls_of(certificates)) as server, connected(server) as client:
        client.sendall(b"\x16\x03\x01")
        assert read_all(client) == b""
        assert health.errors()["connection"] == 1
        assert get(f"{server.url}/healthz", client_of(certificates))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}/none", "{}/server.key"], "{}/none: No such file or directory"),
        (["{}/server.key", "{}/server.key"], "{}/server.key: no certificate in PEM form is in it"),
        (
            ["{}/server.crt", "{}/client.key"],
            "{}/client.key: not the private key, in PEM form and without a passphrase, of {}/server.crt",
        ),
        (
            ["{}/server.crt", "{}/server.crt"],
            "{}/server.crt: not the private key, in PEM form and without a passphrase, of {}/server.crt",
        ),
        (["{}/server.crt", "{}/locked.key"], "{}/locked.key: not the private key"),
        (["{}/server.crt", "{}/server.key", "{}/client.key"], "{}/client.key: no certificate in PEM form is in it"),
        (["{}/server.crt", "{}/server.key", "{}/none"], "{}/none: No such file or directory"),
    ],
)
def test_a_bad_file_is_named(prometheus: Any, certificates: Path, arguments: list[str], words: str) -> None:
    locked = ("-passout", "pass:x", "-in", certificates / "server.key", "-out", certificates / "locked.key")
    subprocess.run(["openssl", "pkey", "-aes256", *locked], check=True)
    paths = [argument.format(certificates) for argument in arguments]
    options = [text for pair in zip(("--tls-cert", "--tls-key", "--client-ca"), paths, strict=False) for text in pair]
    done = command("export", "--listen", "127.0.0.1:0", *options, "/")
    assert done[0] == 1
    assert done[2].startswith(f"memcg-oom: {words.format(*[certificates] * 2)}")
    assert done[2].count("\n") == 1


# -- the text file


def test_the_file_is_replaced_at_once(tmp_path: Path) -> None:
    texts = [bytes([65 + number]) * 1_000_000 for number in range(2)]
    file = TextFile(str(tmp_path), lambda: texts[0], 0.001, lambda error: None)
    wrong: list[int] = []
    ending = threading.Event()

    def read() -> None:
        while not ending.is_set():
            text = (tmp_path / NAME).read_bytes()
            if text not in texts:
                wrong.append(len(text))

    before = os.umask(0o077)
    try:
        file.write()
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(200):
            texts.reverse()
            file.write()
        ending.set()
        reader.join()
        assert not wrong
        assert os.listdir(tmp_path) == [NAME]
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_the_file_is_written_at_the_beginning_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    count = 0

    def text() -> bytes:
        nonlocal count
        count += 1
        return b"%d" % count

    file = TextFile(str(tmp_path), text, 0.01, lambda error: None)
    file.start()
    eventually(lambda: count > 5)
    file.close()
    assert (tmp_path / NAME).read_bytes() == b"%d" % count
    last = count
    time.sleep(0.05)
    assert count == last
    late = TextFile(str(tmp_path), text, PATIENCE, lambda error: None)
    late.start()
    late.close()
    assert count == last + 2


def test_no_temporary_file_is_left_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    file = TextFile(str(tmp_path), lambda: b"x", PATIENCE, lambda error: None)
    for function in ("fchmod", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"memcg_oom.command.textfile.os.{function}", fail)
            with pytest.raises(OSError, match="No space left"):
                file.write()
        assert os.listdir(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr("memcg_oom.command.textfile.os.rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            file.write()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_has_left_is_taken_away_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / f".{NAME}.tmp").symlink_to(tmp_path / "victim")
    TextFile(str(tmp_path), lambda: b"x", PATIENCE, lambda error: None).write()
    assert (tmp_path / "victim").read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == [NAME, "victim"]


def test_a_failure_is_counted_each_time_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    health, said = Health(), list[str]()
    file = TextFile(str(folder), lambda: b"x", 0.01, lambda error: _complain_once(health, said, error))
    file.start()
    (folder / NAME).unlink()
    folder.rmdir()
    eventually(lambda: health.errors()["textfile"] > 2)
    folder.mkdir()
    eventually((folder / NAME).exists)
    file.close()
    assert capsys.readouterr().err == f"memcg-oom: {folder}/.{NAME}.tmp: No such file or directory\n"


# -- the command


def command(*arguments: object) -> tuple[int, str, str]:
    return run_python("import sys; from memcg_oom.command import main; sys.exit(main(sys.argv[1:]))", *arguments)


def test_without_prometheus_client_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from memcg_oom.command import main
sys.exit(main(["export", "/"]))
"""
    words = "memcg-oom: export needs prometheus_client: pip install memcg-oom[prometheus]\n"
    assert run_python(code) == (69, "", words)


def test_a_port_in_use_is_said_in_one_line(prometheus: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command("export", "--listen", listen, "--textfile", tmp_path, "/")
    assert done == (1, "", f"memcg-oom: {listen}: Address already in use\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "19754"],
        ["--listen", ":19754"],
        ["--listen", "::1:19754"],
        ["--listen", "[127.0.0.1]:19754"],
        ["--listen", "localhost:http"],
        ["--listen", "localhost:65536"],
        ["--tls-cert", "a"],
        ["--tls-key", "a"],
        ["--client-ca", "a"],
        ["--textfile", "a", "--tls-cert", "a", "--tls-key", "a"],
        ["--series", "0"],
        ["--keep", "-1"],
        ["--interval", "0"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from memcg_oom.command import main

    with pytest.raises(SystemExit, match=r"^2$"):
        main(["export", *arguments])
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.fixture
def _process_as_it_was() -> Iterator[None]:
    """What the command sets for its process."""
    interval, limits = sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    sys.setswitchinterval(interval)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def asked(folder: Path, root: Path, **changes: Any) -> Options:
    options: dict[str, Any] = {
        "cgroups": [str(root)],
        "listen": None,
        "keep": KEEP,
        "series": 100,
        "also": [],
        "tls": None,
        "client_ca": None,
        "textfile": str(folder),
        "interval": 0.02,
    }
    return Options(**(options | changes))


@pytest.mark.usefixtures("_process_as_it_was")
def test_what_the_kernel_tells_is_in_the_file_also_after_the_end(
    prometheus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "out").mkdir()
    kernel = FakeKernel(tmp_path / "fake", monkeypatch)
    cgroup = kernel.make("a")
    failures: list[BaseException] = []

    def drive() -> None:
        try:
            file = tmp_path / "out" / NAME
            eventually(lambda: file.exists() and f'cgroup="{cgroup.path}"' in file.read_text(), 10)
            assert 'memcg_exporter_told_total{event="oom"} 0.0' in file.read_text()
            cgroup.oom(2)
            eventually(lambda: 'memcg_exporter_told_total{event="oom"} 2.0' in file.read_text(), 10)
            assert "memcg_exporter_healthy 1.0" in file.read_text()
            assert "process_" not in file.read_text()
            cgroup.oom(3)
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    thread = threading.Thread(target=drive)
    try:
        thread.start()
        assert export(asked(tmp_path / "out", cgroup.path)) == 0
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
        kernel.close()
    assert not failures
    text = (tmp_path / "out" / NAME).read_text()
    assert re.search(rf'memcg_events_oom_total{{cgroup="{cgroup.path}",.*}} 5\.0', text)
    assert "memcg_exporter_healthy 0.0" in text
    err = capsys.readouterr().err
    assert "watching 1 cgroup and those to come (told of by " in err
    assert f", metrics in {tmp_path}/out/{NAME}, Ctrl-C ends it\n" in err


@pytest.mark.usefixtures("_process_as_it_was")
def test_what_comes_after_a_look_and_before_the_signal_is_counted(
    prometheus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    kernel = FakeKernel(tmp_path / "fake", monkeypatch)
    cgroup = kernel.make("a")

    ooms = iter([3])  # once

    def tidied(_: Series) -> None:
        for count in ooms:
            cgroup.oom(count)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Series, "tidy", tidied)
    wakes: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr("memcg_oom.command.export.Signals.wait", wakes)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert export(asked(tmp_path, cgroup.path)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
        kernel.close()
    assert 'memcg_exporter_told_total{event="oom"} 3.0' in (tmp_path / NAME).read_text()


@pytest.mark.usefixtures("_process_as_it_was")
def test_a_watcher_that_fails_says_so_and_ends(
    prometheus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    kernel = FakeKernel(tmp_path / "fake", monkeypatch)
    cgroup = kernel.make("a")

    def fail(*_: object) -> list[Event]:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(Monitor, "wait", fail)
    wakes: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr("memcg_oom.command.export.Signals.wait", wakes)
    try:
        with pytest.raises(OSError, match="Cannot allocate"):
            export(asked(tmp_path, cgroup.path))
    finally:
        kernel.close()
    assert "memcg_exporter_healthy 0.0" in (tmp_path / NAME).read_text()


@pytest.mark.usefixtures("_process_as_it_was")
def test_a_folder_that_is_not_there_is_an_error_at_the_start(
    prometheus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel(tmp_path, monkeypatch)
    cgroup = kernel.make("a")
    try:
        with pytest.raises(FileNotFoundError):
            export(asked(tmp_path / "none", cgroup.path, listen=("127.0.0.1", 0)))
    finally:
        kernel.close()
