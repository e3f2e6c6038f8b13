"""Inside a container: the hierarchy is mounted elsewhere, from its middle, or seen from a cgroup namespace."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import make, run_python

# Enters the cgroup, then what unshare(1) makes; a hierarchy is mounted at {where}, and what is seen there is printed.
INSIDE = """
import os, subprocess, sys
from memcg_oom import Cgroup, Monitor, Oom, OomKill, Removed, RootCgroupError
from memcg_oom.mounts import memory_mount

hog, where, inner = sys.argv[1:]
mount = memory_mount()
print("mount", mount.root, mount.point)
own = Cgroup.of_pid()
print("own", own.path, own.parent)
with Monitor() as monitor:
    watch = monitor.watch(inner)
    subprocess.run([hog, inner, str(256 << 20)])
    seen = []
    while not any(isinstance(event, OomKill) for event in seen):
        seen += monitor.wait(30) or sys.exit("no OomKill")
    print("event", seen[-1].cgroup, seen[-1].count)
"""


def _unshare(namespaces: str, cgroup: Path, setup: str) -> list[str]:
    """The wrapper that puts a process into a cgroup and into new namespaces, and sets these up."""
    script = f'echo 0 > {cgroup}/cgroup.procs; exec unshare {namespaces} sh -c \'{setup}; exec "$@"\' sh "$@"'
    return ["sh", "-c", script, "sh"]


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    done = subprocess.run(["unshare", "--mount", "--cgroup", "true"], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"namespaces cannot be made here: {done.stderr.strip()}")


def test_the_root_of_a_cgroup_namespace_is_watched(memcg1: Path, hog: str, tmp_path: Path) -> None:
    pod = make(memcg1 / "pod", "64M")
    setup = f"umount {memcg1.parent.parent} && mount -t cgroup -o memory cgroup {tmp_path}"
    code, out, err = run_python(INSIDE, hog, tmp_path, tmp_path, wrapper=_unshare("--mount --cgroup", pod, setup))
    # The watcher sits in the very cgroup that runs out, and is smaller than the hog.
    assert code == 0, err
    assert f"mount / {tmp_path}" in out
    assert f"own {tmp_path} None" in out
    assert f"event {tmp_path} 1" in out


def test_a_part_of_the_hierarchy_that_is_mounted_elsewhere_is_watched(memcg1: Path, hog: str, tmp_path: Path) -> None:
    pod = make(memcg1 / "pod")
    make(pod / "web", "1M")
    setup = f"mount --bind {pod} {tmp_path} && umount {memcg1.parent.parent}"
    code, out, err = run_python(INSIDE, hog, tmp_path, tmp_path / "web", wrapper=_unshare("--mount", pod, setup))
    assert code == 0, err
    assert f"mount /{pod.relative_to(memcg1.parent.parent)} {tmp_path}" in out
    assert f"own {tmp_path} None" in out
    assert f"event {tmp_path}/web 1" in out
