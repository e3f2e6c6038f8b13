"""The machines, built once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import machine


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, hog: str) -> Path:
    """The initramfs that every machine boots with."""
    why_not = machine.missing()
    if why_not:
        pytest.skip(f"no virtual machines: {why_not}")
    return machine.initramfs(tmp_path_factory.mktemp("vm"), hog)
