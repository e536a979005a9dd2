"""The program `doit`: doit's own main, with what breaks before any command told clearly."""

import atexit
import gc
import io
import sys
from pathlib import Path

from doit.doit_cmd import DoitMain

from rc_tasks.commands.cli.errors import leave_closed_output
from rc_tasks.errors import RcError, SettingsError
from rc_tasks.state.disk.files import with_careful_umask
from rc_tasks.util import toml_text
from rc_tasks.util.safe_read import advice
from rc_tasks.util.text import printable_lines

# They look into doit's own database, and we have none.
_WITHOUT_MEANING = frozenset({"dumpdb", "reset-dep", "strace"})
# doit reads it before it knows any command, and so do we later.
_SETTINGS = "pyproject.toml"


class _Main(DoitMain):
    DOIT_CMDS = tuple(each for each in DoitMain.DOIT_CMDS if each.get_name() not in _WITHOUT_MEANING)

    def process_args(self, cmd_args: list[str]) -> list[str]:
        """Take out doit's variables; behind `--` stands another program's command, left as it is."""
        at = cmd_args.index("--") if "--" in cmd_args else len(cmd_args)
        # doit looks at the first letter of each word, also where there is none.
        ours: list[str] = super().process_args([word or " " for word in cmd_args[:at]])
        return ours + cmd_args[at:]


def main() -> int:
    """Run the command line; returns the exit status."""
    # Thousands of tasks are made at once and none is thrown away: looking for garbage among them, and
    # once more at the end, takes a third of a run that has nothing to do.
    gc.set_threshold(500_000)
    atexit.register(gc.freeze)
    # File names are any bytes, and a locale may lack an arrow: neither may end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with_careful_umask()
    try:
        status: int = _Main().run(sys.argv[1:])
    except (ValueError, RecursionError, OSError):
        problem = _settings_problem()
        if problem is None:
            raise
        sys.stderr.write(f"ERROR: {printable_lines(str(problem))}\n")
        return 3
    finally:
        leave_closed_output()
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
