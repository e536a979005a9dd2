"""After an upgrade without `./bootstrap.sh setup`, a package may be missing."""

import sys

import pytest

from rc_tasks.commands.cli.errors import report_errors
from rc_tasks.steps import __main__ as steps

MESSAGE = """\
{place}: the Python package xxhash is not installed
  next: run `./bootstrap.sh setup` where the builder is; each upgrade (`git pull`) needs it
"""


def import_missing(name: str) -> int:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(lambda: import_missing("xxhash.something")) == 3
    assert capsys.readouterr().err == "ERROR: " + MESSAGE.format(place=sys.prefix)


def test_a_step_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What main changes for the whole process stays as it is.
    for changes in ("interrupt.raise_once", "command.end_with_parent", "with_careful_umask"):
        monkeypatch.setattr(f"{steps.__name__}.{changes}", lambda *_: None)
    monkeypatch.setattr(f"{steps.__name__}.find_root", lambda _: import_missing("xxhash"))
    assert steps.main(["enroot", "x:1"]) == 1
    assert capsys.readouterr().err == MESSAGE.format(place=sys.prefix)


def test_a_missing_module_of_our_own_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError):
        report_errors(lambda: import_missing("rc_tasks.nosuch"))
