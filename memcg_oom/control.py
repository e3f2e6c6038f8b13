"""The control files of cgroup v1 that one can be notified of, and how each is read."""

from __future__ import annotations

from memcg_oom._native import ffi


class Control:
    """A control file, as the C core takes it (struct memcg_control).

    Args:
        file: its name.
        key: of the line that is read; empty: the file is one number.
        argument: what the kernel is told at the registration.
        read: whether it is read at all; else it counts as 0, as long as it is there.
    """

    __slots__ = ("file", "argument", "fields", "struct")

    def __init__(self, file: str, *, key: str = "", argument: str = "", read: bool = True) -> None:
        self.file = file
        self.argument = argument
        self.fields = {"file": file.encode(), "key": key.encode(), "argument": argument.encode(), "unread": not read}
        self.struct = ffi.new("struct memcg_control *", self.fields)


OOM = Control("memory.oom_control", key="oom_kill")
