"""The parsers under a fuzzer: what has to hold of each, for any input and for one that was made up whole.

An input that is mutated is judged by what holds of any: no error but one that says so, and what another reader makes of
it, as far as that takes it for well-formed. One that is made up, as the kernel would write it, is judged by what it was
made from.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from memcg_oom import identify, identity, kernel_log, mounts
from tests.fake.fake_kernel import killed, summary

LONGEST = 16384  # bytes of an input: two records of the kernel's log, or some hundred mounts
BETWEEN_RECORDS = b"\n%%\n"  # in a file that holds several records of the log

# What the kernel's log may be forged with, what paths are made of, and what is at the edges of numbers.
PIECES = {
    "kernel_log": [
        *(
            b",task=",
            b",task_memcg=/",
            b",oom_memcg=/",
            b",global_oom,task_memcg=/",
            b",pid=1",
            b",uid=0",
            b") total-vm:1kB",
        ),
        *(
            b": Killed process 1 (init)",
            b": OOM victim 93 (",
            b"oom-kill:constraint=",
            b";",
            b"\\x",
            b"\\x0a",
            b"\n",
            b"9" * 21,
        ),
        *(
            BETWEEN_RECORDS,
            b"6,1,1,-;",
            b"6,1,1,c;",
            b"Out of memory",
            b"Memory cgroup out of memory",
            b"\xff",
            b"/",
            b" (",
        ),
    ],
    "mountinfo": [
        *(
            b" - ",
            b" ",
            b"\n",
            b"\\040",
            b"\\134",
            b"\\777",
            b"\\",
            b"cgroup ",
            b"cgroup2 ",
            b"memory",
            b",",
            b"ro",
            b"rw",
        ),
        *(b"0:28", b":", b"-1", b"9" * 20, b"memory_localevents", b"shared:1 ", b"/", b"\xff", b"\0"),
    ],
    "proc_cgroup": [b":", b",", b"\n", b"memory", b"name=systemd", b"0::/", b"/", b"\xff", b"\r", b"\0", b" (deleted)"],
    "identify": [
        *(
            b"/",
            b".scope",
            b".slice",
            b".service",
            b"docker-",
            b"cri-containerd-",
            b"crio-conmon-",
            b"libpod_parent",
            b"kubepods",
        ),
        *(
            b"besteffort",
            b"pod",
            b"0" * 64,
            b"01234567-89ab-cdef-0123-456789abcdef",
            b"lxc.payload.",
            b"machine-qemu\\x2d1\\x2d",
        ),
        *(
            b"machine.slice",
            b"user@1000.service",
            b"user-0.slice",
            b"..",
            b".",
            b"\\x2d",
            b"\\xff",
            b":",
            b"_",
            b"-",
            b"\xff",
        ),
        *(b"firecracker", b"buildkit", b"k8s.io", b".libvirt-qemu", b"embed-", b"4294967295", b"9" * 5000),
    ],
}


@dataclass
class Parser:
    """One of them.

    Attributes:
        name: that of its folder in the corpus.
        check: raises AssertionError where something does not hold of an input.
        make_up: the same of an input that the dice make.
        files: where its code is.
        repeated: calls it with an input repeated so often, for its cost.
    """

    name: str
    check: Callable[[bytes], None]
    make_up: Callable[[random.Random], None]
    files: tuple[str, ...]
    repeated: Callable[[bytes, int], object]


# -- the kernel's log

_CAUSE = rb"(?:Memory cgroup out of memory|Out of memory(?: \(oom_kill_allocating_task\))?)"
_KILLED = re.compile(_CAUSE + rb": Killed process ([0-9]{1,20}) \([^\n]*\)")
_HEADER = re.compile(rb"([0-9]{1,20}),[^,;]*,([0-9]{1,20}),([^,;]*)(?:,[^;]*)?")

_COMMS = [
    b"hog",
    b"a,pid=1,uid=0",
    b"x) total-vm:0kB",
    b",task=init,pid=",
    b") UID:0",
    b"(1 (init)",
    b"\\x0a",
    b"\xff\xfe",
    b"",
]
_NAMES = [
    b"b",
    b"b,task=init,pid=1,uid=0",
    b"c,task_memcg=",
    b"c,oom_memcg=",
    b"d,task=x",
    b"\xe9 \\ \t\x01",
    b"e (deleted)",
]


def pids_told(records: Sequence[bytes]) -> list[int]:
    """Of the kills that the kernel itself tells of: nobody's name has a say in it."""
    found = []
    for record in records:
        header, separator, rest = record.partition(b";")
        fields = _HEADER.fullmatch(header)
        line = _KILLED.match(rest.partition(b"\n")[0])
        if separator and fields and line and int(fields[1]) < 8 and fields[3] != b"c":
            found.append(int(line[1]))
    return found


