"""sacctmgr: the Slurm accounts of this user."""

import os
import pwd

from rc_tasks.errors import CommandError, ToolNotFoundError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command

_ANSWER_TIMEOUT_S = 30.0


def accounts() -> tuple[str, ...]:
    """Return the accounts that this user may use; empty where Slurm has none or does not answer."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        argv = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}")
        query = Command((*argv, "format=account"))
        done = command.capture(query, timeout_s=_ANSWER_TIMEOUT_S, check=False)
    except (CommandError, ToolNotFoundError, KeyError):
        return ()
    return tuple(dict.fromkeys(done.stdout.split())) if done.returncode == 0 else ()
