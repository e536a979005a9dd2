"""Blocks and attributes of a bake file in HCL or JSON; the expressions stay syntax trees of python-hcl2.

The import of hcl2 takes 50 ms. hcl2 keeps its parser tables in a file in its own package. Where that
directory cannot be written, it makes them again each time, which takes a second.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from rc_tasks.errors import ImportedFileError

if TYPE_CHECKING:
    import lark

    Tree = lark.Tree[lark.Token]

# hcl2 searches the end of a heredoc in the whole rest of the text, so that a long text of beginnings
# takes the square of its length.
MOST_BYTES = 1 << 18
_BLOCK_KINDS = frozenset({"variable", "group", "target", "function"})
_SHOWN_CHARACTERS = 120
_COMMENT = "new_line_or_comment"


class Attribute(Struct, frozen=True):
    """An attribute with the syntax tree of its value; `where` is `path:line`, or a path for JSON."""

    name: str
    where: str
    tree: Any


class Block(Struct, frozen=True):
    """A block of a bake file, such as `target "x" { … }`, with its attributes by name."""

    kind: str
    label: str
    where: str
    attributes: dict[str, Attribute]


class BakeDocument(Struct, frozen=True):
    """The blocks of a bake file, and the attributes outside of all blocks, which are variables."""

    blocks: tuple[Block, ...]
    attributes: dict[str, Attribute]


def parse(text: str, where: str) -> BakeDocument:
    """Parse a bake file in HCL. Raise ImportedFileError with the line."""
    return _document(text, where, has_lines=True)


def parse_json(text: str, where: str) -> BakeDocument:
    """Parse a bake file in JSON, whose strings are templates of HCL. Raise ImportedFileError.

    The parser of JSON gives no lines.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ImportedFileError(
            f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}", hint="correct this line"
        ) from None
    except RecursionError:
        raise ImportedFileError("the JSON is nested too deeply", where=where) from None
    except ValueError as error:
        raise ImportedFileError(f"not valid JSON: {str(error).partition(';')[0]}", where=where) from None
    if not isinstance(document, dict):
        raise ImportedFileError("not a bake file: the JSON is not an object", where=where)
    return _document("".join(_as_hcl(document, where)), where, has_lines=False)


def joined(documents: Sequence[BakeDocument]) -> BakeDocument:
    """Return the blocks and attributes of several files as one document."""
    blocks = tuple(block for document in documents for block in document.blocks)
    attributes = {name: item for document in documents for name, item in document.attributes.items()}
    return BakeDocument(blocks, attributes)


def _as_hcl(document: dict[str, object], where: str) -> Iterator[str]:
    """Yield a bake file in JSON as HCL: both have the same escapes and templates in strings."""
    for key, value in document.items():
        if key not in _BLOCK_KINDS:
            yield f"{_name(key, where)} = {_expression(value)}\n"
            continue
        for labelled in value if isinstance(value, list) else [value]:
            if not isinstance(labelled, dict):
                raise ImportedFileError(
                    f"{key} is not an object", where=where, hint="correct this value"
                )
            for label, attributes in labelled.items():
                if not isinstance(attributes, dict):
                    what = f"{key} {label!r} is not an object"
                    raise ImportedFileError(what, where=where, hint="correct this value")
                yield f"{key} {_string(label)} {{\n"
                for name, item in attributes.items():
                    yield f"{_name(name, where)} = {_expression(item)}\n"
                yield "}\n"


def _expression(value: object) -> str:
    match value:
        case str():
            return _string(value)
        case list():
            return f"[{', '.join(map(_expression, value))}]"
        case dict():
            pairs = (f"{_string(key)} = {_expression(item)}" for key, item in value.items())
            return f"{{ {', '.join(pairs)} }}"
        case _:
            return json.dumps(value)


def _string(text: str) -> str:
    # HCL lacks two of JSON's escapes.
    return json.dumps(text, ensure_ascii=False).replace("\\b", "\\u0008").replace("\\f", "\\u000c")


def _name(key: str, where: str) -> str:
    if not key.replace("-", "_").isidentifier() or not key.isascii():
        raise ImportedFileError(f"{key!r} cannot be the name of an attribute", where=where)
    return key


def _document(text: str, where: str, *, has_lines: bool) -> BakeDocument:
    import hcl2
    import lark

    if len(text) > MOST_BYTES:
        raise ImportedFileError(f"has {len(text)} characters, and {MOST_BYTES} are allowed", where=where)

    def place(line: int) -> str:
        return f"{where}:{line}" if has_lines else where

    try:
        tree = hcl2.parses_to_tree(text.replace("\r\n", "\n"))
    except lark.exceptions.UnexpectedInput as error:
        line = error.line if error.line > 0 else text.count("\n") + 1
        raise ImportedFileError(
            f"not valid HCL: {_unexpected(error)}",
            where=place(line),
            quote=quoted(text, line) if has_lines else (),
            hint="correct this line, or one above it",
        ) from None
    except RecursionError:
        raise ImportedFileError("the HCL is nested too deeply", where=where) from None
    blocks: list[Block] = []
    attributes: dict[str, Attribute] = {}
    for item in trees(tree.children[0]):
        if item.data == "attribute":
            attribute = _attribute(item, place)
            attributes[attribute.name] = attribute
        else:
            blocks.append(_block(item, place))
    return BakeDocument(tuple(blocks), attributes)


def _unexpected(error: "lark.exceptions.UnexpectedInput") -> str:
    token = getattr(error, "token", getattr(error, "char", ""))
    shown = str(token).split("\n", maxsplit=1)[0].strip()
    if not shown:
        return (
            "the text ends too early"
            if getattr(token, "type", "") == "$END"
            else "a line ends too early"
        )
    return f"unexpected {shown[:_SHOWN_CHARACTERS]!r}, column {error.column}"


def quoted(text: str, line: int) -> tuple[str, ...]:
    """Return the beginning of a line of a text, for an error."""
    return tuple(part[:_SHOWN_CHARACTERS] for part in text.splitlines()[line - 1 : line])


def trees(tree: "Any") -> "list[Tree]":
    """Return the children of a syntax tree without tokens, comments and line breaks."""
    import lark

    return [child for child in tree.children if isinstance(child, lark.Tree) and child.data != _COMMENT]


def _block(tree: "Tree", place: Any) -> Block:
    *head, body = trees(tree)
    words = [_word(item) for item in head]
    where = place(tree.meta.line)
    if words[0] not in _BLOCK_KINDS or len(words) != 2:
        raise ImportedFileError(
            f"{' '.join(words)} is not a block of a bake file",
            where=where,
            hint=f'write one of {", ".join(sorted(_BLOCK_KINDS))} with one name, as in target "app"',
        )
    attributes: dict[str, Attribute] = {}
    for item in trees(body):
        if item.data == "attribute":
            attribute = _attribute(item, place)
            attributes[attribute.name] = attribute
        elif _word(trees(item)[0]) != "validation":
            # A variable may have blocks that check its value.
            raise ImportedFileError(
                f"a {words[0]} has no block in it",
                where=place(item.meta.line),
                hint="write an attribute: NAME = VALUE",
            )
    return Block(words[0], words[1], where, attributes)


def _attribute(tree: "Tree", place: Any) -> Attribute:
    name, value = trees(tree)
    return Attribute(_word(name), place(tree.meta.line), value)


def _word(tree: "Tree") -> str:
    """Return an identifier, or a string without its quotes."""
    return "".join(str(token) for token in tree.scan_values(lambda _token: True)).strip('"')
