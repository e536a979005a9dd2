"""The instructions of a Dockerfile, with the line on which each one stands.

dockerfile-parse tells instructions from their values, once the text is put into a form that it
reads as Docker does: one line for each instruction, no heredoc bodies, no byte order mark.
"""

import codecs
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile import expansion

# Guards the end of each line: a backslash there would be taken for a continuation, and an
# instruction without a value would be dropped.
_GUARD = "\0"
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_CONTINUED = {
    # An escaped escape character ends no line; one alone on its line does.
    escape: re.compile(rf"(?:(?<=[^\{escape}])|^)\{escape}[ \t]*\Z")
    for escape in ("\\", "`")
}
# A byte that is not UTF-8.
_STRAY = re.compile("[\udc80-\udcff]")
_WITH_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its name in capitals, its flags (`--…`, unquoted), and the rest.

    It stands on the lines from `line` to `last_line`, counted from 1, without the text of heredocs.
    """

    name: str
    flags: tuple[str, ...]
    value: str
    line: int
    last_line: int


@dataclass(frozen=True, slots=True)
class Source:
    """A Dockerfile's instructions, and the character that escapes in it."""

    escape: str
    instructions: tuple[Instruction, ...]


def instructions(text: bytes, *, where: str) -> Source:
    """Split a Dockerfile; raises DockerfileError for what cannot be split.

    Names of instructions are not checked here. Bytes that are not UTF-8 may stand in comments and in
    the text of heredocs.
    """
    from dockerfile_parse.parser import DockerfileParser

    lines = decode(text).split("\n")
    escape = _escape(lines, where)
    flat, places = _flatten(lines, escape, where)
    # Given a path instead, the parser would want it to end in "Dockerfile".
    joined = io.BytesIO("\n".join(flat).encode())
    parser = DockerfileParser(fileobj=joined)
    found = []
    for part, place in zip(parser.structure, places, strict=True):
        value = part["value"].removesuffix(_GUARD).strip()
        flags: tuple[str, ...] = ()
        if value.startswith("--"):
            flags, value = split_flags(value, escape)
        found.append(Instruction(part["instruction"], flags, value, *place))
    return Source(escape, tuple(found))


def decode(text: bytes) -> str:
    """The text of a Dockerfile; `encode` gives its bytes back, apart from a byte order mark."""
    return text.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def encode(text: str) -> bytes:
    """The bytes of a text from `decode`."""
    return text.encode(errors="surrogateescape")


def has_heredoc(instruction: Instruction) -> bool:
    """Whether lines below an instruction belong to it: only with RUN, COPY and ADD in shell form."""
    return (
        instruction.name in _WITH_HEREDOCS
        and not _is_list(instruction.value)
        and bool(expansion.heredocs(instruction.value))
    )


def split_flags(value: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The `--…` words at the front of a value, without their quotes, and what follows them."""
    flags: list[str] = []
    at = 0
    while value.startswith("--", at):
        word, quote = "", ""
        while at < len(value):
            character = value[at]
            at += 1
            if character == escape:
                # At the very end it escapes nothing, and goes.
                word += value[at : at + 1]
                at += 1
            elif quote:
                if character == quote:
                    quote = ""
                else:
                    word += character
            elif character in "'\"":
                quote = character
            elif character.isspace():
                break
            else:
                word += character
        while value[at : at + 1].isspace():
            at += 1
        if word == "--":
            break
        flags.append(word)
    return tuple(flags), value[at:]


def joined(lines: Sequence[str], escape: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of an instruction that stands on these lines, as one line.

    Also where each of its characters stands: the index of its line, and its own in that.
    """
    text, places = "", list[tuple[int, int]]()
    for row, written in enumerate(lines):
        line = written.rstrip("\r")
        if row and (not line.strip() or line.lstrip().startswith("#")):
            continue
        ending = _CONTINUED[escape].search(line)
        line = line[: ending.start()] if ending is not None else line.rstrip()
        text += line
        places += [(row, column) for column in range(len(line))]
    return text, tuple(places)


def without_continuation(line: str, escape: str) -> str:
    """The line without an escape character at its end, which would join the next line to it."""
    ending = _CONTINUED[escape].search(line.rstrip("\r"))
    return line if ending is None else line[: ending.start()]


def _escape(lines: list[str], where: str) -> str:
    """The escape character that the parser directives at the top choose."""
    escape = "\\"
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = _DIRECTIVE.fullmatch(line.strip())
        name = match[1].lower() if match else ""
        if match is None or name not in _DIRECTIVES:
            break
        if name in seen:
            raise DockerfileError(
                f"the directive {name} stands here a second time, after line {seen[name]}",
                where=f"{where}:{number}",
                hint="keep one of the two",
            )
        seen[name] = number
        if name == "escape":
            escape = match[2]
            if escape not in _CONTINUED:
                raise DockerfileError(
                    f"{escape!r} cannot be the escape character",
                    where=f"{where}:{number}",
                    hint="write # escape=\\ or # escape=`",
                )
    return escape


def _flatten(lines: list[str], escape: str, where: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Each instruction on one line, without comments, blank lines and what its heredocs hold.

    Also the first and the last line of each, without the text of heredocs, counted from 1.
    """
    continued = _CONTINUED[escape]
    flat: list[str] = []
    places: list[tuple[int, int]] = []
    at = 0
    while at < len(lines):
        start = at
        line = lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        if escape in line:
            line = lines[start].rstrip("\r").lstrip()
            whole = ""
            while match := continued.search(line):
                whole += line[: match.start()]
                line = ""
                # Comments and blank lines inside an instruction vanish.
                while at < len(lines) and not line:
                    line = lines[at].rstrip("\r")
                    at += 1
                    if not line.strip() or line.lstrip().startswith("#"):
                        line = ""
            line = (whole + line).strip()
        if not line:
            continue
        if _STRAY.search(line):
            raise DockerfileError(
                "this instruction is not UTF-8",
                where=f"{where}:{start + 1}",
                hint="save the file as UTF-8: podman replaces other bytes by U+FFFD",
            )
        places.append((start + 1, at))
        if "<<" in line:
            for heredoc in _opened(line, escape):
                at = _below(heredoc, lines, at, f"{where}:{start + 1}")
        flat.append(f"{line} {_GUARD}")
    return flat, places


def _opened(line: str, escape: str) -> tuple[expansion.Heredoc, ...]:
    """The heredocs of an instruction: only RUN, COPY and ADD in shell form have any."""
    name, *rest = line.split(None, 1)
    if name.upper() == "ONBUILD" and rest:
        name, *rest = rest[0].split(None, 1)
    if name.upper() not in _WITH_HEREDOCS or not rest or _is_list(split_flags(rest[0], escape)[1]):
        return ()
    return expansion.heredocs(line)


def _below(heredoc: expansion.Heredoc, lines: list[str], at: int, where: str) -> int:
    """The index of the first line below the heredoc whose text begins at `at`."""
    for index in range(at, len(lines)):
        ending = lines[index].rstrip("\r")
        if (ending.lstrip("\t") if heredoc.indented else ending) == heredoc.delimiter:
            return index + 1
    raise DockerfileError(
        f"the heredoc <<{heredoc.delimiter} has no end",
        where=where,
        hint=f"put {heredoc.delimiter} alone on a line below its text, without spaces around it",
    )


def _is_list(value: str) -> bool:
    """Whether a value is a JSON list of strings, Docker's exec form."""
    if not value.startswith("["):
        return False
    try:
        return all(isinstance(item, str) for item in json.loads(value))
    except (ValueError, RecursionError):
        return False
