"""Projects of a bake or compose file: what it says of each image, in the terms of project.toml."""

import itertools
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from rc_tasks.errors import ImportedFileError
from rc_tasks.model.config.project_toml import Secret
from rc_tasks.util.toml_schema import Problem, failure

_AXIS = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
ARG_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLATFORM_HINT = "images are for linux/arm64 and linux/amd64"
REMOTE_HINT = "fetch it into the checkout, for example as a git submodule, and name the directory"
UNKNOWN_HINT = "`doit import` does not know it"
# What to do for a key of bake that project.toml does not have; compose writes _ for the dash.
HINTS = {
    "labels": "write them as LABEL into the Dockerfile",
    "network": "set podman.network, see `doit settings`",
    "entitlements": "run what needs them before the build, or in the job",
    "privileged": "run what needs it before the build, or in the job",
    "extra-hosts": "write the address where the Dockerfile uses the name",
    "shm-size": "set it in the job that needs it",
    "ulimits": "set them in the job that needs them",
}
# The fields of a build in which project.toml may name an axis.
_TEMPLATES = ("context", "dockerfile", "target", "build_args")
# Architectures that project.toml names, by the platform of Docker.
_ARCHITECTURES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64", "linux/arm64/v8": "aarch64"}


class NotTaken(Struct, frozen=True):
    """A part of a file that project.toml cannot say, and what the user may do."""

    where: str
    what: str
    hint: str


class ContextKind(StrEnum):
    """What a named context is: a directory, another build of the file, or an image of a registry."""

    DIRECTORY = "directory"
    BUILD = "build"
    REGISTRY = "registry"


class NamedContext(Struct, frozen=True):
    """A named context: the path, the name of the build, or the reference."""

    kind: ContextKind
    value: str


class ImageBuild(Struct, frozen=True):
    """A target of bake or a service of compose. `source` is its name there, `where` its `path:line`.

    Paths are as the file has them; `dockerfile` is relative to `context`.
    """

    source: str
    where: str
    tags: tuple[str, ...] = ()
    context: str = "."
    dockerfile: str = "Dockerfile"
    target: str = ""
    build_args: dict[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()
    ssh: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()
    contexts: dict[str, NamedContext] = field(default_factory=dict)

    def with_axes(self, values: Mapping[str, str]) -> "ImageBuild":
        """Return the build with each `{axis}` replaced by its value."""
        return replace(self, **{key: _filled(item, values) for key, item in asdict(self).items()})

    def same_image(self, other: "ImageBuild") -> bool:
        """Return whether two builds differ at most in their names."""
        return replace(other, source=self.source, where=self.where, tags=self.tags) == self


class MatrixBuild(Struct, frozen=True):
    """One build for each combination of the values of axes, in the order of `combinations`.

    `template` has `{axis}` for the values; it need not be right, see `is_right`.
    """

    source: str
    where: str
    axes: dict[str, tuple[str, ...]]
    template: ImageBuild
    builds: tuple[ImageBuild, ...]

    @property
    def combinations(self) -> list[dict[str, str]]:
        """The values of the axes for each build."""
        return [dict(zip(self.axes, row, strict=True)) for row in itertools.product(*self.axes.values())]

    @property
    def is_right(self) -> bool:
        """Whether the template gives each of the builds, and has axes only where project.toml may."""
        constant = {
            key: value
            for key, value in asdict(self.template).items()
            if key not in {*_TEMPLATES, "tags", "source"}
        }
        return (
            not {"version", "exclude"} & set(self.axes)
            and not any(map(_has_brace, self.builds))
            and not _has_brace(constant)
            and not any(map(_has_brace, self.template.build_args))
            and all(
                replace(self.template.with_axes(values), source=build.source) == build
                for values, build in zip(self.combinations, self.builds, strict=True)
            )
        )


class ProjectRecipe(Struct, frozen=True):
    """A project: its name, what it builds, and its aliases.

    Of a matrix, `axes` has the values, `version` names the images, and the build has `{axis}` in it.
    `images` are the names of all images. Contexts of kind BUILD name images of the checkout.
    """

    name: str
    build: ImageBuild
    images: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    version: str = ""


class Recipes(Struct, frozen=True):
    """Everything that a file says. `notes` are sentences about the whole file."""

    recipes: tuple[ProjectRecipe, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()
    notes: tuple[str, ...] = ()


def require_correct(mistakes: Sequence[ImportedFileError], subject: str) -> None:
    """Raise one ImportedFileError for all mistakes in a file, each of them once."""
    unique = {str(error): error for error in mistakes}.values()
    if unique:
        problems = [Problem(str(error.where), error.what, error.hint) for error in unique]
        raise failure(ImportedFileError, problems, subject)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a text with each `{axis}` replaced by its value."""
    return _AXIS.sub(lambda match: values.get(match[1], match[0]), template)


def architectures(platforms: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the architectures of platforms of Docker, and the platforms that no node has.

    The platform `local` is that of the machine which builds, as without any.
    """
    names = {_ARCHITECTURES[platform] for platform in platforms if platform in _ARCHITECTURES}
    others = [platform for platform in platforms if platform not in {*_ARCHITECTURES, "local"}]
    return tuple(sorted(names)), tuple(others)


def named_context(value: str, build_prefix: str) -> NamedContext | None:
    """Return a named context, or None for one on another host.

    `build_prefix` stands before the name of another build: `target:` in bake, `service:` in compose.
    """
    if value.startswith(build_prefix):
        return NamedContext(ContextKind.BUILD, value.removeprefix(build_prefix))
    if value.startswith("docker-image://"):
        reference = _full_reference(value.removeprefix("docker-image://"))
        return NamedContext(ContextKind.REGISTRY, reference)
    path = value.removeprefix("cwd://") or "."
    return None if is_remote(path) else NamedContext(ContextKind.DIRECTORY, path)


def _full_reference(reference: str) -> str:
    """Return a reference with the registry and namespace that Docker adds to short ones."""
    first, slash, _ = reference.partition("/")
    if not slash:
        return f"docker.io/library/{reference}"
    is_host = "." in first or ":" in first or first == "localhost"
    return reference if is_host else f"docker.io/{reference}"


def is_remote(context: str) -> bool:
    """Return whether a context is a repository or an archive on another host."""
    return "://" in context or context.startswith(("git@", "github.com/")) or context == "-"


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return fill(value, values)
    if isinstance(value, tuple):
        return tuple(_filled(item, values) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value


def _has_brace(value: object) -> bool:
    """Return whether a text in a value has a brace, which a matrix reads as the name of an axis."""
    if isinstance(value, str):
        return "{" in value or "}" in value
    if isinstance(value, Struct):
        return _has_brace(asdict(value))
    if isinstance(value, dict):
        return any(map(_has_brace, (*value, *value.values())))
    return isinstance(value, tuple) and any(map(_has_brace, value))
