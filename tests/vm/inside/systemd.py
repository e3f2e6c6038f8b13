"""A machine that systemd runs, on cgroup v2. Runs inside a machine of its own, see tests/vm/test_systemd.py."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from memcg_oom import Monitor, Oom, OomKill, Removed, Unattributed
from tests.support import PATIENCE, QUIET, Ledger, Reader, event_count, eventually

SYSTEM = Path("/sys/fs/cgroup/system.slice")
ROUNDS = 20
HOG = ("tail", "/dev/zero")
USER = "someone"


def systemd_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-run", "--quiet", "--collect", *arguments], check=False, capture_output=True, text=True
    )


def unattributed(ledger: Ledger) -> int:
    return sum(event.count for event in ledger.other if isinstance(event, Unattributed))


@pytest.mark.parametrize("kind", ["service", "scope"])
def test_a_unit_that_runs_out_is_told_by_its_name(kind: str, figure: dict[str, object]) -> None:
    """Systemd removes the cgroup as soon as its only process was killed."""
    before = event_count(SYSTEM, "oom_kill", below=True)
    with Monitor() as monitor:
        monitor.watch_tree("/sys/fs/cgroup")
        reader = Reader(monitor)
        units = [f"hungry-{i}.{kind}" for i in range(ROUNDS)]
        for unit in units:
            how = "--wait" if kind == "service" else "--scope"
            systemd_run(how, f"--unit={unit}", "-p", "MemoryMax=16M", "-p", "MemorySwapMax=0", "--", *HOG)
        eventually(lambda: not any((SYSTEM / unit).exists() for unit in units))

        def removed() -> set[str]:
            return {one.cgroup for one in reader.ledger.removals} & {str(SYSTEM / unit) for unit in units}

        reader.wait_until(lambda: len(removed()) == ROUNDS)
        time.sleep(QUIET)
        ledger = reader.ledger
        kills = event_count(SYSTEM, "oom_kill", below=True) - before
        assert kills == ROUNDS
        told = {one.cgroup: count for one, count in ledger.kills.items() if count}
        assert set(told) <= {str(SYSTEM / unit) for unit in units}
        assert set(told.values()) == {1}
        assert len(told) + unattributed(ledger) == kills
        assert unattributed(ledger) <= 1
        for one, events in ledger.by_watch.items():
            if one.cgroup in told:
                kinds = [type(event) for event in events if isinstance(event, Oom | OomKill | Removed)]
                assert kinds[-1] is Removed
                assert kinds.count(Oom) >= 1
        figure |= {"kills": kills, "told": len(told), "unattributed": unattributed(ledger)}
        reader.finish()


def verdict(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    assert len(lines) == 1, (done.returncode, done.stdout, done.stderr)
    found: dict[str, object] = json.loads(lines[0])
    return found


@pytest.fixture(scope="session")
def user() -> int:
    """Somebody without any rights, with a manager of their own."""
    subprocess.run(["useradd", "--create-home", USER], check=True)
    subprocess.run(["loginctl", "enable-linger", USER], check=True)
    uid = int(subprocess.run(["id", "-u", USER], check=True, capture_output=True, text=True).stdout)
    eventually(lambda: Path(f"/run/user/{uid}/bus").exists(), 4 * PATIENCE)
    return uid


def as_user(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
    environment = f"XDG_RUNTIME_DIR=/run/user/{uid}"
    return subprocess.run(
        ["runuser", "-u", USER, "--", "env", environment, *command],
        check=False,
        capture_output=True,
        text=True,
        cwd="/tmp",  # noqa: S108 - where everybody may be
    )


SCOPE = ("systemd-run", "--user", "--quiet", "--scope", "-p", "Delegate=yes")


def test_run_in_a_scope_of_a_user(user: int) -> None:
    done = as_user(user, *SCOPE, "memcg-oom", "run", "--json", "--memory", "16M", "--", *HOG)
    found = verdict(done)
    assert (done.returncode, found["code"], found["signal"]) == (137, 137, 9)
    assert found["kills"] == 1
    assert found["ooms"]
    assert f"/user@{user}.service/" in str(found["cgroup"])
    assert not os.path.exists(str(found["cgroup"]))


def test_demo_in_a_scope_of_a_user(user: int) -> None:
    done = as_user(user, *SCOPE, "memcg-oom", "demo")
    assert done.returncode == 0, done.stderr
    assert "oom_kill" in done.stdout


def test_run_and_demo_in_a_scope_of_the_system() -> None:
    for command in (["run", "--json", "--memory", "16M", "--", *HOG], ["demo"]):
        done = subprocess.run(
            ["systemd-run", "--quiet", "--scope", "-p", "Delegate=yes", "memcg-oom", *command],
            check=False,
            capture_output=True,
            text=True,
        )
        if command == ["demo"]:
            assert done.returncode == 0, done.stderr
        else:
            assert verdict(done)["kills"] == 1


def test_run_where_nothing_was_delegated_says_what_to_put_before(user: int) -> None:
    for done, advice in (
        (as_user(user, "memcg-oom", "run", "--", "true"), "systemd-run --user --scope -p Delegate=yes"),
        (
            subprocess.run(["memcg-oom", "run", "--", "true"], check=False, capture_output=True, text=True),
            "systemd-run --scope -p Delegate=yes",
        ),
    ):
        assert done.returncode == 69, done.stderr
        assert advice in done.stderr


OF_A_USER = """
import os, subprocess, sys
from memcg_oom import Cgroup, Created, Monitor, Removed
def take_until(kind):
    while not any(type(event) is kind and event.cgroup == cgroup.path for event in monitor.wait()):
        pass
own = Cgroup.of_pid()
os.mkdir(own.path + "/self")
with open(own.path + "/self/cgroup.procs", "w") as file:
    file.write("0")
top = Cgroup.create(own.path + "/top")
with Monitor() as monitor:
    tree = monitor.watch_tree(top)
    for i in range(10):
        cgroup = Cgroup.create(f"{top.path}/{i}")
        take_until(Created)
        cgroup.limit = 8 << 20
        enter = 'echo 0 > "$0/cgroup.procs" && exec tail /dev/zero'
        assert subprocess.run(["sh", "-c", enter, cgroup.path]).returncode == -9
        cgroup.remove()
        take_until(Removed)
    print("kills", tree.kills, top.events(local=False)["oom_kill"], os.geteuid())
top.remove()
"""


def test_a_tree_of_a_user(user: int) -> None:
    done = as_user(user, *SCOPE, "python3", "-c", OF_A_USER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"kills 10 10 {user}", done.stdout
