"""The language of the project: words that a reader has to decode, and what to write instead."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rc_tasks"
# Rooms whose comments, docstrings, messages and names follow the table. Add a room when its text is
# done.
ROOMS = (
    "errors",
    "util",
    "squashfs",
    "model",
    "tools",
    "views",
    "state",
    "steps",
    "engine",
    "commands",
)
INSTEAD = {
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again",
    r"told": "report or print",
    r"who(m|se)?ever": "the caller, the user, or another subject",
    r"at work": "running",
    r"hand(s|ed|ing)? in": "submit",
    r"g[ia]ven? back|gives back": "release",
    r"t(ake|akes|aking|ook) the place of": "replace",
    r"pass(es|ed|ing)? over": "skip",
    r"(?<!there )(is|are) (?-i:none)": "is not",
    r"(?<!there )(is|are) no (image|mount|variable|absolute)": "is not",
    r"(and|or) the like": "such as, before examples",
    r"ends? (this process )?in order": "ends cleanly",
    r"heirs?": "next owner",
    r"foreign": "other-platform, or another user's",
    r"tamper\w*|planted": "change",
    r"circles?": "cycle",
    r"picture": "graph view",
    r"the night's|of a night|(a|the|another) night( of| has| run)": "the nightly run",
    r"house|door": "package, entry point",
    r"without a word": "silently",
}
BANNED = [(re.compile(rf"\b({word})\b", re.IGNORECASE), instead) for word, instead in INSTEAD.items()]
# Names that say nothing about the value.
EMPTY_NAMES = frozenset({"found", "each", "told", "wanted", "asked"})
# Text in backquotes names code or a command.
CODE = re.compile(r"`[^`\n]*`")
# First words of a docstring that describes a function in place of saying what it does.
NOT_IMPERATIVE = re.compile(r"(The|An?|Whether|What|Where|How|Which|All|Every|Each|\w*[^s]s)\b|`")


def modules(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted(PACKAGE.glob(f"{room}.py"))] + [
        path for room in rooms for path in sorted(PACKAGE.glob(f"{room}/**/*.py"))
    ]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments, docstrings and messages of a module, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # A docstring stands as it is; another string may be one line with line breaks in it.
            is_block = (node.end_lineno or 0) - node.lineno == node.value.count("\n")
            for number, line in enumerate(node.value.split("\n")):
                yield node.lineno + number * is_block, line


@pytest.mark.parametrize("path", modules(*ROOMS), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_uses_standard_terms(path: Path) -> None:
    wrong = [
        f"rc_tasks/{path.relative_to(PACKAGE)}:{line}: {match[0]!r}: write {instead!r}"
        for line, text in texts(path.read_text())
        for pattern, instead in BANNED
        if (match := pattern.search(CODE.sub("", text)))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", modules(*ROOMS), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_of_functions_are_imperative(path: Path) -> None:
    wrong = [
        f"rc_tasks/{path.relative_to(PACKAGE)}:{node.lineno}: {doc.splitlines()[0]}: begin with a verb"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        if not any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
        if (doc := ast.get_docstring(node)) and NOT_IMPERATIVE.match(doc)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", modules(*ROOMS), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_carry_information(path: Path) -> None:
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = [(node.id, node.lineno) for node in nodes if isinstance(node, ast.Name)]
    names += [(node.arg, node.lineno) for node in nodes if isinstance(node, ast.arg)]
    wrong = [
        f"rc_tasks/{path.relative_to(PACKAGE)}:{line}: {name}: name the value: record, lines, layer"
        for name, line in names
        if name in EMPTY_NAMES
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"rc_tasks/{path.relative_to(PACKAGE)}:{node.lineno}")
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice, f"give each class a name of its own: {twice}"


def test_the_check_reads_comments_docstrings_and_messages() -> None:
    source = '# It is told.\n"""A `told` name."""\nx = f"{x}: the\\nhouse"\n'
    read = [(line, CODE.sub("", text)) for line, text in texts(source)]
    hits = [line for line, text in read for pattern, _ in BANNED if pattern.search(text)]
    assert hits == [1, 3]
