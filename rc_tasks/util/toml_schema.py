"""Check a TOML table against a class: report every problem at once, each with its place.

The schema is a class of values. A field `name: Annotated[TYPE, Key(…)] = DEFAULT` is a key of the file.
A field whose type is another such class is a table with its keys, and one of type `Overrides[CLASS]` a
table with only some of them.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar, cast, get_args, get_origin

from msgspec import NODEFAULT, Struct, field
from msgspec.structs import fields, replace

from rc_tasks.errors import RcError
from rc_tasks.util import toml_text
from rc_tasks.util.toml_text import KeyPath

T = TypeVar("T")
# Parses a value from TOML; raises ValueError, which names the expected type.
Parse = Callable[[object], object]

SHOWN_CHARACTERS = 60
# Python turns bytes of a variable that are not UTF-8 into surrogates.
NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class Problem(Struct, frozen=True):
    """One problem in a file or a variable, with the parts of an RcError."""

    where: str
    what: str
    hint: str | None = None
    quote: tuple[str, ...] = ()


class Key(Struct, frozen=True):
    """What a schema says of a key: one line of help, and its own parser if it has one."""

    help: str
    parse: Parse | None = None


class Leaf(Struct, frozen=True):
    """One key of a schema with its type and default; `help` and `parse` are those of its Key."""

    kind: Any
    default: object
    help: str
    parse: Parse | None

    @property
    def is_table(self) -> bool:
        """Whether the value is a table of strings with any keys."""
        return isinstance(self.default, dict)


class Overrides(Struct, Generic[T], frozen=True):
    """Some keys of a settings table; lists replace the settings' lists, tables are merged."""

    values: Mapping[str, object] = field(default_factory=dict)

    def apply(self, settings: T) -> T:
        """Return the settings, overridden by these keys."""
        changes = {
            name: {**getattr(settings, name), **value} if isinstance(value, dict) else value
            for name, value in self.values.items()
        }
        return cast(T, replace(cast(Any, settings), **changes))


@functools.cache
def leaves(schema: type) -> dict[KeyPath, Leaf]:
    """Return every key of a schema and of its tables, in the order of the fields."""
    leaf_of: dict[KeyPath, Leaf] = {}
    for item in fields(schema):
        if inner := _table(item.type):
            leaf_of |= {(item.name, *path): leaf for path, leaf in leaves(inner).items()}
        elif get_origin(item.type) is Annotated:
            kind, key = get_args(item.type)
            default = {} if item.default is NODEFAULT else item.default
            leaf_of[(item.name,)] = Leaf(kind, default, key.help, key.parse)
    return leaf_of


@functools.cache
def tables(schema: type) -> frozenset[KeyPath]:
    """Return the paths of a schema's tables."""
    return frozenset((item.name,) for item in fields(schema) if _table(item.type))


def _table(kind: Any) -> type | None:
    """Return the schema of a field that is a table, or None."""
    if get_origin(kind) is Overrides:
        return cast(type, get_args(kind)[0])
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def read(
    schema: type, raw: Mapping[str, object], place: Callable[[KeyPath], str]
) -> tuple[dict[KeyPath, object], list[Problem]]:
    """Return the values of a table by path, and its problems.

    Each key of a table with any keys has its own path. `place` returns the file and line of a path.
    """
    values: dict[KeyPath, object] = {}
    problems: list[Problem] = []
    known, inner = leaves(schema), tables(schema)

    def walk(items: Mapping[str, object], above: KeyPath) -> None:
        for key, value in items.items():
            path = (*above, key)
            if path in inner and isinstance(value, dict):
                walk(value, path)
                continue
            if path in known:
                try:
                    parsed = parse(known[path], value)
                except ValueError as error:
                    problems.append(Problem(place(path), f"{name(path)}: {error}"))
                    continue
                if isinstance(parsed, dict):
                    values.update({(*path, item_key): item for item_key, item in parsed.items()})
                else:
                    values[path] = parsed
            elif path in inner:
                keys = ", ".join(name(key) for key in known if key[: len(path)] == path)
                what = f"{name(path)}: {wrong('a table', value)}"
                problems.append(Problem(place(path), what, f"set one of its keys: {keys}"))
            else:
                problems.append(unknown(path, [*known, *inner], place(path)))

    walk(raw, ())
    return values, problems


