#!/bin/sh
# python.sh SUITE VERSION DIR: unpacks the Python of a version (3.15) that a Debian suite has (forky) into DIR, with its
# headers and with the C library that it needs; DIR/python is the interpreter.
# Installs nothing; needs mmdebstrap and patchelf.
set -eu
suite=$1
version=$2
dir=$3
mkdir -p "$(dirname "$dir")"
dir=$(realpath -m "$dir")
exec 9>"$dir.lock"
flock 9
[ -x "$dir/python" ] && exit 0

rm -rf "$dir"
# Suites that are not released have lists that expire, and a mirror may be behind.
mmdebstrap --quiet --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' --include="python$version-dev" \
	--format=directory "$suite" "$dir" >&2
libraries=$(dirname "$(find "$dir/usr/lib" -name 'libc.so.6' | head -n 1)")
# It starts with its own loader and takes its own libraries, where the host's are too old for it; the programs that it
# starts have the host's as ever. Extension modules take the same, which is why this is an RPATH and no RUNPATH.
patchelf --set-interpreter "$(find "$dir/usr/lib" -name 'ld-linux*' -type f | head -n 1)" --force-rpath \
	--set-rpath "$libraries" "$dir/usr/bin/python$version"
# Debian's headers include one by a path that begins in /usr/include.
multiarch=$(basename "$libraries")
mkdir "$dir/usr/include/python$version/$multiarch"
ln -s "../../$multiarch/python$version" "$dir/usr/include/python$version/$multiarch/python$version"
# Last, so that a Python of this name is always whole.
ln -s "usr/bin/python$version" "$dir/python"
