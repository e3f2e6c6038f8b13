"""The names of Kubernetes pods, from the folders that the kubelet keeps their logs in: NAMESPACE_NAME_UID.

The API server knows them as well, but would have to be asked over the network, with credentials.
"""

from __future__ import annotations

import os
import time

from memcg_oom.record import Record

LOGS = "/var/log/pods"

# How many names are kept, those of pods that are gone among them: twenty times what the kubelet runs unless told so.
KEPT = 2200

# A folder may change again within the same tick of its file system's clock, and its mtime would not tell: up to a
# second on the coarsest. What was listed sooner after a change than this is listed again.
SETTLED_NS = 3_000_000_000

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-."
_set = object.__setattr__


class PodName(Record):
    """What a pod is called.

    Attributes:
        namespace: the Kubernetes namespace.
        name: the pod's name in it.
    """

    __slots__ = ("namespace", "name")
    namespace: str
    name: str

    def __init__(self, *, namespace: str, name: str) -> None:
        _set(self, "namespace", namespace)
        _set(self, "name", name)


class PodNames:
    """Finds the names of pods by their uids. A pod that was found once keeps its name for long after it is gone.

    Cheap to ask again and again: the folder is listed only for a uid that is unknown, and only if it has changed.

    Synchronization: none; one thread at a time.

    Args:
        folder: where the kubelet keeps the logs of pods (its podLogsDir).
    """

    __slots__ = ("_folder", "_known", "_listed")

    def __init__(self, folder: str = LOGS) -> None:
        self._folder = folder
        # Those seen longest ago are first.
        self._known: dict[str, PodName] = {}
        # Which folder was listed, and its mtime; None if it is to be listed again whatever its mtime is.
        self._listed: tuple[int, int, int] | None = None

    def find(self, uid: str) -> PodName | None:
        """The name of a pod. It raises nothing.

        Args:
            uid: as Identity.pod has it.

        Returns:
            None if there is no such pod, and where the folder is missing or may not be read: on a host that is no
            node of Kubernetes, or for one who is not root.
        """
        if uid not in self._known:
            self._list()
        return self._known.get(uid)

    def _list(self) -> None:
        try:
            # The mtime is read before the names: what changes in between is found the next time, not missed.
            status = os.stat(self._folder)
            state = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if state == self._listed:
                return
            self._listed = None
            now = time.time_ns()
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    self._learn(entry.name)
        except OSError:
            return
        if now - status.st_mtime_ns > SETTLED_NS:
            self._listed = state

    def _learn(self, folder_name: str) -> None:
        namespace, _, rest = folder_name.partition("_")
        name, _, uid = rest.partition("_")
        # Neither has another letter in it (DNS-1123), so that whatever else lies there is not taken for a pod.
        if not (namespace and name and uid) or (namespace + name).strip(_LETTERS):
            return
        self._known.pop(uid, None)
        self._known[uid] = PodName(namespace=namespace, name=name)
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
