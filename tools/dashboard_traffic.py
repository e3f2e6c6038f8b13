"""Traffic for the dashboard: cgroups that come, run out of memory and go, an exporter, and a Prometheus.

Everything is real but the names: the kernel kills, in cgroups that are called as those of a Kubernetes node are. They
are all in one cgroup of its own. Prometheus takes that out of their paths, and leaves out the cgroups of others; in the
totals those are, so it is for a host on which nothing else comes, goes or runs out of memory (or see --apart). The
exporter runs in a mount namespace of its own, with the kubelet's folder of logs, which the names of pods come from, and
without /dev/kmsg; and once it gets no processor for a moment: so that there is something to see of that too.

Root, cgroup v1, Debian's prometheus. --picture draws what came of it (tools/draw_dashboard.py); --stay leaves
Prometheus running, to look at or to draw from.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from memcg_oom.mounts import memory_mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRAPE = 2  # seconds
QUIET = 20.0  # seconds without trouble in the beginning and in the end, so that it can be told from trouble
LIMIT = "4M"
EATER = ["tail", "/dev/zero"]

CONFIG = """\
global: {{scrape_interval: {scrape}s, evaluation_interval: {scrape}s}}
scrape_configs:
  - job_name: memcg-oom
    static_configs: [{{targets: ['{target}'], labels: {{instance: node-1}}}}]
    metric_relabel_configs:
      - {{source_labels: [cgroup], regex: '|[(]overflow[)]|{mount}|{top}/.*', action: keep}}
      - {{source_labels: [cgroup], regex: '{top}(/.*)', target_label: cgroup, replacement: '{mount}$1'}}
