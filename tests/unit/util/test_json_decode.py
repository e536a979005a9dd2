"""JSON as frozen dataclasses: tolerant to other versions, and strict with every value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from rc_tasks.util.json_decode import DecodeError, Seconds, Size, Time, decode, encode, load


class Colour(StrEnum):
    """A closed choice."""

    RED = "red"


@dataclass(frozen=True, slots=True)
class Leaf:
    """An inner value."""

    name: str
    size: Size | None = None
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True)
class Tree:
    """A value of all kinds."""

    leaves: tuple[Leaf, ...]
    counts: Mapping[str, int]
    texts: dict[str, str]
    at: Time
    duration_s: Seconds
    weight: float
    good: bool
    root: Leaf | None = None
    tags: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


TREE = Tree(
    (Leaf("a"), Leaf("b", 5)),
    {"x": 1},
    {"y": "z"},
    "2026-01-02T03:04:05+00:00",
    1.5,
    float("inf"),
    True,
    Leaf("c"),
    ("d",),
)


def test_a_value_reads_back_as_it_was() -> None:
    assert decode(Tree, load(encode(TREE).encode())) == TREE
    assert decode(tuple[Colour, ...], ["red", "red"]) == (Colour.RED, Colour.RED)
    assert decode(dict[str, Leaf], {"x": {"name": "a"}}) == {"x": Leaf("a")}


def test_other_versions_lack_keys_and_have_more() -> None:
    document = load(encode(TREE).encode()) | {"new": [{}]}
    for key in ("root", "tags", "notes"):
        del document[key]
    tree = decode(Tree, document)
    assert (tree.leaves, tree.root, tree.tags, tree.notes) == (TREE.leaves, None, (), {})


def test_numbers_and_durations_are_read_as_they_are_meant() -> None:
    found = decode(Tree, load(encode(TREE).encode()) | {"weight": 3, "duration_s": -2})
    assert (found.weight, type(found.weight), found.duration_s) == (3.0, float, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"leaves": [[]]}, ".leaves.0: must be dict, not list"),
        ({"leaves": {}}, ".leaves: must be list, not dict"),
        ({"leaves": [{"name": "a"}, {}]}, ".leaves.1.name: must be str, not NoneType"),
        ({"leaves": [{"name": "a", "size": -1}]}, ".leaves.0.size: must be from 0 to 2**63 - 1"),
        ({"leaves": [{"name": "a", "colour": []}]}, ".leaves.0.colour: [] is not a valid Colour"),
        ({"counts": {"x": True}}, ".counts.x: must be int, not bool"),
        ({"texts": {"y": "z", "k": 5.5}}, ".texts: must have str as every value"),
        ({"at": "soon"}, ".at: Invalid isoformat string: 'soon'"),
        (
            {"at": "0001-01-01T00:00:00+14:00"},
            ".at: must have a time zone, and a year from 1970 to 9998",
        ),
        ({"at": "2026-01-02T03:04:05"}, ".at: must have a time zone, and a year from 1970 to 9998"),
        ({"duration_s": float("nan")}, ".duration_s: must be below 1000000000"),
        ({"weight": "5"}, ".weight: must be int, not str"),
        ({"weight": 10**400}, ".weight: int too large to convert to float"),
        ({"good": "yes"}, ".good: must be bool, not str"),
        ({"notes": None}, ".notes: must be dict, not NoneType"),
    ],
)
def test_an_error_has_the_path_of_what_is_wrong(change: dict[str, object], said: str) -> None:
    with pytest.raises(DecodeError) as raised:
        decode(Tree, load(encode(TREE).encode()) | change)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, ": is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", ": is no JSON: "),
        (b"[" * 100_000, ": is no JSON: "),
        (b'{"x": ' + b"1" * 5000 + b"}", ": is no JSON: "),
        (b"[[]]", ": must be dict, not list"),
        (b'{"schema": 2}', ".schema: must be 1"),
        (json.dumps({}).encode(), ".schema: must be 1"),
    ],
)
def test_a_text_that_has_no_such_object_is_an_error(text: bytes | None, said: str) -> None:
    with pytest.raises(DecodeError) as raised:
        load(text, 1)
    assert str(raised.value).startswith(said)
