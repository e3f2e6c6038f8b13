"""What is shipped: one wheel for every Python from 3.10 on, built from an sdist that is complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import memcg_oom

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    pytest.importorskip("build", reason="building needs the module build")
    if not (ROOT / "setup.py").exists():
        pytest.skip("the tests were copied without the sources that a package is built from")
    source = tmp_path_factory.mktemp("source") / "memcg_oom"
    # Only what git would check out: a stray build product must not make up for a missing source.
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "_native.c")
    shutil.copytree(ROOT, source, ignore=ignored)
    target = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-P", "-m", "build"] if sys.version_info >= (3, 11) else [sys.executable, "-m", "build"]
    done = subprocess.run(
        [*build, "--no-isolation", "--outdir", target, source],
        check=False,
        capture_output=True,
        text=True,
        cwd=target,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_wheel_is_for_the_stable_abi_of_3_10(built: Path) -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("a free-threaded interpreter has no stable ABI")
    (wheel,) = built.glob("*.whl")
    assert "-cp310-abi3-linux_" in wheel.name
    assert wheel.name.startswith(f"memcg_oom-{memcg_oom.__version__}-")


def test_the_wheel_holds_the_package_and_nothing_else(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "memcg_oom").rglob("*.py*") if "__pycache__" not in str(path)
    }
    assert sources - names == set()
    assert "memcg_oom/py.typed" in names
    data = f"memcg_oom-{memcg_oom.__version__}.data"
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"memcg_oom", data}
    assert {name.removeprefix(f"{data}/data/share/") for name in names if name.startswith(data)} == {
        "man/man1/memcg-oom.1",
        "bash-completion/completions/memcg-oom",
        "zsh/site-functions/_memcg-oom",
        "fish/vendor_completions.d/memcg-oom.fish",
    }
    done = subprocess.run(
        [sys.executable, "-c", "import memcg_oom; print(memcg_oom.__file__, memcg_oom.__version__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == f"{tmp_path}/memcg_oom/__init__.py {memcg_oom.__version__}\n"


def test_python_m_memcg_oom_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "memcg_oom", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"memcg-oom {memcg_oom.__version__}\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    # An agent on a crowded host pays for each of these in memory, and a command in time.
    code = "import sys, memcg_oom; print(*({'asyncio', 'dataclasses', 'inspect', 'typing', 're'} & set(sys.modules)))"
    # -S: what site imports for the environment is not the package's doing; -P would hide the package, so PYTHONPATH.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "\n"
