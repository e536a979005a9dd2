"""TOML as text: lines of keys, written values, and edits that keep every other line."""

import tomllib

import pytest

from rc_tasks.util import toml_edit, toml_text

TEXT = """\ufeff# head = 1
a = 1 # c = 2
"b.c" . 'd e' = 2
m = [ # one
  "a", # two, ]
]
i = { a.b = "x}", "f#" = { g = 1 } } # q
[ t . 'u v' ] # w
k = true
\t[t.z]
t.a.q = 1
"""


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("\n", "\r\n")], ids=["lf", "crlf"])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 2),
        (("b.c", "d e"), 3),
        (("m",), 4),
        (("i", "f#", "g"), 7),
        (("t",), 8),
        (("t", "u v", "k"), 9),
        (("t", "u v", "absent"), 8),
        (("t", "z", "t"), 11),
        (("k",), None),
        (("absent",), None),
    ],
)
def test_line_of_a_key(text: str, path: tuple[str, ...], line: int | None) -> None:
    assert toml_text.line_of(text, path) == line


@pytest.mark.parametrize(
    "value",
    [
        "",
        'q" \\ \n\r\t\x00\x1f\x7f\x85\u2028 ü 🚀',
        True,
        -3,
        ["a", "b'"],
        [],
        {"a b": {"ü": ["x"]}},
        {},
    ],
)
def test_what_is_written_reads_back(value: object) -> None:
    assert tomllib.loads(f"v = {toml_text.dump(value)}")["v"] == value


@pytest.mark.parametrize(
    ("text", "path", "value", "expected"),
    [
        ("", "a", "1", 'a = "1"\n'),
        ("# ours", "a", "1", '# ours\na = "1"\n'),
        ("b = 1 # c", "a.x", "1", 'b = 1 # c\n\n[a]\nx = "1"\n'),
        ("a = '1' # c\nb = 1\n", "a", "1", "a = '1' # c\nb = 1\n"),
        ("a = '1' # c\nb = 1\n", "a", None, "# c\nb = 1\n"),
        ("[t]\n  x . y = '1'  # c\n", "t.x.y", None, "[t]\n  # c\n"),
        ("a = [\n 'x', # '1'\n '#2' ]\n", "a", None, "# '1'\n"),
        ("t = { a.b = 1, c = 2 } # c\n", "t.a.b", None, "t = { c = 2 } # c\n"),
        ("t = { a = '1' }\n", "t.a", None, "t = {}\n"),
        ("[t]\na = 1\n\n# u\n[u]\n", "t.b", True, "[t]\na = 1\nb = true\n\n# u\n[u]\n"),
        ("a = 'x'\n", "a.b", "1", None),
        ("a.b = 'x'\n", "a", "1", None),
    ],
)
def test_edit(text: str, path: str, value: object, expected: str | None) -> None:
    assert toml_edit.with_value(text, tuple(path.split(".")), value) == expected
