"""Dockerfiles: their stages, and the images from outside that they are built from.

The rules are BuildKit's. Whether a base is a project of ours or comes from a registry is not known
here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from rc_tasks.errors import DockerfileError
from rc_tasks.model.instructions import Instruction, instructions
from rc_tasks.model.reference import ImageReference, near
from rc_tasks.model.words import Value, WordError, expand, split

KNOWN = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
    *("MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
SCRATCH = "scratch"

# What Docker calls the machines that the kernel names otherwise, with the variant.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
}
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
# Python does not read numbers of thousands of digits.
_MOST_DIGITS = 9
_NO_SOURCE = frozenset({"tmpfs", "secret", "ssh"})  # mounts that come from no image
_NOT_ON_BUILD = frozenset({"FROM", "MAINTAINER", "ONBUILD"})


class Via(StrEnum):
    """How an image is used."""

    FROM = "FROM"
    COPY = "COPY"
    MOUNT = "MOUNT"


@dataclass(frozen=True, slots=True)
class Base:
    """One use of an image from outside: its name with variables replaced, else as written.

    `foreign`: its --platform is not the one of this machine.
    """

    name: str
    via: Via
    line: int
    stage: int
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM section. It starts from `base`, from the stage `parent`, or from nothing (scratch).

    `name` is as written, and empty when there is none.
    """

    index: int
    name: str
    line: int
    base: Base | None
    parent: int | None
    sets_entrypoint: bool


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """All stages, and what is used by those up to the target.

    `bases` has every use in order; `needed` are the indices of the stages that the target is made
    of, as podman and BuildKit pass over the others. `sets_entrypoint` and `final_base` follow the
    target down through the stages that it is built on.
    """

    stages: tuple[Stage, ...]
    bases: tuple[Base, ...]
    final: Stage
    sets_entrypoint: bool
    final_base: Base | None
    needed: frozenset[int] = frozenset()


def parse(
    text: bytes,
    *,
    where: str,
    build_args: Mapping[str, str],
    architecture: str,
    target: str | None = None,
) -> Dockerfile:
    """Read a Dockerfile; `architecture` is the machine as uname(2) names it.

    `target` is a stage's name or, where it has none, its index. Raises DockerfileError, whose
    `where` is this one with the line.
    """
    source = instructions(text, where=where)
    if not source.instructions:
        raise DockerfileError(
            "the Dockerfile has no FROM",
            where=f"{where}:1",
            hint="start it with FROM and a base image",
        )
    reader = _Reader(where, source.escape, build_args, architecture)
    for instruction in source.instructions:
        reader.read(instruction)
    return reader.finish(target)


@dataclass(frozen=True, slots=True)
class _Use:
    """An image or a stage that COPY or RUN --mount names."""

    name: str
    via: Via
    line: int
    stage: int


