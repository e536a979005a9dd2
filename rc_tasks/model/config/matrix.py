"""The table [matrix] of project.toml: one recipe, and an image for each combination of values."""

import itertools
import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from rc_tasks.model.reference import version_problem
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.toml_schema import wrong

# Keys of the table that are no axes.
_EXCLUDE, _VERSION = KEYS = ("exclude", "version")
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_MOST_IMAGES = 10_000


class Matrix(Struct, frozen=True):
    """`axes` maps each axis to its values; `versions` maps the version of each image to its values."""

    axes: Mapping[str, tuple[str, ...]]
    versions: Mapping[str, Mapping[str, str]]


def parse_matrix(raw: object) -> Matrix:
    """Parse the table. Raise ValueError, which says what is wrong."""
    if not isinstance(raw, dict):
        raise wrong("a table of axes, each a list of strings", raw)
    axes = {
        name: _values(name, value) for name, value in raw.items() if name not in (_EXCLUDE, _VERSION)
    }
    if not axes:
        raise ValueError('expected at least one axis, such as cuda = ["12.8", "13.0"]')
    exclude = _exclude(raw.get(_EXCLUDE, []), axes)
    template = toml_schema.text(raw.get(_VERSION, "-".join(f"{{{name}}}" for name in axes)))
    unknown = next((name for name in _PLACEHOLDER.findall(template) if name not in axes), None)
    if unknown is not None:
        raise ValueError(f"version: {{{unknown}}} is no axis; the axes are {', '.join(axes)}")
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > _MOST_IMAGES:
        raise ValueError(f"it has {count} combinations, and {_MOST_IMAGES} are allowed")
    return Matrix(axes, dict(_versions(axes, exclude, template)))


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the values of the axes in place of `{axis}`; other braces stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


def placeholder_free(text: str) -> str:
    """Return a text in which something plain stands for each `{axis}`, to check its form."""
    return _PLACEHOLDER.sub("x", text)


def _values(name: str, raw: object) -> tuple[str, ...]:
    if not _AXIS.fullmatch(name):
        raise ValueError(f"{toml_text.dump(name)} cannot be the name of an axis")
    if not isinstance(raw, list) or not raw:
        expected = wrong('a list of strings such as ["12.8", "13.0"]', raw)
        raise ValueError(f"{name}: {expected}")
    try:
        values = tuple(map(_value, raw))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: a value is given twice")
    return values


def _value(raw: object) -> str:
    # Floats are refused, as 1.10 would reach the build as 1.1.
    if isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)
    return toml_schema.text(raw)


def _exclude(raw: object, axes: Mapping[str, tuple[str, ...]]) -> tuple[Mapping[str, str], ...]:
    if not isinstance(raw, list) or not all(isinstance(table, dict) and table for table in raw):
        expected = wrong('a list of tables such as [{ cuda = "13.0" }]', raw)
        raise ValueError(f"{_EXCLUDE}: {expected}")
    tables = []
    for table in raw:
        values = {axis: _value(value) for axis, value in table.items()}
        for axis, value in values.items():
            if axis not in axes:
                raise ValueError(f"{_EXCLUDE}: {axis} is no axis; the axes are {', '.join(axes)}")
            if value not in axes[axis]:
                raise ValueError(f"{_EXCLUDE}: {toml_text.dump(value)} is no value of {axis}")
        tables.append(values)
    return tuple(tables)


def _versions(
    axes: Mapping[str, tuple[str, ...]], exclude: tuple[Mapping[str, str], ...], template: str
) -> Iterator[tuple[str, Mapping[str, str]]]:
    seen: dict[str, Mapping[str, str]] = {}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        if any(values.items() >= table.items() for table in exclude):
            continue
        version = filled(template, values)
        if problem := version_problem(version):
            raise ValueError(f"version: {toml_text.dump(version)} {problem}")
        if version in seen:
            raise ValueError(
                f"version: {_words(seen[version])} and {_words(values)} are both named"
                f" {toml_text.dump(version)}; name every axis in it"
            )
        seen[version] = values
    if not seen:
        raise ValueError(f"{_EXCLUDE}: it leaves no combination")
    yield from seen.items()


def _words(values: Mapping[str, str]) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in values.items())
