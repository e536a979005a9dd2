"""JSON as values: tolerant to other versions, and strict with every value."""

import json
from collections.abc import Mapping
from enum import StrEnum

import pytest
from msgspec import DecodeError, Struct, convert, field

from rc_tasks.util.json_decode import Seconds, Size, check_times, encode, load


class Colour(StrEnum):
    """A closed choice."""

    RED = "red"


class Leaf(Struct, frozen=True):
    """An inner value."""

    name: str
    size: Size | None = None
    colour: Colour = Colour.RED


class Tree(Struct, frozen=True):
    """A value of all kinds."""

    leaves: tuple[Leaf, ...]
    counts: Mapping[str, int]
    texts: dict[str, str]
    at: str
    duration_s: Seconds
    weight: float
    good: bool
    root: Leaf | None = None
    tags: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_times(self.at)


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
    assert convert(load(encode(TREE).encode()), Tree) == TREE
    assert convert(["red", "red"], tuple[Colour, ...]) == (Colour.RED, Colour.RED)
    assert convert({"x": {"name": "a"}}, dict[str, Leaf]) == {"x": Leaf("a")}


def test_other_versions_lack_keys_and_have_more() -> None:
    document = load(encode(TREE).encode()) | {"new": [{}]}
    for key in ("root", "tags", "notes"):
        del document[key]
    tree = convert(document, Tree)
    assert (tree.leaves, tree.root, tree.tags, tree.notes) == (TREE.leaves, None, (), {})


def test_a_whole_number_is_a_float_where_one_is_meant() -> None:
    found = convert(load(encode(TREE).encode()) | {"weight": 3}, Tree)
    assert (found.weight, type(found.weight)) == (3.0, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"leaves": [[]]}, "Expected `object`, got `array` - at `$.leaves[0]`"),
        ({"leaves": {}}, "Expected `array`, got `object` - at `$.leaves`"),
        (
            {"leaves": [{"name": "a"}, {}]},
            "Object missing required field `name` - at `$.leaves[1]`",
        ),
        ({"leaves": [{"name": "a", "size": -1}]}, "Expected `int` >= 0 - at `$.leaves[0].size`"),
        (
            {"leaves": [{"name": "a", "size": 1 << 63}]},
            "Expected `int` <= 9223372036854775807 - at `$.leaves[0].size`",
        ),
        (
            {"leaves": [{"name": "a", "colour": []}]},
            "Expected `str`, got `array` - at `$.leaves[0].colour`",
        ),
        (
            {"leaves": [{"name": "a", "colour": "blue"}]},
            "Invalid enum value 'blue' - at `$.leaves[0].colour`",
        ),
        ({"counts": {"x": True}}, "Expected `int`, got `bool` - at `$.counts[...]`"),
        ({"counts": {"x": 3.0}}, "Expected `int`, got `float` - at `$.counts[...]`"),
        ({"texts": {"y": "z", "k": 5.5}}, "Expected `str`, got `float` - at `$.texts[...]`"),
        ({"at": "soon"}, "Invalid isoformat string: 'soon'"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "must have a time zone, and a year from 1970 to 9998"),
        ({"at": "2026-01-02T03:04:05"}, "must have a time zone, and a year from 1970 to 9998"),
        ({"duration_s": float("nan")}, "Expected `float` >= 0.0 - at `$.duration_s`"),
        ({"duration_s": 1e9}, "Expected `float` < 1000000000.0 - at `$.duration_s`"),
        ({"duration_s": -2}, "Expected `float` >= 0.0 - at `$.duration_s`"),
        ({"weight": "5"}, "Expected `float`, got `str` - at `$.weight`"),
        ({"weight": 10**400}, "Number out of range - at `$.weight`"),
        ({"good": "yes"}, "Expected `bool`, got `str` - at `$.good`"),
        ({"notes": None}, "Expected `object`, got `null` - at `$.notes`"),
    ],
)
def test_an_error_has_the_path_of_what_is_wrong(change: dict[str, object], said: str) -> None:
    with pytest.raises(DecodeError) as raised:
        convert(load(encode(TREE).encode()) | change, Tree)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff", "Is no JSON: "),
        (b"[" * 100_000, "Is no JSON: "),
        (b'{"x": ' + b"1" * 5000 + b"}", "Is no JSON: "),
        (b"[[]]", "Expected `object`, got `list`"),
        (b'{"schema": 2}', "Expected 1 - at `$.schema`"),
        (json.dumps({}).encode(), "Expected 1 - at `$.schema`"),
    ],
)
def test_a_text_that_has_no_such_object_is_an_error(text: bytes | None, said: str) -> None:
    with pytest.raises(DecodeError) as raised:
        load(text, 1)
    assert str(raised.value).startswith(said)
