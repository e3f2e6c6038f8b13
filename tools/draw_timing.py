"""Draws the diagrams of docs/images/timing: what the kernel does, what the monitor does, what your program gets, when.

python -m tools.draw_timing [NAME ...]

Times are not to scale. What is said of them is in docs/semantics.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "docs" / "images" / "timing"

# Seen on white as well as on black.
INK, FAINT, KERNEL, MONITOR, YOURS = "#7d8590", "#7d859055", "#d1722e", "#3b82c4", "#2e9e5b"
COLOURS = {"kernel": KERNEL, "counter": KERNEL, "log": KERNEL, "usage": KERNEL, "above": KERNEL, "host": KERNEL}
LABELS = {
    "kernel": "the kernel",
    "counter": "the cgroup's counter",
    "above": "the counter above it",
    "host": "/proc/vmstat",
    "log": "the kernel's log",
    "usage": "usage",
    "monitor": "the monitor",
    "yours": "your program gets",
}


class Diagram:
    """Lanes of time, one below the other; the last one is your program's."""

    def __init__(self, axes: Axes, lanes: list[str], width: float = 10.0) -> None:
        self.axes = axes
        self.at = {lane: -float(number) for number, lane in enumerate(lanes)}
        axes.set_xlim(-2.35, width + 0.2)
        axes.set_ylim(-len(lanes) + 0.4, 0.75)
        axes.axis("off")
        for lane, y in self.at.items():
            axes.annotate("", (width + 0.1, y), (0, y), arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 1})
            axes.text(-0.15, y, LABELS[lane], ha="right", va="center", color=INK, size=9)

    def mark(self, lane: str, time: float, text: str, *, ha: str = "center", below: bool = False) -> None:
        """Something that happens at a moment."""
        y = self.at[lane]
        colour = COLOURS.get(lane, MONITOR if lane == "monitor" else YOURS)
        self.axes.plot([time], [y], "o", color=colour, ms=5)
        weight = "bold" if lane == "yours" else "normal"
        self.axes.text(
            time,
            y + (-0.2 if below else 0.2),
            text,
            ha=ha,
            va="top" if below else "bottom",
            color=colour,
            size=8.5,
            weight=weight,
        )

    def span(self, lane: str, start: float, end: float, text: str) -> None:
        """Something that lasts."""
        y = self.at[lane]
        colour = COLOURS.get(lane, MONITOR)
        self.axes.plot([start, end], [y, y], color=colour, lw=4, alpha=0.45, solid_capstyle="butt")
        self.axes.text((start + end) / 2, y - 0.14, text, ha="center", va="top", color=colour, size=8)

    def looks(self, times: list[float]) -> None:
        """The monitor reads a counter, each time."""
        self.axes.plot(times, [self.at["monitor"]] * len(times), "|", color=MONITOR, ms=9)

    def leads(self, start: tuple[str, float], end: tuple[str, float]) -> None:
        """One thing is the reason of another."""
        self.axes.annotate(
            "",
            (end[1], self.at[end[0]] + 0.1),
            (start[1], self.at[start[0]] - 0.1),
            arrowprops={"arrowstyle": "->", "color": FAINT, "lw": 1.2, "shrinkA": 0, "shrinkB": 0},
        )


def oom(axes: Axes) -> None:
    """Oom at once, OomKill when the counter has moved."""
    d = Diagram(axes, ["kernel", "counter", "log", "monitor", "yours"])
    d.mark("kernel", 1, "signals the OOM")
    d.mark("kernel", 2.8, "kills a task")
    d.mark("counter", 2.8, "oom_kill + 1")
    d.mark("log", 2.6, "Killed process …", ha="left", below=True)
    d.looks([1.15, 1.3, 1.6, 2.0, 2.4, 2.95, 3.6, 4.4, 5.2, 6.0, 6.8, 7.6, 8.4])
    d.mark("monitor", 1.05, "reads the eventfd", ha="left")
    d.span("monitor", 1.05, 8.4, "looks again and again, until settle (0.5 s) after the last signal")
    d.mark("yours", 1.15, "Oom(count=1)")
    d.mark("yours", 3.1, "OomKill(count=1, victims=…)", ha="left")
    d.leads(("kernel", 1), ("monitor", 1.03))
    d.leads(("counter", 2.8), ("monitor", 2.95))


