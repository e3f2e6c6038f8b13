"""A hybrid host: cgroup v2 is mounted beside v1, and the memory controller is on v1."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import make, run_python

WATCH = """
import os, subprocess, sys
from memcg_oom import Monitor, OomKill
from memcg_oom.mounts import memory_mount

hog, unified, cgroup = sys.argv[1:]
mount = memory_mount()
print(f"memory is on v{mount.version} at {mount.point}")
scratch = f"{unified}/memcg_oom_test_{os.getpid()}"
os.mkdir(scratch)
try:
    with Monitor() as monitor:
        for watch in (monitor.watch, monitor.watch_tree):
            try:
                watch(scratch)
            except OSError as error:
                print(type(error).__name__, error)
        assert monitor.watches == ()
        watch = monitor.watch(cgroup)
        subprocess.run([hog, cgroup, str(8 << 20)])
        while not watch.kills:
            monitor.wait(30) or sys.exit("no OomKill")
        print("kills", watch.kills, flush=True)
finally:
    os.rmdir(scratch)
done = subprocess.run([sys.executable, "-m", "memcg_oom", "watch", "--timeout", "0.1"], capture_output=True, text=True)
print(done.stderr)
print(subprocess.run([sys.executable, "-m", "memcg_oom", "check"], capture_output=True, text=True).stdout)
"""


def test_each_path_finds_its_version(memcg1: Path, hog: str, tmp_path: Path) -> None:
    setup = f"mount -t cgroup2 cgroup2 {tmp_path}"
    wrapper = ["unshare", "--mount", "sh", "-c", f'{setup} && exec "$@"', "sh"]
    done = subprocess.run([*wrapper, "true"], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cgroup v2 cannot be mounted here: {done.stderr.strip()}")
    code, out, err = run_python(WATCH, hog, tmp_path, make(memcg1 / "cgroup", "1M"), wrapper=wrapper)
    assert code == 0, err
    root = memcg1.parent.parent
    assert f"memory is on v1 at {root}\n" in out
    assert out.count("NotACgroupError") == 2
    assert "its hierarchy (version 2) is without the memory controller" in out
    assert "\nkills 1\n" in out
    assert re.search(r"memcg-oom: watching \d+ cgroups and those to come", out)
    assert re.search(rf"cgroup v2 +at .*{tmp_path}, without the memory controller, which is on version 1", out)
