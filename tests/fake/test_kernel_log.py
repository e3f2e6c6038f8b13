"""What the kernel's log says of kills: recorded on many kernels, forged, and made up."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from pathlib import Path
from types import FrameType

import pytest

from memcg_oom import Victim
from memcg_oom.kernel_log import parse, says_killed
from tests.fake.fake_kernel import killed, summary

RECORDED = sorted((Path(__file__).parents[1] / "logs").glob("*.json"))
LINES = 1_000_000

COMMS = [
    b"hog",
    b"a,pid=1,uid=0",
    b"x) total-vm:0kB",
    b",task=init,pid=",
    b"init,task=foo",
    b") UID:0",
    b"(1 (init)",
    b"\n6,1,1,-;oom-k",
    b"\\x0a",
    b"\xff\xfe",
    b"",
    b": Killed proces",
    b"oom-kill:constr",
]
NAMES = [
    b"b",
    b"b,task=init,pid=1",
    b"b,task=init,pid=1,uid=0",
    b"c,task_memcg=",
    b"c,oom_memcg=",
    b"c,global_oom,task_memcg=",
    b"d,task=x",
    b"Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB",
    b"e (deleted)",
    b"\xe9 \\ \t\x01",
]


def test_a_kill() -> None:
    victims, left = parse([summary(93, b"hog", b"/a", b"/a/b"), killed(93, b"hog")], {})
    assert victims == [
        Victim(
            pid=93,
            comm="hog",
            uid=7,
            anon_rss=8192,
            file_rss=4096,
            shmem_rss=0,
            total_vm=12288,
            oom_memcg="/a",
            task_memcg="/a/b",
        )
    ]
    assert not left


def test_without_the_line_that_is_limited() -> None:
    (victim,), _ = parse([killed(93, b"hog")], {})
    assert (victim.oom_memcg, victim.task_memcg) == (None, None)


def test_of_the_whole_host() -> None:
    (one, other), _ = parse(
        [
            summary(93, b"hog", None, b"/a"),
            killed(93, b"hog", cause=b"Out of memory"),
            killed(94, b"hog", cause=b"Out of memory (oom_kill_allocating_task)"),
        ],
        {},
    )
    assert (one.oom_memcg, one.task_memcg) == ("/", "/a")
    assert (other.oom_memcg, other.task_memcg) == ("/", None)


def test_a_kernel_that_says_less() -> None:
    """4.19 says nothing of the user."""
    text = b"3,9,2,-;Memory cgroup out of memory: Killed process 93 (hog) total-vm:12kB, anon-rss:8kB, file-rss:4kB\n"
    (victim,), _ = parse([text], {})
    assert (victim.pid, victim.comm, victim.uid, victim.anon_rss, victim.shmem_rss) == (93, "hog", None, 8192, None)


def test_the_lines_of_a_kill_come_in_two_reads() -> None:
    victims, left = parse([summary(93, b"hog", b"/a", b"/a/b")], {})
    assert not victims
    (victim,), left = parse([killed(93, b"hog")], left)
    assert victim.task_memcg == "/a/b"
    assert not left


@pytest.mark.parametrize(
    "between",
    [b"3,9,1,-;Memory cgroup out of memory: OOM victim 93 (hog) is already exiting. Skip killing the task\n", b""],
)
def test_a_pid_that_comes_round_again(between: bytes) -> None:
    """What was said of another task, long ago or of one that was not killed, is not said of this one."""
    moment = 2 if between else 60_000_000
    records = [summary(93, b"hog", b"/a", b"/a/b"), *filter(None, [between]), killed(93, b"hog", moment)]
    (victim,), _ = parse(records, {})
    assert victim.task_memcg is None


@pytest.mark.parametrize("header", [b"11,9,2,-", b"12,9,2,-", b"6,9,2,c", b"6,9,2", b"x,9,2,-", b"6,9,,-", b""])
def test_what_is_not_the_kernels_word(header: bytes) -> None:
    """Whoever may write to /dev/kmsg has another facility; "c" is the rest of a line that was broken into."""
    text = killed(93, b"hog").partition(b";")[2]
    assert parse([header + b";" + text], {}) == ([], {})


@pytest.mark.parametrize(
    "text",
    [
        b"Killed process 1 (init)",
        b"x: Killed process 1 (init) total-vm:1kB",
        b"hog: Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB",
        b"Memory cgroup out of memory: Killed process one (init) total-vm:1kB",
        b"Memory cgroup out of memory: Killed process " + b"9" * 5000 + b" (init) total-vm:1kB",
        b"Memory cgroup out of memory: Killed process 1",
        b"Memory cgroup out of memory: Killed process 1 (init",
    ],
)
def test_lines_that_are_none(text: bytes) -> None:
    assert parse([b"6,9,2,-;" + text + b"\n"], {}) == ([], {})


def test_a_line_that_was_broken_into() -> None:
    """Another processor printed in the middle of it: there is no telling where its rest is."""
    first = summary(93, b"hog", b"/a", b"/a/b").partition(b",task_memcg=")[0] + b"\n"
    rest = b"6,8,1,c;,task_memcg=/a/b,task=hog,pid=93,uid=7\n"
    (victim,), left = parse([first, b"6,8,1,-;eth0: link up\n", rest, killed(93, b"hog")], {})
    assert (victim.oom_memcg, victim.task_memcg) == (None, None)
    assert not left


@pytest.mark.parametrize("cpuset", [b"/", *(name for name in NAMES if b"/" not in name)])
def test_names_that_look_like_more(cpuset: bytes) -> None:
    """Never a wrong pid, never a wrong cgroup; at most no cgroup, where two could be meant."""
    combinations = list(itertools.product(COMMS, NAMES, NAMES))
    for pid, (comm, limit, name) in enumerate(combinations, start=10):
        limit_path = b"/t/" + limit
        path = limit_path if name == NAMES[0] else limit_path + b"/" + name
        (victim,), left = parse([summary(pid, comm, limit_path, path, cpuset=cpuset), killed(pid, comm)], {})
        assert (victim.pid, os.fsencode(victim.comm), victim.uid, victim.anon_rss) == (pid, comm, 7, 8192)
        assert victim.oom_memcg in (None, os.fsdecode(limit_path))
        assert victim.task_memcg in (None, os.fsdecode(path))
        assert not left
        if b",task=" not in comm + name:
            assert victim.task_memcg is not None


def test_a_cgroup_whose_name_begins_as_that_of_another() -> None:
    """The victim's cgroup is the one whose limit was hit, or lies in it: so there is one way to read this."""
    path = b"/a,task_memcg=/ab"
    (victim,), _ = parse([summary(93, b"hog", path, path), killed(93, b"hog")], {})
    assert (victim.oom_memcg, victim.task_memcg) == (path.decode(), path.decode())


