"""One Dockerfile of a corpus: our reading of it beside Go's."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import dockerfile as go  # type: ignore[import-not-found]

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile import parser
from rc_tasks.model.dockerfile.instructions import Instruction, instructions
from rc_tasks.model.dockerfile.parser import Dockerfile

_IN_WORDS = frozenset({"FROM", "COPY", "ADD", "EXPOSE", "VOLUME"})
_WHOLE = frozenset({"RUN", "CMD", "ENTRYPOINT", "SHELL", "USER", "WORKDIR", "STOPSIGNAL", "MAINTAINER"})
# In what such a mount has as from=, podman and BuildKit look for nothing.
_NO_SOURCE = frozenset({"tmpfs", "secret", "ssh"})
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?[-+])([^{}$]*))?\})")


class Outcome(StrEnum):
    """What the comparison of one file gave."""

    ALIKE = "read alike"
    BOTH_REFUSE = "refused by both"
    REFUSED = "refused by us alone"
    GO_REFUSES = "refused by Go alone"
    DIFFERENT = "DIFFERENT"
    NOT_TEXT = "not UTF-8"


@dataclass(frozen=True, slots=True)
class Read:
    """A file's outcome with the reason, and our parse where there is one."""

    outcome: Outcome
    reason: str = ""
    parsed: Dockerfile | None = None


def compare(path: Path) -> Read:
    """Compare instructions first, then the stages and bases that follow from them."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Read(Outcome.NOT_TEXT)
    theirs, words = _theirs(text)
    try:
        ours = instructions(data, where="Dockerfile").instructions
    except DockerfileError as error:
        outcome = Outcome.BOTH_REFUSE if theirs is None else Outcome.REFUSED
        return Read(outcome, reason(error))
    if theirs is None:
        # It also reads what is in ENV or a list, which we leave to podman's own words.
        return Read(Outcome.GO_REFUSES, words)
    for difference in _instructions(ours, theirs):
        return Read(Outcome.DIFFERENT, difference)
    try:
        parsed = parser.parse(data, where="Dockerfile", build_args={}, architecture=os.uname().machine)
    except DockerfileError as error:
        return Read(Outcome.REFUSED, reason(error))
    for difference in _bases(parsed, theirs):
        return Read(Outcome.DIFFERENT, difference, parsed)
    return Read(Outcome.ALIKE, parsed=parsed)


def reason(error: DockerfileError) -> str:
    """What is refused, without the names and lines of the one file."""
    text = re.sub(r"--(\w+)=\S+", r"--\1=…", error.what)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", text)
    text = re.sub(r"(?<=variable )\S+|(?<=in FROM ).*|(?<=^FROM ).*|(?<=stage )\S+", "…", text)
    return re.sub(r"^\S+ (?=is not an instruction|stands above)", "… ", text)


def _theirs(text: str) -> tuple[list[Any] | None, str]:
    """Return Go's commands, or its words where it refuses."""
    try:
        # An escape alone on the last line is a command without a name to it.
        return [one for one in go.parse_string(text) if one.cmd is not None], ""
    except go.GoParseError as error:
        words = re.sub(r"line \d+", "line …", str(error))
        return ([] if "no instructions" in words else None), words


def _instructions(ours: tuple[Instruction, ...], theirs: list[Any]) -> Iterator[str]:
    """How the instructions differ; the first difference is the one that matters."""
    if [one.name for one in ours] != [one.cmd.upper() for one in theirs]:
        yield "names of instructions"
    if [one.line for one in ours] != [one.start_line for one in theirs]:
        yield "lines of instructions"
    for one, other in zip(ours, theirs, strict=True):
        if one.flags != other.flags:
            yield f"flags of {one.name} in line {one.line}: {one.flags}, Go {other.flags}"
        # Go gives the list after CMD alone.
        if other.sub_cmd or not one.value or one.name == "HEALTHCHECK":
            continue
        value: tuple[str, ...] | None = None
        if other.json:
            # A text of Go's ends at a NUL on its way here.
            value = tuple(text.partition("\0")[0] for text in json.loads(one.value))
        elif one.name in _WHOLE:
            value = (one.value,)
        elif one.name in _IN_WORDS:
            value = tuple(re.split(r"[\t\v\f\r ]+", one.value))
        if value is not None and value != tuple(other.value):
            yield f"value of {one.name} in line {one.line}: {value}, Go {other.value}"


def _bases(parsed: Dockerfile, theirs: list[Any]) -> Iterator[str]:
    """How stages and bases differ from what Go's words of FROM, COPY and RUN give."""
    stages: list[str] = []
    arguments: dict[str, str] = {}
    uses: list[tuple[str, int]] = []
    for one in theirs:
        name = one.cmd.upper()
        if name == "ARG" and not stages:
            for word in one.value:
                key, has_default, default = word.partition("=")
                value = _expanded(default, arguments)
                if has_default and value is not None:
                    arguments[key] = value
        elif name == "FROM":
            image = _expanded(one.value[0], arguments)
            if image is None:
                return  # of a platform, or in a form that only a shell would know
            if image != "scratch" and image.lower() not in stages:
                uses.append((image, one.start_line))
            stages.append(one.value[2].lower() if len(one.value) == 3 else "")
        elif name in ("COPY", "RUN"):
            for source in filter(None, map(_source, one.flags)):
                number = source.isdecimal() and int(source) < len(stages) - 1
                if not number and source != "scratch" and source.lower() not in stages[:-1]:
                    uses.append((source, one.start_line))
    if [stage.name.lower() for stage in parsed.stages] != stages:
        yield f"stages: {[stage.name for stage in parsed.stages]}, Go {stages}"
    ours = [(base.name, base.line) for base in parsed.bases]
    if ours != uses:
        yield f"bases: {ours}, Go {uses}"


def _source(flag: str) -> str:
    """What a flag of COPY or RUN names as from=; empty when it names nothing."""
    key, _, value = flag.partition("=")
    if key == "--from":
        return value
    if key != "--mount":
        return ""
    fields = (field.strip('"').partition("=") for field in value.split(","))
    options = {option.lower(): text for option, _, text in fields}
    return "" if options.get("type") in _NO_SOURCE else options.get("from", "")


def _expanded(word: str, arguments: dict[str, str]) -> str | None:
    """A word of Go's with its variables replaced, as far as that needs no shell."""
    word = word.strip("\"'")
    lost = False

    def value(match: re.Match[str]) -> str:
        nonlocal lost
        name = match[1] or match[2]
        found = arguments.get(name)
        # A platform's arguments need no ARG.
        lost |= found is None and name.startswith(("BUILD", "TARGET"))
        match match[3]:
            case "-" | ":-":
                empty = found is None or (match[3] == ":-" and not found)
                return match[4] if empty else found or ""
            case "+" | ":+":
                return match[4] if found else ""
        lost |= found is None
        return found or ""

    text = _VARIABLE.sub(value, word)
    return None if lost or "$" in text or "\\" in text else text
