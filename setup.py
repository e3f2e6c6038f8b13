"""The native part of the build; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# One wheel for every Python from 3.10 on; a free-threaded interpreter has no stable ABI to build against.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    cffi_modules=["csrc/build_native.py:builder"],
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
