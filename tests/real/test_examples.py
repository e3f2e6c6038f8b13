"""The programs in examples/, run against real OOM kills; those of oom_handler.py are in test_oom_handler.py."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from memcg_oom import Cgroup, Monitor, OomKill, Victim
from tests.real.test_oom_handler import stuck
from tests.support import (
    PATIENCE,
    Dial,
    Independent,
    control,
    event_count,
    eventually,
    is_v2,
    kills_of,
    make,
    put,
    remove,
    run_hog,
    run_python,
    start_hog,
    start_python,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
MB = 1 << 20
NOBODY = 2**22 + 1  # a pid that no process has: pid_max is lower


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    """An example at work; what it leaves open is a complaint on standard error."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes)


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Has it ended afterwards, whatever happens: by SIGTERM, since it may have a cgroup to clean up."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


@contextmanager
def running(process: subprocess.Popen[str], code: int = 0) -> Iterator[subprocess.Popen[str]]:
    """The same; it must end with that code and without a complaint, by itself or by SIGTERM."""
    with ending(process):
        yield process
        process.terminate()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(PATIENCE)) == ("", code)


def outcome(name: str, *arguments: object) -> tuple[int, str, str]:
    """Of an example that ends by itself: its exit code, what it printed, and what it complained about."""
    with ending(start(name, *arguments)) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def line(process: subprocess.Popen[str]) -> str:
    """The next one of its output."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def go_on(process: subprocess.Popen[str]) -> None:
    """A line for the command that it runs."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "arguments", "code", "said"),
    [
        ("restart.py", [], os.EX_USAGE, "usage: restart.py CGROUP LIMIT RESTARTS COMMAND"),
        ("restart.py", ["{}/new", "8M", "3"], os.EX_USAGE, "a command is missing"),
        ("restart.py", ["{}/new", "much", "3", "true"], os.EX_USAGE, "not a size: 'much'"),
        ("restart.py", ["{}/new", "8M", "-1", "true"], os.EX_USAGE, "less than no restarts"),
        ("restart.py", ["/proc/new", "8M", "3", "true"], os.EX_UNAVAILABLE, "/proc/new"),
        ("restart.py", ["{}", "8M", "3", "true"], os.EX_UNAVAILABLE, "File exists"),
        ("restart.py", ["{}/no/new", "8M", "3", "true"], os.EX_UNAVAILABLE, "No such file"),
        ("service.py", ["{}"], os.EX_USAGE, "usage: service.py CGROUP SOCKET"),
        ("service.py", ["{}/none", "/no/socket"], os.EX_UNAVAILABLE, "No such file"),
        ("service.py", ["{}", "/no/socket"], os.EX_UNAVAILABLE, "No such file"),
        ("benchexec.py", [], 1, "not a program"),
    ],
)
def test_what_is_wrong_is_one_clear_line(memcg: Path, name: str, arguments: list[str], code: int, said: str) -> None:
    ended, out, err = outcome(name, *(one.format(memcg) for one in arguments))
    assert (ended, out, err.count("\n")) == (code, "", 1), err
    assert said in err
    assert err.startswith((f"{name}: ", f"usage: {name} "))
    assert not (memcg / "new").exists()


# -- restart.py


@pytest.fixture
def room(memcg: Path) -> Path:
    """Where restart.py makes its cgroup: below what no swap softens."""
    return make(memcg / "room", "64M")


