"""Dockerfile parser: stages, and the external images that they are built from.

The rules are BuildKit's. This module does not know whether a base is a project of ours or comes from a
registry.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import DockerfileError
from rc_tasks.model import machine
from rc_tasks.model.dockerfile.expansion import ExpandedText, WordError, expand, split_words
from rc_tasks.model.dockerfile.instructions import Instruction, Source, instructions, mount_options
from rc_tasks.model.reference import ImageReference, familiar, near

KNOWN = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
    *("MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
SCRATCH = "scratch"

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
# int() refuses numbers of thousands of digits.
_MOST_DIGITS = 9
_NO_SOURCE = frozenset({"tmpfs", "secret", "ssh"})  # mounts that come from no image
# The instructions in which the builder itself replaces variables (Dockerfile reference, "Environment
# replacement"); RUN leaves that to the shell.
EXPANDED = frozenset(
    {"ADD", "COPY", "ENV", "EXPOSE", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}
)
_VARIABLE_NAME = re.compile(r"\$\{?([A-Za-z_]\w*)")
# Splits the bytes of a Dockerfile into instructions; the string is its path in errors.
Splitter = Callable[[bytes, str], Source]
_NOT_ON_BUILD = frozenset({"FROM", "MAINTAINER", "ONBUILD"})


class Via(StrEnum):
    """How an image is used."""

    FROM = "FROM"
    COPY = "COPY"
    MOUNT = "MOUNT"


class NamedContexts(Struct, frozen=True):
    """What names in a Dockerfile stand for besides stages and images: directories, and other images."""

    directories: Set[str]
    images: Mapping[str, str]

    def image(self, name: str) -> str | None:
        """Return the image that stands for a base; `ubuntu` is `docker.io/library/ubuntu:latest`."""
        if name in self.images or not self.images:
            return self.images.get(name)
        meant = familiar(name)
        return next((image for key, image in self.images.items() if familiar(key) == meant), None)


NO_CONTEXTS = NamedContexts(frozenset(), {})


class BaseUse(Struct, frozen=True):
    """One use of an external image: its name with variables replaced, else as written.

    `other_platform`: its --platform is not that of this machine. `written` is the name of the context
    that stands for the image, and empty if the name is its own.
    """

    name: str
    via: Via
    line: int
    stage: int
    other_platform: bool = False
    written: str = ""


class RunMount(Struct, frozen=True):
    """The source of one --mount of a RUN: the path `source` in the image or stage `name`.

    `name` is as written, and empty for the build context. `source` is empty for all of it.
    """

    name: str
    source: str
    line: int
    stage: int


class PrivateMount(Struct, frozen=True):
    """A --mount of a RUN that gives it a secret or an SSH agent; `kind` is `secret` or `ssh`."""

    kind: str
    id: str
    line: int
    stage: int


class Overlooked(StrEnum):
    """What podman's layer cache ignores, or what some versions of podman take from the wrong place."""

    # The files of a RUN --mount, from the build context or from another image.
    SOURCE = "source"
    # The files of a RUN --mount from another stage.
    STAGE = "stage"
    # The value of an ARG in an instruction other than RUN.
    VARIABLE = "variable"
    # A stage named like an image that the Dockerfile uses.
    SHADOW = "shadow"


class Stage(Struct, frozen=True):
    """One FROM section. It starts from `base`, from the stage `parent`, or from nothing (scratch).

    `name` is as written, and empty when there is none.
    """

    index: int
    name: str
    line: int
    base: BaseUse | None
    parent: int | None
    sets_entrypoint: bool


class Dockerfile(Struct, frozen=True):
    """All stages, and the images that the stages up to the target use.

    `bases` has every use in order. `needed` are the indices of the stages that the target is made of;
    podman and BuildKit skip the others. `sets_entrypoint` and `final_base` follow the target down
    through the stages that it is built on. `mounts` has every RUN --mount that reads something, and
    `private_mounts` each of a secret or an SSH agent. `overlooked` has the lines of needed stages in
    which podman's cache overlooks something. `notes` warn, each with its `path:line`, of probable
    mistakes that podman accepts.
    """

    stages: tuple[Stage, ...]
    bases: tuple[BaseUse, ...]
    final: Stage
    sets_entrypoint: bool
    final_base: BaseUse | None
    needed: frozenset[int] = frozenset()
    mounts: tuple[RunMount, ...] = ()
    private_mounts: tuple[PrivateMount, ...] = ()
    overlooked: tuple[tuple[Overlooked, int], ...] = ()
    notes: tuple[str, ...] = ()

    def stage_of(self, name: str, above: int) -> Stage | None:
        """Return the stage that a `from=` in stage `above` names, by name or number, or None."""
        return _stage_of(self.stages, name, above)


