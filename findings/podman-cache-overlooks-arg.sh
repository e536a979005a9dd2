#!/usr/bin/env bash
# podman build answers ENV from its layer cache although the ARG in it has another value.
#
# Seen with podman 4.3.1 of Debian 12; 5.4.2 (Debian 13) and 5.8.6 (testing) do the same.
# The key of ARG in the layer cache holds the names of the variables and not their defaults, and that of
# ENV the text `ENV X=$V` and not its value. So an edited default, or another --build-arg, gives the image
# of before, without a warning. RUN is not concerned: its key holds the values.
#
# Needs root, mmdebstrap and Debian's package sources. Installs into a temporary directory.
set -euo pipefail

VERSION='4.3.1+ds1-8+deb12u1+b3'

root=$(mktemp --directory --tmpdir=/var/tmp)
trap 'rm -rf "$root"' EXIT
sources=(/etc/apt/sources.list.d/debian.sources)
[ -e "${sources[0]}" ] || sources=()
mmdebstrap --quiet --variant=minbase --include="podman=$VERSION" bookworm "$root" "${sources[@]}"

build() { # VALUE: the variables of an image whose ARG has this default
    printf '%s\n' 'FROM scratch' 'COPY Dockerfile /' "ARG V=$1" "ENV X=\$V" >"$root/x/Dockerfile.used"
    chroot "$root" podman --storage-driver vfs --cgroup-manager cgroupfs build --quiet --isolation chroot \
        --file /x/Dockerfile.used --iidfile /x/id /x >/dev/null 2>&1
    chroot "$root" podman --storage-driver vfs --cgroup-manager cgroupfs image inspect \
        --format '{{.Config.Env}}' "$(cat "$root/x/id")"
}

mkdir "$root/x"
echo constant >"$root/x/Dockerfile"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
trap 'umount --recursive "$root"; rm -rf "$root"' EXIT
first=$(build 1)
second=$(build 2)
printf 'podman %s\nARG V=1: %s\nARG V=2: %s\n' "$VERSION" "$first" "$second"
# Seen: X=1 both times. Right would be X=2 the second time.
[[ $first == *" X=1]" && $second == "$first" ]]
