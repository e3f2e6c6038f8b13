"""Paths as users give them, and as the package keeps them."""

from __future__ import annotations

import os

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
    return os.path.abspath(name)
