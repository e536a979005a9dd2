"""Schema of the EDF (Environment Definition File): parse, check and render it.

The keys are those of CSCS Container Engine, "EDF reference". Its successor has another default for
`entrypoint` and refuses bare mounts, so we always write both explicitly.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated

from msgspec import Struct, field
from msgspec.structs import asdict

from rc_tasks.errors import EdfError
from rc_tasks.util import template, toml_schema, toml_text
from rc_tasks.util.toml_schema import Key, wrong
from rc_tasks.util.toml_text import KeyPath

# The colon in `${VAR:-}` is not a separator.
_MOUNT_PART = r"((?:\$\{[^}]*\}|[^:])+)"
_MOUNT = re.compile(rf"{_MOUNT_PART}(?::{_MOUNT_PART}(?::{_MOUNT_PART})?)?")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def mount(raw: object) -> str:
    """Return a mount `SRC:DST[:FLAGS]`; a bare path is mounted under its own name.

    `SRC` may be relative (`./…`), and both may begin with `${VAR}`.
    """
    match = _MOUNT.fullmatch(toml_schema.text(raw))
    if match is None:
        raise wrong("a mount such as /scratch:/scratch", raw)
    source, destination, flags = match[1], match[2] or match[1], match[3]
    if not source.startswith(("/", "${", "./")) or not destination.startswith(("/", "${")):
        raise ValueError(
            f"{wrong('a mount SRC:DST of absolute paths', raw)}; "
            "a path that holds a colon can be mounted through a symlink only"
        )
    return f"{source}:{destination}" + (f":{flags}" if flags else "")


def annotations(raw: object) -> dict[str, str]:
    """Return annotations, dotted or nested, as dotted keys; every value is a string, even `"true"`."""
    return {key: _string(key, value) for key, value in _dotted(raw).items()}


def _any_annotations(raw: object) -> dict[str, str]:
    """Return annotations of an EDF; as in the successor, a value of another type becomes its TOML text.

    Source: sarus-suite/raster, src/lib.rs, map2hashmap.
    """
    return {
        key: _string(key, value if isinstance(value, str) else toml_text.dump(value))
        for key, value in _dotted(raw).items()
    }


def _dotted(raw: object) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise wrong("a table of strings", raw)
    annotations: dict[str, object] = {}
    for path, value in toml_text.flat(raw):
        key = ".".join(path)
        if key in annotations:
            raise ValueError(f"{key} is given twice, quoted and dotted")
        annotations[key] = value
    return annotations


def variables(raw: object) -> dict[str, str]:
    """Return environment variables; the values are strings, and an empty string unsets a variable."""
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
        correction = f"; write {quoted}" if isinstance(value, bool | int | float) else ""
        raise ValueError(f"{key}: {error}{correction}") from None


def _names(raw: object) -> tuple[str, ...]:
    return (raw,) if isinstance(raw, str) else toml_schema.each_of(toml_schema.text)(raw)


def _mount_as_written(raw: object) -> str:
    mount(raw)
    return str(raw)


class Edf(Struct, frozen=True):
    """One EDF as written; None and empty values mean that the file does not set the key."""

    base_environment: Annotated[tuple[str, ...], Key("EDFs that this one extends", _names)] = ()
    image: Annotated[str, Key("image reference, or path of a SquashFS image")] = ""
    workdir: Annotated[str, Key("first working directory")] = ""
    entrypoint: Annotated[bool | None, Key("run the image's ENTRYPOINT", toml_schema.boolean)] = None
    writable: Annotated[bool | None, Key("root file system may be written", toml_schema.boolean)] = None
    mounts: Annotated[
        tuple[str, ...], Key("SRC:DST[:FLAGS]", toml_schema.each_of(_mount_as_written))
    ] = ()
    env: Annotated[Mapping[str, str], Key("environment variables", variables)] = {}
    annotations: Annotated[Mapping[str, str], Key("options of hooks, dotted", _any_annotations)] = {}
    devices: Annotated[tuple[str, ...], Key("devices (Sarus Suite only)")] = ()


class EdfValues(Struct, frozen=True):
    """The names in the template `env.toml.j2`. `image` is the official path of the image."""

    name: str
    image: PurePosixPath | str
    mounts: tuple[str, ...] = ()
    workdir: str = "/"
    entrypoint: bool = False
    writable: bool = True
    annotations: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


def loads(text: str, where: str) -> Edf:
    """Parse an EDF. Raise one EdfError for all problems."""
    place = partial(_place, text, where)
    values, problems = toml_schema.read(Edf, toml_text.loads(text, where, EdfError), place)
    if problems:
        raise toml_schema.failure(EdfError, problems, where)
    return toml_schema.build(Edf, values)


def _place(text: str, where: str, path: KeyPath) -> str:
    line = toml_text.line_of(text, path)
    return where if line is None else f"{where}:{line}"


def check(text: str, where: str) -> None:
    """Raise EdfError unless the text is an EDF."""
    loads(text, where)


def notes(text: str, where: str) -> Iterator[str]:
    """Yield notes on values of an EDF that CSCS's documentation does not allow. Raise EdfError."""
    check(text, where)
    annotations = toml_text.loads(text, where, EdfError).get("annotations", {})
    for key, value in _dotted(annotations).items():
        if not isinstance(value, str):
            place, as_toml = _place(text, where, ("annotations", key)), toml_text.dump(value)
            yield (
                f"{place}: annotations: {key} is {as_toml} and is kept; the Container Engine wants"
                f" strings: {toml_text.dump(as_toml)}"
            )


def render(text: str, where: str, values: EdfValues) -> str:
    """Render the template of an EDF with the values; `where` is the template's path.

    Raise EdfError when the template has a mistake or an unknown name, or the result is not a valid EDF.
    """
    names = {**asdict(values), "image": str(values.image)}
    rendered = template.fill(text, where, names, EdfError)
    try:
        check(rendered, "rendered text")
    except EdfError as error:
        raise EdfError(
            "the template does not make a valid EDF",
            where=where,
            quote=(f"{error.where}: {error.what}", *error.quote),
            hint="write every value through the filter toml: <@ image | toml @>",
        ) from None
    return rendered
