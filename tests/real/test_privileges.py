"""With how little the watcher does: capabilities, other users, and system calls."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from memcg_oom.mounts import memory_mount
from tests.support import PATIENCE, eventually, make, remainder, remove, run_hog, start_python, why_no_fanotify

SECURITY = Path(__file__).parents[2] / "SECURITY.md"
NOBODY = 65534
DAC_OVERRIDE, DAC_READ_SEARCH, SYS_ADMIN, SYSLOG = 1, 2, 21, 34

# -- capabilities

# Becomes a user with some capabilities and no others and watches a tree, in either order; says what comes.
WATCHER = """
import ctypes, os, select, sys
import memcg_oom.monitor, memcg_oom.registration, memcg_oom.v1
from memcg_oom import Degraded, Monitor

parent, user, kept, order = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)

def drop():
    libc.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    for capability in map(int, kept.split()):
        for kind in (0, 1):  # effective, permitted
            sets[3 * (capability // 32) + kind] |= 1 << capability % 32
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())

if order == "drop, watch":
    drop()
with Monitor() as monitor:
    tree = monitor.watch_tree(parent)
    if order == "watch, drop":
        drop()
    polled = [os.path.basename(watch.cgroup) for watch in tree if watch.polled]
    print("watching", monitor._watches.hierarchy.by_id, tree.source, *sorted(polled), flush=True)
    while not select.select([0], [], [], 0)[0]:
        for event in monitor.wait(0.05):
            said = event.what if isinstance(event, Degraded) else os.path.basename(event.cgroup)
            print(type(event).__name__, said, flush=True)
"""


class Watcher:
    """The program above, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.told: list[str] = []
        self.first = self._line().split()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate(timeout=PATIENCE)[1]
        return line.rstrip("\n")

    def until(self, *lines: str) -> None:
        """Reads until each of these was said."""
        while not set(lines) <= set(self.told):
            self.told.append(self._line())

    @property
    def degraded(self) -> str:
        return "\n".join(line for line in self.told if line.startswith("Degraded"))


@contextmanager
def watcher(parent: Path, user: int, kept: tuple[int, ...], order: str = "drop, watch") -> Iterator[Watcher]:
    with start_python(WATCHER, parent, user, " ".join(map(str, kept)), order) as process:
        try:
            yield Watcher(process)
            _, err = process.communicate("", timeout=PATIENCE)
            assert (process.returncode, err) == (0, "")
        finally:
            process.kill()


@pytest.fixture
def parent(memcg1: Path) -> Path:
    """With a cgroup of root's in it, and one that was handed to a user."""
    make(memcg1 / "roots", "1M")
    given(make(memcg1 / "users", "1M"))
    return memcg1


def given(cgroup: Path, user: int = NOBODY) -> Path:
    """Hands a cgroup to a user, as systemd and container runtimes do."""
    for path in (cgroup, *cgroup.iterdir()):
        os.chown(path, user, user)
    return cgroup


def writable_for_all(cgroup: Path) -> bool:
    """Whether everybody may register, as it was before Linux 6.18 or so."""
    return bool((cgroup / "cgroup.event_control").stat().st_mode & 0o002)


class Case(NamedTuple):
    user: int
    kept: tuple[int, ...]
    polled: set[str]  # which cannot be registered, where the kernel has event_control for its owner alone
    by_id: bool = True
    sees_all: bool = True  # by fanotify
    hears: bool = True  # the log, where only the privileged may


ALL = (DAC_OVERRIDE, DAC_READ_SEARCH, SYS_ADMIN, SYSLOG)
CASES = {
    "root with four": Case(0, ALL, set()),
    "root with the unit's three": Case(0, (DAC_READ_SEARCH, SYS_ADMIN, SYSLOG), {"users"}),
    "root with none": Case(0, (), {"users"}, by_id=False, sees_all=False, hears=False),
    "a user with four": Case(NOBODY, ALL, set()),
    "a user without CAP_DAC_OVERRIDE": Case(NOBODY, (DAC_READ_SEARCH, SYS_ADMIN, SYSLOG), {"roots", "parent", "new"}),
    "a user without CAP_DAC_READ_SEARCH": Case(NOBODY, (DAC_OVERRIDE, SYS_ADMIN, SYSLOG), set(), by_id=False),
    "a user without CAP_SYS_ADMIN": Case(NOBODY, (DAC_OVERRIDE, DAC_READ_SEARCH, SYSLOG), set(), sees_all=False),
    # On Linux 6.1 CAP_SYS_ADMIN is taken for it too.
    "a user without CAP_SYSLOG": Case(NOBODY, (DAC_OVERRIDE, DAC_READ_SEARCH), set(), sees_all=False, hears=False),
    "a user with none": Case(NOBODY, (), {"roots", "parent", "new"}, by_id=False, sees_all=False, hears=False),
}


@pytest.mark.parametrize("who", CASES)
def test_with_fewer_capabilities(parent: Path, hog: str, who: str) -> None:
    """Every kill and every removal is told in any case; what is lost is what Degraded says."""
    case = CASES[who]
    polled = set() if writable_for_all(parent) else {parent.name if one == "parent" else one for one in case.polled}
    mount = memory_mount()
    assert mount is not None
    source = "inotify" if why_no_fanotify(mount.point) or not case.sees_all else "fanotify"
    with watcher(parent, case.user, case.kept) as watching:
        assert watching.first == ["watching", str(case.by_id), source, *sorted(polled - {"new"})]
        new = make(parent / "new", "1M")
        watching.until("Created new")
        for cgroup in (parent / "roots", parent / "users", new):
            run_hog(hog, cgroup)
            watching.until(f"OomKill {cgroup.name}")
            remove(cgroup)
            watching.until(f"Removed {cgroup.name}")
    for name in ("roots", "users", "new"):
        assert (f"Oom {name}" in watching.told) == (name not in polled), watching.told
        assert watching.told.count(f"OomKill {name}") == 1
    restricted = Path("/proc/sys/kernel/dmesg_restrict").read_text() == "1\n"
    assert ("/dev/kmsg cannot be read" in watching.degraded) == (restricted and not case.hears)
    assert ("cgroups cannot be registered" in watching.degraded) == bool(polled)


@pytest.mark.parametrize("kept", [(DAC_READ_SEARCH,), (DAC_READ_SEARCH, DAC_OVERRIDE)], ids=["read", "read and write"])
def test_set_up_as_root_and_then_dropped(parent: Path, hog: str, kept: tuple[int, ...]) -> None:
    """What is open stays open: the log and fanotify too. Files that are opened by id want CAP_DAC_READ_SEARCH."""
    with watcher(parent, NOBODY, kept, "watch, drop") as watching:
        assert watching.first[:2] == ["watching", "True"]
        new = make(parent / "new", "1M")
        watching.until("Created new")
        is_signalled = DAC_OVERRIDE in kept or writable_for_all(new)
        for cgroup in (parent / "roots", parent / "users", new):
            run_hog(hog, cgroup)
            watching.until(f"OomKill {cgroup.name}")
            assert (f"Oom {cgroup.name}" in watching.told) == (is_signalled or cgroup != new)
            remove(cgroup)
            watching.until(f"Removed {cgroup.name}")
    assert ("cgroups cannot be registered" in watching.degraded) == (not is_signalled)
    assert "/dev/kmsg" not in watching.degraded


def test_set_up_as_root_and_then_dropped_altogether(parent: Path, hog: str) -> None:
    """The kernel does not open what was found by id any more: what was watched is lost, and that is said."""
    with watcher(parent, NOBODY, (), "watch, drop") as watching:
        run_hog(hog, parent / "roots")
        what = f"Degraded the counters of a cgroup cannot be read: {os.strerror(errno.EPERM)}"
        watching.until(what)
        assert watching.told == [what]


def test_a_rename_after_the_user_has_changed(parent: Path, hog: str) -> None:
    """Where it has gone to is read in /proc/self/fd, which is root's by then."""
    with watcher(parent / "roots", NOBODY, (DAC_READ_SEARCH,), "watch, drop") as watching:
        (parent / "roots").rename(parent / "renamed")
        run_hog(hog, parent / "renamed")
        watching.until("Oom renamed", "OomKill renamed")


# -- system calls

# Loads all that is loaded later otherwise, allows what it is told to (with nothing: all), and becomes the command.
COMMAND = """
import ctypes, os, struct, sys
import encodings.idna, http.server, logging, prometheus_client, selectors, socketserver, ssl
import memcg_oom.monitor, memcg_oom.registration, memcg_oom.v1, memcg_oom.v2
from memcg_oom.command import export, main, metrics, server, text, textfile, watch

allowed, user, *arguments = sys.argv[1:]
os.setgroups([])
os.setresgid(int(user), int(user), int(user))
os.setresuid(int(user), int(user), int(user))
libc = ctypes.CDLL(None, use_errno=True)
# Of struct seccomp_data the number is the first; BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K.
program = struct.pack("=HBBI", 0x20, 0, 0, 0)
for number in map(int, allowed.split()):
    program += struct.pack("=HBBI", 0x15, 0, 1, number) + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
program += struct.pack("=HBBI", 0x06, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS
os.eventfd(0x5EC)
if allowed:
    program = ctypes.create_string_buffer(program)
    filter = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(program)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filter) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
sys.exit(main(arguments))
"""
MARK = 0x5EC  # what the last call before the command is known by in a trace
KINDS = ["watch", "watch without privileges", "export"]


def listed() -> dict[str, set[str]]:
    """The system calls that SECURITY.md has, by the words that stand before them."""
    text = SECURITY.read_text().partition("\n## System calls\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^(\w+)[^\n]*:\n\n```\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    return {word: set(block.split()) for word, block in blocks}


def numbers() -> dict[str, int]:
    """Those of this machine, by the names of its system calls."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the numbers of system calls are in a compiler's headers: apt-get install gcc libc6-dev")
    source = "#include <sys/syscall.h>\n"
    command = [compiler, "-E", "-dM", "-"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, input=source).stdout
    return {name: int(value) for name, value in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}


def said(process: subprocess.Popen[str], what: str) -> str:
    """Reads standard error up to a line; that."""
    assert process.stderr is not None
    lines = []
    while line := process.stderr.readline():
        lines.append(line)
        if what in line:
            return line
    code = process.wait(PATIENCE)
    assert code != -signal.SIGSYS, "a system call that is not in SECURITY.md; the other test of its name says which"
    raise AssertionError(f"it ended with {code}: {''.join(lines)}")


def exercise(kind: str, process: subprocess.Popen[str], parent: Path, hog: str, folder: Path) -> None:
    """Has a command do all that it does: the beginning, an OOM kill, a birth, a rename, removals, the end."""
    line = said(process, "watching")
    seen: list[tuple[str, str]] = []

    def until(event: str, cgroup: Path) -> None:
        assert process.stdout is not None
        while (event, os.fspath(cgroup)) not in seen:
            told = process.stdout.readline()
            assert told, f"no {event} of {cgroup}, it ended with {process.wait(PATIENCE)}; there was {seen}"
            members = json.loads(told)
            seen.append((members["event"], members.get("cgroup", "")))

    def until_killed(count: int, cgroup: Path) -> None:
        if kind != "export":
            until("oom_kill", cgroup)
            return
        what = f'memcg_exporter_told_total{{event="oom_kill"}} {count}.0'
        url = re.search(r"http://\S+/metrics", line)
        assert url is not None
        address = url[0]
        eventually(lambda: what in urllib.request.urlopen(address).read().decode())  # noqa: S310 - it is HTTP
        eventually(lambda: what in (folder / "memcg_oom.prom").read_text())

    old, new, renamed = parent / "roots", parent / "new", parent / "renamed"
    run_hog(hog, old)
    until_killed(1, old)
    make(new, "1M")
    old.rename(renamed)
    run_hog(hog, renamed)
    until_killed(2, renamed)
    for cgroup in (new, renamed):
        remove(cgroup)
        if kind != "export":
            until("removed", cgroup)
    process.send_signal(signal.SIGTERM)
    out, err = remainder(process)
    assert process.returncode == 0, out + err


@contextmanager
def commanded(
    kind: str, parent: Path, folder: Path, allowed: str, wrapper: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """The command, with the calls that it is allowed; a service manager listens to it."""
    user = NOBODY if kind == "watch without privileges" else 0
    export = ("export", "--listen", "127.0.0.1:0", "--textfile", folder, "--interval", "0.1")
    arguments = export if kind == "export" else ("watch", "--json")
    address = os.fspath(folder / "manager")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOTIFY_SOCKET", address)
            process = start_python(COMMAND, allowed, user, *arguments, parent, wrapper=wrapper)
        with process:
            try:
                yield process
            finally:
                process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_with_no_other_system_calls(parent: Path, hog: str, tmp_path: Path, kind: str) -> None:
    """The kernel kills the process at once for one that SECURITY.md does not have."""
    known, calls = numbers(), set().union(*listed().values())
    assert calls, f"{SECURITY} has no list"
    allowed = " ".join(str(known[name]) for name in sorted(calls) if name in known)
    with commanded(kind, parent, tmp_path, allowed) as process:
        exercise(kind, process, parent, hog, tmp_path)


def test_the_filter_kills(parent: Path, hog: str, tmp_path: Path) -> None:
    known, calls = numbers(), set().union(*listed().values()) - {"epoll_wait", "epoll_pwait"}
    allowed = " ".join(str(known[name]) for name in sorted(calls) if name in known)
    with commanded("watch", parent, tmp_path, allowed) as process:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGSYS, err


def test_system_calls_are_those_that_are_listed(
    memcg1: Path, hog: str, tmp_path: Path, figure: dict[str, object]
) -> None:
    """In both directions, by a trace."""
    if shutil.which("strace") is None:
        pytest.skip("apt-get install strace")
    seen: set[str] = set()
    for kind in KINDS:
        folder, parent = tmp_path / kind, make(memcg1 / kind)
        folder.mkdir()
        make(parent / "roots", "1M")
        trace = folder / "trace"
        strace = ("strace", "-f", "-qq", "-D", "-e", "signal=none", "-o", os.fspath(trace))
        with commanded(kind, parent, folder, "", strace) as process:
            exercise(kind, process, parent, hog, folder)
        _, mark, calls = trace.read_text().partition(f"eventfd2({MARK}")
        assert mark, "the trace has no beginning"
        seen |= set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z]\w*)(?:\(| resumed)", calls, re.MULTILINE))
    figure["calls"] = " ".join(sorted(seen))
    known = listed()
    assert seen <= set().union(*known.values())
    assert known["Always"] <= seen, "these are not needed"


def test_the_units_filter_has_them_all() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("apt-get install systemd")
    unit = (SECURITY.parent / "deploy" / "systemd" / "memcg-oom.service").read_text()
    filters = re.search(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE)
    assert filters is not None
    allowed: set[str] = set()
    left = filters[1].split()
    while left:
        name = left.pop()
        if name.startswith("@"):
            command = ["systemd-analyze", "syscall-filter", name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            left += re.findall(r"^    (@?\w[\w-]*)$", text, re.MULTILINE)
        else:
            allowed.add(name)
    assert set().union(*listed().values()) <= allowed
