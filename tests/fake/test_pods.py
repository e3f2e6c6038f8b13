"""The names of pods, from a folder like the kubelet's: what is found, what is forgotten, how seldom it is listed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import memcg_oom.pods
from memcg_oom.pods import KEPT, SETTLED_NS, PodName, PodNames

UID = "2ca4a155-3599-498d-bb9d-4446693fa3ea"
OTHER = "dc430cd3-34b7-4ea6-be26-ddfd88d7ddff"
STATIC = "6576683a93d91d8e2119df2c2755f2f1"
WEB = PodName(namespace="shop", name="web-7f9c-x2x4q")


class Listings:
    """Counts how often the folder is listed, and has it listed in the order of the names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None
        scandir = os.scandir

        @contextlib.contextmanager
        def counted(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
            self.count += 1
            self.before()
            with scandir(path) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
            self.after()
            yield iter(names)

        monkeypatch.setattr(os, "scandir", counted)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> Listings:
    return Listings(monkeypatch)


def settle(folder: Path, ago_ns: int = 2 * SETTLED_NS) -> None:
    """Sets the folder's mtime back, so that it has not changed for a while."""
    when = time.time_ns() - ago_ns
    os.utime(folder, ns=(when, when))


def test_found_by_uid(tmp_path: Path) -> None:
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    (tmp_path / f"kube-system_static-web-minikube_{STATIC}").mkdir()
    (tmp_path / f"a_name.with.dots_{OTHER}").mkdir()
    names = PodNames(str(tmp_path))
    assert names.find(UID) == WEB
    assert names.find(STATIC) == PodName(namespace="kube-system", name="static-web-minikube")
    assert names.find(OTHER) == PodName(namespace="a", name="name.with.dots")
    assert names.find("a-pod-that-is-not-there") is None


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "pods"
    names = PodNames(str(folder))
    assert names.find(UID) is None
    folder.mkdir()
    (folder / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    assert names.find(UID) == WEB


def test_a_file_in_its_place_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "pods").touch()
    assert PodNames(str(tmp_path / "pods")).find(UID) is None


def test_a_folder_that_may_not_be_read_is_read_when_it_may(tmp_path: Path, listings: Listings) -> None:
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    settle(tmp_path)
    names = PodNames(str(tmp_path))

    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    listings.before = refuse
    assert names.find(UID) is None
    # A change of its mode alone does not change its mtime.
    listings.before = lambda: None
    assert names.find(UID) == WEB


def test_what_is_known_is_not_listed_again(tmp_path: Path, listings: Listings) -> None:
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    names = PodNames(str(tmp_path))
    for _ in range(100):
        assert names.find(UID) == WEB
    assert listings.count == 1


def test_what_is_unknown_is_listed_only_after_a_change(tmp_path: Path, listings: Listings) -> None:
    settle(tmp_path)
    names = PodNames(str(tmp_path))
    for _ in range(100):
        assert names.find(UID) is None
    assert listings.count == 1
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    settle(tmp_path, 2 * SETTLED_NS - 1_000_000)
    assert names.find(UID) == WEB
    assert listings.count == 2
    assert names.find(OTHER) is None
    assert listings.count == 2


def test_a_change_within_the_same_tick_is_not_missed(tmp_path: Path) -> None:
    names = PodNames(str(tmp_path))
    tick = time.time_ns()
    os.utime(tmp_path, ns=(tick, tick))
    assert names.find(UID) is None
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    os.utime(tmp_path, ns=(tick, tick))
    assert names.find(UID) == WEB


def test_a_folder_that_settles_is_listed_once_more(tmp_path: Path, listings: Listings) -> None:
    names = PodNames(str(tmp_path))
    assert names.find(UID) is None
    assert names.find(UID) is None
    assert listings.count == 2
    settle(tmp_path)
    for _ in range(10):
        assert names.find(UID) is None
    assert listings.count == 3


def test_an_mtime_in_the_future_is_not_trusted(tmp_path: Path) -> None:
    names = PodNames(str(tmp_path))
    settle(tmp_path, -3_600_000_000_000)
    when = tmp_path.stat().st_mtime_ns
    assert names.find(UID) is None
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    os.utime(tmp_path, ns=(when, when))
    assert names.find(UID) == WEB


def test_a_change_while_it_is_listed_is_found_the_next_time(tmp_path: Path, listings: Listings) -> None:
    settle(tmp_path)
    names = PodNames(str(tmp_path))

    def change() -> None:
        (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
        settle(tmp_path, 2 * SETTLED_NS - 1_000_000)  # reading has taken long

    listings.after = change
    assert names.find(UID) is None
    listings.after = lambda: None
    assert names.find(UID) == WEB


def test_another_folder_in_its_place_is_listed(tmp_path: Path) -> None:
    old, new = tmp_path / "pods", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (new / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    when = time.time_ns() - 2 * SETTLED_NS
    for folder in (old, new):
        os.utime(folder, ns=(when, when))
    names = PodNames(str(old))
    assert names.find(UID) is None
    old.rename(tmp_path / "old")
    new.rename(old)
    assert names.find(UID) == WEB


def test_a_pod_that_is_gone_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").mkdir()
    names = PodNames(str(tmp_path))
    assert names.find(UID) == WEB
    (tmp_path / f"shop_web-7f9c-x2x4q_{UID}").rmdir()
    (tmp_path / f"a_b_{OTHER}").mkdir()
    assert names.find(OTHER) is not None
    assert names.find(UID) == WEB


@pytest.mark.usefixtures("listings")
def test_the_names_kept_are_bounded_and_those_gone_longest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memcg_oom.pods, "KEPT", 4)
    names = PodNames(str(tmp_path))
    stays = tmp_path / f"shop_web-7f9c-x2x4q_{UID}"
    stays.mkdir()
    assert names.find(UID) == WEB
    for number in range(10):
        folder = tmp_path / f"z_b_{number}"  # listed last, so that nothing after it makes up for what it drives out
        folder.mkdir()
        assert names.find(str(number)) is not None
        folder.rmdir()
        assert UID in names._known
    stays.rmdir()
    names.find("unknown")
    assert [names.find(str(number)) is not None for number in range(10)] == [False] * 7 + [True] * 3
    assert names.find(UID) == WEB


def test_what_is_kept_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    for number in range(KEPT + 300):
        (tmp_path / f"a_b_{number}").touch()
    names = PodNames(str(tmp_path))
    names.find("unknown")
    assert len(names._known) == KEPT


HOSTILE = [
    UID,  # as the kubelet called it up to 1.13
    f"_{UID}",
    f"__{UID}",
    f"shop__{UID}",
    f"_web_{UID}",
    "shop_web_",
    "shop_web",
    f"Shop_web_{UID}",
    f"shop_we b_{UID}",
    f"shop_web\n_{UID}",
    f"shop_\x1b[31mweb_{UID}",
    f"sh\udcffop_web_{UID}",
    f"shöp_web_{UID}",
    "_" * 255,
    "a" * 255,
    "\udcff",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_other_names_are_nobodys(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / f"a_b_{OTHER}").mkdir()
    names = PodNames(str(tmp_path))
    assert names.find(UID) is None
    assert names.find("") is None
    assert names.find(OTHER) == PodName(namespace="a", name="b")


@pytest.mark.parametrize("uid", ["", "\0", "/", "../..", "\udcff", "a" * 100_000])
def test_hostile_uid_is_unknown(tmp_path: Path, uid: str) -> None:
    assert PodNames(str(tmp_path)).find(uid) is None


def test_pod_name_is_an_immutable_value() -> None:
    assert PodName(namespace="shop", name="web-7f9c-x2x4q") == WEB
    assert hash(PodName(namespace="shop", name="web-7f9c-x2x4q")) == hash(WEB)
    assert PodName(namespace="web-7f9c-x2x4q", name="shop") != WEB
    assert repr(WEB) == "PodName(namespace='shop', name='web-7f9c-x2x4q')"
    with pytest.raises(AttributeError, match="immutable"):
        WEB.name = "db"
    assert not hasattr(WEB, "__dict__")
