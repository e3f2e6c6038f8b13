"""The command's choices that need no kernel: where a scratch cgroup may be made, sizes, text."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest

from memcg_oom import Cgroup, EventFD, mounts
from memcg_oom.command import check, run, scratch
from memcg_oom.command.errors import Unavailable
from memcg_oom.command.signals import Signals
from memcg_oom.command.text import escape
from memcg_oom.sizes import format_size, parse_size
from tests.support import PATIENCE

V1 = "30 1 0:29 / {point} rw,relatime - cgroup cgroup rw,memory\n"
V2 = "31 1 0:30 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(V1.format(point=tmp_path))
    monkeypatch.setattr(mounts, "MOUNTINFO", str(path))
    return path


def place() -> str:
    with scratch._room(None) as found:
        return found


def test_without_systemd_the_top_of_the_hierarchy_is_the_place(
    tmp_path: Path, mountinfo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "SYSTEMD", "/no/such")
    assert place() == str(tmp_path)


def test_on_a_host_with_v2_alone_there_is_none(mountinfo: Path) -> None:
    mountinfo.write_text(V2)
    with pytest.raises(Unavailable, match="no hierarchy with the memory controller"):
        place()


@pytest.mark.parametrize("attribute", ["trusted.delegate", "user.delegate"])
def test_under_systemd_it_is_our_own_cgroup_where_that_is_delegated(
    mountinfo: Path, monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    monkeypatch.setattr(scratch, "SYSTEMD", "/")
    monkeypatch.setattr(scratch, "_attribute", lambda _path, name: b"1" if name == attribute else b"")
    monkeypatch.setattr(scratch, "own_systemd_cgroup", lambda: "/system.slice/run-1.scope")
    monkeypatch.setattr(scratch, "memory_cgroup_of", lambda: "/the/scope")
    assert place() == "/the/scope"


def test_under_systemd_without_delegation_it_says_what_to_do(mountinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "SYSTEMD", "/")
    monkeypatch.setattr(scratch, "_attribute", lambda _path, _name: b"")
    with pytest.raises(Unavailable, match="systemd-run --scope -p Delegate=yes"):
        place()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("64M", 64 << 20),
        ("1.5G", 3 << 29),
        ("2k", 2048),
        ("1GiB", 1 << 30),
        ("10 MB", 10 << 20),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "nan", "inf", "1X", "1e400", "64 M M", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_sizes_are_written() -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 32 << 20, 5 << 40)] == [
        *("0 bytes", "1023 bytes", "1.0 KiB", "32.0 MiB", "5.0 TiB")
    ]


def test_nothing_that_a_terminal_would_act_on_is_left() -> None:
    hostile = "a\x1b[31m\r\n\t\x07\x9b\u202e\udcff\u00fc"
    escaped = escape(hostile)
    assert escaped.isprintable()
    assert escaped.endswith("\u00fc")
    assert escape("plain/\u6f22, text") == "plain/\u6f22, text"


# -- what check says


def refuse(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_without_inotify_v2_is_told_of_ooms_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "Inotify", refuse)
    cost = check._instances().cost
    assert "OOMs, kills and removals are told, later" in cost
    assert "no OOMs" not in cost


# -- a command that is run


@pytest.mark.parametrize("failing", ["pidfd_open", "start"])
def test_a_command_that_cannot_be_followed_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    (tmp_path / "cgroup.procs").touch()
    stand_in = cast("Cgroup", SimpleNamespace(path=str(tmp_path)))
    if failing == "start":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        run.Child(["sleep", "1000"], stand_in)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# -- signals


def test_a_signal_right_before_the_system_call_ends_the_wait() -> None:
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    try:
        with EventFD(os.eventfd(0)) as never, Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)  # its handler has run when the wait begins, which is just as late
            start = time.monotonic()
            signals.wait(never, PATIENCE)
            assert time.monotonic() - start < PATIENCE
            assert not never.wait(0)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)
