"""A cgroup of one's own for a while: where it may be made, with swap kept out, and taken away whatever happens."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager

from memcg_oom.cgroup import Cgroup
from memcg_oom.command.errors import Unavailable, required_mount
from memcg_oom.mounts import memory_cgroup_of, own_systemd_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEMD = "/run/systemd/system"  # see sd_booted(3)
SYSTEMD_HIERARCHY = "/sys/fs/cgroup/systemd"

# Killed tasks that hold much memory take a while to exit.
_REMOVAL = 30.0


@contextmanager
def scratch(purpose: str, limit: int | None, parent: str | None) -> Iterator[Cgroup]:
    """Makes a cgroup, and at the end kills what is left in it and removes it.

    Args:
        purpose: for its name.
        limit: in bytes, with swap kept out: a hog must be able to run out.
        parent: the cgroup to make it below; None for where it is allowed.

    Raises:
        Unavailable: there is no v1 memory hierarchy, or no right to make a cgroup in it.
    """
    path = os.path.join(parent or _place(), f"memcg-oom-{purpose}-{os.getpid()}")
    try:
        cgroup = Cgroup.create(path)
    except PermissionError:
        raise Unavailable(f"making a memory cgroup in {os.path.dirname(path)} is not permitted: become root") from None
    except OSError as error:
        if error.errno == errno.EROFS:
            raise Unavailable(f"{os.path.dirname(path)} is mounted read-only: no cgroup can be made") from None
        raise
    try:
        if limit is not None:
            _limit(cgroup, limit)
        yield cgroup
    finally:
        _remove(cgroup)


def _place() -> str:
    """Below our own cgroup where systemd has handed that over, else at the top of what is mounted."""
    mount = required_mount()
    if not os.path.isdir(SYSTEMD):
        return mount.point
    if not _delegated():
        raise Unavailable(
            "systemd owns the cgroups here: put `systemd-run --scope -p Delegate=yes` before the command, "
            "or name a delegated cgroup with --parent"
        )
    return memory_cgroup_of()


def _delegated() -> bool:
    """Whether the unit that we run in was started with Delegate=: systemd notes that on its own hierarchy."""
    own = own_systemd_cgroup()
    # The first is written for root, the second, from systemd 251 on, for everybody to read.
    return own is not None and any(
        _attribute(SYSTEMD_HIERARCHY + own, name) == b"1" for name in ("trusted.delegate", "user.delegate")
    )


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError:  # ENODATA: not set; ENOTSUP, EPERM: then nobody can tell, and it counts as not delegated
        return b""


def _limit(cgroup: Cgroup, limit: int) -> None:
    cgroup.limit = limit
    with_swap = os.path.join(cgroup.path, "memory.memsw.limit_in_bytes")
    if os.path.exists(with_swap):
        _write(with_swap, limit)
    else:  # a kernel without swap accounting still keeps a cgroup of swappiness 0 out of swap
        _write(os.path.join(cgroup.path, "memory.swappiness"), 0)


def _write(path: str, value: int) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(str(value))


def _remove(cgroup: Cgroup) -> None:
    """Kills and removes, with everything that was made below; EBUSY until the last task has exited."""
    deadline = time.monotonic() + _REMOVAL
    while cgroup.exists():
        for child in cgroup.children():
            _remove(child)
        cgroup.kill()
        try:
            cgroup.remove()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
