"""Other kernels than the host's, each in a virtual machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vm import machine

# The suites whose kernel still has a v1 memory hierarchy.
V1_SUITES = ("bookworm",)

# The suites of which the v2 memory hierarchy is tried.
V2_SUITES = ("bookworm",)

V1_TESTS = ("races", "broadcast", "baseline", "rename")
V2_TESTS = ("v2_events", "v2_limits")
ROWS = [("v1", suite, V1_TESTS) for suite in V1_SUITES] + [("v2", suite, V2_TESTS) for suite in V2_SUITES]


@pytest.mark.parametrize(("version", "suite", "tests"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_real_ring_passes(
    base: Path, version: str, suite: str, tests: tuple[str, ...], figure: dict[str, object]
) -> None:
    files = " ".join(f"tests/real/test_{name}.py" for name in tests)
    code, output = machine.run(
        machine.kernel(suite),
        version,
        base,
        # Emulated, so fewer rounds, and those tests in which the kernel has a say.
        "export MEMCG_OOM_ROUNDS=200 MEMCG_OOM_MANY=5000 MEMCG_OOM_MISSED=0.5\n"
        f"python3 -m pytest -q --color=no -p no:cacheprovider {files}",
        timeout=900,
        memory=2048,
    )
    summary = re.search(r"^(\d+) passed.*$", output, re.MULTILINE)
    assert code == 0, output
    assert summary is not None, output
    assert int(summary[1]) >= 20, output
    figure[f"{suite} {version}"] = summary[0]


def test_watch_without_arguments_watches_the_whole_hierarchy(base: Path) -> None:
    code, output = machine.run(
        machine.kernel("bookworm"),
        "v1",
        base,
        """
M=/sys/fs/cgroup/memory
mkdir -p $M/a/b $M/c
echo 1M > $M/a/b/memory.limit_in_bytes
python3 -m memcg_oom watch --count 2 > /tmp/out 2> /tmp/err &
until grep watching /tmp/err; do sleep 0.1; done
/hog $M/a/b 8000000
wait $!
code=$?
cat /tmp/out
exit $code
""",
    )
    assert code == 0, output
    assert "watching 3 cgroups" in output
    assert re.search(r"oom +1  /sys/fs/cgroup/memory/a/b$", output, re.MULTILINE), output
    assert re.search(r"oom_kill +1  /sys/fs/cgroup/memory/a/b$", output, re.MULTILINE), output


def test_the_commands_on_v2(base: Path) -> None:
    code, output = machine.run(
        machine.kernel("bookworm"),
        "v2",
        base,
        """
C=/sys/fs/cgroup
python3 -m memcg_oom demo; echo "demo: $?"
python3 -m memcg_oom run --memory 20M -- python3 -c 'b"x" * (100 << 20)'; echo "run: $?"
python3 -m memcg_oom check; echo "check: $?"
mkdir $C/a
python3 -m memcg_oom listen $C/a/memory.events; echo "listen: $?"
echo -memory > $C/cgroup.subtree_control
python3 -m memcg_oom watch --no-tree $C/a; echo "watch without the controller: $?"
python3 -m memcg_oom watch --events oom,oom_kill,memory_max --count 3 --timeout 60 > /tmp/out 2> /tmp/err &
until grep watching /tmp/err; do sleep 0.1; done
echo +memory > $C/cgroup.subtree_control
echo 1M > $C/a/memory.max
/hog $C/a 8000000
wait $!; echo "watch: $?"
cat /tmp/out
ls -d $C/*/
""",
    )
    assert code == 0, output
    for what, expected in (
        ("demo", 0),
        ("run", 137),
        ("check", 0),
        ("listen", 1),
        ("watch without the controller", 1),
        ("watch", 0),
    ):
        assert f"\n{what}: {expected}\n" in output, output
    assert "cgroup v2 has no cgroup.event_control" in output
    for event in ("memory_max", "oom", "oom_kill"):
        assert re.search(rf" {event} +\d+  /sys/fs/cgroup/a$", output, re.MULTILINE), output
    assert re.findall(r"^/sys/fs/cgroup/(\S+)/$", output, re.MULTILINE) == ["a"]
