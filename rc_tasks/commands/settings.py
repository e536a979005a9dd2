"""`doit settings`: each setting, its value, and where it comes from."""

import json
from argparse import ArgumentParser, Namespace

from msgspec import to_builtins

from rc_tasks.commands.cli.parser import add_json
from rc_tasks.engine.session import session
from rc_tasks.views import tables


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Settings are read from [tool.rc_tasks] in pyproject.toml, then ~/.config/rc_tasks.toml, then"
        " rc_tasks.toml in the checkout, which git ignores, then"
        " variables such as RC_SLURM_PARTITION. A later source overrides an earlier one."
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Print the settings in force."""
    settings = session().checkout.settings
    if args.json:
        print(json.dumps([to_builtins(row) for row in settings.rows()], indent=2))
        return 0
    rows = [(row.key, row.value, row.origin, row.help) for row in settings.rows()]
    tables.table(("SETTING", "VALUE", "FROM", "MEANING"), rows)
    return 0
