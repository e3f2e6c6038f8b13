"""Where systemd makes and removes the cgroups, and a user has some of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vm import machine


def test_on_a_machine_that_systemd_runs(tmp_path: Path, hog: str, figure: dict[str, object]) -> None:
    why_not = machine.missing(machine.PROGRAMS | machine.FOR_SYSTEMD)
    if why_not:
        pytest.skip(f"no virtual machines: {why_not}")
    base = machine.systemd_initramfs(tmp_path, hog)
    command = "python3 -m pytest -q --color=no -p no:cacheprovider tests/vm/inside/systemd.py"
    code, output = machine.run(machine.kernel("6.1"), "v2", base, command, memory=2048)
    assert code == 0, output
    assert re.search(r"^7 passed", output, re.MULTILINE), output
    figure.update(re.findall(r"^test_a_unit_.*\[(\w+)\]: (.*)$", output, re.MULTILINE))
