"""Draws deploy/grafana/memcg_oom.json, as Grafana would with what a Prometheus has.

The panels are Grafana's own: its components from the npm registry (tools/dashboard), put where the dashboard has them
and shown by a Chromium without a screen. What its server does is done here: variables are filled in, and the queries
asked. A panel, a variable or a transformation that is not known here is an error, and not left out.

Debian's packages: chromium, fonts-inter, nodejs and npm. The first time it installs half a gigabyte in .cache.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "memcg_oom.json"
SOURCES = ROOT / "tools" / "dashboard"
BUILD = ROOT / ".cache" / "dashboard"

WIDTH, CELL, SCALE = 1280, 38, 1.5  # pixels: of the page, and of a row of its grid; and how many of the picture for one
TYPES = {"stat", "timeseries", "table"}
TRANSFORMATIONS = {"organize", "sortBy"}
INTERVALS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)  # seconds: among which Grafana chooses a step
UNITS = {"s": 1, "m": 60, "h": 3600}

CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--virtual-time-budget=10000"),
]

PAGE = """\
<!doctype html><meta charset="utf-8"><title>Dashboard</title><link rel="stylesheet" href="page.css">
<style>body { margin: 0 } * { animation: none !important; transition: none !important }</style>
<div id="root"></div><script>window.INPUT = %s</script><script src="page.js"></script>
"""


def build() -> None:
    """Makes page.js, of the page and what it needs from the npm registry."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for source in SOURCES.iterdir():
        shutil.copy(source, BUILD)
    # Without the scripts of packages, none of which is needed.
    install = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--legacy-peer-deps",
        "--loglevel=error",
    ]
    subprocess.run(install, cwd=BUILD, check=True)
    bundle = ["--bundle", "--outfile=page.js", "--define:global=window", '--define:process.env.NODE_ENV="production"']
    # The font is that of an editor, which is not shown.
    bundle += ["--alias:react-custom-scrollbars-2=./scrollbars.js", "--loader:.ttf=empty", "--log-level=error"]
    subprocess.run(["node_modules/.bin/esbuild", "page.tsx", *bundle], cwd=BUILD, check=True)
    public = BUILD / "public"  # where Grafana's components find their icons
    public.unlink(missing_ok=True)
    public.symlink_to("node_modules/@grafana/ui/dist/public")


class Shown:
    """What is drawn of a Prometheus: in which time, and the answers to the panels' queries.

    Args:
        server: its address.
        end: in seconds since 1970.
        duration: in seconds.
        scrape: the data source's scrape interval, in seconds.
    """

    def __init__(self, server: str, end: float, duration: float, scrape: int) -> None:
        self._server = server
        self._end = end
        self._duration = duration
        self._scrape = scrape

    def answers(self, panel: dict[str, Any]) -> list[Any]:
        """Of each of a panel's queries.

        Raises:
            SystemExit: something of the panel is not known here, or a query is none.
        """
        unknown = {one["id"] for one in panel.get("transformations", ())} - TRANSFORMATIONS
        if panel["type"] not in TYPES or unknown:
            raise SystemExit(f"{panel['title']}: it is not known how to draw {', '.join(unknown) or panel['type']}")
        step = self._step(panel)
        found = []
        for target in panel["targets"]:
            if target["datasource"]["uid"] != "${datasource}":
                raise SystemExit(f"{panel['title']}: its data source is not that of the dashboard")
            query = self._filled_in(panel["title"], target["expr"], step)
            # As Grafana does it, at whole steps.
            start, end = ((self._end - back) // step * step for back in (self._duration, 0))
            try:
                if target.get("instant"):
                    found.append(self._ask("query", query=query, time=self._end))
                else:
                    found.append(self._ask("query_range", query=query, start=start, end=end, step=step))
            except urllib.error.HTTPError as error:
                raise SystemExit(f"{panel['title']}: {json.load(error)['error']}\n{query}") from None
        return found

    def _step(self, panel: dict[str, Any]) -> int:
        """The value of $__interval: a point has a pixel at least, and as long as the panel wants."""
        least = panel.get("interval")
        shortest = int(least[:-1]) * UNITS[least[-1]] if least else self._scrape
        wanted = self._duration / (panel["gridPos"]["w"] / 24 * WIDTH)
        return max(shortest, next((one for one in INTERVALS if one >= wanted), INTERVALS[-1]))

    def _filled_in(self, title: str, query: str, step: int) -> str:
        values = {
            "instance": ".*",
            "__interval": f"{step}s",
            "__rate_interval": f"{max(step + self._scrape, 4 * self._scrape)}s",
            "__range": f"{round(self._duration)}s",
        }

        def value(found: re.Match[str]) -> str:
            if found[1] not in values:
                raise SystemExit(f"{title}: nothing is known of ${found[1]}")
            return values[found[1]]

        # $1 is for Prometheus: a part of a label.
        return re.sub(r"\$\{?([a-zA-Z_]\w*)\}?", value, query)

    def _ask(self, what: str, **parameters: object) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._server}/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]["result"]

    def page(self, dashboard: dict[str, Any]) -> str:
        """The page, with all that it shows in it."""
        results = {panel["id"]: self.answers(panel) for panel in dashboard["panels"]}
        shown = {"from": self._end - self._duration, "to": self._end, "width": WIDTH}
        return PAGE % json.dumps({"dashboard": dashboard, "results": results, **shown}).replace("</", r"<\/")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nobody has asked."""


def photograph(page: str, height: int, picture: Path, expected: set[int]) -> None:
    """Has Chromium draw the page.

    Raises:
        SystemExit: some panels are not drawn.
    """
    (BUILD / "index.html").write_text(page)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=os.fspath(BUILD)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    size = [f"--window-size={WIDTH},{height}", f"--force-device-scale-factor={SCALE}"]
    with tempfile.TemporaryDirectory(prefix="memcg_oom_chromium_", ignore_cleanup_errors=True) as profile:
        command = [*CHROMIUM, *size, f"--user-data-dir={profile}", f"--screenshot={picture.resolve()}"]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{server.server_port}/"],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    server.shutdown()
    server.server_close()
    drawn = {int(number) for number in re.findall(r"panel (\d+) is drawn", done.stderr)}
    if done.returncode or drawn != expected or "Uncaught" in done.stderr:
        raise SystemExit(f"not drawn are {sorted(expected - drawn)}; Chromium says:\n{done.stderr}")


def main() -> None:
    """Draws."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("server", help="the address of a Prometheus, like http://127.0.0.1:9090")
    options.add_argument("picture", type=Path, help="a file to write to, like dashboard.png")
    options.add_argument(
        "--end", type=float, default=time.time(), help="of the time shown, in seconds since 1970 (now)"
    )
    options.add_argument("--range", type=float, default=6 * 3600, help="how long that is, in seconds (six hours)")
    options.add_argument("--scrape", type=int, default=15, help="Prometheus's scrape interval (default: %(default)s)")
    args = options.parse_args()
    dashboard = json.loads(DASHBOARD.read_text())
    page = Shown(args.server, args.end, args.range, args.scrape).page(dashboard)
    build()
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) * CELL
    photograph(page, height, args.picture, {panel["id"] for panel in dashboard["panels"]})


if __name__ == "__main__":
    main()
