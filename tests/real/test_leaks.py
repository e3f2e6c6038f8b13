"""Nothing stays behind of any public call, on real cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import GROUPS, Group, Scene, close_all, leak
from tests.support import is_v2


@pytest.fixture
def scene(memcg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr("memcg_oom.v1.LATE", 0)  # or what is gone is kept for seconds, as long as all of it takes here
    yield Scene(str(memcg), 2 if is_v2(memcg) else 1, tmp_path)
    close_all()


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.prepare.__name__)
def test_nothing_stays_behind(scene: Scene, group: Group) -> None:
    if group.version not in (None, scene.version):
        pytest.skip(f"only cgroup v{group.version} has these")
    assert leak(group.prepare(scene)) == []
