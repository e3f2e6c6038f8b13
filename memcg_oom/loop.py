"""The epoll set that a monitor waits for, its keys, and the descriptors that have left it."""

from __future__ import annotations

import select
from contextlib import suppress

from memcg_oom._native import lib
from memcg_oom.commit import close_all
from memcg_oom.errors import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from memcg_oom.commit import Change

# The low half of a key that has no descriptor.
NO_FD = 0xFFFFFFFF

_SERIALS = 2**31  # the high half of a key, but for the bit that is MEMCG_UNREAD


class Loop:
    """One epoll set.

    Synchronization: none; the monitor's lock is held around every call, but for fileno().

    Attributes:
        unread: descriptors that left the set, to be closed when no wait() reads them any more.
    """

    def __init__(self) -> None:
        self.unread: list[int] = []
        self._serial = 0
        self._epoll = select.epoll()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._epoll.fileno()

    def key(self, fd: int, flags: int = 0) -> int:
        """A key that was never there before; with NO_FD one for what is not in the set."""
        self._serial = (self._serial + 1) % _SERIALS
        return flags | self._serial << 32 | fd

    def mark(self) -> int:
        """For is_older(): of this moment."""
        return self._serial

    @staticmethod
    def is_older(key: int, mark: int) -> bool:
        """Whether a key (without flags) was given before a moment.

        Serials come round again, after two thousand million.
        """
        return (mark - (key >> 32)) % _SERIALS < _SERIALS // 2

    def age(self, key: int) -> int:
        """How many keys (without flags) were given since this one."""
        return (self._serial - (key >> 32)) % _SERIALS

    def add(self, keys: list[int]) -> None:
        """Adds descriptors by their keys, all or none.

        Raises:
            OSError: ENOMEM, ENOSPC (fs.epoll.max_user_watches).
        """
        check(lib.memcg_loop_add(self._epoll.fileno(), keys, len(keys)), "epoll")

    def unregister(self, fd: int) -> None:
        """Takes a descriptor out. Before it is closed: a forked child's copy would keep it there."""
        with suppress(FileNotFoundError):  # an exception came the last time, right here
            self._epoll.unregister(fd)

    def bury(self) -> None:
        """Closes what has left; nobody may be reading it."""
        close_all(self.unread)

    def hand_over(self, fds: list[int]) -> list[Change]:
        """Puts what has left on a list; returns the changes by which it is not here any more."""
        fds += self.unread
        return [(self, "unread", [])]

    def close(self) -> None:
        """Closes the set alone."""
        self._epoll.close()
