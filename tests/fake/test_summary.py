"""The table of memcg-oom watch --summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import memcg_oom.command.summary
from memcg_oom import Degraded, Event, Monitor, Oom, OomKill, Removed, Unattributed, Victim, Watch
from memcg_oom.command.summary import Table
from tests.fake.fake_kernel import AGES, FakeKernel

POD = "/sys/fs/cgroup/kubepods/burstable/pod0cb8aa3c-6d0e-4f3e-8a6e-0123456789ab/" + 16 * "3f2a"


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """One that events can carry; the table goes by their cgroups."""
    kernel = FakeKernel(tmp_path, monkeypatch)
    with Monitor(settle=AGES) as monitor:
        yield monitor.watch(kernel.make().path)
    kernel.close()


def victim(comm: str = "hog") -> Victim:
    sizes = {"anon_rss": 1 << 20, "file_rss": 0, "shmem_rss": 0, "total_vm": 1 << 22}
    return Victim(pid=93, comm=comm, uid=0, oom_memcg=None, task_memcg=None, **sizes)


def events(watch: Watch, cgroup: str, ooms: int = 1, kills: int = 1, moment: int = 1) -> list[Event]:
    told: list[Event] = [Oom(time_ns=moment, cgroup=cgroup, watch=watch, count=ooms)]
    if kills:
        told.append(OomKill(time_ns=moment, cgroup=cgroup, watch=watch, count=kills, victims=(victim(),)))
    return told


def table(*told: Event) -> Table:
    made = Table(lambda _cgroup: ("7.0 MiB", "8.0 MiB"))
    for event in told:
        made.add(event)
    return made


def test_those_with_the_most_kills_come_first(watch: Watch) -> None:
    shown = table(
        *events(watch, "/a", 9, 1), *events(watch, "/b", 1, 3), *events(watch, "/c", 2, 1), *events(watch, "/d", 1, 0)
    )
    title, heads, *rows = shown.lines(100, 50)
    assert title == "4 in trouble, 5 OOM kills, 13 OOMs, 0 unattributed"
    assert heads.split() == ["KILLS", "OOMS", "USAGE", "LIMIT", "LAST", "LAST", "VICTIM", "CONTAINER", "CGROUP"]
    assert [row.split()[-1] for row in rows] == ["/b", "/a", "/c", "/d"]
    assert [row.split()[:2] for row in rows] == [["3", "1"], ["1", "9"], ["1", "2"], ["0", "1"]]
    assert "7.0 MiB  8.0 MiB" in rows[0]
    assert "hog[93] 1.0 MiB" in rows[0]
    assert "hog" not in rows[3]


def test_what_it_was_made_for(watch: Watch) -> None:
    (row,) = table(*events(watch, POD)).lines(300, 50)[2:]
    assert "pod 0cb8aa3c-6d0e-4f3e-8a6e-0123456" in row
    assert row.endswith(POD)


def test_one_that_is_gone_stays_in_the_table(watch: Watch) -> None:
    shown = table(*events(watch, "/a"), Removed(time_ns=2, cgroup="/a", watch=watch))
    assert "gone" in shown.lines(100, 50)[2]
    shown.add(Removed(time_ns=2, cgroup="/never", watch=watch))
    assert len(shown.rows) == 1
    for event in events(watch, "/a"):  # made anew
        shown.add(event)
    assert "gone" not in shown.lines(100, 50)[2]


@pytest.mark.parametrize("width", [*range(1, 12), 30, 50, 70, 90, 110, 130, 150])
def test_no_line_is_wider_than_the_terminal(watch: Watch, width: int) -> None:
    shown = table(*events(watch, POD), *events(watch, "/a"), Degraded(time_ns=1, what="w" * 200, cost="c", remedy="r"))
    lines = shown.lines(width, 50)
    assert all(len(one) <= width for one in lines), lines
    # The end of a path is what tells it from others.
    assert lines[2].endswith(POD[-min(width - 8, 20) :] if width > 10 else "")


@pytest.mark.parametrize("height", range(1, 12))
def test_no_more_lines_than_the_terminal_has(watch: Watch, height: int) -> None:
    told = [event for number in range(8) for event in events(watch, f"/{number}")]
    lines = table(*told, Degraded(time_ns=1, what="w", cost="c", remedy="r")).lines(80, height)
    assert len(lines) <= height
    assert ("more below" in lines[0]) == (height < 11)


def test_what_a_terminal_would_act_on_is_escaped(watch: Watch) -> None:
    told = OomKill(time_ns=1, cgroup="/evil\x1b[2J", watch=watch, count=1, victims=(victim("\x1b[31m\n"),))
    text = "\n".join(table(told, Degraded(time_ns=1, what="\x1b", cost="c", remedy="r")).lines(200, 50))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    assert "\\x1b[31m\\n[93]" in text


def test_rows_are_bounded_and_what_is_dropped_is_counted(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcg_oom.command.summary, "ROWS", 3)
    told = [event for name in ("/a", "/b", "/c", "/a", "/d") for event in events(watch, name)]
    shown = table(*told, Unattributed(time_ns=1, count=7))
    assert set(shown.rows) == {"/c", "/a", "/d"}
    assert shown.lines(100, 50)[0] == "3 in trouble, 4 OOM kills, 4 OOMs, 7 unattributed; 1 longest ago dropped"