def parse(leaf: Leaf, raw: object) -> object:
    """Return the value of one key. Raise ValueError with the expected type and the value."""
    if leaf.parse is not None:
        return leaf.parse(raw)
    if isinstance(leaf.kind, type) and issubclass(leaf.kind, StrEnum):
        return choice(leaf.kind, raw)
    parsers: dict[object, Parse] = {
        str: text, bool: boolean, int: whole(), tuple[str, ...]: each_of(text)
    }  # fmt: skip
    return parsers[leaf.kind](raw)


def build(schema: type[T], values: Mapping[KeyPath, object]) -> T:
    """Return a schema's value with those of `read`; other fields keep their defaults."""
    return schema(**_arguments(schema, values))


def _arguments(schema: Any, values: Mapping[KeyPath, object]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for item in fields(schema):
        below = {path[1:]: value for path, value in values.items() if path[0] == item.name}
        kind: Any = _table(item.type)
        if () in below:
            arguments[item.name] = below[()]
        elif below and kind is None:
            arguments[item.name] = {key: value for (key,), value in below.items()}
        elif below and get_origin(item.type) is Overrides:
            arguments[item.name] = Overrides(_arguments(kind, below))
        elif below:
            arguments[item.name] = build(kind, below)
    return arguments


def failure(error: type[RcError], problems: Iterable[Problem], subject: str) -> RcError:
    """Return one error for all problems, in their order."""
    all_problems = list(problems)
    if len(all_problems) == 1:
        (problem,) = all_problems
        hint = problem.hint or "correct this value"
        return error(problem.what, where=problem.where, quote=problem.quote, hint=hint)
    return error(
        f"{len(all_problems)} problems in {subject}",
        quote=tuple(
            f"{problem.where}: {problem.what}" + (f" ({problem.hint})" if problem.hint else "")
            for problem in all_problems
        ),
        hint="correct the places named above",
    )


def unknown(path: KeyPath, known: Iterable[KeyPath], where: str) -> Problem:
    """Return the problem of an unknown key, with the nearest known key."""
    keys = {name(known_path): known_path for known_path in known}
    suggestion = nearest(name(path), keys)
    if suggestion is None:
        # Right key, wrong table: `partition` at the top instead of under [slurm].
        suggestion = next((key for key, known_path in keys.items() if known_path[-1] == path[-1]), None)
    beside = sorted(key for key, known_path in keys.items() if known_path[:-1] == path[:-1])
    hint = f"did you mean {suggestion}?" if suggestion else f"known here: {', '.join(beside)}"
    return Problem(where, f"{name(path)} is not a known key", hint)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is nearest to a misspelt one, or None."""
    import difflib  # for mistakes only

    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return matches[0] if matches else None


def name(path: Iterable[str]) -> str:
    """Return a path as a dotted key: `slurm.partition`."""
    return toml_text.dump_key(tuple(path))


def wrong(expected: str, raw: object) -> ValueError:
    """Return the error for a value of the wrong type or form."""
    try:
        as_toml = toml_text.dump(raw)
    except UnicodeEncodeError:
        as_toml = ascii(raw)
    if len(as_toml) > SHOWN_CHARACTERS:
        as_toml = as_toml[:SHOWN_CHARACTERS] + "…"
    return ValueError(f"expected {expected}, found {as_toml}")


def text(raw: object) -> str:
    """Parse a string; refuse NUL, as neither a path nor an argument can hold it."""
    if not isinstance(raw, str):
        raise wrong("a string", raw)
    if NOT_TEXT.search(raw):
        raise wrong("a string of UTF-8 without NUL", raw)
    return raw


def boolean(raw: object) -> bool:
    """Parse true or false."""
    if not isinstance(raw, bool):
        raise wrong("true or false", raw)
    return raw


def whole(at_least: int = 0, at_most: int | None = None) -> Callable[[object], int]:
    """Return a parser of whole numbers within bounds."""
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def checked(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise wrong(f"a whole number {bounds}", raw)
        if raw < at_least or (at_most is not None and raw > at_most):
            raise wrong(f"a whole number {bounds}", raw)
        return raw

    return checked


def choice(kind: type[StrEnum], raw: object) -> StrEnum:
    """Parse a value of an enum; TOML's true and false match the values "true" and "false"."""
    word = str(raw).lower() if isinstance(raw, bool) else raw
    for member in kind:
        if member.value == word:
            return member
    words = [toml_text.dump(member.value) for member in kind]
    raise wrong(f"{', '.join(words[:-1])} or {words[-1]}", raw)


def each_of(parse_element: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    """Return a parser of lists, in which `parse_element` parses every element."""

    def checked(raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list | tuple):
            raise wrong("a list of strings", raw)
        return tuple(parse_element(element) for element in raw)

    return checked
