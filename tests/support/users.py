"""An ordinary user for tests that run as root."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import refuse

# What steps need beside Python's own modules.
PACKAGES: tuple[str, ...] = (
    *("rc_tasks", "dockerfile_parse", "msgspec", "xxhash"),
    *("jinja2", "markupsafe", "tomlkit"),
)
if sys.version_info < (3, 14):
    PACKAGES += ("backports.zstd",)


@dataclass(frozen=True, slots=True)
class User:
    """`argv` before a command runs it as this user, in `home`, with nothing of our environment."""

    name: str
    home: Path
    argv: tuple[str, ...]


@contextlib.contextmanager
def ordinary_user() -> Iterator[User]:
    """A user with ranges of subordinate IDs; afterwards neither they nor their home are left."""
    # Not below /tmp/pytest-of-root, which nobody else may enter; /tmp can be too small for images.
    home = Path(tempfile.mkdtemp(prefix="rc-user-", dir="/var/tmp"))
    name = home.name[-32:].lower()
    subprocess.run(["useradd", "--home-dir", home, "--shell", "/bin/sh", name], check=True)
    runtime = home / "run"
    runtime.mkdir(mode=0o700)
    shutil.chown(home, name, name)
    shutil.chown(runtime, name, name)
    variables = (f"HOME={home}", f"USER={name}", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8")
    passed = [f"{key}={value}" for key, value in os.environ.items() if key.lower().endswith("_proxy")]
    start = ("runuser", "-u", name, "--", "env", "-i", f"--chdir={home}")
    user = User(name, home, (*start, *variables, *passed, f"XDG_RUNTIME_DIR={runtime}"))
    try:
        yield user
    finally:
        # Ends the process with which podman keeps the user's namespace.
        subprocess.run([*user.argv, "podman", "system", "migrate"], check=False, capture_output=True)
        left = subprocess.run(
            ["ps", "-u", name, "-o", "pid="], capture_output=True, text=True, check=False
        )
        for pid in left.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        shutil.rmtree(home)
        shutil.rmtree(f"/dev/shm/{name}", ignore_errors=True)
        subprocess.run(["userdel", name], check=True)


def python(user: User) -> tuple[str, ...]:
    """A command that runs a Python of the user's own in which images can be built and squashed.

    The one of these tests, and this checkout, can lie where only root may go.
    """
    copies = user.home / "python"
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        target = copies / package.replace(".", "/")
        shutil.copytree(Path(spec.origin).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    imports = ", ".join(("sys", "rc_tasks.steps.__main__", *PACKAGES))
    probe = f"import {imports}; assert sys.version_info >= (3, 11)"
    for candidate in (sys.executable, "/usr/bin/python3"):
        argv = ("env", f"PYTHONPATH={copies}", "PYTHONDONTWRITEBYTECODE=1", candidate)
        done = subprocess.run([*user.argv, *argv, "-c", probe], check=False, capture_output=True)
        if done.returncode == 0:
            return argv
    refuse("an ordinary user finds no Python 3.11 here")
    raise AssertionError