@pytest.mark.parametrize("name", NAMES)
def test_a_task_that_changes_its_name_between_the_lines(name: bytes) -> None:
    """So what the second line calls it says nothing about where in the first its name begins."""
    (victim,), _ = parse([summary(93, b"init,task=foo", b"/", b"/" + name), killed(93, b"foo")], {})
    assert victim.task_memcg in (None, os.fsdecode(b"/" + name))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: str(file.stem))
def test_recorded(file: Path) -> None:
    """What kernels have said, against what happened."""
    recorded = json.loads(file.read_text())
    for case, said in recorded["cases"].items():
        victims, left = parse([record.encode("latin-1") for record in said["records"]], {})
        truth = {task["pid"]: task for task in said["truth"]}
        assert {victim.pid for victim in victims} == truth.keys(), case
        assert not left, case
        for victim in victims:
            true = truth[victim.pid]
            path, limit = true["task_memcg"], true["oom_memcg"]
            assert os.fsencode(victim.comm) == bytes.fromhex(true["comm_hex"]), case
            assert victim.uid == true["uid"], case
            assert victim.task_memcg in (None, path), case
            assert victim.oom_memcg in (("/",) if limit is None else (None, limit)), case
            assert victim.anon_rss, case
            assert victim.total_vm, case
        named = sum(victim.task_memcg is not None for victim in victims)
        assert named >= (11 if case == "storm" else len(victims) // 4), case


def test_there_are_recordings() -> None:
    versions = {(file.stem.split("-")[0], file.stem.split("-")[1]) for file in RECORDED}
    assert {series for series, _ in versions} == {"5.10", "6.1", "6.12", "6.18", "newest"}
    assert {series for series, version in versions if version == "v1"} == {"5.10", "6.1"}


def made_up(randomness: random.Random, seeds: list[bytes]) -> bytes:
    """A record that was cut, mixed or mangled."""
    record = bytearray(randomness.choice(seeds))
    for _ in range(randomness.randrange(4)):
        start = randomness.randrange(len(record) + 1)
        match randomness.randrange(5):
            case 0:
                del record[start : start + randomness.randrange(20)]
            case 1:
                record[start:start] = randomness.choice(
                    [
                        b",task=",
                        b",task_memcg=/",
                        b") total-vm:",
                        b",pid=1",
                        b";",
                        b"\\x",
                        b"\n",
                        b"/",
                        b"\xff",
                        b"9" * 30,
                    ]
                )
            case 2:
                other = randomness.choice(seeds)
                record[start:] = other[randomness.randrange(len(other)) :]
            case 3 if record:
                record[min(start, len(record) - 1)] = randomness.randrange(256)
            case _:
                record += record[start : start + 50]
    return bytes(record)


def test_a_million_made_up_lines() -> None:
    seeds = [
        make(93, comm)
        for comm in COMMS
        for make in (killed, lambda pid, comm: summary(pid, comm, b"/a", b"/a/b,task=x"))
    ]
    randomness = random.Random(6)
    left: dict[int, tuple[int, str | None, str | None]] = {}
    parsed = 0
    for _ in range(LINES // 1000):
        records = [made_up(randomness, seeds) for _ in range(1000)]
        victims, left = parse(records, left)
        says_killed(records)
        parsed += len(victims)
        assert len(left) <= 32
        for victim in victims:
            assert victim.pid >= 0
            os.fsencode(victim.comm + (victim.task_memcg or "") + (victim.oom_memcg or ""))
    assert parsed > LINES // 10


@pytest.mark.parametrize("part", [b",task_memcg=/a", b",task=", b",oom_memcg=/", b"\\x41", b",pid=1,uid=1"])
def test_the_longest_lines_cost_no_more_than_their_length(part: bytes) -> None:
    """Counted in calls, which no other work on the machine changes."""

    def calls(length: int) -> int:
        count = 0
        text = b"6,8,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a" + part * (length // len(part))
        records = [text + b",task_memcg=/a,task=b,pid=1,uid=1\n"]

        def counted(_frame: FrameType, _event: str, _argument: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(counted)
        try:
            parse(records, {})
        finally:
            sys.setprofile(None)
        return count

    assert calls(8000) <= 5 * calls(2000)
