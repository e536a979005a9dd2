"""Change one value of a TOML text and keep every other line as written.

tomlkit edits the text, and tomllib checks each result: tomlkit can write valid TOML with another meaning
(a dotted key in an inline table, a table in two places). The import of tomlkit takes 24 ms.
"""

import re
import tomllib
from collections.abc import Iterator

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, InlineTable, Item, Key, Table

from rc_tasks.util.toml_text import KeyPath, dump, dump_inline, dump_key, flat

_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|(#.*)')

# The entries that tomlkit has of a table or of the whole text; comments and blank lines have no key.
Body = list[tuple[Key | None, Item]]


def with_value(text: str, path: KeyPath, value: object) -> str | None:
    """Return the text with one value set, or removed when it is None.

    An inline table is rewritten as a whole. Return None when the value conflicts with others, or is
    written in a form that tomlkit cannot change.
    """
    expected = dict(flat(tomllib.loads(text)))
    if expected.get(path) == value:
        return text
    expected[path] = value
    if value is None:
        del expected[path]
    whole_lines = f"{text}\n" if text and not text.endswith("\n") else text
    for candidate in _candidates(whole_lines, path, value):
        try:
            if dict(flat(tomllib.loads(candidate))) == expected:
                return candidate
        except tomllib.TOMLDecodeError:
            continue  # TOML does not let this table be extended at this place: try the next
    return None


def _candidates(text: str, path: KeyPath, value: object) -> Iterator[str]:
    """Yield the text with the value at each possible place, the best place first."""
    try:
        document = tomlkit.parse(text)
        is_kept = document.as_string() == text
    except (TOMLKitError, RecursionError):
        return
    if not is_kept:
        return

    def with_lines(body: Body, start: int, stop: int, lines: str) -> str:
        before = body[:]
        body[start:stop] = tomlkit.parse(lines).body
        changed = document.as_string()
        body[:] = before
        return changed

    is_nested = False
    # The nearest entry comes first; of equally near ones the last, so that new lines follow older ones.
    entries = [*_entries(document.body, path)][::-1]
    for rest, body, index, key, item in sorted(entries, key=lambda entry: len(entry[0])):
        if not rest and isinstance(item, Table | AoT):
            return
        if not rest or isinstance(item, InlineTable):
            yield with_lines(body, index, index + 1, _rewritten(key, item, rest, value))
        elif isinstance(item, Table) and item.is_super_table() and not key.is_dotted():
            is_nested = True  # [a.b.c] alone: a and b have no header to write below
        elif isinstance(item, Table):
            at, indent = _below_values(item.value.body)
            yield with_lines(item.value.body, at, at, indent + _line(rest, value))
    at, indent = _below_values(document.body)
    if len(path) > 1:
        for cut in (len(path) - 1, 1) if is_nested else (1, len(path) - 1):
            yield f"{text}\n[{dump_key(path[:cut])}]\n{_line(path[cut:], value)}"
    elif at:
        yield with_lines(document.body, at, at, indent + _line(path, value))
    else:
        # Above the first table and the comments that belong to it.
        above = re.split(r"^(?=(?:[ \t]*#.*\n)*[ \t]*\[)", text, maxsplit=1, flags=re.MULTILINE)
        yield f"{_line(path, value)}\n".join(above) if above[1:] else text + _line(path, value)


def _entries(body: Body, path: KeyPath) -> Iterator[tuple[KeyPath, Body, int, Key, Item]]:
    """Yield every entry on the way to a path: the rest of the path, then the entry's body and index."""
    for index, (key, item) in enumerate(body):
        if key is not None and key.key == path[0]:
            yield path[1:], body, index, key, item
            if path[1:] and isinstance(item, Table):
                yield from _entries(item.value.body, path[1:])


def _rewritten(key: Key, item: Item, rest: KeyPath, value: object) -> str:
    """Return an entry with a new value, or the comments of a removed entry.

    In an inline table, `rest` is the path of the value.
    """
    trivia = item.trivia
    comments = [comment for comment in _STRING_OR_COMMENT.findall(item.as_string()) if comment]
    if rest:
        pairs = dict(flat(item.unwrap())) | {rest: value}
        new = dump_inline(pair for pair in pairs.items() if pair[1] is not None)
    elif value is None:
        comments += [trivia.comment] if trivia.comment else []
        return "".join(f"{trivia.indent}{comment}\n" for comment in comments)
    elif isinstance(value, list) and "\n" in item.as_string():
        # The list stays on several lines, and keeps the user's comments in it.
        lines = [*comments, *(f"{dump(element)}," for element in value)]
        new = "\n".join(["[", *(f"    {line}" for line in lines), "]"])
    else:
        new = dump(value)
    name = f"{key.as_string()}{key.sep}"
    return f"{trivia.indent}{name}{new}{trivia.comment_ws}{trivia.comment}{trivia.trail}"


def _line(path: KeyPath, value: object) -> str:
    return f"{dump_key(path)} = {dump(value)}\n"


def _below_values(body: Body) -> tuple[int, str]:
    """Return the index below the last value of a table, and the indentation of that value."""
    at, indent = 0, ""
    for index, (key, item) in enumerate(body, 1):
        if key is not None and (key.is_dotted() or not isinstance(item, Table)):
            at, first = index, item
            while isinstance(first, Table):
                first = first.value.body[0][1]
            indent = first.trivia.indent
    return at, indent
