"""The documents keep step with the program."""

import platform
import re
import subprocess
from pathlib import Path

import pytest

from rc_tasks.model.config.settings import reference_markdown
from tests.support.tools import require_tools, which

SOURCE = Path(__file__).resolve().parents[1]
# By the heads of the README's table of versions.
VERSION_OF = {
    "podman": ("podman", "--version"),
    "skopeo": ("skopeo", "--version"),
    "squashfs-tools": ("mksquashfs", "-version"),
    "Slurm": ("slurmctld", "-V"),
    # Debian's own, whatever Python the tests run with.
    "Python": ("/usr/bin/python3", "--version"),
    "git": ("git", "--version"),
}


def test_the_readme_has_every_setting_with_its_default_and_meaning() -> None:
    assert reference_markdown() in (SOURCE / "README.md").read_text(), (
        "put there, in place of the old table, what this prints: python -c 'from"
        " rc_tasks.model.config.settings import *; print(reference_markdown())'"
    )


def test_the_readme_names_every_command_of_ours() -> None:
    readme = (SOURCE / "README.md").read_text()
    for module in (SOURCE / "rc_tasks/commands").glob("*.py"):
        if module.stem in {"list", "why", "plan", "settings", "doctor"}:
            assert f"`doit {module.stem}" in readme


def version_table() -> dict[str, dict[str, str]]:
    """The README's table of versions: `{"forky": {"podman": "5.8", ...}, ...}`."""
    table = re.findall(
        r"^\| (Debian .*) \|\n\|[-|]+\|\n((?:\|.*\n)+)", (SOURCE / "README.md").read_text(), re.MULTILINE
    )
    ((head, body),) = table
    found = {}
    for line in body.splitlines():
        row = dict(zip(head.split(" | "), line.strip("| ").split(" | "), strict=True))
        found[row.pop("Debian").rpartition(" ")[2]] = row
    return found


def test_the_readme_shows_the_suites_that_ci_runs() -> None:
    suites = (SOURCE / "tests/platforms/suites").read_text().split()
    # CI's own machine is a bookworm.
    assert list(version_table()) == ["bookworm", *suites]


@pytest.mark.parametrize("tool", VERSION_OF)
def test_the_readme_shows_the_versions_of_this_debian(tool: str) -> None:
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if suite not in version_table():
        pytest.skip(f"the README's table has no row for {suite or 'this system'}")
    program, option = VERSION_OF[tool]
    require_tools(program)
    said = subprocess.run((str(which(program)), option), capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+", said.stdout)
    assert found is not None, said
    assert version_table()[suite][tool] == found[0], (
        f"change the cell of {suite} and {tool} in README.md to {found[0]}"
    )