"""


class Scenario:
    """What happens in the cgroups, each part of it in a thread of its own, until it is ended.

    Args:
        top: the cgroup that all of it is in.
        logs: the kubelet's folder.
        exporter: the process id.
    """

    def __init__(self, top: Path, logs: Path, exporter: int) -> None:
        self._top = top
        self._logs = logs
        self._exporter = exporter
        self._ending = threading.Event()
        self._dice = random.Random(1)  # noqa: S311 -- the same traffic each time, no secret
        self._failed: list[BaseException] = []

    def run(self, seconds: float) -> None:
        """All parts at once.

        Raises:
            RuntimeError: one of them has failed.
        """
        self._quiet_ones()
        threads = [
            threading.Thread(target=self._part, args=(part,))
            for part in (self._crash_loop, self._jobs, self._leak, self._shared_limit, self._burst, self._no_killer)
        ]
        threads.append(threading.Thread(target=self._part, args=(lambda: self._unseen(seconds / 2),)))
        time.sleep(QUIET)
        for thread in threads:
            thread.start()
        try:
            self._ending.wait(seconds - 2 * QUIET)
        finally:
            self._ending.set()
            for thread in threads:
                thread.join()
        if self._failed:
            raise RuntimeError("a part of the traffic has failed") from self._failed[0]
        time.sleep(QUIET)

    def _part(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:
            self._failed.append(error)
            self._ending.set()

    def _later(self, shortest: float, longest: float) -> bool:
        """Waits for a while; whether it goes on after that."""
        return not self._ending.wait(self._dice.uniform(shortest, longest))

    # -- the parts

    def _quiet_ones(self) -> None:
        """What stands on a node and has no trouble."""
        for unit in (
            "ssh.service",
            "cron.service",
            "containerd.service",
            "kubelet.service",
            "systemd-journald.service",
        ):
            self._make(f"system.slice/{unit}")
        for name in ("coredns-5d78c9869d-x2n4q", "kube-proxy-8k2lm", "node-exporter-vq7ws"):
            self._container(self._pod("kube-system", name, "burstable"))
        for _ in range(3):
            self._container(self._pod("shop", f"catalog-6f7b9d{self._hex(4)}-{self._hex(5)}", "burstable"))

    def _crash_loop(self) -> None:
        """A container that is started anew in its pod, and runs out of memory anew."""
        pod = self._pod("shop", "checkout-7c9d8b6f4-kq2xv", "burstable")
        while self._later(8, 18):
            container = self._container(pod, LIMIT)
            self._kill_in(container)
            self._later(1, 3)
            _remove(container)

    def _jobs(self) -> None:
        """Pods that come, lose a task, and go with it."""
        number = 27_041_220
        while self._later(10, 25):
            pod = self._pod("batch", f"report-{number}-{self._hex(5)}", "besteffort")
            container = self._container(pod, LIMIT)
            self._later(3, 8)
            if self._dice.random() < 0.7:
                self._kill_in(container)
            self._later(1, 3)
            _remove(container)
            _remove(pod)
            number += 15

    def _leak(self) -> None:
        """A service whose workers are killed ever more often, until it is restarted."""
        service = self._make("system.slice/image-resizer.service", LIMIT)
        pause = 25.0
        while self._later(pause, pause * 1.2):
            self._kill_in(service)
            pause = pause * 0.8 if pause > 4 else 60.0

    def _shared_limit(self) -> None:
        """A pod that hits its own limit: every container in it is notified, and one loses a task."""
        pod = self._pod("shop", "search-0", "", LIMIT)
        containers = [self._container(pod) for _ in range(3)]
        while self._later(25, 45):
            self._kill_in(self._dice.choice(containers[:2]))

    def _burst(self) -> None:
        """A container of Docker's that loses many tasks at once; and what somebody made by hand."""
        container = self._make(f"system.slice/docker-{self._hex(64)}.scope", LIMIT)
        while self._later(50, 70):
            self._kill_in(container, 8)
            self._kill_in(self._top / "backup" / "nightly")

    def _no_killer(self) -> None:
        """A virtual machine whose OOM killer is off: it runs out of memory, and nobody dies."""
        machine = self._make(r"machine.slice/machine-qemu\x2d3\x2dbuild.scope", LIMIT)
        _put(machine / "memory.oom_control", "1")
        while self._later(40, 60):
            with self._started(machine, 1):
                self._later(4, 6)

    def _unseen(self, after: float) -> None:
        """Cgroups that come and go while the exporter gets no processor."""
        if self._ending.wait(after - QUIET):
            return
        os.kill(self._exporter, signal.SIGSTOP)
        try:
            for _ in range(3):
                container = self._make(f"system.slice/docker-{self._hex(64)}.scope", LIMIT)
                self._kill_in(container)
                _remove(container)
        finally:
            os.kill(self._exporter, signal.SIGCONT)

    # -- what they are made of

    def _make(self, path: str, limit: str | None = None) -> Path:
        cgroup = self._top / path
        cgroup.mkdir(parents=True, exist_ok=True)
        if limit is not None:
            _put(cgroup / "memory.limit_in_bytes", limit)
        return cgroup

    def _pod(self, namespace: str, name: str, qos: str, limit: str | None = None) -> Path:
        """A pod's cgroup, and its folder of logs; an empty class is the one that has no slice of its own."""
        uid = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        (self._logs / f"{namespace}_{name}_{uid}").mkdir()
        slices = f"kubepods.slice/kubepods-{qos}.slice/kubepods-{qos}" if qos else "kubepods.slice/kubepods"
        return self._make(f"{slices}-pod{uid.replace('-', '_')}.slice", limit)

    def _container(self, pod: Path, limit: str | None = None) -> Path:
        return self._make(f"{pod.relative_to(self._top)}/cri-containerd-{self._hex(64)}.scope", limit)

    def _hex(self, digits: int) -> str:
        return f"{self._dice.getrandbits(4 * digits):0{digits}x}"

    def _kill_in(self, cgroup: Path, tasks: int = 1) -> None:
        """Has so many tasks killed for want of memory."""
        if not cgroup.exists():
            self._make(str(cgroup.relative_to(self._top)), LIMIT)
        with self._started(cgroup, tasks) as eaters:
            for eater in eaters:
                eater.wait()

    @contextlib.contextmanager
    def _started(self, cgroup: Path, tasks: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        enter = f"echo $$ > {shlex.quote(os.fspath(cgroup))}/cgroup.procs; exec {shlex.join(EATER)}"
        command = ["sh", "-c", enter]
        eaters = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(tasks)]
        try:
            yield eaters
        finally:
            for eater in eaters:
                eater.kill()
                eater.wait()


