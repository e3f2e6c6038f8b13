#!/bin/sh
# setup.sh VENV: makes the virtual environment with the package built in it and everything that its tests need.
# Installs nothing outside; where the system lacks something it says what, and which Debian package has it.
set -eu
venv=$1
python=${PYTHON:-python3}

missing=
lacks() { missing="$missing $1"; }
command -v "$python" >/dev/null || lacks python3
command -v gcc >/dev/null || lacks gcc
if command -v "$python" >/dev/null; then
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
		echo "memcg_oom needs Python 3.10 or later; $python is $("$python" --version). PYTHON=... names another." >&2
		exit 1
	}
	"$python" -c 'import ensurepip, venv' 2>/dev/null || lacks python3-venv
	"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || lacks python3-dev
fi
[ -e /usr/include/stdio.h ] || [ -e /usr/include/linux/limits.h ] || lacks libc6-dev
if [ -n "$missing" ]; then
	echo "missing on this system:$missing" >&2
	echo "on Debian: apt-get install$missing" >&2
	exit 1
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Dependency groups came with pip 25.1.
"$venv/bin/pip" install --quiet --upgrade 'pip>=25.1'
# Quiet about what setuptools tells everybody who installs from a folder. By a path, not by a hook: of a program that
# lies beside a checkout called memcg_oom Python would take that folder for the package.
PYTHONWARNINGS=ignore "$venv/bin/pip" install --quiet --group test --group lint \
	--config-settings editable_mode=compat --editable .
