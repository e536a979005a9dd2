#!/bin/bash
# Sets up a development checkout of reasoning-gym, then becomes the command that it was given.
#
# The first start clones it to ~/scratch/dev/reasoning-gym and installs it editable, with its
# development requirements. Later starts fetch, say how far the checkout is ahead and behind, and
# change nothing in it. Whatever goes wrong here is a warning: the command runs all the same.
#
# What is installed lies in a Python user base in ~/scratch/dev/.reasoning-gym: a container's own
# file system may be read-only, and is gone when the job ends. The command gets it as PYTHONUSERBASE,
# so `pip install --user` adds to it, and ~/.local is left to other containers.
#
# Clone and user base are made under temporary names and renamed when they are whole, so that a
# start that is killed leaves nothing half-finished in use.
#
# REASONING_GYM=skip leaves all of this out.

set -u

readonly url=https://github.com/open-thought/reasoning-gym.git
readonly scratch=${HOME:-/nonexistent}/scratch
readonly checkout=$scratch/dev/reasoning-gym
readonly state=$scratch/dev/.reasoning-gym
readonly fetch_limit_s=20
readonly clone_limit_s=600
readonly wait_limit_s=1200

say() {
    # Never on standard output: that belongs to the command.
    printf 'reasoning-gym: %s\n' "$*" >&2
}

# No prompt can be answered here, and a connection that stalls must not hold up a job. The lock is not
# passed on: what git leaves running would keep it.
unattended() {
    GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND=${GIT_SSH_COMMAND:-ssh -o BatchMode=yes} \
        GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=30 "$@" 9>&-
}

is_checkout() {
    # --git-dir: without it, git would find a repository around an empty directory.
    git --git-dir="$checkout/.git" rev-parse --quiet --verify HEAD > /dev/null 2>&1
}

is_leftover() {
    # What a killed `git clone` leaves: a .git without any object. Nobody's work can be in it.
    [[ -d $checkout && -z $(
        find -H "$checkout" -mindepth 1 -maxdepth 1 ! -name .git -print -quit
        find -H "$checkout/.git/objects" -type f ! -name 'tmp_*' -print -quit 2> /dev/null
    ) ]]
}

is_installed() {
    # Scratch is purged file by file, so the package's own record is looked for, not the directory.
    local record
    for record in "$user_base"/lib/python*/site-packages/reasoning_gym-*.dist-info/METADATA; do
        [[ -e $record ]] && return
    done
    return 1
}

clone() {
    local new
    say "cloning $url to $checkout"
    new=$(mktemp -d "$state/clone.XXXXXX") || return
    # --foreground: Ctrl-C reaches git.
    if unattended timeout --foreground "$clone_limit_s" \
        git -c maintenance.auto=false clone "$url" "$new/checkout"; then
        is_leftover && mv -T "$checkout" "$new/leftover"
        # Fails when another start was quicker, which is as good.
        mv -T "$new/checkout" "$checkout" 2> /dev/null
    fi
    rm -rf "$new"
    is_checkout
}

install() {
    local new requirements=()
    say "installing it to $user_base"
    new=$(mktemp -d "$state/install.XXXXXX") || return
    cd "$checkout" || return
    [[ -f requirements-dev.txt ]] && requirements=(--requirement requirements-dev.txt)
    # NVIDIA's constraint file holds test tools back that the requirements want newer. It is there
    # for the image's own packages, which an installation to a user base does not touch.
    if PYTHONUSERBASE=$new/base PIP_CONSTRAINT='' unattended \
        pip install --user --no-cache-dir --no-warn-script-location --editable . "${requirements[@]}"; then
        is_installed || mv -T "$user_base" "$new/leftover" 2> /dev/null
        mv -T "$new/base" "$user_base" 2> /dev/null
    fi
    rm -rf "$new"
    is_installed
}

complete() {
    if [[ -e $checkout ]] && ! is_checkout && ! is_leftover; then
        say "warning: $checkout is no git checkout and is left as it is; move it away to get one"
        return 1
    fi
    # Those of killed starts. Nothing that is still being made is as old as that.
    find "$state" -mindepth 1 -maxdepth 1 \( -name 'clone.*' -o -name 'install.*' \) \
        -mmin +120 -exec rm -rf {} +
    if ! is_checkout && ! clone; then
        say "warning: no checkout, as the clone failed; the next start tries again"
        return 1
    fi
    if ! is_installed && ! install; then
        say "warning: not installed, as pip failed; the next start tries again"
        return 1
    fi
}

fetch() {
    local said status
    said=$(unattended timeout --kill-after=5 "$fetch_limit_s" \
        git -C "$checkout" -c maintenance.auto=false fetch --quiet origin 2>&1)
    status=$?
    # 124 and 137: timeout(1) ended it, with TERM or with KILL.
    if ((status == 124 || status == 137)); then
        say "warning: no answer from upstream within $fetch_limit_s s; going on without news"
    elif ((status != 0)); then
        say "warning: cannot fetch, going on without news: ${said##*$'\n'}"
    fi
}

report() {
    local ahead behind branch upstream
    # What `git clone` recorded as the default branch of upstream.
    upstream=$(git -C "$checkout" rev-parse --abbrev-ref origin/HEAD 2> /dev/null) || upstream=origin/main
    branch=$(git -C "$checkout" symbolic-ref --quiet --short HEAD) || branch='detached HEAD'
    if read -r ahead behind < <(
        git -C "$checkout" rev-list --left-right --count "HEAD...$upstream" -- 2> /dev/null
    ); then
        say "$branch is $ahead ahead of $upstream, $behind behind"
    else
        say "warning: cannot compare $branch with $upstream"
    fi
}

set_up() {
    local lock
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
    if [[ ! -d $scratch ]] || ! mkdir -p "$state" || ! touch "$user_base.lock"; then
        say "warning: $scratch is missing or cannot be written; going on without a checkout"
        return
    fi
    # Ranks on many nodes start at once. Where the file system has no flock, they all go on, and the
    # renames decide whose work stays.
    exec 9>> "$user_base.lock"
    flock --nonblock --conflict-exit-code 75 9 2> /dev/null
    lock=$?
    if is_checkout && is_installed; then
        ((lock == 75)) || fetch
        report
    elif ((lock != 75)); then
        complete
    else
        say "waiting for another start that sets it up"
        # Whoever waited does not try again after a failure: a thousand ranks would do so in turn.
        flock --timeout "$wait_limit_s" 9
        if ! is_checkout || ! is_installed; then
            say "warning: the other start did not finish; the next one tries again"
        fi
    fi
}

if [[ ${REASONING_GYM:-} != skip ]]; then
    # Compiled packages fit one architecture and one version of Python.
    python=$(python3 --version 2> /dev/null)
    python=${python#Python }
    user_base=$state/$(uname -m)-python${python%.*}
    (set_up) < /dev/null >&2
    if is_installed; then
        export PYTHONUSERBASE=$user_base
        export PATH=$PATH:$user_base/bin
    fi
fi

(($#)) || set -- bash
exec -- "$@"
