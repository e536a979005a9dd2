"""The entrypoint of projects/reasoning:2025.1: real git on local repositories, and a pip that records.

Each test has a home of its own, in which `url.insteadOf` leads git to a repository beside it.
"""

import json
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "projects" / "reasoning:2025.1" / "entrypoint.sh"
URL = "https://github.com/open-thought/reasoning-gym.git"
INSTALL = ("install", "--user", "--no-cache-dir", "--no-warn-script-location")
TOOLS = ("bash", "git", "flock", "timeout", "python3")
# Not the interpreter that runs the tests: a virtual environment has no user base.
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

# Records what it was asked, then installs the one file that the entrypoint looks for.
PIP = """\
#!/usr/bin/env python3
import json, os, sys, time
from pathlib import Path
home = Path(os.environ["HOME"])
call = {"argv": sys.argv[1:], "cwd": os.getcwd(), "constraint": os.environ.get("PIP_CONSTRAINT")}
with (home / "pip.calls").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
print("pip was here")
base = Path(os.environ["PYTHONUSERBASE"])
site = base / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
site.mkdir(parents=True)
if (home / "pip.fails").exists():
    sys.exit("no network")
while (home / "pip.waits").exists():
    time.sleep(0.01)
record = site / "reasoning_gym-0.1.dist-info"
record.mkdir()
(record / "METADATA").write_text("Metadata-Version: 2.1\\nName: reasoning_gym\\nVersion: 0.1\\n")
"""

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool, path=SYSTEM_PATH) is None for tool in TOOLS),
    reason=f"needs {', '.join(TOOLS)} in {SYSTEM_PATH}",
)


