"""What members do all day: docs/how-to/change-an-image.md word for word, the old doors, and bad input.

The whole output of each case of bad input stands in tests/golden/workflow/CASE.txt;

    UPDATE_GOLDEN=1 pytest tests/integration/test_workflow.py

writes them all anew.
"""

import contextlib
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.support.checkouts import pretend_built, write_checkout
from tests.support.cluster import Cluster
from tests.support.containers import working_runtime
from tests.support.doit import DOIT, Ran, pythons
from tests.support.doit import doit as run_doit
from tests.support.storage import own_storage, remove_storage
from tests.support.tools import require_tools

SOURCE = Path(__file__).parents[2]
GOLDEN = SOURCE / "tests/golden/workflow"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
WALK_THROUGH = SOURCE / "docs/how-to/change-an-image.md"
URL = "https://github.com/swiss-ai/reasoning_containers"
DOORS = ("env_build.sh", "env_update.sh")
BASE = (
    "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\nWORKDIR /workspace\n'
)
FILES = {
    "reasoning_base/Dockerfile": BASE,
    "projects/reasoning:2025.1/Dockerfile": "FROM reasoning_base\nENV NCCL_DEBUG=WARN\n",
    "projects/reasoning:latest": "-> reasoning:2025.1",
}


def git(root: Path, *argv: str) -> str:
    done = subprocess.run(
        ["git", *argv], cwd=root, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member whose git knows who they are."""
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git_config = "[user]\nname = Ada\nemail = ada@example.org\n[init]\ndefaultBranch = main\n"
    (Path.home() / ".gitconfig").write_text(git_config)
    (Path.home() / "scratch").mkdir()


@dataclass(frozen=True, slots=True)
class Team:
    """The bare repository of everybody, the official checkout, and a member's clone."""

    bare: Path
    official: Path
    clone: Path


def team(directory: Path) -> Team:
    """Real git repositories; the official checkout is at the head of the bare one."""
    made = Team(directory / "bare.git", directory / "official: imgs", directory / "ada's imgs")
    first = write_checkout(directory / "first", FILES, f'images_root = "{made.official}"')
    shutil.copy("/bin/busybox", first / "reasoning_base/busybox")
    shutil.copy(SOURCE / ".gitignore", first)
    for door in DOORS:
        shutil.copy(SOURCE / door, first)
    # In place of the real one, which installs what these tests run already.
    bootstrap = first / "bootstrap.sh"
    activate = 'PATH=$(cd "$(dirname "$BASH_SOURCE")" && pwd):$PATH'
    bootstrap.write_text(
        "#!/bin/sh\nmkdir -p .venv/bin\n"
        f"ln -sfn {shlex.quote(DOIT)} .venv/bin/doit\n"
        f"printf '%s\\n' {shlex.quote(activate)} > .venv/bin/activate\n"
    )
    bootstrap.chmod(0o755)
    git(directory, "init", "--quiet", "--bare", "--initial-branch=main", str(made.bare))
    git(first, "init", "--quiet")
    git(first, "add", ".")
    git(first, "commit", "--quiet", "--message", "first")
    git(first, "push", "--quiet", str(made.bare), "HEAD:main")
    git(directory, "clone", "--quiet", str(made.bare), str(made.official))
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team whose images look built, in `team`, and in `kept` as it is to begin with."""
    place = tmp_path_factory.mktemp("workflow")
    (place / "team").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for who in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{who}_NAME", "Ada")
            patch.setenv(f"GIT_{who}_EMAIL", "ada@example.org")
        made = team(place / "team")
        git(place, "clone", "--quiet", str(made.bare), str(made.clone))
    for root in (made.official, made.clone):
        pretend_built(root)
    subprocess.run(["cp", "-a", "team", "kept"], cwd=place, check=True)
    return place


@pytest.fixture
def made(directory: Path) -> Team:
    """The team as it was; always in the same place, which its settings name."""
    shutil.rmtree(directory / "team")
    subprocess.run(["cp", "-a", "kept", "team"], cwd=directory, check=True)
    place = directory / "team"
    return Team(place / "bare.git", place / "official: imgs", place / "ada's imgs")


class Terminal:
    """A program at a pseudo-terminal; what it shows is kept."""

    def __init__(self, argv: tuple[str, ...], cwd: Path, environ: Mapping[str, str]) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **environ},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # A session of its own, so that Ctrl-C typed here reaches it.
            preexec_fn=lambda: _own_terminal(slave),  # noqa: PLW1509 - nothing else runs here yet
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After a failed test it may still run.
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, timeout_s: float = 120) -> str:
        """What has been shown up to a text, from where the last wait ended."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.shown)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in\n{self.shown}"
            if not self._read():
                raise AssertionError(f"it ended without {pattern!r}:\n{self.shown}")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def end(self) -> int:
        """Read to the end; returns the exit status."""
        while self._read():
            pass
        return self.process.wait()

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # what Linux says at the end of a terminal
            return False
        self.shown += data.decode(errors="replace").replace("\r", "")
        return bool(data)


def _own_terminal(slave: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def steps() -> list[str]:
    """The lines that the walk-through says to type."""
    return re.findall(r"^    \$ (.*)$", WALK_THROUGH.read_text(), re.MULTILINE)


@pytest.fixture
def slurm_environ(cluster: Cluster) -> Iterator[dict[str, str]]:
    """What a member's shell on the login node has; podman's images lie on each node apart."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        yield {
            **cluster.environment,
            "RC_RUNNER": "slurm",
            "RC_LAUNCHER": "podman",
            "RC_SLURM_ACCOUNT": "a-demo",
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
            # crun refuses to run where both versions of cgroups are mounted.
            "RC_PODMAN_RUNTIME": "runc",
        }
        for node in cluster.node_names:
            remove_storage(Path(storage) / node)


@pytest.mark.podman
@pytest.mark.slurm
def test_the_walk_through(tmp_path: Path, slurm_environ: dict[str, str], cluster: Cluster) -> None:
    require_tools("runc", "busybox")
    made = team(tmp_path)
    environ = {**slurm_environ, "SCRATCH": str(Path.home() / "scratch"), "PS1": "$ ", "TERM": "dumb"}
    # Administrators: what the nightly job does.
    ran = run_doit(made.official, environ=environ)
    assert ran.status == 0, ran.text
    git(made.official, "add", ".")
    git(made.official, "commit", "--quiet", "--message", "the first images")
    git(made.official, "push", "--quiet", "origin", "HEAD")
    git(made.official, "config", "--global", f"url.{made.bare}.insteadOf", URL)

    lines = steps()
    assert len(lines) >= 8, "the walk-through is gone"
    shown = {}
    with Terminal(("bash", "--norc", "--noprofile", "-i"), tmp_path, environ) as shell:
        for number, line in enumerate(lines):
            shell.type(f"{line}\n")
            # What is typed too early is lost with the job that ends.
            told = shell.wait_for("\nnext.*\n") if line == "exit" else ""
            watches = line.startswith("doit watch ")
            if watches:
                told = shell.wait_for("Ctrl-C ends\n")
                shell.type("\x03")
                shell.wait_for(r"\^C")
            # Whatever reads it, our shell or the one of the job, says when it is done with the line.
            shell.type(f"echo do''ne-{number}-$?\n")
            shown[number, line] = told + shell.wait_for(rf"done-{number}-\d+\n")
            status = 130 if watches else 0
            assert f"done-{number}-{status}\n" in shown[number, line], shown[number, line]
        shell.type("exit\n")
        assert shell.end() == 0

    told = "\n".join(shown.values())
    assert re.search(
        r"branch reasoning-2025\.1_ada_\S+: created from main\n  0 commit.*, 0 behind\n", told
    )
    assert "next: edit projects/reasoning:2025.1/Dockerfile, then `doit build:reasoning:2025.1`" in told
    assert "git push origin HEAD, then open a pull request" in told
    # First the official image, then the member's own.
    assert "\nNCCL_DEBUG is WARN\n" in told and "\nNCCL_DEBUG is now INFO\n" in told
    assert f"\nreasoning_base adopted from {made.official}\n" in told
    assert "podman:reasoning_base" not in told
    assert cluster.client("squeue", "--noheader").stdout == ""

    clone = Path.home() / "scratch/imgs"
    edf = tomllib.loads((Path.home() / ".edf/reasoning:2025.1.toml").read_text())
    assert edf["base_environment"] == f"{clone}/projects/reasoning:2025.1/env.toml"
    assert edf["image"] == f"{clone}/projects/reasoning:2025.1/image.sqsh"
    # The pull request is merged, and the nightly job builds it.
    (branch,) = re.findall(r"reasoning-2025\.1_ada_\S+Z", git(made.bare, "branch", "--list"))
    git(made.official, "pull", "--quiet", "origin", branch)
    assert git(made.official, "status", "--porcelain") == ""
    ran = run_doit(made.official, environ=environ)
    assert ran.status == 0 and "podman:reasoning:2025.1" in ran.started, ran.text
    assert "podman:reasoning_base" not in ran.started
    assert git(made.official, "status", "--porcelain") == ""


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("DEBUG_TIME_LIMIT_MIN", "60", ("time limit", "`debug.time_limit_min` (now 60)")),
        ("DEBUG_PARTITION", "dbug", ("partition", "`debug.partition`")),
        ("DEBUG_ACCOUNT", "b-demo", ("account", "`debug.account`")),
    ],
)
def test_a_refusal_quotes_slurm_and_names_the_setting(
    setting: str, value: str, words: tuple[str, ...], made: Team, slurm_environ: dict[str, str]
) -> None:
    ran = run_doit(
        made.clone,
        *("local", "reasoning:latest", "--", "true"),
        environ={**slurm_environ, f"RC_{setting}": value},
    )
    assert ran.status == 3
    assert re.search(r"^srun: error: ", ran.text, re.MULTILINE)
    assert all(word in ran.text.partition("ERROR: ")[2] for word in words), ran.text


# An srun of a site with the Container Engine: it says what it was asked for.
SRUN = """\
#!/bin/sh
[ "$1" != --help ] || { echo "      --environment=NAME"; exit; }
printf '<%s>' "$@"
exit 7
"""
SACCTMGR = "#!/bin/sh\nprintf 'a-one\\na-two\\na-one\\n'\n"


def programs(directory: Path, **scripts: str) -> dict[str, str]:
    """A PATH on which these programs come first."""
    directory.mkdir()
    for name, text in scripts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


# An srun that finds no controller the first time.
SILENT_SRUN = """\
#!/bin/sh
[ "$1" != --help ] || { echo "      --environment=NAME"; exit; }
[ -e "${0%/*}/asked" ] && { echo started; exit; }
: > "${0%/*}/asked"
echo "srun: error: Unable to allocate resources: Socket timed out on send/recv operation" >&2
exit 1
"""


def test_a_job_waits_for_the_controller_that_is_to_start_it(made: Team, tmp_path: Path) -> None:
    environ = programs(tmp_path / "bin", srun=SILENT_SRUN, scontrol="#!/bin/sh\n") | {
        "RC_RUNNER": "slurm",
        "RC_SLURM_ACCOUNT": "a-demo",
    }
    ran = run_doit(made.clone, *("local", "reasoning:latest", "--", "true"), environ=environ)
    assert ran.status == 0, ran.text
    assert re.search(
        "^srun: error: .*\nSlurm: the controller does not answer: waiting for it\n"
        "Slurm: the controller answers again\n",
        ran.text,
        re.MULTILINE,
    )
    assert "started" in ran.text


def test_the_container_engine_gets_the_name_the_job_and_the_command(made: Team, tmp_path: Path) -> None:
    environ = programs(tmp_path / "bin", srun=SRUN) | {
        "RC_RUNNER": "slurm",
        "RC_SLURM_ACCOUNT": "a-demo",
        "RC_DEBUG_PARTITION": "debug",
        "RC_DEBUG_TIME_LIMIT_MIN": "01:00:00",
        "RC_DEBUG_EXTRA": "--qos=high",
    }
    job = (
        "--nodes=1 --ntasks=1 --export=ALL --job-name={}:reasoning:2025.1 --qos=high --account=a-demo"
        " --partition=debug --time=60"
    )
    odd = ("env", "A=1", "a b", "it's", "", "--", "$HOME")
    for command in ("remote", "local"):
        ran = run_doit(made.clone, command, "reasoning:latest", "--", *odd, environ=environ)
        argv = [*job.format(command).split(), "--environment=reasoning:2025.1", *odd]
        assert "".join(f"<{word}>" for word in argv) in ran.text, ran.text
        # The exit status is the command's own.
        assert ran.status == 7
    ran = run_doit(made.clone, "local", "reasoning:2025.1", "--print", environ=environ)
    assert ran.status == 0
    assert f"srun {job.format('local')} --pty --environment=reasoning:2025.1 sh -c " in ran.text
    elsewhere = environ | {"EDF_PATH": "/elsewhere"}
    ran = run_doit(made.clone, "local", "reasoning:2025.1", "--", "true", environ=elsewhere)
    assert f"<--environment={Path.home()}/.edf/reasoning:2025.1.toml>" in ran.text


@pytest.mark.parametrize(
    ("status", "next_line"),
    [
        (0, "next, when it works: git add "),
        (3, "next, when it works: git add "),
        (1, "next: if no container started, the lines above say why; `doit doctor` checks this host\n"),
    ],
)
def test_nobody_is_sent_to_commit_what_enroot_may_not_have_started(
    tmp_path: Path, status: int, next_line: str
) -> None:
    root = write_checkout(tmp_path / "checkout", FILES)
    pretend_built(root)
    enroot = f"#!/bin/sh\necho '[ERROR] No such file or directory' >&2\nexit {status}\n"
    environ = programs(tmp_path / "bin", enroot=enroot)
    environ |= {"RC_RUNNER": "local", "RC_LAUNCHER": "enroot", "RC_EDF_MOUNTS": "[]"}
    ran = run_doit(root, "local", "reasoning:latest", "--", "true", environ=environ)
    assert ran.status == status
    assert ran.text.count("\nnext") == 1 and f"\n{next_line}" in ran.text, ran.text


@pytest.mark.podman
def test_a_program_in_podman_that_exits_as_podman_does_is_no_fault_of_this_host(tmp_path: Path) -> None:
    require_tools("podman", "busybox")
    root = write_checkout(tmp_path / "checkout", {"projects/x:1/Dockerfile": BASE})
    shutil.copy("/bin/busybox", root / "projects/x:1/busybox")
    with own_storage() as (podman, storage):
        environ = storage | {
            "RC_RUNNER": "local",
            "RC_LAUNCHER": "podman",
            "RC_PODMAN_RUNTIME": working_runtime(podman, tmp_path),
        }
        assert run_doit(root, "build:x:1", environ=environ).status == 0
        for status in (0, 7, 127):
            command = ("local", "x:1", "--", "sh", "-c", f"echo ran; exit {status}")
            ran = run_doit(root, *command, environ=environ)
            assert ran.status == status and "\nran\n" in ran.text, ran.text
            assert "doit doctor" not in ran.text
            assert ("\nnext, when it works: git add " in ran.text) == (status != 127)


@pytest.mark.parametrize("end", ["Ctrl-C", "TERM"])
def test_the_end_is_up_to_what_runs_in_the_job(made: Team, tmp_path: Path, end: str) -> None:
    trap = "for each in INT TERM; do trap \"echo cau''ght $each; exit 5\" $each; done"
    srun = SRUN.replace("printf", f"{trap}; echo rea''dy; while :; do sleep 0.1; done #")
    environ = programs(tmp_path / "bin", srun=srun) | {"RC_RUNNER": "slurm", "RC_SLURM_ACCOUNT": "a"}
    with Terminal((DOIT, "local", "reasoning:2025.1"), made.clone, environ) as shell:
        shell.wait_for("ready\n")
        if end == "TERM":
            shell.process.send_signal(signal.SIGTERM)
        else:
            shell.type("\x03")
        shell.wait_for(f"caught {'TERM' if end == 'TERM' else 'INT'}\n")
        shell.wait_for("next, when it works: git add ")
        assert shell.end() == 5


def test_the_bar_of_verify_shows_no_total_that_it_does_not_know(made: Team) -> None:
    with Terminal((DOIT, "verify", "--all"), made.clone, {"TERM": "xterm"}) as shell:
        shown = shell.wait_for("2 images verified")
        shell.end()
    assert " bytes" in shown and "0/100 bytes" not in shown


def test_a_misspelt_project_is_named_before_what_a_new_one_would_lack(made: Team) -> None:
    image = made.official / "reasoning_base/image.sqsh"
    image.unlink()
    (made.clone / "reasoning_base/env.toml").write_text(f'image = "{image}"\n')
    environ = {"RC_RUNNER": "local", "RC_LAUNCHER": "podman"}
    with Terminal((DOIT, "remote", "resoning:2025.1"), made.clone, environ) as shell:
        shell.wait_for(r"there is no project resoning:2025.1 \(did you mean reasoning:2025.1\?\)\n")
        shell.wait_for("reasoning_base/image.sqsh: the official image does not exist")
        assert shell.end() == 3


def test_a_branch_is_made_once_and_a_new_project_when_the_answer_is_yes(
    made: Team, tmp_path: Path
) -> None:
    (made.clone / "notes").write_text("mine\n")
    environ = programs(tmp_path / "bin", srun=SRUN) | {"RC_RUNNER": "slurm", "RC_SLURM_ACCOUNT": "a"}
    for answer, status in (("n", 3), ("yes", 7)):
        argv = (DOIT, "remote", "reasoning:2025.2", "--", "true")
        with Terminal(argv, made.clone, environ) as shell:
            asked = shell.wait_for(r"\[y/N\] ")
            assert "did you mean reasoning:2025.1" in asked
            assert not (made.clone / "projects/reasoning:2025.2").exists()
            assert git(made.clone, "branch", "--show-current") == "main"
            shell.type(f"{answer}\n")
            assert shell.end() == status, shell.shown
    branch = git(made.clone, "branch", "--show-current")
    assert re.fullmatch(r"reasoning-2025\.2_ada_\d\d-\d\d-\d\dT\d\d-\d\d-\d\dZ", branch)
    # Two env.toml, and the notes.
    assert "created from main, with 3 changed files" in shell.shown
    assert (made.clone / "notes").read_text() == "mine\n"
    dockerfile = (made.clone / "projects/reasoning:2025.2/Dockerfile").read_text()
    assert dockerfile.startswith("FROM reasoning_base\n")
    first = tomllib.loads((made.clone / "projects/reasoning:2025.2/env.toml").read_text())
    assert first == {"base_environment": f"{made.official}/reasoning_base/env.toml"}
    again = run_doit(made.clone, "remote", "reasoning:2025.2", "--", "true", environ=environ)
    assert "already your branch for reasoning:2025.2" in again.text
    assert git(made.clone, "branch", "--show-current") == branch
    other = run_doit(made.clone, "remote", "reasoning:2025.1", "--", "true", environ=environ)
    assert f"created from {branch}" in other.text
    assert sorted(git(made.clone, "branch", "--format=%(refname:short)").splitlines())[0] == "main"


def door(script: Path, *argv: str, cwd: Path, environ: Mapping[str, str] | None = None) -> Ran:
    done = subprocess.run(
        [script, *argv],
        cwd=cwd,
        env={**os.environ, "RC_RUNNER": "local", **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Ran(done.returncode, done.stdout)


LISTING = "Available environments\nBase environment:\n\treasoning_base\nProjects:\n\treasoning:2025.1\n"
LISTING += "\treasoning:latest\n"
USAGE = """\
Usage: {} <command> <project_name>

Commands:
  remote <project_name> - Create a branch and set up the env for a project
  build <project_name>  - Build the podman image for a project
  local <project_name>  - Test the local image

Example:
  {} remote reasoning:2025.1
"""


def test_the_old_doors_say_what_they_said(made: Team, tmp_path: Path) -> None:
    build, update = (made.clone / name for name in DOORS)
    assert door(build, cwd=tmp_path) == Ran(1, f"Usage: {build} <env_name>\n{LISTING}")
    assert door(build, "no such", cwd=tmp_path) == Ran(
        1, f"Error: Environment 'no such' not found\n{LISTING}"
    )
    usage = USAGE.format(update, update)
    for argv in ((), ("remote",)):
        told = door(update, *argv, cwd=tmp_path)
        assert told == Ran(1, f"Error: Insufficient arguments provided.\n{usage}")
    told = door(update, "push", "reasoning:2025.1", cwd=tmp_path)
    assert told == Ran(1, f"Error: Unknown command: push\n{usage}")


def test_the_old_doors_lead_to_the_new_commands_from_any_directory(made: Team, tmp_path: Path) -> None:
    subprocess.run(["./bootstrap.sh"], cwd=made.clone, check=True)
    build, update = (made.clone / name for name in DOORS)
    link = tmp_path / "update"
    link.symlink_to(update)
    # No doit but the clone's own.
    bare_path = programs(tmp_path / "bin", srun=SRUN)["PATH"].replace(f"{Path(DOIT).parent}:", "")
    slurm = {"PATH": bare_path, "RC_RUNNER": "slurm", "RC_SLURM_ACCOUNT": "a"}
    for name in ("reasoning:2025.1", "reasoning:latest", "reasoning_base"):
        assert door(build, name, cwd=tmp_path, environ={"PATH": bare_path}).status == 0
        assert door(update, "build", name, cwd=tmp_path, environ={"PATH": bare_path}).status == 0
    for command in ("remote", "local"):
        argv = (command, "reasoning:latest", "--", "a b")
        told = door(link, *argv, cwd=tmp_path, environ=slurm)
        assert told.status == 7 and "<--environment=reasoning:2025.1><a b>" in told.text, told.text


def test_the_doors_are_clean_shell_scripts() -> None:
    require_tools("shellcheck")
    scripts = [str(SOURCE / name) for name in DOORS]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@dataclass(frozen=True, slots=True)
class Case:
    """Bad input: `prepare` spoils the clone of a team, then each command line has its exit status."""

    id: str
    commands: Mapping[str, int]
    prepare: Callable[[Team], object] = lambda made: None
    environ: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "clone"


REMOTE = "remote reasoning:2025.1 --print"
LOCAL = "local reasoning:2025.1 --print"
IN_JOB = "remote reasoning:2025.1 -- true"
SLURM = {"RC_RUNNER": "slurm", "RC_SLURM_ACCOUNT": "a"}
HOME_EDF = ".edf/reasoning:2025.1.toml"


def conflict(made: Team) -> None:
    """A merge that is half done."""
    git(made.clone, "checkout", "--quiet", "-b", "other")
    for branch, text in (("other", "a"), ("main", "b")):
        git(made.clone, "checkout", "--quiet", branch)
        (made.clone / "dodo.py").write_text(f"# {text}\n{(made.clone / 'dodo.py').read_text()}")
        git(made.clone, "commit", "--quiet", "--all", "--message", text)
    subprocess.run(
        ["git", "merge", "--quiet", "other"], cwd=made.clone, check=False, capture_output=True
    )
    git(made.clone, "checkout", "--quiet", "HEAD", "--", "dodo.py")


def put(name: str, text: str) -> Callable[[Team], None]:
    """Writes a file in the home directory."""

    def prepare(_made: Team) -> None:
        path = Path.home() / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return prepare


def without_edf(made: Team) -> None:
    """A project that was made by hand."""
    for name in ("env.toml", "image.sqsh"):
        (made.clone / "projects/reasoning:2025.1" / name).unlink()


def forget_official(made: Team) -> None:
    """The official checkout is not to be seen from here."""
    (made.clone / "projects/reasoning:2025.1/env.toml").write_text(
        f'image = "{made.official}/projects/reasoning:2025.1/image.sqsh"\n'
    )
    shutil.rmtree(made.official)


def alias(name: str, target: str) -> Callable[[Team], None]:
    return lambda made: (made.clone / f"projects/{name}").symlink_to(target)


CASES = (
    Case("no-scratch", {REMOTE: 0, LOCAL: 0}, lambda made: (Path.home() / "scratch").rmdir()),
    Case("edf-is-a-file", {REMOTE: 3, LOCAL: 3}, put(".edf", "")),
    Case("edf-foreign", {REMOTE: 3, f"{REMOTE} --force": 0}, put(HOME_EDF, 'image = "ubuntu"\n')),
    Case("edf-broken", {REMOTE: 3}, put(HOME_EDF, "image =\n")),
    Case("edf-unwritable", {REMOTE: 3}, lambda made: (Path.home() / ".edf").mkdir(mode=0o555)),
    Case("name-unknown", {"remote resoning:2025.1": 3, "remote --print elsewhere": 3, "local nope": 3}),
    Case(
        "name-odd", {"remote 'A b'": 3, "remote a/b": 3, "remote A:1": 3, "remote": 3, "remote a=b": 3}
    ),
    Case(
        "new-odd",
        {
            "new 'A b'": 3,
            "new a/b": 3,
            "new Big": 3,
            "new ''": 3,
            "new": 3,
            "new a b": 3,
            "new reasoning:2025.1": 3,
            "new reasoning:latest": 3,
            "new reasoning_base": 3,
            "new x --from reasonin_base": 3,
            "new x --from 'a b'": 3,
            "new reasoning:2025.2": 0,
            "new reasoning:2025.3 --from reasoning:latest": 0,
            "new reasoning:2025.4 --from=nvcr.io/nvidia/pytorch:25.01-py3": 0,
        },
    ),
    Case("new-dangling", {"new gone": 3, "remote gone": 3}, alias("gone", "nowhere")),
    Case(
        "new-templates-missing",
        {"new x": 3, "list": 0},
        lambda made: shutil.rmtree(made.clone / "templates/new"),
    ),
    Case(
        "new-no-base",
        {"new x": 3},
        lambda made: write_checkout(made.clone, {"other_base/Dockerfile": "FROM scratch\n"}),
    ),
    Case("no-terminal", {"remote reasoning:2025.1": 3, "local reasoning:2025.1": 3}),
    Case("no-repository", {REMOTE: 3, LOCAL: 0}, lambda made: shutil.rmtree(made.clone / ".git")),
    Case("merge-in-progress", {REMOTE: 3, LOCAL: 0}, conflict),
    Case(
        "head-detached",
        {IN_JOB: 7},
        lambda made: git(made.clone, "checkout", "--quiet", "--detach"),
        environ=SLURM,
        scripts={"srun": SRUN},
    ),
    Case("head-locked", {IN_JOB: 3}, lambda made: (made.clone / ".git/HEAD.lock").touch()),
    Case("official-checkout", {REMOTE: 3, LOCAL: 0}, cwd="official"),
    Case("edf-of-the-project-missing", {REMOTE: 0, LOCAL: 3}, without_edf),
    Case("official-gone", {REMOTE: 3, LOCAL: 0}, forget_official),
    Case(
        "official-without-git",
        {IN_JOB: 7},
        lambda made: shutil.rmtree(made.official / ".git"),
        environ=SLURM,
        scripts={"srun": SRUN},
    ),
    Case(
        "not-built",
        {LOCAL: 3},
        lambda made: (made.clone / "projects/reasoning:2025.1/image.sqsh").unlink(),
    ),
    Case(
        "stale",
        {LOCAL: 0},
        lambda made: (made.clone / "projects/reasoning:2025.1/Dockerfile").write_text(
            "FROM reasoning_base\nENV A=1\n"
        ),
    ),
    Case(
        "broken-dockerfile",
        {REMOTE: 0, LOCAL: 0},
        lambda made: (made.clone / "projects/reasoning:2025.1/Dockerfile").write_text("FORM x\n"),
    ),
    Case(
        "several-accounts",
        {REMOTE: 3, LOCAL: 3},
        environ={"RC_RUNNER": "slurm"},
        scripts={"srun": SRUN, "sacctmgr": SACCTMGR},
    ),
    Case(
        "several-groups",
        {LOCAL: 3},
        environ={"RC_RUNNER": "slurm"},
        scripts={"srun": SRUN, "sacctmgr": "#!/bin/sh\nexit 1\n"},
    ),
    Case("launcher-missing", {LOCAL: 3}, environ={"RC_LAUNCHER": "pyxis"}),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input_is_told_and_nothing_is_lost(case: Case, made: Team, tmp_path: Path) -> None:
    require_tools("podman", "setpriv")
    case.prepare(made)
    environ = {
        "RC_RUNNER": "local",
        "RC_LAUNCHER": "podman" if "srun" not in case.scripts else "auto",
        **case.environ,
        **programs(tmp_path / "bin", **case.scripts),
    }
    edf = Path.home() / HOME_EDF
    before = edf.read_bytes() if edf.is_file() else None
    transcript = ""
    for line, status in case.commands.items():
        argv = [DOIT, *shlex.split(line)]
        if case.id == "edf-unwritable" and os.geteuid() == 0:
            # What makes root obey permissions.
            argv = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", *argv]
        if case.id == "several-groups":
            if os.geteuid() != 0:
                pytest.skip("only root may choose its groups")
            argv = ["setpriv", "--groups=0,1,2", *argv]
        done = subprocess.run(
            argv,
            cwd=made.official if case.cwd == "official" else made.clone,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        transcript += f"$ doit {line}\n{done.stdout}\n"
        assert "Traceback" not in done.stdout, transcript
        assert done.returncode == status, transcript
        if status and before is not None:
            assert edf.read_bytes() == before
        if "--print" in line:
            assert (edf.read_bytes() if edf.is_file() else None) == before
        if not {0, 7} & {*case.commands.values()} or "--print" in line:
            # What is wrong was known before anything was changed, and --print changes nothing.
            assert not list((made.clone / ".git/refs/heads").glob("*_ada_*"))
    compare(case.id, shown(transcript, made))


def shown(transcript: str, made: Team) -> str:
    """A transcript without what differs from run to run."""
    places = {
        str(made.clone): "CLONE",
        str(made.official): "OFFICIAL",
        str(Path.home()): "HOME",
        **dict.fromkeys(pythons(), "PYTHON"),
        os.uname().nodename: "HOST",
    }
    for place, name in places.items():
        transcript = transcript.replace(shlex.quote(place), name).replace(place, name)
    # git says this first since 2.47.
    transcript = transcript.replace("cannot lock ref 'HEAD': Unable to create", "Unable to create")
    transcript = re.sub(r"\d\d-\d\d-\d\dT\d\d-\d\d-\d\dZ", "TIME", transcript)
    return re.sub(r"commit [0-9a-f]{12}", "commit ID", transcript)


def compare(name: str, text: str) -> None:
    golden = GOLDEN / f"{name}.txt"
    if UPDATE:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), "UPDATE_GOLDEN=1 writes it anew; read the diff"
