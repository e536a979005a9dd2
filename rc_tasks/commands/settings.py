"""`doit settings`: each setting, its value, and where it came from."""

from typing import Any

from rc_tasks.commands.cli.command import CheckoutCommand
from rc_tasks.engine.session import Session
from rc_tasks.views import tables


class ShowSettings(CheckoutCommand):
    """Shows the settings in force."""

    name = "settings"
    doc_purpose = "show each setting, its value and where it came from"
    doc_usage = ""
    doc_description = (
        "Settings are read from [tool.rc_tasks] in pyproject.toml, then ~/.config/rc_tasks.toml, then"
        " variables such as RC_SLURM_PARTITION; the last one that has a key wins."
    )

    def show(self, opened: Session, options: dict[str, Any], names: list[str]) -> int:
        rows = [(row.key, row.value, row.origin, row.help) for row in opened.checkout.settings.rows()]
        tables.table(("SETTING", "VALUE", "FROM", "MEANING"), rows)
        return 0