def removed(axes: Axes) -> None:
    """A removal that comes right behind an OOM: one signal of two is the removal's."""
    d = Diagram(axes, ["kernel", "monitor", "yours"])
    d.mark("kernel", 0.6, "OOM: a signal")
    d.mark("kernel", 1.7, "rmdir(2)", below=True)
    d.mark("kernel", 4.6, "the removal's signal, 12 to 127 ms later")
    d.mark("monitor", 2.4, "reads 1,\nthen looks: gone", below=True)
    d.mark("monitor", 4.7, "reads 1 more", below=True)
    d.span("monitor", 4.8, 8.5, "silence for linger (0.25 s)")
    d.mark("yours", 8.6, "Oom(count=1)\nRemoved(unresolved=1)", below=True)
    d.leads(("kernel", 4.6), ("monitor", 4.68))
    d.leads(("monitor", 8.5), ("yours", 8.58))


def late(axes: Axes) -> None:
    """The removal's signal comes after linger."""
    d = Diagram(axes, ["kernel", "monitor", "yours"])
    d.mark("kernel", 0.6, "OOM: a signal")
    d.mark("kernel", 1.6, "rmdir(2)", below=True)
    d.mark("kernel", 7.2, "the removal's signal, late")
    d.mark("monitor", 2.0, "reads 1: the removal's?", below=True, ha="left")
    d.span("monitor", 2.1, 5.2, "")
    d.mark("yours", 5.3, "Removed", below=True)
    d.mark("monitor", 7.3, "reads 1 more: so the first was an OOM", below=True)
    d.mark("yours", 7.5, "Oom(count=1, late=True)", below=True, ha="left")
    d.leads(("monitor", 5.2), ("yours", 5.3))
    d.leads(("kernel", 7.2), ("monitor", 7.3))
    d.leads(("monitor", 7.3), ("yours", 7.5))


def created(axes: Axes) -> None:
    """A cgroup in which something was killed before the tree had found it."""
    d = Diagram(axes, ["kernel", "counter", "monitor", "yours"])
    d.mark("kernel", 0.8, "mkdir(2)")
    d.mark("kernel", 2.4, "kills a task")
    d.mark("counter", 2.4, "oom_kill = 1")
    d.mark("monitor", 4.2, "fanotify or inotify says so;\nopens it by id: not there when the tree began", below=True)
    d.mark("yours", 4.4, "Created", ha="right", below=True)
    d.mark("yours", 4.6, "OomKill(count=1)", ha="left", below=True)
    d.leads(("kernel", 0.8), ("monitor", 4.1))
    d.leads(("counter", 2.4), ("monitor", 4.25))


def unattributed(axes: Axes) -> None:
    """A cgroup that came and went unseen: the host's own counter is left."""
    d = Diagram(axes, ["kernel", "host", "log", "monitor", "yours"])
    d.mark("kernel", 0.6, "mkdir(2)")
    d.mark("kernel", 1.6, "kills")
    d.mark("kernel", 2.4, "rmdir(2)", ha="left")
    d.mark("host", 1.6, "oom_kill + 1", ha="left")
    d.mark("log", 1.7, "Killed process …", ha="left")
    d.mark("monitor", 3.2, "reads all counters:\none kill is missing", below=True)
    d.span("monitor", 3.3, 6.6, "settle (0.5 s)")
    d.mark("monitor", 6.7, "reads them again:\nnobody's", below=True)
    d.mark("yours", 6.9, "Unattributed(count=1)", ha="left", below=True)
    d.leads(("log", 1.7), ("monitor", 3.15))


def v2(axes: Axes) -> None:
    """Version 2: news of a file, looks at it, and after a removal the counter above."""
    d = Diagram(axes, ["kernel", "counter", "above", "monitor", "yours"], 11)
    d.mark("kernel", 0.8, "OOM, kill")
    d.mark("counter", 0.8, "oom + 1, oom_kill + 1")
    d.mark("above", 0.8, "+ 1, + 1")
    d.mark("monitor", 1.6, "inotify: modified", below=True)
    d.looks([1.7, 1.85, 2.05, 2.4])
    d.mark("yours", 1.9, "Oom, OomKill", below=True)
    d.mark("kernel", 5.0, "once more")
    d.mark("above", 5.0, "+ 1, + 1")
    d.mark("kernel", 6.2, "rmdir(2)", ha="left")
    d.mark("counter", 5.0, "gone before it is read", ha="left")
    d.mark("monitor", 7.6, "gone. What has the counter above\nthat nobody below was told of?", below=True)
    d.mark("yours", 8.6, "Oom, OomKill, Removed", below=True)
    d.leads(("counter", 0.8), ("monitor", 1.55))
    d.leads(("kernel", 6.2), ("monitor", 7.5))
    d.leads(("monitor", 7.8), ("yours", 8.5))


