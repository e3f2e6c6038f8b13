#!/bin/sh
# kernel.sh SUITE SERIES DIR: puts the newest cloud kernel of a series (6.1) that a Debian suite has (bookworm) into
# DIR/vmlinuz, and its name into DIR/release; for the series "newest" the suite's newest.
# Installs nothing: it has an apt of its own, with the system's mirror and keys.
set -eu
suite=$1
series=$2
dir=$3
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
[ -s "$dir/vmlinuz" ] && exit 0

apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
chmod 755 "$apt"
mkdir -p "$apt/etc/sources.list.d" "$apt/etc/preferences.d" "$apt/etc/apt.conf.d" "$apt/lists/partial" \
	"$apt/cache/archives/partial" "$apt/package" "$apt/files"
mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
[ -n "$mirror" ] || mirror=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }' /etc/apt/sources.list)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/etc/sources.list"
cat >"$apt/apt.conf" <<EOF
Dir::Etc "$apt/etc"; Dir::Etc::sourcelist "$apt/etc/sources.list"; Dir::Etc::sourceparts "$apt/etc/sources.list.d";
Dir::State::lists "$apt/lists"; Dir::Cache "$apt/cache"; APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false"; Acquire::Check-Date "false"; Acquire::Languages "none";
EOF
export APT_CONFIG="$apt/apt.conf"
apt-get -qq update >&2
[ "$series" = newest ] && pattern='[0-9]' || pattern="$(echo "$series" | sed 's/\./\\./g')\\."
image=$(apt-cache pkgnames linux-image- | grep -E "^linux-image-$pattern.*-cloud-amd64\$" | sort -V | tail -n 1)
[ -n "$image" ] || { echo "$suite has no cloud kernel $series for amd64" >&2; exit 1; }
# From 6.19 on the kernel itself is in a package of its own.
package=linux-binary${image#linux-image}
apt-cache show "$package" >/dev/null 2>&1 || package=$image
(cd "$apt/package" && apt-get -qq download "$package" >&2)
dpkg-deb -x "$apt"/package/*.deb "$apt/files"
echo "${image#linux-image-}" >"$dir/release"
# Last, so that a file of this name is always whole.
mv "$(find "$apt/files" -name "vmlinuz*" | head -n 1)" "$dir/vmlinuz.part"
mv "$dir/vmlinuz.part" "$dir/vmlinuz"