def test_restart_gives_up_when_its_restarts_are_used_up(room: Path, hog: str, tmp_path: Path) -> None:
    cgroup, lives = room / "new", tmp_path / "lives"
    script = 'echo life >> "$0" && exec "$@"'
    code, out, err = outcome("restart.py", cgroup, "8M", 3, "sh", "-c", script, lives, hog, cgroup, 128 * MB)
    assert (code, err) == (128 + signal.SIGKILL, "")
    assert lives.read_text() == "life\n" * 4
    losses = [said for said in out.splitlines() if said.startswith("lost ")]
    assert len(losses) == 4
    for said in losses:
        # Which victim, and whose limit, is for the kernel's log: where it has no room for them they are not known.
        assert re.fullmatch(
            rf"lost 1 task\(s\) at (the limit of '{cgroup}'|a limit unknown): "
            r"('hog'\[\d+\]|the kernel did not say whom)",
            said,
        )
    assert [said for said in out.splitlines() if said not in losses] == [
        "restart 1 of 3 in 0.1 s",
        "restart 2 of 3 in 0.2 s",
        "restart 3 of 3 in 0.4 s",
        "gave up",
    ]
    assert not cgroup.exists()


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "a worker"])
def test_restart_starts_anew_what_has_lost_a_task(room: Path, hog: str, tmp_path: Path, whole: bool) -> None:
    cgroup, flag = room / "new", tmp_path / "flag"
    # In its second life, the command wants to be alone.
    alone = 'while read pid; do test "$pid" = $$ || exit 9; done < "$2/cgroup.procs"'
    # Without its worker, the rest of the first one would live on for longer than the test waits.
    first = 'exec "$@"' if whole else f'exec 2> /dev/null; sleep {10 * PATIENCE} & "$@"; wait'
    script = f'if test -e "$0"; then {alone}; exit 7; fi; : > "$0"; {first}'
    code, out, err = outcome("restart.py", cgroup, "8M", 3, "sh", "-c", script, flag, hog, cgroup, 128 * MB)
    assert (code, err) == (7, "")
    lost, again, end = out.splitlines()
    assert lost.startswith("lost 1 task(s) at ")
    assert again == "restart 1 of 3 in 0.1 s"
    assert end == "ended with 7"
    assert not cgroup.exists()


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_restart_leaves_it_at_any_other_end(room: Path, script: str, code: int) -> None:
    ended = outcome("restart.py", room / "new", "8M", 3, "sh", "-c", script)
    assert ended == (code, f"ended with {code}\n", "")
    assert not (room / "new").exists()


def test_restart_says_that_there_is_no_such_command(room: Path) -> None:
    code, out, err = outcome("restart.py", room / "new", "8M", 3, "/no/such/command")
    assert (code, out, err.count("\n")) == (127, "ended with 127\n", 1)
    assert "/no/such/command" in err
    assert not (room / "new").exists()


def test_restart_lets_a_bystander_be(room: Path, hog: str) -> None:
    cgroup, other = room / "new", make(room / "other")
    script = "echo began; read line; exit 5"
    with running(start("restart.py", cgroup, "8M", 3, "sh", "-c", script), code=5) as process:
        assert line(process) == "began"
        independent = None if is_v2(cgroup) else Independent(cgroup)
        run_hog(hog, other, 128 * MB)
        if independent is not None:
            assert independent.read() > 0  # so it has been told of the OOM, and yet nobody of it was killed
            independent.close()
        go_on(process)
        assert line(process) == "ended with 5"
        assert process.wait(PATIENCE) == 5
    assert not cgroup.exists()


def test_restart_knows_a_loss_by_whatever_comes_first(room: Path, hog: str) -> None:
    """Here the end of the command, and what the kernel has to tell of it, come at once."""
    cgroup = room / "new"
    script = 'echo began; read line; exec "$@"'
    arguments = ("sh", "-c", script, "sh", hog, cgroup, 128 * MB)
    with running(start("restart.py", cgroup, "8M", 0, *arguments), code=137) as process:
        assert line(process) == "began"
        process.send_signal(signal.SIGSTOP)
        try:
            go_on(process)
            eventually(lambda: kills_of(cgroup) == 1 and not Cgroup(cgroup).pids())
        finally:
            process.send_signal(signal.SIGCONT)
        assert line(process).startswith("lost 1 task(s) at ")
        assert line(process) == "gave up"
        assert process.wait(PATIENCE) == 137


def test_restart_says_that_it_was_the_limit_above(room: Path, hog: str) -> None:
    cgroup = room / "new"
    code, out, err = outcome("restart.py", cgroup, "1G", 0, hog, cgroup, 128 * MB)
    assert (code, err) == (128 + signal.SIGKILL, "")
    lost, end = out.splitlines()
    assert re.match(rf"lost 1 task\(s\) at (the limit of '{room}'|a limit unknown): ", lost)
    assert end == "gave up"


