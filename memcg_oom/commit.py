"""All or nothing in memory: a wake-up's changes are worked out first and then made in one uninterruptible step.

Signal handlers written in Python run between bytecodes, and may raise (Ctrl-C does). So does a MemoryError, at any
allocation. Were the state of a watch changed bit by bit, either could leave an OOM told twice or never. A single call
into C that only stores values can be stopped by neither.
"""

from __future__ import annotations

import os
from itertools import chain, repeat, starmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    # The object, the name of its attribute, the new value.
    Change = tuple[Any, str, Any]
    # The same for many objects at once, each with a value: a tuple for each change of thousands keeps the garbage
    # collector busier than the changes themselves do.
    Column = tuple[Iterable[Any], str, Iterable[Any]]


def commit(changes: list[Change], *columns: Column) -> None:
    """Makes all the changes, in their order. The attributes are slots or fields of a C struct: no Python code runs."""
    settings = [map(setattr, objects, repeat(name), values) for objects, name, values in columns]
    any(chain(starmap(setattr, changes), *settings))  # setattr() returns None, so any() goes through them all


def close_and_commit(fds: list[int], changes: list[Change]) -> None:
    """Closes descriptors and makes the changes by which nobody holds them any more, in one step."""
    any(chain(starmap(setattr, changes), map(os.close, fds)))


def close_all(fds: list[int]) -> None:
    """Takes descriptors off a list and closes them in one step: none twice, none never."""
    any(map(os.close, map(fds.pop, [-1] * len(fds))))
