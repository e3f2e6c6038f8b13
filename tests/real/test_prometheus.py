"""A Prometheus that scrapes the exporter while cgroups come, are killed in and go."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.real.test_export import exporting, killed_on_host, url
from tests.support import PATIENCE, eventually, make, remove, run_hog

CGROUPS, KILLS = 100, 2

CONFIG = """\
global: {{scrape_interval: 500ms, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: memcg-oom
    static_configs: [{{targets: ['{target}']}}]
"""


def ask(server: str, what: str, **parameters: str) -> Any:
    """The HTTP API of Prometheus."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=PATIENCE) as answer:
        return json.load(answer)["data"]


def value(server: str, query: str) -> float | None:
    """Of a query with one answer; None: there is none."""
    answers = ask(server, "query", query=query)["result"]
    return float(answers[0]["value"][1]) if answers else None


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A server on loopback that scrapes the target; its address."""
    config = folder / "prometheus.yml"
    rules = Path(__file__).parents[2] / "deploy" / "prometheus" / "memcg_oom.rules.yml"
    config.write_text(CONFIG.format(target=target, rules=rules))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:

        def scrapes() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return value(f"http://{address}", "up") == 1
            except OSError:
                return False

        eventually(scrapes)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="missing: apt-get install --no-install-recommends prometheus"
)
def test_its_counters_are_the_kernels(memcg: Path, hog: str, tmp_path: Path, figure: dict[str, object]) -> None:
    # Where there is no Prometheus, deploy/ may be missing as well.
    from tests.fake.test_deploy import queries

    def live(number: int) -> None:
        cgroup = make(memcg / f"c{number}", "1M")
        for _ in range(KILLS):
            run_hog(hog, cgroup)
        remove(cgroup)

    with (
        exporting("--listen", "127.0.0.1:0") as (_, line),
        prometheus(tmp_path, urllib.parse.urlsplit(url(line)).netloc) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        before = killed_on_host()
        begun = value(server, "sum(memcg_events_oom_kill_total) + sum(memcg_unattributed_kills_total)")
        assert begun is not None
        list(pool.map(live, range(CGROUPS)))

        def adds_up() -> bool:
            # In this order: what is killed meanwhile, by whomever, makes it wait for the next scrape.
            host = killed_on_host()
            now = value(server, "sum(memcg_events_oom_kill_total) + sum(memcg_unattributed_kills_total)")
            return now is not None and now - begun == host - before == killed_on_host() - before

        eventually(adds_up)
        assert value(server, "sum(memcg_host_oom_kill_total)") == killed_on_host()
        attributed = value(server, f'sum(memcg_events_oom_kill_total{{cgroup=~"{memcg}/.*"}})')
        series = value(server, f'count(memcg_events_oom_kill_total{{cgroup=~"{memcg}/.*"}})')
        assert killed_on_host() - before >= CGROUPS * KILLS
        assert attributed is not None
        assert attributed <= CGROUPS * KILLS
        eventually(lambda: value(server, 'count(ALERTS{alertname="MemcgOomKill"})'))
        figure["attributed"], figure["series"] = attributed, series
        # promtool takes a query for good that gives two series the same labels, which is an error here.
        shown = {query: ask(server, "query", query=query)["result"] for query in queries()}
        of_kills = [query for query in shown if "memcg_events_oom_kill_total" in query]
        assert len(of_kills) >= 3
        assert all(shown[query] for query in of_kills)
