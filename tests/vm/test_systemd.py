"""Where systemd makes and removes the cgroups, and a user has some of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vm import machine


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory, hog: str) -> Path:
    """The initramfs of a Debian that systemd runs."""
    why_not = machine.missing(machine.PROGRAMS | machine.FOR_SYSTEMD)
    if why_not:
        pytest.skip(f"no virtual machines: {why_not}")
    return machine.systemd_initramfs(tmp_path_factory.mktemp("systemd"), hog)


def inside(base: Path, file: str) -> str:
    """Runs a file of tests inside; what it printed."""
    command = f"python3 -m pytest -q --color=no -p no:cacheprovider tests/vm/inside/{file}"
    code, output = machine.run(machine.kernel("6.1"), "v2", base, command, memory=2048)
    assert code == 0, output
    return output


def test_on_a_machine_that_systemd_runs(systemd: Path, figure: dict[str, object]) -> None:
    output = inside(systemd, "systemd.py")
    assert re.search(r"^7 passed", output, re.MULTILINE), output
    figure.update(re.findall(r"^test_a_unit_.*\[(\w+)\]: (.*)$", output, re.MULTILINE))


def test_the_exporter_as_a_service(systemd: Path, figure: dict[str, object]) -> None:
    output = inside(systemd, "service.py")
    assert re.search(r"^4 passed", output, re.MULTILINE), output
    figure.update(re.findall(r"^(test_it_is_ready)_.*: (.*)$", output, re.MULTILINE))
