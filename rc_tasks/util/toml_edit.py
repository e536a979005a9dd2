"""One value of a TOML text changed, every other line left as it is written.

tomlkit edits, and tomllib reads each result back: tomlkit can write TOML that is valid and says
something else (a dotted key in an inline table, a table in two places). To import tomlkit costs 24 ms.
"""

import re
import tomllib
from collections.abc import Iterator

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, InlineTable, Item, Key, Table

from rc_tasks.util.toml_text import KeyPath, dump, dump_inline, dump_key, flat

_STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|(#.*)')

# What tomlkit holds of a table or of the whole text; comments and blank lines have no key.
Body = list[tuple[Key | None, Item]]


def with_value(text: str, path: KeyPath, value: object) -> str | None:
    """The text with one value set, or removed when it is None.

    An inline table is written anew as a whole. None when the value has no place beside the others, or
    stands in a form that tomlkit cannot change.
    """
    wanted = dict(flat(tomllib.loads(text)))
    if wanted.get(path) == value:
        return text
    wanted[path] = value
    if value is None:
        del wanted[path]
    whole_lines = f"{text}\n" if text and not text.endswith("\n") else text
    for candidate in _candidates(whole_lines, path, value):
        try:
            if dict(flat(tomllib.loads(candidate))) == wanted:
                return candidate
        except tomllib.TOMLDecodeError:
            continue  # TOML does not let this table be extended at this place: try the next
    return None


def _candidates(text: str, path: KeyPath, value: object) -> Iterator[str]:
    """The text changed at each place where the value may stand, the best first."""
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
    # The nearest first; of equally near ones the last, so that new lines follow older ones.
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
    """Every entry on the way to a path: what the path has below it, the body and index it stands at."""
    for index, (key, item) in enumerate(body):
        if key is not None and key.key == path[0]:
            yield path[1:], body, index, key, item
            if path[1:] and isinstance(item, Table):
                yield from _entries(item.value.body, path[1:])


def _rewritten(key: Key, item: Item, rest: KeyPath, value: object) -> str:
    """An entry with another value, or the comments that are left of a removed one.

    Of an inline table, `rest` says which value.
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
        # Over several lines, as it was; the comments in it are a person's.
        lines = [*comments, *(f"{dump(one)}," for one in value)]
        new = "\n".join(["[", *(f"    {line}" for line in lines), "]"])
    else:
        new = dump(value)
    name = f"{key.as_string()}{key.sep}"
    return f"{trivia.indent}{name}{new}{trivia.comment_ws}{trivia.comment}{trivia.trail}"


def _line(path: KeyPath, value: object) -> str:
    return f"{dump_key(path)} = {dump(value)}\n"


def _below_values(body: Body) -> tuple[int, str]:
    """Where one more value goes in a table, below its last one, and how far that one is indented."""
    at, indent = 0, ""
    for index, (key, item) in enumerate(body, 1):
        if key is not None and (key.is_dotted() or not isinstance(item, Table)):
            at, first = index, item
            while isinstance(first, Table):
                first = first.value.body[0][1]
            indent = first.trivia.indent
    return at, indent
