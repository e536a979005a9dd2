"""JSON of the generated state's files, as values.

A file may be damaged, or from an earlier or a later version. So unknown keys are ignored, a field whose
key is missing has its default, and every other value must have the type of its field.
"""

import json
from datetime import datetime
from typing import Annotated, Any, TypeVar

from msgspec import DecodeError, Meta, convert, to_builtins

T = TypeVar("T")

# A number that a file's size can have, and a duration.
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0, lt=1e9)]


def encode(value: Any) -> str:
    """Return the content of the file of a value; `parse` reads it."""
    return json.dumps(to_builtins(value), indent=1) + "\n"


def parse(kind: type[T], text: bytes | None, schema: int | None = None) -> T | None:
    """Return the value in a file, or None when the file is missing, damaged or of another schema."""
    try:
        return convert(load(text, schema), kind)
    except DecodeError:
        return None


def load(text: bytes | None, schema: int | None = None) -> dict[str, Any]:
    """Return the JSON object in a file. Raise DecodeError, also when its `schema` differs."""
    try:
        # Not msgspec's parser: a path need not be UTF-8, and JSON then has half of a surrogate pair.
        document = json.loads(text or b"")
    # JSON may nest deeper than the parser can.
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"Is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise DecodeError(f"Expected `object`, got `{type(document).__name__}`")
    if schema is not None and document.get("schema") != schema:
        raise DecodeError(f"Expected {schema} - at `$.schema`")
    return document


def check_times(*texts: str) -> None:
    """Raise ValueError unless each is a time in ISO 8601 that has a time zone."""
    for text in texts:
        time = datetime.fromisoformat(text)
        # The first and the last year do not exist in some time zones.
        if time.tzinfo is None or not 1970 <= time.year < 9999:
            raise ValueError("must have a time zone, and a year from 1970 to 9998")
