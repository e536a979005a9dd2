"""Pins of registry bases in bases.lock: parse the text, and change single lines of it.

People edit that file and git merges it, so comments and other text in it are kept.
"""

import re
import tomllib
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import DockerfileError, PinError
from rc_tasks.model.reference import ImageReference
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.toml_schema import Problem, wrong

LOCK = "bases.lock"

_HEAD = """\
# The digest that builds take of each registry base, even when its tag has moved. Commit this file;
# `doit bases` shows its pins, and `doit bases --update` moves one.
"""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER = re.compile(r"[ \t]*\[[ \t]*(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[A-Za-z0-9_-]+)[ \t]*\]")
# git's conflict markers; the line of equals signs occurs only between two of these.
_CONFLICT = re.compile(r"(<{7}|\|{7}|>{7})( .*)?")


class Pin(Struct, frozen=True):
    """A pinned base. `digest` is that which the registry served: an index's, for several platforms.

    `pinned_at` is in ISO 8601, or empty if the user left it out. `previous` is the digest before the
    last update. `name` is the full reference of a short one (`debian:12`).
    """

    digest: str
    pinned_at: str = ""
    previous: str = ""
    name: str = ""

    def exact(self, reference: str) -> str:
        """Return the reference to pull: the repository at the digest."""
        whole = ImageReference.parse(self.name or reference)
        return str(replace(whole, tag=None, digest=self.digest))


def is_digest(text: str) -> bool:
    """Return whether a text is a digest `sha256:…`."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> dict[str, Pin]:
    """Parse the pins by reference. Raise one PinError for all problems, with their lines."""
    for number, line in enumerate(text.splitlines(), 1):
        if _CONFLICT.fullmatch(line):
            raise PinError(
                "git could not merge this file, and left the conflict in it",
                where=f"{LOCK}:{number}",
                quote=(line,),
                hint="keep one digest for each base and remove git's marks",
            )
    pins: dict[str, Pin] = {}
    problems: list[Problem] = []
    for reference, entry in toml_text.loads(text, LOCK, PinError).items():
        try:
            pins[reference] = _pin(reference, entry)
        except DockerfileError as error:
            problems.append(Problem(_place(text, (reference,)), error.what, error.hint))
        except _Wrong as error:
            path = (reference, error.key) if error.key else (reference,)
            problems.append(Problem(_place(text, path), str(error), error.hint))
    if problems:
        raise toml_schema.failure(PinError, problems, LOCK)
    return pins


def with_pin(text: str, reference: str, pin: Pin) -> str:
    """Return the text with one pin set; a new pin is inserted in the order of the references.

    Raise PinError when the pin is written in a form that cannot be changed.
    """
    # tomlkit, which changes values, takes 24 ms to import.
    from rc_tasks.util.toml_edit import with_value

    before = tomllib.loads(text)
    if reference not in before:
        return _with_entry(text, reference, pin)
    changed: str | None = text
    for key, value in _values(pin).items():
        if changed is not None:
            changed = with_value(changed, (reference, key), value or None)
    if changed is None:
        raise PinError(
            "this pin is not written in a way that can be changed",
            where=_place(text, (reference,)),
            hint=f"take it out of {LOCK} and run the same command again",
        )
    return changed


def _values(pin: Pin) -> dict[str, str]:
    """Return the keys of an entry in their order; empty values are not written."""
    return {
        "digest": pin.digest,
        "previous": pin.previous,
        "pinned_at": pin.pinned_at,
        "name": pin.name,
    }


def _with_entry(text: str, reference: str, pin: Pin) -> str:
    values = {key: value for key, value in _values(pin).items() if value}
    entry = [f"[{toml_text.dump_key((reference,))}]"]
    entry += [f"{key} = {toml_text.dump(value)}" for key, value in values.items()]
    lines = (text or _HEAD).splitlines()
    expected = {**tomllib.loads(text), reference: values}
    for at in (_sorted_place(lines, reference), len(lines)):
        above, below = lines[:at], lines[at:]
        blank = [""] if above and above[-1].strip() else []
        candidate = "\n".join((*above, *blank, *entry, *(["", *below] if below else []))) + "\n"
        try:
            if tomllib.loads(candidate) == expected:
                return candidate
        except tomllib.TOMLDecodeError:
            continue  # a line that looks like a header stands inside a long string
    raise PinError(
        f"there is no place for {reference} in this file",
        where=LOCK,
        hint="move away what is not a pin, then run the same command again",
    )


def _sorted_place(lines: list[str], reference: str) -> int:
    """Return the index of the line above which to insert an entry, so that references are sorted."""
    at = 0
    for number, line in enumerate(lines, 1):
        if (_entry_name(line) or "") > reference:
            return at
        # A comment right above a pin belongs to that pin.
        if not line.lstrip().startswith("#"):
            at = number
    return len(lines)


class _Wrong(ValueError):
    """An error in an entry, with the key that is wrong."""

    def __init__(self, what: str, key: str, hint: str) -> None:
        super().__init__(what)
        self.key = key
        self.hint = hint


def _pin(reference: str, entry: object) -> Pin:
    if ImageReference.parse(reference).digest:
        raise _Wrong(f"{reference} has a digest, and needs no pin", "", "take this entry out")
    if not isinstance(entry, dict):
        raise _Wrong(f"{reference}: {wrong('a table', entry)}", "", "write it as the other entries are")
    known = Pin.__struct_fields__
    for key in entry:
        if key not in known:
            raise _Wrong(f"{key} is not a known key", key, f"known here: {', '.join(known)}")
    if "digest" not in entry:
        raise _Wrong(
            f"{reference} has no digest", "", "take this entry out: the next build pins the base again"
        )
    for key in ("digest", "previous"):
        value = entry.get(key, "")
        if (value or key == "digest") and not (isinstance(value, str) and is_digest(value)):
            raise _Wrong(
                f"{key}: {wrong('sha256: and 64 hex digits', value)}",
                key,
                f"`doit bases --update {reference}` asks the registry, once this entry is taken out",
            )
    name = entry.get("name", "")
    if not isinstance(name, str):
        raise _Wrong(f"name: {wrong('a reference', name)}", "name", "take this line out")
    if name:
        ImageReference.parse(name)
    return Pin(entry["digest"], _time(entry.get("pinned_at", "")), entry.get("previous", ""), name)


def _time(value: object) -> str:
    if value == "":
        return ""
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        # A date, or a time without a zone, is taken as local time.
        return (time if time.tzinfo else time.astimezone()).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        raise _Wrong(
            f"pinned_at: {wrong('a time such as 2026-11-22T10:04:00+00:00', value)}",
            "pinned_at",
            "correct it, or take this line out",
        ) from None


def _place(text: str, path: tuple[str, ...]) -> str:
    line = toml_text.line_of(text, path)
    if line is None:
        lines = enumerate(text.splitlines(), 1)
        line = next((number for number, text_line in lines if _entry_name(text_line) == path[0]), None)
    return LOCK if line is None else f"{LOCK}:{line}"


def _entry_name(line: str) -> str | None:
    """Return the reference that a header such as `["debian:12"]` names."""
    header = _HEADER.match(line)
    try:
        return next(iter(tomllib.loads(f"{header[1]} = 0"))) if header is not None else None
    except tomllib.TOMLDecodeError:
        return None
