"""Checkout: its settings, its image graph, its records and its store, opened together."""

import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from rc_tasks.errors import ProjectError, RcError
from rc_tasks.model import machine as machines
from rc_tasks.model.config import project_toml
from rc_tasks.model.config.matrix import Matrix
from rc_tasks.model.config.settings import Settings
from rc_tasks.model.config.settings import load as load_settings
from rc_tasks.model.config.variables import with_values
from rc_tasks.model.dockerfile import parser
from rc_tasks.model.graph import recipe
from rc_tasks.model.graph.graph import ImageGraph, ImageNode, image_graph, image_node, local_name
from rc_tasks.model.graph.pin import LOCK
from rc_tasks.model.graph.project import PROJECT_TOML, PROJECTS, Alias, Broken, Project, discover
from rc_tasks.model.reference import name_problem
from rc_tasks.state.bases.pins import Pins
from rc_tasks.state.disk import reading
from rc_tasks.state.moves import Journal
from rc_tasks.state.records.comparisons import ComparisonCache
from rc_tasks.state.records.contexts import ContextRecords
from rc_tasks.state.records.digests import ContextDigests, Digests
from rc_tasks.state.records.records import Records, Step
from rc_tasks.state.records.splits import Splits
from rc_tasks.state.store.store import Store
from rc_tasks.util.safe_read import read_bytes, unreadable

if TYPE_CHECKING:
    from rc_tasks.state.store.previous import Previous

DODO = "dodo.py"
GENERATED = reading.GENERATED
TEMPLATE = "templates/env.toml.j2"

_NO_OPTIONS = project_toml.ProjectOptions()


class Checkout(Struct, frozen=True):
    """A directory with a dodo.py; `root` is absolute with symlinks resolved.

    `images_root` is the directory of the official images: the setting, or this checkout itself.
    `digests` caches those of build contexts. `output_digests` caches those of the template and of the
    files that steps make.
    """

    root: Path
    images_root: Path
    settings: Settings
    graph: ImageGraph
    records: Records
    digests: ContextDigests
    output_digests: Digests
    comparisons: ComparisonCache
    splits: Splits
    contexts: ContextRecords
    store: Store
    architecture: str

    @property
    def template(self) -> Path:
        """The template of every env.toml."""
        return self.root / TEMPLATE

    @property
    def previous(self) -> "Previous":
        """The images that were published before."""
        from rc_tasks.state.store.previous import Previous

        return Previous(self.root / GENERATED / "previous")

    def directory(self, name: str) -> str:
        """Return the directory of an image, also of a broken one, relative to the checkout."""
        node = self.graph.images.get(name)
        if node is not None:
            return node.project.path
        path = f"{PROJECTS}/{name}"
        return path if (self.root / path).is_dir() else name

    def lock(self, name: str) -> Path:
        """Return the lock file of an image."""
        return self.root / f"{GENERATED}/locks/{name}.json"

    @property
    def pins(self) -> Pins:
        """The pins of registry bases."""
        # No image name begins with an underscore.
        return Pins(self.root / LOCK, self.root / GENERATED / "locks" / "_bases.json")

    @property
    def allocations(self) -> Path:
        """The directory in which runs note the allocations that they hold."""
        return self.root / GENERATED / "allocations"

    def logs(self, step: Step, name: str) -> Path:
        """Return the directory of a step's logs."""
        return self.root / GENERATED / "logs" / name / step

    @property
    def history(self) -> Path:
        """The directory of the history of runs."""
        return self.root / GENERATED / "history"

    @property
    def moves(self) -> Journal:
        """The moves of projects that were interrupted."""
        return Journal(self.root / GENERATED / "moves")

    @property
    def nightly_records(self) -> Path:
        """The directory of the records of jobs of `doit nightly`."""
        return self.root / GENERATED / "nightly"

    @property
    def nightly_logs(self) -> Path:
        """The directory of the logs of jobs of `doit nightly`."""
        return self.root / GENERATED / "logs" / "nightly"

    def remember(self) -> None:
        """Save the caches of digests, comparisons and split Dockerfiles."""
        for cache in (self.digests, self.output_digests, self.comparisons, self.splits):
            cache.save()

    def machine(self, project: Project) -> str:
        """Return the machine that an image is for, as uname(2) names it."""
        return project.machine or self.architecture

    def shown(self, path: Path) -> str:
        """Return a path as messages name it: relative to the checkout."""
        return os.path.relpath(path, self.root)


def find_root(start: Path) -> Path:
    """Return the nearest directory at or above `start` with a dodo.py. Raise ProjectError."""
    here = Path(os.path.realpath(start))
    for directory in (here, *here.parents):
        if (directory / DODO).is_file():
            _require_own_program(directory)
            return directory
    raise ProjectError(
        f"neither this directory nor one above it has a {DODO}",
        where=start,
        hint="go into a checkout of the image repository and run the command there",
    )


