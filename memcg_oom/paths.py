"""Paths as users give them, and as the package keeps them."""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    StrPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def absolute(path: StrPath) -> str:
    """The absolute, normal form; bytes that are not UTF-8 become surrogate escapes.

    Raises:
        TypeError: not a path.
        ValueError: empty, or with a NUL.
    """
    name = os.fsdecode(path)
    if not name:
        raise ValueError("an empty path names no cgroup")
    if "\0" in name:
        raise ValueError(f"a path cannot hold a NUL: {name!r}")
    # POSIX lets two slashes at the start mean something else; Linux does not, abspath() keeps them all the same.
    return "/" + os.path.abspath(name).lstrip("/")


def directory_status(path: str) -> os.stat_result:
    """What stat(2) says of a directory.

    Raises:
        FileNotFoundError: there is none.
        NotADirectoryError: it is a file.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return status
