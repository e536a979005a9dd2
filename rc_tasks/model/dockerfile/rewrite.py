"""Rewrite a Dockerfile for podman: bases by image ID, our labels, and marks for the layer cache.

podman takes a step from its cache when an earlier step had the same text and the same parent image. That
text lacks two inputs of an instruction: the files of a `RUN --mount` (containers/buildah#5400: before
podman 5.4), and the value of an ARG in instructions such as ENV and COPY (podman 4.3.1, 5.4.2 and
5.8.6). So we write their digests into the text, in forms that change nothing else: a build secret that
nobody provides, and a variable that nobody sets.

A stage that a RUN mounts is built by itself and mounted as an image: podman before 6.0 may show an
older state of a stage that comes from the cache (#6845).

Labels are one instruction below the last one. From --label, podman before 4.4 makes one instruction for
each label, so two versions would make two images.

Line numbers and instruction numbers stay the same, so that podman's messages stay true.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Set

from msgspec import Struct, field

from rc_tasks.model.dockerfile.expansion import split_words
from rc_tasks.model.dockerfile.instructions import (
    Instruction,
    Source,
    decode,
    joined,
    split_flags,
    without_continuation,
)
from rc_tasks.model.dockerfile.parser import (
    EXPANDED,
    Dockerfile,
    Stage,
    platform_arguments,
    variable_names,
)

_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
_FROM = re.compile(r"(?<=[=,])from=([^,\s\"']+)")
_COPY_FROM = re.compile(r"--from=([^\s\"']+)")
_COMMENT = re.compile(r"\s*#")
# In words of an instruction podman uses this escape, whatever `# escape=` says (4.3.1 to 5.8.6).
_ESCAPE = "\\"
_LENGTH = 16


class Rewritten(Struct, frozen=True):
    """A Dockerfile for podman.

    `marks` maps each text that we put in to the user's text that it replaces. `bases` maps each image ID
    that we put in to the name that it replaces.
    """

    text: str
    marks: Mapping[str, str]
    bases: Mapping[str, str]


class _Reading(Struct, frozen=True):
    """A stage that is being read; `arguments` has a digest of each variable that ARG has set so far."""

    stage: Stage
    arguments: dict[str, str]


def rewrite(
    text: bytes,
    source: Source,
    dockerfile: Dockerfile,
    *,
    architecture: str,
    ids: Mapping[str, str],
    build_args: Mapping[str, str],
    context_digest: Callable[[str, str], str],
    stages: Mapping[int, str],
    labels: Mapping[str, str],
    directories: Set[str] = frozenset(),
) -> Rewritten:
    """Rewrite `text`, which parses to `source` and `dockerfile`, for podman.

    `ids` maps the names of external images to image IDs; a name without one is left to podman.
    `context_digest` returns the digest of a path of a build context by its name, which is empty for the
    main one; the empty path is all of it.
    `directories` are the names of contexts that are directories.
    `stages` has the image IDs of mounted stages that are built; podman finds them by `mounted_name`.
    Stages that the target does not need become empty: podman 4.3.1 panics at `COPY --from=7` in one. The
    image gets the `labels`, each of one line.
    """
    lines = decode(text).split("\n")
    arguments = platform_arguments(architecture, build_args) | dict(build_args)
    digests = {name: _digest(value) for name, value in arguments.items()}
    writer = _Writer(
        lines,
        source.escape,
        dockerfile,
        ids,
        build_args,
        context_digest,
        directories,
        stages,
        digests,
    )
    for instruction in source.instructions:
        writer.read(instruction)
    writer.empty_others()
    writer.end(source.instructions[-1], labels)
    return Rewritten("\n".join(lines), writer.marks, writer.bases)


def mounted_name(index: int) -> str:
    """Return the name by which a RUN mounts the image of a stage."""
    return f"rc-stage-{index}"


class _Writer(Struct):
    """Rewrites `lines` in place, one instruction after the other; see `rewrite` for the rest."""

    lines: list[str]
    escape: str
    dockerfile: Dockerfile
    ids: Mapping[str, str]
    build_args: Mapping[str, str]
    context_digest: Callable[[str, str], str]
    directories: Set[str]
    stages: Mapping[int, str]
    # A digest of each variable that is set above the first FROM.
    arguments: dict[str, str]
    read_stages: list[_Reading] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)

    def read(self, instruction: Instruction) -> None:
        if instruction.name == "FROM":
            self.read_from(instruction)
            return
        scope = self.read_stages[-1].arguments if self.read_stages else self.arguments
        if instruction.name == "ARG":
            self.read_arg(instruction, scope)
        if not self.read_stages:
            return
        reading = self.read_stages[-1]
        if reading.stage.index in self.dockerfile.needed:
            if instruction.name == "COPY":
                self.name_stage(instruction, reading)
            if instruction.name in EXPANDED:
                self.mark_variables(instruction, reading)
            elif instruction.name == "RUN":
                self.mark_sources(instruction, reading)

    def read_from(self, instruction: Instruction) -> None:
        stage = self.dockerfile.stages[len(self.read_stages)]
        arguments = self.arguments
        if stage.parent is not None:
            arguments = self.read_stages[stage.parent].arguments
            image, flags = self.dockerfile.stages[stage.parent].name, ""
        else:
            name = stage.base.name if stage.base else "scratch"
            image = self.ids.get(name, name)
            # With an ID podman does not compare the platform, so --platform is dropped.
            flags = "" if name in self.ids else "".join(f"{flag} " for flag in instruction.flags)
            if image != name:
                self.bases[image] = name
        self.read_stages.append(_Reading(stage, dict(arguments)))
        if stage.index in self.dockerfile.needed:
            named = f" AS {stage.name}" if stage.name else ""
            first, last = instruction.line - 1, instruction.last_line
            self.lines[first:last] = [f"FROM {flags}{image}{named}", *[""] * (last - first - 1)]

    def empty_others(self) -> None:
        """Make the stages that the target does not need empty, so that the others keep their numbers."""
        begins = [stage.line - 1 for stage in self.dockerfile.stages]
        for stage, first, last in zip(
            self.dockerfile.stages, begins, [*begins[1:], len(self.lines)], strict=True
        ):
            if stage.index not in self.dockerfile.needed:
                self.lines[first:last] = ["FROM scratch", *[""] * (last - first - 1)]

    def end(self, last: Instruction, labels: Mapping[str, str]) -> None:
        """Add `labels` at the end of the target; `last` is the last instruction of the file."""
        if not labels:
            return
        # If `last` ends in the escape character, the labels would become a part of it.
        for row in reversed(range(last.line - 1, last.last_line)):
            line = self.lines[row]
            if line.strip() and not _COMMENT.match(line):
                self.lines[row] = without_continuation(line, self.escape)
                break
        pairs = (f"{_quoted(key)}={_quoted(value)}" for key, value in sorted(labels.items()))
        below = self.dockerfile.stages[self.dockerfile.final.index + 1 :]
        self.lines.insert(below[0].line - 1 if below else len(self.lines), f"LABEL {' '.join(pairs)}")

    def read_arg(self, instruction: Instruction, scope: dict[str, str]) -> None:
        for word in split_words(instruction.value, self.escape):
            name, has_default, default = word.partition("=")
            if name in self.build_args:
                scope[name] = _digest(self.build_args[name])
            elif has_default:
                # Its value follows from the default and the values of the variables in that.
                used = sorted(variable_names(default) & scope.keys())
                scope[name] = _digest(default, *(scope[variable] for variable in used))

    def name_stage(self, instruction: Instruction, reading: _Reading) -> None:
        """Spell the name of a stage as its FROM does: podman distinguishes capital letters."""
        first, last = instruction.line - 1, instruction.last_line
        text, places = joined(self.lines[first:last], self.escape)
        match = _COPY_FROM.search(text)
        if match is None or not any(f"--from={match[1]}" == flag for flag in instruction.flags):
            return
        stage = self.dockerfile.stage_of(match[1], reading.stage.index)
        if stage is not None and stage.name.lower() == match[1].lower():
            self.replace(first, places[match.start(1)], match[1], stage.name)

    def mark_variables(self, instruction: Instruction, reading: _Reading) -> None:
        """Put an unset variable, named by the value's digest, before each variable that ARG sets."""
        quote = ""
        for number in range(instruction.line - 1, instruction.last_line):
            line, marked, at = self.lines[number], "", 0
            if number > instruction.line - 1 and _COMMENT.match(line):
                continue
            while at < len(line):
                character = line[at]
                if character == _ESCAPE and quote != "'":
                    marked += line[at : at + 2]
                    at += 2
                    continue
                if character == quote:
                    quote = ""
                elif character in "'\"" and not quote:
                    quote = character
                elif quote != "'" and (used := _VARIABLE.match(line, at)):
                    value = reading.arguments.get(used[1])
                    if value is not None:
                        mark = f"${{rc_{value}}}"
                        self.marks[mark] = ""
                        marked += mark
                marked += character
                at += 1
            self.lines[number] = marked

    def mark_sources(self, instruction: Instruction, reading: _Reading) -> None:
        """Add the digest of all that a RUN mounts, as a secret that nobody provides."""
        parts = []
        for mount in self.dockerfile.mounts:
            if mount.line != instruction.line:
                continue
            parts += [mount.name, mount.source]
            if not mount.name or mount.name in self.directories:
                # The values of variables in the path are unknown here, so all of the context counts.
                parts.append(
                    self.context_digest(mount.name, "" if "$" in mount.source else mount.source)
                )
                parts += self.values(mount.source, reading)
                continue
            stage = self.dockerfile.stage_of(mount.name, mount.stage)
            known = self.ids.get(mount.name) if stage is None else self.stages.get(stage.index)
            parts.append(known or mount.name)
        if not parts:
            return
        mark = f"--mount=type=secret,id=reads-{_digest(*parts)} "
        self.marks[mark] = ""
        first, last = instruction.line - 1, instruction.last_line
        text, places = joined(self.lines[first:last], self.escape)
        start = text.index(text.split(None, 2)[1])
        _, command = split_flags(text[start:], self.escape)
        end = len(text) - len(command)
        # The mark follows the other flags: in podman 4.3 a mount without a type takes that of the mount
        # before.
        self.replace(first, places[end], "", mark)
        for match in reversed(list(_FROM.finditer(text, start, end))):
            stage = self.dockerfile.stage_of(match[1], reading.stage.index)
            if stage is not None and stage.index in self.stages:
                name = mounted_name(stage.index)
                self.marks[f"from={name}"] = f"from={match[1]}"
                self.replace(first, places[match.start(1)], match[1], name)

    def replace(self, first: int, place: tuple[int, int], old: str, new: str) -> None:
        """Replace `old` at `place`, whose line is counted from the line `first`."""
        row, column = first + place[0], place[1]
        line = self.lines[row]
        self.lines[row] = f"{line[:column]}{new}{line[column + len(old) :]}"

    def values(self, text: str, reading: _Reading) -> list[str]:
        used = sorted(variable_names(text) & reading.arguments.keys())
        return [reading.arguments[name] for name in used]


def _quoted(text: str) -> str:
    return '"' + re.sub(r'([\\"$])', lambda match: _ESCAPE + match[1], text) + '"'


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_LENGTH]
