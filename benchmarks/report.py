"""report.md: what the kept JSON documents say, with plots where matplotlib is installed.

Which members a document has is said by common.report(). Question and comparison are taken from the docstring of the
script: its first line, and the paragraph after it with the list that goes with it.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import common

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from matplotlib.axes import Axes

OURS = "memcg_oom"
MOST_SAMPLES = 200  # of a distribution that are kept
ENOUGH = 30  # samples for a curve
MOST_CURVES = 10  # that can be told from each other
NOT_RED = (0, 1, 2, 4, 5, 6, 7, 8, 9)  # of matplotlib's colours: ours are red
DECADES = 50  # the ratio of the largest to the smallest from which on an axis is logarithmic

_NUMBER = re.compile(r"[-+]?\d|$")

INTRODUCTION = """\
# Benchmarks

Made by `make bench` (as root, on a host with a cgroup v1 memory hierarchy) from what is kept in `results/`. All
competitors of a question run in the same run and in a new order each round, so what counts is the ratios: each is the
median of those within the rounds, and stands with their spread. A ratio below 1 means that memcg_oom is faster, or
takes less. Where another one is ahead, be it the standard library, that is said.
"""


# -- keeping


def keep(document: dict[str, Any], path: Path) -> None:
    """Writes a document to a file, with the distributions thinned so that it stays small."""
    for found in document["competitors"].values():
        if "samples" in found:
            found["samples"] = thinned(found["samples"])
    text = json.dumps(document, indent=1)
    # A list of numbers takes one line, not one for each.
    text = re.sub(r"\[[-+\d.e,\s]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def thinned(samples: Sequence[float]) -> list[float]:
    """As many as are kept, in order, evenly spread over all, with the smallest and the largest."""
    ordered = sorted(samples)
    if len(ordered) <= MOST_SAMPLES:
        return ordered
    step = (len(ordered) - 1) / (MOST_SAMPLES - 1)
    return [ordered[round(number * step)] for number in range(MOST_SAMPLES)]


# -- the report


def write(folder: Path, names: Iterable[str], *, plots: bool = True) -> Path:
    """Writes the report of the documents in results/ of a folder, and the plots; returns its path.

    Args:
        folder: where all of it is.
        names: of the scripts, in the order of the report; those of which nothing is kept are left out.
        plots: whether to draw; what was drawn before stands otherwise, as it does without matplotlib.
    """
    kept = {name: folder / "results" / f"{name}.json" for name in names}
    documents = {name: json.loads(path.read_text()) for name, path in kept.items() if path.exists()}
    if plots and find_spec("matplotlib") is not None:
        for name, document in documents.items():
            draw(document, folder / "plots" / f"{name}.svg")
    first, *others = [section(folder, name, document) for name, document in documents.items()] or [""]
    parts = [INTRODUCTION, machines(documents.values()), first, targets(documents), *others]
    path = folder / "report.md"
    path.write_text("\n".join(part for part in parts if part))
    return path


def machines(documents: Iterable[dict[str, Any]]) -> str:
    """On what they ran: each that there is, once."""
    lines = {", ".join(f"{key} {value}" for key, value in document["machine"].items()): None for document in documents}
    return "".join(f"- {line}\n" for line in lines)


def targets(documents: dict[str, dict[str, Any]]) -> str:
    """A table of everything that has a target."""
    lines = []
    for name, document in documents.items():
        for one, line in zip(document["ratios"], common.verdicts(document)[1], strict=True):
            if one["target"] is not None:
                lines.append([f"[{question(name)}](#{anchor(question(name))})", *_marked(line)])
    return "\n".join(["## Targets\n", _table(["question", *common.VERDICTS], lines)]) if lines else ""


def section(folder: Path, name: str, document: dict[str, Any]) -> str:
    """The question, what is compared, what was found, and the plot."""
    parts = [f"## {question(name)}\n", compared(name), f"**{document['title']}**\n", _table(*common.rows(document))]
    if document["ratios"]:
        columns, lines = common.verdicts(document)
        parts.append(_table(columns, [_marked(line) for line in lines]))
    if others := ahead(document):
        parts.append(f"Others are ahead in: {'; '.join(others)}.\n")
    if (folder / "plots" / f"{name}.svg").exists():
        parts.append(f"![{document['title']}](plots/{name}.svg)\n")
    return "\n".join(part for part in parts if part)


def ahead(document: dict[str, Any]) -> list[str]:
    """The ratios by which another one is faster than we are, or takes less."""
    found = []
    for one in document["ratios"]:
        ours, _, theirs = one["what"].partition(" / ")
        if theirs and OURS in ours and OURS not in theirs and one["value"] > 1:
            found.append(f"{one['what']} {one['value']:,.2f}")
    return found


def question(name: str) -> str:
    """The first line of the docstring of a script."""
    return _docstring(name)[0]


def compared(name: str) -> str:
    """What is compared: the paragraph below, with the list that it leads to."""
    paragraphs = _docstring(name)[1:]
    return "\n\n".join(paragraphs[: 2 if len(paragraphs) > 1 and paragraphs[1].startswith("- ") else 1]) + "\n"


def _docstring(name: str) -> list[str]:
    """The paragraphs of it; without running the script, which may need what is not here."""
    text = ast.get_docstring(ast.parse((common.HERE / f"{name}.py").read_text()))
    return (text or name).split("\n\n")


def anchor(heading: str) -> str:
    """The name by which a heading is linked to, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _marked(line: list[str]) -> list[str]:
    return [*line[:-1], "**missed**" if line[-1] == "missed" else line[-1]]