@dataclass(frozen=True, slots=True)
class Site:
    """A user's home, the upstream repository, and a way to start the container's command."""

    home: Path
    upstream: Path
    entrypoint: Path = ENTRYPOINT

    @property
    def checkout(self) -> Path:
        return self.home / "scratch" / "dev" / "reasoning-gym"

    @property
    def state(self) -> Path:
        return self.home / "scratch" / "dev" / ".reasoning-gym"

    def environment(self, **changes: str) -> dict[str, str]:
        # Not the caller's: a GIT_ or PIP_ variable of the developer must not decide a test.
        return {
            "HOME": str(self.home),
            "PATH": f"{self.home.parent / 'bin'}:{SYSTEM_PATH}",
            "GIT_CONFIG_GLOBAL": str(self.home / ".gitconfig"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C.UTF-8",
            **changes,
        }

    def popen(self, *argv: str, **changes: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ("/bin/bash", str(self.entrypoint), *argv),
            env=self.environment(**changes),
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, *argv: str, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        with self.popen(*argv, **changes) as process:
            out, err = process.communicate(stdin, timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def git(self, directory: Path, *argv: str) -> str:
        done = subprocess.run(
            ("git", "-C", str(directory), *argv),
            env=self.environment(),
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, directory: Path, name: str) -> None:
        (directory / name).write_text(name, encoding="utf-8")
        self.git(directory, "add", name)
        self.git(directory, "commit", "--quiet", "--message", name)

    def pip_calls(self) -> list[dict[str, object]]:
        calls = self.home / "pip.calls"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def leftovers(self) -> list[str]:
        """What set-ups that ended would have left behind."""
        return sorted(path.name for path in (*self.state.glob("clone.*"), *self.state.glob("install.*")))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    home = tmp_path / "home of 'Zoë' [1]"
    upstream = tmp_path / "upstream"
    (home / "scratch").mkdir(parents=True)
    upstream.mkdir()
    pip = tmp_path / "bin" / "pip"
    pip.parent.mkdir()
    pip.write_text(PIP, encoding="utf-8")
    pip.chmod(0o755)
    made = Site(home, upstream)
    for key, value in {
        f"url.{upstream}.insteadOf": URL,
        "user.name": "Zoë",
        "user.email": "zoe@example.org",
        "init.defaultBranch": "trunk",
    }.items():
        made.git(home, "config", "--global", key, value)
    made.git(upstream, "init", "--quiet")
    made.commit(upstream, "requirements-dev.txt")
    return made


@pytest.fixture
def complete(site: Site) -> Site:
    """A site after its first start."""
    assert site.start("true").returncode == 0
    return site


def user_base(site: Site) -> Path:
    version = subprocess.run(
        ("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"),
        env=site.environment(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return site.state / f"{platform.machine()}-python{version}"


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """All that git could have changed for the user: the work tree, the index and the local branches."""
    heads = directory / ".git" / "refs" / "heads"
    files = [path for path in directory.rglob("*") if ".git" not in path.parts and path.is_file()]
    files += [directory / ".git" / "index", directory / ".git" / "HEAD", *heads.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.is_file()}


def test_first_start_clones_and_installs(site: Site) -> None:
    done = site.start("env", PIP_CONSTRAINT="/etc/pip/constraint.txt", PYTHONUSERBASE="/elsewhere")
    assert done.returncode == 0
    assert site.git(site.checkout, "status", "--short", "--branch") == "## trunk...origin/trunk"
    (call,) = site.pip_calls()
    assert call == {
        "argv": [*INSTALL, "--editable", ".", "--requirement", "requirements-dev.txt"],
        "cwd": str(site.checkout),
        "constraint": "",
    }
    environment = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert environment["PYTHONUSERBASE"] == str(user_base(site))
    assert environment["PATH"].endswith(f":{user_base(site)}/bin")
    # What git and pip need is not the command's business.
    assert environment["PIP_CONSTRAINT"] == "/etc/pip/constraint.txt"
    assert not [name for name in environment if name.startswith("GIT_TERMINAL")]
    assert "pip was here" in done.stderr
    assert site.leftovers() == []


def test_python_of_the_command_sees_what_was_installed(complete: Site) -> None:
    code = "from importlib.metadata import version; print(version('reasoning_gym'))"
    assert complete.start("python3", "-c", code).stdout == "0.1\n"


def test_without_development_requirements_only_the_package_is_installed(site: Site) -> None:
    site.git(site.upstream, "rm", "--quiet", "requirements-dev.txt")
    site.commit(site.upstream, "README.md")
    site.start("true")
    (call,) = site.pip_calls()
    assert call["argv"] == [*INSTALL, "--editable", "."]


def test_second_start_fetches_and_installs_nothing(complete: Site) -> None:
    complete.commit(complete.upstream, "news")
    done = complete.start("true")
    assert done.stderr == "reasoning-gym: trunk is 0 ahead of origin/trunk, 1 behind\n"
    assert len(complete.pip_calls()) == 1
    assert not (complete.checkout / "news").exists()


def test_local_work_is_counted_and_left_alone(complete: Site) -> None:
    complete.git(complete.checkout, "switch", "--quiet", "--create", "mine")
    for name in ("one", "two"):
        complete.commit(complete.checkout, name)
    (complete.checkout / "one").write_text("edited", encoding="utf-8")
    (complete.checkout / "new file").write_text("untracked", encoding="utf-8")
    complete.git(complete.checkout, "rm", "--quiet", "--cached", "two")
    complete.commit(complete.upstream, "news")
    before = snapshot(complete.checkout)
    done = complete.start("true")
    assert done.stderr == "reasoning-gym: mine is 2 ahead of origin/trunk, 1 behind\n"
    assert snapshot(complete.checkout) == before


def test_detached_head_is_reported(complete: Site) -> None:
    complete.git(complete.checkout, "switch", "--quiet", "--detach")
    assert "detached HEAD is 0 ahead of origin/trunk, 0 behind" in complete.start("true").stderr


def test_upstream_gone_is_a_warning(complete: Site) -> None:
    complete.upstream.rename(complete.upstream.with_name("gone"))
    done = complete.start("echo", "still here")
    assert (done.returncode, done.stdout) == (0, "still here\n")
    assert "warning: cannot fetch, going on without news" in done.stderr
    assert "trunk is 0 ahead of origin/trunk, 0 behind" in done.stderr


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/reasoning-gym.git"


def test_silent_upstream_is_a_warning_soon(complete: Site, silent_server: str, tmp_path: Path) -> None:
    text = ENTRYPOINT.read_text(encoding="utf-8")
    assert "fetch_limit_s=20\n" in text
    hurried = tmp_path / "entrypoint.sh"
    hurried.write_text(text.replace("fetch_limit_s=20\n", "fetch_limit_s=1\n"), encoding="utf-8")
    complete.git(complete.checkout, "remote", "set-url", "origin", silent_server)
    done = Site(complete.home, complete.upstream, hurried).start("echo", "still here")
    assert (done.returncode, done.stdout) == (0, "still here\n")
    assert "warning: no answer from upstream within 1 s" in done.stderr


def test_first_start_without_network_is_a_warning_and_the_next_one_repairs_it(site: Site) -> None:
    site.upstream.rename(site.upstream.with_name("gone"))
    done = site.start("sh", "-c", 'echo "still here ${PYTHONUSERBASE-unset}"')
    assert (done.returncode, done.stdout) == (0, "still here unset\n")
    assert "warning: no checkout, as the clone failed; the next start tries again" in done.stderr
    assert not site.checkout.exists()
    assert site.leftovers() == []
    site.upstream.with_name("gone").rename(site.upstream)
    site.start("true")
    assert (site.checkout / "requirements-dev.txt").exists()
    assert len(site.pip_calls()) == 1


def test_failed_install_is_a_warning_and_the_next_start_repairs_it(site: Site) -> None:
    (site.home / "pip.fails").touch()
    done = site.start("sh", "-c", 'echo "still here ${PYTHONUSERBASE-unset}"')
    assert (done.returncode, done.stdout) == (0, "still here unset\n")
    assert "warning: not installed, as pip failed; the next start tries again" in done.stderr
    assert site.leftovers() == []
    (site.home / "pip.fails").unlink()
    assert "warning" not in site.start("true").stderr
    assert len(site.pip_calls()) == 2
    assert user_base(site).is_dir()


def test_start_killed_during_the_install_is_repaired(site: Site) -> None:
    (site.home / "pip.waits").touch()
    with site.popen("true") as process:
        while not site.pip_calls():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    (site.home / "pip.waits").unlink()
    assert not user_base(site).exists()
    assert "warning" not in site.start("true").stderr
    assert (user_base(site) / "lib").is_dir()
    assert len(site.pip_calls()) == 2


def test_half_clone_is_replaced(site: Site) -> None:
    site.checkout.mkdir(parents=True)
    site.git(site.checkout, "init", "--quiet")
    (site.checkout / ".git" / "objects" / "pack" / "tmp_pack_ab12").write_bytes(b"half")
    assert "warning" not in site.start("true").stderr
    assert (site.checkout / "requirements-dev.txt").exists()
    assert site.leftovers() == []


def test_empty_directory_becomes_the_checkout(site: Site) -> None:
    site.checkout.mkdir(parents=True)
    site.start("true")
    assert (site.checkout / "requirements-dev.txt").exists()


@pytest.mark.parametrize("with_git", [False, True], ids=["no repository", "no commit yet"])
def test_directory_with_other_files_is_left_alone(site: Site, with_git: bool) -> None:
    site.checkout.mkdir(parents=True)
    (site.checkout / "thesis.tex").write_text("years of work", encoding="utf-8")
    if with_git:
        site.git(site.checkout, "init", "--quiet")
    done = site.start("echo", "still here")
    assert done.stdout == "still here\n"
    assert f"warning: {site.checkout} is no git checkout and is left as it is" in done.stderr
    assert (site.checkout / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert site.pip_calls() == []


def test_purged_installation_is_made_again(complete: Site) -> None:
    (record,) = user_base(complete).rglob("METADATA")
    record.unlink()
    complete.start("true")
    assert len(complete.pip_calls()) == 2
    assert record.exists()
    assert complete.leftovers() == []


def test_old_leftovers_are_cleared_and_young_ones_kept(site: Site) -> None:
    old, young = site.state / "clone.oldold", site.state / "install.young1"
    for directory in (old, young):
        directory.mkdir(parents=True)
    os.utime(old, (0, 0))
    site.start("true")
    assert not old.exists()
    assert young.exists()


def test_many_at_once_set_up_once(site: Site) -> None:
    (site.home / "pip.waits").touch()
    first = site.popen("echo", "first")
    while not site.pip_calls():
        assert first.poll() is None
    others = [site.popen("echo", str(number)) for number in range(4)]
    for other in others:
        assert other.stderr is not None
        assert "waiting for another start" in other.stderr.readline()
    (site.home / "pip.waits").unlink()
    outputs = [process.communicate(timeout=60) for process in (first, *others)]
    assert [out for out, _ in outputs] == ["first\n", "0\n", "1\n", "2\n", "3\n"]
    assert not any("warning" in err for _, err in outputs)
    assert len(site.pip_calls()) == 1


def test_without_flock_renames_decide(site: Site, tmp_path: Path) -> None:
    # As on a file system that is mounted without it.
    flock = tmp_path / "bin" / "flock"
    flock.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    flock.chmod(0o755)
    processes = [site.popen("echo", "on") for _ in range(4)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outputs] == ["on\n"] * 4
    assert site.git(site.checkout, "status", "--short", "--branch") == "## trunk...origin/trunk"
    assert user_base(site).is_dir()
    assert site.leftovers() == []
    assert sorted(path.name for path in site.checkout.iterdir()) == [".git", "requirements-dev.txt"]


@pytest.mark.parametrize("kind", ["missing", "file", "read-only"])
def test_unusable_scratch_is_a_warning(site: Site, kind: str) -> None:
    scratch = site.home / "scratch"
    scratch.rmdir()
    if kind == "file":
        scratch.touch()
    elif kind == "read-only":
        scratch.symlink_to("/proc/self")  # root writes anywhere else
    done = site.start("echo", "still here")
    assert (done.returncode, done.stdout) == (0, "still here\n")
    assert f"warning: {scratch} is missing or cannot be written" in done.stderr
    assert site.pip_calls() == []


def test_scratch_may_be_a_symlink(site: Site, tmp_path: Path) -> None:
    (site.home / "scratch").rmdir()
    (tmp_path / "real scratch").mkdir()
    (site.home / "scratch").symlink_to(tmp_path / "real scratch")
    assert "warning" not in site.start("true").stderr
    assert (tmp_path / "real scratch" / "dev" / "reasoning-gym" / "requirements-dev.txt").exists()


def test_home_unset_is_a_warning(site: Site) -> None:
    done = subprocess.run(
        ("env", "-u", "HOME", "/bin/bash", str(site.entrypoint), "echo", "still here"),
        env=site.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "still here\n"
    assert "warning" in done.stderr


def test_skip_leaves_everything_out(site: Site) -> None:
    done = site.start("echo", "at once", REASONING_GYM="skip")
    assert (done.stdout, done.stderr) == ("at once\n", "")
    assert list((site.home / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("two words", "", "tab\there"),
        ("it's", '"quoted"', "`id`", "$HOME", "$(id)", "\\"),
        ("line\nbreak\n", "Zoë", "*", "~"),
        ("-c", "--", "-"),
    ],
    ids=["spaces", "quotes", "newlines", "dashes"],
)
def test_arguments_arrive_unchanged(site: Site, arguments: Sequence[str]) -> None:
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    done = site.start("python3", "-c", code, *arguments, REASONING_GYM="skip")
    assert json.loads(done.stdout) == list(arguments)


def test_command_may_look_like_an_option(site: Site) -> None:
    assert site.start("-a", "x", REASONING_GYM="skip").returncode == 127


def test_input_output_and_status_are_the_commands_own(site: Site) -> None:
    done = site.start("sh", "-c", "cat; pwd; exit 42", stdin="from outside\n")
    assert (done.returncode, done.stdout) == (42, f"from outside\n{site.home}\n")


def test_without_arguments_it_is_a_shell(complete: Site) -> None:
    assert complete.start(stdin="echo $((6 * 7)) $BASH_VERSION | cut -c 1-3\n").stdout.startswith("42 ")


def test_command_replaces_the_shell_and_gets_its_signals(complete: Site) -> None:
    with complete.popen(
        "python3", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM


def test_command_inherits_no_lock(complete: Site) -> None:
    done = complete.start("sh", "-c", "ls /proc/$$/fd")
    assert set(done.stdout.split()) <= {"0", "1", "2"}


def test_entrypoint_can_be_executed_in_the_checkout() -> None:
    assert stat.S_IMODE(ENTRYPOINT.stat().st_mode) & 0o111 == 0o111
