"""The table [matrix]: the images that it gives, and each mistake in it."""

import pytest

from rc_tasks.model.config.matrix import filled, parse_matrix


def test_each_combination_is_a_version() -> None:
    matrix = parse_matrix({"cuda": ["12.8", "13.0"], "python": ["3.10", 312]})
    assert list(matrix.versions) == ["12.8-3.10", "12.8-312", "13.0-3.10", "13.0-312"]
    assert matrix.versions["13.0-312"] == {"cuda": "13.0", "python": "312"}


def test_a_table_in_exclude_leaves_out_all_that_have_its_values() -> None:
    axes = {"cuda": ["12", "13"], "python": ["3.10", "3.12"], "mpi": ["a", "b"]}
    exclude = [{"cuda": "12", "mpi": "b"}, {"python": "3.10"}]
    matrix = parse_matrix({**axes, "exclude": exclude, "version": "{cuda}.{mpi}.{python}"})
    assert list(matrix.versions) == ["12.a.3.12", "13.a.3.12", "13.b.3.12"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (7, "expected a table of axes, each a list of strings, found 7"),
        ({}, 'expected at least one axis, such as cuda = ["12.8", "13.0"]'),
        ({"version": "1"}, 'expected at least one axis, such as cuda = ["12.8", "13.0"]'),
        ({"cuda": []}, 'cuda: expected a list of strings such as ["12.8", "13.0"], found []'),
        ({"cuda": "12"}, 'cuda: expected a list of strings such as ["12.8", "13.0"], found "12"'),
        ({"cuda": [12.8]}, "cuda: expected a string, found 12.8"),
        ({"cuda": [True]}, "cuda: expected a string, found true"),
        ({"cuda": ["1", "1"]}, "cuda: a value is given twice"),
        ({"a b": ["1"]}, '"a b" cannot be the name of an axis'),
        ({"a": ["1"], "version": "{b}"}, "version: {b} is no axis; the axes are a"),
        ({"a": ["x/y"]}, 'version: "x/y" contains a slash'),
        ({"a": [""]}, 'version: "" ends in a colon without a tag'),
        (
            {"a": ["1", "2"], "version": "x"},
            'version: a 1 and a 2 are both named "x"; name every axis in it',
        ),
        ({"a": ["1"], "exclude": [{"a": "1"}]}, "exclude: it leaves no combination"),
        ({"a": ["1"], "exclude": [{"b": "1"}]}, "exclude: b is no axis; the axes are a"),
        ({"a": ["1"], "exclude": [{"a": "2"}]}, 'exclude: "2" is no value of a'),
        (
            {"a": ["1"], "exclude": [{}]},
            'exclude: expected a list of tables such as [{ cuda = "13.0" }], found [{}]',
        ),
        (
            {axis: [str(value) for value in range(101)] for axis in "ab"},
            "it has 10201 combinations, and 10000 are allowed",
        ),
    ],
)
def test_a_mistake_is_named(raw: object, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_matrix(raw)
    assert str(raised.value) == message


def test_other_braces_stay() -> None:
    assert filled("{a} {{a}} {b} {}", {"a": "1"}) == "1 {1} {b} {}"
