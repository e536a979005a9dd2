"""Functions of HCL that bake files use, on Python values.

Texts, booleans, whole numbers, `Decimal`, None, lists and dicts are the values. A function may raise any
error of Python for values that it is not for. The names and meanings are those of
https://docs.docker.com/build/bake/stdlib/.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

MOST_CHARACTERS = 4096
MOST_ELEMENTS = 1000
_VERB = re.compile(r"%(.)")


def text_of(value: object) -> str:
    """Return a value as a part of a text. Raise TypeError for a list, an object and null."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case Decimal():
            return f"{value.normalize():f}"
        case _:
            raise TypeError("null, a list or an object is no part of a text")


def _is_equal(left: object, right: object) -> bool:
    is_bool = isinstance(left, bool), isinstance(right, bool)
    return left == right and is_bool[0] == is_bool[1]


def _contains(values: list[object], element: object) -> bool:
    return any(_is_equal(value, element) for value in values)


def _distinct(values: list[object]) -> list[object]:
    unique: list[object] = []
    for value in values:
        if not _contains(unique, value):
            unique.append(value)
    return unique


def _flatten(values: list[object]) -> list[object]:
    flat: list[object] = []
    for value in values:
        flat += _flatten(value) if isinstance(value, list) else [value]
    return flat


def _format(template: str, *values: object) -> str:
    rest = list(values)

    def filled(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[1] not in "sdv":
            raise ValueError(f"%{match[1]} is not one of %s, %d and %v")
        return text_of(rest.pop(0))

    return _VERB.sub(filled, template)


def _format_list(template: str, *values: object) -> list[str]:
    length = max(len(value) for value in values if isinstance(value, list))
    columns = [value if isinstance(value, list) else [value] * length for value in values]
    return [_format(template, *row) for row in zip(*columns, strict=True)]


def _join(separator: str, *lists: list[object]) -> str:
    return separator.join(text_of(value) for values in lists for value in values)


def _split(separator: str, text: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _replace(text: str, old: str, new: str) -> str:
    if len(old) > 2 and old[0] == old[-1] == "/":
        raise ValueError("regular expressions are not evaluated")
    return text.replace(old, new)


def _substr(text: str, offset: int, length: int) -> str:
    start = offset if offset >= 0 else len(text) + offset
    return text[int(start) :] if length < 0 else text[int(start) : int(start + length)]


def _coalesce(*values: object) -> object:
    return next(value for value in values if value is not None)


def _lookup(table: dict[str, object], key: str, *default: object) -> object:
    return table[key] if key in table else default[0]


def _merge(*tables: dict[str, object]) -> dict[str, object]:
    merged: dict[str, object] = {}
    for table in tables:
        merged |= table
    return merged


def _range(*bounds: int) -> list[int]:
    numbers = range(*map(int, bounds))
    if len(numbers) > MOST_ELEMENTS:
        raise ValueError(f"more than {MOST_ELEMENTS} elements")
    return list(numbers)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda left, right: left + right,
    "and": lambda left, right: left and right,
    "basename": lambda path: path.rstrip("/").rpartition("/")[2],
    "coalesce": _coalesce,
    "compact": lambda values: [value for value in values if value not in ("", None)],
    "concat": lambda *lists: _flatten_once(lists),
    "contains": _contains,
    "distinct": _distinct,
    "element": lambda values, index: values[int(index) % len(values)],
    "equal": _is_equal,
    "flatten": _flatten,
    "format": _format,
    "formatlist": _format_list,
    "index": lambda container, key: container[key],
    "join": _join,
    "keys": sorted,
    "length": len,
    "lookup": _lookup,
    "lower": lambda text: text.lower(),
    "max": max,
    "merge": _merge,
    "min": min,
    "not": lambda value: not value,
    "notequal": lambda left, right: not _is_equal(left, right),
    "or": lambda left, right: left or right,
    "range": _range,
    "replace": _replace,
    "reverselist": lambda values: values[::-1],
    "slice": lambda values, start, stop: values[int(start) : int(stop)],
    "sort": sorted,
    "split": _split,
    "strlen": len,
    "substr": _substr,
    "tolist": list,
    "tostring": text_of,
    "trim": lambda text, characters: text.strip(characters),
    "trimprefix": lambda text, prefix: text.removeprefix(prefix),
    "trimspace": lambda text: text.strip(),
    "trimsuffix": lambda text, suffix: text.removesuffix(suffix),
    "upper": lambda text: text.upper(),
    "values": lambda table: [table[key] for key in sorted(table)],
}


def _flatten_once(lists: tuple[list[object], ...]) -> list[object]:
    return [value for values in lists for value in values]
