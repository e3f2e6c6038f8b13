"""Builds memcg_oom._native from the C core with cffi, in API mode; setuptools calls it (see setup.py)."""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = ("event_control.c", "wait_loop.c", "control_file.c", "discovery.c", "memory_events.c", "triggers.c")

builder = FFI()
builder.cdef((HERE / "declarations.h").read_text())
builder.set_source(
    "memcg_oom._native",
    '#include "memcg_oom.h"',
    # setuptools wants paths relative to setup.py, which is where it runs.
    sources=[os.path.join("csrc", source) for source in SOURCES],
    include_dirs=["csrc"],
    extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden"],
)
