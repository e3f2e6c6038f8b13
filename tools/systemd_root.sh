#!/bin/sh
# systemd_root.sh FILE: packs a small Debian with systemd, Python and pytest into FILE, an initramfs that boots it; kept.
# Installs nothing; needs mmdebstrap and cpio.
set -eu
target=$1
mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
flock 9
[ -s "$target" ] && exit 0

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --include=systemd,systemd-sysv,dbus,libpam-systemd,dbus-user-session \
	--include=python3-cffi-backend,python3-pytest --customize-hook='rm -rf "$1"/var/lib/apt "$1"/var/cache/apt' \
	--customize-hook='ln -s lib/systemd/systemd "$1/init"' --format=tar bookworm "$root/root.tar" >&2
mkdir "$root/files"
tar -C "$root/files" -xf "$root/root.tar"
(cd "$root/files" && find . | cpio -o -H newc --quiet | gzip -1 >"$root/root.cpio.gz")
# Last, so that a file of this name is always whole.
mv "$root/root.cpio.gz" "$target.part"
mv "$target.part" "$target"
