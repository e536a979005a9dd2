"""`doit debug` after real builds that failed: the container has what the failed instruction had.

The messages for builds that cannot be debugged stand in tests/golden/debug.txt;

    UPDATE_GOLDEN=1 pytest tests/integration/test_debug.py

writes them again.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from rc_tasks.tools import podman, podman_versions
from tests.integration.test_mounted_images import processes_below
from tests.integration.test_secrets import arguments_of_all, holding
from tests.integration.test_workflow import Terminal
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.doit import DOIT, pythons
from tests.support.images import BUSYBOX
from tests.support.storage import remove_storage
from tests.support.tools import require_tools
from tests.support.users import ordinary_user, python

pytestmark = pytest.mark.podman

GOLDEN = Path(__file__).parents[1] / "golden/debug.txt"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
BASE = "FROM scratch\nCOPY rootfs/ /\nENV PATH=/bin FROM_BASE=b\n"
APPLETS = (
    "sh",
    "cat",
    "ls",
    "env",
    "id",
    "pwd",
    "sort",
    "grep",
    "echo",
    "touch",
    "false",
    "chmod",
    "mkdir",
)
# All that a program can see of where it runs.
REPORT = "echo BEGIN; env | sort; id; pwd; umask; ls -ld . /made /tmp; cat /made; echo END; exit 7"
# What podman adds to each container, the history of the shell, and a line of podman's that
# may reach the log before the last lines of the program.
ADDED = r"(HISTFILE|HOSTNAME|OLDPWD|SHLVL|TERM|_|container)=.*|subprocess exited with status \d+"
# The stages, arguments and variables of a Dockerfile whose RUN fails, its flags aside.
SEEN = r"""ARG GLOBAL=g
FROM base AS first
ARG IN_FIRST="one two"
ENV E=$IN_FIRST
RUN echo first > /made
FROM base AS other
RUN echo other > /other
FROM first
COPY --from=other /other /other
ARG GLOBAL
ARG B=${E}-${GLOBAL}-$IN_FIRST C='$B' GIVEN=default
ARG FROM_BASE=hidden
ARG TARGETARCH
ENV LATE="it's \"late\""
ARG LATE=hidden
USER 12:34
WORKDIR /some/where
SHELL ["/bin/sh", "-u", "-c"]
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A checkout with a base of busybox, and nodes with podman storages of their own."""

    root: Path
    storages: Path
    environ: Mapping[str, str]

    def project(self, text: str, name: str = "x:1", **files: str) -> None:
        """Write a project; `_` in the name of a file is a dot."""
        directory = self.root / "projects" / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, content in {"Dockerfile": text, **files}.items():
            (directory / file.replace("_", ".")).write_text(content)

    def variables(self, node: str) -> dict[str, str]:
        return {**os.environ, **self.environ, "RC_PODMAN_STORAGE": str(self.storages / node)}

    def doit(
        self, *argv: str, node: str = "b", status: int = 0, **more: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run doit, whose steps run on a node."""
        done = subprocess.run(
            (DOIT, *argv),
            cwd=self.root,
            env=self.variables(node) | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done

    def fail(self, text: str, **files: str) -> str:
        """Build a project whose instruction fails, on node `a`; return the log."""
        self.project(text, **files)
        failed = self.doit("build:x:1", node="a", status=1)
        assert "`doit debug x:1` starts a shell where it failed" in failed.stdout, failed.stdout
        return (self.root / ".rc/logs/x:1/podman/failed.log").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout in which the base is built."""
    if os.geteuid() != 0:
        pytest.skip("several storages side by side need root")
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox", "runc")
    root = write_checkout(tmp_path_factory.mktemp("debug") / "imgs", {"base/Dockerfile": BASE})
    write_programs(root / "base/rootfs")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as storages:
        made = Place(root, Path(storages), variables(Path(storages)))
        made.doit("build:base", node="a")
        remove_storage(made.storages / "a")
    yield root


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Iterator[Place]:
    """A copy of that checkout, and nodes that have nothing."""
    root = tmp_path / "imgs, ä"
    subprocess.run(("cp", "-a", built, root), check=True)
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as name:
        storages = Path(name)
        yield Place(root, storages, variables(storages))
        for storage in storages.iterdir():
            remove_storage(storage)


def variables(storages: Path) -> dict[str, str]:
    (storages / "tmp").mkdir(exist_ok=True)
    return {
        "RC_RUNNER": "local",
        "RC_PODMAN_DRIVER": "overlay",
        "RC_PODMAN_ISOLATION": "chroot",
        "RC_PODMAN_RUNTIME": "runc",
        "RC_STORE_MOUNT": "always",
        "TMPDIR": str(storages / "tmp"),
    }


def write_programs(rootfs: Path) -> None:
    """Write a root file system with busybox."""
    (rootfs / "bin").mkdir(parents=True)
    (rootfs / "tmp").mkdir(mode=0o1777)
    shutil.copy(BUSYBOX, rootfs / "bin/busybox")
    for applet in APPLETS:
        (rootfs / "bin" / applet).symlink_to("busybox")


def reported(text: str) -> list[str]:
    """The report of a program, without what podman adds, and without times and sizes."""
    (report,) = re.findall(r"^BEGIN\n(.*?)^END$", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r" +\d+ \w{3} +\d+ \d\d:\d\d", "", line) for line in report.splitlines()]
    return [line for line in lines if not re.fullmatch(ADDED, line)]


def nothing_is_left(place: Place, node: str = "b") -> None:
    """Neither a container, nor a mount, nor a temporary file."""
    containers = ("podman", "--root", place.storages / node / "root", "ps", "--all", "--quiet")
    options = ("--runroot", place.storages / node / "run", "--storage-driver=overlay")
    argv = (*containers[:3], *options, *containers[3:])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(place.root) not in mounts and "/merged " not in mounts.partition(str(place.storages))[2]
    assert list((place.storages / "tmp").iterdir()) == []


@pytest.mark.parametrize("mount", ["always", "never"])
def test_a_command_has_what_the_instruction_had(place: Place, mount: str) -> None:
    flags = "--mount=type=cache,target=/cache --mount=type=bind,target=/b "
    log = place.fail(f"{SEEN}RUN {flags}{REPORT}\n", project_toml='build_args = {GIVEN = "it\'s g"}\n')
    expected = reported(log)
    assert {"C=$B", "GIVEN=it's g", 'LATE=it\'s "late"', "FROM_BASE=b"} <= {*expected}
    ran = place.doit("debug", "x:1", "--", "sh", "-c", REPORT, status=7, RC_STORE_MOUNT=mount)
    assert reported(ran.stdout) == expected
    # Standard output is all the command's.
    assert ran.stdout.startswith("BEGIN\n") and ran.stdout.endswith("END\n")
    assert ("mounted " in ran.stderr) == (mount == "always")
    again = place.doit("debug", "x:1", "--", "/run/doit/again", status=7, RC_STORE_MOUNT=mount)
    assert reported(again.stdout) == expected
    nothing_is_left(place)


def test_the_instruction_is_shown_with_its_line_and_what_is_not_as_in_the_build(place: Place) -> None:
    place.fail(
        "FROM base AS tools\nRUN touch /tool\n\n# no\nFROM base\n"
        "RUN --mount=type=cache,target=/cache \\\n    --mount=type=bind,from=tools,target=/t \\\n"
        "    # why\n    cat \\\n    /nosuch\n"
    )
    image_id = r"[0-9a-f]{12}"
    ran = place.doit("debug", "x:1", "--", "ls", "/cache")
    told = re.sub(rf"mounted {image_id}: \d layers\n", "", ran.stderr.partition("\n")[2])
    assert re.sub(f"image {image_id}", "image ID", told) == (
        "projects/x:1/Dockerfile:6 failed:\n"
        "  | RUN --mount=type=cache,target=/cache \\\n"
        "  |     --mount=type=bind,from=tools,target=/t \\\n"
        "  |     # why\n"
        "  |     cat \\\n"
        "  |     /nosuch\n"
        "image ID in /\n"
        "/context is projects/x:1/, read-only\n"
        "  --mount=type=cache,target=/cache: empty here\n"
        "  --mount=type=bind,from=tools,target=/t: not mounted here, as it is of another image or"
        " stage\n"
        "to run the command as the build did: /run/doit/again\n"
        "next: correct projects/x:1/Dockerfile, then `doit build:x:1`\n"
    )
    # People edit it before they look.
    place.project("FROM base\nRUN something else\n")
    ran = place.doit("debug", "x:1", "--", "ls", "/cache")
    assert "projects/x:1/Dockerfile has changed since; this is how it was\n" in ran.stderr
    assert "  |     /nosuch\n" in ran.stderr


@pytest.mark.parametrize(
    ("text", "line", "command", "output"),
    [
        # In the first instruction, on a base of this checkout.
        ("FROM base\nRUN false\n", 2, "ls /made || echo none", "none\n"),
        # In a stage that is not the last one.
        (
            "FROM base AS a\nRUN echo a > /a\nRUN false\nFROM base\nCOPY --from=a /a /\n",
            3,
            "cat /a",
            "a\n",
        ),
        # In a stage that a RUN mounts, which is built by itself before.
        (
            "FROM base AS a\nRUN echo a > /a\nRUN false\nFROM base\n"
            "RUN --mount=from=a,target=/m cat /m/a\n",
            3,
            "cat /a",
            "a\n",
        ),
        # Below a stage that nothing needs.
        (
            "FROM base AS a\nRUN echo a > /a\n\nFROM base\nRUN echo b > /a\nRUN false\n",
            6,
            "cat /a",
            "b\n",
        ),
        # In the first of a stage that is built on another one.
        ("FROM base AS a\nENV A=1\nFROM a\nRUN false\n", 4, "echo $A", "1\n"),
        ('FROM base\nRUN echo 1 > /one\nRUN ["cat", "/no such"]\n', 3, "cat /one /run/doit/again", None),
        (
            'FROM base\nRUN ["sh", "-c", "echo 1\\nexit 2"]\n',
            2,
            "cat /run/doit/history; /run/doit/again",
            "/run/doit/again\n1\n",
        ),
        ("FROM base\nRUN echo 1 > /one\nCOPY nosuch /\n", 3, "cat /one; ls /context", "1\nDockerfile\n"),
    ],
    ids=["base", "stage", "mounted-stage", "unused-stage", "on-stage", "exec-form", "lines", "copy"],
)
def test_the_container_has_the_layers_up_to_the_instruction(
    place: Place, text: str, line: int, command: str, output: str | None
) -> None:
    place.fail(text)
    ran = place.doit("debug", "x:1", "--", "sh", "-c", f"{command}; exit 0")
    assert ran.stdout == (output or "1\n#!/bin/sh\nexec cat '/no such'\n")
    assert f"projects/x:1/Dockerfile:{line} failed:\n" in ran.stderr
    assert ("/run/doit/again" in ran.stderr) == ("COPY nosuch" not in text)


def test_a_target_and_a_second_failure_on_another_node(place: Place) -> None:
    text = "FROM base AS a\nRUN echo a > /a\nRUN false\nFROM base\nRUN nosuch\n"
    place.fail(text, project_toml='target = "a"\n')
    place.doit("build:x:1", node="c", status=1)
    assert "Using cache" in (place.root / ".rc/logs/x:1/podman/failed.log").read_text()
    ran = place.doit("debug", "x:1", "--", "cat", "/a")
    assert ran.stdout == "a\n" and "Dockerfile:3 failed" in ran.stderr


def test_an_onbuild_of_the_base(place: Place) -> None:
    place.project("FROM base\nONBUILD RUN echo t > /t\nONBUILD RUN cat /nosuch\n", "parent:1")
    place.fail("FROM parent:1\nRUN true\n")
    ran = place.doit("debug", "x:1", "--", "sh", "-c", "cat /t; cat /run/doit/history")
    assert ran.stdout == "t\ncat /nosuch\n/bin/sh -c 'cat /nosuch'\n"
    assert (
        "projects/x:1/Dockerfile:1: an ONBUILD of the base failed:\n  | RUN cat /nosuch\n" in ran.stderr
    )


def test_a_heredoc(place: Place) -> None:
    if not podman_versions.at_least(podman.version(), podman_versions.HEREDOCS_SINCE):
        pytest.skip("this podman knows no here-documents")
    for text, output in (
        ('RUN <<EOF\necho it\\\'s "$PATH"\nexit 6\nEOF\n', "it's /bin\n"),
        ("RUN cat <<EOF && exit 6\nx $PATH\nEOF\n", "x /bin\n"),
    ):
        place.fail(f"FROM base\n{text}")
        ran = place.doit("debug", "x:1", "--", "/run/doit/again", status=6)
        assert ran.stdout == output


def test_what_is_changed_in_the_container_is_gone_and_the_build_resumes(place: Place) -> None:
    place.fail("FROM base\nRUN echo built > /made\nRUN grep x /made\n", file="of the context\n")
    change = "echo x > /made; cat /made /context/file; touch /context/new"
    ran = place.doit("debug", "x:1", "--", "sh", "-c", change, status=1)
    assert ran.stdout == "x\nof the context\n"
    assert "/context/new: Read-only file system" in ran.stderr
    assert place.doit("debug", "x:1", "--", "cat", "/made").stdout == "built\n"
    place.project("FROM base\nRUN echo built > /made\nRUN grep built /made\n")
    place.doit("podman:x:1", node="c")
    assert "Using cache" in (place.root / ".rc/logs/x:1/podman/latest.log").read_text()
    # Now there is nothing to debug.
    assert "x:1 did not fail" in place.doit("debug", "x:1", status=3).stderr


def test_secrets_are_there_only_if_they_are_asked_for(place: Place, tmp_path: Path) -> None:
    token, key = "tok_4f9c+(a|b)", "-----key-----\n"
    (tmp_path / "key").write_text(key)
    recipe = 'secrets = ["id=token,env=MY_TOKEN", "id=key,src=../../../key", "id=own,src=own.key"]\n'
    place.project(
        "FROM base\nRUN --mount=type=secret,id=token --mount=type=secret,id=key,target=/k false\n",
        project_toml=recipe,
        own_key=key,
        _containerignore="own.key\n",
    )
    place.doit("build:x:1", node="a", status=1, MY_TOKEN=token)
    show = ("sh", "-c", "cat /run/secrets/token /k; echo; cat /context/own.key")
    without = place.doit("debug", "x:1", "--", *show)
    assert without.stdout == "\n"
    assert "--mount=type=secret,id=token: not mounted here without --secrets" in without.stderr
    with arguments_of_all() as seen:
        ran = place.doit("debug", "x:1", "--secrets", "--", *show, MY_TOKEN=token)
    assert ran.stdout == f"{token}{key}\n"
    assert any("/run/secrets/token" in argv for argv in seen)
    assert not [text for text in (*seen, ran.stderr) if token in text or key.strip() in text]
    nothing_is_left(place)
    for directory in (place.root / ".rc", place.storages):
        assert list(holding(directory, (token, key))) == []
    missing = place.doit("debug", "x:1", "--secrets", "--", *show, status=125)
    assert "the secret token is to come from MY_TOKEN, which is not set here" in missing.stderr


def test_a_shell_has_the_command_in_its_history(place: Place) -> None:
    """bash, which the image has; Debian's busybox and dash read no history."""
    rootfs = place.root / "base/rootfs"
    libraries = subprocess.run(("ldd", "/bin/bash"), capture_output=True, text=True, check=True).stdout
    for path in ("/bin/bash", *re.findall(r"(/\S+) \(0x", libraries)):
        (rootfs / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, rootfs / path[1:])
    text = "FROM base\nUSER 12:34\nRUN a='it'\\''s' && \\\n  echo \"$a <$0>\" | cat; exit 3\n"
    place.fail(text)
    environ = {"TERM": "dumb", **place.variables("b")}
    with Terminal((DOIT, "debug", "x:1"), place.root, environ) as shell:
        told = shell.wait_for(r"bash-[\d.]+\$ ")
        assert "to run the command as the build did: Up in the shell, or /run/doit/again\n" in told
        shell.type("\x1b[A")
        shell.wait_for("exit 3'")
        shell.type("; echo status $?\n")
        assert "\nit's </bin/sh>\nstatus 3\n" in shell.wait_for(r"status 3\n")
        shell.type("echo typed; exit 5\n")
        assert shell.end() == 5
        assert shell.shown.endswith("next: correct projects/x:1/Dockerfile, then `doit build:x:1`\n")
    nothing_is_left(place)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_when_it_is_ended_nothing_of_it_stays(place: Place, number: signal.Signals) -> None:
    secret = {"TOKEN": "a secret of ours"}
    recipe = 'secrets = ["id=a,env=TOKEN"]\n'
    place.project("FROM base\nRUN --mount=type=secret,id=a false\n", project_toml=recipe)
    place.doit("build:x:1", node="a", status=1, **secret)
    argv = ("debug", "--secrets", "x:1", "--", "sh", "-c", "echo rea''dy; while :; do sleep 0.1; done")
    with Terminal((DOIT, *argv), place.root, place.variables("b") | secret) as shell:
        shell.wait_for("ready\n")
        assert list(holding(place.storages / "tmp", (secret["TOKEN"],)))
        for pid, words in processes_below(shell.process.pid).items():
            if number is signal.SIGTERM or "rc_tasks.steps" in words:
                os.kill(pid, number)
                break
        shell.process.wait(60)
    if number is signal.SIGKILL:
        # The next step on the node removes what is left.
        place.doit("debug", "x:1", "--", "pwd")
    nothing_is_left(place)
    assert not any("sleep 0.1" in words for words in processes_below(1).values() if "rea''dy" in words)


def test_builds_that_cannot_be_debugged_say_what_helps(place: Place) -> None:
    place.project("FROM scratch\nCOPY nosuch /\n", "nothing:1")
    place.project("FROM base\n", "fresh:1")
    place.project("FROM base\n", "smoke:1", project_toml='smoke = [["cat", "/nosuch"]]\n')
    place.project("FROM base\nRUN false\n", "unkept:1")
    place.project("FROM base\nRUN false\n", "failed:1")
    place.project("FROM base\nRUN false\n", "failed:2")
    place.project("FROM registry.invalid/x:1\n", "unpulled:1")
    transcript = ""
    commands: tuple[tuple[str, int, dict[str, str]], ...] = (
        ("debug", 3, {}),
        ("debug nosuch", 3, {}),
        ("debug failed:1 failed:2", 3, {}),
        ("debug failed", 3, {}),
        ("debug failed:1 --root", 3, {}),
        ("debug fresh:1", 3, {}),
        ("build:nothing:1", 1, {}),
        ("debug nothing:1", 3, {}),
        ("build:smoke:1", 1, {"RC_LAUNCHER": "podman"}),
        ("debug smoke:1", 3, {}),
        ("build:unkept:1", 1, {"RC_STORE_ENABLED": "false"}),
        ("debug unkept:1", 3, {"RC_STORE_ENABLED": "false"}),
        ("build:unpulled:1", 1, {}),
        ("debug unpulled:1", 3, {}),
        ("build:failed:1", 1, {}),
        ("debug failed:1", 3, {}),
        ("debug failed:1 --print", 0, {}),
        ("debug failed:1 --print --secrets -- ls -l", 0, {}),
        ("debug failed:1 -- nosuch", 127, {}),
    )
    for line, status, more in commands:
        done = place.doit(*line.split(), node="a", status=status, **more)
        if line.startswith("debug"):
            transcript += f"$ doit {line}\n{done.stdout}{done.stderr}[exit {status}]\n\n"
    image = next(iter((place.root / ".rc/store/images").glob(f"{image_of(place, 'failed:1')}*")))
    image.rename(place.root / "away")
    done = place.doit("debug", "failed:1", "--", "pwd", node="c", status=125)
    transcript += f"$ doit debug failed:1 -- pwd\n{done.stderr}[exit 125]\n"
    for path, name in ((str(place.root), "CHECKOUT"), *((path, "PYTHON") for path in pythons())):
        transcript = transcript.replace(f"'{path}'", name).replace(path, name)
    transcript = re.sub(r"[0-9a-f]{12}\b", "ID", transcript).replace(os.uname().nodename, "HOST")
    transcript = re.sub(r"Error: .*nosuch.*", "The words of podman and its runtime", transcript)
    if UPDATE:
        GOLDEN.write_text(transcript)
    assert transcript == GOLDEN.read_text(), "UPDATE_GOLDEN=1 writes it again; read the diff"


def image_of(place: Place, name: str) -> str:
    text = (place.root / f".rc/store/cache/{name}.json").read_text()
    (image_id,) = re.findall(r'"instruction": \{.*?"image_id": "([0-9a-f]+)"', text, re.DOTALL)
    return str(image_id)


@pytest.mark.slurm
def test_it_runs_on_a_compute_node_and_leaves_nothing_there(place: Place, cluster: Cluster) -> None:
    place.fail("FROM base\nRUN echo built > /made\nRUN false\n")
    slurm = {**cluster.environment, "RC_RUNNER": "slurm", "RC_DEBUG_ACCOUNT": ACCOUNT}
    environ = place.variables("b") | slurm
    del environ["RC_PODMAN_STORAGE"]
    report = "cat /made; exit 9"
    argv = (DOIT, "debug", "x:1", "--", "sh", "-c", report)
    done = subprocess.run(
        argv,
        cwd=place.root,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (9, "built\n"), done.stderr
    assert re.search(r"^\$ srun .*--job-name=debug:x:1 ", done.stderr, re.MULTILINE)
    user = Path("/dev/shm", os.environ.get("USER", "0"), "rc_tasks")
    assert not user.exists() or list(user.iterdir()) == []
    with Terminal((DOIT, "debug", "x:1"), place.root, environ) as shell:
        shell.wait_for(r"[/~] [#$] ")
        shell.type("echo node $SLURMD''_NODENAME; cat /made; exit 4\n")
        shell.wait_for("built\n")
        assert shell.end() == 4
    assert not user.exists() or list(user.iterdir()) == []


def test_nothing_is_left_when_podman_cleans_up_late(place: Place, tmp_path: Path) -> None:
    """`podman run` can return before the cleanup that conmon starts has ended, here long before."""
    place.fail("FROM base\nRUN false\n")
    # podman waits for the first; the second stands for what the first still does after that.
    write_program(tmp_path / "podman", 'podman "$@"; sleep 2; podman "$@"')
    slow = f"""
for word do
    shift
    [ "$before" = --exit-command ] && word='{tmp_path}/podman'
    set -- "$@" "$word"
    before=$word
done
exec conmon "$@"
"""
    write_program(tmp_path / "conmon", slow)
    settings = tmp_path / "containers.conf"
    settings.write_text(f'[engine]\nconmon_path = ["{tmp_path}/conmon"]\n')
    user = f"rc-{os.getpid()}"
    job = {"USER": user, "SLURM_JOB_ID": "1", "CONTAINERS_CONF": str(settings)}
    environ = place.variables("b") | job
    del environ["RC_PODMAN_STORAGE"]
    debug = (sys.executable, "-m", "rc_tasks.steps.podman.debug", "--alone", place.root, "x:1")
    storages = Path("/dev/shm", user, "rc_tasks")
    try:
        subprocess.run((*debug, "sh", "-c", "exit"), cwd=place.root, env=environ, check=True)
        time.sleep(3)
        assert list(storages.iterdir()) == []
    finally:
        remove_storage(storages / "1")
        shutil.rmtree(storages.parent)


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_ordinary_user(tmp_path: Path) -> None:
    require_tools("podman", "mksquashfs", "busybox", "useradd", "runuser", "squashfuse_ll", "runc")
    if os.geteuid() != 0:
        pytest.skip("only root can make an ordinary user")
    with ordinary_user() as user:
        text = "FROM base\nUSER 12:34\nARG A=1\nRUN env; id; cat /context/file; exit 3\n"
        files = {"base/Dockerfile": BASE, "projects/x:1/Dockerfile": text, "projects/x:1/file": "file\n"}
        root = write_checkout(user.home / "imgs", files)
        write_programs(root / "base/rootfs")
        subprocess.run(("chown", "--recursive", "--no-dereference", f"{user.name}:", root), check=True)
        squeue = user.home / "bin/squeue"
        squeue.parent.mkdir()
        squeue.write_text("#!/bin/sh\necho 1\n")
        squeue.chmod(0o755)
        variables = (f"PATH={squeue.parent}:/usr/bin:/bin", "SLURM_JOB_ID=1", f"TMPDIR={user.home}")
        start = (*user.argv, "env", f"--chdir={root}", *variables, "RC_PODMAN_RUNTIME=runc")
        steps = (*start, "RC_PODMAN_ISOLATION=chroot", *python(user), "-m")
        for name, status in (("base", 0), ("x:1", 1)):
            argv = (*steps, "rc_tasks.steps", "podman", name)
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == status, done.stdout + done.stderr
        debug = (*steps, "rc_tasks.steps.podman.debug", "--alone", str(root), "x:1")
        done = subprocess.run((*debug, "/run/doit/again"), capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "uid=12 gid=34" in done.stdout and "\nA=1\n" in done.stdout
        assert done.stdout.endswith("\nfile\n")
        assert not Path("/dev/shm", user.name, "rc_tasks/1").exists()
        assert list(user.home.glob("*rc_tasks*")) == []
