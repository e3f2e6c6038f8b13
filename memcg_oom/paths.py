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
    name = path if type(path) is str else os.fsdecode(path)
    if not name:
        raise ValueError("an empty path names no cgroup")
    if "\0" in name:
        raise ValueError(f"a path cannot hold a NUL: {name!r}")
    if name[0] == "/" and not ("/." in name or "//" in name or name.endswith("/")):
        return name  # as most are: nothing to be made of it, not even a copy
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


def read_file(path: str, length: int = 1 << 20) -> bytes:
    """What a file of the kernel's holds, up to a length.

    Raises:
        OSError: it cannot be opened, or read.
    """
    fds: list[int] = []  # put there by the call that opens it, so that an exception leaves none
    try:
        fds.extend(map(os.open, [path], [os.O_RDONLY | os.O_CLOEXEC]))
        text = b""
        while len(text) < length and (chunk := os.read(fds[0], length - len(text))):
            text += chunk
        return text
    finally:
        if fds:
            os.close(fds[0])  # the first call here: no signal handler runs before it
