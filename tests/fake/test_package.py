"""What is shipped: one wheel for every Python from 3.10 on, built from an sdist that is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import memcg_oom

ROOT = Path(__file__).parents[2]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def build(*arguments: str | Path, folder: Path, environment: dict[str, str] | None = None) -> None:
    safely = ["-P"] if sys.version_info >= (3, 11) else []
    done = subprocess.run(
        [sys.executable, *safely, "-m", "build", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the tests were copied without the sources that a package is built from")
    source = tmp_path_factory.mktemp("source") / "memcg_oom"
    # Only what git would check out: a stray build product must not make up for a missing source.
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "_native.c")
    shutil.copytree(ROOT, source, ignore=ignored)
    return source


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    pytest.importorskip("build", reason="building needs the module build")
    target = tmp_path_factory.mktemp("dist")
    build("--no-isolation", "--outdir", target, source, folder=target)
    return target


@pytest.fixture
def unpacked(built: Path, tmp_path: Path) -> Path:
    """What is in the sdist, and nothing else."""
    (sdist,) = built.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    return tmp_path / f"memcg_oom-{memcg_oom.__version__}"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_sdist_has_all_that_is_built_tested_and_checked(source: Path, unpacked: Path) -> None:
    missing = {
        name
        for name in files(source) - files(unpacked)
        if not name.startswith(("benchmarks/plots/", "benchmarks/results/"))
    }
    assert missing == set()


def test_the_sdist_alone_is_built_with_what_it_asks_for(unpacked: Path, tmp_path: Path) -> None:
    """In an environment of the build's own, with the requirements that pyproject.toml names and no other package."""
    from build import ProjectBuilder

    wanted = ProjectBuilder(unpacked).build_system_requires
    wheels = tmp_path / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", os.fspath(wheels), *wanted]
    done = subprocess.run(download, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"what a build needs cannot be downloaded: {done.stderr.splitlines()[-1:]}")
    build("--wheel", unpacked, folder=tmp_path, environment={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": os.fspath(wheels)})
    assert list((unpacked / "dist").glob("memcg_oom-*.whl"))


def test_the_wheel_is_for_a_stable_abi_where_there_is_one(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.endswith(".so"))
    assert wheel.name.startswith(f"memcg_oom-{memcg_oom.__version__}-")
    if sys.version_info >= (3, 15):
        assert f"-cp315-abi3{'.abi3t' if FREE_THREADED else ''}-linux_" in wheel.name
        assert module.startswith(f"memcg_oom/_native.abi3{'t' if FREE_THREADED else ''}")
    elif FREE_THREADED:
        assert "-cp{0}{1}-cp{0}{1}t-linux_".format(*sys.version_info[:2]) in wheel.name
    else:
        assert "-cp310-abi3-linux_" in wheel.name
        assert module == "memcg_oom/_native.abi3.so"  # 3.10 looks for no other name


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


def test_what_is_installed_has_the_version_of_the_package() -> None:
    assert metadata.version("memcg-oom") == memcg_oom.__version__


def test_a_program_beside_a_checkout_imports_the_package(tmp_path: Path) -> None:
    """A folder without an __init__.py is a package to Python too, where it finds no other by a path (PEP 420)."""
    (tmp_path / "memcg_oom" / "memcg_oom").mkdir(parents=True)
    program = tmp_path / "watcher.py"
    program.write_text("from memcg_oom import Monitor\n")
    subprocess.run([sys.executable, program], check=True, cwd=tmp_path)


def test_the_version_is_written_in_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "memcg_oom._version.__version__" }' in project
    assert not re.search(r'^version = "', project, re.MULTILINE)


def test_the_changelog_is_of_this_version() -> None:
    """What was released last is this version, or one before that this follows; what is not released is on top."""
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("the tests were copied without the changelog")
    names = re.findall(r"^## \[(.+?)\]", changelog.read_text(), re.MULTILINE)
    assert names
    assert "Unreleased" not in names[1:]
    ours, *released = (
        tuple(map(int, name.split("."))) for name in (str(memcg_oom.__version__), *names) if name != "Unreleased"
    )
    assert released == sorted(set(released), reverse=True)
    assert not released or released[0] == ours or (names[0] == "Unreleased" and released[0] < ours)


def test_the_classifiers_name_every_python_from_the_oldest_on() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'^requires-python = ">=3\.(\d+)"', project, re.MULTILINE)
    named = [int(minor) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', project)]
    assert named == list(range(int(oldest), named[-1] + 1))


@pytest.mark.skipif(not FREE_THREADED, reason="this Python has the global interpreter lock")
def test_importing_the_package_leaves_a_free_threaded_python_free() -> None:
    # That it may be asked for, by PYTHON_GIL, is not what is tried.
    code = "import sys; free = not sys._is_gil_enabled(); import memcg_oom; print(free, not sys._is_gil_enabled())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout in ("True True\n", "False False\n")


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
