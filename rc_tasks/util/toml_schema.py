"""A table of a TOML file checked against a dataclass: every problem at once, each with its place.

A dataclass made of `setting` and `table` fields is the schema; its field types are the expected types.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast, get_type_hints

from rc_tasks.errors import RcError
from rc_tasks.util import toml_text
from rc_tasks.util.toml_text import KeyPath

T = TypeVar("T")
# Takes the value as read from TOML; raises ValueError with what was expected.
Parse = Callable[[object], object]

SHOWN_CHARACTERS = 60
# A variable with stray bytes reaches us with surrogates in it.
NOT_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file or a variable, in the three parts of an RcError."""

    where: str
    what: str
    hint: str | None = None
    quote: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One key of a schema: its type, default, one line of help, and its own parser if it has one."""

    kind: Any
    default: object
    help: str
    parse: Parse | None

    @property
    def is_table(self) -> bool:
        """Whether the value is a table of strings, whose keys are free."""
        return isinstance(self.default, dict)


@dataclass(frozen=True, slots=True)
class Overrides(Generic[T]):
    """Some keys of a settings table; lists replace what they override, tables are merged into it."""

    values: Mapping[str, object] = field(default_factory=dict)

    def apply(self, settings: T) -> T:
        """The settings with these keys on top."""
        changes = {
            name: {**getattr(settings, name), **value} if isinstance(value, dict) else value
            for name, value in self.values.items()
        }
        return cast(T, replace(cast(Any, settings), **changes))


def setting(default: object, help: str, parse: Parse | None = None) -> Any:
    """A dataclass field that is a key of the file."""
    metadata = {"help": help, "parse": parse}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def table(kind: type, shorthand: str | None = None) -> Any:
    """A dataclass field that is a table; `shorthand` is the key that a plain value stands for."""
    return field(default_factory=kind, metadata={"table": kind, "shorthand": shorthand})


def overrides(kind: type) -> Any:
    """A dataclass field of type Overrides: a table in which only some keys of `kind` are given."""
    return field(default_factory=Overrides, metadata={"table": kind})


@functools.cache
def leaves(schema: type) -> dict[KeyPath, Leaf]:
    """Every key of a schema and of its tables, in the order they are written."""
    found: dict[KeyPath, Leaf] = {}
    kinds = get_type_hints(schema)
    for item in fields(schema):
        if kind := item.metadata.get("table"):
            found |= {(item.name, *path): leaf for path, leaf in leaves(kind).items()}
        elif "help" in item.metadata:
            default = {} if item.default_factory is dict else item.default
            metadata = item.metadata
            found[(item.name,)] = Leaf(kinds[item.name], default, metadata["help"], metadata["parse"])
    return found


@functools.cache
def tables(schema: type) -> dict[KeyPath, str | None]:
    """The tables of a schema, each with the key that a plain value in its place stands for."""
    return {
        (item.name,): item.metadata.get("shorthand")
        for item in fields(schema)
        if "table" in item.metadata
    }


def read(
    schema: type, raw: Mapping[str, object], place: Callable[[KeyPath], str]
) -> tuple[dict[KeyPath, object], list[Problem]]:
    """The values that a table gives, by path, and what is wrong in it.

    A key of a free table has a path of its own. `place` tells the file and line of a path.
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
            shorthand = inner.get(path)
            target = (*path, shorthand) if shorthand else path
            if target in known:
                try:
                    found = parse(known[target], value)
                except ValueError as error:
                    problems.append(Problem(place(path), f"{name(path)}: {error}"))
                    continue
                if isinstance(found, dict):
                    values.update({(*target, one): item for one, item in found.items()})
                else:
                    values[target] = found
            elif path in inner:
                problems.append(Problem(place(path), f"{name(path)}: {wrong('a table', value)}"))
            else:
                problems.append(unknown(path, [*known, *inner], place(path)))

    walk(raw, ())
    return values, problems


def parse(leaf: Leaf, raw: object) -> object:
    """The value of one key; raises ValueError with what was expected and what was found."""
    if leaf.parse is not None:
        return leaf.parse(raw)
    if isinstance(leaf.kind, type) and issubclass(leaf.kind, StrEnum):
        return choice(leaf.kind, raw)
    parsers: dict[object, Parse] = {
        str: text, bool: boolean, int: whole(), tuple[str, ...]: each(text)
    }  # fmt: skip
    return parsers[leaf.kind](raw)


