"""memcg-oom export, run as a process, scraped while cgroups come, are killed in and go."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import PATIENCE, eventually, is_v2, kills_of, make, put, remainder, remove, run_hog, start_hog

pytest.importorskip("prometheus_client", reason="export is tried where prometheus_client is installed")

CGROUPS, KILLS = 25, 2  # how many, and how often in each
# How many cgroups come and go under an exporter that has no room for as many, one in how many is killed in, and seconds
# that one stands at most. 50,000 take some three minutes.
CHURNED = int(os.environ.get("MEMCG_OOM_CHURN", "0")) or 2 * int(os.environ.get("MEMCG_OOM_ROUNDS", "1000"))
KILLED_IN, STANDS = 10, 0.03
# Seconds for which a series is kept, and how many there may be beside those of the cgroups that are there anyhow: of
# ours hundreds come and go in a second.
KEEP, ROOM = 2, 20
# Bytes by which the exporter may have grown in the end: the allocator's own doing, and less than a cgroup of which
# something stays behind would take.
SLACK, SLACK_EACH = 4 << 20, 100


@contextmanager
def exporting(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """memcg-oom export, from the moment when it watches, and its first line."""
    command = [sys.executable, "-m", "memcg_oom", "export", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "watching" in line
        yield process, line
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def url(line: str) -> str:
    found = re.search(r"http://\S+/metrics", line)
    assert found is not None
    return found[0]


def scrape(where: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(where, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


def numbers(text: str, name: str, label: str = "cgroup") -> Counter[str]:
    """The series of one metric, by one of their labels."""
    found: Counter[str] = Counter()
    for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE):
        by = re.search(rf'{label}="(.*?)"', labels)
        found[by[1] if by else ""] += int(float(value))
    return found


def killed_on_host() -> int:
    """All OOM kills on this host, by the kernel's own count."""
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(dict(lines)["oom_kill"])


def test_what_is_scraped_is_what_the_kernel_has_counted(memcg: Path, hog: str, figure: dict[str, object]) -> None:
    counted = Counter[str]()
    highest = Counter[str]()
    scrapes = 0
    ending = threading.Event()
    wrong: list[str] = []

    def live(number: int) -> None:
        cgroup = make(memcg / f"c{number}", "1M")
        for _ in range(KILLS):
            run_hog(hog, cgroup)
        counted[str(cgroup)] = kills_of(cgroup)
        remove(cgroup)

    def look(where: str) -> None:
        nonlocal scrapes
        while not ending.wait(0.01):
            now = numbers(scrape(where), "memcg_events_oom_kill_total")
            wrong.extend(path for path, count in highest.items() if now[path] < count)
            highest.update(now - highest)
            scrapes += 1

    def adds_up() -> str:
        """A scrape that has every kill of the host in it, whoever else runs out of memory meanwhile; or nothing."""
        text = scrape(where)
        series = numbers(text, "memcg_events_oom_kill_total").total()
        told = series + numbers(text, "memcg_unattributed_kills_total")[""]
        assert numbers(text, "memcg_exporter_told_total", "event")["oom_kill"] == series
        return text if told == killed_on_host() - before else ""

    # A tree of the whole hierarchy: what is killed in a cgroup that is removed too soon is unattributed, and not lost.
    with exporting("--listen", "127.0.0.1:0") as (process, line), ThreadPoolExecutor(4) as pool:
        before = killed_on_host()
        where = url(line)
        watcher = threading.Thread(target=look, args=(where,))
        watcher.start()
        try:
            list(pool.map(live, range(CGROUPS)))
            eventually(adds_up)
        finally:
            ending.set()
            watcher.join()
        text = scrape(where)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert not wrong
    assert sum(counted.values()) == CGROUPS * KILLS
    series = numbers(text, "memcg_events_oom_kill_total")
    assert all(series[path] <= count for path, count in counted.items())
    ours = sum(series[path] for path in counted)
    unattributed = numbers(text, "memcg_unattributed_kills_total")[""]
    assert ours + unattributed >= counted.total()
    assert sum(numbers(text, "memcg_events_oom_total")[path] for path in counted) >= CGROUPS
    unresolved = numbers(text, "memcg_unresolved_ooms_total")[""]
    figure |= {"scrapes": scrapes, "attributed": ours, "unattributed": unattributed, "unresolved": unresolved}


