"""docs/tutorial.md, typed word for word: each command prints what the page shows.

    UPDATE_GOLDEN=1 pytest tests/test_tutorial.py

writes what the commands print into the page.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rc_tasks.tools.podman import Podman
from tests.support.checkouts import copy_demo
from tests.support.doit import DOIT, unstamped
from tests.support.tools import require_tools

SOURCE = Path(__file__).resolve().parents[1]
TUTORIAL = SOURCE / "docs/tutorial.md"
README = SOURCE / "README.md"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
# A command of the page and what it prints.
TYPED = re.compile(r"^    \$ (.*)\n((?:    (?!\$ ).*\n)*)", re.MULTILINE)
END = "\x1e"
# Another machine prints other ones.
VARYING = {
    r"\d{4}-\d\d-\d\d[ T]\d\d[-:]\d\d(?:[-:]\d\d\S*)?": "TIME",
    r"\b\d+(?:\.\d+)? (?:ms|s|min)\b": "DURATION",
    r"\b\d+(?:\.\d+)? [kMG]?B\b": "SIZE",
    r"\b[0-9a-f]{10,12}\b": "DIGEST",
    r" +": " ",
    # What podman itself prints.
    r"(?m)^ \| .*\n": "",
}


def told(text: str) -> str:
    """What the program prints, without what varies."""
    for pattern, word in VARYING.items():
        text = re.sub(pattern, word, text)
    return text.strip()


@pytest.fixture
def clone(tmp_path: Path, podman_storage: Podman) -> Path:
    """A clone in which `./bootstrap.sh demo` has run; tests/integration/test_demo.py runs that."""
    require_tools("busybox", "git")
    demo = copy_demo(tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    commit = ("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--message=demo")
    for argv in (("init",), ("add", "examples"), commit):
        subprocess.run(("git", *argv), cwd=tmp_path, check=True, capture_output=True)
    subprocess.run((DOIT,), cwd=demo, check=True, capture_output=True)
    return tmp_path


@pytest.mark.podman
def test_each_command_of_the_tutorial_prints_what_it_shows(clone: Path) -> None:
    page = TUTORIAL.read_text()
    commands = [command for command, _ in TYPED.findall(page)]
    assert len(commands) > 10
    script = "".join(f"{command}\nprintf '\\036'\n" for command in commands)
    done = subprocess.run(
        ("bash", "-c", script),
        cwd=clone,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = [unstamped(text) for text in done.stdout.split(END)[:-1]]
    assert len(printed) == len(commands), done.stdout
    if UPDATE:
        texts = iter(printed)

        def shown(typed: "re.Match[str]") -> str:
            lines = (f"    {line}".rstrip() + "\n" for line in next(texts).splitlines())
            return f"    $ {typed[1]}\n" + "".join(lines)

        TUTORIAL.write_text(TYPED.sub(shown, page))
        return
    for (command, session), text in zip(TYPED.findall(page), printed, strict=True):
        expected = re.sub(r"(?m)^    ", "", session)
        assert told(text) == told(expected), command


def test_the_session_of_the_readme_is_a_part_of_the_tutorial() -> None:
    session = TYPED.findall(README.read_text())
    assert session
    shown = {(command, told(text)) for command, text in TYPED.findall(TUTORIAL.read_text())}
    assert {(command, told(text)) for command, text in session} <= shown
