#!/usr/bin/env bash
# Commands for a new machine, see usage(); bash and apt-get only, safe to repeat.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: ./bootstrap.sh setup               .venv, for a machine that has the tools, and the settings
                                          that podman needs there (rc_tasks.toml)
       ./bootstrap.sh demo                podman and the other tools, .venv, and the images of
                                          examples/demo, built offline
       ./bootstrap.sh test [pytest args]  Slurm as well, then ruff, mypy and all tests;
                                          -m "not slow" leaves out what takes minutes,
                                          -n 0 runs one test after the other
       ./bootstrap.sh bench NAME [args]   a program of tests/bench, such as publish
       ./bootstrap.sh test --on SUITE [pytest args]
       ./bootstrap.sh bench --on SUITE NAME [args]
                                          the same in a fresh root of a Debian suite, such as forky;
                                          by root or through sudo

For Debian 12, Ubuntu and newer, with git and Python 3.11 or newer (PYTHON=... names another one than
python3). Packages that are missing are installed with apt-get, by root or through sudo.
EOF
}

# program:package
TOOLS=(podman:podman skopeo:skopeo mksquashfs:squashfs-tools busybox:busybox-static
    newuidmap:uidmap slirp4netns:slirp4netns fuse-overlayfs:fuse-overlayfs squashfuse_ll:squashfuse) # what rootless podman needs
TEST_TOOLS=(slurmctld:slurmctld slurmd:slurmd srun:slurm-client munged:munge
    mmdebstrap:mmdebstrap docker-registry:docker-registry runc:runc crun:crun shellcheck:shellcheck
    bash-completion:bash-completion zsh:zsh fish:fish groff:groff-base chromium:chromium faketime:faketime
    ssh-agent:openssh-client)

say() { printf '\n==> %s\n' "$*"; }

stop() {
    { printf '\nbootstrap.sh: %s\n' "$1" && printf '  %s\n' "${@:2}"; } >&2
    exit 1
}

find_python() {
    local candidates=(python3 python3.{14,13,12,11})
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    stop "no Python 3.11 or newer was found" "next: install one, or name it with PYTHON=/path/to/python3"
}

has() {
    case $1 in
        # The demo's image holds nothing else, so it has to be the statically linked one.
        busybox) command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
        # podman 5 prefers pasta.
        bash-completion) [ -e /usr/share/bash-completion/bash_completion ] ;;
        slirp4netns) command -v slirp4netns >/dev/null || command -v pasta >/dev/null ;;
        # Ubuntu has it as a snap only: without another browser the report's tests are skipped there.
        chromium)
            command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
                command -v google-chrome >/dev/null || grep -qx ID=ubuntu /etc/os-release
            ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