def test_restart_describes_whoever_was_killed(room: Path) -> None:
    describe = load("restart").describe
    hog = {"uid": 0, "anon_rss": 0, "file_rss": 0, "shmem_rss": 0, "total_vm": 0, "oom_memcg": "/", "task_memcg": "/"}
    victims = (Victim(pid=7, comm="hog", **hog), Victim(pid=8, comm="\x1b[2J\udcff", **hog))  # type: ignore[arg-type]
    with Monitor() as monitor:
        about: dict[str, Any] = {"time_ns": 0, "cgroup": "/c", "watch": monitor.watch(room)}
        some = OomKill(**about, count=2, victims=victims, limit_cgroup="/p")
        assert describe(some) == r"lost 2 task(s) at the limit of '/p': 'hog'[7], '\x1b[2J\udcff'[8]"
        nobody = OomKill(**about, count=1)
        assert describe(nobody) == "lost 1 task(s) at a limit unknown: the kernel did not say whom"


def test_restart_leaves_nothing_behind_when_it_is_ended(room: Path) -> None:
    cgroup = room / "new"
    script = f'mkdir "$0/below"; echo $$; exec sleep {10 * PATIENCE}'
    with running(start("restart.py", cgroup, "8M", 3, "sh", "-c", script, cgroup)) as process:
        pid = int(line(process))
        assert Cgroup.of_pid(pid).path == str(cgroup)
    assert not cgroup.exists()
    assert not Path(f"/proc/{pid}").exists()


# -- sidecar.py


def test_sidecar_counts_what_the_kernel_counts(memcg: Path, hog: str) -> None:
    from tests.real.test_export import numbers, scrape

    if not int(Path("/sys/class/net/lo/flags").read_text(), 16) & 1:  # IFF_UP
        pytest.skip("the loopback interface is down")

    def told(name: str) -> dict[str, int]:
        counted = numbers(scrape(f"http://127.0.0.1:{port}/metrics"), f"memcg_events_{name}_total")
        return {Path(path).name: count for path, count in counted.items()}

    early = make(memcg / "early", "1M")
    with running(start("sidecar.py", memcg, 0)) as process:
        port = line(process).rpartition(" ")[2]
        assert told("oom_kill") == {memcg.name: 0, "early": 0}
        latin = memcg / os.fsdecode(b"caf\xe9")  # a scrape is UTF-8
        late, quiet = make(memcg / "late", "1M"), make(latin)
        for cgroup in (early, late, late):
            run_hog(hog, cgroup)
        everybody = {memcg.name: 0, "early": 1, "late": 2, r"caf\\xe9": 0}
        eventually(lambda: told("oom_kill") == everybody)
        assert (kills_of(early), kills_of(late), kills_of(quiet)) == (1, 2, 0)
        ooms = told("oom")
        assert ooms.keys() == everybody.keys()
        assert ooms["early"] >= 1
        assert ooms["late"] >= 2
        assert ooms[memcg.name] == ooms[r"caf\\xe9"] == 0
        remove(late)
        remove(early)
        run_hog(hog, make(memcg / "last", "1M"))
        eventually(lambda: told("oom_kill") == {**everybody, "last": 1})


def test_sidecar_ends_with_its_tree(memcg: Path) -> None:
    pytest.importorskip("prometheus_client", reason="the sidecar is tried where prometheus_client is installed")
    root = make(memcg / "root")
    with running(start("sidecar.py", root, 0)) as process:
        assert line(process).startswith("serving on port ")
        remove(root)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], os.EX_USAGE, "usage: sidecar.py CGROUP PORT"),
        (["{}", "http"], os.EX_USAGE, "'http'"),
        (["{}/none", "0"], os.EX_UNAVAILABLE, "No such file"),
        (["{}", "65536"], os.EX_UNAVAILABLE, "0-65535"),
        (["{}", "{taken}"], os.EX_UNAVAILABLE, "in use"),
    ],
)
def test_sidecar_says_what_is_wrong(memcg: Path, arguments: list[str], code: int, said: str) -> None:
    pytest.importorskip("prometheus_client", reason="the sidecar is tried where prometheus_client is installed")
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - the sidecar binds that too
        port = taken.getsockname()[1]
        ended, out, err = outcome("sidecar.py", *(one.format(memcg, taken=port) for one in arguments))
    assert (ended, out, err.count("\n")) == (code, "", 1), err
    assert said in err


def test_sidecar_says_what_it_needs(playground: Path) -> None:
    code = "import runpy, sys; sys.modules['prometheus_client'] = None; runpy.run_path(sys.argv[1])"
    missing = "sidecar.py: prometheus_client is missing: pip install memcg-oom[prometheus]\n"
    assert run_python(code, EXAMPLES / "sidecar.py") == (1, "", missing)


