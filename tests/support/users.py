"""An ordinary user for tests that run as root."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
        shutil.rmtree(home)
        subprocess.run(["userdel", name], check=True)
