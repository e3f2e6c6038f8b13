"""What the documentation says of the command, the code and itself; tests/real/test_docs.py runs its programs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import memcg_oom
from memcg_oom import command
from tests.pages import blocks

make_manual = pytest.importorskip("tools.make_manual", reason="the tests were copied without the tools")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def written_in(*languages: str) -> Iterator[tuple[str, str]]:
    """The page and the text of each code block in one of these languages."""
    for page in PAGES:
        for language, text, _ in blocks(page):
            if language in languages:
                yield str(page.relative_to(ROOT)), text


def commands() -> Iterator[tuple[str, list[str]]]:
    """The arguments of memcg-oom, wherever it is called on a line of its own or behind a prompt."""
    for page, text in written_in("sh", "console", ""):
        for line in text.splitlines():
            call = re.match(r"^(?:[#$] )?(?:systemd-run .*? )?memcg-oom\s+(.*)$", line)
            if call and not line.startswith("memcg-oom: "):
                yield page, shlex.split(call[1])


@pytest.mark.parametrize(("page", "arguments"), list(commands()))
def test_a_command_line_is_one(page: str, arguments: list[str]) -> None:
    options = command._parser().parse_args(arguments)
    assert options.subcommand == arguments[0]


def test_there_are_command_lines() -> None:
    assert {arguments[0] for _, arguments in commands()} >= {"watch", "run", "listen", "export", "check"}


def test_what_is_written_in_other_languages_can_be_read() -> None:
    read = 0
    for _, text in written_in("yaml"):
        assert list(yaml.safe_load_all(text))
        read += 1
    for _, text in written_in("json"):
        json.loads(text)
        read += 1
    assert read >= 1


def test_the_queries_are_queries(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool: apt-get install prometheus")
    queries = [text for _, text in written_in("promql")]
    assert len(queries) >= 4
    rules = [{"record": f"query:{number}", "expr": text} for number, text in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "docs", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", file], check=True, capture_output=True)


def test_the_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: memcg_oom\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(memcg_oom.__all__) - {"__version__"})


def is_event(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, memcg_oom.Event)


def test_every_event_is_described_and_drawn() -> None:
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in ("semantics", "notifications", "cgroup-v2"))
    events = [name for name in memcg_oom.__all__ if is_event(getattr(memcg_oom, name))]
    assert len(events) >= 12
    assert [name for name in events if name not in ("Event", "CgroupEvent") and f"`{name}" not in text] == []
    drawn = {path.stem for path in (ROOT / "docs" / "images" / "timing").glob("*.svg")}
    assert set(re.findall(r"\(images/timing/(\w+)\.svg\)", text)) == drawn


def test_the_map_has_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {path.name for path in Path(memcg_oom.__file__).parent.glob("*.py")}
    modules -= {"__init__.py", "__main__.py", "_version.py"}
    assert {name for name in modules if f"`{name}`" not in text} == set()
    assert set(re.findall(r"`(\w+\.py)`", text)) <= modules


# -- the manual page and the completions


def test_the_manual_is_of_this_command() -> None:
    page = (ROOT / "share" / "memcg-oom.1").read_text().replace("\\-", "-")
    for parser in make_manual.parsers(command._parser()):
        assert parser.prog in page
        for action in parser._actions:
            for option in set(action.option_strings) - {"-h", "--help"}:
                assert option in page, f"{parser.prog} {option}: make manual"
    assert memcg_oom.__version__ in page


def test_the_manual_is_well_formed() -> None:
    if shutil.which("groff") is None:
        pytest.skip("there is no groff: apt-get install groff-base")
    page = ROOT / "share" / "memcg-oom.1"
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", page], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert "EXIT STATUS" in re.sub(r".\x08|\x1b\[\d+m", "", done.stdout)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["memcg-oom", ""], {"watch", "run", "listen", "export", "check", "demo"}),
        (["memcg-oom", "watch", "--s"], {"--stall", "--summary"}),
        (["memcg-oom", "export", "--tls-k"], {"--tls-key"}),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str]) -> None:
    words = " ".join(shlex.quote(word) for word in typed)
    script = f"""
        source {shlex.quote(str(ROOT / "share/bash/memcg-oom"))}
        COMP_WORDS=({words}) COMP_CWORD={len(typed) - 1}
        "$(complete -p memcg-oom | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert set(done.stdout.split()) - {"-h", "--help", "--version"} == offered


@pytest.mark.parametrize("file", ["zsh/_memcg-oom", "fish/memcg-oom.fish"])
def test_other_shells_know_every_option(file: str) -> None:
    text = (ROOT / "share" / file).read_text()
    for parser in make_manual.parsers(command._parser()):
        for action in parser._actions:
            for option in action.option_strings:
                assert option.lstrip("-") in text, f"{parser.prog} {option}: make manual"
