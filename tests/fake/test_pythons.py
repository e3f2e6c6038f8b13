"""The table of Pythons: what cannot be tried is a row that failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import pythons
from tests.vm import machine


def test_an_interpreter_is_what_it_says() -> None:
    path = Path(sys.executable)
    version, release = pythons.ask(path)
    assert version.startswith("{}.{}".format(*sys.version_info[:2]))
    assert release.startswith("{}.{}.{}".format(*sys.version_info[:3]))
    assert pythons.interpreter(str(path)) == path


def test_a_version_is_found_where_it_is_and_no_other_is_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    shims, installed = tmp_path / "path", tmp_path / "versions" / "3.99.1" / "bin"
    for folder in (shims, installed):
        folder.mkdir(parents=True)
    for path, code in ((shims / "python3.99", "exit 1"), (installed / "python3.99", "printf '3.99\\n3.99.1\\n'")):
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
    assert pythons.interpreter("3.99") == installed / "python3.99"
    (installed / "python3.99").write_text("#!/bin/sh\nprintf '3.99t\\n3.99.1 free-threaded\\n'\n")
    with pytest.raises(ValueError, match=r"there is no Python 3\.99 on PATH"):
        pythons.interpreter("3.99")


def test_a_row_that_cannot_be_tried_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[object], **_: object) -> None:
        raise subprocess.CalledProcessError(1, [*map(str, command)])

    monkeypatch.setattr(machine, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    rows = {"2.6": "there is no Python 2.6", f"{tmp_path}/python": "No such file", "/bin/false": "ended with 1"}
    for row, why in rows.items():
        outcome = pythons.run(row, tmp_path, tmp_path)
        assert why in outcome.why
        assert f"FAILED: {outcome.why}" in pythons.table([outcome])
    monkeypatch.setattr(subprocess, "run", fail)
    assert pythons.run("3.15", tmp_path, tmp_path).why == "Python 3.15 could not be downloaded from sid"
