"""Project directories of a checkout, and every path in them."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import ProjectError, RcError
from rc_tasks.model.machine import without_machine
from rc_tasks.model.reference import name_problem
from rc_tasks.util.safe_read import unreadable

PROJECTS = "projects"
DOCKERFILE = "Dockerfile"
# `podman build` takes the first that is a file (podman-build(1), "--file"; so does 4.3.1).
DOCKERFILES = ("Containerfile", DOCKERFILE)
ARTIFACT = "image.sqsh"
IMAGE_JSON = "image.json"
EDF = "env.toml"
PROJECT_TOML = "project.toml"
# The files that we write or read ourselves, and the names of their temporary files.
OUR_FILES = (
    ARTIFACT,
    IMAGE_JSON,
    EDF,
    PROJECT_TOML,
    ".image.*.tmp.sqsh",
    ".image.json.*",
    ".env.toml.*",
)
# git leaves these files when it switches to a branch without the project.
GENERATED = frozenset({ARTIFACT, IMAGE_JSON, "tmp"})
# All that is in the directory of an image of a matrix.
PUBLISHED = GENERATED | {EDF}


class BuildContext(Struct, frozen=True):
    """A directory that a build takes files from, relative to the checkout; empty for the checkout.

    `ignorefile` holds the patterns of what it leaves out; it is empty where there is none. `left_out`
    are patterns before them, which they may take back with `!`; `generated` are patterns after them, of
    the files in it that we write or read ourselves.
    """

    directory: str
    ignorefile: str = ""
    left_out: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()

    def shown(self, path: str) -> str:
        """Return a file of the context as errors show it: relative to the checkout."""
        return f"{self.directory}/{path}" if self.directory else path


class Recipe(Struct, frozen=True):
    """Where an image's files are that are not in a directory of its own, relative to the checkout.

    `directory` holds its project.toml. `named` are the directories among its named contexts.
    """

    directory: str
    dockerfile: str
    context: BuildContext
    named: Mapping[str, BuildContext] = {}

    @property
    def contexts(self) -> dict[str, BuildContext]:
        """All build contexts by name; the name of the main one is empty."""
        return {"": self.context, **self.named}


class Project(Struct, frozen=True):
    """The directory of an image. `path` is relative to the checkout: `projects/reasoning:2025.1`.

    It holds what is published. Without a `recipe` it holds all that the image is built from as well, and
    `dockerfile_name` is the one of DOCKERFILES that podman uses there. `machine` is the one that the
    image is for (uname -m); empty for the one that builds it.
    """

    name: str
    root: Path
    path: str
    dockerfile_name: str = DOCKERFILE
    recipe: Recipe | None = None
    machine: str = ""

    @property
    def base(self) -> str:
        """The project's directory as a string, as joining Paths for a thousand images is slow."""
        return f"{self.root}/{self.path}"

    @property
    def directory(self) -> Path:
        """The directory of what is published."""
        return self.root / self.path

    @property
    def version(self) -> str:
        """What follows the colon in the name, without the machine."""
        version = self.name.partition(":")[2]
        return version.removesuffix(f"-{self.machine}") if self.machine else version

    @property
    def source(self) -> Path:
        """The directory that the paths in project.toml begin at."""
        return self.root / (self.recipe.directory if self.recipe else self.path)

    @property
    def context(self) -> Path:
        """The build context."""
        return self.root / (self.recipe.context.directory if self.recipe else self.path)

    @property
    def dockerfile(self) -> Path:
        """The Dockerfile."""
        return self.root / self.shown_dockerfile

    @property
    def sources(self) -> tuple[Path, ...]:
        """All that the image is built from; a directory comes first."""
        if self.recipe is None:
            return (self.directory,)
        contexts = (self.root / context.directory for context in self.recipe.contexts.values())
        return (self.source, self.dockerfile, *contexts)

    @property
    def is_of_matrix(self) -> bool:
        """Whether the image is one of several that a project.toml elsewhere describes."""
        return self.recipe is not None and self.recipe.directory != self.path

    @property
    def owner(self) -> str:
        """The name of the project, which may have several images."""
        return self.source.name if self.is_of_matrix else self.name

    def takes_files_of(self, path: str) -> bool:
        """Return whether the image is built from files in another directory of the checkout."""
        if self.recipe is None or f"{self.recipe.directory}/".startswith(f"{path}/"):
            return False
        contexts = self.recipe.contexts.values()
        files = {file for context in contexts for file in (context.directory, context.ignorefile)}
        return any(f"{file}/".startswith(f"{path}/") for file in (self.recipe.dockerfile, *files))

    @property
    def options_file(self) -> Path:
        """The optional project.toml."""
        return self.source / PROJECT_TOML

    @property
    def artifact(self) -> Path:
        """The published SquashFS image."""
        return self.directory / ARTIFACT

    @property
    def image_json(self) -> Path:
        """The public record of the published image."""
        return self.directory / IMAGE_JSON

    @property
    def edf(self) -> Path:
        """The EDF that starts the official image."""
        return self.directory / EDF

    @property
    def shown_common_edf(self) -> str:
        """The EDF that starts the image for the machine it is read on; only with a `machine`."""
        name = without_machine(self.name, self.machine)
        # A project beside projects/ keeps its env.toml where it was before `arch`.
        directory = self.recipe.directory if self.recipe else ""
        return f"{directory if os.path.basename(directory) == name else f'{PROJECTS}/{name}'}/{EDF}"

    @property
    def shown_dockerfile(self) -> str:
        """The Dockerfile as errors show it."""
        return self.recipe.dockerfile if self.recipe else self.shown(self.dockerfile_name)

    @property
    def shown_context(self) -> str:
        """The build context, relative to the checkout."""
        return (self.recipe.context.directory or ".") if self.recipe else self.path

    @property
    def shown_options(self) -> str:
        """The project.toml as errors show it."""
        return f"{self.recipe.directory}/{PROJECT_TOML}" if self.recipe else self.shown(PROJECT_TOML)

    def shown_input(self, path: str) -> str:
        """Return a file of the build context as errors show it: relative to the checkout."""
        return self.recipe.context.shown(path) if self.recipe else self.shown(path)

    def shown(self, name: str) -> str:
        """Return a file of the project as errors show it: relative to the checkout."""
        return f"{self.path}/{name}"


