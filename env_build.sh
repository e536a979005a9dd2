#!/usr/bin/env bash
# The old way to `doit build:NAME`.
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

has_dockerfile() {
    [ -e "$1/Dockerfile" ] || [ -e "$1/Containerfile" ]
}

list_available_environments() {
    printf 'Available environments\nBase environment:\n'
    for directory in */; do
        ! has_dockerfile "$directory" || printf '\t%s\n' "${directory%/}"
    done
    if [ -n "$(ls -A projects 2>/dev/null)" ]; then
        echo "Projects:"
        # Not find, whose order is the disk's.
        # shellcheck disable=SC2012
        ls -1 projects | sed 's/^/\t/'
    else
        echo "No project environments found"
    fi
}

usage="Usage: $0 <env_name>"
cd -- "$here"
if [ $# -lt 1 ]; then
    echo "$usage"
    list_available_environments
    exit 1
fi
if [ ! -d "projects/$1" ] && ! has_dockerfile "$1"; then
    echo "Error: Environment '$1' not found"
    list_available_environments
    exit 1
fi
PATH=$here/.venv/bin:$PATH
if ! command -v doit >/dev/null; then
    echo "Error: doit is not installed here; run once: $(printf %q "$here")/bootstrap.sh setup" >&2
    exit 1
fi
exec doit "build:$1"