def _put(file: Path, text: str) -> None:
    """One write(2), as control files want it."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _remove(cgroup: Path) -> None:
    """A cgroup whose last process was reaped may be busy for a moment."""
    deadline = time.monotonic() + 10
    while True:
        try:
            cgroup.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """The cgroup that all is in; removed with what is in it."""
    mount = memory_mount()
    if mount is None or not (Path(mount.point) / "cgroup.event_control").exists():
        raise SystemExit("there is no memory hierarchy of cgroup v1 here")
    top = Path(mount.point) / f"memcg_oom_dashboard_{os.getpid()}"
    top.mkdir()
    try:
        yield top
    finally:
        for folder, _, _ in os.walk(top, topdown=False):
            _remove(Path(folder))


@contextlib.contextmanager
def exporter(logs: Path, trees: list[Path]) -> Iterator[tuple[int, str]]:
    """memcg-oom export of some trees, without any of all; its process id, and the address that it listens at."""
    inside = " && ".join(
        [
            "mount -t tmpfs none /dev",
            "mount -t tmpfs none /var/log",
            "mkdir /var/log/pods",
            f"mount --bind {shlex.quote(os.fspath(logs))} /var/log/pods",
            'exec "$@"',
        ]
    )
    command = [
        *("unshare", "--mount", "sh", "-c", inside, "sh"),
        *(sys.executable, "-m", "memcg_oom", "export", "--listen", "127.0.0.1:0", *map(str, trees)),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://(\S+)/metrics", line):
                # What else it says goes where this program's own goes.
                threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
                yield process.pid, found[1]
                if process.poll() is not None:
                    raise SystemExit("the exporter has ended in the midst of it")
                break
        else:
            raise SystemExit("the exporter has ended: " + "".join(said))
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def prometheus(folder: Path, target: str, top: Path) -> Iterator[str]:
    """A server on loopback that scrapes the target; its address."""
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(scrape=SCRAPE, target=target, top=top, mount=top.parent))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Makes it."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--minutes", type=float, default=6.0, help="how long (default: %(default)s)")
    options.add_argument(
        "--apart", action="store_true", help="export these cgroups alone: nothing is unattributed then"
    )
    options.add_argument("--picture", metavar="FILE", help="draw the dashboard in the end")
    options.add_argument("--stay", action="store_true", help="leave Prometheus running until Ctrl-C")
    args = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="memcg_oom_dashboard_") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        logs = folder / "pods"
        logs.mkdir()
        with scratch() as top, exporter(logs, [top] * args.apart) as (pid, target):
            server = running.enter_context(prometheus(folder, target, top))
            begun = time.time()
            print(f"Prometheus is at {server}; traffic for {args.minutes:g} minutes", flush=True)
            Scenario(top, logs, pid).run(args.minutes * 60)
            ended = time.time()
        shown = ["--end", f"{ended:.0f}", "--range", f"{ended - begun:.0f}", "--scrape", str(SCRAPE)]
        drawing = [sys.executable, os.fspath(Path(__file__).with_name("draw_dashboard.py")), *shown, server]
        if args.picture:
            subprocess.run([*drawing, args.picture], check=True)
        if args.stay:
            print(f"draw it with: {shlex.join([*drawing, 'FILE'])}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


if __name__ == "__main__":
    main()