def check_log(data: bytes) -> None:
    records = data.split(BETWEEN_RECORDS)
    victims, left = kernel_log.parse(records, {})
    assert [victim.pid for victim in victims] == pids_told(records), "a wrong pid"
    assert len(left) <= 32
    assert kernel_log.says_killed(records) or not victims
    for victim in victims:
        assert (victim.task_memcg or "/").startswith("/")
        assert (victim.oom_memcg or "/").startswith("/")
        os.fsencode(victim.comm + (victim.task_memcg or "") + (victim.oom_memcg or ""))
        for size in (victim.anon_rss, victim.file_rss, victim.shmem_rss, victim.total_vm):
            assert size is None or (size >= 0 and size % 1024 == 0)
    # Read at once or one by one, it is the same.
    one_by_one = []
    left_then: dict[int, tuple[int, str | None, str | None]] = {}
    for record in records:
        more, left_then = kernel_log.parse([record], left_then)
        one_by_one += more
    assert (one_by_one, left_then) == (victims, left)


def _any_name(dice: random.Random, known: list[bytes], longest: int, without: bytes) -> bytes:
    if dice.randrange(2):
        return dice.choice(known)[:longest]
    choice = bytes(sorted(set(range(1, 256)) - set(without)))
    return bytes(dice.choices(choice, k=dice.randrange(1, longest + 1)))


def make_up_log(dice: random.Random) -> None:
    """Kills of tasks and in cgroups whose names somebody chose, on several processors."""
    queues: list[list[bytes]] = []
    truth: dict[int, tuple[bytes, bytes, bytes]] = {}
    for pid in range(2, 2 + dice.randrange(1, 6)):
        comm = _any_name(dice, _COMMS, 15, b"")
        limit = b"/" + _any_name(dice, _NAMES, 40, b"/\n")
        path = limit if dice.randrange(2) else limit + b"/" + _any_name(dice, _NAMES, 40, b"/\n")
        is_global = not dice.randrange(4)
        truth[pid] = comm, b"/" if is_global else limit, path
        queue = [killed(pid, comm, cause=b"Out of memory" if is_global else b"Memory cgroup out of memory")]
        if dice.randrange(3):
            queue.insert(0, summary(pid, comm, None if is_global else limit, path))
        queues.append(queue)
    records = []
    while queues:
        queue = dice.choice(queues)
        records.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
        if not dice.randrange(4):
            records.append(b"6,8,1,-;eth0: link up\n")
    victims, left = kernel_log.parse(records, {})
    assert not left
    assert {victim.pid for victim in victims} == truth.keys()
    assert len(victims) == len(truth)
    for victim in victims:
        comm, limit, path = truth[victim.pid]
        assert os.fsencode(victim.comm) == comm, (victim, truth)
        assert victim.uid == 7, (victim, truth)
        assert victim.oom_memcg in (None, os.fsdecode(limit)), (victim, truth)
        assert victim.task_memcg in (None, os.fsdecode(path)), (victim, truth)


# -- mountinfo

_MOUNT = re.compile(
    rb"\d{1,9} \d{1,9} (\d{1,4}):(\d{1,5}) ([^ ]+) ([^ ]+) ([^ ]+)(?: [^ ]+)*? - (cgroup2?) ([^ ]*) ([^ ]+)(?: [^\n]*)?"
)
_ESCAPED = re.compile(rb"\\(040|011|012|134)")


def _as_fields(mount: mounts.Mount) -> tuple[object, ...]:
    return tuple(getattr(mount, name) for name in mounts.Mount.__slots__)


def _by_regex(line: bytes) -> tuple[object, ...] | None:
    """The fields of a line, in the order of Mount.__slots__; None: it is none that the kernel writes."""
    match = _MOUNT.fullmatch(line)
    if match is None or line.count(b" - ") != 1 or b" - - " in line:
        return None
    major, minor, root, point, options, kind, _, super_options = match.groups()
    if b"\\" in _ESCAPED.sub(b"", root + b"|" + point):
        return None
    names = [os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), name)) for name in (point, root)]
    is_v2, words = kind == b"cgroup2", super_options.split(b",")
    device = os.makedev(int(major), int(minor))
    read_only = b"ro" in options.split(b",") + words
    memory = is_v2 or b"memory" in words
    return device, is_v2 and b"memory_localevents" in words, memory, names[0], read_only, names[1], 2 if is_v2 else 1