def test_what_there_is_no_room_for_and_what_is_gone_adds_up(memcg: Path, hog: str) -> None:
    with exporting("--listen", "127.0.0.1:0", "--series", "3", "--keep", "0", memcg) as (process, line):
        where = url(line)
        cgroups = [make(memcg / name, "1M") for name in "abcd"]
        eventually(lambda: numbers(scrape(where), "memcg_exporter_series_overflowed")[""] == 2)
        for cgroup in cgroups:
            run_hog(hog, cgroup)
        eventually(lambda: numbers(scrape(where), "memcg_exporter_told_total", "event")["oom_kill"] == 4)
        kills = numbers(scrape(where), "memcg_events_oom_kill_total")
        assert (kills["(overflow)"], kills.total()) == (2, 4)
        for cgroup in cgroups:
            remove(cgroup)
        eventually(lambda: numbers(scrape(where), "memcg_exporter_series")[""] == 1)
        text = scrape(where)
        assert numbers(text, "memcg_events_oom_kill_total") == {"(overflow)": 2, str(memcg): 0}
        assert numbers(text, "memcg_exporter_told_total", "event")["oom_kill"] == 4
        process.send_signal(signal.SIGTERM)
        _, err = remainder(process)
    assert err.count("\n") == 1
    assert "more than 3 cgroups" in err


class Sizes:
    """How large an exporter is by a scrape of it; descriptors without those that the watched cgroups need."""

    def __init__(self, text: str, own: Path) -> None:
        def one(name: str) -> int:
            return numbers(text, name)[""]

        self.rss = one("process_resident_memory_bytes")
        self.watched = one("memcg_watched_cgroups")
        self.overflowed = one("memcg_exporter_series_overflowed")
        self.series = one("memcg_exporter_series")
        registered = 0 if is_v2(own) else self.watched - one("memcg_polled_cgroups")
        self.fds = one("process_open_fds") - registered
        self.kills = numbers(text, "memcg_exporter_told_total", "event")["oom_kill"]
        self.unattributed = one("memcg_unattributed_kills_total")
        # Kills of this host that were not told: those of before, once all others are.
        self.untold = one("memcg_host_oom_kill_total") - self.kills - self.unattributed
        self.own = {path for path in numbers(text, "memcg_events_oom_kill_total") if path.startswith(str(own))}


