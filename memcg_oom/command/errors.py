"""What ends a command early, and how it is said in one line."""

from __future__ import annotations

import os

from memcg_oom.command.text import escape

# EX_UNAVAILABLE of sysexits(3head).
UNAVAILABLE = 69


class Unavailable(Exception):
    """This host lacks what the command needs; the message says what, and what to do."""


def words(error: Exception) -> str:
    """The error without Python's trimmings: the path, and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return escape(f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror)
    return escape(str(error))
