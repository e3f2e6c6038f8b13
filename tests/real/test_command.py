"""The command memcg-oom, run as a process, with real kills."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import PATIENCE, Dial, Independent, eventually, make, remainder, remove, run_hog, run_python

SCHEMA = Path(__file__).parents[2] / "docs" / "events.schema.json"
COMMAND = (sys.executable, "-m", "memcg_oom")


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(os.fspath, arguments)],  # type: ignore[arg-type]
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE,
        **options,
    )


@contextmanager
def started(*arguments: object, wrapper: tuple[str, ...] = (), **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in the background; it is ended at the end."""
    process = subprocess.Popen(
        [*wrapper, *COMMAND, *map(os.fspath, arguments)],  # type: ignore[arg-type]
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        **{"stdout": subprocess.PIPE, **options},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)  # whoever it has left behind may hold the pipes


@contextmanager
def watching(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """memcg-oom watch, from the moment when it watches."""
    with started("watch", *arguments, **options) as process:
        assert process.stderr is not None
        assert "watching" in process.stderr.readline()
        yield process


def validate(line: str) -> dict[str, Any]:
    """A line of --json, held against the schema."""
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked where jsonschema is installed")
    members: dict[str, Any] = json.loads(line)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(members)
    return members


# -- watch


def test_watch_prints_each_event_as_json_that_follows_the_schema(memcg1: Path, hog: str) -> None:
    child = make(memcg1 / "child", "1M")
    with watching("--json", "--count", "3", memcg1) as process:
        assert process.stdout is not None
        run_hog(hog, child)
        lines = [process.stdout.readline(), process.stdout.readline()]  # or the removal may be faster than the look
        remove(child)
        out, _ = remainder(process)
    events = [validate(line) for line in [*lines, *out.splitlines()]]
    assert [event["event"] for event in events] == ["oom", "oom_kill", "removed"]
    assert {event["cgroup"] for event in events} == {str(child)}
    assert events[1]["count"] == 1
    assert process.returncode == 0


def test_watch_prints_plain_lines_into_a_pipe(memcg1: Path, hog: str) -> None:
    make(memcg1 / "child", "1M")
    with watching(memcg1, "--count", "2") as process:
        run_hog(hog, memcg1 / "child")
        out, _ = remainder(process)
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(
        rf"{stamp}  oom               1  {memcg1}/child\n"
        rf"{stamp}  oom_kill          1  {memcg1}/child  \(hog\[\d+\] [\d.]+ [KM]iB\)\n",
        out,
    )


def test_watch_shows_a_table_on_a_terminal(memcg1: Path, hog: str) -> None:
    child = make(memcg1 / "child", "1M")
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 200, 0, 0))
    size = {"COLUMNS": "", "LINES": "", "TERM": "xterm"}
    with watching("--summary", memcg1, stdout=theirs, env={**os.environ, **size}) as process:
        os.close(theirs)
        drawn = b""

        def shows(text: bytes) -> bool:
            nonlocal drawn
            drawn += os.read(ours, 65536)
            return text in drawn.rpartition(b"\x1b[H")[2]

        eventually(lambda: shows(b"0 in trouble"))
        run_hog(hog, child)
        eventually(lambda: shows(b"1 in trouble, 1 OOM kills"))
        eventually(lambda: shows(os.fsencode(child)))
        eventually(lambda: shows(b"1.0 MiB"))  # its limit
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 30, 0, 0))
        process.send_signal(signal.SIGWINCH)
        eventually(lambda: shows(b"KILLS  CGROUP\x1b"))
        process.terminate()
        with suppress(OSError):  # EIO: nobody has the other end open any more
            while more := os.read(ours, 65536):
                drawn += more
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert drawn.startswith(b"\x1b[?1049h")
    assert drawn.endswith(b"\x1b[?1049l")


def test_a_table_wants_a_terminal(memcg1: Path) -> None:
    done = command("watch", "--summary", memcg1)
    assert done.returncode == 2
    assert "--summary wants a terminal" in done.stderr
    assert command("watch", "--summary", "--json", memcg1).returncode == 2


