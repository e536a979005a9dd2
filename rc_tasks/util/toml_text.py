"""TOML as text: read with line numbers in the errors, written value by value."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping

from rc_tasks.errors import RcError

KeyPath = tuple[str, ...]

_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_KEY_OF_LINE = re.compile(r"\s*(?:\[+([^\]]+)\]|([^=#\[]+)=)")
# Python writes no number of thousands of digits in decimal.
_MOST_BITS = 10_000
_NOT_IN_A_NAME = re.compile(r"[\s\"']")


def loads(text: str, where: str, error: type[RcError]) -> dict[str, object]:
    """The value of a TOML text, which may begin with a byte order mark.

    Raises `error` with file, line and the parser's words.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as found:
        what = str(found)
        number = text.count("\n") + 1
        if at := _AT_LINE.search(what):
            number = int(at[1])
            what = what[: at.start()] + f", column {at[2]}"
        raise error(
            f"not valid TOML: {what}",
            where=f"{where}:{number}",
            quote=tuple(text.splitlines()[number - 1 : number]),
            hint="correct this line; strings need quotes, and a key may be given only once",
        ) from None
    except ValueError as found:
        # A number that Python does not read, having thousands of digits.
        raise error(f"not valid TOML: {str(found).partition(';')[0]}", where=where) from None
    except RecursionError:
        raise error("the TOML is nested too deeply", where=where) from None


def decode(data: bytes, where: str, error: type[RcError]) -> str:
    """The text of a TOML file; raises `error` with the line that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as found:
        line = data.count(b"\n", 0, found.start) + 1
        raise error(
            f"not UTF-8 (byte 0x{data[found.start]:02x})",
            where=f"{where}:{line}",
            hint="save the file as UTF-8",
        ) from None


def line_of(text: str, path: KeyPath) -> int | None:
    """The line on which a key, or else the nearest table around it, is first written.

    A search line by line, good enough for an error: a line inside a long string may mislead it.
    """
    wanted, table = _NOT_IN_A_NAME.sub("", ".".join(path)), ""
    best, best_line = "", None
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not (found := _KEY_OF_LINE.match(line)):
            continue
        written = _NOT_IN_A_NAME.sub("", found[1] or f"{table}{found[2]}")
        if found[1]:
            table = f"{written}."
        if f"{written}.".startswith(f"{wanted}."):
            return number
        if wanted.startswith(f"{written}.") and len(written) > len(best):
            best, best_line = written, number
    return best_line


def flat(table: Mapping[str, object], above: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """The leaves of nested tables, each with its path."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, (*above, key))
        else:
            yield (*above, key), value


def dump(value: object) -> str:
    """A string, boolean, number or list of them as TOML on one line, tables as inline ones.

    Raises ValueError for text that UTF-8 cannot hold, such as a file name with stray bytes.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value.encode()
        # JSON's escapes are all TOML's too; only DEL is bare in JSON and not allowed in TOML.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(dump, value))}]"
    if isinstance(value, dict):
        return dump_inline(((key,), item) for key, item in value.items())
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)
    return str(value)


def dump_key(path: Iterable[str]) -> str:
    """A dotted key, its parts quoted where they must be."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else dump(part) for part in path)


def dump_inline(pairs: Iterable[tuple[KeyPath, object]]) -> str:
    """An inline table of dotted keys."""
    shown = ", ".join(f"{dump_key(path)} = {dump(value)}" for path, value in pairs)
    return f"{{ {shown} }}" if shown else "{}"
