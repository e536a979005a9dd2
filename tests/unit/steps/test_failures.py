"""Whose fault a failure is: what the tools said, and what the user reads.

The texts are those of podman 4.3.1, buildah 1.28, crun 1.8, runc 1.1 and squashfs-tools 4.5, unless a line
says otherwise, shortened where they repeat themselves.
"""
# ruff: noqa: E501 recorded texts are not folded

import ast
import errno
import os
import re
from collections import deque
from pathlib import Path

import pytest

import rc_tasks
from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.graph.project import Project
from rc_tasks.steps.container import failure as launch_failure
from rc_tasks.steps.podman import failure
from rc_tasks.tools import command, failures
from rc_tasks.tools.command import Command
from rc_tasks.tools.registry import Refusal, not_pulled, refusal
from rc_tasks.util.safe_read import advice

PROJECT = Project("x:1", Path("/images"), "projects/x:1")
CORRECT = "correct it and run `doit build:x:1`: it resumes there"
NEUTRAL = "the last lines above are podman's"


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with a name."""
    monkeypatch.setenv("SLURMD_NODENAME", "nid001")


def built(text: str, returncode: int = 125) -> str:
    return str(failure.explain(returncode, text.splitlines(), PROJECT))


def run(words: str, *, step: str = "make", status: int = 1, runtime: bool = True) -> str:
    """What `podman build` prints of a RUN that fails after printing `words`."""
    while_running = "while running runtime: " if runtime else ""
    return f'STEP 2/2: RUN {step}\n{words}\nError: building at STEP "RUN {step}": {while_running}exit status {status}'


def not_started(words: str, program: str = "/usr/bin/crun") -> str:
    """What it prints when the runtime cannot start a container."""
    return (
        f"STEP 2/2: RUN make\nerror running container: from {program} creating container for [/bin/sh -c make]: {words}\n"
        ': exit status 1\ntime="2026-11-29T04:42:10Z" level=error msg="did not get container create message from subprocess: EOF"\n'
        'Error: building at STEP "RUN make": while running runtime: exit status 1'
    )


# What podman says when the node is at fault, and how the message begins; each has a hint of its own.
NODES = {
    "disk": (
        'STEP 3/4: COPY a /a\nError: identifier is not a container: preparing container for next step: creating build container: creating container: creating read-write layer with ID "9aa2": no space left on device',
        "no space is left",
    ),
    "disk while copying": (
        'STEP 2/2: COPY zeros /z\nError: building at STEP "COPY zeros /z": 3 errors occurred:\n\t* copier: get: "/zeros": copying /zeros: write bulk-writer: broken pipe\n\t* storing "/zeros": copier: put: error writing file "/z": write /z: no space left on device\n\n',
        "no space is left",
    ),
    "inodes": (
        'STEP 3/4: RUN make\nError: committing container for step {Env:[] Command:run Message:RUN make Original:RUN make}: copying layers and metadata for container "8390": writing blob: creating layer with ID "957c": mkdir /s/vfs/dir/957c/bin: no space left on device',
        "no space is left",
    ),
    "quota": (
        'STEP 2/2: COPY a /a\nError: building at STEP "COPY a /a": storing "/a": write /a: disk quota exceeded',
        "a disk quota is used up",
    ),
    "read-only": (
        "Error: opening database /s/libpod/bolt_state.db: open /s/libpod/bolt_state.db: read-only file system",
        "a file system cannot be written",
    ),
    "open files": (
        'STEP 2/4: COPY a /a\nError: building at STEP "COPY a /a": checking on sources under "/c": starting subprocess: fork/exec /proc/self/exe: too many open files',
        "the limit of open files is too low",
    ),
    "open files of a RUN": (
        'STEP 2/2: RUN make\nError: building at STEP "RUN make": setting "RLIMIT_NOFILE" limit to soft=1024,hard=1024 (was soft=40,hard=40): operation not permitted',
        "the limit of open files is too low",
    ),
    "memory": (
        'STEP 2/4: COPY a /a\nError: building at STEP "COPY a /a": checking on sources under "/c": starting subprocess: fork/exec /proc/self/exe: cannot allocate memory',
        "no memory is left",
    ),
    "processes": (
        "runtime: failed to create new OS thread (have 5 already; errno=11)\nError: fork/exec /usr/bin/crun: resource temporarily unavailable",
        "no more processes can be started",
    ),
    "file server": (
        "Error: open /s/overlay-images/images.json: stale NFS file handle",
        "a file system gives no answer",
    ),
    "crun and cgroups": (
        not_started("cgroups in hybrid mode not supported, drop all controllers from cgroupv2"),
        "crun cannot work with this node's control groups",
    ),
    # Of crun 1.8, libcrun/cgroup-systemd.c.
    "systemd": (
        not_started("sd-bus call: Interactive authentication required.: Permission denied"),
        "systemd refuses podman a control group",
    ),
    "no runtime": (
        'Error: default OCI runtime "nosuch" not found: invalid argument',
        "there is no program that runs containers",
    ),
    # Of containers/podman#12637.
    "newuidmap": (
        'time="2026-11-29T04:42:10Z" level=error msg="running `/usr/bin/newuidmap 3812 0 1000 1 1 100000 65536`: newuidmap: write to uid_map failed: Operation not permitted"\nError: cannot set up namespace using "/usr/bin/newuidmap": exit status 1',
        "you have no range of user IDs, or it cannot be used",
    ),
    # Of containers/podman#3421 and #10906.
    "subuid": (
        'Error: creating build container: copying system image: writing blob: adding layer with blob "sha256:97": processing tar file(potentially insufficient UIDs or GIDs available in user namespace (requested 0:42 for /etc/gshadow): Check /etc/subuid and /etc/subgid: lchown /etc/gshadow: invalid argument): exit status 1',
        "you have no range of user IDs, or it cannot be used",
    ),
    # Of podman's pkg/rootless/rootless_linux.c.
    "namespace": (
        "cannot clone: Operation not permitted\nError: cannot re-exec process",
        "podman gets no user namespace",
    ),
    "layers": (
        'STEP 1/2: FROM 0c009180\nError: mounting new container: mounting build container "5332": max depth exceeded',
        "podman's overlay driver cannot stack so many layers",
    ),
    "driver": (
        'time="2026-11-29T04:44:36Z" level=error msg="Failed to GetDriver graph nosuch /s"\nError: failed to GetDriver graph nosuch /s: driver not supported',
        "podman's storage driver does not work here",
    ),
    "other driver": (
        'Error: database storage graph driver "vfs" does not match our storage graph driver "overlay": database configuration mismatch',
        "podman's storage was made with other settings",
    ),
    "podman's options": (
        "Error: unknown flag: --build-context\nSee 'podman build --help'",
        "podman does not know an option that it was given",
    ),
    "rights": (
        "Error: mkdir /scratch/images/root: permission denied",
        "something may not be read or written",
    ),
    # Of runc 1.1 in a container that may not mount.
    "runtime": (
        not_started(
            'time="2026-11-29T04:47:15Z" level=error msg="runc create failed: unable to start container process: error during container init: error mounting \\"proc\\" to rootfs at \\"/proc\\": mount proc:/proc: operation not permitted"',
            "/usr/bin/runc",
        ),
        "the container could not be started",
    ),
    "runtime and a mount": (
        not_started(
            'time="2026-11-29T04:47:15Z" level=error msg="runc create failed: unable to start container process: error during container init: error mounting \\"/run/x\\" to rootfs at \\"/etc/x\\": not a directory"',
            "/usr/sbin/runc",
        ),
        "the container could not be started",
    ),
    "crun and something new": (
        not_started("write to `/proc/self/oom_score_adj`: Permission denied"),
        "the container could not be started",
    ),
    "ADD and the network": (
        'STEP 2/2: ADD http://nosuch.invalid/x /x\nError: building at STEP "ADD http://nosuch.invalid/x /x": reading "http://nosuch.invalid/x": Get "http://nosuch.invalid/x": dial tcp: lookup nosuch.invalid on 10.0.0.53:53: no such host',
        "a host on the network could not be reached",
    ),
    "killed": ("STEP 2/4: COPY a /a", "it was killed, as happens when memory runs out"),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_at_fault_is_named_and_the_dockerfile_is_not(name: str) -> None:
    text, what = NODES[name]
    told = built(text, -9 if name == "killed" else 125)
    assert told.startswith(f"nid001: podman build failed: {what}\n  next: ")
    assert "Dockerfile" not in told and "correct it" not in told


def test_three_of_these_messages_in_whole() -> None:
    assert built(NODES["crun and cgroups"][0]) == (
        "nid001: podman build failed: crun cannot work with this node's control groups\n"
        '  next: set `podman.runtime` to "runc", or `podman.isolation` to "chroot": `doit doctor` tries which\n'
        "        works; the site can start its nodes with cgroups of version 2 alone\n"
        "        (systemd.unified_cgroup_hierarchy=1)"
    )
    assert built(NODES["runtime"][0]) == (
        "nid001: podman build failed: the container could not be started\n"
        "  next: the last lines above are those of crun or runc: `doit doctor` tries a RUN on that node, and names\n"
        "        the settings with which it works"
    )
    assert built(NODES["disk"][0]) == (
        "nid001: podman build failed: no space is left\n"
        "  next: `df -h` and `df -i` on that node tell which disk is full, of bytes or of files: free\n"
        "        some, or let `podman.storage` or TMPDIR name a larger one; /dev/shm is the job's memory.\n"
        "        Then run the same command again"
    )


MISTAKES = {
    "exit status": run("collecting\nno torhc", status=3),
    "exit status, chroot": run("subprocess exited with status 127", status=127, runtime=False),
    "words of a program's log": run(
        'time="2026-11-29" level=fatal msg="open /etc/app.toml: permission denied"'
    ),
    "words of a program's error": run("Error: open /root/.cache: permission denied"),
    "words that systemd has too": run("Error: dbus: no session"),
    "words of a linker": run("cannot allocate memory in static TLS block"),
    "words of npm": run("npm ERR! Could not resolve dependency: x"),
    "words of a limit in the instruction": run(
        "", step="echo 'No space left on device: exit status 137'; false", status=1
    ),
    "words of a limit in what is copied": 'STEP 2/2: COPY max-depth-exceeded /\nError: building at STEP "COPY max depth exceeded /": checking on sources under "/c": copier: stat: "/max": no such file or directory',
    "source": 'STEP 2/2: COPY nosuch /x\nError: building at STEP "COPY nosuch /x": checking on sources under "/c": copier: stat: "/nosuch": no such file or directory',
    "instruction": 'STEP 2/2: ECHO x\nError: building at STEP "ECHO ": Build error: Unknown instruction: "ECHO" &imagebuilder.Step{}',
    "flag": 'STEP 2/2: COPY --nosuch a b\nError: building at STEP "COPY --nosuch a b": COPY only supports the --chmod=<permissions> --chown=<uid:gid> and the --from=<image|stage> flags',
    "arguments": 'STEP 2/2: ENV\nError: building at STEP "ENV ": ENV requires at least one argument',
    "mount": 'STEP 2/2: RUN make\nError: building at STEP "RUN make": resolving mountpoints for container "7b": invalid mount type "nosuch"',
    "user": 'STEP 3/3: RUN true\nError: building at STEP "RUN true": determining run uid: user: unknown user error looking up user "nobodyhere"',
    "program, runc": not_started(
        'time="2026-11-29T04:47:15Z" level=error msg="runc create failed: unable to start container process: exec: \\"nosuch\\": executable file not found in $PATH"',
        "/usr/bin/runc",
    ),
    "program, crun": not_started(
        "executable file `nosuch` not found in $PATH: No such file or directory"
    ),
    "workdir, runc": not_started(
        'time="2026-11-29T04:47:15Z" level=error msg="runc create failed: unable to start container process: chdir to cwd (\\"/bin/sh\\") set in config.json failed: not a directory"',
        "/usr/bin/runc",
    ),
    "program, chroot": run(
        "process failed to start with error: fork/exec /nosuch/cmd: no such file or directoryprocess exited with error: exec: not startedsubprocess exited with status 1",
        runtime=False,
    ),
    "workdir": 'STEP 3/3: RUN true\nerror chdir()ing into directory "/bin/busybox" under root "/var/tmp/buildah35/mnt/rootfs": not a directory\nsubprocess exited with status 1\nError: building at STEP "RUN true": exit status 1',
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_dockerfile_is_to_be_corrected(name: str) -> None:
    assert built(MISTAKES[name], 3) == (
        f"projects/x:1/Dockerfile: podman build failed with exit status 3\n  next: {CORRECT}"
    )


def test_where_the_layers_are_kept_the_next_step_may_be_to_look_at_them() -> None:
    lines = MISTAKES["workdir"].splitlines()
    assert str(failure.explain(3, lines, PROJECT, debuggable=True)) == (
        "projects/x:1/Dockerfile: podman build failed with exit status 3\n"
        f"  next: {CORRECT};\n        `doit debug x:1` starts a shell where it failed"
    )


MET = {
    "OSError: [Errno 28] No space left on device": "no space is left",
    "cp: error writing '/big': Disk quota exceeded": "a disk quota is used up",
    "make: vfork: Resource temporarily unavailable": "no more processes can be started",
    "c++: fatal error: cannot allocate memory": "no memory is left",
    "curl: (6) Could not resolve host: pypi.org": "a host on the network could not be reached",
    "Temporary failure resolving 'mirror.example'": "a host on the network could not be reached",
    "curl: (60) SSL certificate problem: self-signed certificate": "a host on the network could not be reached",
    "subprocess exited on killed": "it was killed, as happens when memory runs out",
    "exec /x: exec format error": "a file is for another machine, or is not a program",
}


@pytest.mark.parametrize("words", MET)
def test_a_command_that_met_a_limit_of_its_node_is_not_blamed_alone(words: str) -> None:
    told = built(run(words, step="pip install torch"), 1)
    assert told.startswith(
        "projects/x:1/Dockerfile: podman build failed with exit status 1\n"
        f"  next: on nid001, {MET[words]}, by the lines above:\n"
    )
    assert told.endswith(f"if it is the Dockerfile, {CORRECT}")


def test_a_command_that_was_killed_may_have_run_out_of_memory() -> None:
    assert built(run("", status=137), 137) == (
        "projects/x:1/Dockerfile: podman build was ended by SIGKILL\n"
        "  next: on nid001, it was killed, as happens when memory runs out, by the lines above:\n"
        '        ask Slurm for more memory with `slurm.extra`, as in ["--mem=64G"], or for fewer processors; what\n'
        "        lies in /dev/shm counts too: podman's images in a job. Then run the same command again;\n"
        f"        if it is the Dockerfile, {CORRECT}"
    )


def test_what_is_not_known_blames_nobody() -> None:
    told = built("STEP 1/2: FROM b\nError: something that no version said before")
    assert NEUTRAL in told and "correct it" not in told


# What podman says of a pull that fails, after the reference, and what it means.
PULLS = {
    "reading manifest 1 in r.io/a/b: unauthorized: authentication required": Refusal.UNAUTHORISED,
    "reading manifest 1 in r.io/a/b: denied: requested access to the resource is denied": Refusal.UNAUTHORISED,
    "reading manifest 1 in r.io/a/b: manifest unknown": Refusal.UNKNOWN,
    "reading manifest 1 in r.io/a/b: name unknown: name unknown": Refusal.UNKNOWN,
    # Docker Hub's.
    "reading manifest 1 in r.io/a/b: toomanyrequests: You have reached your pull rate limit.": Refusal.LIMITED,
    "reading manifest 1 in r.io/a/b: received unexpected HTTP status: 500 Internal Server Error": Refusal.FAILING,
    'pinging container registry r.io: Get "https://r.io/v2/": dial tcp 127.0.0.1:1: connect: connection refused': Refusal.UNREACHABLE,
    'pinging container registry r.io: Get "https://r.io/v2/": dial tcp: lookup r.io on 10.0.0.53:53: no such host': Refusal.UNRESOLVED,
    'pinging container registry r.io: Get "https://r.io/v2/": proxyconnect tcp: dial tcp 127.0.0.1:1: connect: connection refused': Refusal.PROXY,
    'pinging container registry r.io: Get "https://r.io/v2/": x509: certificate signed by unknown authority': Refusal.UNTRUSTED,
    'pinging container registry r.io: Get "https://r.io/v2/": tls: first record does not look like a TLS handshake': Refusal.UNTRUSTED,
    "Unexpectedly received a manifest list instead of a manifest for a single image": Refusal.NESTED,
    'no image found in image index for architecture amd64, variant "", OS linux': Refusal.ELSEWHERE,
    "invalid character '<' looking for beginning of value": Refusal.DAMAGED,
    "Download config.json digest sha256:fd does not match expected sha256:11": Refusal.DAMAGED,
    "unsupported image-specific operation on artifact with type application/x": Refusal.UNSUPPORTED,
    # As containers/image says it (docker/docker_client.go and pkg/sysregistriesv2).
    'getting username and password: reading JSON file "/run/auth.json": invalid character': Refusal.CREDENTIALS,
    "registry r.io is blocked in /etc/containers/registries.conf or /etc/containers/registries.conf.d": Refusal.BLOCKED,
    "something that no version said before": Refusal.OTHER,
}


@pytest.mark.parametrize("words", PULLS)
def test_each_pull_that_fails_has_its_own_hint(words: str) -> None:
    # The name of an image tells nothing of its registry.
    for reference in ("r.io/a/b:1", "r.io/denied/unauthorized:1", "r.io/a/b@sha256:00"):
        name = re.split("[:@]", reference)[0]
        said = f"Error: initializing source docker://{reference}: {words.replace('r.io/a/b', name)}"
        assert refusal(said, reference) is PULLS[words]
        told = not_pulled(reference, 125, deque(["Trying to pull…", said], maxlen=5))
        assert told.where == reference and told.hint and "{" not in told.hint


def test_a_pull_that_finds_no_space_is_the_nodes_affair() -> None:
    told = not_pulled(
        "r.io/a:1", 125, ["Error: copying system image: write /s/x: no space left on device"]
    )
    assert told.headline == "nid001: podman pull r.io/a:1 failed: no space is left"
    told = not_pulled(
        "bsae",
        125,
        [
            'Error: short-name "bsae" did not resolve to an alias and no unqualified-search registries are defined in "/etc/containers/registries.conf"'
        ],
    )
    assert str(told) == (
        "bsae: podman does not know which registry this name is of\n"
        "  next: check the name, or write the registry too, as in docker.io/library/debian:12"
    )


def test_credentials_that_are_not_on_the_node_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/run/user/1000/auth.json")
    said = "Error: stat /run/user/1000/auth.json: no such file or directory"
    assert str(not_pulled("r.io/a:1", 125, [said])) == (
        "r.io/a:1: the file of credentials that REGISTRY_AUTH_FILE names cannot be read on this host\n"
        "  next: `podman login r.io` makes it, in a place that the nodes share; or unset that variable"
    )


def test_credentials_of_somebody_else_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/home/ada/auth.json")
    said = [
        "Error: 1 error occurred:",
        '\t* reading JSON file "/home/ada/auth.json": open /home/ada/auth.json: permission denied',
    ]
    assert "REGISTRY_AUTH_FILE names cannot be read" in str(not_pulled("r.io/a:1", 125, said))


def test_each_hint_of_a_refusal_is_another_one() -> None:
    hints = {str(not_pulled("r.io/a/b:1", 125, [f"Error: {words}"]).hint) for words in PULLS}
    assert len(hints) == len(set(PULLS.values()))


SQUASHES = {
    "FATAL ERROR: Out of memory (frag_thrd)": "no memory is left",
    "FATAL ERROR: Failed to create thread: Resource temporarily unavailable": "no more processes can be started",
    "Write failed because No space left on device": "no space is left",
    "Read failed because Input/output error": "a file system gives no answer",
    # Of mksquashfs 4.4 and 4.7 (squashfs-tools#103, #361, #360).
    "FATAL ERROR:xz uncompress failed with error code 9": "mksquashfs failed while it compared files, as versions 4.7 to 4.7.5 can",
    "FATAL ERROR: zstd uncompress failed with error code 20": "mksquashfs failed while it compared files, as versions 4.7 to 4.7.5 can",
    "FATAL ERROR: BUG in get_virt_disk, 1991996551 not found": "mksquashfs failed while it compared files, as versions 4.7 to 4.7.5 can",
    # Of unsquashfs 4.3 (unsquashfs.c).
    "Filesystem uses zstd compression, this is unsupported by this version": "this version of squashfs-tools lacks the compressor",
}


@pytest.mark.parametrize("words", SQUASHES)
def test_a_tool_that_met_a_limit_says_so(words: str) -> None:
    told = command.failure(Command(("mksquashfs", "a", "b")), 1, [words])
    assert told.headline == "mksquashfs failed with exit status 1: mksquashfs a b"
    assert told.quote == (words,)
    assert str(told.hint).startswith(f"on nid001, {SQUASHES[words]}:\n")


def test_a_tool_that_was_killed_says_so() -> None:
    told = command.failure(Command(("mksquashfs", "a", "b")), -9, [])
    assert str(told.hint).startswith("on nid001, it was killed, as happens when memory runs out:\n")


def test_causes_are_told_apart() -> None:
    table = (*failures.LIMITS, *failures.PODMAN, *failures.SQUASHFS)
    assert len({each.what for each in table}) == len(table)
    assert all("Dockerfile" not in each.hint and each.hint for each in table)


LAUNCHES = [
    (
        Launcher.PODMAN,
        125,
        'Error: default OCI runtime "nosuch" not found: invalid argument',
        "if podman wrote the last lines above, and not the test, there is no program that runs containers on nid001:\n",
    ),
    (
        Launcher.PODMAN,
        126,
        "Error: OCI runtime error: crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2",
        "if podman wrote the last lines above, and not the test, crun cannot work with this node's control groups on nid001:\n",
    ),
    (
        Launcher.PODMAN,
        125,
        "Error: something new",
        "if podman wrote the last lines above, and not the test, no container started on nid001:\n",
    ),
    # Of Enroot 4.1.2.
    (
        Launcher.ENROOT,
        1,
        "enroot-mksquashovlfs: failed to mount overlay: No space left on device",
        "if enroot wrote the last lines above, and not the test, no space is left on nid001:\n",
    ),
    (
        Launcher.ENROOT,
        1,
        "[ERROR] Command not found: squashfuse",
        "if enroot wrote the last lines above, and not the test, no container started on nid001:\n",
    ),
    (
        Launcher.PYXIS,
        1,
        "slurmstepd: error: pyxis: mktemp failed",
        "if pyxis wrote the last lines above, and not the test, no container started on nid001:\n",
    ),
    (Launcher.PODMAN, 137, "", "it was killed, as happens when memory runs out: "),
    # What the test itself says and how it ends.
    (Launcher.PODMAN, 3, "Error: no space left on device", ""),
    (
        Launcher.PODMAN,
        127,
        "Error: crun: executable file `x` not found in $PATH: No such file or directory",
        "",
    ),
    (Launcher.ENROOT, 1, "python: no module named torch", ""),
    (
        Launcher.ENROOT,
        1,
        "[ERROR] CUDA out of memory",
        "if enroot wrote the last lines above, and not the test, no container started on nid001:\n",
    ),
    (Launcher.CE, 1, "CE: 0.2314", ""),
    (Launcher.PYXIS, 1, "pyxis: a test of mine", ""),
    (
        Launcher.PYXIS,
        1,
        "[2026-11-28T16:45:03.978] error: pyxis: mktemp failed",
        "if pyxis wrote the last lines above, and not the test, no container started on nid001:\n",
    ),
    (Launcher.PODMAN, 126, 'Error: runc: exec: "/etc": permission denied', ""),
    (Launcher.PODMAN, 126, "Error: crun: open executable: exec format error", ""),
]


@pytest.mark.parametrize(("launcher", "status", "line", "begins"), LAUNCHES)
def test_a_launcher_that_fails_itself_is_told_from_its_test(
    launcher: Launcher, status: int, line: str, begins: str
) -> None:
    told = launch_failure.hint(launcher, status, [line])
    assert told.startswith(begins) and bool(told) is bool(begins)


# Where a hint says that something of the user's is to be corrected, and the mistake that was found there.
BLAMES = {
    ("commands/doit_main.py", "_settings_problem"): "rights to pyproject.toml",
    ("model/config/sources.py", "from_file"): "rights to a settings file",
    ("model/graph/context.py", "_scan"): "rights to a directory of the context",
    ("model/graph/context.py", "_read_rules"): "rights to .dockerignore",
    ("model/edf/chain.py", "_values"): "rights to an EDF",
    ("util/toml_schema.py", "failure"): "wrong keys or values in a file",
    ("model/graph/pin.py", "_time"): "no time in bases.lock",
    ("model/graph/project.py", "_unreadable"): "rights to a project",
    ("util/toml_text.py", "loads"): "a line that is no TOML",
    ("state/checkout.py", "read_dockerfile"): "rights to a Dockerfile",
    ("engine/upkeep/imports.py", ""): "a path in a bake or compose file",
    ("state/judge.py", "_env"): "rights to env.toml",
    ("state/published/verify.py", "_edf"): "env.toml that is no TOML",
    (
        "steps/podman/failure.py",
        "explain",
    ): "what podman says of a Dockerfile, or a RUN that ended by itself",
    ("steps/container/failure.py", "hint"): "beside the memory of a test that was killed",
    ("steps/publish/smoke.py", ""): "a test that ran and failed",
}


def test_only_where_a_mistake_was_found_does_a_hint_ask_to_correct_it() -> None:
    package = Path(rc_tasks.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        documents = {
            id(each.body[0].value)
            for each in ast.walk(tree)
            if isinstance(each, ast.Module | ast.ClassDef | ast.FunctionDef)
            and isinstance(each.body[0], ast.Expr)
        }
        # The innermost function comes last.
        inside = {
            id(constant): function.name
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for constant in ast.walk(function)
        }
        found |= {
            (str(path.relative_to(package)), inside.get(id(each), ""))
            for each in ast.walk(tree)
            if isinstance(each, ast.Constant)
            and isinstance(each.value, str)
            and id(each) not in documents
            if re.search(r"\b(mend|correct) (it|its|the|this)\b", each.value)
        }
    # All that model/imported/ reports are mistakes in a file that is imported.
    assert {entry for entry in found if not entry[0].startswith("model/imported/")} == BLAMES.keys()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_a_file_that_the_system_cannot_read_is_not_to_be_corrected(number: int) -> None:
    error = OSError(number, os.strerror(number), "Dockerfile")
    assert "correct" not in advice(error, "correct its permissions")
    assert advice(PermissionError(errno.EACCES, "no"), "correct its permissions").startswith("correct")
