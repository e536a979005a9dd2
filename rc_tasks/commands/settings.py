"""`doit settings`: each setting, its value, and where it came from."""

from argparse import ArgumentParser, Namespace

from rc_tasks.engine.session import session
from rc_tasks.views import tables


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Settings are read from [tool.rc_tasks] in pyproject.toml, then ~/.config/rc_tasks.toml, then"
        " rc_tasks.toml in the checkout, which git ignores, then"
        " variables such as RC_SLURM_PARTITION; the last one that has a key wins."
    )


def run(_args: Namespace) -> int:
    """Show the settings in force."""
    opened = session()
    rows = [(row.key, row.value, row.origin, row.help) for row in opened.checkout.settings.rows()]
    tables.table(("SETTING", "VALUE", "FROM", "MEANING"), rows)
    return 0
