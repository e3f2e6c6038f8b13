"""What ends a command early, and how it is said in one line."""

from __future__ import annotations

import os

from memcg_oom.command.text import escape
from memcg_oom.mounts import Mount, memory_mount

# EX_UNAVAILABLE of sysexits(3head).
UNAVAILABLE = 69


class Unavailable(Exception):
    """This host lacks what the command needs; the message says what, and what to do."""


def required_mount() -> Mount:
    """Where the memory hierarchy is mounted.

    Raises:
        Unavailable: nowhere.
    """
    mount = memory_mount()
    if mount is None:
        raise Unavailable(
            "no hierarchy with the memory controller is mounted here, neither cgroup v1 nor v2 "
            "(memcg-oom check says more)"
        )
    return mount


def words(error: Exception) -> str:
    """The error without Python's trimmings: the path, and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return escape(f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror)
    return escape(str(error))