# -- service.py


def ask(path: Path) -> dict[str, dict[str, int]]:
    """The service's totals."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        with connection.makefile() as answer:
            totals: dict[str, dict[str, int]] = json.loads(answer.read())
    return totals


def ooms_of(cgroup: Path, independent: Independent | None) -> int:
    """By the kernel's own count."""
    return event_count(cgroup, "oom") if independent is None else independent.read()


def test_service_answers_while_it_watches(memcg: Path, hog: str, tmp_path: Path) -> None:
    with running(start("service.py", memcg, tmp_path / "socket")) as process:
        assert line(process) == '"watching"'
        assert ask(tmp_path / "socket") == {"ooms": {}, "kills": {}}
        cgroup = make(memcg / "a", "1M")
        for _ in range(3):
            run_hog(hog, cgroup)
        eventually(lambda: ask(tmp_path / "socket")["kills"] == {str(cgroup): 3})
        assert ask(tmp_path / "socket")["ooms"][str(cgroup)] >= 3
    assert kills_of(cgroup) == 3
    assert not (tmp_path / "socket").exists()


def test_service_loses_nothing_when_it_is_ended(memcg: Path, hog: str, tmp_path: Path) -> None:
    cgroups = [make(memcg / str(number), "1M") for number in range(4)]
    counted = [None if is_v2(cgroup) else Independent(cgroup) for cgroup in cgroups]
    with running(start("service.py", memcg, tmp_path / "socket")) as process:
        assert line(process) == '"watching"'
        process.send_signal(signal.SIGSTOP)  # so that all of it comes at once
        try:
            for cgroup in cgroups:
                run_hog(hog, cgroup)
            process.terminate()
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        said = [json.loads(one) for one in process.stdout]
        totals = said.pop()
    assert totals["kills"] == {str(cgroup): 1 for cgroup in cgroups}
    for cgroup, independent in zip(cgroups, counted, strict=True):
        assert kills_of(cgroup) == 1
        assert totals["ooms"][str(cgroup)] == ooms_of(cgroup, independent)
        if independent is not None:
            independent.close()
    assert sum(event["count"] for event in said if "kill" in event) == len(cgroups)
    assert sum(event["count"] for event in said if "oom" in event) == sum(totals["ooms"].values())


