"""What the kernel says about mounts and about the cgroups of a process, also where it says it oddly."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import memcg_oom.mounts
from memcg_oom import NotACgroupError, UnsupportedError
from memcg_oom.mounts import (
    Mount,
    cgroup_mounts,
    is_below,
    memory_cgroup_of,
    memory_mount,
    mount_of,
    parse_mountinfo,
    parse_proc_cgroup,
)

HYBRID = b"""\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
25 22 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:14 - cgroup cgroup rw,cpu,cpuacct
31 25 0:28 / /sys/fs/cgroup/memory rw,nosuid shared:15 - cgroup cgroup rw,memory
"""


def parse(*lines: bytes) -> list[Mount]:
    return list(parse_mountinfo(b"\n".join(lines)))


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Says what is mounted."""
    file = tmp_path / "mountinfo"
    monkeypatch.setattr(memcg_oom.mounts, "MOUNTINFO", str(file))

    def say(text: bytes) -> None:
        file.write_bytes(text)

    return say


def test_hybrid() -> None:
    unified, systemd, cpu, memory = parse(HYBRID)
    assert [(one.version, one.memory) for one in (unified, systemd, cpu, memory)] == [
        (2, True),
        (1, False),
        (1, False),
        (1, True),
    ]
    assert (memory.point, memory.root, memory.device) == ("/sys/fs/cgroup/memory", "/", os.makedev(0, 28))
    assert not any(one.read_only for one in (unified, systemd, cpu, memory))


def test_the_kernels_escapes() -> None:
    line = rb"31 25 0:28 /a\134b /mnt/a\040b\011c\012d\134e\134040 rw - cgroup cgroup rw,memory"
    (mount,) = parse(line)
    assert mount.point == "/mnt/a b\tc\nd\\e\\040"
    assert mount.root == "/a\\b"


def test_a_name_that_is_not_utf8() -> None:
    (mount,) = parse(b"31 25 0:28 / /mnt/\xff\xc3\xa4 rw - cgroup cgroup rw,memory")
    assert mount.point == "/mnt/\udcff\u00e4"
    assert os.fsencode(mount.point) == b"/mnt/\xff\xc3\xa4"


@pytest.mark.parametrize(
    "optional", [b"", b"shared:1 ", b"master:2 ", b"shared:1 master:2 propagate_from:3 ", b"unbindable "]
)
def test_optional_fields(optional: bytes) -> None:
    (mount,) = parse(b"31 25 0:28 / /m rw,nosuid " + optional + b"- cgroup cgroup rw,memory")
    assert (mount.point, mount.memory, mount.read_only) == ("/m", True, False)


@pytest.mark.parametrize("root", [b"/docker/0123abc", b"/../other", b"/.."])
def test_the_root_of_a_container(root: bytes) -> None:
    (mount,) = parse(b"31 25 0:28 " + root + b" /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory")
    assert mount.root == root.decode()


@pytest.mark.parametrize(
    ("options", "super_options", "read_only"),
    [
        (b"rw", b"rw,memory", False),
        (b"ro,nosuid", b"rw,memory", True),
        (b"nosuid,ro", b"rw,memory", True),
        (b"rw", b"ro,memory", True),
        (b"rw,errors=ro", b"rw,memory", False),
    ],
)
def test_read_only(options: bytes, super_options: bytes, read_only: bool) -> None:
    (mount,) = parse(b"31 25 0:28 / /m " + options + b" - cgroup cgroup " + super_options)
    assert mount.read_only is read_only


