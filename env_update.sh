#!/usr/bin/env bash
# The old way to `doit remote NAME`, `doit build:NAME` and `doit local NAME`.
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

usage() {
    cat <<END
Usage: $0 <command> <project_name>

Commands:
  remote <project_name> - Create a branch and set up the env for a project
  build <project_name>  - Build the podman image for a project
  local <project_name>  - Test the local image

Example:
  $0 remote reasoning:2025.1
END
    exit 1
}

if [ $# -lt 2 ]; then
    echo "Error: Insufficient arguments provided."
    usage
fi
case $1 in
    remote | local) ;;
    build) exec "$here/env_build.sh" "$2" ;;
    *)
        echo "Error: Unknown command: $1"
        usage
        ;;
esac
PATH=$here/.venv/bin:$PATH
if ! command -v doit >/dev/null; then
    echo "Error: doit is not installed here; run once: $(printf %q "$here")/bootstrap.sh setup" >&2
    exit 1
fi
cd -- "$here"
exec doit "$@"
