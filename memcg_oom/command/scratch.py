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

    from memcg_oom.mounts import Mount

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
        Unavailable: there is no memory hierarchy, or no right to make a cgroup in it.
    """
    with _room(parent) as place:
        path = os.path.join(place, f"memcg-oom-{purpose}-{os.getpid()}")
        try:
            cgroup = Cgroup.create(path)
        except PermissionError:
            raise Unavailable(f"making a memory cgroup in {place} is not permitted: become root") from None
        except OSError as error:
            if error.errno == errno.EROFS:
                raise Unavailable(f"{place} is mounted read-only: no cgroup can be made") from None
            raise
        try:
            if limit is not None:
                _limit(cgroup, limit)
            yield cgroup
        finally:
            _remove(cgroup)


@contextmanager
def _room(parent: str | None) -> Iterator[str]:
    """Where it can be made: a named place, the top of what is mounted, or our own cgroup if systemd handed it over."""
    if parent is not None or not os.path.isdir(SYSTEMD):
        yield parent or required_mount().point
        return
    mount = required_mount()
    if not _delegated(mount):
        user = "" if os.geteuid() == 0 else " --user"
        raise Unavailable(
            f"systemd owns the cgroups here: put `systemd-run{user} --scope -p Delegate=yes` before the command, "
            "or name a delegated cgroup with --parent"
        )
    if mount.version == 1:
        yield memory_cgroup_of()
        return
    own = Cgroup.of_pid()
    with _step_aside(own):
        yield own.path


@contextmanager
def _step_aside(own: Cgroup) -> Iterator[None]:
    """Puts this process into a child of its cgroup, since v2 controls no children of one that has processes.

    Raises:
        Unavailable: there are other processes in it, which are not ours to move.
    """
    if set(own.pids()) != {os.getpid()}:
        raise Unavailable(
            f"there are other processes in {own.path}, so that no memory cgroup can be made in it: run this in a scope "
            "of its own, or name an empty delegated cgroup with --parent"
        )
    aside = os.path.join(own.path, f"memcg-oom-self-{os.getpid()}")
    os.mkdir(aside)
    try:
        _write(os.path.join(aside, "cgroup.procs"), "0")
        try:
            yield
        finally:
            switch = os.path.join(own.path, "cgroup.subtree_control")
            if "memory" in _read(switch).split():
                _write(switch, "-memory")
            _write(os.path.join(own.path, "cgroup.procs"), "0")
    finally:
        os.rmdir(aside)


def _delegated(mount: Mount) -> bool:
    """Whether the unit that we run in was started with Delegate=: systemd notes that on the cgroup, on v1 its own."""
    if mount.version == 2:
        own: str | None = memory_cgroup_of()
    else:
        name = own_systemd_cgroup()
        own = None if name is None else SYSTEMD_HIERARCHY + name
    if own is None:
        return False
    # A user's own manager hands cgroups over to that user; the marks are written for root (trusted), and from systemd
    # 251 on for everybody to read (user).
    is_own = os.geteuid() != 0 and os.path.exists(own) and os.stat(own).st_uid == os.geteuid()
    return is_own or any(_attribute(own, name) == b"1" for name in ("trusted.delegate", "user.delegate"))


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError:  # ENODATA: not set; ENOTSUP, EPERM: then nobody can tell, and it counts as not delegated
        return b""


def _limit(cgroup: Cgroup, limit: int) -> None:
    cgroup.limit = limit
    with_swap = os.path.join(cgroup.path, "memory.memsw.limit_in_bytes" if cgroup.version == 1 else "memory.swap.max")
    if os.path.exists(with_swap):
        _write(with_swap, str(limit if cgroup.version == 1 else 0))
    elif cgroup.version == 1:  # a kernel without swap accounting still keeps a cgroup of swappiness 0 out of swap
        _write(os.path.join(cgroup.path, "memory.swappiness"), "0")


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


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
