"""Decoder of JSON into frozen dataclasses, for the files of the generated state.

A file may be damaged, or from an earlier or a later version. So unknown keys are ignored, a field whose
key is missing has its default, and every other value must have the type of its field.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
_Decoder = Callable[[Any], Any]
_ENDLESS_S = 1e9


class DecodeError(ValueError):
    """JSON of another form than expected, with the path of the value: `.smoke.0.argv: must be list`."""


def _time(text: str) -> str:
    time = datetime.fromisoformat(text)
    # The first and the last year do not exist in some time zones.
    if time.tzinfo is None or not 1970 <= time.year < 9999:
        raise ValueError("must have a time zone, and a year from 1970 to 9998")
    return text


def _size(number: int) -> int:
    if not 0 <= number < 1 << 63:
        raise ValueError("must be from 0 to 2**63 - 1")
    return number


def _seconds(number: float) -> float:
    # A comparison with NaN is always false.
    if not number < _ENDLESS_S:
        raise ValueError(f"must be below {_ENDLESS_S:.0f}")
    # A clock may have been set back.
    return max(0.0, number)


# A time in ISO 8601, a number that a file's size can have, and a duration that is not negative.
Time = Annotated[str, _time]
Size = Annotated[int, _size]
Seconds = Annotated[float, _seconds]


def encode(value: Any) -> str:
    """Return the content of the file of a dataclass; `parse` reads it."""
    return json.dumps(asdict(value), indent=1) + "\n"


def parse(kind: type[T], text: bytes | None, schema: int | None = None) -> T | None:
    """Return the value in a file, or None when the file is missing, damaged or of another schema."""
    try:
        return decode(kind, load(text, schema))
    except DecodeError:
        return None


def load(text: bytes | None, schema: int | None = None) -> dict[str, Any]:
    """Return the JSON object in a file. Raise DecodeError, also when its `schema` differs."""
    try:
        document = json.loads(text or b"")
    # JSON may nest deeper than the parser can.
    except (ValueError, RecursionError) as error:
        raise DecodeError(f": is no JSON: {error}") from None
    if schema is not None and _typed(dict, document).get("schema") != schema:
        raise DecodeError(f".schema: must be {schema}")
    return cast(dict[str, Any], _typed(dict, document))


def decode(kind: type[T], value: object) -> T:
    """Return the value that JSON stands for. Raise DecodeError.

    `kind` is str, int, float, bool, a StrEnum, a dataclass, `X | None`, `tuple[X, ...]`, `dict[str, X]`,
    `Mapping[str, X]`, or `Annotated[X, convert]`; `convert` returns the value and may raise ValueError.
    """
    return cast(T, _decoder(cast(Any, kind))(value))


@functools.cache
def _decoder(kind: Any) -> _Decoder:
    if is_dataclass(kind):
        return _dataclass(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is None:
        if issubclass(kind, StrEnum):
            return functools.partial(_converted, kind)
        if kind is float:
            return lambda value: value if type(value) is float else _converted(float, _typed(int, value))
        return functools.partial(_typed, kind)
    if origin in (dict, Mapping):
        inner = _decoder(arguments[1])
        return _texts if arguments[1] is str else lambda value: _each(inner, _typed(dict, value).items())
    inner = _decoder(arguments[0])
    if origin is Annotated:
        return lambda value: _converted(arguments[1], inner(value))
    if origin is tuple:
        return lambda value: tuple(_each(inner, enumerate(_typed(list, value))).values())
    # `X | None`, which has another origin when X is Annotated.
    return lambda value: None if value is None else inner(value)


def _dataclass(kind: Any) -> _Decoder:
    hints = get_type_hints(kind, include_extras=True)
    known = [
        (field.name, _decoder(hints[field.name]), field.default is field.default_factory is MISSING)
        for field in fields(kind)
    ]

    def decoded(value: Any) -> Any:
        document, arguments = _typed(dict, value), {}
        for name, decoder, required in known:
            if required or name in document:
                try:
                    arguments[name] = decoder(document.get(name))
                except DecodeError as error:
                    raise DecodeError(f".{name}{error}") from None
        return kind(**arguments)

    return decoded


def _each(decoder: _Decoder, items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    decoded = {}
    for key, item in items:
        try:
            decoded[key] = decoder(item)
        except DecodeError as error:
            raise DecodeError(f".{key}{error}") from None
    return decoded


def _texts(value: Any) -> Any:
    # Check all at once: a record may have hundreds of thousands of inputs.
    if set(map(type, _typed(dict, value).values())) <= {str}:
        return value
    raise DecodeError(": must have str as every value")


def _typed(kind: type, value: Any) -> Any:
    # Not isinstance: `true` is no number.
    if type(value) is not kind:
        raise DecodeError(f": must be {kind.__name__}, not {type(value).__name__}")
    return value


def _converted(convert: _Decoder, value: Any) -> Any:
    try:
        return convert(value)
    # A whole number may be too large for a float.
    except (ValueError, OverflowError) as error:
        raise DecodeError(f": {error}") from None