def test_many_cgroups_come_and_go_and_nothing_of_them_stays(memcg: Path, hog: str, figure: dict[str, object]) -> None:
    scrapes: list[Sizes] = []
    ending = threading.Event()

    def look() -> Sizes:
        return Sizes(scrape(where), memcg)

    def keep_looking() -> None:
        while not ending.wait(0.2):
            scrapes.append(look())

    def rest() -> Sizes:
        """When the series and descriptors of what is gone are gone as well, and every kill is told."""
        found = [first]

        def at_rest() -> bool:
            found[0] = now = look()
            return (now.own, now.untold, now.fds) == (first.own, first.untold, first.fds)

        eventually(at_rest)
        return found[0]

    def live(number: int) -> None:
        killed_in = number % KILLED_IN == 0
        cgroup = make(memcg / f"c{number}", "1M" if killed_in else None)
        if killed_in:
            run_hog(hog, cgroup)
        time.sleep(random.uniform(0, STANDS))
        remove(cgroup)

    with exporting("--listen", "127.0.0.1:0") as (_, line):
        room = numbers(scrape(url(line)), "memcg_exporter_series")[""] + ROOM
    with (
        exporting("--listen", "127.0.0.1:0", "--keep", KEEP, "--series", room) as (process, line),
        ThreadPoolExecutor(8) as pool,
    ):
        where = url(line)
        first = look()
        list(pool.map(live, range(CHURNED // 5)))  # what is needed once is had after this
        before = rest()
        watcher = threading.Thread(target=keep_looking)
        watcher.start()
        begun = time.monotonic()
        try:
            list(pool.map(live, range(CHURNED)))
        finally:
            ending.set()
            watcher.join()
        took = time.monotonic() - begun
        after = rest()
        process.send_signal(signal.SIGTERM)
        _, err = remainder(process)
    done = len(range(0, CHURNED, KILLED_IN))
    kills, unattributed = after.kills - before.kills, after.unattributed - before.unattributed
    figure |= {"cgroups": CHURNED, "seconds": round(took), "kills": done, "told": kills, "unattributed": unattributed}
    figure |= {"rss": f"{before.rss >> 10} KiB, {(after.rss - before.rss) >> 10:+}", "scrapes": len(scrapes)}
    figure |= {"series": max(one.series for one in scrapes), "of": room}
    figure |= {"overflowed": max(one.overflowed for one in scrapes)}
    assert kills + unattributed >= done
    assert all(one.series <= room for one in scrapes)
    # On an emulated processor there are too few to catch it; what is said below is said there too.
    assert any(one.overflowed for one in scrapes) or len(scrapes) < 10
    assert err.count(f"more than {room} cgroups (--series)") == 1
    # The allocator keeps what all cgroups needed that were there at once, those of others among them.
    most = max(one.watched for one in scrapes) - before.watched
    assert after.rss - before.rss <= SLACK + SLACK_EACH * CHURNED + 4096 * most


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_the_file_has_the_last_kill(
    memcg: Path, hog: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    cgroup = make(memcg / "caf\udce9", "1M")
    with exporting("--textfile", tmp_path, "--interval", "1000", memcg) as (process, line):
        assert str(tmp_path) in line
        assert "http" not in line
        run_hog(hog, cgroup)
        eventually(lambda: _is_idle(process.pid))
        process.send_signal(number)
        _, err = remainder(process)
    assert (process.returncode, err) == (code, "")
    assert os.listdir(tmp_path) == ["memcg_oom.prom"]
    text = (tmp_path / "memcg_oom.prom").read_text()
    assert numbers(text, "memcg_events_oom_kill_total")[rf"{memcg}/caf\\xe9"] == 1


def _is_idle(pid: int) -> bool:
    """Whether it has slept for as long as an OOM takes to settle: what came before is counted."""
    before = Path(f"/proc/{pid}/stat").read_text()
    threading.Event().wait(1.0)
    return Path(f"/proc/{pid}/stat").read_text() == before


def test_limits_at_work_on_v2(memcg2: Path, hog: str) -> None:
    cgroup = make(memcg2 / "a", "1M")
    with exporting("--listen", "127.0.0.1:0", "--max", "--high", memcg2) as (_, line):
        run_hog(hog, cgroup)
        eventually(lambda: numbers(scrape(url(line)), "memcg_events_max_total")[str(cgroup)] > 0)
        put(cgroup / "memory.high", "64K")
        pid = start_hog(hog, cgroup)  # which is slowed down so much that it does not come to its end
        try:
            eventually(lambda: numbers(scrape(url(line)), "memcg_events_high_total")[str(cgroup)] > 0)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_limits_at_work_are_not_told_on_v1(memcg1: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memcg_oom", "export", "--listen", "127.0.0.1:0", "--max", memcg1],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_promtool_has_nothing_against_a_scrape_of_the_host(playground: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    with exporting("--listen", "127.0.0.1:0") as (_, line):
        text = scrape(url(line))
    assert numbers(text, "memcg_events_oom_kill_total")[str(playground.parent)] == 0
    assert str(playground.parent) in numbers(text, "memcg_events_oom_kill_total")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
