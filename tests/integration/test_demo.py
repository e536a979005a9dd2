"""`./bootstrap.sh demo` in a fresh clone, as this user and, when that is root, as an ordinary one."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import pip_environment
from tests.support.doit import unstamped
from tests.support.storage import own_storage
from tests.support.tools import require_tools
from tests.support.users import ordinary_user

ROOT = Path(__file__).parents[2]
ARTIFACT = "examples/demo/projects/hello:1.0/image.sqsh"
# What bootstrap.sh would otherwise install for the demo.
DEMO_TOOLS = (
    *("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox"),
    *("newuidmap", "slirp4netns", "fuse-overlayfs"),
)


@dataclass(slots=True)
class Demo:
    """A clone, somebody to work in it, and what their first run printed."""

    clone: Path
    argv: tuple[str, ...]
    environment: dict[str, str]
    first: str = field(default="", init=False)

    def run(self, *argv: str | Path) -> str:
        """The output of a command, run from a directory that has nothing to do with the clone."""
        variables = (f"{key}={value}" for key, value in self.environment.items())
        done = subprocess.run(
            (*self.argv, "env", "--chdir=/", *variables, *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return unstamped(done.stdout)

    def bootstrap(self, *arguments: str) -> str:
        return self.run(self.clone / "bootstrap.sh", *arguments)

    def published(self) -> os.stat_result:
        return (self.clone / ARTIFACT).stat()


@pytest.fixture(scope="module", params=["this user", "ordinary user"])
def demo(request: pytest.FixtureRequest) -> Iterator[Demo]:
    """The demo, run once in a clone that lies below a directory with a space and a quote."""
    require_tools("git", *DEMO_TOOLS)
    pip = pip_environment(Path.home())
    with tempfile.TemporaryDirectory(prefix="rc-demo-") as name:
        if request.param == "this user":
            with own_storage() as (_, storage):
                # Whatever podman needs on this machine, bootstrap.sh has to find out.
                unset = ("env", "--unset=BUILDAH_ISOLATION", "--unset=RC_PODMAN_ISOLATION")
                demo = Demo(clone(Path(name)), unset, pip | storage | {"HOME": name})
                demo.first = demo.bootstrap("demo")
                yield demo
            return
    if os.geteuid() != 0:
        pytest.skip("this user is an ordinary one already")
    require_tools("useradd", "runuser")
    with ordinary_user() as user:
        if "PIP_CONFIG_FILE" in pip:
            pip["PIP_CONFIG_FILE"] = shutil.copy(pip["PIP_CONFIG_FILE"], f"{user.home}/pip.conf")
        del pip["PIP_CACHE_DIR"]
        demo = Demo(clone(user.home), user.argv, pip)
        subprocess.run(["chown", "--recursive", f"{user.name}:", user.home / "it's mine"], check=True)
        demo.first = demo.bootstrap("demo")
        yield demo


def clone(directory: Path) -> Path:
    """A clone of this repository, with what is not committed yet."""
    made = directory / "it's mine" / "clone"
    git("clone", "--quiet", ROOT, made)
    for name in git("-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split(
        "\0"
    ):
        if name:
            (made / name).unlink(missing_ok=True)
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, made / name, follow_symlinks=False)
    git("-C", made, "add", "--all")
    commit = ("commit", "--quiet", "--allow-empty", "--message=what is not committed yet")
    git("-C", made, "-c", "user.name=test", "-c", "user.email=test@localhost", *commit)
    return made


def git(*argv: str | Path) -> str:
    return subprocess.run(("git", *argv), capture_output=True, text=True, check=True).stdout


@pytest.mark.podman
def test_the_first_run_shows_the_build_the_list_the_edf_and_a_greeting(demo: Demo) -> None:
    shown = demo.first
    steps = re.findall(r"^done +(\S+)", shown, re.MULTILINE)
    assert steps[0] == "podman:demo_base"
    assert sorted(steps) == sorted(
        f"{step}:{name}" for name in ("demo_base", "hello:1.0") for step in ("podman", "enroot", "env")
    )
    assert re.search(r"^demo_base +fresh ", shown, re.MULTILINE)
    assert re.search(r"^hello:1\.0 +fresh .* hello:latest$", shown, re.MULTILINE)
    for line in (f'image = "{demo.clone / ARTIFACT}"', 'mounts = ["/tmp:/tmp"]', "entrypoint = true"):
        assert f"\n{line}\n" in shown
    greeting = r"^Hello from inside hello:1\.0 \([0-9a-f]{64}\)\.\n"
    assert re.search(f"{greeting}That was the shell\\.$", shown, re.MULTILINE)
    assert re.search(f"{greeting}That was another command\\.$", shown, re.MULTILINE)
    (after,) = re.findall(r"^==> try next\n(.*)\Z", shown, re.MULTILINE | re.DOTALL)
    assert len(after.splitlines()) == 3


@pytest.mark.podman
def test_the_second_run_does_nothing_again(demo: Demo) -> None:
    before = demo.published()
    shown = demo.bootstrap("demo")
    assert "2 images: 2 fresh" in shown
    assert "installing" not in shown
    assert not re.search(r"^(start|done) ", shown, re.MULTILINE)
    assert "Hello from inside" in shown
    after = demo.published()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.podman
def test_the_demo_leaves_nothing_for_git_to_show(demo: Demo) -> None:
    assert demo.run("git", "-C", demo.clone, "status", "--porcelain") == ""


@pytest.mark.podman
def test_what_is_told_to_try_next_works(demo: Demo) -> None:
    enter, edit, _ = demo.first.splitlines()[-3:]
    shown = demo.run("bash", "-e", "-c", f"{enter}\n{edit}")
    assert "hello.sh" in shown
    assert re.search(r"^done +enroot:hello:1\.0", shown, re.MULTILINE)
    assert "demo_base" not in shown


@pytest.mark.podman
def test_a_container_starts_without_any_export(demo: Demo) -> None:
    """The settings that podman needs on this machine are those of the clone."""
    enter = demo.first.splitlines()[-3]
    shown = demo.run("bash", "-c", f"{enter}; doit doctor")
    assert "\n  ok       a RUN works\n" in shown
    assert shown.endswith("\nready to build\n")
    assert "export" not in demo.first
    assert ("ENTRYPOINT" in demo.first) == ("a container starts with podman" in shown)


@pytest.mark.podman
def test_setup_says_what_to_type_next(demo: Demo) -> None:
    # As after a `git pull` that brought a command and no package.
    page = demo.clone / ".venv/share/man/man1/doit-watch.1"
    demo.run("rm", page)
    shown = demo.bootstrap("setup")
    assert page.exists()
    title, line = shown.splitlines()[-2:]
    assert title == "==> next"
    assert line.endswith(" && . .venv/bin/activate && doit doctor")
    assert "\n  ok       a RUN works\n" in demo.run("bash", "-c", line)


@pytest.mark.podman
def test_the_demo_is_no_part_of_the_checkout_around_it(demo: Demo) -> None:
    listed = demo.run("sh", "-c", f"cd {shlex.quote(str(demo.clone))} && .venv/bin/doit list --json")
    assert "reasoning_base" in listed
    assert "demo" not in re.findall(r'"name": "([^"]*)"', listed)


@pytest.mark.podman
@pytest.mark.parametrize("demo", ["this user"], indirect=True)
def test_a_clone_that_was_moved_works_in_its_new_place(demo: Demo) -> None:
    moved = demo.clone.with_name("moved clone")
    demo.run("mv", demo.clone, moved)
    demo.clone = moved
    shown = demo.bootstrap("setup")
    assert "installing into .venv" in shown
    listed = demo.run("sh", "-c", f"cd {shlex.quote(str(moved))} && .venv/bin/doit list --json")
    assert "reasoning_base" in listed
    shown = demo.bootstrap("demo")
    done = re.findall(r"^done +(\S+)", shown, re.MULTILINE)
    assert sorted(done) == ["env:demo_base", "env:hello:1.0"]
    assert f'image = "{moved / ARTIFACT}"' in shown


def test_the_scripts_are_clean() -> None:
    require_tools("shellcheck")
    scripts = (ROOT / "bootstrap.sh", ROOT / ".ci" / "run", *ROOT.glob("examples/**/*.sh"))
    done = subprocess.run(("shellcheck", *scripts), capture_output=True, text=True, check=False)
    assert done.stdout == ""


@dataclass(frozen=True, slots=True)
class FreshMachine:
    """A PATH on which there is nothing but what every Debian has, and an apt-get that writes down."""

    bin: Path
    calls: Path

    def add(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ("/bin/bash", ROOT / "bootstrap.sh", *arguments),
            env={"PATH": str(self.bin), "HOME": os.environ["HOME"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def fresh(tmp_path: Path) -> FreshMachine:
    machine = FreshMachine(tmp_path / "bin", tmp_path / "calls")
    machine.bin.mkdir()
    for name in ("bash", "sh", "env", "cat", "dirname", "readlink", "mktemp", "rm"):
        (machine.bin / name).symlink_to(shutil.which(name) or name)
    # One that has venv, whatever python3 is on this machine.
    machine.add("python3", "exit 0")
    machine.add("apt-get", f'echo "$@" >> {shlex.quote(str(machine.calls))}; [ "$1" = update ]')
    machine.add("podman", "exit 1")
    return machine


PACKAGES = "skopeo squashfs-tools busybox-static uidmap slirp4netns fuse-overlayfs squashfuse"
LINE = f"apt-get update && apt-get install --yes --no-install-recommends {PACKAGES}"


@pytest.mark.parametrize(
    ("uid", "sudo", "called"),
    [
        pytest.param(1000, False, False, id="without root and sudo the line is told"),
        pytest.param(1000, True, True, id="through sudo"),
        pytest.param(0, False, True, id="as root"),
    ],
)
def test_what_is_missing_is_installed_or_told(
    fresh: FreshMachine, uid: int, sudo: bool, called: bool
) -> None:
    fresh.add("id", f"echo {uid}")
    if sudo:
        fresh.add("sudo", 'exec "$@"')
    done = fresh.run("demo")
    install = f"install --yes --no-install-recommends {PACKAGES} --quiet=2"
    assert fresh.called() == (["update --quiet=2", install] if called else [])
    assert done.returncode == 1
    assert LINE in done.stderr


def test_the_tests_ask_for_slurm_too(fresh: FreshMachine) -> None:
    fresh.add("id", "echo 1000")
    fresh.add("crun", "exit 1")
    done = fresh.run("test", "-m", "not slow")
    # What lies in /usr/sbin, as slurmctld does, is there or not: bootstrap.sh always looks there.
    asked = done.stderr.rpartition("--no-install-recommends ")[2].split()
    assert {*PACKAGES.split(), "slurm-client", "mmdebstrap", "docker-registry"} <= set(asked)
    assert "crun" not in asked


def test_a_python_without_venv_gets_its_package(fresh: FreshMachine) -> None:
    fresh.add("id", "echo 1000")
    fresh.add("python3", "case $2 in *ensurepip*) exit 1;; *print*) echo python3.11-venv;; esac")
    assert f"{PACKAGES} python3.11-venv\n" in fresh.run("demo").stderr
    # A cluster has its own tools, or none: `setup` asks for nothing but what .venv needs.
    assert "--no-install-recommends python3.11-venv\n" in fresh.run("setup").stderr


@pytest.mark.parametrize(
    ("arguments", "returncode", "text"),
    [
        pytest.param((), 0, "usage: ./bootstrap.sh setup", id="no argument"),
        pytest.param(("--help",), 0, "usage: ./bootstrap.sh setup", id="help"),
        pytest.param(("dmeo",), 2, "usage: ./bootstrap.sh setup", id="unknown command"),
    ],
)
def test_usage(fresh: FreshMachine, arguments: tuple[str, ...], returncode: int, text: str) -> None:
    done = fresh.run(*arguments)
    assert done.returncode == returncode
    assert text in (done.stderr if returncode else done.stdout)
    assert fresh.called() == []


def test_an_old_python_is_told(fresh: FreshMachine) -> None:
    fresh.add("python3", "exit 1")
    done = fresh.run("setup")
    assert done.returncode == 1
    assert fresh.called() == []
    assert "no Python 3.11 or newer" in done.stderr
