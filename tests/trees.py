"""What the tests of trees have in common: what the file system has, what a tree has, and what was told of either."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from memcg_oom import AnyWatch, Created, Event, Monitor, Removed, TreeWatch, Watch
from tests.support import Ledger, make, remove, run_hog, take_until

CATCH_UP = 5.0  # seconds that a tree may take to find what there is; no test is decided by them


def standing(root: Path) -> dict[int, str]:
    """What the file system has: the path of each cgroup at and below the root, by its id."""
    return {os.stat(directory).st_ino: directory for directory, _, _ in os.walk(os.fspath(root))}


def held(tree: TreeWatch) -> dict[int, str]:
    """What the tree has; none of it twice."""
    watches = list(tree)
    found = {watch._place.directory_id: watch.cgroup for watch in watches}
    assert len(found) == len(watches), "a cgroup that is watched twice"
    return found


def holds(tree: TreeWatch, path: Path) -> bool:
    """Whether the cgroup with that path, and all in it, is held; others may be just going."""
    return standing(path).items() <= held(tree).items()


def of(tree: TreeWatch, path: Path) -> Watch:
    """The watch of the cgroup that has this path."""
    watch = tree.member(path.stat().st_ino)
    assert watch is not None, f"{path} is not watched"
    return watch


def catch_up(monitor: Monitor, tree: TreeWatch, root: Path, ledger: Ledger | None = None) -> Ledger:
    """Takes events until the tree has what the file system has: a rename brings none, but is taken note of."""
    ledger = Ledger() if ledger is None else ledger
    deadline = time.monotonic() + CATCH_UP
    while held(tree) != standing(root) and time.monotonic() < deadline:
        ledger.add(monitor.wait(0.01))
    assert held(tree) == standing(root)
    return ledger


def take_until_let_go(monitor: Monitor, tree: TreeWatch, left: list[Path], ledger: Ledger) -> None:
    """Takes events until the tree keeps nothing of any other."""
    wanted = sorted(map(os.fspath, left))
    deadline = time.monotonic() + CATCH_UP
    while len(tree._members) != len(wanted) and time.monotonic() < deadline:
        ledger.add(monitor.wait(0.05))
    assert sorted(watch.cgroup for watch in tree._members.values()) == wanted


def kinds(ledger: Ledger, watch: AnyWatch) -> list[type[Event]]:
    return [type(event) for event in ledger.by_watch[watch]]


def created(ledger: Ledger) -> list[str]:
    """The paths of all Created, sorted."""
    return sorted(event.cgroup for told in ledger.by_watch.values() for event in told if type(event) is Created)


def assert_well_told(ledger: Ledger, *, old: Collection[Watch] = ()) -> None:
    """Of each watch Created is the first event and comes once, unless it is an old one's; Removed is the last."""
    for watch, told in ledger.by_watch.items():
        types = [type(event) for event in told]
        assert types.count(Created) == (watch not in old), told
        assert watch in old or types[0] is Created, told
        assert types.count(Removed) <= 1, told
        assert Removed not in types or types[-1] is Removed or getattr(told[-1], "late", False), told


def assert_totals(tree: TreeWatch, ledger: Ledger) -> None:
    assert (tree.ooms, tree.kills) == (ledger.ooms.total(), ledger.kills.total())


def assert_works(monitor: Monitor, trees: list[TreeWatch], parent: Path, hog: str) -> None:
    """A birth, a kill, a rename, a birth in it and the removals: each of the trees is told of all of it."""
    path = make(parent / "probe", "1M")
    ledger = Ledger()
    take_until(monitor, lambda _: all(holds(tree, path) for tree in trees), ledger)
    watches = [of(tree, path) for tree in trees]
    run_hog(hog, path)
    take_until(monitor, lambda ledger: all(ledger.kills[watch] for watch in watches), ledger)
    path = path.rename(parent / "moved")
    inner = make(path / "inner")
    take_until(monitor, lambda _: all(holds(tree, path) for tree in trees), ledger)
    watches += [of(tree, inner) for tree in trees]
    remove(inner)
    remove(path)
    take_until(monitor, lambda ledger: all(ledger.removals[watch] for watch in watches), ledger)
    assert_well_told(ledger)
    assert set(ledger.by_watch) == set(watches)
    assert sorted(ledger.kills[watch] for watch in watches) == [0] * len(trees) + [1] * len(trees)


def followed() -> list[int]:
    """How many directories each inotify instance of this process follows."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":
                found.append(Path(f"/proc/self/fdinfo/{name}").read_text().count("inotify wd:"))
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
