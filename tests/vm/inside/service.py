"""The exporter as a service of systemd, from its unit file. See tests/vm/test_systemd.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, eventually

UNIT = Path("/etc/systemd/system/memcg-oom.service")
URL = "http://127.0.0.1:19754/metrics"


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{arguments}: {done.stderr}{status()}"
    return done.stdout.strip()


def status() -> str:
    return subprocess.run(
        ["systemctl", "status", "--no-pager", "--full", "memcg-oom"], check=False, capture_output=True, text=True
    ).stdout


def show(name: str) -> str:
    return systemctl("show", "--value", f"--property={name}", "memcg-oom")


def scrape() -> dict[str, float]:
    """The samples, by their names with labels; none while nobody answers."""
    try:
        with urllib.request.urlopen(URL, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def told() -> float:
    return scrape().get('memcg_exporter_told_total{event="oom_kill"}', -1.0)


def host() -> float:
    return scrape().get("memcg_host_oom_kill_total", -1.0)


def kill(count: int = 1) -> None:
    """Has so many units lose their hog to the OOM killer, one after the other."""
    for _ in range(count):
        command = ["systemd-run", "--quiet", "--wait", "--collect", "-p", "MemoryMax=16M", "-p", "MemorySwapMax=0"]
        done = subprocess.run([*command, "tail", "/dev/zero"], check=False, timeout=PATIENCE)
        assert done.returncode, "it was not killed"


@pytest.fixture
def service() -> Iterator[None]:
    shutil.copy("deploy/systemd/memcg-oom.service", UNIT)
    systemctl("daemon-reload")
    systemctl("start", "memcg-oom")  # comes back when it is ready
    yield
    systemctl("stop", "memcg-oom")


@pytest.mark.usefixtures("service")
def test_it_is_ready_when_it_says_so(figure: dict[str, object]) -> None:
    assert show("ActiveState") == "active"
    before = scrape()
    assert before["memcg_exporter_healthy"] == 1
    assert [name for name in before if name.startswith("memcg_events_oom_kill_total") and "memcg-oom.service" in name]
    assert not [name for name in before if name.startswith("memcg_degraded")], "the sandbox keeps something from it"
    kill(3)
    eventually(lambda: told() == 3)
    security = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "memcg-oom"], check=True, capture_output=True, text=True
    ).stdout
    exposure = re.search(r"Overall exposure level for memcg-oom.service: ([\d.]+)", security)
    assert exposure is not None, security
    figure["exposure"] = exposure[1]
    figure["memory"] = show("MemoryCurrent")
    assert float(exposure[1]) < 4.5, security


@pytest.mark.usefixtures("service")
def test_it_is_stopped_while_a_storm_runs() -> None:
    storm = subprocess.Popen(["python3", "-c", "from tests.vm.inside.service import kill; kill(20)"])
    eventually(lambda: told() >= 2)
    begun = time.monotonic()
    systemctl("stop", "memcg-oom")
    assert show("Result") == "success"
    assert time.monotonic() - begun < PATIENCE
    assert storm.wait(PATIENCE) == 0
    systemctl("start", "memcg-oom")


@pytest.mark.usefixtures("service")
def test_what_happens_while_it_is_dead_shows_in_the_hosts_counter() -> None:
    kill()
    eventually(lambda: told() == 1)
    before = host()
    assert before >= 1
    systemctl("kill", "--signal=KILL", "memcg-oom")
    kill()
    eventually(lambda: told() >= 0)  # it was started anew
    assert show("NRestarts") == "1"
    assert host() == before + 1
    kill()
    eventually(lambda: told() >= 1)
    assert host() == before + 2


@pytest.mark.usefixtures("service")
def test_the_watchdog_starts_it_anew() -> None:
    systemctl("stop", "memcg-oom")
    dropin = Path(f"{UNIT}.d/watchdog.conf")
    dropin.parent.mkdir()
    dropin.write_text("[Service]\nWatchdogSec=4\n")
    systemctl("daemon-reload")
    systemctl("start", "memcg-oom")
    pid = show("MainPID")
    time.sleep(8)  # twice as long as it may be silent
    assert show("MainPID") == pid
    systemctl("kill", "--signal=STOP", "memcg-oom")
    eventually(lambda: show("MainPID") not in (pid, "0"))
    eventually(lambda: told() >= 0)
    shutil.rmtree(dropin.parent)
