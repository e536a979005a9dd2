"""doit's own main, for what doit runs, with errors in our form."""

from pathlib import Path

from doit.doit_cmd import DoitMain
from doit.plugin import PluginDict

from rc_tasks.commands.at_root import Clean, Forget, Ignore, Info, List
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.commands.run import Run
from rc_tasks.errors import RcError, SettingsError
from rc_tasks.util import toml_text
from rc_tasks.util.safe_read import advice

# doit reads it before it knows any command, and so do we later.
_SETTINGS = "pyproject.toml"


class _Main(DoitMain):
    def get_cmds(self) -> PluginDict:
        """doit's commands and those of plugins. The others are here so that no task has such a name."""
        commands = super().get_cmds()
        for name in ("dumpdb", "reset-dep", "strace"):
            # They look into doit's own database, and we have none.
            commands.pop(name)
        commands.update(dict.fromkeys(COMMANDS, Run))
        commands.update(list=List, info=Info, forget=Forget, ignore=Ignore, clean=Clean)
        return commands

    def process_args(self, cmd_args: list[str]) -> list[str]:
        """Take out doit's variables; behind `--` stands another program's command, left as it is."""
        at = cmd_args.index("--") if "--" in cmd_args else len(cmd_args)
        # doit looks at the first letter of each word, also where there is none.
        ours: list[str] = super().process_args([word or " " for word in cmd_args[:at]])
        return ours + cmd_args[at:]


def doit(words: list[str]) -> int:
    """Let doit run a command line; returns the exit status. Raises RcError."""
    try:
        status: int = _Main().run(words)
    except (ValueError, RecursionError, OSError):
        problem = _settings_problem()
        if problem is None:
            raise
        raise problem from None
    return status


def _settings_problem() -> RcError | None:
    try:
        text = toml_text.decode(Path(_SETTINGS).read_bytes(), _SETTINGS, SettingsError)
        toml_text.loads(text, _SETTINGS, SettingsError)
    except RcError as error:
        return error
    except OSError as error:
        return SettingsError(
            f"cannot be read: {error.strerror}",
            where=_SETTINGS,
            hint=advice(error, "correct its permissions"),
        )
    return None