def test_watch_colours_a_terminal_and_escapes_what_it_would_act_on(memcg1: Path, hog: str) -> None:
    child = make(memcg1 / "evil\x1b[2J\udcff", "1M")
    ours, theirs = pty.openpty()
    with watching("--count", "2", memcg1, stdout=theirs, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(theirs)
        run_hog(hog, child)
        process.wait(PATIENCE)
        out = os.read(ours, 65536)
        os.close(ours)
    assert b"\x1b[33m" in out
    assert b"\x1b[1;31m" in out
    assert b"\x1b[2J" not in out
    assert rb"evil\x1b[2J\xff" in out


def test_watch_gives_a_name_that_is_not_utf8_without_loss(memcg1: Path, hog: str) -> None:
    child = make(memcg1 / "caf\udce9, x=\u00fc", "1M")
    with watching("--json", "--count", "1", memcg1) as process:
        run_hog(hog, child)
        out, _ = remainder(process)
    event = validate(out)
    assert base64.b64decode(event["cgroup_base64"]) == os.fsencode(child)
    assert "\ufffd" in event["cgroup"]
    with watching("--count", "1", memcg1) as process:
        run_hog(hog, child)
        out, _ = remainder(process)
    assert str(child) in out


def test_watch_no_tree_watches_only_what_is_named(memcg1: Path, hog: str) -> None:
    named, other = make(memcg1 / "named", "1M"), make(memcg1 / "named" / "below", "1M")
    with watching("--no-tree", "--json", "--count", "2", named) as process:
        run_hog(hog, other)
        run_hog(hog, named)
        out, _ = remainder(process)
    assert {json.loads(line)["cgroup"] for line in out.splitlines()} == {str(named)}


def test_watch_follows_what_is_made_and_says_at_the_end_what_there_was(memcg1: Path, hog: str) -> None:
    # Without "oom": a watch that stood only after the signal has none to tell of.
    kinds = ("--events", "created,oom_kill,removed", "--count", "3")
    with watching("--json", *kinds, memcg1, memcg1) as process:
        assert process.stdout is not None
        child = make(memcg1 / "made", "1M")
        events = [validate(process.stdout.readline())]
        run_hog(hog, child)
        events.append(validate(process.stdout.readline()))
        remove(child)
        out, err = remainder(process)
        events.append(validate(out))
    assert [event["event"] for event in events] == ["created", "oom_kill", "removed"]
    assert {event["cgroup"] for event in events} == {str(child)}
    assert re.search(r"^memcg-oom: 2 cgroups seen, 1 OOM, 1 OOM kill, 0 unattributed$", err, re.MULTILINE)


def test_watch_prints_only_what_is_wanted(memcg1: Path, hog: str) -> None:
    wanted, other = make(memcg1 / "wanted", "1M"), make(memcg1 / "other", "1M")
    with watching("--json", "--only", "/want", "--events", "oom_kill,removed", "--count", "2", memcg1) as process:
        assert process.stdout is not None
        for cgroup in (other, wanted):
            run_hog(hog, cgroup)
        lines = [process.stdout.readline()]
        for cgroup in (other, wanted):
            remove(cgroup)
        out, err = remainder(process)
    assert [(event["event"], event["cgroup"]) for event in map(validate, [*lines, *out.splitlines()])] == [
        ("oom_kill", str(wanted)),
        ("removed", str(wanted)),
    ]
    assert "1 cgroup seen, 1 OOM, 1 OOM kill, 0 unattributed" in err


def test_watch_says_how_new_cgroups_are_followed_and_by_what(memcg1: Path) -> None:
    with started("watch", memcg1) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
    assert re.fullmatch(
        r"memcg-oom: watching 1 cgroup and those to come \(told of by (fanotify|inotify)\), Ctrl-C ends it\n", said
    )


def test_watch_says_what_is_missing_also_where_only_kills_are_wanted(memcg1: Path) -> None:
    """With next to no descriptors left cgroups are followed by their counters."""
    for number in range(60):
        make(memcg1 / str(number))
    few = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    with started("watch", "--events", "oom_kill", memcg1, wrapper=few) as process:
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
    assert re.search(r"watching 61 cgroups and those to come .*, \d+ of them by their counters alone", said[0])
    assert "degraded" in said[1]
    assert "RLIMIT_NOFILE" in said[1]


def test_watch_tells_of_usage_and_pressure_where_that_is_asked_for(memcg1: Path, hog: str) -> None:
    cgroup, other = make(memcg1 / "a", "32M"), make(memcg1 / "b", "32M")
    options = (
        "--usage",
        "16M",
        "--usage",
        "75%",
        "--pressure",
        "low,local",
        "--events",
        "usage_crossed,pressure,oom_kill",
    )
    with watching("--json", *options, cgroup) as process, Dial(hog, other) as beside:
        assert process.stdout is not None
        beside.set(28 << 20)
        with Dial(hog, cgroup) as dial:
            dial.set(28 << 20)
            events = [validate(process.stdout.readline()) for _ in range(2)]
            dial.begin(64 << 20)
            # In which order these two come is the kernel's and the scheduler's business.
            while not {"pressure", "oom_kill"} <= {event["event"] for event in events}:
                events.append(validate(process.stdout.readline()))
    assert {event["cgroup"] for event in events} == {str(cgroup)}
    assert [event["above"] for event in events[:2]] == [True, True]
    assert {event["threshold"] for event in events[:2]} == {16 << 20, 24 << 20}
    assert {event["event"] for event in events[2:]} <= {"pressure", "oom_kill", "usage_crossed"}
    assert {event["level"] for event in events if event["event"] == "pressure"} == {"low"}


def test_watch_tells_once_of_a_removal(memcg1: Path) -> None:
    cgroup = make(memcg1 / "a")
    with watching("--timeout", "2", "--usage", "1M", "--pressure", "low", "--json", cgroup) as process:
        remove(cgroup)
        out, _ = remainder(process)
    (line,) = out.splitlines()
    assert validate(line)["event"] == "removed"


def test_watch_watches_usage_of_cgroups_alone() -> None:
    done = command("watch", "--usage", "1M", "/proc/pressure/memory")
    assert done.returncode == 1
    assert done.stderr == "memcg-oom: /proc/pressure/memory: Not a directory\n"


def test_watch_ends_with_124_when_the_timeout_comes(memcg1: Path) -> None:
    done = command("watch", "--timeout", "0.2", memcg1)
    assert done.returncode == 124
    assert done.stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_watch_and_listen_end_cleanly_on_a_signal(memcg1: Path, number: signal.Signals, code: int) -> None:
    with watching(memcg1) as process:
        process.send_signal(number)
        out, err = remainder(process)
    summary = "memcg-oom: 1 cgroup seen, 0 OOMs, 0 OOM kills, 0 unattributed\n"
    assert (process.returncode, out, err) == (code, "", summary)


def test_a_pipe_that_closes_ends_watch_quietly(memcg1: Path, hog: str) -> None:
    child = make(memcg1 / "child", "1M")
    with watching("--json", memcg1) as process:
        assert process.stdout is not None
        process.stdout.close()
        run_hog(hog, child)
        process.wait(PATIENCE)
        assert process.stderr is not None
        assert len(process.stderr.read().splitlines()) == 1, "the summary, and no complaint"
        process.stdout = None
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such"], "/no/such: No such file or directory"),
        (["--no-tree", "/no/such"], "/no/such: No such file or directory"),
        (["--no-tree", "/sys/fs/cgroup/memory"], "the root cgroup"),
        (["/proc"], "not a cgroup"),
    ],
)
def test_watch_says_in_one_line_what_is_wrong_with_a_path(playground: Path, arguments: list[str], words: str) -> None:
    arguments = [argument.replace("/sys/fs/cgroup/memory", str(playground.parent)) for argument in arguments]
    done = command("watch", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.startswith("memcg-oom: ")
    assert done.stderr.count("\n") == 1


# -- run


def test_run_says_that_the_command_was_killed(playground: Path, hog: str) -> None:
    done = command("run", "--memory", "20M", "--parent", playground, "--", "tail", "/dev/zero")
    assert done.returncode == 128 + signal.SIGKILL
    assert re.fullmatch(
        r"memcg-oom: tail was killed by SIGKILL; peak \d+\.\d MiB of 20\.0 MiB; \d+ OOMs?, 1 OOM kill: "
        r"tail\[\d+\] \d+\.\d MiB\n",
        done.stderr,
    )


def test_run_gives_the_verdict_as_json_and_the_output_untouched(playground: Path) -> None:
    done = command("run", "--json", "--parent", playground, "--", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    verdict = validate(done.stderr)
    assert verdict["event"] == "exit"
    assert (verdict["code"], verdict["signal"], verdict["limit"]) == (7, None, None)
    assert (verdict["ooms"], verdict["kills"]) == (0, 0)


def test_run_counts_a_killed_grandchild(playground: Path) -> None:
    script = "tail /dev/zero 2>/dev/null; exit 0"
    done = command("run", "--json", "--memory", "20M", "--parent", playground, "sh", "-c", script)
    assert done.returncode == 0
    verdict = validate(done.stderr.splitlines()[-1])  # a shell may have said "Killed" before
    assert verdict["kills"] == 1
    assert verdict["ooms"] >= 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["/no/such/command"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -USR1 $$"], 128 + signal.SIGUSR1)],
)
def test_run_has_the_exit_codes_of_the_shell(playground: Path, arguments: list[str], code: int) -> None:
    assert command("run", "--parent", playground, "--", *arguments).returncode == code


def test_run_fails_with_125_where_its_cgroup_cannot_be_made() -> None:
    done = command("run", "--parent", "/sys/fs/cgroup/memory/no/such", "--", "true")
    assert done.returncode == 125
    assert "No such file or directory" in done.stderr


def test_run_takes_what_the_command_leaves_behind_with_it(playground: Path) -> None:
    # The parent is given as $1: below it the command finds its own cgroup, and makes one more in it.
    script = 'mkdir "$(echo "$1"/memcg-oom-run-*)/nested"; sleep 1000 & echo $!'
    done = command("run", "--parent", playground, "--", "sh", "-c", script, "sh", playground)
    assert done.returncode == 0, done.stderr
    left = int(done.stdout)
    eventually(lambda: not Path(f"/proc/{left}").exists() or " Z " in Path(f"/proc/{left}/stat").read_text())
    assert not list(playground.glob("memcg-oom-run-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_run_sends_signals_on_to_the_command(playground: Path, number: signal.Signals) -> None:
    script = f"""
import os, signal, time
signal.signal({int(number)}, lambda *_: os._exit(42))
print("up", flush=True)
while True:  # a signal just before pause(2) would find it asleep for good
    time.sleep(0.05)
"""
    with started("run", "--parent", playground, "--", sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 42


# -- listen


def test_listen_prints_a_line_for_each_crossing_and_none_for_the_removal(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "A", "1M")
    independent = Independent(cgroup)
    control_file = cgroup / "memory.oom_control"
    try:
        with started("listen", control_file, "dummy") as process:
            # There is no first line to wait for.
            eventually(lambda: _is_listening(process.pid))
            for _ in range(3):
                run_hog(hog, cgroup)
            ooms = independent.read()
            remove(cgroup)
            out, err = remainder(process)
    finally:
        independent.close()
    lines = out.splitlines()
    assert lines[:-1] == [f"{control_file} dummy: crossed"] * ooms
    assert lines[-1] == "The cgroup seems to have removed."
    assert (process.returncode, err) == (0, "")


def _is_listening(pid: int) -> bool:
    """Whether it has its eventfd, and sleeps, as it does for it: while the kernel registers, it is not to be woken."""
    has_eventfd = any("eventfd" in entry for entry in _files(pid))
    return has_eventfd and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def _files(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            found.append(os.readlink(entry))
    return found


def test_listen_takes_a_threshold(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "A", "8M")
    control_file = cgroup / "memory.usage_in_bytes"
    with started("listen", control_file, "2M") as process:
        assert process.stdout is not None
        eventually(lambda: _is_listening(process.pid))
        run_hog(hog, cgroup, 64 << 20)
        assert process.stdout.readline() == f"{control_file} 2M: crossed\n"


@pytest.mark.parametrize("file", ["memory.usage_in_bytes", "memory.memsw.usage_in_bytes"])
def test_listen_is_what_cgroup_event_listener_is(memcg1: Path, hog: str, file: str) -> None:
    """The kernel tree's: a line for each crossing in either direction, with the arguments as they were given."""
    cgroup = make(memcg1 / "A")
    control_file = cgroup / file
    if not control_file.exists():
        pytest.skip("this kernel does not account for swap")
    with started("listen", control_file, "5M") as process, Dial(hog, cgroup) as dial:
        eventually(lambda: _is_listening(process.pid))
        independent = Independent(cgroup, file, "5M")
        for size in (16 << 20, 1 << 20) * 3:
            dial.set(size)
        dial.close()
        crossings = independent.read()
        remove(cgroup)
        out, err = remainder(process)
    independent.close()
    assert crossings >= 6
    assert out == f"{control_file} 5M: crossed\n" * crossings + "The cgroup seems to have removed.\n"
    assert (process.returncode, err) == (0, "")


def test_listen_tells_of_pressure(memcg1: Path, hog: str) -> None:
    cgroup = make(memcg1 / "A", "8M")
    with started("listen", cgroup / "memory.pressure_level", "low,hierarchy") as process:
        assert process.stdout is not None
        eventually(lambda: _is_listening(process.pid))
        run_hog(hog, cgroup, 64 << 20)
        assert process.stdout.readline() == f"{cgroup}/memory.pressure_level low,hierarchy: crossed\n"


def test_listen_says_what_is_wrong_with_the_argument(memcg1: Path) -> None:
    done = command("listen", memcg1 / "memory.pressure_level", "enormous")
    assert done.returncode == 1
    assert done.stderr == (
        f"memcg-oom: {memcg1}/cgroup.event_control: Invalid argument: "
        "the kernel takes no registration for this control file and argument\n"
    )


# -- check, demo, usage


def test_check_says_what_the_host_offers(playground: Path) -> None:
    done = command("check", "--json")
    found = validate(done.stdout)
    assert done.returncode == found["degraded"]
    names = {finding["name"]: finding["value"] for finding in found["findings"]}
    assert str(playground.parent) in names["memory hierarchy"]
    assert names["registration"] == "permitted"
    assert "pressure" in names["stalls"]
    plain = command("check")
    assert plain.returncode == done.returncode
    assert all(name in plain.stdout for name in names)


def test_demo_shows_a_real_kill(playground: Path) -> None:
    done = command("demo", "--parent", playground)
    assert done.returncode == 0, done.stderr
    assert all(f"  {event} " in done.stdout for event in ("oom", "oom_kill", "removed"))
    assert not list(playground.glob("memcg-oom-demo-*"))


def test_without_root_run_and_demo_say_what_is_missing(playground: Path) -> None:
    code = """
import locale, os, shutil, sys  # all that is read late is read now: nobody cannot enter root's home
from memcg_oom.command import main, run, demo, text
os.setgid(65534)
os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""
    for arguments in (["run", "true"], ["demo"]):
        exit_code, _, err = run_python(code, *arguments)
        assert exit_code == 69
        assert "become root" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["watch", "--count", "0"],
        ["watch", "--timeout", "-1"],
        ["watch", "--timeout", "nan"],
        ["watch", "--usage", "1M"],
        ["watch", "--usage", "lots", "/"],
        ["watch", "--usage", "0%", "/"],
        ["watch", "--pressure", "enormous", "/"],
        ["watch", "--pressure", "low,sideways", "/"],
        ["watch", "--stall", "some", "/"],
        ["watch", "--stall", "some:2/1", "/"],
        ["watch", "--stall", "any:1/2", "/"],
        ["run"],
        ["run", "--memory", "lots", "true"],
        ["listen"],
        ["fly"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
