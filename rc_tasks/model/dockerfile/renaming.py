"""Renaming of bases in a Dockerfile: the names alone change, all other bytes stay."""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.instructions import (
    Instruction,
    decode,
    encode,
    instructions,
    joined,
    split_flags,
)
from rc_tasks.model.dockerfile.parser import Dockerfile, Via

# How COPY and RUN --mount name an image; FROM names it in its first word.
_BEFORE_NAME = {
    "FROM": r"(?<!\S)[\"']?",
    "COPY": r"--from=[\"']?",
    "RUN": r"[=,\"'](?i:from)=[\"']?",
}
_AFTER_NAME = r"(?=[\s,\"']|$)"
_INSTRUCTION = re.compile(r"\s*\S+\s+")


def rename_bases(
    text: bytes, where: str, names: Mapping[str, str], parse: Callable[[bytes], Dockerfile]
) -> bytes:
    """Return a Dockerfile in which each base in `names` has its new name, both as written.

    `parse` parses a text as this Dockerfile; it proves that the result names the same images and stages
    otherwise. Raise DockerfileError for a name that a variable makes.
    """
    before = parse(text)
    source = instructions(text, where=where)
    lines = decode(text).split("\n")
    by_line = {instruction.line: instruction for instruction in source.instructions}
    for name, line in dict.fromkeys((base.name, base.line) for base in before.bases):
        if name not in names:
            continue
        instruction = by_line[line]
        if not _rename(lines, instruction, source.escape, name, names[name]):
            raise DockerfileError(
                f"{instruction.name} has {name} not written out, as with a variable; that cannot be"
                " renamed safely",
                where=f"{where}:{line}",
                hint="write the name in this line, then run the same command again",
            )
    mark = codecs.BOM_UTF8 if text.startswith(codecs.BOM_UTF8) else b""
    renamed = mark + encode("\n".join(lines))
    expected = [
        (names.get(base.name, base.name), base.via, base.line, base.stage) for base in before.bases
    ]
    differs_at = _first_difference(expected, renamed, where, parse)
    if differs_at is not None:
        new = " or ".join(dict.fromkeys(names.values()))
        raise DockerfileError(
            f"{new} would mean something else here, as a stage of this name or number does",
            where=differs_at,
            hint="choose another name, or rename the stage first",
        )
    return renamed


def _rename(lines: list[str], instruction: Instruction, escape: str, name: str, new_name: str) -> bool:
    """Replace a name in each place where an instruction names an image; return whether any is there."""
    first, last = instruction.line - 1, instruction.last_line
    text, places = joined(lines[first:last], escape)
    named = _INSTRUCTION.match(text)
    start = named.end() if named is not None else 0
    _, rest = split_flags(text[start:], escape)
    flags_end = len(text) - len(rest)
    pattern = re.compile(f"({_BEFORE_NAME[instruction.name]}){re.escape(name)}{_AFTER_NAME}")
    if instruction.name == "FROM":
        # Only the first word: in `FROM base AS base`, the second one is a stage.
        word = pattern.match(text, flags_end)
        matches = [word] if word is not None else []
    else:
        matches = list(pattern.finditer(text, start, flags_end))
    for match in reversed(matches):
        row, column = places[match.end(1)]
        ends = places[match.end() - 1]
        if ends != (row, column + len(name) - 1):
            return False  # the name goes on in the next line
        line = lines[first + row]
        lines[first + row] = f"{line[:column]}{new_name}{line[column + len(name) :]}"
    return bool(matches)


def _first_difference(
    expected: Sequence[tuple[str, Via, int, int]],
    renamed: bytes,
    where: str,
    parse: Callable[[bytes], Dockerfile],
) -> object:
    """Return the place of the first base that is not as expected, or None."""
    try:
        after = parse(renamed)
    except DockerfileError as error:
        return error.where
    actual = [(base.name, base.via, base.line, base.stage) for base in after.bases]
    if actual == expected:
        return None
    return f"{where}:{next((base[2] for base in expected if base not in actual), 1)}"
