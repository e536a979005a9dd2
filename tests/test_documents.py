"""The documents keep step with the program."""

from pathlib import Path

from rc_tasks.model.settings import reference_markdown

SOURCE = Path(__file__).resolve().parents[1]


def test_the_readme_has_every_setting_with_its_default_and_meaning() -> None:
    assert reference_markdown() in (SOURCE / "README.md").read_text(), (
        'put there what python -c "from rc_tasks.model.settings import *; print(reference_markdown())"'
        " prints, in place of the old table"
    )


def test_the_readme_names_every_command_of_ours() -> None:
    readme = (SOURCE / "README.md").read_text()
    for module in (SOURCE / "rc_tasks/commands").glob("*.py"):
        if module.stem in {"list", "why", "plan", "settings", "doctor"}:
            assert f"`doit {module.stem}" in readme
