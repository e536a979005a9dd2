"""The EDF (Environment Definition File): what may stand in it, read, checked, and rendered.

Keys and forms: CSCS Container Engine, "EDF reference". Its successor's defaults differ for
`entrypoint`, and it refuses bare mounts, so what is written here is always explicit.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from rc_tasks.errors import EdfError
from rc_tasks.util import template, toml_schema, toml_text
from rc_tasks.util.toml_schema import setting, wrong
from rc_tasks.util.toml_text import KeyPath

# `${VAR:-}` holds a colon that separates nothing.
_MOUNT_PART = r"((?:\$\{[^}]*\}|[^:])+)"
_MOUNT = re.compile(rf"{_MOUNT_PART}(?::{_MOUNT_PART}(?::{_MOUNT_PART})?)?")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def mount(raw: object) -> str:
    """`SRC:DST[:FLAGS]`; a bare path is mounted under its own name.

    `SRC` may be relative (`./…`), and both may begin with `${VAR}`.
    """
    found = _MOUNT.fullmatch(toml_schema.text(raw))
    if found is None:
        raise wrong("a mount such as /scratch:/scratch", raw)
    source, destination, flags = found[1], found[2] or found[1], found[3]
    if not source.startswith(("/", "${", "./")) or not destination.startswith(("/", "${")):
        raise ValueError(
            f"{wrong('a mount SRC:DST of absolute paths', raw)}; "
            "a path that holds a colon can be mounted through a symlink only"
        )
    return f"{source}:{destination}" + (f":{flags}" if flags else "")


def annotations(raw: object) -> dict[str, str]:
    """Annotations, dotted or nested, as dotted keys; the values are strings, `"true"` too."""
    return {key: _string(key, value) for key, value in _dotted(raw).items()}


def _any_annotations(raw: object) -> dict[str, str]:
    """Annotations of an EDF: the successor takes a value that is no string as its TOML.

    sarus-suite/raster, src/lib.rs, map2hashmap.
    """
    return {
        key: _string(key, value if isinstance(value, str) else toml_text.dump(value))
        for key, value in _dotted(raw).items()
    }


def _dotted(raw: object) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise wrong("a table of strings", raw)
    found: dict[str, object] = {}
    for path, value in toml_text.flat(raw):
        key = ".".join(path)
        if key in found:
            raise ValueError(f"{key} is given twice, quoted and dotted")
        found[key] = value
    return found


def variables(raw: object) -> dict[str, str]:
    """Environment variables; the values are strings, an empty one unsets."""
    if not isinstance(raw, dict):
        raise wrong("a table of strings", raw)
    for key in raw:
        if not _VARIABLE_NAME.fullmatch(key):
            raise ValueError(f"{toml_text.dump(key)} cannot be the name of an environment variable")
    return {key: _string(key, value) for key, value in raw.items()}


def _string(key: str, value: object) -> str:
    try:
        return toml_schema.text(value)
    except ValueError as error:
        quoted = toml_text.dump(str(value).lower())
        mend = f"; write {quoted}" if isinstance(value, bool | int | float) else ""
        raise ValueError(f"{key}: {error}{mend}") from None


def _names(raw: object) -> tuple[str, ...]:
    return (raw,) if isinstance(raw, str) else toml_schema.each(toml_schema.text)(raw)


def _mount_as_written(raw: object) -> str:
    mount(raw)
    return str(raw)


@dataclass(frozen=True, slots=True)
class Edf:
    """One EDF as it is written: None and empty say that the file leaves the choice to others."""

    base_environment: tuple[str, ...] = setting((), "EDFs that this one extends", _names)
    image: str = setting("", "image reference, or path of a SquashFS image")
    workdir: str = setting("", "first working directory")
    entrypoint: bool | None = setting(None, "run the image's ENTRYPOINT", toml_schema.boolean)
    writable: bool | None = setting(None, "root file system may be written", toml_schema.boolean)
    mounts: tuple[str, ...] = setting((), "SRC:DST[:FLAGS]", toml_schema.each(_mount_as_written))
    env: Mapping[str, str] = setting({}, "environment variables", variables)
    annotations: Mapping[str, str] = setting({}, "options of hooks, dotted", _any_annotations)
    devices: tuple[str, ...] = setting((), "devices (Sarus Suite only)")


@dataclass(frozen=True, slots=True)
class EdfValues:
    """What the template `env.toml.j2` may use. `image` is the official path of the image."""

    name: str
    image: PurePosixPath | str
    mounts: tuple[str, ...] = ()
    workdir: str = "/"
    entrypoint: bool = False
    writable: bool = True
    annotations: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


def loads(text: str, where: str) -> Edf:
    """The EDF in a text; raises EdfError with all that is wrong in it."""
    place = partial(_place, text, where)
    values, problems = toml_schema.read(Edf, toml_text.loads(text, where, EdfError), place)
    if problems:
        raise toml_schema.failure(EdfError, problems, where)
    return toml_schema.build(Edf, values)


def _place(text: str, where: str, path: KeyPath) -> str:
    line = toml_text.line_of(text, path)
    return where if line is None else f"{where}:{line}"


def check(text: str, where: str) -> None:
    """Raises EdfError unless the text is an EDF."""
    loads(text, where)


def notes(text: str, where: str) -> Iterator[str]:
    """What an EDF says that the Container Engine's documentation does not allow; raises EdfError."""
    check(text, where)
    found = toml_text.loads(text, where, EdfError).get("annotations", {})
    for key, value in _dotted(found).items():
        if not isinstance(value, str):
            place, shown = _place(text, where, ("annotations", key)), toml_text.dump(value)
            yield (
                f"{place}: annotations: {key} is {shown} and is kept; the Container Engine wants"
                f" strings: {toml_text.dump(shown)}"
            )


def render(text: str, where: str, values: EdfValues) -> str:
    """The EDF that a template makes of the values; `where` is the template's path.

    Raises EdfError when the template has a mistake, uses an unknown name, or makes no valid EDF.
    """
    names = {name: getattr(values, name) for name in values.__slots__} | {"image": str(values.image)}
    rendered = template.fill(text, where, names, EdfError)
    try:
        check(rendered, "rendered text")
    except EdfError as error:
        raise EdfError(
            "the template makes no valid EDF",
            where=where,
            quote=(f"{error.where}: {error.what}", *error.quote),
            hint="write every value through the filter toml: <@ image | toml @>",
        ) from None
    return rendered
