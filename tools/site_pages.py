"""A hook of mkdocs: what stands outside docs/ becomes pages too, and the links between all of them are led there.

In the repository README.md links to docs/command.md, and that one to ../SECURITY.md, so that both can be followed
there. On the site all are pages below one folder.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# Where in the repository they are, and where on the site.
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/report.md": "benchmarks/report.md",
}
ASSETS = ("benchmarks/plots/*.svg", "examples/*.py")

_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for pattern in ASSETS:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    files.append(File.generated(config, "examples.md", content=_examples()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Has the links of a page lead to where their targets are on the site."""
    here = page.file.src_uri
    in_repository = next((source for source, target in PAGES.items() if target == here), f"docs/{here}")

    def lead(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(in_repository), link[2]))
        on_site = PAGES.get(target, target.removeprefix("docs/"))
        return link[1] + os.path.relpath(on_site, os.path.dirname(here) or ".") + link[3]

    return _LINK.sub(lead, markdown)


def _examples() -> str:
    """A page of all examples: what each says of itself, and its text."""
    parts = ["# Examples\n\nPrograms to take from. The tests run each of them.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        about = ast.get_docstring(ast.parse(text)) or ""
        title, _, rest = about.partition("\n")
        code = text.split('"""', 2)[2].lstrip()
        parts.append(f"## {path.name}\n\n**{title}**\n{rest}\n\n```python\n{code}```\n")
    return "\n".join(parts)
