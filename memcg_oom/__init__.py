"""Tells, through one pollable file descriptor, what happens to the memory cgroups of a Linux host.

See Monitor for watching, Cgroup for one cgroup, register() for the kernel's bare interface.
"""

from memcg_oom._version import __version__
from memcg_oom.cgroup import Cgroup, OomControl
from memcg_oom.errors import MemcgError, NotACgroupError, RootCgroupError, UnsupportedError
from memcg_oom.eventfd import EventFD, register
from memcg_oom.events import (
    CgroupEvent,
    Created,
    Degraded,
    Event,
    MemoryHigh,
    MemoryMax,
    Oom,
    OomKill,
    Removed,
    Unattributed,
)
from memcg_oom.monitor import Monitor
from memcg_oom.tree import TreeWatch
from memcg_oom.watch import Watch

__all__ = [
    "Cgroup",
    "CgroupEvent",
    "Created",
    "Degraded",
    "Event",
    "EventFD",
    "MemcgError",
    "MemoryHigh",
    "MemoryMax",
    "Monitor",
    "NotACgroupError",
    "Oom",
    "OomControl",
    "OomKill",
    "Removed",
    "RootCgroupError",
    "TreeWatch",
    "Unattributed",
    "UnsupportedError",
    "Watch",
    "__version__",
    "register",
]
