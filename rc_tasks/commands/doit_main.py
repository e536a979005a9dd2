"""doit's main program with our commands, for command lines that doit parses."""

from pathlib import Path

from doit.doit_cmd import DoitMain
from doit.plugin import PluginDict

from rc_tasks.commands.at_root import Clean, Forget, Ignore, Info, List
from rc_tasks.commands.cli.parser import UsageError
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.commands.run import Run
from rc_tasks.errors import RcError, SettingsError
from rc_tasks.util import toml_text
from rc_tasks.util.safe_read import unreadable

# doit reads this file before it knows any command. Its own errors do not name the file.
_SETTINGS = "pyproject.toml"


class _Main(DoitMain):
    def get_cmds(self) -> PluginDict:
        """Return all commands by name.

        main.py runs most of ours without doit. doit needs their names to refuse tasks with such names.
        """
        commands = super().get_cmds()
        for name in ("dumpdb", "reset-dep", "strace"):
            # These commands need doit's own database, which does not exist here.
            commands.pop(name)
        commands.update(dict.fromkeys(COMMANDS, Run))
        commands.update(list=List, info=Info, forget=Forget, ignore=Ignore, clean=Clean)
        return commands

    def process_args(self, cmd_args: list[str]) -> list[str]:
        """Remove doit's variables such as NAME=VALUE from the words before `--`."""
        at = cmd_args.index("--") if "--" in cmd_args else len(cmd_args)
        # doit reads the first letter of each word, and fails for an empty one.
        own_words: list[str] = super().process_args([word or " " for word in cmd_args[:at]])
        return own_words + cmd_args[at:]


def doit(words: list[str]) -> int:
    """Run a command line with doit and return the exit status. Raise RcError."""
    for word in words[words.index("--") :] if "--" in words else ():
        # doit would take the word for an option.
        if word.startswith("-") and word != "--":
            raise UsageError(f"there is no task named {word!r}", hint="write options before `--`")
    try:
        status: int = _Main().run(words)
    except (ValueError, RecursionError, OSError):
        error = _settings_problem()
        if error is None:
            raise
        raise error from None
    return status


def _settings_problem() -> RcError | None:
    """Return what is wrong with pyproject.toml, or None."""
    try:
        text = toml_text.decode(Path(_SETTINGS).read_bytes(), _SETTINGS, SettingsError)
        toml_text.loads(text, _SETTINGS, SettingsError)
    except RcError as error:
        return error
    except OSError as error:
        return unreadable(SettingsError, error, _SETTINGS, "correct its permissions")
    return None
