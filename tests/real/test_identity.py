"""Without CAP_DAC_READ_SEARCH files cannot be opened by id: the same promises, by path and inode number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import make, remainder, remove, run_python, start_python

# Gives up the capability (number 2) in every set of this process, as capset(2) has it; root alone is not enough then.
DROP = """
import ctypes, os, resource, subprocess, sys, threading
from memcg_oom import *
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
for index in range(3):
    sets[index] &= ~(1 << 2)
assert libc.capset(header, sets) == 0
def is_by_id(monitor):
    return monitor._watches.hierarchy.by_id
"""

LIFE = """
hog, parent, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
told = {}
monitor = Monitor()
def read():
    for event in monitor:
        told.setdefault(event.watch, []).append(event)
thread = threading.Thread(target=read)
thread.start()
wanted = []
for number in range(rounds):
    path = f"{parent}/namesake"
    os.mkdir(path)
    with open(path + "/memory.limit_in_bytes", "w") as file:
        file.write("1M")
    watch = monitor.watch(path)
    independent = register(path, "memory.oom_control")
    if number % 3 == 1:
        os.rename(path, parent + "/renamed")
        path = parent + "/renamed"
    if number % 3 != 2:
        assert subprocess.run([hog, path, "8388608"]).returncode == -9
    wanted.append((watch, independent, independent.read() or 0, number % 3 != 2))
    os.rmdir(path)
assert not is_by_id(monitor)
while not all(type(told.get(watch, [None])[-1]) is Removed for watch, *_ in wanted):
    threading.Event().wait(0.01)
monitor.close()
thread.join()
for watch, independent, ooms, killed in wanted:
    events = told[watch]
    assert sum(event.count for event in events if type(event) is Oom) == ooms, (events, ooms)
    kills = sum(event.count for event in events if type(event) is OomKill)
    assert kills <= killed <= kills + events[-1].unresolved, events
    assert [type(event) for event in events].index(Removed) == len(events) - 1
    independent.close()
print("exact", sum(watch.kills for watch, *_ in wanted))
"""


def test_races_renames_and_namesakes(memcg1: Path, hog: str, figure: dict[str, object]) -> None:
    code, out, err = run_python(DROP + LIFE, hog, memcg1, 200)
    assert (code, err) == (0, ""), err
    assert out.startswith("exact ")
    figure.update(rounds=200, kills_told=out.split()[1])


FULL = """
hog, parent = sys.argv[1:]
path, ancestor = parent + "/above/cgroup", parent + "/above"
monitor = Monitor()
watch = monitor.watch(path)
assert is_by_id(monitor) is not {by_path}
while monitor.wait(1.0):
    pass
os.rename(ancestor, parent + "/moved")
path = parent + "/moved/cgroup"
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
process = subprocess.Popen([hog, path, "8388608"])
assert process.wait() == -9
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
events = []
for _ in range(200):
    events += monitor.wait(0.01)
    if any(type(event) is OomKill for event in events):
        break
for fd in taken:
    os.close(fd)
while not any(type(event) is OomKill for event in events):
    events += monitor.wait(30) or sys.exit("lost")
monitor.close()
kinds = [type(event).__name__ for event in events]
print(kinds.count("Oom") >= 1, kinds.count("OomKill"), kinds.count("Degraded") <= 1, watch.cgroup == path)
"""


@pytest.mark.parametrize("by_path", [False, True], ids=["by id", "by path"])
def test_no_descriptors_left_while_the_renamed_cgroup_loses_a_task(memcg1: Path, hog: str, by_path: bool) -> None:
    """A look that finds no descriptor is repeated; wait() does not fail, and nothing is lost."""
    make(memcg1 / "above")
    make(memcg1 / "above" / "cgroup", "1M")
    script = DROP if by_path else DROP.replace("sets[index] &= ~(1 << 2)", "pass")
    code, out, err = run_python(script + FULL.format(by_path=by_path), hog, memcg1)
    assert (code, err) == (0, "")
    assert out == "True 1 True True\n"


def test_the_removal_of_an_ancestor_too(memcg1: Path) -> None:
    """The cgroup and all above it go: nothing is left to look into."""
    top = make(memcg1 / "top")
    cgroup = make(make(top / "middle") / "cgroup")
    script = (
        "monitor = Monitor()\n"
        "watch = monitor.watch(sys.argv[1])\n"
        "assert not is_by_id(monitor)\n"
        "print('ready', flush=True)\n"
        "event = next(monitor)\n"
        "print(type(event).__name__, event.unresolved)\n"
        "monitor.close()\n"
    )
    with start_python(DROP + script, cgroup) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            for path in (cgroup, cgroup.parent, top):
                remove(path)
            assert remainder(process) == ("Removed 0\n", "")
        finally:
            process.kill()