@pytest.mark.parametrize(
    ("super_options", "memory"),
    [
        (b"rw,memory", True),
        (b"rw,memory,hugetlb", True),
        (b"rw,cpu,cpuacct,memory", True),
        (b"rw,cpu,cpuacct", False),
        (b"rw,name=memory", False),
        (b"rw,xattr,release_agent=/memory,name=x", False),
        (b"rw,memory_recursiveprot", False),
        (b"rw", False),
    ],
)
def test_controllers(super_options: bytes, memory: bool) -> None:
    (mount,) = parse(b"31 25 0:28 / /m rw - cgroup cgroup " + super_options)
    assert (mount.version, mount.memory) == (1, memory)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"31 25 0:28 / /m rw",
        b"31 25 0:28 / /m - cgroup cgroup rw,memory",
        b"31 25 0:28 / /m rw - cgroup cgroup",
        b"31 25 0:28 / /m rw - tmpfs cgroup rw,memory",
        b"31 25 0:28 / /cgroup rw - ext4 /dev/memory rw,memory",
    ],
)
def test_lines_that_are_no_cgroup_mounts(line: bytes) -> None:
    assert parse(line, b"31 25 0:28 / /m rw - cgroup cgroup rw,memory")[0].point == "/m"
    assert len(parse(line)) == 0


def test_a_source_with_blanks_is_escaped() -> None:
    (mount,) = parse(rb"31 25 0:28 / /m rw - cgroup my\040cgroup rw,memory")
    assert mount.memory


# -- choosing a mount


def test_is_below() -> None:
    assert is_below("/a/b", "/a")
    assert is_below("/a", "/a")
    assert is_below("/a/b/c", "/a/b")
    assert is_below("/a", "/")
    assert is_below("/", "/")
    assert not is_below("/ab", "/a")
    assert not is_below("/a", "/a/b")
    assert not is_below("/b", "/a")