class _Reader:
    def __init__(
        self, where: str, escape: str, build_args: Mapping[str, str], architecture: str
    ) -> None:
        self.where = where
        self.escape = escape
        self.build_args = build_args
        self.globals = _platform(architecture, build_args)
        self.declared: set[str] = set()
        self.stages: list[Stage] = []
        self.by_name: dict[str, Stage] = {}
        self.entrypoints: set[int] = set()
        self.uses: list[_Use | Base] = []
        self.native = _platform(architecture, {})["BUILDPLATFORM"].text
        self.last_line = 1

    def read(self, instruction: Instruction) -> None:
        self.last_line = instruction.line
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

    def check_name(self, instruction: Instruction) -> None:
        name = instruction.name
        if name == "ONBUILD":
            # The trigger runs in builds on top of this image, so what it names is no base of this one.
            name = instruction.value.partition(" ")[0].partition("\t")[0].upper()
            if name in _NOT_ON_BUILD or not name:
                raise self.error(
                    instruction.line,
                    f"ONBUILD cannot trigger {name or 'nothing'}",
                    "write the instruction that is to run in builds on top of this image",
                )
        if name not in KNOWN:
            meant = near(name, KNOWN)
            raise self.error(
                instruction.line,
                f"{name} is not an instruction",
                f"did you mean {' or '.join(meant)}?"
                if meant
                else "a command of the shell needs RUN before it",
            )

    def read_global_arg(self, instruction: Instruction) -> None:
        words = split(instruction.value, self.escape)
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
                self.globals[name] = Value(self.build_args[name])
            elif has_default:
                self.globals[name] = self.expand(default, f"ARG {word}", instruction.line)

    def read_from(self, instruction: Instruction) -> None:
        line, index = instruction.line, len(self.stages)
        words = instruction.value.split()
        named = len(words) == 3 and words[1].lower() == "as"
        if not named and len(words) != 1:
            raise self.error(
                line,
                f"FROM has {len(words)} words after it, not one image, or IMAGE AS NAME"
                if words
                else "FROM names no image",
                "write FROM IMAGE or FROM IMAGE AS STAGE",
            )
        foreign = False
        for flag in instruction.flags:
            key, _, platform = flag.partition("=")
            if key != "--platform":
                raise self.error(
                    line, f"FROM does not know {key}", "its only flag is --platform=OS/ARCH"
                )
            foreign = self.resolve(platform, f"--platform={platform}", line) != self.native
        image = self.resolve(words[0], f"FROM {words[0]}", line)
        parent = self.by_name.get(image.lower())
        base = None
        if parent is None and image != SCRATCH:
            ImageReference.parse(image, where=f"{self.where}:{line}")
            base = Base(image, Via.FROM, line, index, foreign)
            self.uses.append(base)
        name = words[2] if named else ""
        stage = Stage(index, name, line, base, parent.index if parent else None, False)
        if named:
            if not _STAGE_NAME.fullmatch(name.lower()):
                raise self.error(
                    line,
                    f"{name!r} cannot be the name of a stage",
                    "start with a letter and use letters, digits, . _ -",
                )
            earlier = self.by_name.setdefault(name.lower(), stage)
            if earlier is not stage:
                raise self.error(
                    line,
                    f"stage {name} was already defined in line {earlier.line}",
                    "give one of the two another name; capital letters make no difference",
                )
        self.stages.append(stage)

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
            key, _, mount = flag.partition("=")
            if key != "--mount":
                continue
            options = {}
            for field in mount.split(","):
                option, _, value = field.strip('"').partition("=")
                options[option.strip().lower()] = value
            if "from" in options and options.get("type", "").lower() not in _NO_SOURCE:
                self.use(options["from"], f"RUN {flag}", Via.MOUNT, instruction.line)

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
        stages = tuple(
            Stage(s.index, s.name, s.line, s.base, s.parent, s.index in self.entrypoints)
            for s in self.stages
        )
        bases = [base for use in self.uses if (base := self.outside(use)) is not None]
        final = self.target(stages, target)
        chain = [final]
        while (parent := chain[-1].parent) is not None:
            chain.append(stages[parent])
        return Dockerfile(
            stages,
            tuple(base for base in bases if base.stage <= final.index),
            final,
            any(stage.sets_entrypoint for stage in chain),
            chain[-1].base,
            self.needed(final),
        )

    def needed(self, final: Stage) -> frozenset[int]:
        """The stages that the target is made of, itself included."""
        found: set[int] = set()
        todo = [final.index]
        while todo:
            index = todo.pop()
            if index not in found:
                found.add(index)
                parent = self.stages[index].parent
                todo += [] if parent is None else [parent]
                for use in self.uses:
                    if use.stage == index and isinstance(use, _Use) and self.outside(use) is None:
                        stage = self.by_name.get(use.name.lower())
                        if stage is not None:
                            todo.append(stage.index)
                        elif use.name != SCRATCH:
                            todo.append(int(use.name))
        return frozenset(found)

    def outside(self, use: _Use | Base) -> Base | None:
        """The use as one of an image from outside; None when it is a stage or nothing."""
        if isinstance(use, Base):
            return use
        if use.name.isascii() and use.name.isdecimal():
            if len(use.name) <= _MOST_DIGITS and int(use.name) < use.stage:
                return None
            raise self.error(
                use.line,
                f"there is no stage {use.name} above stage {use.stage}, in which this line stands",
                "stages are counted from 0; a name given with FROM … AS NAME is safer",
            )
        stage = self.by_name.get(use.name.lower())
        if stage is not None:
            if stage.index < use.stage:
                return None
            raise self.error(
                use.line,
                f"stage {use.name} begins in line {stage.line} and is not finished here",
                "move that stage above this one, or give it a name that is not the image's",
            )
        if use.name == SCRATCH:
            return None
        ImageReference.parse(use.name, where=f"{self.where}:{use.line}")
        return Base(use.name, use.via, use.line, use.stage)

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
        """A word of FROM with every variable replaced."""
        value = self.expand(word, text, line)
        if value.unset:
            name = value.unset[0]
            what = f"variable {name} has no value in {text}"
            raise self.error(line, what, self.how_to_set(name))
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
        meant = near(name, [*self.globals, *self.declared], 1)
        return (
            (f"did you mean {meant[0]}? Otherwise " if meant else "")
            + f"give it a default, `ARG {name}=VALUE` above the first FROM, or declare it there with"
            f" `ARG {name}` and set it under build_args in project.toml"
            "\n(FROM does not see an ARG or ENV that stands below a FROM)"
        )

    def expand(self, word: str, text: str, line: int) -> Value:
        try:
            return expand(word, self.escape, self.globals.get)
        except WordError as problem:
            raise self.error(
                line, f"{text}: {problem}", "write ${NAME}, ${NAME:-DEFAULT} or ${NAME:+ALTERNATIVE}"
            ) from None

    def error(self, line: int, what: str, hint: str) -> DockerfileError:
        return DockerfileError(what, where=f"{self.where}:{line}", hint=hint)


def _platform(architecture: str, build_args: Mapping[str, str]) -> dict[str, Value]:
    """The arguments that need no ARG above FROM; build arguments override them."""
    machine, variant = _ARCHITECTURES.get(architecture, (architecture, ""))
    values = {
        "PLATFORM": "/".join(filter(None, ("linux", machine, variant))),
        "OS": "linux",
        "ARCH": machine,
        "VARIANT": variant,
    }
    return {
        name: Value(build_args.get(name, value))
        for key, value in values.items()
        for name in (f"BUILD{key}", f"TARGET{key}")
    }
