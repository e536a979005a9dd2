"""Shell completion, in real shells."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT, doit
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