def check_mountinfo(data: bytes) -> None:
    for line in data.split(b"\n"):
        try:
            found = [_as_fields(mount) for mount in mounts.parse_mountinfo(line)]
        except (ValueError, OverflowError):  # the kernel writes no such number and no such escape
            assert _by_regex(line) is None
            continue
        expected = _by_regex(line)
        assert expected is None or found == [expected]
        for mount in found:
            os.fsencode(f"{mount[3]}{mount[5]}")


def _escape(name: bytes) -> bytes:
    r"""As mangle() of the kernel, and seq_escape(), do it."""
    return b"".join(b"\\%03o" % one if one in b" \t\n\\" else bytes([one]) for one in name)


def make_up_mountinfo(dice: random.Random) -> None:
    lines, expected = [], []
    for number in range(dice.randrange(6)):
        root, point = (
            b"/" + _any_name(dice, [b"a b", b"\\040", b"x\\134y", b"a\nb", b" - "], 40, b"") for _ in range(2)
        )
        device = dice.randrange(4096), dice.randrange(65536)
        is_v2, read_only, memory = dice.randrange(2), dice.randrange(2), dice.randrange(2)
        optional = b"".join(dice.sample([b"shared:1 ", b"master:2 ", b"unbindable "], dice.randrange(4)))
        kind = b"cgroup2" if is_v2 else b"cgroup"
        words = [b"rw"] if is_v2 else [b"rw", b"cpu"]
        words += [b"memory_localevents" if is_v2 else b"memory"] * memory
        fields = (_escape(root), _escape(point), b"ro" if read_only else b"rw", optional, kind)
        source = _escape(_any_name(dice, [b"cgroup", b"- cgroup"], 9, b""))
        lines.append(b"%d 1 %d:%d %s %s %s,nosuid %s- %s %s %s" % (number, *device, *fields, source, b",".join(words)))
        is_local = bool(is_v2 and memory)
        has_memory = bool(is_v2 or memory)
        names = os.fsdecode(point), os.fsdecode(root)
        version = 2 if is_v2 else 1
        expected.append((os.makedev(*device), is_local, has_memory, names[0], bool(read_only), names[1], version))
    assert [_as_fields(mount) for mount in mounts.parse_mountinfo(b"\n".join(lines))] == expected, lines


# -- /proc/PID/cgroup

_CONTROLLERS = (b"memory", b"name=systemd", b"")


def check_proc_cgroup(data: bytes) -> None:
    for controller in _CONTROLLERS:
        match = re.search(
            rb"^[^:\n]*:(?:[^:\n]*,)?%s(?:,[^:\n]*)?:([^\n]*)$" % re.escape(controller), data, re.MULTILINE
        )
        expected = os.fsdecode(match[1]) if match else None
        assert mounts.parse_proc_cgroup(data, controller) == expected, controller


def make_up_proc_cgroup(dice: random.Random) -> None:
    truth: dict[bytes, bytes] = {}
    lines = []
    for number, controllers in enumerate([[b"cpu", b"cpuacct"], [b"memory"], [b"name=systemd"], [b""]]):
        name = b"/" + _any_name(dice, [b"a:b", b"a,memory:/x", b"0::/", b"x (deleted)"], 40, b"\n")
        lines.append(b"%d:%s:%s" % (number, b",".join(controllers), name))
        truth.update((controller, name) for controller in controllers)
    dice.shuffle(lines)
    for controller in _CONTROLLERS:
        found = mounts.parse_proc_cgroup(b"\n".join([*lines, b""]), controller)
        assert found == os.fsdecode(truth[controller]), lines


# -- identify()


def check_identify(data: bytes) -> None:
    path = "/" + os.fsdecode(data)
    found = identify(path)
    assert found.user is None or 0 <= found.user < 0xFFFFFFFF
    assert found.qos in (None, "Guaranteed", "Burstable", "BestEffort")
    assert found.pod is None or found.pod.replace("-", "").strip("0123456789abcdef") == ""
    for name in (found.unit, found.slice, found.container):
        assert name is None or (name and "/" not in name and name in path)
    assert found.machine is None or (found.machine and len(found.machine) <= 255)
    # Where it is mounted does not matter, nor what leads nowhere.
    assert identify("/sys/fs/cgroup/memory" + path) == found
    assert identify(path.replace("/", "//./") + "/") == found
    assert identify("/.." + path) == found


