"""The DaemonSet's container, run by podman with its user, capabilities, mounts and file system, and nothing more."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import memcg_oom
from tests.real import containers
from tests.real.test_export import numbers, scrape
from tests.support import eventually, make, run_hog

MANIFEST = Path(__file__).parents[2] / "deploy" / "kubernetes" / "memcg-oom.yaml"
# What is in the image, here from the host: the interpreter, the package and what they need.
IMAGE = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
PORT = "19754"


class Pod(containers.Podman):
    """What Kubernetes would have a runtime make of the manifest."""

    port = 0

    def create(self) -> None:
        yaml = pytest.importorskip("yaml", reason="the manifest is read with PyYAML")
        (daemon_set,) = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "DaemonSet"]
        pod = daemon_set["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert not {"hostPID", "hostIPC", "hostNetwork"} & pod.keys(), "not made of it here"
        self.prepare()
        arguments = [argument.replace(PORT, str(self.port)) for argument in container["args"]]
        self._run(
            *self._command("create", "--rootfs", "--name", self.id, "--cgroup-parent", f"/{self.within}"),
            *("--network", "host", "--no-hosts", "--log-driver", "none"),  # to be reached at all
            *("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:2000"),
            *restrictions(container["securityContext"]),
            *(f"--volume={path}:{path}:ro" for path in image()),
            *(f"--volume={mount}" for mount in self.mounts(pod, container)),
            *(self._rootfs, sys.executable, "-m", "memcg_oom", *arguments),
        )
        self._run(*self._command("init", self.id))
        self.cgroup = self._parent / f"libpod-{self._inspect()['Id']}"

    def mounts(self, pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
        sources = {volume["name"]: volume["hostPath"] for volume in pod["volumes"]}
        for mount in container["volumeMounts"]:
            source = sources[mount["name"]]["path"]
            if sources[mount["name"]]["type"] == "DirectoryOrCreate" and not os.path.isdir(source):
                source = self._folder / mount["name"]
                source.mkdir()
            yield f"{source}:{mount['mountPath']}:{'ro' if mount['readOnly'] else 'rw'}"


def restrictions(context: dict[str, Any]) -> Iterator[str]:
    """A securityContext in podman's words; each member of it has to be known here."""
    assert context.pop("privileged") is False
    assert context.pop("seccompProfile") == {"type": "RuntimeDefault"}  # which podman has without being asked
    yield f"--user={context.pop('runAsUser')}"
    yield f"--read-only={str(context.pop('readOnlyRootFilesystem')).lower()}"
    if not context.pop("allowPrivilegeEscalation"):
        yield "--security-opt=no-new-privileges"
    capabilities = context.pop("capabilities")
    yield from (f"--cap-drop={name}" for name in capabilities["drop"])
    yield from (f"--cap-add={name}" for name in capabilities["add"])
    assert not context


def image() -> set[str]:
    """Of the host: what the interpreter, the package and its extra are in."""
    there = {path for path in IMAGE if os.path.exists(path)}
    there |= {os.path.realpath(sys.base_prefix), sys.prefix, os.path.dirname(memcg_oom.__file__)}
    return {path for path in there if not any(path != other and path.startswith(f"{other}/") for other in there)}


def test_the_daemon_set_counts_kills(memcg: Path, hog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why_not = containers.missing("podman")
    if why_not:
        pytest.skip(why_not)
    pytest.importorskip("prometheus_client", reason="metrics need prometheus_client")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(Pod, "port", probe.getsockname()[1])
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    cgroup = make(memcg / "web", "4M")
    with containers.made(Pod, rootfs, memcg) as pod:
        pod.start()

        def text() -> str:
            with suppress(OSError):  # not yet
                return scrape(f"http://127.0.0.1:{Pod.port}/metrics")
            return ""

        def of(metric: str) -> int:
            return numbers(text(), metric)[str(cgroup)]

        eventually(lambda: f'memcg_events_oom_kill_total{{cgroup="{cgroup}"' in text())
        run_hog(hog, cgroup)
        eventually(lambda: of("memcg_events_oom_kill_total") == 1)
        # Also on v1, where they are had by writing: that hierarchy is a mount of its own.
        eventually(lambda: of("memcg_events_oom_total") >= 1)
        assert "/dev/kmsg" in text()  # in memcg_degraded: not to be had without being privileged