def is_pending(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether it has been sent a signal that it has not taken yet."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (pending,) = re.findall(r"^ShdPnd:\t(\w+)$", status, re.MULTILINE)
    return bool(int(pending, 16) >> (number - 1) & 1)


def test_service_waits_for_what_is_still_to_come(memcg: Path, hog: str, tmp_path: Path) -> None:
    """The kernel signals before it kills. Here it does both after SIGTERM, and the wait is until the tree is gone."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import service; "
        f"service.GRACE = {10 * PATIENCE}; sys.exit(service.main())"
    )
    root = make(memcg / "root")
    cgroup = make(root / "a", "1M")
    with running(start_python(code, EXAMPLES, root, tmp_path / "socket")) as process:
        assert line(process) == '"watching"'
        process.terminate()
        eventually(lambda: not is_pending(process, signal.SIGTERM))
        run_hog(hog, cgroup)
        eventually(lambda: ask(tmp_path / "socket")["kills"] == {str(cgroup): 1})
        remove(cgroup)
        remove(root)
        assert process.wait(PATIENCE) == 0


def test_service_ends_with_its_tree(memcg: Path, tmp_path: Path) -> None:
    root = make(memcg / "root")
    with running(start("service.py", root, tmp_path / "socket")) as process:
        assert line(process) == '"watching"'
        remove(root)
        assert process.wait(PATIENCE) == 0


# -- benchexec.py


class BenchExec:
    """What the thread sees of BenchExec: its cgroups, and the callback, which keeps what it was told."""

    MEMORY = "memory"

    def __init__(self, cgroup: Path, pid: int) -> None:
        self.reasons: list[str] = []
        self._cgroup = cgroup
        self.thread = load("benchexec").KillProcessOnOomThread(
            cgroups=self, pid_to_kill=pid, callbackFn=self.reasons.append
        )

    def __getitem__(self, subsystem: str) -> str:
        assert subsystem == self.MEMORY
        return str(self._cgroup)

    def end(self) -> None:
        """The thread must, by itself."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextmanager
def handled(cgroup: Path, pid: int = NOBODY, *, start: bool = True) -> Iterator[BenchExec]:
    """The thread beside a run, from before the start on if need be; it is ended whatever happens."""
    run = BenchExec(cgroup, pid)
    try:
        if start:
            run.thread.start()
        yield run
    finally:
        run.thread.cancel()
        if run.thread.ident is None:
            run.thread.start()
        run.end()


def test_benchexec_calls_the_class_as_its_own() -> None:
    handler = load("benchexec").KillProcessOnOomThread
    parameters = inspect.signature(handler).parameters.values()
    # Of BenchExec 3.35.
    assert [(one.name, one.kind.name) for one in parameters] == [
        (name, "POSITIONAL_OR_KEYWORD") for name in ("cgroups", "pid_to_kill", "callbackFn")
    ]
    assert [one.default is one.empty for one in parameters] == [True, True, False]
    assert issubclass(handler, threading.Thread)
    assert list(inspect.signature(handler.cancel).parameters) == ["self"]


def test_benchexec_kills_what_is_out_of_memory(memcg: Path, hog: str) -> None:
    cgroup = make(memcg / "run", "8M")
    with Dial(hog, cgroup) as main, Dial(hog, cgroup) as other, handled(cgroup, main.process.pid) as run:
        if not is_v2(cgroup):
            assert control(cgroup, "oom_kill_disable") == 1
        main.begin(64 * MB)
        assert main.process.wait(PATIENCE) == -signal.SIGKILL
        assert other.process.wait(PATIENCE) == -signal.SIGKILL
        run.end()
        assert run.reasons == ["memory"]
        assert Cgroup(cgroup).limit is None
        if not is_v2(cgroup):
            assert control(cgroup, "oom_kill_disable") == 0
            assert kills_of(cgroup) == 0  # it was the thread that killed
        remove(cgroup)
        assert run.reasons == ["memory"]


def test_benchexec_lifts_the_limit_with_swap_too(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "run", "8M")
    with_swap = cgroup / "memory.memsw.limit_in_bytes"
    if not with_swap.exists():
        pytest.skip("this kernel does not account for swap on cgroup v1")
    put(with_swap, "8M")
    with Dial(hog, cgroup) as main, handled(cgroup, main.process.pid) as run:
        main.begin(64 * MB)
        run.end()
        assert run.reasons == ["memory"]
        assert Cgroup(cgroup).limit is None
        assert int(with_swap.read_text()) > 1 << 60


def test_benchexec_takes_no_removal_for_an_oom(memcg: Path) -> None:
    cgroups = [make(memcg / str(number), "8M") for number in range(8)]
    with ExitStack() as stack:
        runs = [stack.enter_context(handled(cgroup)) for cgroup in cgroups]
        for cgroup in cgroups:
            remove(cgroup)
        for run in runs:
            run.end()
        assert [run.reasons for run in runs] == [[]] * len(runs)


@pytest.mark.parametrize("cancelled", [False, True], ids=["waiting", "cancelled"])
def test_benchexec_is_told_of_an_oom_that_the_removal_overtook(memcg1: Path, hog: str, cancelled: bool) -> None:
    """The worst case: run out, killed by somebody else and removed, all of it before the thread gets its turn."""
    for number in range(10):
        cgroup = make(memcg1 / str(number), "8M")
        with handled(cgroup, start=False) as run:
            pid = start_hog(hog, cgroup, 64 * MB)
            eventually(partial(stuck, cgroup))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if cancelled:
                run.thread.cancel()  # BenchExec does so before it removes
            else:
                remove(cgroup)
            run.thread.start()
            run.end()
            assert run.reasons == ["memory"]


def test_benchexec_ends_when_it_is_cancelled(memcg: Path) -> None:
    cgroup = make(memcg / "run", "8M")
    with handled(cgroup) as run:
        run.thread.cancel()
        run.end()
        run.thread.cancel()
        if not is_v2(cgroup):
            assert control(cgroup, "oom_kill_disable") == 0
        remove(cgroup)
        assert run.reasons == []


def test_benchexec_is_refused_with_an_oserror(memcg: Path, tmp_path: Path) -> None:
    """BenchExec catches that, and nothing else; no descriptor is left."""
    for path in (memcg / "none", tmp_path):
        with pytest.raises(OSError, match=str(path)):
            BenchExec(path, NOBODY)
