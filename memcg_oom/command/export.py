"""memcg-oom export: the events of the trees given, as metrics for Prometheus."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from functools import partial

from memcg_oom.command.errors import Unavailable, required_mount, words
from memcg_oom.command.health import Health
from memcg_oom.command.notify import Service
from memcg_oom.command.series import Series
from memcg_oom.command.signals import Signals
from memcg_oom.command.text import escape, line
from memcg_oom.command.textfile import TextFile
from memcg_oom.command.watching import allow_all_fds, number, say, sources, watch_trees
from memcg_oom.events import Degraded, MemoryHigh, MemoryMax
from memcg_oom.monitor import Monitor
from memcg_oom.paths import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from memcg_oom.events import Event
    from memcg_oom.tree import TreeWatch

# No port between 9100 and 9999, Prometheus's range for exporters, is unallocated. Nor is this one among those that
# the kernel takes for outgoing connections (net.ipv4.ip_local_port_range).
LISTEN = ("127.0.0.1", 19754)

# Seconds after which a thread of Python that has work lets another run: the watcher, while a scrape's text is made. By
# default 5 ms, and a wake-up of the watcher's asks for its turn again after each of its system calls.
_SWITCH_INTERVAL = 0.0005


class Options:
    """What is asked for on the command line.

    Attributes:
        cgroups: the roots of the trees; none: the whole hierarchy.
        listen: host and port; None: where there is a textfile, nowhere, else LISTEN.
        keep, series: as Series has them.
        also: MemoryMax and MemoryHigh, where wanted.
        tls: the files of certificate and key.
        client_ca: whose certificates clients must have.
        textfile: the folder to write to.
        interval: of that, in seconds.
    """

    def __init__(
        self,
        *,
        cgroups: list[str],
        listen: tuple[str, int] | None,
        keep: float,
        series: int,
        also: list[type[Event]],
        tls: tuple[str, str] | None,
        client_ca: str | None,
        textfile: str | None,
        interval: float,
    ) -> None:
        self.cgroups = cgroups
        self.listen = LISTEN if listen is None and textfile is None else listen
        self.keep = keep
        self.series = series
        self.also = also
        self.tls = tls
        self.client_ca = client_ca
        self.textfile = textfile
        self.interval = interval


def export(options: Options) -> int:
    """Serves the metrics until a signal ends it; returns the exit code."""
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    except ImportError:
        raise Unavailable("export needs prometheus_client: pip install memcg-oom[prometheus]") from None
    from memcg_oom.command.metrics import Metrics
    from memcg_oom.command.server import Server, tls_context

    service = Service()
    cgroups = [absolute(cgroup) for cgroup in options.cgroups] or [required_mount().point]
    health = Health()
    series = Series(keep=options.keep, limit=options.series, say=say)
    kinds = ["oom", "oom_kill", *["max"] * (MemoryMax in options.also), *["high"] * (MemoryHigh in options.also)]
    metrics = Metrics(series, health, kinds)
    allow_all_fds()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    with ExitStack() as stack:
        told = []
        server = None
        if options.listen is not None:
            tls = tls_context(*options.tls, options.client_ca) if options.tls else None
            registry = CollectorRegistry(auto_describe=True)
            registry.register(metrics)
            ProcessCollector(registry=registry)
            server = Server(*options.listen, registry, health, tls)
            stack.callback(server.close)
            told.append(f"metrics at {server.url}/metrics")
        signals, monitor = stack.enter_context(Signals()), stack.enter_context(Monitor())
        trees = watch_trees(monitor, cgroups, options.also)
        _see(series, trees)
        health.waits()
        if options.textfile is not None:
            # Without those of the process: the node exporter has metrics by these names of itself.
            registry = CollectorRegistry()
            registry.register(metrics)
            textfile = TextFile(
                options.textfile,
                partial(generate_latest, registry),
                options.interval,
                partial(_complain_once, health, []),
            )
            textfile.start()
            stack.callback(textfile.close)
            told.append(f"metrics in {escape(textfile.path)}")
        if server is not None:
            server.start()
        count = sum(len(list(tree)) for tree in trees)
        watching = f"watching {number(count, 'cgroup')} and those to come (told of by {sources(trees)})"
        say(f"{watching}, {', '.join(told)}, Ctrl-C ends it")
        service.tell(f"READY=1\nSTATUS={watching}")
        return _loop(monitor, signals, series, health, service)


def _see(series: Series, trees: list[TreeWatch]) -> None:
    for tree in trees:
        members = [(watch, watch.cgroup) for watch in tree]
        if tree.cgroup not in (path for _, path in members):
            series.hold(tree.cgroup)
        for watch, path in members:
            series.see(watch, path)


def _loop(monitor: Monitor, signals: Signals, series: Series, health: Health, service: Service) -> int:
    with _Ending() as ending:
        try:
            ended = 0
            while not ended:
                health.waits()
                dues = [due for due in (series.due(), service.due()) if due is not None]
                if not ending.number:
                    signals.wait(monitor, min(dues, default=None))
                health.works()
                # Before the last look: what happened until the signal is in the last scrape, or in the file.
                ended = ending.number
                for event in monitor.wait(0):
                    series.take(event)
                    if isinstance(event, Degraded):
                        say(line(event))
                series.tidy()
                service.alive()
        except BaseException as error:
            health.ended(words(error) if isinstance(error, Exception) else type(error).__name__)
            raise
        health.ended("it was told to end")
        service.tell("STOPPING=1")
    if ending.number == signal.SIGINT:
        raise KeyboardInterrupt
    return 0


class _Ending:
    """Has SIGTERM and SIGINT end the loop between two rounds, so that no event is taken and not counted.

    A second one does what it would have done: should a round not come to its end, it is not waited for.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Ending:
        for which in (signal.SIGTERM, signal.SIGINT):
            self._before[which] = signal.signal(which, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if self.number and callable(before):
            before(number, frame)
        self.number = number


def _complain_once(health: Health, said: list[str], error: Exception) -> None:
    """Of a file that cannot be written: each time another reason is given."""
    health.count("textfile")
    if said != [words(error)]:
        said[:] = [words(error)]
        say(said[0])