def build(schema: type[T], values: Mapping[KeyPath, object]) -> T:
    """The dataclass with the values that `read` found; everything else keeps its default."""
    return schema(**_arguments(schema, values))


def _arguments(schema: Any, values: Mapping[KeyPath, object]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for item in fields(schema):
        below = {path[1:]: value for path, value in values.items() if path[0] == item.name}
        kind: Any = item.metadata.get("table")
        if () in below:
            given[item.name] = below[()]
        elif below and kind is None:
            given[item.name] = {key: value for (key,), value in below.items()}
        elif below and item.default_factory is Overrides:
            given[item.name] = Overrides(_arguments(kind, below))
        elif below:
            given[item.name] = build(kind, below)
    return given


def failure(error: type[RcError], problems: Iterable[Problem], subject: str) -> RcError:
    """One error for all problems, in the order in which they were found."""
    found = list(problems)
    if len(found) == 1:
        (one,) = found
        return error(one.what, where=one.where, quote=one.quote, hint=one.hint)
    return error(
        f"{len(found)} problems in {subject}",
        quote=tuple(
            f"{one.where}: {one.what}" + (f" ({one.hint})" if one.hint else "") for one in found
        ),
        hint="correct the places named above",
    )


def unknown(path: KeyPath, known: Iterable[KeyPath], where: str) -> Problem:
    """The problem of a key that nobody knows, with the nearest one that is known."""
    keys = {name(each): each for each in known}
    near = nearest(name(path), keys)
    if near is None:
        # Right key, wrong table: `partition` at the top instead of under [slurm].
        near = next((key for key, each in keys.items() if each[-1] == path[-1]), None)
    beside = sorted(key for key, each in keys.items() if each[:-1] == path[:-1])
    hint = f"did you mean {near}?" if near else f"known here: {', '.join(beside)}"
    return Problem(where, f"{name(path)} is not a known key", hint)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one most likely means."""
    import difflib  # for mistakes only

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return found[0] if found else None


def name(path: Iterable[str]) -> str:
    """A path as people write it: `slurm.partition`."""
    return toml_text.dump_key(tuple(path))


def wrong(expected: str, raw: object) -> ValueError:
    """The complaint about a value of the wrong type or form."""
    try:
        shown = toml_text.dump(raw)
    except UnicodeEncodeError:
        shown = ascii(raw)
    if len(shown) > SHOWN_CHARACTERS:
        shown = shown[:SHOWN_CHARACTERS] + "…"
    return ValueError(f"expected {expected}, found {shown}")


def text(raw: object) -> str:
    """A string; NUL is refused, as neither a path nor an argument can hold it."""
    if not isinstance(raw, str):
        raise wrong("a string", raw)
    if NOT_TEXT.search(raw):
        raise wrong("a string of UTF-8 without NUL", raw)
    return raw


def boolean(raw: object) -> bool:
    """true or false."""
    if not isinstance(raw, bool):
        raise wrong("true or false", raw)
    return raw


def whole(at_least: int = 0, at_most: int | None = None) -> Callable[[object], int]:
    """A whole number within bounds."""
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def checked(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise wrong(f"a whole number {bounds}", raw)
        if raw < at_least or (at_most is not None and raw > at_most):
            raise wrong(f"a whole number {bounds}", raw)
        return raw

    return checked


def choice(kind: type[StrEnum], raw: object) -> StrEnum:
    """One of an enum's words; `true` and `false` may stand without quotes where they are words."""
    word = str(raw).lower() if isinstance(raw, bool) else raw
    for member in kind:
        if member.value == word:
            return member
    words = [toml_text.dump(member.value) for member in kind]
    raise wrong(f"{', '.join(words[:-1])} or {words[-1]}", raw)


def each(one: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    """A list in which every element passes the parser of one."""

    def checked(raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list | tuple):
            raise wrong("a list of strings", raw)
        return tuple(one(element) for element in raw)

    return checked
