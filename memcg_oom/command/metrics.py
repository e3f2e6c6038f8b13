"""The metrics themselves, as docs/metrics.md describes them; imported only where prometheus_client is installed."""

from __future__ import annotations

import os
import time
from typing import cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from memcg_oom._version import __version__
from memcg_oom.command.series import KINDS, LABELS, label_text
from memcg_oom.host import HostCounter
from memcg_oom.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from memcg_oom.command.health import Health
    from memcg_oom.command.series import Series, Snapshot

_HELP = {
    "oom": "OOMs that the kernel declared of this cgroup: on v1 notifications, also of an OOM above; nobody need have "
    "died.",
    "oom_kill": "Tasks of this very cgroup that the OOM killer killed.",
    "max": "How often the memory of this cgroup was about to go over memory.max.",
    "high": "How often the memory of this cgroup went over memory.high.",
}


# How many samples are made into text before the watcher is given way, about half a millisecond's work; how long at
# a time, and how long altogether in a scrape, in seconds: it has to come to its end as well.
_AT_ONCE = 50
_PAUSE = 0.0005
_PAUSES = 2.0


class _Way:
    """Lets a scrape rest while the watcher is at work.

    Threads of Python take turns, and a watcher that has to ask for its turn after each of its system calls is late for
    cgroups that are removed right after a kill.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._left = _PAUSES

    def give(self) -> None:
        """Waits until the watcher waits."""
        while self._health.is_busy and self._left > 0:
            self._left -= _PAUSE
            time.sleep(_PAUSE)


class _Samples:
    """The samples of one family, each made when it is asked for."""

    def __init__(self, name: str, snapshot: Snapshot, index: int, way: _Way) -> None:
        self._name = name
        self._snapshot = snapshot
        self._index = index
        self._way = way

    def __iter__(self) -> Iterator[Sample]:
        for number, (row, counts) in enumerate(self._snapshot.counts.items()):
            if number % _AT_ONCE == 0:
                self._way.give()
            yield Sample(self._name, dict(zip(LABELS, row.labels, strict=True)), counts[self._index])


class Metrics(Collector):
    """Gives what there is at the moment of a scrape.

    Synchronization: collect() may be called from several threads at once.

    Args:
        series: the numbers.
        health: of the exporter.
        kinds: which of KINDS there are series of.
    """

    def __init__(self, series: Series, health: Health, kinds: Iterable[str]) -> None:
        self._series = series
        self._health = health
        self._kinds = tuple(kinds)

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of one moment."""
        snapshot = self._series.snapshot()
        way = _Way(self._health)
        for kind in self._kinds:
            family = CounterMetricFamily(f"memcg_events_{kind}", _HELP[kind], labels=LABELS)
            samples = _Samples(f"memcg_events_{kind}_total", snapshot, KINDS.index(kind), way)
            family.samples = cast("list[Sample]", samples)  # whoever makes text of it goes through it once
            yield family
        yield from self._host(snapshot)
        yield from self._exporter(snapshot)

    def _host(self, snapshot: Snapshot) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "memcg_unattributed_kills",
            "OOM kills in cgroups that came and went unseen, or together.",
            snapshot.unattributed_kills,
        )
        yield CounterMetricFamily(
            "memcg_unattributed_ooms",
            "On v2, OOMs of which nobody can tell whose they are.",
            snapshot.unattributed_ooms,
        )
        yield CounterMetricFamily(
            "memcg_unresolved_ooms",
            "OOMs whose outcome nobody can know, because the cgroup was removed too soon.",
            snapshot.unresolved,
        )
        yield CounterMetricFamily(
            "memcg_host_oom_kill",
            "OOM kills of the host since it was booted, by its own count: also those while nobody watched.",
            _host_kills(),
        )
        yield GaugeMetricFamily("memcg_watched_cgroups", "Cgroups that are watched.", len(snapshot.watches))
        yield GaugeMetricFamily(
            "memcg_polled_cgroups",
            "Cgroups, of those watched, that are told of by their counters alone: later, and on v1 without OOMs.",
            sum(isinstance(watch, Watch) and watch.polled for watch in snapshot.watches),
        )
        degraded = GaugeMetricFamily(
            "memcg_degraded",
            "What the watcher cannot do on this host, each 1 from when it was told on.",
            labels=["what"],
        )
        for what in snapshot.degraded:
            degraded.add_metric([label_text(what)], 1)
        yield degraded

    def _exporter(self, snapshot: Snapshot) -> Iterator[Metric]:
        told = CounterMetricFamily(
            "memcg_exporter_told",
            "Events that were told, of all cgroups, also of those that have no series any more.",
            labels=["event"],
        )
        for kind in self._kinds:
            told.add_metric([kind], snapshot.told[KINDS.index(kind)])
        yield told
        yield GaugeMetricFamily(
            "memcg_exporter_series",
            "Cgroups that have series of their own, those that are gone and kept for a while among them.",
            len(snapshot.counts) - 1,
        )
        yield GaugeMetricFamily(
            "memcg_exporter_series_overflowed",
            "Watched cgroups without series of their own, for which there was no room.",
            snapshot.overflowed,
        )
        errors = CounterMetricFamily("memcg_exporter_errors", "Errors of the exporter itself.", labels=["where"])
        for where, count in self._health.errors().items():
            errors.add_metric([where], count)
        yield errors
        yield GaugeMetricFamily(
            "memcg_exporter_healthy", "Whether the watcher takes events, as /healthz says.", not self._health.trouble()
        )
        info = GaugeMetricFamily("memcg_exporter_build_info", "The version of the exporter.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def _host_kills() -> int:
    counter = HostCounter()
    try:
        return counter.read()
    finally:
        os.close(counter.fd)