def split_text(text: bytes, where: str) -> Source:
    """Return the instructions of a Dockerfile. Raise DockerfileError. `where` is its path in errors."""
    return instructions(text, where=where)


def parse(
    text: bytes,
    *,
    where: str,
    build_args: Mapping[str, str],
    architecture: str,
    target: str | None = None,
    split: Splitter = split_text,
    contexts: NamedContexts = NO_CONTEXTS,
) -> Dockerfile:
    """Parse a Dockerfile; `architecture` is the machine as uname(2) names it.

    `target` is the name of a stage, or the index of one without a name. Raise DockerfileError with
    `where` and the line. As in podman, a mistake in a stage that the target does not need is not an
    error; it is among the notes.
    """
    source = split(text, where)
    if not source.instructions:
        raise DockerfileError(
            "the Dockerfile has no FROM",
            where=f"{where}:1",
            hint="start it with FROM and a base image",
        )
    reader = _InstructionReader(where, source.escape, build_args, architecture, contexts)
    for instruction in source.instructions:
        reader.read(instruction)
    return reader.finish(target)


class _Use(Struct, frozen=True):
    """An image or a stage that COPY or RUN --mount names."""

    name: str
    via: Via
    line: int
    stage: int


class _InstructionReader:
    """Collects stages and the images they use, an instruction at a time; `finish` returns the whole."""

    def __init__(
        self,
        where: str,
        escape: str,
        build_args: Mapping[str, str],
        architecture: str,
        contexts: NamedContexts,
    ) -> None:
        self.where = where
        self.contexts = contexts
        self.escape = escape
        self.build_args = build_args
        self.globals = _values(platform_arguments(architecture, build_args))
        self.declared: set[str] = set()
        self.stages: list[Stage] = []
        # The first mistake in each stage, and probable mistakes that the builder accepts.
        self.mistakes: dict[int, DockerfileError] = {}
        self.notes: list[tuple[int, str]] = []
        self.entrypoints: set[int] = set()
        self.uses: list[_Use | BaseUse] = []
        self.mounts: list[RunMount] = []
        self.private_mounts: list[PrivateMount] = []
        # The variables that ARG sets in each stage, and the first line of each stage that uses one
        # outside of RUN.
        self.arguments: list[set[str]] = []
        self.expanded: dict[int, int] = {}
        self.native = platform_arguments(architecture, {})["BUILDPLATFORM"]
        self.last_line = 1

    def read(self, instruction: Instruction) -> None:
        self.last_line = instruction.line
        try:
            self.read_instruction(instruction)
        except DockerfileError as error:
            if not self.stages:
                raise
            self.mistakes.setdefault(len(self.stages) - 1, error)

    def read_instruction(self, instruction: Instruction) -> None:
        self.check_name(instruction)
        if instruction.name == "FROM":
            self.read_from(instruction)
        elif not self.stages:
            if instruction.name != "ARG":
                raise self.error(
                    instruction.line,
                    f"{instruction.name} stands above the first FROM",
                    "only ARG may stand there; move it below a FROM",
                )
            self.read_global_arg(instruction)
        elif instruction.name in ("COPY", "ADD"):
            self.read_copy(instruction)
        elif instruction.name == "RUN":
            self.read_run(instruction)
        elif instruction.name == "ENTRYPOINT":
            self.entrypoints.add(len(self.stages) - 1)
        elif instruction.name == "ARG":
            self.arguments[-1] |= {word.partition("=")[0] for word in instruction.value.split()}
        if instruction.name in EXPANDED and self.stages:
            text = " ".join((*instruction.flags, instruction.value))
            if "$" in text and not self.arguments[-1].isdisjoint(variable_names(text)):
                self.expanded.setdefault(len(self.stages) - 1, instruction.line)

    def check_name(self, instruction: Instruction) -> None:
        name = instruction.name
        if name == "ONBUILD":
            # The trigger runs in builds on top of this image, so an image in it is no base of this one.
            name = instruction.value.partition(" ")[0].partition("\t")[0].upper()
            if name in _NOT_ON_BUILD or not name:
                raise self.error(
                    instruction.line,
                    f"ONBUILD cannot trigger {name or 'nothing'}",
                    "write the instruction that is to run in builds on top of this image",
                )
        if name not in KNOWN:
            candidates = near(name, KNOWN)
            raise self.error(
                instruction.line,
                f"{name} is not an instruction",
                f"did you mean {' or '.join(candidates)}?"
                if candidates
                else "a command of the shell needs RUN before it",
            )

    def read_global_arg(self, instruction: Instruction) -> None:
        words = split_words(instruction.value, self.escape)
        if not words:
            raise self.error(
                instruction.line, "ARG names no variable", "write ARG NAME or ARG NAME=VALUE"
            )
        for word in words:
            name, has_default, default = word.partition("=")
            if not name:
                raise self.error(
                    instruction.line, f"ARG {word} names no variable", "write ARG NAME or ARG NAME=VALUE"
                )
            self.declared.add(name)
            if name in self.build_args:
                self.globals[name] = ExpandedText(self.build_args[name])
            elif has_default:
                self.globals[name] = self.expand(default, f"ARG {word}", instruction.line)

    def read_from(self, instruction: Instruction) -> None:
        line, index = instruction.line, len(self.stages)
        words = instruction.value.split()
        named = len(words) == 3 and words[1].lower() == "as"
        name = words[2] if named else ""
        stage = Stage(index, name, line, None, None, False)
        # The stage is appended before its checks, so that lines below a wrong FROM belong to it.
        self.stages.append(stage)
        self.arguments.append({*self.globals, *self.build_args})
        if not named and len(words) != 1:
            raise self.error(
                line,
                f"FROM has {len(words)} words after it, not one image, or IMAGE AS NAME"
                if words
                else "FROM names no image",
                "write FROM IMAGE or FROM IMAGE AS STAGE",
            )
        other_platform = False
        for flag in instruction.flags:
            key, _, platform = flag.partition("=")
            if key != "--platform":
                raise self.error(
                    line, f"FROM does not know {key}", "its only flag is --platform=OS/ARCH"
                )
            other_platform = self.resolve(platform, f"--platform={platform}", line) != self.native
        image = self.resolve(words[0], f"FROM {words[0]}", line)
        parent = _named(self.stages[:index], image)
        if parent is not None:
            self.stages[index] = replace(stage, parent=parent.index)
            self.arguments[index] = set(self.arguments[parent.index])
        elif image in self.contexts.directories:
            raise self.error(
                line,
                f"FROM {image}: the context {image} is a directory, and not an image",
                f"copy from it: COPY --from={image} …",
            )
        elif image != SCRATCH:
            ImageReference.parse(image, where=f"{self.where}:{line}")
            base = self.base(image, Via.FROM, line, index, other_platform)
            self.stages[index] = replace(stage, base=base)
            self.uses.append(base)
        if named and not _STAGE_NAME.fullmatch(name.lower()):
            raise self.error(
                line,
                f"{name!r} cannot be the name of a stage",
                "start with a letter and use letters, digits, . _ -",
            )

    def read_copy(self, instruction: Instruction) -> None:
        for flag in instruction.flags:
            key, _, name = flag.partition("=")
            if key != "--from":
                continue
            if instruction.name == "ADD":
                raise self.error(instruction.line, "ADD does not know --from", "use COPY --from")
            self.use(name, f"COPY {flag}", Via.COPY, instruction.line)

    def read_run(self, instruction: Instruction) -> None:
        for flag in instruction.flags:
            if flag.partition("=")[0] != "--mount":
                continue
            options = mount_options(flag)
            kind = options.get("type", "bind").lower()
            index = len(self.stages) - 1
            # An agent without an ID is `default`; a secret without one has it from its target.
            mount_id = options.get("id", "default" if kind == "ssh" else "")
            if kind in {"secret", "ssh"} and mount_id:
                self.private_mounts.append(PrivateMount(kind, mount_id, instruction.line, index))
            if kind in _NO_SOURCE:
                continue
            if "from" in options:
                self.use(options["from"], f"RUN {flag}", Via.MOUNT, instruction.line)
            if "from" in options or kind == "bind":
                source = options.get("source", options.get("src", ""))
                self.mounts.append(RunMount(options.get("from", ""), source, instruction.line, index))

    def use(self, name: str, text: str, via: Via, line: int) -> None:
        if "$" in name:
            raise self.error(
                line,
                f"{text}: variables cannot be used in from=",
                f"name the image in a stage of its own, `FROM {name} AS NAME` above this stage,"
                " with the ARG above the first FROM, and write from=NAME here",
            )
        if not name:
            raise self.error(line, f"{text} names no image or stage", "write from=NAME")
        self.uses.append(_Use(name, via, line, len(self.stages) - 1))

    def finish(self, target: str | None) -> Dockerfile:
        if not self.stages:
            raise self.error(self.last_line, "the Dockerfile has no FROM", "add FROM and a base image")
        self.check_names()
        stages = tuple(
            replace(stage, sets_entrypoint=stage.index in self.entrypoints) for stage in self.stages
        )
        final = self.target(stages, target)
        needed = self.needed(final)
        bases = []
        for use in self.uses:
            try:
                base = self.outside(use)
            except DockerfileError as error:
                self.mistakes.setdefault(use.stage, error)
            else:
                bases += [] if base is None else [base]
        if wrong := needed & self.mistakes.keys():
            raise self.mistakes[min(wrong)]
        chain = [final]
        while (parent := chain[-1].parent) is not None:
            chain.append(stages[parent])
        return Dockerfile(
            stages,
            tuple(base for base in bases if base.stage <= final.index),
            final,
            any(stage.sets_entrypoint for stage in chain),
            chain[-1].base,
            needed,
            tuple(self.mounts),
            tuple(self.private_mounts),
            tuple(self.overlooked(bases, needed)),
            tuple(self.all_notes()),
        )

    def all_notes(self) -> Iterator[str]:
        for line, note in self.notes:
            yield f"{self.where}:{line}: {note}"
        for mistake in self.mistakes.values():
            yield f"{mistake.headline}; podman skips this stage"

    def check_names(self) -> None:
        """Raise DockerfileError for two stages of one name, of which podman 4.3.1 takes the last."""
        first_of: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.name in self.contexts.directories or stage.name in self.contexts.images:
                raise self.error(
                    stage.line,
                    f"stage {stage.name} has the name of a context in project.toml",
                    "give one of the two another name",
                )
            earlier = first_of.setdefault(stage.name.lower(), stage) if stage.name else stage
            if earlier is not stage:
                raise self.error(
                    stage.line,
                    f"stage {stage.name} was already defined in line {earlier.line}",
                    "give one of the two another name; capital letters make no difference",
                )

    def overlooked(
        self, bases: list[BaseUse], needed: frozenset[int]
    ) -> Iterator[tuple[Overlooked, int]]:
        """Yield the lines of needed stages of which podman's cache overlooks something."""
        for mount in self.mounts:
            if mount.stage in needed:
                stage = _stage_of(self.stages, mount.name, mount.stage)
                yield Overlooked.SOURCE if stage is None else Overlooked.STAGE, mount.line
        for index in sorted(needed & self.expanded.keys()):
            yield Overlooked.VARIABLE, self.expanded[index]
        used = {base.name for base in bases if base.stage in needed}
        for stage in self.stages:
            if stage.index in needed and stage.name in used:
                yield Overlooked.SHADOW, stage.line

    def needed(self, final: Stage) -> frozenset[int]:
        """Return the stages that the target is made of, itself included."""
        indices: set[int] = set()
        todo = [final.index]
        while todo:
            index = todo.pop()
            if index not in indices:
                indices.add(index)
                parent = self.stages[index].parent
                todo += [] if parent is None else [parent]
                for use in self.uses:
                    if use.stage == index and isinstance(use, _Use):
                        stage = _stage_of(self.stages, use.name, index)
                        todo += [] if stage is None else [stage.index]
        return frozenset(indices)

    def outside(self, use: _Use | BaseUse) -> BaseUse | None:
        """Return the use as one of an external image; None when it names a stage or scratch."""
        if isinstance(use, BaseUse):
            return use
        if _stage_of(self.stages, use.name, use.stage) is not None:
            return None
        if use.name.isascii() and use.name.isdecimal():
            raise self.error(
                use.line,
                f"there is no stage {use.name} above stage {use.stage}, in which this line stands",
                "stages are counted from 0; a name given with FROM … AS NAME is safer",
            )
        later = _stage_of(self.stages, use.name, len(self.stages))
        if later is not None:
            raise self.error(
                use.line,
                f"stage {use.name} begins in line {later.line} and is not finished here",
                "move that stage above this one, or give it a name that is not the image's",
            )
        if use.name == SCRATCH or use.name in self.contexts.directories:
            return None
        ImageReference.parse(use.name, where=f"{self.where}:{use.line}")
        return self.base(use.name, use.via, use.line, use.stage)

    def base(self, name: str, via: Via, line: int, stage: int, other_platform: bool = False) -> BaseUse:
        """Return the use of an external image; a context may stand for it."""
        image = self.contexts.image(name)
        written = "" if image is None else name
        return BaseUse(image or name, via, line, stage, other_platform, written)

    def target(self, stages: tuple[Stage, ...], target: str | None) -> Stage:
        if not target:
            return stages[-1]
        for stage in stages:
            if target.lower() == (stage.name.lower() or str(stage.index)):
                return stage
        names = [stage.name or str(stage.index) for stage in stages]
        raise DockerfileError(
            f"there is no stage {target!r}, which `target` in project.toml asks for",
            where=f"{self.where}:{stages[-1].line}",
            hint=f"the stages are: {', '.join(names)}",
        )

    def resolve(self, word: str, text: str, line: int) -> str:
        """Return a word of FROM with every variable replaced."""
        value = self.expand(word, text, line)
        if value.unset:
            name = value.unset[0]
            what = f"variable {name} has no value in {text}"
            if not _can_be_built_on(value.text, self.stages):
                raise self.error(line, what, self.how_to_set(name))
            self.notes.append((line, f"{what}, which is taken as {value.text}"))
        if not value.text:
            raise self.error(line, f"{text} is empty once its variables are replaced", "name an image")
        return value.text

    def how_to_set(self, name: str) -> str:
        if name in self.build_args:
            return (
                f"build_args in project.toml sets it, so declare it: `ARG {name}` above the first FROM"
            )
        if name in self.declared:
            return (
                f"give it a default, `ARG {name}=VALUE` above the first FROM,"
                " or set it under build_args in project.toml"
            )
        candidates = near(name, [*self.globals, *self.declared], 1)
        return (
            (f"did you mean {candidates[0]}? Otherwise " if candidates else "")
            + f"give it a default, `ARG {name}=VALUE` above the first FROM, or declare it there with"
            f" `ARG {name}` and set it under build_args in project.toml"
            "\n(FROM does not see an ARG or ENV that stands below a FROM)"
        )

    def expand(self, word: str, text: str, line: int) -> ExpandedText:
        try:
            return expand(word, self.escape, self.globals.get)
        except WordError as problem:
            raise self.error(
                line, f"{text}: {problem}", "write ${NAME}, ${NAME:-DEFAULT} or ${NAME:+ALTERNATIVE}"
            ) from None

    def error(self, line: int, what: str, hint: str) -> DockerfileError:
        return DockerfileError(what, where=f"{self.where}:{line}", hint=hint)


