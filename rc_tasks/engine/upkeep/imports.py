"""Project files that `doit import` writes: made from recipes, compared with what is there, written."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Set
from enum import StrEnum
from pathlib import Path

from msgspec import Struct, to_builtins

from rc_tasks.errors import SettingsError
from rc_tasks.model.config.project_text import path_from, rendered
from rc_tasks.model.config.project_toml import ProjectOptions, Secret
from rc_tasks.model.graph.project import DOCKERFILE, DOCKERFILES, PROJECT_TOML, PROJECTS
from rc_tasks.model.imported.project import (
    ContextKind,
    ImageBuild,
    NamedContext,
    NotTaken,
    ProjectRecipe,
    fill,
)
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import open_up, put_in_place, refused, write_atomically
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.safe_read import read_bytes

# The keys that an import may write. All others in a project.toml are the user's.
_KEYS = ("dockerfile", "context", "target", "arch", "ssh", "secrets", "build_args", "contexts", "matrix")
_HINT = (
    "correct the path; it begins at the directory of a compose file, or, in a bake file, at the working"
    " directory"
)


class FileState(StrEnum):
    """What an import does with a file: write it, leave it as it is, or refuse to overwrite it."""

    NEW = "new"
    SAME = "same"
    DIFFERENT = "different"


class ProjectFile(Struct, frozen=True):
    """A project.toml: its text from the recipe, and the differences of the file that is there."""

    name: str
    directory: str
    source: str
    images: tuple[str, ...]
    state: FileState
    differences: tuple[str, ...]
    text: str


class AliasLink(Struct, frozen=True):
    """A symlink in projects/ to the directory of a project."""

    name: str
    target: str
    state: FileState


class Plan(Struct, frozen=True):
    """All that an import writes, with what it cannot take."""

    projects: tuple[ProjectFile, ...] = ()
    aliases: tuple[AliasLink, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def states(self) -> list[FileState]:
        """The states of all files and links."""
        return [*(file.state for file in self.projects), *(link.state for link in self.aliases)]


class _PathError(Exception):
    """A path that cannot be part of a project."""


def plan(checkout: Checkout, recipes: Iterable[ProjectRecipe], base: Path, origin: str) -> Plan:
    """Return what an import of recipes would write; change nothing.

    Paths of the recipes are relative to `base`. `origin` names the file for the first line of each text.
    """
    projects: list[ProjectFile] = []
    aliases: list[AliasLink] = []
    not_taken: list[NotTaken] = []
    possible: list[ProjectRecipe] = []
    for recipe in recipes:
        try:
            _require_parts(checkout.root, recipe, base)
            possible.append(recipe)
        except _PathError as error:
            what = f"{recipe.build.source!r} is not taken: {error}"
            not_taken.append(NotTaken(recipe.build.where, what, _HINT))
    images = {*checkout.graph.names(), *(image for recipe in possible for image in recipe.images)}
    for recipe in possible:
        build = recipe.build
        directory = directory_of(checkout, recipe.name) or f"{PROJECTS}/{recipe.name}"
        lost, values = _values(checkout.root, recipe, base, directory, images)
        not_taken += lost
        text = f"# From {toml_text.dump(build.source)} in {origin}.\n{rendered(values)}"
        state, differences = _compared(checkout.root / directory, directory, values)
        projects.append(
            ProjectFile(recipe.name, directory, build.source, recipe.images, state, differences, text)
        )
        for alias in recipe.aliases:
            aliases.append(AliasLink(alias, recipe.name, _link_state(checkout, alias, recipe.name)))
    return Plan(tuple(projects), tuple(aliases), tuple(not_taken))


def write(checkout: Checkout, planned: Plan) -> None:
    """Write the new files and links, each complete or not at all. Raise RcError and OSError."""
    parent = checkout.root / PROJECTS
    try:
        parent.mkdir(exist_ok=True)
        for project in planned.projects:
            directory = checkout.root / project.directory
            if project.state is not FileState.NEW:
                continue
            if directory.is_dir():
                write_atomically(directory / PROJECT_TOML, project.text)
                continue
            # After a kill, a leftover whose name begins with a dot is not taken for a project.
            with tempfile.TemporaryDirectory(prefix=".import.", dir=parent) as scratch:
                made = Path(scratch, project.name)
                made.mkdir()
                write_atomically(made / PROJECT_TOML, project.text)
                open_up(made)
                put_in_place(made, directory)
        for alias in planned.aliases:
            if alias.state is FileState.NEW:
                os.symlink(alias.target, parent / alias.name)
    except OSError as error:
        raise refused(error, parent) or error from None


def directory_of(checkout: Checkout, name: str) -> str | None:
    """Return the directory of a project that exists, relative to the checkout."""
    if (node := checkout.graph.images.get(name)) is not None:
        return node.project.path
    directory = checkout.root / PROJECTS / name
    is_project = directory.is_dir() and not directory.is_symlink()
    return f"{PROJECTS}/{name}" if is_project else None


def _values(
    root: Path, recipe: ProjectRecipe, base: Path, directory: str, images: Set[str]
) -> tuple[list[NotTaken], dict[str, object]]:
    """Return what cannot be in a project.toml, and its keys in their order.

    `images` are those that a context may name.
    """
    build = recipe.build
    context, dockerfile = _paths(root, recipe, base)
    lost: list[NotTaken] = []
    contexts: dict[str, str] = {}
    for name, item in build.contexts.items():
        try:
            contexts[name] = _context(root, item, base, directory, images)
        except _PathError as error:
            lost.append(NotTaken(build.where, f"the context {name!r} is not taken: {error}", _HINT))
    secrets: list[str] = []
    for secret in build.secrets:
        written = _secret(secret, base, root / directory)
        if written is None:
            what = (
                f"the secret {secret.id!r} of {build.source!r} is not taken: project.toml cannot name it"
            )
            lost.append(NotTaken(build.where, what, "name it with letters, digits, dots and dashes"))
        else:
            secrets.append(written)
    matrix: dict[str, object] = {axis: list(items) for axis, items in recipe.axes.items()}
    keys: dict[str, object] = {
        "dockerfile": ""
        if dockerfile == f"{directory}/{DOCKERFILE}"
        else path_from(directory, dockerfile),
        "context": "" if context == directory else path_from(directory, context),
        "target": build.target,
        "arch": list(build.arch),
        "ssh": [_ssh(access, base, root / directory) for access in build.ssh],
        "secrets": secrets,
        "build_args": dict(build.build_args),
        "contexts": contexts,
        "matrix": {**matrix, "version": recipe.version} if matrix else {},
    }
    return lost, {key: value for key, value in keys.items() if value}


def _require_parts(root: Path, recipe: ProjectRecipe, base: Path) -> None:
    """Raise _PathError unless the context and Dockerfile of each image are in the checkout."""
    _require_text(recipe.build)
    context, dockerfile = _paths(root, recipe, base)
    for values in _rows(recipe):
        _require(root, fill(context, values), "directory")
        _require(root, fill(dockerfile, values), "file")


def _paths(root: Path, recipe: ProjectRecipe, base: Path) -> tuple[str, str]:
    """Return the paths of the context and the Dockerfile, relative to the checkout."""
    context = base / recipe.build.context
    return _relative(root, context), _relative(root, context / recipe.build.dockerfile)


def _rows(recipe: ProjectRecipe) -> Iterator[dict[str, str]]:
    import itertools

    for row in itertools.product(*recipe.axes.values()):
        yield dict(zip(recipe.axes, row, strict=True))


def _relative(root: Path, path: Path) -> str:
    """Return a path relative to the checkout, without looking at its links."""
    return os.path.relpath(os.path.normpath(path), root)


def _require(root: Path, path: str, kind: str) -> None:
    """Raise _PathError unless a path is a file or directory of the checkout, with its links followed."""
    real = os.path.realpath(root / path)
    if not Path(real).is_relative_to(root):
        raise _PathError(f"{path} leads out of the checkout")
    if not (os.path.isdir(real) if kind == "directory" else os.path.isfile(real)):
        raise _PathError(f"there is no {kind} {path} in the checkout")


def _require_text(build: ImageBuild) -> None:
    """Raise _PathError for a text that neither TOML nor an argument can hold."""
    if any(toml_schema.NOT_TEXT.search(text) for text in _texts(to_builtins(build))):
        raise _PathError("a text in it has a NUL, or is not UTF-8")


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, item in value.items():
                yield key
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


def _context(root: Path, context: NamedContext, base: Path, directory: str, images: Set[str]) -> str:
    match context.kind:
        case ContextKind.BUILD if context.value not in images:
            raise _PathError(f"the image {context.value} is not imported")
        case ContextKind.BUILD:
            return f"image:{context.value}"
        case ContextKind.REGISTRY:
            return context.value
        case ContextKind.DIRECTORY:
            path = _relative(root, base / context.value)
            _require(root, path, "directory")
            return path_from(directory, path)


def _secret(secret: Secret, base: Path, directory: Path) -> str | None:
    """Return a secret as project.toml writes it, or None when it cannot."""
    if secret.variable:
        text = f"id={secret.id},env={secret.variable}"
    elif secret.file.startswith(("~/", "/")):
        text = f"id={secret.id},src={secret.file}"
    else:
        text = f"id={secret.id},src={os.path.relpath(base / secret.file, directory)}"
    try:
        toml_schema.parse(toml_schema.leaves(ProjectOptions)["secrets",], [text])
    except ValueError:
        return None
    return text


def _ssh(access: str, base: Path, directory: Path) -> str:
    """Return an entry of `ssh` with its paths relative to the project, except those of the home."""
    name, is_given, paths = access.partition("=")
    if not is_given:
        return access
    own = (
        path if path.startswith(("~", "/", "$")) or not path else os.path.relpath(base / path, directory)
        for path in paths.split(",")
    )
    return f"{name}={','.join(own)}"


def _compared(
    directory: Path, shown: str, values: dict[str, object]
) -> tuple[FileState, tuple[str, ...]]:
    """Return the state of a project's file, and how it differs from what an import would write."""
    where = f"{shown}/{PROJECT_TOML}"
    old: dict[str, object] = {}
    try:
        text = toml_text.decode(read_bytes(directory / PROJECT_TOML), where, SettingsError)
        old = toml_text.loads(text, where, SettingsError)
    except FileNotFoundError:
        # A Dockerfile in the directory is built today. With this file, other images would be built.
        has_dockerfile = any(os.path.lexists(directory / file) for file in DOCKERFILES)
        if values and not (has_dockerfile and {"dockerfile", "context", "matrix"} & set(values)):
            return FileState.NEW, ()
    except OSError as error:
        return FileState.DIFFERENT, (f"it cannot be read: {error.strerror}",)
    except SettingsError as error:
        return FileState.DIFFERENT, (error.headline,)
    differences = tuple(_differences({key: old[key] for key in _KEYS if key in old}, values))
    return FileState.DIFFERENT if differences else FileState.SAME, differences


def _differences(old: dict[str, object], new: dict[str, object]) -> Iterator[str]:
    before, after = dict(toml_text.flat(old)), dict(toml_text.flat(new))
    for path in dict.fromkeys((*after, *before)):
        # A build argument may be a number or a boolean in project.toml.
        is_same = path[0] == "build_args" and path in before and _plain(before[path]) == after.get(path)
        if before.get(path) != after.get(path) and not is_same:
            shown = [
                toml_text.dump(side[path]) if path in side else "not set" for side in (before, after)
            ]
            yield f"{toml_schema.name(path)}: {shown[0]}, and {shown[1]} in the imported file"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else toml_text.dump(value)


def _link_state(checkout: Checkout, alias: str, target: str) -> FileState:
    path = checkout.root / PROJECTS / alias
    if not os.path.lexists(path):
        return FileState.NEW
    return FileState.SAME if path.is_symlink() and os.readlink(path) == target else FileState.DIFFERENT
