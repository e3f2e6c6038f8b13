"""The metrics in a file, for the textfile collector of the node exporter."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "memcg_oom.prom"
# One name, so that what a killed process has left is taken away by the next; the collector reads *.prom alone.
_TEMPORARY = f".{NAME}.tmp"

# Seconds that a file system may keep the writer at the end.
_PATIENCE = 10.0


class TextFile:
    """Writes the metrics every `interval` seconds, in a thread of its own, and once more at the end.

    Whoever reads the file finds all of the old metrics, or all of the new.

    Attributes:
        path: of the file.

    Args:
        folder: where.
        text: makes what is written.
        interval: seconds.
        failed: is told, in that thread, what was wrong with a write.
    """

    def __init__(
        self, folder: str, text: Callable[[], bytes], interval: float, failed: Callable[[Exception], None]
    ) -> None:
        self.path = os.path.join(folder, NAME)
        self._temporary = os.path.join(folder, _TEMPORARY)
        self._text = text
        self._interval = interval
        self._failed = failed
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="textfile", daemon=True)

    def start(self) -> None:
        """Writes for the first time, and begins with the others.

        Raises:
            OSError: it cannot be written.
        """
        self.write()
        self._thread.start()

    def close(self) -> None:
        """Writes for the last time."""
        self._ending.set()
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            self._try()

    def write(self) -> None:
        """Writes the file.

        Raises:
            OSError: the reason why not; nothing of the attempt is left.
        """
        text = self._text()
        _remove(self._temporary)
        # Of its own: what somebody else has put there, a link say, is not written to.
        fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(text)
                os.fchmod(fd, 0o644)  # whatever the umask is: the collector is another user
            os.rename(self._temporary, self.path)
        except BaseException:
            _remove(self._temporary)
            raise

    def _run(self) -> None:
        while not self._ending.wait(self._interval):
            self._try()

    def _try(self) -> None:
        try:
            self.write()
        except Exception as error:
            self._failed(error)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
