"""What takes a whole machine: having no memory left at all, panicking, holding as many cgroups as a kernel can."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.real import containers
from tests.vm import machine

PYTEST = "python3 -m pytest -q --color=no -p no:cacheprovider tests/vm/inside"


def passed(output: str) -> int:
    summary = re.search(r"^(\d+) passed", output, re.MULTILINE)
    assert summary is not None, output
    return int(summary[1])


def test_kills_that_are_signalled_to_nobody_are_told(base: Path) -> None:
    command = f"{PYTEST}/unsignalled.py"
    code, output = machine.run(machine.kernel("6.1"), "v1", base, command, timeout=600, memory=512)
    assert code == 0, output
    assert passed(output) == 18, output


def test_on_cgroup_v2(base: Path) -> None:
    code, output = machine.run(machine.kernel("6.1"), "v2", base, f"{PYTEST}/host_v2.py", timeout=600, memory=512)
    assert code == 0, output
    assert passed(output) == 4, output


def test_a_container_of_runc_on_cgroup_v2(base: Path, figure: dict[str, object]) -> None:
    if why_not := containers.missing("runc"):
        pytest.skip(why_not)
    command = "python3 -m pytest -q --color=no -p no:cacheprovider tests/real/test_containers.py -k runc"
    code, output = machine.run(machine.kernel("6.1"), "v2", base, command, timeout=300)
    assert code == 0, output
    assert passed(output) == 1, output
    said = re.search(r"^test_the_kill_of_a_container_is_told_once\[runc\]: (.*)$", output, re.MULTILINE)
    assert said is not None, output
    figure["said"] = said[1]


def test_the_oom_that_a_kernel_panics_of_is_told_before(base: Path, figure: dict[str, object]) -> None:
    # With vm.panic_on_oom=2 the kernel signals, writes a report (a line for each process in the cgroup) and panics. The
    # watcher has as long as the report takes. That is a race, so it is run up to three times; a watcher that waits for
    # anything but its turn loses all of them.
    for attempt in ("first", "second", "third"):
        command = f"echo {attempt}; python3 tests/vm/inside/panic.py"
        output, complaints = machine.boot(machine.kernel("6.1"), "v1", base, command, timeout=300)
        panic = output.find("Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled")
        assert panic >= 0, f"{output}\n{complaints}"
        told = output.find("told: Oom of /sys/fs/cgroup/memory/last\n")
        if 0 <= told < panic:
            break
    else:
        raise AssertionError(output)
    figure["told on the"] = attempt
    # What came before it has been told in full, so what is told is what there was.
    first = "/sys/fs/cgroup/memory/first\n"
    assert output.index(f"told: Oom of {first}") < output.index(f"told: OomKill of {first}") < told


def test_65000_cgroups_are_watched_in_one_monitor(base: Path, figure: dict[str, object]) -> None:
    command = f"{PYTEST}/many.py"
    code, output = machine.run(machine.kernel("6.1"), "v1", base, command, timeout=900, memory=4096)
    assert code == 0, output
    assert passed(output) == 1, output
    figures = re.search(r"^test_65000_cgroups_in_one_monitor: (.*)$", output, re.MULTILINE)
    assert figures is not None, output
    for part in figures[1].split(", "):
        key, _, value = part.partition("=")
        figure[key] = value
