"""The user's EDF, `~/.edf/NAME.toml`: what `doit remote` and `doit local` start; people edit it."""

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from msgspec import Struct

from rc_tasks.errors import EdfError, RcError
from rc_tasks.model.edf import merge, schema
from rc_tasks.model.graph.project import ARTIFACT, EDF
from rc_tasks.state.disk.files import refused, write_atomically
from rc_tasks.util import toml_edit, toml_text
from rc_tasks.util.safe_read import read_bytes

DIRECTORY = ".edf"
EXPLANATION = (
    "# `doit remote` and `doit local` keep the values listed here current. One that you change is yours",
    "# and stays, and so does all that you add.",
)
# A person's own values of these would start something else than was asked for.
_WHAT_STARTS = ("base_environment", "image")
_OLD_KEYS = frozenset({"base_environment", "image", "workdir"})


class UserEdf(Struct, frozen=True):
    """One EDF of a user's, as it was read; `text` is None where there is none yet."""

    path: Path
    shown: str
    text: str | None
    force: bool = False

    @classmethod
    def read(cls, home: Path, name: str, *, project: str, force: bool = False) -> Self:
        """Return the EDF `name` of a user, to be filled for a project.

        Raise EdfError when it cannot be read or, unless `force`, when it is not ours.
        """
        directory = home / DIRECTORY
        path, shown = directory / f"{name}.toml", f"~/{DIRECTORY}/{name}.toml"
        if os.path.lexists(directory) and not directory.is_dir():
            raise EdfError(
                "is not a directory, so no EDF can be found in it",
                where=f"~/{DIRECTORY}",
                hint=f"move it away: mv ~/{DIRECTORY} ~/{DIRECTORY}.old",
            )
        # Where a symlink leads, as it stays one.
        place = Path(os.path.realpath(path)).parent
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise EdfError(
                "you may not write here, where your EDFs lie",
                where=place,
                hint=f"`ls -ld {place}` tells whose it is; if it is yours: chmod u+rwx {place}",
            )
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise EdfError("is not a file", where=shown, hint="move it away")
            text = toml_text.decode(read_bytes(path), shown, EdfError)
        except FileNotFoundError:
            return cls(path, shown, None, force)
        except OSError as error:
            raise refused(error, path) or error from None
        schema.check(text, shown)
        ours = merge.generated_keys(text) or _by_env_update(text, home, project)
        if not (ours or force or not text.strip()):
            raise EdfError(
                "was not written by this program and is left alone",
                where=shown,
                hint="rename it, or add --force: then base_environment, image and workdir are set\n"
                "in it, and all else in it stays",
            )
        return cls(path, shown, text, force)

    def filled(self, values: Mapping[str, object]) -> str:
        """Return the text with these values; `image` goes when it is not among them.

        Raise EdfError when a person's own value stands where ours has to be.
        """
        try:
            generated = "".join(
                f"{key} = {toml_text.dump(_literal(value))}\n" for key, value in values.items()
            )
        except ValueError:
            raise EdfError(
                "a path in it is not UTF-8", where=self.shown, hint="rename the directory"
            ) from None
        text = self.text
        present = edf_values(text)
        # Without a new `image`, `always` makes the merge remove the old one.
        always = {key for key in _WHAT_STARTS if key not in present}
        if text is not None and (self.force or not merge.generated_keys(text)):
            always |= {*_WHAT_STARTS, "workdir"}
            if "image" in present and "image" not in values:
                text = toml_edit.with_value(text, ("image",), None)
        merged = merge.merge(
            text, generated, self.shown, always=frozenset(always), explanation=EXPLANATION
        )
        present_values = edf_values(merged)
        for key in _WHAT_STARTS:
            ours = _literal(values[key]) if key in values else None
            if present_values.get(key) != ours:
                line = toml_text.line_of(merged, (key,))
                raise EdfError(
                    f"{key} is your own value, and this command needs "
                    + (f"{toml_text.dump(ours)}" if ours is not None else "the file to have none"),
                    where=self.shown if line is None else f"{self.shown}:{line}",
                    hint=f"remove the line, or add --force to have {key} set",
                )
        return merged

    def write(self, text: str) -> bool:
        """Write the text, through a symlink too. Return whether it differs from the previous text."""
        if text == self.text:
            return False
        # A symlink into somebody's collection of settings stays one.
        write_atomically(Path(os.path.realpath(self.path)), text)
        return True


def edf_values(text: str | None) -> dict[str, object]:
    """Return the plain values of an EDF, by key."""
    return tomllib.loads((text or "").removeprefix("\ufeff"))


def workdir(setting: str, home: Path, environ: Mapping[str, str]) -> str:
    """Return the directory where an interactive job begins, with symlinks resolved.

    It is `setting` (`debug.workdir`, where `~` is `home`), else the first directory of `~/scratch`,
    `$SCRATCH` and `home`. Raise RcError when the setting names no directory.
    """
    if setting:
        place = (
            home / setting.removeprefix("~").lstrip("/") if setting.startswith("~") else Path(setting)
        )
        if not (place.is_absolute() and place.is_dir()):
            raise RcError(
                f"debug.workdir is {setting}, which is not a directory here",
                where=os.uname().nodename,
                hint="make it, or change the setting: `doit settings` shows where it comes from",
            )
        return os.path.realpath(place)
    places = (home / "scratch", Path(environ.get("SCRATCH", "")))
    return os.path.realpath(next((p for p in places if p.is_absolute() and p.is_dir()), home))


def _by_env_update(text: str, home: Path, project: str) -> bool:
    """Return whether the old env_update.sh wrote the file, which it replaced at each run."""
    values = edf_values(text)
    return (
        "#" not in text
        and values.keys() <= _OLD_KEYS
        and values.get("workdir") == f"{home}/scratch"
        and str(values.get("base_environment")).endswith(f"/{project}/{EDF}")
        and str(values.get("image", f"/{project}/{ARTIFACT}")).endswith(f"/{project}/{ARTIFACT}")
    )


def _literal(value: object) -> object:
    """Escape `${…}` in a value, which the Container Engine would replace as a variable."""
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
