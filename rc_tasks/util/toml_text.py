"""Read TOML with line numbers in errors, and write single values."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping

from rc_tasks.errors import RcError

KeyPath = tuple[str, ...]

_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_KEY_OF_LINE = re.compile(r"\s*(?:\[+([^\]]+)\]|([^=#\[]+)=)")
# str() refuses a number of thousands of digits.
_MOST_BITS = 10_000
_NOT_IN_A_NAME = re.compile(r"[\s\"']")


def loads(text: str, where: str, error: type[RcError]) -> dict[str, object]:
    """Parse a TOML text, which may begin with a byte order mark.

    Raise `error` with file, line and the parser's message.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as problem:
        what = str(problem)
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
    except ValueError as problem:
        # int() refuses a number of thousands of digits.
        raise error(f"not valid TOML: {str(problem).partition(';')[0]}", where=where) from None
    except RecursionError:
        raise error("the TOML is nested too deeply", where=where) from None


def decode(data: bytes, where: str, error: type[RcError]) -> str:
    """Return the text of a TOML file. Raise `error` with the line that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(
            f"not UTF-8 (byte 0x{data[problem.start]:02x})",
            where=f"{where}:{line}",
            hint="save the file as UTF-8",
        ) from None


def line_of(text: str, path: KeyPath) -> int | None:
    """Return the first line of a key, or else of the nearest table around it.

    This searches line by line, which is good enough for an error; a line in a long string may mislead
    it.
    """
    name, table = _NOT_IN_A_NAME.sub("", ".".join(path)), ""
    best, best_line = "", None
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not (match := _KEY_OF_LINE.match(line)):
            continue
        written = _NOT_IN_A_NAME.sub("", match[1] or f"{table}{match[2]}")
        if match[1]:
            table = f"{written}."
        if f"{written}.".startswith(f"{name}."):
            return number
        if name.startswith(f"{written}.") and len(written) > len(best):
            best, best_line = written, number
    return best_line


def flat(table: Mapping[str, object], above: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield the leaves of nested tables, each with its path."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, (*above, key))
        else:
            yield (*above, key), value


def dump(value: object) -> str:
    """Return a string, boolean, number or list of them as TOML on one line, tables as inline ones.

    Raise ValueError for text that UTF-8 cannot hold, such as a file name with stray bytes.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value.encode()
        # TOML has all escapes of JSON, but unlike JSON it does not allow a bare DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(dump, value))}]"
    if isinstance(value, dict):
        return dump_inline(((key,), item) for key, item in value.items())
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)
    return str(value)


def dump_key(path: Iterable[str]) -> str:
    """Return a dotted key, with its parts quoted where necessary."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else dump(part) for part in path)


def dump_inline(pairs: Iterable[tuple[KeyPath, object]]) -> str:
    """Return an inline table of dotted keys."""
    inner = ", ".join(f"{dump_key(path)} = {dump(value)}" for path, value in pairs)
    return f"{{ {inner} }}" if inner else "{}"