def resolved(axes: Axes) -> None:
    """The OOM killer is off: tasks sleep until somebody helps."""
    d = Diagram(axes, ["kernel", "counter", "monitor", "yours"])
    d.mark("kernel", 1, "signals the OOM")
    d.span("kernel", 1.1, 6.2, "a task sleeps")
    d.mark("kernel", 6.2, "the limit is raised")
    d.mark("counter", 1, "under_oom 1")
    d.mark("counter", 6.2, "under_oom 0")
    d.looks([1.4, 1.8, 2.2, 2.8, 3.6, 4.6, 5.6, 6.6])
    d.span("monitor", 1.2, 6.6, "looks, each 10 ms at first and each 250 ms later")
    d.mark("yours", 1.2, "Oom")
    d.mark("yours", 6.7, "OomResolved(after=…)")
    d.leads(("kernel", 1), ("monitor", 1.2))


def usage(axes: Axes) -> None:
    """A threshold is crossed, to and fro, and left for good."""
    d = Diagram(axes, ["usage", "yours"])
    axes.set_ylim(-1.6, 2.3)
    times = [0, 1.5, 1.9, 3.2, 3.5, 3.8, 4.1, 4.4, 4.7, 6.2, 7.2, 7.7, 10]
    sizes = [0.1, 0.3, 1.25, 1.35, 1.12, 1.3, 1.13, 1.28, 1.12, 1.5, 1.15, 0.6, 0.4]
    axes.plot(times, sizes, color=KERNEL, lw=1.6)
    axes.plot([0, 10], [1.2, 1.2], color=INK, lw=1, ls="--")
    axes.text(10.1, 1.2, "threshold", color=INK, size=8.5, va="bottom", ha="right")
    axes.plot([0, 10], [1.02, 1.02], color=FAINT, lw=1, ls=":")
    axes.text(0.1, 0.98, "a 64th beneath it, at most 1 MiB", color=INK, size=8, va="top", ha="left")
    d.mark("yours", 1.95, "UsageCrossed(above=True)", below=True)
    d.mark("yours", 4.95, "(above=True, count=6),\nfor the whole interval", below=True)
    d.mark("yours", 7.55, "UsageCrossed(above=False)", below=True)


def pressure(axes: Axes) -> None:
    """Hundreds of signals a second are one event an interval."""
    d = Diagram(axes, ["kernel", "monitor", "yours"])
    bursts = [1 + 0.09 * step for step in range(34)]
    axes.plot(bursts, [0.0] * len(bursts), "|", color=KERNEL, ms=9)
    axes.plot([8.4], [0.0], "|", color=KERNEL, ms=9)
    axes.text(2.5, 0.2, "signals of reclaim", color=KERNEL, size=8.5, ha="center")
    d.span("monitor", 1, 3, "interval (1 s)")
    d.span("monitor", 3.05, 5.05, "interval")
    d.span("monitor", 5.1, 7.1, "silence")
    d.mark("yours", 1, "Pressure(count=1)", below=True)
    d.mark("yours", 3.02, "Pressure(count=22,\nrepeated=True)", below=True)
    d.mark("yours", 5.07, "Pressure(count=11,\nrepeated=True)", below=True)
    d.mark("yours", 8.4, "Pressure(count=1)", below=True)


def stall(axes: Axes) -> None:
    """At most one in a window."""
    d = Diagram(axes, ["kernel", "yours"])
    d.span("kernel", 1.0, 2.0, "")
    d.span("kernel", 2.4, 3.0, "")
    axes.text(2.0, 0.2, "tasks wait for memory", color=KERNEL, size=8.5, ha="center")
    for start in (0.0, 4.0, 8.0):
        axes.plot([start, start], [-0.35, 0.35], color=FAINT, lw=1)
    axes.text(6.0, -0.15, "window", color=INK, size=8, ha="center", va="top")
    axes.annotate("", (8, -0.1), (4, -0.1), arrowprops={"arrowstyle": "<->", "color": INK, "lw": 0.8})
    d.mark("yours", 2.7, "Stall(count=1), when their sum has reached `stall`", below=True)
    d.leads(("kernel", 2.7), ("yours", 2.7))


ALL: dict[str, tuple[Callable[[Axes], None], float]] = {
    "oom": (oom, 3.4),
    "removed": (removed, 2.4),
    "late": (late, 2.4),
    "created": (created, 2.8),
    "unattributed": (unattributed, 3.4),
    "v2": (v2, 3.4),
    "resolved": (resolved, 2.7),
    "usage": (usage, 2.7),
    "pressure": (pressure, 2.4),
    "stall": (stall, 1.7),
}


def main(names: list[str]) -> int:
    """The program."""
    # Text stays text, and two runs make the same file.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "memcg_oom", "font.family": ["sans-serif"]}
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in names or ALL:
        draw, height = ALL[name]
        figure, axes = plt.subplots(figsize=(9.2, height))
        draw(axes)
        figure.subplots_adjust(0, 0, 1, 1)
        figure.savefig(IMAGES / f"{name}.svg", transparent=True, metadata={"Date": None, "Title": draw.__doc__})
        plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
