"""Tells, through one pollable file descriptor, what happens to the memory cgroups of a Linux host.

See Monitor for watching, Cgroup for one cgroup, register() for the kernel's bare interface.
"""

from memcg_oom._version import __version__
from memcg_oom.alarms import PressureWatch, UsageWatch
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
    OomResolved,
    Pressure,
    Removed,
    Stall,
    Unattributed,
    UsageCrossed,
    Victim,
)
from memcg_oom.identity import Identity, identify
from memcg_oom.monitor import Monitor
from memcg_oom.pods import PodName, PodNames
from memcg_oom.stalls import StallWatch
from memcg_oom.tree import TreeWatch
from memcg_oom.watch import AnyWatch, Watch

__all__ = [
    "AnyWatch",
    "Cgroup",
    "CgroupEvent",
    "Created",
    "Degraded",
    "Event",
    "EventFD",
    "Identity",
    "MemcgError",
    "MemoryHigh",
    "MemoryMax",
    "Monitor",
    "NotACgroupError",
    "Oom",
    "OomControl",
    "OomKill",
    "OomResolved",
    "PodName",
    "PodNames",
    "Pressure",
    "PressureWatch",
    "Removed",
    "RootCgroupError",
    "Stall",
    "StallWatch",
    "TreeWatch",
    "Unattributed",
    "UnsupportedError",
    "UsageCrossed",
    "UsageWatch",
    "Victim",
    "Watch",
    "__version__",
    "identify",
    "register",
]
