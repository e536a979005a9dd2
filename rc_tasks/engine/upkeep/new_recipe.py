"""Recipe of a new project: what `doit new` writes into its project.toml, and the checks before that."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import ProjectError
from rc_tasks.model.config import matrix
from rc_tasks.model.config.project_text import path_from, rendered
from rc_tasks.model.dockerfile.instructions import Instruction
from rc_tasks.model.dockerfile.parser import split_text
from rc_tasks.model.graph.project import PROJECTS
from rc_tasks.model.reference import near
from rc_tasks.state.checkout import DODO, Checkout, read_dockerfile
from rc_tasks.tools import git

# Names that people give to Dockerfiles; of some, an ignore file or a template has the name too.
_PATTERNS = ("Dockerfile", "Dockerfile.*", "*.Dockerfile", "Containerfile*")
_NO_DOCKERFILES = (".dockerignore", ".containerignore", ".j2", ".md")
# Directories whose Dockerfiles are rarely meant.
_OTHERS = frozenset({"test", "tests", "testdata"})
_TEMPLATES = "templates"


class NewRecipe(Struct, frozen=True):
    """What is not as in a project that has its Dockerfile and its files in its own directory.

    `dockerfile` and `context` are relative to the checkout, and empty for those of the project. `axes`
    are those of a matrix.
    """

    dockerfile: str = ""
    context: str = ""
    target: str = ""
    axes: Mapping[str, tuple[str, ...]] = {}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The build arguments that the axes set in a Dockerfile of the project's own."""
        return tuple(map(_argument, self.axes))


def dockerfiles_elsewhere(checkout: Checkout) -> list[str]:
    """Return the Dockerfiles of the repository that belong to no project, relative to the checkout.

    Those of tests are left out.
    """
    listed = git.files(checkout.root, *(f"**/{pattern}" for pattern in _PATTERNS))
    projects = [node.project for node in checkout.graph.images.values()]
    own = {project.shown_dockerfile for project in projects if project.recipe is None}
    return [
        path
        for path in listed
        if path not in own
        and not path.startswith((f"{PROJECTS}/", f"{_TEMPLATES}/"))
        and not path.lower().endswith(_NO_DOCKERFILES)
        and _OTHERS.isdisjoint(path.split("/"))
        and os.path.isfile(checkout.root / path)
        and not _is_in_another_checkout(checkout.root, path)
    ]


def path_in(checkout: Checkout, written: str, option: str) -> str:
    """Return a path of the command line, relative to the checkout.

    Raise ProjectError unless it is a file, or for the context a directory, within the checkout.
    """
    is_context = option == "--context"
    real = os.path.realpath(written)
    noun = "directory" if is_context else "file"
    if not (os.path.isdir(real) if is_context else os.path.isfile(real)):
        raise ProjectError(
            f"there is no such {noun}",
            where=written,
            hint=f"name a {noun} after {option}; a relative path begins at the working directory",
        )
    if not Path(real).is_relative_to(checkout.root):
        raise ProjectError(
            f"is not in this checkout, which is {checkout.root}",
            where=written,
            hint="copy or clone it into the checkout, and name it there",
        )
    path = os.path.relpath(real, checkout.root)
    if not path.isprintable():
        raise ProjectError("has characters that TOML cannot hold", where=path, hint="rename it")
    return path