def _stage_of(stages: Sequence[Stage], name: str, above: int) -> Stage | None:
    if name.isascii() and name.isdecimal():
        return stages[int(name)] if len(name) <= _MOST_DIGITS and int(name) < above else None
    return _named(stages[:above], name)


def _named(stages: Sequence[Stage], name: str) -> Stage | None:
    return next((s for s in stages if s.name and s.name.lower() == name.lower()), None)


def _can_be_built_on(name: str, stages: Sequence[Stage]) -> bool:
    try:
        return _named(stages, name) is not None or bool(ImageReference.parse(name))
    except DockerfileError:
        return False


def variable_names(text: str) -> set[str]:
    """Return the names of the variables in a text, in quotes or not."""
    return set(_VARIABLE_NAME.findall(text))


def platform_arguments(architecture: str, build_args: Mapping[str, str]) -> dict[str, str]:
    """Return the arguments that FROM knows without ARG; build arguments override them."""
    values = _platform(architecture)
    return {name: build_args.get(name, value) for name, value in values.items()}


@functools.cache
def _platform(architecture: str) -> Mapping[str, str]:
    values = {
        "PLATFORM": machine.platform(architecture),
        "OS": "linux",
        "ARCH": machine.docker_name(architecture),
        "VARIANT": machine.DOCKER_NAMES.get(architecture, ("", ""))[1],
    }
    return {f"{end}{key}": value for key, value in values.items() for end in ("BUILD", "TARGET")}


def _values(texts: Mapping[str, str]) -> dict[str, ExpandedText]:
    return {name: ExpandedText(text) for name, text in texts.items()}
