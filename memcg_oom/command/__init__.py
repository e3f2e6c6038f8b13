"""The command memcg-oom: its arguments, its exit codes, and nothing else; each subcommand has a file of its own."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys

from memcg_oom._version import __version__
from memcg_oom.alarms import LEVELS, MODES, check_threshold, pressure_control
from memcg_oom.command.errors import UNAVAILABLE, Unavailable, words
from memcg_oom.command.text import EVENTS
from memcg_oom.errors import MemcgError
from memcg_oom.events import MemoryHigh, MemoryMax
from memcg_oom.sizes import parse_size
from memcg_oom.stalls import check_trigger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import NoReturn

EXIT_CODES = """\
exit codes: 0 done, also by SIGTERM; 1 an error; 2 wrong usage; 69 this host lacks what is needed; 124 the timeout
came; 130 Ctrl-C. "run" has the command's own instead: 128+N when signal N killed it, 125 when memcg-oom failed, 126
when the command could not be executed, 127 when it was not found."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; `arguments` are the process's own by default."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.subcommand == "run":
        if options.command[:1] == ["--"]:
            del options.command[0]
        if not options.command:
            parser.error("run: a command is missing")
    _check(parser, options)
    signal.signal(signal.SIGTERM, _end)
    try:
        return _subcommand(options)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has gone, which ends this quietly. Python flushes stdout once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Unavailable as error:
        _complain(error)
        return UNAVAILABLE
    except (OSError, ValueError, MemcgError) as error:
        _complain(error)
        return 1


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a word on what does not go together."""
    if options.subcommand == "watch" and not options.cgroup and (options.usage or options.pressure or options.stall):
        parser.error(
            "watch: --usage, --pressure and --stall want cgroups to be named; the whole host has stalls, by the name "
            "of /proc/pressure/memory"
        )
    if options.subcommand == "watch" and options.summary:
        from memcg_oom.command.summary import why_not

        if options.json or (reason := why_not()):
            parser.error("watch: --summary or --json" if options.json else f"watch: {reason}")
    if options.subcommand == "export":
        if bool(options.tls_cert) != bool(options.tls_key):
            parser.error("export: --tls-cert and --tls-key want each other")
        if options.client_ca and not options.tls_cert:
            parser.error("export: --client-ca wants --tls-cert and --tls-key")
        if options.tls_cert and options.textfile and not options.listen:
            parser.error("export: with --textfile nothing listens without --listen, so there is no use for --tls-cert")


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _complain(error: Exception) -> None:
    print(f"memcg-oom: {words(error)}", file=sys.stderr)


def _subcommand(options: argparse.Namespace) -> int:
    # Each is imported when it is asked for: a watcher on a crowded host need not hold what it does not use.
    if options.subcommand == "watch":
        from memcg_oom.command.watch import Alarms, Filter, watch

        return watch(
            options.cgroup,
            Filter(options.only, options.events),
            Alarms(options.usage, options.pressure, options.stall),
            tree=options.tree,
            as_json=options.json,
            summary=options.summary,
            count=options.count,
            timeout=options.timeout,
        )
    if options.subcommand == "run":
        from memcg_oom.command.run import run

        return run(options.command, options.memory, options.json, options.parent)
    if options.subcommand == "listen":
        from memcg_oom.command.listen import listen

        return listen(options.control_file, " ".join(options.argument))
    if options.subcommand == "export":
        from memcg_oom.command.export import Options, export

        return export(
            Options(
                cgroups=options.cgroup,
                listen=options.listen,
                keep=options.keep,
                series=options.series,
                also=[MemoryMax] * options.max + [MemoryHigh] * options.high,
                tls=(options.tls_cert, options.tls_key) if options.tls_cert else None,
                client_ca=options.client_ca,
                textfile=options.textfile,
                interval=options.interval,
            )
        )
    if options.subcommand == "check":
        from memcg_oom.command.check import check

        return check(options.json)
    from memcg_oom.command.demo import demo

    return demo(options.parent)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="memcg-oom",
        description="Tells what happens to the memory cgroups of this host: out of memory, OOM kills, removals.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"memcg-oom {__version__}")
    subcommands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")

    watch = subcommands.add_parser("watch", help="print every event, a line each")
    watch.add_argument("cgroup", nargs="*", metavar="CGROUP", help="default: the whole memory hierarchy")
    watch.add_argument(
        "--no-tree", dest="tree", action="store_false", help="only the cgroups named, not what is or comes below them"
    )
    watch.add_argument("--only", type=_pattern, metavar="REGEX", help="only cgroups in whose path this is found")
    watch.add_argument(
        "--events", type=_kinds, metavar="NAMES", help=f"only these, separated by commas: {', '.join(EVENTS)}"
    )
    watch.add_argument(
        "--usage",
        action="append",
        default=[],
        type=_threshold,
        metavar="SIZE",
        help="also when the usage of a cgroup named crosses SIZE (100M), or a share of its limit (90%%); v1",
    )
    watch.add_argument(
        "--pressure",
        action="append",
        default=[],
        type=_pressure,
        metavar="LEVEL[,MODE]",
        help=f"also memory pressure in a cgroup named: {', '.join(LEVELS)}, with one of {', '.join(MODES)}; v1",
    )
    watch.add_argument(
        "--stall",
        action="append",
        default=[],
        type=_stall,
        metavar="KIND:STALL/WINDOW",
        help="also when some or all (full) tasks of a cgroup named waited for memory for STALL seconds within WINDOW, "
        "such as some:0.2/2; v2, and /proc/pressure/memory as a name for the whole host",
    )
    watch.add_argument("--json", action="store_true", help="one JSON object a line (docs/events.schema.json)")
    watch.add_argument("--summary", action="store_true", help="on a terminal: a table, brought up to date in place")
    watch.add_argument("--count", type=_count, metavar="N", help="end after N events")
    watch.add_argument("--timeout", type=_seconds, metavar="S", help="end after S seconds, with exit code 124")

    run = subcommands.add_parser(
        "run",
        help="run a command in a cgroup of its own and say what became of it",
        usage="%(prog)s [options] -- COMMAND ...",
    )
    run.add_argument("--memory", type=_size, metavar="SIZE", help="its limit, such as 64M; swap is kept out")
    run.add_argument("--json", action="store_true", help="the verdict, on standard error, as a JSON object")
    run.add_argument("--parent", metavar="CGROUP", help="make its cgroup below this one")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")

    listen = subcommands.add_parser(
        "listen", help="one registration on one control file, a line for each crossing, as cgroup_event_listener does"
    )
    listen.add_argument("control_file", metavar="CONTROL_FILE", help="such as .../memory.oom_control")
    listen.add_argument("argument", nargs="*", metavar="ARGS", help="what that control file wants, such as 100M or low")

    export = subcommands.add_parser("export", help="metrics for Prometheus; wants pip install memcg-oom[prometheus]")
    export.add_argument("cgroup", nargs="*", metavar="CGROUP", help="default: the whole memory hierarchy")
    export.add_argument(
        "--listen",
        type=_address,
        metavar="ADDR:PORT",
        help="where to serve them; IPv6 in brackets; default: 127.0.0.1:19754, or with --textfile nowhere",
    )
    export.add_argument("--tls-cert", metavar="FILE", help="serve over TLS, with this certificate (PEM)")
    export.add_argument("--tls-key", metavar="FILE", help="and its private key")
    export.add_argument("--client-ca", metavar="FILE", help="only to clients with a certificate of these authorities")
    export.add_argument("--textfile", metavar="DIR", help="write DIR/memcg_oom.prom, for the node exporter")
    export.add_argument(
        "--interval", type=_period, default=15.0, metavar="S", help="seconds between two such writes (15)"
    )
    export.add_argument(
        "--keep", type=_seconds, default=900.0, metavar="S", help="keep the series of a removed cgroup S seconds (900)"
    )
    export.add_argument(
        "--series",
        type=_count,
        default=20_000,
        metavar="N",
        help="at most N cgroups have series of their own, the others have one together (20000)",
    )
    export.add_argument("--max", action="store_true", help="also how often memory.max was at work; v2")
    export.add_argument("--high", action="store_true", help="also how often memory.high was at work; v2")

    check = subcommands.add_parser("check", help="say what this host offers, and what each missing thing costs")
    check.add_argument("--json", action="store_true", help="as a JSON object")

    demo = subcommands.add_parser("demo", help="a scratch cgroup, a real OOM kill, and what the watcher says of it")
    demo.add_argument("--parent", metavar="CGROUP", help="make the scratch cgroup below this one")
    return parser


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"a regular expression, not {text!r}: {error}") from None


def _kinds(text: str) -> frozenset[str]:
    kinds = frozenset(text.split(","))
    if not kinds.issubset(EVENTS):
        raise argparse.ArgumentTypeError(f"names of events ({', '.join(EVENTS)}) with commas between, not {text!r}")
    return kinds


def _threshold(text: str) -> str:
    try:
        check_threshold(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _pressure(text: str) -> tuple[str, str]:
    level, _, mode = text.partition(",")
    try:
        pressure_control(level, mode or MODES[0])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return level, mode or MODES[0]


def _stall(text: str) -> tuple[str, float, float]:
    kind, _, times = text.partition(":")
    try:
        stall, window = map(float, times.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"KIND:STALL/WINDOW, such as some:0.2/2, not {text!r}") from None
    try:
        check_trigger(kind, stall, window)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return kind, stall, window


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a number, 1 or more, not {text!r}")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    # IPv6 in brackets alone: in "::1:80" nobody can tell the port.
    is_bracketed = host == f"[{bare}]"
    if not bare or (":" in bare) != is_bracketed or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise argparse.ArgumentTypeError(f"ADDR:PORT, such as 0.0.0.0:19754 or [::1]:19754, not {text!r}")
    return bare, int(port)


def _period(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError("a number of seconds above 0")
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0 or math.isinf(seconds):
        raise argparse.ArgumentTypeError(f"a number of seconds, not {text!r}")
    return seconds


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