install_tools() {
    local missing=() pair as_root=()
    for pair in "$@"; do
        has "${pair%%:*}" || missing+=("${pair##*:}")
    done
    # Debian keeps the part of Python that fills a new environment in a package of its own.
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        missing+=("$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
    [ ${#missing[@]} -gt 0 ] || return 0

    local install=(apt-get install --yes --no-install-recommends "${missing[@]}")
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    if ! has apt-get || ! has "${as_root[0]:-apt-get}"; then
        stop "not installed: ${missing[*]}" "next: as root" "apt-get update && ${install[*]}"
    fi
    say "installing ${missing[*]}"
    {
        "${as_root[@]}" apt-get update --quiet=2 &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" --quiet=2
    } </dev/null >/dev/null ||
        stop "apt-get failed, see above" "next: fix that, or as root" "apt-get update && ${install[*]}"
    # Debian's package starts a registry for everybody at once; the tests start their own.
    if [[ " ${missing[*]} " == *" docker-registry "* && -d /run/systemd/system ]]; then
        "${as_root[@]}" systemctl disable --now --quiet docker-registry
    fi
}

# make_venv [EXTRA]
make_venv() {
    local stamp=.venv/installed${1:+-$1} wanted
    wanted=$({ pwd; "$python" --version; cat pyproject.toml; } | sha256sum)
    # What the tests need includes the rest. A package may have been removed since.
    if grep -qsxF "$wanted" "$stamp" .venv/installed-test && .venv/bin/pip check >/dev/null 2>&1; then
        write_man_pages
        return 0
    fi
    say "installing into .venv"
    # An environment that was moved or copied still works on the old place.
    [[ $(.venv/bin/pip --version 2>/dev/null) == *" from $PWD/.venv/"* ]] || "$python" -m venv --clear .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".${1:+[$1]}" ||
        stop "pip failed, see above" "next: fix that; a proxy is named by https_proxy, a mirror by PIP_INDEX_URL"
    write_man_pages
    printf '%s\n' "$wanted" >"$stamp"
}

# They change with the commands, which are no part of what is installed.
write_man_pages() {
    # man(1) looks beside each directory of PATH.
    .venv/bin/python -m rc_tasks.commands.cli.man .venv/share/man
}

# Writes what podman needs here, as inside of containers and without a usable cgroup file system, into the
# rc_tasks.toml of the checkout around the current directory. An isolation of this shell alone hides that.
fit_podman() {
    env -u BUILDAH_ISOLATION -u RC_PODMAN_ISOLATION -u RC_PODMAN_RUNTIME "$PWD/${1:-}.venv/bin/python" \
        -m rc_tasks.steps fit
}

# in_image IMAGE.SQSH [ARGUMENT...]: what the image's ENTRYPOINT and CMD make of the arguments. A job gets
# this from the Container Engine; /etc/rc in a chroot needs no rights, cgroups or network.
in_image() {
    local enter=(chroot)
    [ "$(id -u)" = 0 ] || enter=(podman unshare chroot)
    rm -rf "$scratch/root"
    unsquashfs -quiet -no-progress -dest "$scratch/root" "$1" >/dev/null
    "${enter[@]}" "$scratch/root" /bin/sh /etc/rc "${@:2}"
}

# On a cluster nothing can be installed: there, the tools are the site's, and doit doctor looks at them.
run_setup() {
    install_tools
    make_venv
    # doit doctor reports what is wrong here.
    if has podman; then fit_podman || true; fi
    say "next"
    printf '%s\n' "cd $(printf %q "$PWD") && . .venv/bin/activate && doit doctor"
}

run_demo() {
    install_tools "${TOOLS[@]}"
    make_venv
    fit_podman || true
    cd examples/demo
    fit_podman ../../ || stop "podman cannot build here, see above" "next: (cd examples/demo && ../../.venv/bin/doit doctor)"
    install --compare "$(command -v busybox)" demo_base/busybox
    PATH=$OLDPWD/.venv/bin:$PATH
    say "doit, in examples/demo"
    doit || stop "the build failed, see above" "next: (cd examples/demo && ../../.venv/bin/doit doctor)"
    say "doit list"
    doit list
    say "projects/hello:1.0/env.toml, the EDF"
    cat projects/hello:1.0/env.toml
    say "in projects/hello:1.0/image.sqsh: its ENTRYPOINT, with CMD, which is a shell, and with another command"
    echo "echo \"That was the shell.\"" | in_image projects/hello:1.0/image.sqsh
    in_image projects/hello:1.0/image.sqsh echo "That was another command."
    say "try next"
    printf '%s\n' "cd $(printf %q "$PWD") && . ../../.venv/bin/activate" \
        "echo '# a comment' >> projects/hello:1.0/hello.sh; doit why hello:1.0; doit" \
        "doit doctor; doit help"
}

# on_suite COMMAND SUITE [arguments of the command]
on_suite() {
    [ $# -gt 1 ] || { usage >&2 && exit 2; }
    local packages=("${TOOLS[@]##*:}" "${TEST_TOOLS[@]##*:}")
    install_tools mmdebstrap:mmdebstrap
    tests/platforms/run "$2" "${packages[*]}" "$1" "${@:3}"
    exit
}

run_bench() {
    [ "${1:-}" != --on ] || on_suite bench "${@:2}"
    [[ ${1:-} =~ ^[a-z]+$ && -e tests/bench/$1.py ]] || { usage >&2 && exit 2; }
    install_tools "${TOOLS[@]}" "${TEST_TOOLS[@]}"
    make_venv
    fit_podman
    # Benches build in checkouts of their own.
    [ ! -e rc_tasks.toml ] || export BUILDAH_ISOLATION=chroot
    PATH=$PWD/.venv/bin:$PATH python -m "tests.bench.$1" "${@:2}"
}

run_test() {
    [ "${1:-}" != --on ] || on_suite test "${@:2}"
    install_tools "${TOOLS[@]}" "${TEST_TOOLS[@]}"
    make_venv test
    local status=0
    PATH=$PWD/.venv/bin:$PATH
    say "ruff and mypy"
    ruff check . && ruff format --check . && mypy || status=$?
    [ "$status" = 0 ] || say "the checks above failed; the tests run all the same"
    say "pytest $*"
    pytest -n auto "$@" || status=$?
    exit "$status"
}

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
# An ordinary user's PATH on Debian has no sbin, where chroot and slurmd are.
PATH=$PATH:/usr/sbin:/sbin
case ${1:-} in
    setup | demo | test | bench)
        [[ $1 != setup && $1 != demo ]] || say "$1: looking for what is missing"
        find_python
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        "run_$1" "${@:2}"
        ;;
    "" | -h | --help) usage ;;
    *) usage >&2 && exit 2 ;;
esac
