"""Looks at each page of the site in a real browser, and takes a picture of it.

python -m tools.browse_site SITE [PICTURES]

Fails for what a reader would run into: a script's error, a file that is missing, a link that leads nowhere, anything
that is fetched from elsewhere, a page that is wider than its window.
"""

from __future__ import annotations

import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 900
OWN = ("data:", "blob:")  # addresses that are fetched from nowhere


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def browse(site: Path, pictures: Path, chromium: str) -> list[str]:
    """What is wrong with the pages."""
    wrong: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"
    anchors: dict[str, set[str]] = {}
    links: set[tuple[str, str]] = set()
    where = ""

    def complain(what: str) -> None:
        wrong.append(f"{where}: {what}")

    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"],
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.on("pageerror", lambda error: complain(str(error)))
            page.on("console", lambda said: complain(said.text) if said.type == "error" else None)
            page.on(
                "request",
                lambda asked: None if asked.url.startswith((*OWN, base)) else complain(f"fetches {asked.url}"),
            )
            for file in sorted(site.rglob("*.html")):
                where = str(file.relative_to(site))
                page.goto(base + where, wait_until="load")
                if where != "404.html":
                    anchors[base + where] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
                    hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href'))")
                    links |= {(where, href) for href in hrefs}
                if page.evaluate("document.documentElement.scrollWidth") > WIDTH:
                    complain("is wider than its window")
                broken = page.evaluate("[...document.images].filter(e => !e.naturalWidth).map(e => e.src)")
                for one in broken:
                    complain(f"no picture at {one}")
                page.screenshot(
                    path=pictures / (where.replace("/", "-").removesuffix(".html") + ".png"), full_page=True
                )
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    for where, href in sorted(links):
        address, anchor = urldefrag(urljoin(base + where, href))
        if not address.startswith(base):
            continue  # elsewhere: not to be asked from here
        if address.endswith("/"):
            address += "index.html"
        if not (site / unquote(address.removeprefix(base))).is_file():
            complain(f"a link to {href}, which is not there")
        elif anchor and address in anchors and unquote(anchor) not in anchors[address]:
            complain(f"a link to {href}, which has no such place")
    print(f"{len(anchors)} pages, {len(links)} links; pictures in {pictures}")
    return wrong


def main(site: str, pictures: str = ".cache/pages") -> int:
    """The program."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("missing: apt-get install chromium; the pages were built and not looked at", file=sys.stderr)
        return 1
    folder = Path(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    wrong = browse(Path(site), folder, chromium)
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