def test_memory_mount_is_the_one_that_shows_the_most(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(
        b"40 1 0:28 /docker/abc /run/inner rw - cgroup cgroup rw,memory\n"
        + HYBRID
        + b"41 1 0:28 /docker /run/docker rw - cgroup cgroup rw,memory\n"
    )
    mount = memory_mount()
    assert mount is not None
    assert mount.point == "/sys/fs/cgroup/memory"
    assert len(cgroup_mounts()) == 6


@pytest.mark.parametrize("text", [b"", HYBRID.replace(b"rw,memory", b"rw,pids")])
def test_no_memory_mount(mountinfo: Callable[[bytes], None], text: bytes) -> None:
    mountinfo(text)
    assert memory_mount() is None


@pytest.mark.parametrize(
    ("controllers", "expected"), [("cpuset cpu io memory pids\n", True), ("cpuset cpu\n", False), ("\n", False)]
)
def test_the_memory_controller_on_version_2(
    mountinfo: Callable[[bytes], None], tmp_path: Path, controllers: str, expected: bool
) -> None:
    (tmp_path / "cgroup.controllers").write_text(controllers)
    point = os.fsencode(tmp_path)
    mountinfo(b"26 25 0:23 / " + point + b" rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n")
    mount = memory_mount()
    if expected:
        assert mount is not None
        assert (mount.point, mount.version) == (os.fspath(tmp_path), 2)
        assert mount_of(f"{tmp_path}/a", os.makedev(0, 23)).version == 2
    else:
        assert mount is None
        with pytest.raises(NotACgroupError, match=r"version 2\) is without the memory controller"):
            mount_of(f"{tmp_path}/a", os.makedev(0, 23))


@pytest.mark.parametrize(
    ("options", "expected"), [(b"rw,memory_localevents", True), (b"rw,nsdelegate,memory_recursiveprot", False)]
)
def test_local_events(options: bytes, expected: bool) -> None:
    (mount,) = parse(b"26 25 0:23 / /m rw,nosuid - cgroup2 cgroup2 " + options)
    assert mount.local_events is expected


def test_mount_of_is_the_innermost(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(
        HYBRID
        + b"40 1 0:28 /docker/abc /sys/fs/cgroup/memory/bind rw - cgroup cgroup rw,memory\n"
        + b"41 1 0:28 /docker /elsewhere/that/is/a/long/way/from/here rw - cgroup cgroup rw,memory\n"
    )
    device = os.makedev(0, 28)
    assert mount_of("/sys/fs/cgroup/memory/a", device).point == "/sys/fs/cgroup/memory"
    assert mount_of("/sys/fs/cgroup/memory", device).point == "/sys/fs/cgroup/memory"
    assert mount_of("/sys/fs/cgroup/memory/bind/a", device).point == "/sys/fs/cgroup/memory/bind"
    assert mount_of("/sys/fs/cgroup/memory/binder", device).point == "/sys/fs/cgroup/memory"
    # Reached by a way that the table does not show (a symbolic link): any mount of the hierarchy will do.
    assert mount_of("/link/a", device).memory


def test_mount_of_says_what_it_is_instead(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(HYBRID)
    with pytest.raises(NotACgroupError, match="version 2") as caught:
        mount_of("/sys/fs/cgroup/unified/a", os.makedev(0, 23))
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "/sys/fs/cgroup/unified/a")
    with pytest.raises(NotACgroupError, match="without the memory controller"):
        mount_of("/sys/fs/cgroup/cpu,cpuacct/a", os.makedev(0, 27))
    with pytest.raises(NotACgroupError, match="no cgroup file system"):
        mount_of("/tmp/a", os.makedev(254, 0))  # noqa: S108 - a name, nothing is put there


# -- the cgroups of a process


@pytest.mark.parametrize(
    ("text", "controller", "expected"),
    [
        (b"4:memory:/a\n", b"memory", "/a"),
        (b"9:cpu,cpuacct:/c\n4:memory,hugetlb:/a/b\n0::/u\n", b"memory", "/a/b"),
        (b"9:cpu,cpuacct:/c\n4:memory:/a\n", b"cpuacct", "/c"),
        (b"4:memory:/a:b:c\n", b"memory", "/a:b:c"),
        (b"4:memory:/with blanks \n", b"memory", "/with blanks "),
        (b"4:memory:/\xff\xfe\n", b"memory", "/\udcff\udcfe"),
        (b"4:memory:/\xc3\xa4\n", b"memory", "/\u00e4"),
        (b"4:memory:/a (deleted)\n", b"memory", "/a (deleted)"),
        (b"1:name=systemd:/user.slice\n4:memory:/a\n", b"name=systemd", "/user.slice"),
        (b"1:name=memory:/x\n", b"memory", None),
        (b"5:memory_x:/x\n0::/u\n", b"memory", None),
        (b"0::/u\n", b"memory", None),
        (b"9:cpu,cpuacct:/c\n4:memory:/a\n0::/u:v\n", b"", "/u:v"),
        (b"4:memory:/a\n", b"", None),
        (b"", b"memory", None),
        (b"nonsense\n\n4:memory:/a", b"memory", "/a"),
        (b"4:memory:/..\n", b"memory", "/.."),
    ],
)
def test_proc_cgroup(text: bytes, controller: bytes, expected: str | None) -> None:
    assert parse_proc_cgroup(text, controller) == expected


@pytest.mark.parametrize("odd", [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x85"])
def test_only_a_newline_ends_a_line(odd: bytes) -> None:
    name = b"/a" + odd + b"b"
    assert parse_proc_cgroup(b"4:memory:" + name + b"\n0::/u\n", b"memory") == os.fsdecode(name)
    (mount,) = parse(b"31 25 0:28 " + name + b" /m" + odd + b" rw - cgroup cgroup rw,memory")
    assert (mount.root, mount.point) == (os.fsdecode(name), os.fsdecode(b"/m" + odd))


def test_memory_cgroup_of_nobody() -> None:
    with pytest.raises(ProcessLookupError):
        memory_cgroup_of(2**22 + 1)


def test_memory_cgroup_without_the_hierarchy(mountinfo: Callable[[bytes], None]) -> None:
    mountinfo(b"")
    with pytest.raises(UnsupportedError, match="no memory cgroup hierarchy is mounted"):
        memory_cgroup_of()
