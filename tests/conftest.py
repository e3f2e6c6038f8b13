"""The three rings: a fake kernel (anyone), the real one (root on cgroup v1), kernels in virtual machines."""

from __future__ import annotations

import collections
import gc
import os
import shutil
import signal
import subprocess
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from memcg_oom.mounts import memory_mount

RINGS = {"fake": "a fake kernel", "real": "the real kernel", "vm": "virtual machines"}
HERE = Path(__file__).parent

# What the tests share is imported as tests.support, from wherever this folder was copied to.
sys.modules.setdefault("tests", types.ModuleType("tests")).__path__ = [str(HERE)]

from tests.support import control_memory, is_v2, make, why_no_fanotify  # noqa: E402 - see above


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what is to run in the background like that, and commands would inherit it: deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for ring, name in RINGS.items():
        config.addinivalue_line("markers", f"{ring}: tried against {name} (set by the folder that the test is in)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mount = memory_mount()
    # On a machine where the whole ring is skipped, that is the reason to give.
    why_not = why_no_fanotify(mount.point) if mount is not None and not _why_not_real() else ""
    for item in items:
        ring = item.path.relative_to(HERE).parts[0]
        item.add_marker(ring)
        if why_not and ring == "real" and "fanotify" in item.name:
            item.add_marker(pytest.mark.skip(reason=why_not))


_ran: collections.Counter[str] = collections.Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.outcome != "skipped":
        _ran.update(ring for ring in RINGS if ring in report.keywords)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("rings")
    for ring, name in RINGS.items():
        terminalreporter.write_line(f"tests against {name}: {_ran[ring]} ran")
    for line in _figures:
        terminalreporter.write_line(line)


_figures: list[str] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """What a test measured: whatever it puts in here stands at the end of the run."""
    figures: dict[str, object] = {}
    yield figures
    _figures.append(f"{request.node.name}: " + ", ".join(f"{key}={value}" for key, value in figures.items()))


def open_fds() -> dict[int, str]:
    """Every open descriptor and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return found


@pytest.fixture(autouse=True)
def _no_fd_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    if open_fds() != before:
        gc.collect()  # some go with what only the collector finds; to have it look after each test would take minutes
    assert open_fds() == before


def _why_not_real() -> str:
    """Why the real ring cannot run here; empty where it can."""
    mount = memory_mount()
    if mount is None:
        return "no memory cgroup hierarchy is mounted"
    if os.geteuid() != 0:
        return "making memory cgroups needs root"
    if mount.read_only or not os.access(mount.point, os.W_OK):
        return f"{mount.point} is not writable"
    return ""


@pytest.fixture(scope="session")
def playground() -> Iterator[Path]:
    """A cgroup of the run's own, that all others of the tests are in."""
    why_not = _why_not_real()
    if why_not:
        pytest.skip(why_not)
    mount = memory_mount()
    assert mount is not None
    path = make(Path(mount.point) / f"memcg_oom_test_{os.getpid()}")
    yield path
    remove_tree(path)


@pytest.fixture
def memcg(playground: Path) -> Iterator[Path]:
    """A new memory cgroup, removed afterwards with all that is in it."""
    path = make(playground / uuid.uuid4().hex[:12])
    yield path
    remove_tree(path)


@pytest.fixture
def memcg1(playground: Path, memcg: Path) -> Path:
    """The same, of version 1."""
    if is_v2(playground):
        pytest.skip("the memory controller of this host is on cgroup v2")
    return memcg


@pytest.fixture
def memcg2(playground: Path, memcg: Path) -> Path:
    """The same, of version 2, with the memory controller on in it."""
    if not is_v2(playground):
        pytest.skip("the memory controller of this host is on cgroup v1")
    control_memory(memcg)
    return memcg


def remove_tree(path: Path) -> None:
    """Kills what is in a cgroup and below, and removes it; it may be gone already."""
    if not path.exists():
        return
    for directory, _, _ in os.walk(path, topdown=False):
        for _ in range(1000):
            pids = Path(directory, "cgroup.procs").read_text().split()
            if not pids:
                break
            for pid in pids:
                subprocess.run(["kill", "-KILL", pid], check=False, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                os.rmdir(directory)
                break
            except OSError:  # EBUSY: what was killed has not exited yet
                subprocess.run(["sleep", "0.02"], check=True)
        else:
            os.rmdir(directory)


@pytest.fixture(scope="session")
def hog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program that runs out of memory, see hog.c. MEMCG_OOM_HOG names a built one where there is no compiler."""
    built = os.environ.get("MEMCG_OOM_HOG")
    if built:
        return built
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail("the tests need a C compiler: apt-get install gcc")
    path = tmp_path_factory.mktemp("hog") / "hog"
    subprocess.run([compiler, "-O2", "-static", "-o", path, HERE / "hog.c"], check=True)
    return str(path)
