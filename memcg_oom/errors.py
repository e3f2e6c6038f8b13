"""What can go wrong, beyond the plain OSError, ValueError and TypeError of Python.

Whatever the kernel refuses is an OSError with its errno and the path that it is about; Python picks the subclass
(FileNotFoundError, PermissionError, ...). The classes below are for what no errno says.
"""

from __future__ import annotations

import errno
import os


class MemcgError(Exception):
    """The base of the package's own errors; those that are OSErrors too are caught by `except OSError` as well."""


class UnsupportedError(MemcgError, OSError):
    """This kernel, or this version of cgroups, does not have what was asked for.

    errno is the kernel's, or else EOPNOTSUPP; filename is the path that it is about.
    """


class RootCgroupError(UnsupportedError):
    """The root of the hierarchy: the kernel accepts a registration for OOM there and never signals it.

    errno is EINVAL; filename is the cgroup's path.
    """


class NotACgroupError(MemcgError, OSError):
    """The path is not a memory cgroup.

    errno is EINVAL, or EXDEV: it is in another hierarchy than what is watched already; filename is the path that it
    is about.
    """


def os_error(error: int, path: str, advice: str = "") -> OSError:
    """The OSError for an errno, with what to do about it behind the system's own words."""
    text = os.strerror(error)
    return OSError(error, f"{text}: {advice}" if advice else text, path)


def check(result: int, path: str) -> int:
    """Hands a result of the C core through, or raises the OSError that a negative one stands for."""
    if result < 0:
        raise os_error(-result, path)
    return result


def off_error(path: str) -> NotACgroupError:
    """Why a v2 cgroup without the memory controller is refused."""
    return NotACgroupError(
        errno.EINVAL,
        "not a memory cgroup: the memory controller is off there; write +memory to cgroup.subtree_control of the "
        "cgroup above it, or watch that one's tree, which waits for it",
        path,
    )
