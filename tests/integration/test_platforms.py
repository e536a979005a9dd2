"""`./bootstrap.sh test --on SUITE`, up to where its root is made; CI runs the rest of it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools import require_tools

ROOT = Path(__file__).parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command with programs of the test's own in front of those of the machine."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(*arguments: str, **scripts: str) -> subprocess.CompletedProcess[str]:
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        return subprocess.run(
            ("./bootstrap.sh", "test", "--on", *arguments),
            env=os.environ
            | {
                "PATH": f"{programs}:{os.environ['PATH']}",
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
                "TMPDIR": str(tmp_path),
            },
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_root_that_cannot_be_made_is_told_and_nothing_of_it_is_left(run: Run, tmp_path: Path) -> None:
    # The archive is the last argument.
    script = """\
echo "E: The repository 'forky Release' does not have a Release file." >&2
echo "$@" >"${0%/*}/../called"
while [ $# -gt 1 ]; do shift; done
echo half >"$1"
exit 25"""
    done = run("forky", id="echo 0", mmdebstrap=script)
    assert done.returncode == 1
    assert done.stderr == (
        "E: The repository 'forky Release' does not have a Release file.\n"
        "\ntests on forky: mmdebstrap could not make a root, see above\n"
        "  next: look whether Debian has this suite, and whether the mirror above can be reached from\n"
        "  here; on Ubuntu, Debian's keys are in the package debian-archive-keyring\n"
    )
    asked = (tmp_path / "called").read_text()
    assert ",slurmctld,slurmd,slurm-client," in asked
    assert " forky /" in asked
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "cache", "called"}


@pytest.mark.parametrize("name", ["", "../forky", "-forky", "forky trixie", "http://x"])
def test_what_is_no_name_of_a_suite_is_told(run: Run, name: str) -> None:
    done = run(name, mmdebstrap="exit 25")
    assert done.returncode == 1
    assert done.stderr == (
        f"\ntests on {name}: this is no name of a Debian suite\n"
        "  next: name one, such as trixie or forky\n"
    )


def test_without_a_suite_the_usage_is_shown(run: Run) -> None:
    done = run()
    assert done.returncode == 2
    assert "./bootstrap.sh test --on SUITE" in done.stderr


def test_an_ordinary_user_goes_through_sudo(run: Run) -> None:
    done = run(
        "forky", "-k", "it's a", id="echo 1000", mmdebstrap="exit 25", sudo="printf '<%s>' \"$@\""
    )
    assert done.returncode == 0
    assert done.stdout.startswith("<env>")
    assert "/tests/platforms/run><forky><podman skopeo " in done.stdout
    assert done.stdout.endswith("><test><-k><it's a>")


def test_the_scripts_are_clean() -> None:
    require_tools("shellcheck")
    scripts = (ROOT / "tests/platforms/run", ROOT / "tests/platforms/enter")
    done = subprocess.run(("shellcheck", *scripts), capture_output=True, text=True, check=False)
    assert done.stdout == ""