def _require_own_program(directory: Path) -> None:
    """Raise ProjectError for a dodo.py that everybody could have put there, as in /tmp: it is run."""
    owner = os.lstat(directory / DODO).st_uid
    # Another user who puts a file there owns it.
    if not os.stat(directory).st_mode & stat.S_IWOTH or owner in {0, os.geteuid()}:
        return
    import shlex

    from rc_tasks.state.disk.trust import user

    shown = shlex.quote(str(directory))
    raise ProjectError(
        f"everybody may write here, and the {DODO} that doit would run belongs to {user(owner)}",
        where=directory,
        hint="go into a checkout of the image repository and run the command there;\n"
        f"if you trust this one: chmod o-w {shown}",
    )


def open_checkout(root: Path, environ: Mapping[str, str] = os.environ) -> Checkout:
    """Read the settings and every project of a checkout.

    Raise SettingsError. The error of a single project is kept in `graph.broken`.
    """
    root = Path(os.path.realpath(root))
    settings = load_settings(root, environ, Path.home())
    architecture = os.uname().machine
    projects: list[Project] = []
    aliases: list[Alias] = []
    broken: dict[str, RcError] = {}
    problems: list[RcError] = []
    for entry in discover(root, at_top=settings.top_projects):
        match entry:
            case Project():
                projects.append(entry)
            case Alias():
                aliases.append(entry)
            case Broken(name, error):
                if is_task_name(name):
                    broken[name] = error
                else:
                    problems.append(error)
    unread: set[str] = set()
    images = list(_images(root, projects, settings, broken, unread))
    for name, error in _same_names([project for project, _ in images], aliases):
        broken[name] = error
        images = [image for image in images if image[0].name != name]
    here = _for_this_machine(images, architecture)
    aliases += [Alias(name, image) for name, image in here.items()]
    names = {*(project.name for project, _ in images), *broken, *here}
    aliases = [
        Alias(alias.name, here.get(target, target))
        for alias in aliases
        if alias.name not in broken
        for target in (local_name(alias.target, names, unread) or alias.target,)
    ]
    alias_targets = {alias.name: alias.target for alias in aliases}
    names |= alias_targets.keys()
    machine_of = {project.name: project.machine for project, _ in images if project.machine}
    generated = root / GENERATED
    splits = Splits(generated / "cache" / "dockerfiles.json")
    nodes = []
    for project, options in images:
        try:
            dockerfile = _dockerfile(project, options, architecture, splits)
            node = image_node(
                project, dockerfile, options, alias_targets, names, machine_of, architecture, unread
            )
            nodes.append(node)
        except RcError as error:
            broken.setdefault(project.name, error)
    return Checkout(
        root,
        Path(settings.images_root) if settings.images_root else root,
        settings,
        image_graph(nodes, aliases, broken, problems),
        Records(generated / "state"),
        ContextDigests(root, generated / "cache" / "digests"),
        Digests(root, generated / "cache" / "outputs.json"),
        ComparisonCache(generated / "cache" / "unchanged.json"),
        splits,
        ContextRecords(generated / "contexts"),
        Store(generated / "store"),
        architecture,
    )


def _images(
    root: Path,
    projects: list[Project],
    settings: Settings,
    broken: dict[str, RcError],
    unread: set[str],
) -> Iterator[tuple[Project, project_toml.ProjectOptions]]:
    """Yield the images of the projects; note the error of each project.toml in `broken`.

    Add each project to `unread` that may be a matrix of which no image is known.
    """
    top_projects = [project.path for project in projects if "/" not in project.path]
    # Nearly no project needs any, and each takes two processes.
    git_fact = functools.cache(functools.partial(_git_fact, root))
    for project in projects:
        # Check with one fast call: most projects have no project.toml, and every start checks all
        # projects.
        if not os.path.lexists(f"{project.base}/{PROJECT_TOML}"):
            yield project, _NO_OPTIONS
            continue
        options = None
        try:
            where = project.shown(PROJECT_TOML)
            options = project_toml.load(project.options_file, where)
            images = recipe.images(project, options, top_projects, broken)
            # All or none of a matrix.
            yield from [
                (image, with_values(filled, project.options_file, where, settings, git_fact))
                for image, filled in images
            ]
        except RcError as error:
            broken[project.name] = error
            if options is None or options.matrix is not None:
                unread.add(project.name)
            if os.path.lexists(project.dockerfile):
                # It is read all the same: the graph shows what the image is built on.
                yield project, _NO_OPTIONS


def _for_this_machine(
    images: Iterable[tuple[Project, project_toml.ProjectOptions]], architecture: str
) -> dict[str, str]:
    """Return the image for this machine by the name without a machine; of none, for the first one."""
    names: dict[str, str] = {}
    for project, options in images:
        if not project.machine:
            continue
        if project.machine == (architecture if architecture in options.arch else options.arch[0]):
            names[machines.without_machine(project.name, project.machine)] = project.name
    return names


