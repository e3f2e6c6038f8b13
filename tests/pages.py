"""The code blocks of the documentation, as its tests take them."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """The language, text and line of each code block of a page."""
    text = page.read_text()
    return [(one[1], one[2], text[: one.start()].count("\n") + 1) for one in _BLOCK.finditer(text)]
