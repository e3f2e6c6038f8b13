"""The native part of the build; everything else is in pyproject.toml."""

import sys
import sysconfig

from setuptools import setup

# The oldest Python that the wheel is for: it is for all that are newer, too. From 3.15 on the module's file has a name
# that those before do not look for, and the free-threaded ones have a stable ABI as well; before, they had none.
if sys.version_info >= (3, 15):
    OLDEST = "cp315"
elif sysconfig.get_config_var("Py_GIL_DISABLED"):
    OLDEST = ""
else:
    OLDEST = "cp310"

setup(
    cffi_modules=["csrc/build_native.py:builder"],
    options={"bdist_wheel": {"py_limited_api": OLDEST}} if OLDEST else {},
)
