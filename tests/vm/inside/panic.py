"""Has the kernel panic because a cgroup ran out of memory, and watches. See tests/vm/test_host_ooms.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from memcg_oom import CgroupEvent, Monitor, OomKill

ROOT = Path("/sys/fs/cgroup/memory")
FIRST, LAST = ROOT / "first", ROOT / "last"
ROOM = 8 << 20  # bytes
# Each has a line in the report that the kernel writes on the console between its signal and the panic.
BYSTANDERS = 500


def fill(cgroup: Path) -> None:
    usage = int((cgroup / "memory.usage_in_bytes").read_text())
    (cgroup / "memory.limit_in_bytes").write_text(str(usage + ROOM))
    os.posix_spawn("/hog", ["/hog", os.fspath(cgroup), str(4 * ROOM), "1", "1000"], os.environ)


for cgroup in (FIRST, LAST):
    cgroup.mkdir()
(LAST / "cgroup.procs").write_text("0")
for _ in range(BYSTANDERS):
    if os.fork() == 0:
        signal.pause()
(ROOT / "cgroup.procs").write_text("0")  # out of it again: the watcher asks for no memory there

with Monitor() as monitor:
    monitor.watch_many([FIRST, LAST])
    fill(FIRST)
    for event in monitor:
        assert isinstance(event, CgroupEvent)
        # Into the kernel's own log: there it stands in order with the panic, and whole.
        Path("/dev/kmsg").write_text(f"<2>told: {type(event).__name__} of {event.cgroup}\n")
        if type(event) is OomKill and event.cgroup == str(FIRST):
            # The watcher has been through it once, as it would have been on a host that is up for a while.
            Path("/proc/sys/vm/panic_on_oom").write_text("2")
            Path("/proc/sys/kernel/printk").write_text("8")  # all of the report on the console
            fill(LAST)
