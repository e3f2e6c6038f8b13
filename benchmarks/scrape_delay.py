"""How much does a scrape delay an event of the exporter?

memcg-oom export watches 10,000 cgroups, in a process of its own. From the moment before another process signals the
eventfd of one of them (limits/signaller.c) to the moment when the event is in the series, from where the next scrape
has it, while the exporter is

- not scraped;
- scraped every second, with gzip and in the format that Prometheus asks for: fifteen times as often as is usual;
- scraped without a pause: there is always one under way.

All three are of the same process, which is not told what it will be. It is the command as it is, but that its series
note when an event was taken. A scrape and the watcher are two threads of one interpreter, so a scrape that is under way
has the interpreter's lock when the signal comes.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import chain
from typing import TYPE_CHECKING
from unittest import mock

from benchmarks import common
from memcg_oom.command import export
from memcg_oom.command.series import Series
from memcg_oom.events import Oom
from memcg_oom.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memcg_oom.events import Event
    from memcg_oom.watch import AnyWatch

EXPORTER = "exporter"  # what is run in a process of its own
IDLE = "not scraped"
REGULAR = "scraped every second"
ALWAYS = "scraped without a pause"
PAUSE = {REGULAR: 1.0, ALWAYS: 0.0}  # seconds from the end of a scrape to the next
P99_TARGET = 2.0  # milliseconds that scrapes without a pause may add

PAUSES = (40_000_000, 60_000_000)  # nanoseconds from signal to signal, evenly spread
WARM_UP = 5  # more, ahead of them, that do not count
LONGEST = 60.0  # seconds after which something is wrong
SETTLED = 1.0  # seconds until the exporter has done looking after the last signal of the condition before

ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

_ARRIVAL = struct.Struct("=qq")  # when, in nanoseconds of CLOCK_MONOTONIC, and how many signals it was for


def main() -> None:
    options = common.parser(__doc__, rounds=5, cgroups=10_000, only=[EXPORTER])
    options.add_argument("--signals", type=int, default=200, help="in each condition (default: %(default)s)")
    args = options.parse_args()
    common.raise_descriptor_limit()
    if args.only:
        exporter(*sys.stdin.read().splitlines())
        return

    scrapes: dict[str, list[Scrape]] = {name: [] for name in PAUSE}
    with (
        common.compiled("signaller") as [signaller],
        common.scratch(args.cgroups) as cgroups,
        Exporter(os.path.dirname(cgroups[0]), cgroups[len(cgroups) // 2]) as watcher,
    ):

        def run(name: str) -> list[int]:
            time.sleep(SETTLED)
            with scraped(watcher.url, name) as found:
                latencies = watcher.latencies(signaller, args.signals)
            scrapes.setdefault(name, []).extend(found)
            return latencies

        samples = common.shuffled(args.rounds, (IDLE, REGULAR, ALWAYS), run)

    median, p99 = common.medians(samples), common.medians(samples, 0.99)
    added = [(a - b) for a, b in zip(p99[ALWAYS], p99[IDLE], strict=True)]
    found = list(chain(*scrapes.values()))
    common.report(
        f"From the signal to the series of an exporter of {args.cgroups} cgroups, {args.signals} signals a round",
        ("microseconds", 1000),
        {
            **{name: common.distribution([*chain(*rounds)]) for name, rounds in samples.items()},
            **{f"a scrape, {name}": common.distribution([one.took for one in scrapes[name]]) for name in PAUSE},
        },
        [
            *(
                common.ratio(f"{figure}, {name} / {IDLE}", values[name], values[IDLE])
                for figure, values in (("median", median), ("p99", p99))
                for name in PAUSE
            ),
            common.figure(f"p99, {ALWAYS} - {IDLE}", added, ("ms", 1_000_000), P99_TARGET),
            common.figure("a scrape as text", [one.size for one in found], ("MB", 1_000_000)),
            common.figure("a scrape as it is sent", [one.sent for one in found], ("KB", 1000)),
        ],
        args.json,
    )


class Scrape:
    """One scrape: how long it took, in nanoseconds; and its size in bytes, as it was sent and as text."""

    def __init__(self, url: str) -> None:
        request = urllib.request.Request(url, headers={"Accept": ACCEPT, "Accept-Encoding": "gzip"})  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        begun = time.monotonic_ns()
        with opener.open(request, timeout=LONGEST) as answer:
            body: bytes = answer.read()
        self.took = time.monotonic_ns() - begun
        self.sent = len(body)
        self.size = len(gzip.decompress(body))


@contextlib.contextmanager
def scraped(url: str, name: str) -> Iterator[list[Scrape]]:
    """Scrapes in a thread, as the condition says."""
    found: list[Scrape] = []
    if name == IDLE:
        yield found
        return
    ending = threading.Event()

    def scrape() -> None:
        while not ending.wait(PAUSE[name]):
            found.append(Scrape(url))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        ending.set()
        thread.join()


class Exporter:
    """The exporter's process, and what it tells of one cgroup.

    Args:
        tree: the cgroup that it watches with all below.
        cgroup: the one that is signalled.
    """

    def __init__(self, tree: str, cgroup: str) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            common.alone("benchmarks.scrape_delay", EXPORTER),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
        )
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        with theirs, self._process.stdin as paths:
            paths.write(f"{tree}\n{cgroup}\n{theirs.fileno()}\n")
        said = self._process.stderr.readline()
        found = re.search(r"http://\S+/metrics", said)
        if found is None:
            raise RuntimeError(f"the exporter says {said!r}")
        self.url = found[0]
        _, [self._eventfd], _, _ = socket.recv_fds(self._line, 1, 1)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._line.close()
        os.close(self._eventfd)

    def latencies(self, signaller: str, signals: int) -> list[int]:
        """Signals, and sets what arrived against what was sent: nanoseconds, one for each signal that counts."""
        count = WARM_UP + signals
        command = [signaller, str(self._eventfd), str(count), *map(str, PAUSES)]
        done = subprocess.run(command, pass_fds=[self._eventfd], stdout=subprocess.PIPE, text=True, check=True)
        known: list[int] = []
        deadline = time.monotonic() + LONGEST
        while len(known) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"of {count} signals only {len(known)} arrived")
            time.sleep(0.1)
            self._line.send(b"?")
            for time_ns, read in _ARRIVAL.iter_unpack(self._line.recv(_ARRIVAL.size * count + 1)[1:]):
                known += [time_ns] * read
        return [time_ns - int(line) for time_ns, line in zip(known, done.stdout.split(), strict=True)][WARM_UP:]


def exporter(tree: str, cgroup: str, line: str) -> None:
    """memcg-oom export; through the socket goes the eventfd, and what has arrived since the last time it was asked."""
    arrivals: list[tuple[int, int]] = []

    class Noted(Series):
        def see(self, watch: AnyWatch, path: str) -> None:
            super().see(watch, path)
            if path == cgroup and isinstance(watch, Watch):
                # No part of the interface: outside a benchmark, nobody but the kernel signals it.
                socket.send_fds(told, [b"!"], [watch._eventfd])

        def take(self, event: Event) -> None:
            super().take(event)
            if isinstance(event, Oom) and event.cgroup == cgroup:
                arrivals.append((time.monotonic_ns(), event.count))

    def answer() -> None:
        while told.recv(1):
            now, arrivals[:] = arrivals[:], []
            told.send(b"." + b"".join(_ARRIVAL.pack(*one) for one in now))

    with socket.socket(fileno=int(line)) as told:
        threading.Thread(target=answer, daemon=True).start()
        with mock.patch.object(export, "Series", Noted):
            export.export(
                export.Options(
                    cgroups=[tree],
                    listen=("127.0.0.1", 0),
                    keep=900.0,
                    series=20_000,
                    also=[],
                    tls=None,
                    client_ca=None,
                    textfile=None,
                    interval=15.0,
                )
            )


if __name__ == "__main__":
    main()
