"""The documents keep step with the program."""

import json
import platform
import re
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import fields

from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.commands.store import Stored
from rc_tasks.model.config.project_toml import ProjectOptions
from rc_tasks.model.config.settings import reference_markdown
from rc_tasks.model.manifest.diff import Changes
from rc_tasks.state.history import HistoryEntry
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit
from tests.support.tools import require_tools, which

SOURCE = Path(__file__).resolve().parents[1]
PACKAGE = SOURCE / "rc_tasks"
VERSIONS = SOURCE / "docs/reference/versions.md"
# By the heads of its table.
VERSION_OF = {
    "podman": ("podman", "--version"),
    "skopeo": ("skopeo", "--version"),
    "squashfs-tools": ("mksquashfs", "-version"),
    "Slurm": ("slurmctld", "-V"),
    # Debian's own, whatever Python the tests run with.
    "Python": ("/usr/bin/python3", "--version"),
    "git": ("git", "--version"),
}


def commands() -> list[str]:
    """The names of all commands."""
    return sorted(COMMANDS)


def sections(document: str) -> dict[str, str]:
    """The text below each heading `## …` of a document, by heading."""
    parts = re.split(r"^## (.*)\n", (SOURCE / document).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_readme_fits_on_a_screen() -> None:
    assert len((SOURCE / "README.md").read_bytes()) <= 8_000


def test_the_page_of_settings_has_each_with_its_default_and_meaning() -> None:
    assert reference_markdown() in (SOURCE / "docs/reference/settings.md").read_text(), (
        "put there, in place of the old table, what this prints: python -c 'from"
        " rc_tasks.model.config.settings import *; print(reference_markdown())'"
    )


def test_the_page_of_commands_describes_each() -> None:
    page = (SOURCE / "docs/reference/commands.md").read_text()
    assert not [name for name in commands() if f"`doit {name}" not in page]


def test_the_page_of_commands_groups_them_as_help_does() -> None:
    grouped = {
        heading.lower(): {
            name for name in re.findall(r"^\| `doit (\w+)", text, re.M) if name in COMMANDS
        }
        for heading, text in sections("docs/reference/commands.md").items()
    }
    groups = {entry.group for entry in COMMANDS.values()}
    assert {group: grouped[group] for group in groups} == {
        group: {entry.name for entry in COMMANDS.values() if entry.group == group} for group in groups
    }


def test_contributing_names_functions_that_exist() -> None:
    """Each `NAME` in `FILE.py` and `CLASS.NAME` in `FILE.py` is defined in that file."""
    text = (SOURCE / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`(?:\w+\.)?(\w+)` in `([\w/]+\.py)`", text)
    assert len(named) >= 7
    assert not [
        (name, path)
        for name, path in named
        if not re.search(rf"^\s*(def|class) {name}\b", (PACKAGE / path).read_text(), re.MULTILINE)
    ]


def test_the_page_of_project_toml_has_each_key() -> None:
    page = (SOURCE / "docs/reference/project-toml.md").read_text()
    assert not [field.name for field in fields(ProjectOptions) if f"| `{field.name}` |" not in page]


@pytest.mark.parametrize(
    ("heading", "argv"),
    [
        ("doit list", ("list", "--json")),
        ("doit graph", ("graph", "--format", "json")),
        ("doit bases", ("bases", "--json")),
        ("doit store", ("store", "--json")),
        ("doit settings", ("settings", "--json")),
        ("doit plan", ("plan", "--json")),
        ("doit why", ("why", "a", "--json")),
        ("doit doctor", ("doctor", "--json")),
        ("doit verify", ("verify", "--all", "--json")),
        ("doit rollback", ("rollback", "a", "--list", "--json")),
        ("doit gc", ("gc", "--dry-run", "--json")),
        ("doit import", ("import", "docker-bake.json", "--json")),
    ],
)
def test_the_page_of_json_describes_each_key(
    heading: str, argv: tuple[str, ...], tmp_path: Path
) -> None:
    root = write_checkout(
        tmp_path / "checkout",
        {
            "base/Dockerfile": "FROM debian:12\n",
            "a/Dockerfile": "FROM base\n",
            "docker-bake.json": '{"target": {"b": {"context": "a", "tags": ["b", "c"], "labels": {}}}}',
        },
    )
    pretend_built(root)
    ran = doit(root, *argv)
    # 1 says that something was found: a problem, or damage.
    assert ran.status == 0 or (ran.status == 1 and argv[0] in {"doctor", "verify"}), ran.text
    text = sections("docs/reference/json.md")[heading]
    assert not [key for key in keys_of(json.loads(ran.text)) if f"`{key}`" not in text]


def keys_of(document: object) -> set[str]:
    """The keys of all tables in a JSON document."""
    if isinstance(document, list):
        return set().union(*map(keys_of, document))
    if isinstance(document, dict):
        return set(document).union(*map(keys_of, document.values()))
    return set()


@pytest.mark.parametrize(
    ("heading", "kind"), [("doit history", HistoryEntry), ("doit diff", Changes), ("doit store", Stored)]
)
def test_the_page_of_json_describes_each_field(heading: str, kind: type) -> None:
    text = sections("docs/reference/json.md")[heading]
    assert not [field.name for field in fields(kind) if f"`{field.name}`" not in text]


def version_table() -> dict[str, dict[str, str]]:
    """The table of tested versions: `{"forky": {"podman": "5.8", ...}, ...}`."""
    table = re.findall(
        r"^\| (Debian .*) \|\n\|[-|]+\|\n((?:\|.*\n)+)", VERSIONS.read_text(), re.MULTILINE
    )
    ((head, body),) = table
    found = {}
    for line in body.splitlines():
        row = dict(zip(head.split(" | "), line.strip("| ").split(" | "), strict=True))
        found[row.pop("Debian").rpartition(" ")[2]] = row
    return found


def test_the_page_of_versions_shows_the_suites_that_ci_runs() -> None:
    suites = (SOURCE / "tests/platforms/suites").read_text().split()
    # CI's own machine is a bookworm.
    assert list(version_table()) == ["bookworm", *suites]


@pytest.mark.parametrize("tool", VERSION_OF)
def test_the_page_of_versions_shows_those_of_this_debian(tool: str) -> None:
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if suite not in version_table():
        pytest.skip(f"the table of versions has no row for {suite or 'this system'}")
    program, option = VERSION_OF[tool]
    require_tools(program)
    said = subprocess.run((str(which(program)), option), capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+", said.stdout)
    assert found is not None, said
    assert version_table()[suite][tool] == found[0], (
        f"change the cell of {suite} and {tool} in {VERSIONS.name} to {found[0]}"
    )
