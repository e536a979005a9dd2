"""The instructions of a Dockerfile, with their line numbers.

dockerfile-parse splits instructions from their values. Before, we bring the text into a form that it
reads as Docker does: one line for each instruction, no heredoc bodies, no byte order mark.
"""

import codecs
import io
import json
import re
from collections.abc import Sequence

from msgspec import Struct

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile import expansion

# We add this to the end of each line. Without it, the parser takes a backslash there for a continuation,
# and drops an instruction without a value.
_GUARD = "\0"
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_CONTINUED = {
    # An escaped escape character does not continue a line; one alone on its line does.
    escape: re.compile(rf"(?:(?<=[^\{escape}])|^)\{escape}[ \t]*\Z")
    for escape in ("\\", "`")
}
# A byte that is not UTF-8.
_STRAY = re.compile("[\udc80-\udcff]")
_WITH_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})


class Instruction(Struct, frozen=True):
    """One instruction: its name in capitals, its flags (`--…`, unquoted), and the rest.

    It spans the lines from `line` to `last_line`, counted from 1, without the text of heredocs.
    """

    name: str
    flags: tuple[str, ...]
    value: str
    line: int
    last_line: int


class Source(Struct, frozen=True):
    """A Dockerfile's instructions, and its escape character."""

    escape: str
    instructions: tuple[Instruction, ...]


def instructions(text: bytes, *, where: str) -> Source:
    """Return the instructions of a Dockerfile. Raise DockerfileError for text that cannot be split.

    Names of instructions are not checked here. Bytes that are not UTF-8 may stand in comments and in
    the text of heredocs.
    """
    from dockerfile_parse.parser import DockerfileParser

    lines = decode(text).split("\n")
    escape = _escape(lines, where)
    flat, places = _flatten(lines, escape, where)
    # The parser refuses a path that does not end in "Dockerfile", but takes any file object.
    joined = io.BytesIO("\n".join(flat).encode())
    parser = DockerfileParser(fileobj=joined)
    parsed = []
    for part, place in zip(parser.structure, places, strict=True):
        value = part["value"].removesuffix(_GUARD).strip()
        flags: tuple[str, ...] = ()
        if value.startswith("--"):
            flags, value = split_flags(value, escape)
        parsed.append(Instruction(part["instruction"], flags, value, *place))
    return Source(escape, tuple(parsed))


def decode(text: bytes) -> str:
    """Return the text of a Dockerfile; `encode` restores its bytes, except a byte order mark."""
    return text.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def encode(text: str) -> bytes:
    """Return the bytes of a text from `decode`."""
    return text.encode(errors="surrogateescape")


def heredocs_of(instruction: Instruction) -> tuple[expansion.Heredoc, ...]:
    """Return the heredocs of an instruction in order: only RUN, COPY and ADD in shell form have any."""
    if instruction.name not in _WITH_HEREDOCS or exec_form(instruction.value) is not None:
        return ()
    return expansion.heredocs(instruction.value)


def split_flags(value: str, escape: str) -> tuple[tuple[str, ...], str]:
    """Return the `--…` words at the front of a value, without their quotes, and what follows them."""
    flags: list[str] = []
    at = 0
    while value.startswith("--", at):
        word, quote = "", ""
        while at < len(value):
            character = value[at]
            at += 1
            if character == escape:
                # At the end of the value the escape character is dropped.
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


def mount_options(flag: str) -> dict[str, str]:
    """Return the options of a flag `--mount=…` by their names, which are in small letters."""
    options = {}
    for field in flag.partition("=")[2].split(","):
        option, _, value = field.strip('"').partition("=")
        options[option.strip().lower()] = value
    return options


def written_lines(text: str, instruction: Instruction) -> tuple[str, ...]:
    """Return the lines of an instruction as they stand in `text`, with the text of its heredocs."""
    lines = text.split("\n")
    at = instruction.last_line
    for heredoc in heredocs_of(instruction):
        at = _index_below(heredoc, lines, at, str(instruction.line))
    return tuple(line.rstrip("\r") for line in lines[instruction.line - 1 : at])


def joined(lines: Sequence[str], escape: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the text of an instruction on these lines as one line, and the place of each character.

    A place is the index of the line and the index in that line.
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
    """Return a line without an escape character at its end, which would append the next line."""
    ending = _CONTINUED[escape].search(line.rstrip("\r"))
    return line if ending is None else line[: ending.start()]


def _escape(lines: list[str], where: str) -> str:
    """Return the escape character that the parser directives at the top set."""
    escape = "\\"
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = _DIRECTIVE.fullmatch(line.strip())
        name = match[1].lower() if match else ""
        if match is None or name not in _DIRECTIVES:
            break
        if name in line_of:
            raise DockerfileError(
                f"the directive {name} stands here a second time, after line {line_of[name]}",
                where=f"{where}:{number}",
                hint="keep one of the two",
            )
        line_of[name] = number
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
    """Return each instruction on one line, without comments, blank lines and the text of heredocs.

    Also return the first and the last line of each, counted from 1, without the text of heredocs.
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
            for heredoc in _heredocs_of(line, escape):
                at = _index_below(heredoc, lines, at, f"{where}:{start + 1}")
        flat.append(f"{line} {_GUARD}")
    return flat, places


def _heredocs_of(line: str, escape: str) -> tuple[expansion.Heredoc, ...]:
    """Return the heredocs of an instruction: only RUN, COPY and ADD in shell form have any."""
    name, *rest = line.split(None, 1)
    if name.upper() == "ONBUILD" and rest:
        name, *rest = rest[0].split(None, 1)
    if name.upper() not in _WITH_HEREDOCS or not rest:
        return ()
    is_list = exec_form(split_flags(rest[0], escape)[1]) is not None
    return () if is_list else expansion.heredocs(line)


def _index_below(heredoc: expansion.Heredoc, lines: list[str], at: int, where: str) -> int:
    """Return the index of the first line below the heredoc whose text begins at `at`."""
    for index in range(at, len(lines)):
        ending = lines[index].rstrip("\r")
        if (ending.lstrip("\t") if heredoc.indented else ending) == heredoc.delimiter:
            return index + 1
    raise DockerfileError(
        f"the heredoc <<{heredoc.delimiter} has no end",
        where=where,
        hint=f"put {heredoc.delimiter} alone on a line below its text, without spaces around it",
    )


def exec_form(value: str) -> tuple[str, ...] | None:
    """Return the words of a value that is a JSON list of strings, Docker's exec form, else None."""
    if not value.startswith("["):
        return None
    try:
        words = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return tuple(words) if all(isinstance(word, str) for word in words) else None
