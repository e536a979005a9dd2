"""Sources of settings: a table of a TOML file, and environment variables."""

import re
import shlex
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from rc_tasks.errors import RcError, SettingsError
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.safe_read import advice, read_bytes
from rc_tasks.util.toml_schema import Leaf, Problem, wrong
from rc_tasks.util.toml_text import KeyPath


class SourceValues(Struct, frozen=True):
    """Values by path, each with its origin (a file or a variable), and all problems."""

    values: Mapping[KeyPath, object] = field(default_factory=dict)
    origins: Mapping[KeyPath, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def __or__(self, later: "SourceValues") -> "SourceValues":
        """Return the union, in which `later` overrides this source."""
        return SourceValues(
            {**self.values, **later.values},
            {**self.origins, **later.origins},
            self.problems + later.problems,
        )


def from_file(schema: type, path: Path, shown_path: str, above: KeyPath = ()) -> SourceValues:
    """Return the values in a file, which need not exist.

    `shown_path` is its path as errors show it; `above` is the path of the table with the schema's keys.
    """
    try:
        text = toml_text.decode(read_bytes(path), shown_path, SettingsError)
        raw: Any = toml_text.loads(text, shown_path, SettingsError)
    except (FileNotFoundError, NotADirectoryError):
        return SourceValues()
    except OSError as error:
        is_closed = isinstance(error, PermissionError)
        hint = advice(error, "correct its permissions" if is_closed else "move it away, or write a file")
        problem = Problem(shown_path, f"cannot be read: {error.strerror}", hint)
        return SourceValues(problems=(problem,))
    except RcError as error:
        return SourceValues(problems=(Problem(str(error.where), error.what, error.hint, error.quote),))

    def place(key: KeyPath) -> str:
        line = toml_text.line_of(text, (*above, *key))
        return shown_path if line is None else f"{shown_path}:{line}"

    for depth, part in enumerate(above, 1):
        raw = raw.get(part, {})
        if not isinstance(raw, dict):
            name = toml_schema.name(above[:depth])
            return SourceValues(problems=(Problem(shown_path, f"{name}: {wrong('a table', raw)}"),))
    values, problems = toml_schema.read(schema, raw, place)
    return SourceValues(values, dict.fromkeys(values, shown_path), tuple(problems))


def from_environment(
    schema: type, environ: Mapping[str, str], prefix: str, reserved: Set[str]
) -> SourceValues:
    """Return the settings in the variables that begin with `prefix`, except those in `reserved`."""
    known = toml_schema.leaves(schema)
    paths = {variable(prefix, path): path for path in known}
    values: dict[KeyPath, object] = {}
    origins: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    for name, word in sorted(environ.items()):
        if not name.startswith(f"{prefix}_") or name in reserved:
            continue
        free = [
            path
            for path, leaf in known.items()
            if leaf.is_table and f"{name}_".startswith(f"{variable(prefix, path)}_")
        ]
        if free:
            what = f"{toml_schema.name(free[0])} is a table and cannot be set from the environment"
            problems.append(Problem(name, what, "set it in pyproject.toml or your rc_tasks.toml"))
        elif name not in paths:
            near = [path for path in paths if path.startswith(f"{name}_")]
            near = near or list(filter(None, [toml_schema.nearest(name, paths)]))
            hint = "`doit settings` lists all; unset this one"
            hint = f"did you mean {' or '.join(near)}?" if near else hint
            problems.append(Problem(name, "no setting has this variable", hint))
        else:
            leaf = known[paths[name]]
            try:
                values[paths[name]] = toml_schema.parse(leaf, _typed(leaf, word))
                origins[paths[name]] = name
            except ValueError as error:
                what = f"{toml_schema.name(paths[name])}: {error}"
                problems.append(Problem(name, what, "set another value, or unset this variable"))
    return SourceValues(values, origins, tuple(problems))


def variable(prefix: str, path: KeyPath) -> str:
    """Return the environment variable of a key: `RC_SLURM_PARTITION`."""
    return "_".join((prefix, *path)).upper()


def _typed(leaf: Leaf, word: str) -> object:
    """Return the text of a variable as the value that TOML would give."""
    if leaf.kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(word.lower(), word)
    if leaf.kind is int and re.fullmatch(r"[+-]?[0-9]+", word):
        return int(word)
    if leaf.kind == tuple[str, ...] and word.lstrip().startswith("["):
        try:
            return tomllib.loads(f"list = {word}")["list"]
        except tomllib.TOMLDecodeError:
            raise wrong("a TOML array or shell words", word) from None
    if leaf.kind == tuple[str, ...]:
        try:
            return shlex.split(word)
        except ValueError as error:
            raise ValueError(f"not shell words: {error}") from None
    return word