def axes_of(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the axes of `AXIS=V1,V2`. Raise ProjectError for another form or a wrong matrix."""
    axes: dict[str, tuple[str, ...]] = {}
    for word in words:
        axis, equals, values = word.partition("=")
        if not equals or axis in axes or axis in matrix.KEYS:
            taken = "is given twice" if axis in axes else "expected AXIS=VALUE,VALUE"
            raise ProjectError(
                taken, where=f"--matrix {word}", hint="write it like --matrix cuda=12.8,13.0"
            )
        axes[axis] = tuple(values.split(","))
    if axes:
        try:
            matrix.parse_matrix({axis: list(values) for axis, values in axes.items()})
        except ValueError as error:
            raise ProjectError(
                str(error), where="--matrix", hint="write it like --matrix cuda=12.8,13.0"
            ) from None
    return axes


def usual_context(checkout: Checkout, dockerfile: str) -> str:
    """Return the checkout if a Dockerfile copies only what is there, else the Dockerfile's directory."""
    sources = list(_Contents(checkout, dockerfile).sources)
    if sources and all(os.path.lexists(checkout.root / source) for source in sources):
        return "."
    return os.path.dirname(dockerfile) or "."


def project_text(checkout: Checkout, name: str, recipe: NewRecipe) -> str:
    """Return the text of a project.toml; empty if there is nothing to say.

    Raise ProjectError for a stage or an argument that the Dockerfile lacks, and for a matrix whose
    name has a version.
    """
    directory = f"{PROJECTS}/{name}"
    group, _, version = name.partition(":")
    if version and recipe.axes:
        raise ProjectError(
            f"the images of a matrix are named {group}:VERSION, and {name} has a version already",
            hint=f"name it without one: {group}",
        )
    arguments = {axis: _argument(axis) for axis in recipe.axes}
    if recipe.dockerfile:
        contents = _Contents(checkout, recipe.dockerfile)
        if recipe.target:
            contents.require_stage(recipe.target)
        arguments = {axis: contents.argument(axis) for axis in recipe.axes}
    for argument in arguments.values():
        axes = [axis for axis, other in arguments.items() if other == argument]
        if len(axes) > 1:
            raise ProjectError(
                f"the axes {' and '.join(axes)} would both set ARG {argument}",
                where="--matrix",
                hint="write it like --matrix cuda=12.8,13.0",
            )
    keys: dict[str, object] = {
        "dockerfile": recipe.dockerfile and path_from(directory, recipe.dockerfile),
        "context": recipe.context and path_from(directory, recipe.context),
        "target": recipe.target,
        "build_args": {argument: f"{{{axis}}}" for axis, argument in arguments.items()},
        "matrix": {axis: list(values) for axis, values in recipe.axes.items()},
    }
    return rendered({key: value for key, value in keys.items() if value}).lstrip("\n")


class _Contents:
    """What a Dockerfile says of its stages, arguments and files, whatever the arguments are."""

    def __init__(self, checkout: Checkout, dockerfile: str) -> None:
        self._root = checkout.root
        self._dockerfile = dockerfile

    @cached_property
    def _instructions(self) -> tuple[Instruction, ...]:
        text = read_dockerfile(self._root, self._dockerfile)
        return split_text(text, self._dockerfile).instructions

    @property
    def sources(self) -> Iterator[str]:
        """The paths in the context that COPY and ADD name, up to the first wildcard or variable."""
        for instruction in self._instructions:
            flags = " ".join(instruction.flags)
            if instruction.name not in {"COPY", "ADD"} or "--from=" in flags:
                continue
            words = instruction.value.strip("[]").replace('"', " ").replace(",", " ").split()
            for word in words[:-1]:
                if "://" in word or word.startswith(("<<", "git@")):
                    continue
                plain = word[: min((word.index(sign) for sign in "$*?[" if sign in word), default=None)]
                # Of `src/*.py`, the directory has to be there.
                yield (plain if plain == word else plain.rpartition("/")[0]).lstrip("/") or "."

    def require_stage(self, target: str) -> None:
        """Raise ProjectError unless there is such a stage, by name or number."""
        froms = [line.value.split() for line in self._instructions if line.name == "FROM"]
        stages = [
            words[2] if len(words) == 3 and words[1].lower() == "as" else str(number)
            for number, words in enumerate(froms)
        ]
        if target.lower() not in map(str.lower, stages):
            raise ProjectError(
                f"there is no stage {target!r}",
                where=self._dockerfile,
                hint=f"the stages are: {', '.join(stages)}",
            )

    def argument(self, axis: str) -> str:
        """Return the ARG that an axis sets: one of its name, in capitals or not. Raise ProjectError."""
        lines = (line.value.split() for line in self._instructions if line.name == "ARG")
        declared = dict.fromkeys(word.partition("=")[0] for words in lines for word in words)
        argument = _argument(axis)
        for name in declared:
            if name.upper() == argument:
                return name
        close = near(argument, declared) or tuple(declared)
        raise ProjectError(
            f"there is no ARG {argument}, which the axis {axis} would set",
            where=self._dockerfile,
            hint=f"name the axis after one of: {', '.join(close)}"
            if close
            else f"add a line `ARG {argument}` below FROM",
        )


def _argument(axis: str) -> str:
    return axis.upper().replace("-", "_")


def _is_in_another_checkout(root: Path, path: str) -> bool:
    """Return whether a file is in a checkout within the checkout, such as an example."""
    above = Path(path).parents
    return any(
        (root / directory / DODO).exists() or (root / directory / PROJECTS).is_dir()
        for directory in above
        if directory != Path()
    )