def _table(columns: list[str], lines: list[list[str]]) -> str:
    """What is numbers stands to the right."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    sides = ["---:" if all(_NUMBER.match(cell) for cell in column) else "---" for column in zip(*cells, strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, sides or ["---" for _ in columns], *cells))


# -- the plots


def draw(document: dict[str, Any], path: Path) -> None:
    """What was found, and how it stands to the targets: the same document gives the same file."""
    import matplotlib as mpl  # noqa: PLC0415 - not needed for the text
    from matplotlib.figure import Figure  # noqa: PLC0415

    found = {name: one for name, one in document["competitors"].items() if "median" in one}
    # What is to be nothing at all has no share of its target.
    aims = [one for one in document["ratios"] if one["target"]]
    if not found and not aims:
        return
    mpl.rcParams.update({"svg.hashsalt": "memcg_oom", "svg.fonttype": "none", "font.size": 8})
    rows = max(len(found), len(aims), 4)
    panels = bool(found) + bool(aims)
    figure = Figure(figsize=(5.5 * panels, 1.2 + 0.26 * rows), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if found:
        name, size = document["shown"]
        _draw_found(axes[0], found, size)
        axes[0].set_xlabel(name)
        axes[0].set_title(document["title"], wrap=True)
    if aims:
        _draw_aims(axes[-1], aims)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def _draw_found(axes: Axes, found: dict[str, dict[str, Any]], size: float) -> None:
    samples = {name: [one / size for one in sorted(here["samples"])] for name, here in found.items()}
    least, most = min(one[0] for one in samples.values()), max(one[-1] for one in samples.values())
    if least >= 0 and most > DECADES * least:
        axes.set_xscale("log" if least else "symlog")  # nothing has no logarithm
    if len(found) <= MOST_CURVES and min(one["n"] for one in found.values()) >= ENOUGH:
        ours, others = itertools.cycle(("-", "--", ":")), itertools.cycle(f"C{number}" for number in NOT_RED)
        for name, values in samples.items():
            shares = [(i + 1) / len(values) for i in range(len(values))]
            style: dict[str, Any] = (
                {"color": "C3", "linestyle": next(ours)} if _is_ours(name) else {"color": next(others)}
            )
            axes.step(values, shares, where="post", label=name, linewidth=1.2, **style)
        axes.set_ylabel("share of samples")
        axes.legend(loc="lower right", frameon=False)
    else:
        medians = [found[name]["median"] / size for name in samples]
        axes.barh([*samples], medians, color=["C3" if _is_ours(name) else "C7" for name in samples], height=0.6)
        axes.hlines([*samples], [one[0] for one in samples.values()], [one[-1] for one in samples.values()], "black")
        axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)


def _is_ours(name: str) -> bool:
    return OURS in name.replace("-", "_")


def _draw_aims(axes: Axes, aims: list[dict[str, Any]]) -> None:
    for number, one in enumerate(aims):
        color = "C2" if one["met"] else "C3"
        axes.hlines(number, one["min"] / one["target"], one["max"] / one["target"], color)
        axes.plot(one["value"] / one["target"], number, "o", color=color)
    axes.axvline(1, color="black", linestyle="--")
    wants = {">" if one["at_least"] else "<" for one in aims}
    axes.set_xlabel("share of the target" + (f", which is met at {' or '.join(sorted(wants))} 1"))
    axes.set_yticks(range(len(aims)), [one["what"] for one in aims])
    axes.set_ylim(len(aims) - 0.5, -0.5)
    axes.set_xlim(left=min(0, *(one["min"] / one["target"] for one in aims)))
    axes.grid(axis="x", alpha=0.3)
