"""Makes share/ anew: the manual page memcg-oom(1) and the completions of shells, all from the command's own parser.

make manual
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from memcg_oom._version import __version__
from memcg_oom.command import _parser

SHARE = Path(__file__).parents[1] / "share"
SECTIONS = Path(__file__).with_name("manual.man")

# What is completed, by an argument's metavar; else nothing is.
FILES = {"CONTROL_FILE": shtab.FILE, "FILE": shtab.FILE, "CGROUP": shtab.DIRECTORY, "DIR": shtab.DIRECTORY}
SHELLS = {"bash": "memcg-oom", "zsh": "_memcg-oom", "fish": "memcg-oom.fish"}


def parser() -> argparse.ArgumentParser:
    """The command's parser, with what a shell is to complete."""
    whole = _parser()
    for one in parsers(whole):
        for action in one._actions:
            if isinstance(action.metavar, str) and action.metavar in FILES:
                action.complete = FILES[action.metavar]  # type: ignore[attr-defined]
    return whole


def parsers(whole: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parser itself, and that of each subcommand."""
    found = [whole]
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def manual() -> str:
    """The page, in the language of man(7)."""
    whole = parser()
    whole.epilog = None  # the exit codes have a section of their own
    whole.man_short_description = "tell what happens to memory cgroups"  # type: ignore[attr-defined]
    data = {
        "project_name": "memcg_oom",
        "version": __version__,
        "manual_title": "memcg_oom",
        "manual_section": "1",
    }
    page = str(Manpage(whole, format="single-commands-section", _data=data))
    # The day on which it was made is nobody's business, and would make each a new one.
    head, rest = page.split("\n", 1)
    words = head.split('"')
    words[3] = ""
    # argparse's own word for a group without a title.
    rest = rest.replace(".SH\nPOSITIONAL ARGUMENTS", ".SH COMMANDS")
    return f"{chr(34).join(words)}\n{rest.rstrip()}\n{SECTIONS.read_text()}"


def main() -> int:
    """The program."""
    os.environ["COLUMNS"] = "72"  # what a page of 80 has room for
    SHARE.mkdir(exist_ok=True)
    (SHARE / "memcg-oom.1").write_text(manual())
    for shell, name in SHELLS.items():
        folder = SHARE / shell
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(shtab.complete(parser(), shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