def _git_fact(root: Path, name: str) -> str:
    """Return the branch of a checkout, or the URL of its remote `origin`. Raise RcError."""
    from rc_tasks.tools import git

    if name == "branch":
        branch = git.head(root).branch
        if not branch:
            raise ProjectError("HEAD is on no branch", hint="git switch BRANCH")
        return branch
    git.head(root)
    url = git.origin_url(root)
    if not url:
        raise ProjectError("there is no remote origin", hint="git remote add origin URL")
    return url


def matrix_of(checkout: Checkout, name: str) -> Matrix | None:
    """Return the matrix of a project; None without one, or if its project.toml has an error."""
    return None if ":" in name else _options_of(checkout, name).matrix


def arch_of(checkout: Checkout, name: str) -> tuple[str, ...]:
    """Return the machines that a project is built for; none if it says none, or has an error."""
    return _options_of(checkout, name).arch


def _options_of(checkout: Checkout, name: str) -> project_toml.ProjectOptions:
    if name_problem(name) is not None:
        return _NO_OPTIONS
    path = f"{checkout.directory(name)}/{PROJECT_TOML}"
    try:
        return project_toml.load(checkout.root / path, path)
    except RcError:
        return _NO_OPTIONS


def images_of(checkout: Checkout, name: str) -> tuple[str, ...]:
    """Return the images that a project has for its matrix and its machines; none if it is one image.

    Return none as well if its project.toml has an error.
    """
    options = _options_of(checkout, name)
    is_alias = (checkout.root / PROJECTS / name).is_symlink()
    if is_alias or (":" in name and options.matrix is not None):
        return ()
    versions = [f"{name}:{version}" for version in options.matrix.versions] if options.matrix else [name]
    machine_names = [
        machines.image_name(image, machine) for image in versions for machine in options.arch
    ]
    return tuple(machine_names or (versions if options.matrix else ()))


def is_task_name(name: str) -> bool:
    """Return whether doit can have a task of this name."""
    return name.isprintable() and not set(name) & set("=* ") and not name.startswith("-")


def _dockerfile(
    project: Project, options: project_toml.ProjectOptions, architecture: str, splits: Splits
) -> parser.Dockerfile:
    text = read_dockerfile(project.root, project.shown_dockerfile)
    return _parsed(project, options, text, architecture, split=splits.split)


def read_dockerfile(root: Path, path: str) -> bytes:
    """Return the text of a Dockerfile; `path` is relative to the checkout. Raise ProjectError."""
    try:
        return read_bytes(f"{root}/{path}")
    except OSError as error:
        raise unreadable(ProjectError, error, path, "correct its permissions") from None


def parse_node(node: ImageNode, text: bytes, architecture: str) -> parser.Dockerfile:
    """Parse a text as the Dockerfile of an image. Raise DockerfileError."""
    return _parsed(node.project, node.options, text, architecture)


def parse_project(project: Project, text: bytes, checkout: Checkout) -> parser.Dockerfile:
    """Parse a text as the Dockerfile of a project, which no graph has to hold. Raise RcError."""
    where = project.shown(PROJECT_TOML)
    options = with_values(
        project_toml.load(project.options_file, where),
        project.options_file,
        where,
        checkout.settings,
        functools.partial(_git_fact, checkout.root),
    )
    return _parsed(project, options, text, checkout.architecture)


def _parsed(
    project: Project,
    options: project_toml.ProjectOptions,
    text: bytes,
    architecture: str,
    split: parser.Splitter = parser.split_text,
) -> parser.Dockerfile:
    return parser.parse(
        text,
        where=project.shown_dockerfile,
        build_args=options.build_args,
        architecture=project.machine or architecture,
        target=options.target,
        split=split,
        contexts=_named_contexts(options),
    )


def _named_contexts(options: project_toml.ProjectOptions) -> parser.NamedContexts:
    # Nearly no project has any.
    if not options.contexts:
        return parser.NO_CONTEXTS
    return parser.NamedContexts(options.directories.keys(), options.images)


def _same_names(projects: list[Project], aliases: list[Alias]) -> Iterator[tuple[str, RcError]]:
    seen: dict[str, str] = {}
    paths = [
        (project.name, project.shown_options if project.is_of_matrix else project.path)
        for project in projects
    ]
    for name, path in (*paths, *((alias.name, f"projects/{alias.name}") for alias in aliases)):
        if name in seen:
            yield (
                name,
                ProjectError(
                    f"two recipes make an image named {name}: {seen[name]} and {path}",
                    where=path,
                    hint="rename one of them",
                ),
            )
        seen[name] = path
