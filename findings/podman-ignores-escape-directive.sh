#!/usr/bin/env bash
# podman build joins lines as `# escape=` says, but reads backslashes in ENV and LABEL as escapes all the same.
#
# Seen with podman 4.3.1 of Debian 12; 5.4.2 (Debian 13) and 5.8.6 (testing) do the same.
# The Dockerfile reference says that the directive sets the character that escapes "characters in a line" as
# well as line ends. podman takes it for line ends only: below "# escape=`", a value loses its backslashes,
# and a variable behind a backtick is replaced. There is no warning.
#
# Needs root, mmdebstrap and Debian's package sources. Installs into a temporary directory.
set -euo pipefail

VERSION='4.3.1+ds1-8+deb12u1+b3'

root=$(mktemp --directory --tmpdir=/var/tmp)
trap 'rm -rf "$root"' EXIT
sources=(/etc/apt/sources.list.d/debian.sources)
[ -e "${sources[0]}" ] || sources=()
mmdebstrap --quiet --variant=minbase --include="podman=$VERSION" bookworm "$root" "${sources[@]}"

mkdir "$root/x"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
trap 'umount --recursive "$root"; rm -rf "$root"' EXIT
# shellcheck disable=SC2016 # the variables are the Dockerfile's
printf '%s\n' '# escape=`' 'FROM scratch' 'ARG V=value' 'ENV A=C:\dir\new `' '  B=`$V' >"$root/x/Dockerfile"
options=(--storage-driver vfs --cgroup-manager cgroupfs)
chroot "$root" podman "${options[@]}" build --quiet --isolation chroot --iidfile /x/id /x >/dev/null 2>&1
found=$(chroot "$root" podman "${options[@]}" image inspect --format '{{.Config.Env}}' "$(cat "$root/x/id")")
printf 'podman %s\n%s\n' "$VERSION" "$found"
# Seen: A=C:dirnew and B=`value. By the reference they would be A=C:\dir\new and B=$V.
# shellcheck disable=SC2016
[[ $found == *' A=C:dirnew B=`value]' ]]
