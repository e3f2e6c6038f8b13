"""What systemd hears of the exporter."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memcg_oom.command.notify import Service


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        if request.param == "path":
            listener.bind(str(tmp_path / "notify"))
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        else:
            listener.bind(f"\0memcg_oom_{os.getpid()}")
            monkeypatch.setenv("NOTIFY_SOCKET", f"@memcg_oom_{os.getpid()}")
        yield listener


def test_it_is_told(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    assert "NOTIFY_SOCKET" not in os.environ  # what is started here is not the service
    service.tell("READY=1\nSTATUS=caf\u00e9 \udcff")
    assert manager.recv(100) == b"READY=1\nSTATUS=caf\xc3\xa9 \xff"
    assert service.due() is None
    service.alive()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_the_watchdog(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    service = Service()
    assert service.period == 0.1
    assert service.due() == 0
    service.alive()
    assert manager.recv(100) == b"WATCHDOG=1"
    due = service.due()
    assert due is not None
    assert 0 <= due <= 0.1
    time.sleep(0.11)
    assert service.due() == 0
    service.alive()
    assert manager.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(("microseconds", "pid"), [("x", ""), ("200000", "1"), ("", "")])
def test_no_watchdog(manager: socket.socket, monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Service().period is None


def test_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    service = Service()
    service.tell("READY=1")
    service.alive()
    assert service.due() is None


def test_a_manager_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with pytest.raises(FileNotFoundError):
        Service().tell("READY=1")
