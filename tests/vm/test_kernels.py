"""Other kernels than the host's, each in a virtual machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vm import machine, matrix


def test_the_real_ring_passes_on_v2(base: Path, tmp_path: Path, figure: dict[str, object]) -> None:
    """All of it; of the rows of make test-kernels what differs between kernels."""
    outcome = matrix.run("6.1:v2", base, tmp_path, "tests/real")
    assert not outcome.why, "\n".join(path.read_text() for path in tmp_path.glob("*.log")) or outcome.why
    assert outcome.passed >= 80
    figure[outcome.release] = f"{outcome.passed} passed, {outcome.skipped} skipped"


def test_a_row_that_cannot_be_tried_fails(base: Path, tmp_path: Path) -> None:
    """Whatever is missing: no such series, no such file, a kernel that cannot be downloaded or does not boot."""
    (tmp_path / "vmlinuz").write_text("no kernel")
    for row, why in (
        ("6.1:v3", "rows are SERIES:VERSION"),
        ("2.6:v1", "rows are SERIES:VERSION"),
        (f"{tmp_path}/none:v2", "No such file"),
        (f"{tmp_path}/vmlinuz:v2", "the machine died"),
    ):
        outcome = matrix.run(row, base, tmp_path)
        assert why in outcome.why
        assert "FAILED" in matrix.table([outcome])


def test_a_machine_that_does_not_come_up_fails_the_row(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SILENCE", 0.1)  # no kernel is as fast
    outcome = matrix.run("6.1:v2", base, tmp_path)
    assert "timed out after 0.1 seconds" in outcome.why
    assert outcome.passed == 0


def test_a_failed_download_fails_the_row(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    monkeypatch.setitem(machine.SUITES, "6.1", "no-such-suite")
    outcome = matrix.run("6.1:v2", base, tmp_path)
    assert outcome.why == "the kernel 6.1 could not be downloaded from no-such-suite"
    assert outcome.passed == 0


def test_watch_without_arguments_watches_the_whole_hierarchy(base: Path) -> None:
    code, output = machine.run(
        machine.kernel("6.1"),
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
    assert re.search(r"oom_kill +1  /sys/fs/cgroup/memory/a/b  \(hog\[\d+\] .*\)$", output, re.MULTILINE), output


def test_the_commands_on_v2(base: Path) -> None:
    code, output = machine.run(
        machine.kernel("6.1"),
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
python3 -m memcg_oom watch --events oom,oom_kill,memory_max --timeout 60 > /tmp/out 2> /tmp/err &
until grep watching /tmp/err; do sleep 0.1; done
echo +memory > $C/cgroup.subtree_control
echo 1M > $C/a/memory.max
/hog $C/a 8000000
until grep oom_kill /tmp/out; do sleep 0.1; done
kill $!; wait $!; echo "watch: $?"
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
    for event, what in (("memory_max", ""), ("oom", ""), ("oom_kill", r"  \(hog\[\d+\] .*\)")):
        assert re.search(rf" {event} +\d+  /sys/fs/cgroup/a{what}$", output, re.MULTILINE), output
    assert re.findall(r"^/sys/fs/cgroup/(\S+)/$", output, re.MULTILINE) == ["a"]