def make_up_identify(dice: random.Random) -> None:
    """One real form in another, and names that anybody may give below."""
    container = "".join(dice.choices("0123456789abcdef", k=64))
    pod = "-".join("".join(dice.choices("0123456789abcdef", k=length)) for length in (8, 4, 4, 4, 12))
    burstable = dice.randrange(2)
    qos = "Burstable" if burstable else "Guaranteed"
    middle = "burstable/" if burstable else ""
    sliced = "-burstable" if burstable else ""
    slices = "kubepods.slice/" + ("kubepods-burstable.slice/" if burstable else "")
    escaped = pod.replace("-", "_")
    for path, expected in (
        (f"/kubepods/{middle}pod{pod}/{container}", (None, container, pod, qos)),
        (
            f"/{slices}kubepods{sliced}-pod{escaped}.slice/cri-containerd-{container}.scope",
            ("containerd", container, pod, qos),
        ),
        (f"/system.slice/docker-{container}.scope", ("docker", container, None, None)),
        (f"/docker/{container}", ("docker", container, None, None)),
    ):
        found = identify(path)
        assert (found.runtime, found.container, found.pod, found.qos) == expected, path
        below = _any_name(dice, [b"init.scope", b"x", b"docker"], 40, b"/").decode("latin-1")
        inside = identify(f"{path}/{below}")
        assert (inside.pod, inside.qos, inside.user) == (found.pod, found.qos, None), (path, below)


# -- all of them

PARSERS = {
    parser.name: parser
    for parser in (
        Parser(
            "kernel_log",
            check_log,
            make_up_log,
            (kernel_log.__file__,),
            lambda data, times: kernel_log.parse(data.split(BETWEEN_RECORDS) * times, {}),
        ),
        Parser(
            "mountinfo",
            check_mountinfo,
            make_up_mountinfo,
            (mounts.__file__,),
            lambda data, times: list(mounts.parse_mountinfo((data + b"\n") * times)),
        ),
        Parser(
            "proc_cgroup",
            check_proc_cgroup,
            make_up_proc_cgroup,
            (mounts.__file__,),
            lambda data, times: mounts.parse_proc_cgroup((data + b"\n") * times, b"none"),
        ),
        Parser(
            "identify",
            check_identify,
            make_up_identify,
            (identity.__file__,),
            lambda data, times: identify("/".join(["", *[os.fsdecode(data)] * times])),
        ),
    )
}


def mutated(dice: random.Random, pool: Sequence[bytes], pieces: Sequence[bytes]) -> bytes:
    """An input that was cut, mixed or mangled."""
    data = bytearray(dice.choice(pool))
    for _ in range(dice.randrange(1, 5)):
        start = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                del data[start : start + dice.randrange(20)]
            case 1:
                data[start:start] = dice.choice(pieces)
            case 2:
                other = dice.choice(pool)
                data[start:] = other[dice.randrange(len(other) + 1) :]
            case 3 if start < len(data):
                data[start] = dice.randrange(256)
            case _:
                data[start:start] = data[start : start + 50]
    return bytes(data[:LONGEST])


class Coverage:
    """Which lines of the parser follow which, and how often, by powers of two: what is new in that is worth keeping."""

    def __init__(self, parser: Parser) -> None:
        self._files = parser.files
        self._known: set[tuple[CodeType, int, int, int]] = set()
        self._steps: Counter[tuple[CodeType, int, int]] = Counter()

    def __enter__(self) -> None:
        self._steps.clear()
        sys.settrace(self._called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def grew(self) -> bool:
        """Whether there was something new in the last run."""
        before = len(self._known)
        self._known.update((*step, times.bit_length()) for step, times in self._steps.items())
        return len(self._known) > before

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Callable[[FrameType, str, Any], Any] | None:
        if frame.f_code.co_filename not in self._files:
            return None
        code, last = frame.f_code, 0

        def went(frame: FrameType, _event: str, _argument: Any) -> Any:
            nonlocal last
            self._steps[code, last, frame.f_lineno] += 1
            last = frame.f_lineno
            return went

        return went


def calls(parser: Parser, data: bytes, times: int) -> int:
    """How many calls it takes for an input that is repeated: a cost that no other work on the machine changes."""
    count = 0

    def counted(_frame: FrameType, _event: str, _argument: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(counted)
    try:
        parser.repeated(data, times)
    except (ValueError, OverflowError):
        return 0
    finally:
        sys.setprofile(None)
    return count


def check_cost(parser: Parser, data: bytes) -> None:
    """Four times as much may cost some four times as much."""
    assert calls(parser, data, 32) <= 5 * calls(parser, data, 8) + 100, "its cost grows faster than its input"
