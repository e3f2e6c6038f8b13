"""What benchmarks/ makes of what was measured; nothing is measured here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are not here")

from benchmarks import common, report
from benchmarks.__main__ import FULL, QUICK

# Drawing in a process of its own, as matplotlib keeps the files of its fonts open.
DRAW = """
import json, sys
from pathlib import Path
from benchmarks import report
for path in sys.argv[1:]:
    report.draw(json.loads(Path(sys.argv[1]).with_suffix(".json").read_text()), Path(path))
"""


def document(ratios: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "title": "Watching 10 cgroups",
        "machine": {"kernel": "6.1", "commit": "0123456789"},
        "unit": "ns",
        "shown": ["milliseconds", 1_000_000],
        "competitors": {
            "memcg_oom": common.distribution([1_000_000, 3_000_000, 2_000_000]),
            "C, one thread": common.distribution([4_000_000, 6_000_000, 5_000_000]),
        },
        "ratios": ratios,
        **more,
    }


def written(folder: Path, **documents: dict[str, Any]) -> str:
    for name, one in documents.items():
        report.keep(one, folder / "results" / f"{name}.json")
    return report.write(folder, documents, plots=False).read_text()


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.2, 1), (0.21, 2), (0.5, 3), (0.8, 4), (0.99, 5), (1.0, 5)]
)
def test_a_quantile_is_a_sample(share: float, expected: int) -> None:
    assert common.quantile([5, 3, 1, 4, 2], share) == expected


def test_a_ratio_is_taken_within_each_round() -> None:
    one = common.ratio("ours / theirs", [2, 30, 9], [1, 10, 10], target=1.3)
    assert one["rounds"] == [2, 3, 0.9]
    assert (one["value"], one["min"], one["max"], one["met"]) == (2, 0.9, 3, False)
    assert common.ratio("ours / theirs", [1], [2])["met"] is None


@pytest.mark.parametrize(("target", "at_least", "met"), [(2, False, True), (1.9, False, False), (2, True, True)])
def test_a_figure_is_in_its_unit(target: float, at_least: bool, met: bool) -> None:
    one = common.figure("starts in", [1_000, 2_000, 3_000], ("microseconds", 1_000), target, at_least=at_least)
    assert (one["value"], one["unit"], one["met"]) == (2, "microseconds", met)


def test_a_missed_target_is_shown_as_missed(tmp_path: Path) -> None:
    ratios = [
        common.ratio("memcg_oom / C, one thread", [1, 2], [2, 2], 0.5),
        common.ratio("C, one thread / memcg_oom", [1, 1], [2, 2], 0.8),
    ]
    text = written(tmp_path, register=document(ratios))
    # In the table of all targets, and in that of the question.
    assert text.count("| memcg_oom / C, one thread | 0.75 | 0.50 .. 1.00 | at most 0.5 | **missed** |") == 2
    assert text.count("| C, one thread / memcg_oom | 0.50 | 0.50 .. 0.50 | at most 0.8 | met |") == 2


def test_a_section_says_what_was_asked_compared_and_found(tmp_path: Path) -> None:
    text = written(tmp_path, register=document([common.ratio("memcg_oom / C, one thread", [1], [1])]))
    assert "## How long does it take to watch 10,000 cgroups?\n" in text
    assert "- C: a plain loop of one thread that opens, identifies, reads, registers" in text
    assert "| milliseconds | median | p99 | max | n |" in text
    assert "| memcg_oom | 2.0 | 3.0 | 3.0 | 3 |" in text
    assert "- kernel 6.1, commit 0123456789\n" in text
    assert "ahead in" not in text


def test_it_says_where_others_are_ahead(tmp_path: Path) -> None:
    ratios = [
        common.ratio("memcg_oom / Python standard library", [3], [2]),
        common.ratio("Python standard library / C", [3], [2]),
        common.ratio("memcg_oom, many / memcg_oom, few", [3], [2]),
    ]
    text = written(tmp_path, register=document(ratios))
    assert "Others are ahead in: memcg_oom / Python standard library 1.50.\n" in text


def test_the_table_of_the_first_stands_ahead_of_all_targets(tmp_path: Path) -> None:
    table = {"columns": ["watcher", "lost"], "rows": [["memcg_oom", 0], ["a|b", 7]]}
    text = written(tmp_path, races=document([], table=table), register=document([common.ratio("a / b", [1], [1], 2)]))
    assert "| watcher | lost |\n| --- | ---: |\n| memcg_oom | 0 |\n| a\\|b | 7 |\n" in text
    assert text.index("| watcher | lost |") < text.index("## Targets") < text.index("| milliseconds |")


def test_what_is_kept_is_small_and_has_the_extremes(tmp_path: Path) -> None:
    samples = [number * 1_000_003 for number in range(100_000)]
    one = document([])
    one["competitors"] = {f"number {number}": common.distribution(samples) for number in range(10)}
    path = tmp_path / "results" / "many.json"
    report.keep(one, path)
    assert path.stat().st_size < 50_000
    kept = json.loads(path.read_text())["competitors"]["number 7"]
    assert (kept["n"], len(kept["samples"])) == (100_000, report.MOST_SAMPLES)
    assert (kept["samples"][0], kept["samples"][-1]) == (samples[0], samples[-1])


@pytest.mark.parametrize("curves", [True, False])
def test_a_plot_is_the_same_each_time(tmp_path: Path, curves: bool) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("plots need matplotlib")
    one = document([common.ratio("memcg_oom / C", [1, 2], [2, 2], 0.8), common.figure("memcg_oom", [3], ("ms", 1), 0)])
    if curves:
        one["competitors"] = {name: common.distribution(range(1, 100)) for name in ("memcg_oom", "C")}
    report.keep(one, tmp_path / "first.json")
    plots = [tmp_path / "first.svg", tmp_path / "second.svg"]
    subprocess.run([sys.executable, "-c", DRAW, *map(str, plots)], cwd=common.HERE.parent, check=True)
    first, second = (plot.read_bytes() for plot in plots)
    assert first == second
    assert b"share of the target" in first


def test_every_benchmark_can_be_run_and_tried() -> None:
    assert set(QUICK) <= set(FULL)
    for name in FULL:
        assert (common.HERE / f"{name}.py").exists()
        assert report.question(name).endswith("?")
        assert report.compared(name).strip()
