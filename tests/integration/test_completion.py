"""Shell completion, in real shells."""

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT, doit
from tests.support.runs import PATIENCE_S
from tests.support.tools import refuse, require_tools

BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "projects/reasoning:2025.1/Dockerfile": "FROM base\n",
    "projects/reasoning:latest": "-> reasoning:2025.1",
}
ASK = """
source "$1"; source "$2"; shift 2
COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
# As readline does: a colon is a word of its own.
read -ra COMP_WORDS <<< "${COMP_LINE//:/ : }"
[[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_doit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("doit bui", {"build", "build:base", "build:reasoning", "build:reasoning:2025.1"}),
        ("doit build:rea", {"reasoning", "reasoning:2025.1", "reasoning:latest"}),
        ("doit build:reasoning:2", {"2025.1"}),
        ("doit podman:b", {"base"}),
        ("doit list build:b", {"base"}),
        ("doit why build:reasoning:l", {"latest"}),
        ("doit pl", {"plan"}),
        ("doit forget b", {"base"}),
        ("doit log base e", {"enroot", "env"}),
        ("doit list --state fa", {"failed"}),
    ],
)
@pytest.mark.parametrize("folder", [".", "projects"])
def test_names_are_completed_in_any_folder(
    tmp_path: Path, line: str, expected: set[str], folder: str
) -> None:
    if not BASH_COMPLETION.exists():
        refuse("not installed: bash-completion")
    root = write_checkout(tmp_path / "imgs", FILES)
    script = tmp_path / "completion"
    script.write_text(doit(root, "tabcompletion").text)
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", BASH_COMPLETION, script, line],
        cwd=root / folder,
        env={**os.environ, "PATH": f"{Path(DOIT).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Without bash's own prefix of the word that stands there already.
    found = {word.strip() for word in done.stdout.split()}
    assert expected <= found, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("doit pl", {"plan"}),
        ("doit why rea", {"reasoning", "reasoning:2025.1", "reasoning:latest"}),
        ("doit podman:", {"podman:base", "podman:reasoning:2025.1"}),
        ("doit list --js", {"--json"}),
        ("doit graph --format me", {"mermaid"}),
        ("doit log base po", {"podman"}),
        ("doit forget b", {"base"}),
    ],
)
def test_fish_completes_commands_names_options_and_values(
    tmp_path: Path, line: str, expected: set[str]
) -> None:
    require_tools("fish")
    root = write_checkout(tmp_path / "imgs", FILES)
    script = tmp_path / "doit.fish"
    script.write_text(doit(root, "tabcompletion", "--shell", "fish").text)
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", script, line],
        cwd=root,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PATH": f"{Path(DOIT).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    completed = {word.partition("\t")[0] for word in done.stdout.splitlines()}
    assert expected <= completed, done.stdout + done.stderr


INTERACTIVE = {
    "bash": (("bash", "--norc", "--noprofile", "-i"), "source {script}"),
    "zsh": (("zsh", "-f", "-i"), "autoload -U compinit; compinit -u -D; source {script}"),
}


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("doit pla", "doit plan "),
        ("doit podman:ba", "doit podman:base "),
        ("doit list reasoning:l", "doit list reasoning:latest "),
        ("doit list --js", "doit list --json "),
        ("doit list --state fa", "doit list --state failed "),
        ("doit graph --format=me", "doit graph --format=mermaid "),
        ("doit log base po", "doit log base podman"),
        ("doit clean ba", "doit clean base "),
    ],
)
@pytest.mark.parametrize("shell", INTERACTIVE)
def test_tab_completes_at_a_prompt_without_errors(
    tmp_path: Path, shell: str, line: str, completed: str
) -> None:
    require_tools(shell)
    root = write_checkout(tmp_path / "imgs", FILES)
    script = tmp_path / "completion"
    script.write_text(doit(root, "tabcompletion", "--shell", shell).text)
    argv, setup = INTERACTIVE[shell]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        argv,
        cwd=root,
        env={
            "HOME": str(tmp_path),
            "PATH": f"{Path(DOIT).parent}:/usr/bin:/bin",
            "PS1": "ready> ",
            "TERM": "dumb",
        },
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        shown(master, "ready> ")
        os.write(master, f"{setup.format(script=script)}; echo se''t\n".encode())
        shown(master, r"set\r\n.*ready> ")
        os.write(master, f"{line}\t".encode())
        text = shown(master, re.escape(completed))
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert "\n" not in text, text


def shown(terminal: int, pattern: str) -> str:
    """Read until a pattern is on the terminal; returns all that was read."""
    text, deadline = "", time.monotonic() + PATIENCE_S
    while re.search(pattern, text, re.DOTALL) is None:
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.2)[0]:
            # zsh rings the bell before it completes.
            text += os.read(terminal, 1 << 16).decode(errors="replace").replace("\a", "")
    return text
