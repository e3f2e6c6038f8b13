"""Nothing stays behind of any public call, on cgroups made of plain files; and there is no call that is not tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memcg_oom import Monitor
from tests.fake.fake_kernel import FakeKernel
from tests.leaks import GROUPS, Group, Scene, close_all, leak, public_calls


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    kernel = FakeKernel(tmp_path, monkeypatch, version=request.param)
    yield Scene(str(kernel.make().path), request.param, tmp_path)
    close_all()
    kernel.close()


def test_every_public_call_is_tried() -> None:
    tried = [name for group in GROUPS for name in group.names]
    assert sorted(tried) == sorted(public_calls())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.prepare.__name__)
def test_nothing_stays_behind(scene: Scene, group: Group) -> None:
    if group.version not in (None, scene.version):
        pytest.skip(f"only cgroup v{group.version} has these")
    if group.real:
        pytest.skip("plain files do not answer to what is written")
    assert leak(group.prepare(scene)) == []


def test_a_leak_is_found(scene: Scene) -> None:
    kept: list[object] = []
    assert leak(lambda: kept.append(bytearray(1)))
    with Monitor() as monitor:
        assert leak(lambda: monitor.watch(scene.path))