class Alias(Struct, frozen=True):
    """A symlink such as `projects/reasoning:latest`; `target` is a project's name."""

    name: str
    target: str


class Broken(Struct, frozen=True):
    """A directory or symlink that should be a project and is not."""

    name: str
    error: RcError


def dockerfile_name(directory: str | Path) -> str:
    """Return the name of the Dockerfile in a directory, even if it is not a file."""
    names = [name for name in DOCKERFILES if os.path.lexists(f"{directory}/{name}")]
    files = (name for name in names if os.path.isfile(f"{directory}/{name}"))
    return next(files, names[0] if names else DOCKERFILE)


def discover(root: Path, *, at_top: bool = True) -> Iterator[Project | Alias | Broken]:
    """Yield the projects of a checkout: directories in `projects/`, or beside it with a Dockerfile.

    Without `at_top`, directories beside `projects/` hold Dockerfiles of which projects are made.
    """
    # The path of the checkout may be a symlink, and targets of aliases are compared as real paths.
    base = os.path.realpath(root)
    top = Path(base)
    for parent in ("", PROJECTS) if at_top else (PROJECTS,):
        try:
            entries = sorted(os.scandir(os.path.join(base, parent)), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ProjectError(
                f"cannot be listed: {error.strerror}",
                where=parent or base,
                hint="it has to be a directory that you may read",
            ) from None
        for entry in entries:
            if entry.name.startswith(".") or (not parent and entry.name == PROJECTS):
                continue
            path = f"{parent}/{entry.name}" if parent else entry.name
            try:
                project = _entry(entry, path, top)
            except OSError as error:
                project = Broken(entry.name, _unreadable(error, path))
            if project is not None:
                yield project


def _entry(entry: os.DirEntry[str], path: str, top: Path) -> Project | Alias | Broken | None:
    in_projects = path.startswith(PROJECTS)
    if entry.is_symlink():
        return _alias(entry, path, str(top)) if in_projects else None
    if not entry.is_dir():
        return None
    file = dockerfile_name(entry.path)
    dockerfile = _kind(f"{entry.path}/{file}")
    if not in_projects and dockerfile is None:
        return None
    problem = name_problem(entry.name)
    if problem is not None:
        return Broken(entry.name, _misnamed(entry.name, path, problem))
    if dockerfile is None and os.path.islink(os.path.join(entry.path, file)):
        return Broken(entry.name, _dangling(entry.path, path, file))
    if dockerfile is None:
        files = os.listdir(entry.path)
        if PROJECT_TOML in files:
            # It may name a Dockerfile elsewhere.
            return Project(entry.name, top, path, file)
        # What a matrix, a project.toml or another branch has published is left without them.
        was_published = ARTIFACT in files or IMAGE_JSON in files
        if GENERATED.issuperset(files) or (
            PUBLISHED.issuperset(files) and (was_published or _is_version(entry.path))
        ):
            return None
        return Broken(entry.name, no_dockerfile(path))
    if dockerfile != stat.S_IFREG:
        is_directory = dockerfile == stat.S_IFDIR
        return Broken(
            entry.name,
            ProjectError(
                f"is {'a directory' if is_directory else 'a socket, a pipe or a device'}, not a file",
                where=f"{path}/{file}",
                hint="move it away and write a file of this name (its first line is FROM and a base)",
            ),
        )
    return Project(entry.name, top, path, file)


def no_dockerfile(path: str) -> ProjectError:
    """Return the error of a project without a Dockerfile; `path` is its directory in the checkout."""
    return ProjectError(
        "this project has no Dockerfile",
        where=f"{path}/",
        hint="write one (its first line is FROM and a base), or remove the directory",
    )


def _is_version(path: str) -> bool:
    """Return whether a path may be of an image that the project.toml of another directory describes.

    Those are a version of a matrix, and the image for a machine.
    """
    parent, name = os.path.split(path)
    owners = {name.rpartition(":")[0], name.rpartition("-")[0]}
    # The images of a project beside projects/ are in projects/, too.
    places = (parent, os.path.dirname(parent)) if os.path.basename(parent) == PROJECTS else (parent,)
    return any(
        owner and os.path.isfile(f"{place}/{owner}/{PROJECT_TOML}")
        for owner in owners
        for place in places
    )


def _alias(entry: os.DirEntry[str], path: str, base: str) -> Alias | Broken:
    problem = name_problem(entry.name)
    if problem is not None:
        return Broken(entry.name, _misnamed(entry.name, path, problem))
    points_to = os.readlink(entry.path)
    target = os.path.realpath(entry.path)
    parent, name = os.path.split(target)
    # The directory of a matrix's image exists once it is published.
    if not os.path.exists(target) and not _is_version(target):
        return Broken(
            entry.name,
            ProjectError(
                f"this alias points to {points_to}, which does not exist",
                where=path,
                hint=f"point it to a project: ln -sfn NAME '{path}'",
            ),
        )
    if parent not in (base, os.path.join(base, PROJECTS)):
        return Broken(
            entry.name,
            ProjectError(
                f"this alias points to {points_to}, outside of the projects of this checkout",
                where=path,
                hint=f"an alias names a project beside it: ln -sfn NAME '{path}'",
            ),
        )
    return Alias(entry.name, name)


def _misnamed(name: str, path: str, problem: str) -> ProjectError:
    return ProjectError(
        f"{name!r} cannot be the name of an image: it {problem}",
        where=path if path.isprintable() else repr(path),
        hint="rename it to something like reasoning:2025.1"
        + ("" if "/" in path else ", or set top_projects = false: then projects are in projects/ alone"),
    )


def _unreadable(error: OSError, path: str) -> ProjectError:
    return unreadable(ProjectError, error, f"{path}/", "correct its permissions, or remove it")


def _dangling(directory: str, path: str, file: str) -> ProjectError:
    points_to = os.readlink(os.path.join(directory, file))
    return ProjectError(
        f"is a symlink to {points_to}, which does not exist",
        where=f"{path}/{file}",
        hint=f"write the file, or point the symlink to one: ln -sfn FILE '{path}/{file}'",
    )


def _kind(path: str) -> int | None:
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
