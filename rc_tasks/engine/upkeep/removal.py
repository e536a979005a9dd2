"""Removal of projects and aliases; `doit gc` later removes what is kept under their names."""

import contextlib
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from rc_tasks.engine.upkeep.move import nodes, require_own_directory, require_writable
from rc_tasks.errors import GraphError
from rc_tasks.model import machine as machines
from rc_tasks.model.graph.graph import local_name
from rc_tasks.model.graph.project import PROJECTS, PUBLISHED, Project
from rc_tasks.state.checkout import GENERATED, Checkout, images_of, matrix_of
from rc_tasks.state.disk.files import open_up, put_in_place, temporary_prefix
from rc_tasks.state.disk.locks import held
from rc_tasks.state.records.records import Step
from rc_tasks.tools import git

_TEMPORARY = "rm"


class Removal(Struct, frozen=True):
    """What is removed: directories of projects by name, and aliases, which are symlinks in projects/.

    Of a matrix, or of a project for several machines, the images are among the projects, before the
    project itself, which still has them after a kill. An image that was never published has no
    directory.
    """

    projects: dict[str, str]
    aliases: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All of it, relative to the checkout."""
        return (*self.projects.values(), *(f"{PROJECTS}/{alias}" for alias in self.aliases))


def plan(checkout: Checkout, names: Sequence[str]) -> Removal:
    """Return what is removed with these projects and aliases; change nothing.

    Raise ProjectError for an unknown name, and GraphError when another image is built on one of them.
    """
    graph = checkout.graph
    projects: dict[str, str] = {}
    aliases: dict[str, None] = {}
    for name in names:
        if several := _several(checkout, name):
            projects |= several
            continue
        if (checkout.root / PROJECTS / name).is_symlink():
            aliases[name] = None
            continue
        if name in graph.aliases:
            # Of a matrix for several machines: an image's name without the machine.
            require_own_directory(graph.resolve(name).project)
        path = checkout.directory(name)
        is_double = (checkout.root / name).is_dir() and path != name
        if name not in graph.broken or is_double or not (checkout.root / path).is_dir():
            project = graph.resolve(name).project
            require_own_directory(project)
            path = project.path
        projects[name] = path
    for alias, target in graph.aliases.items():
        # The name without a machine is an alias that has no symlink.
        if target in projects and (checkout.root / PROJECTS / alias).is_symlink():
            aliases[alias] = None
    removed = (*projects.items(), *((alias, "") for alias in aliases))
    users = {user: line for name, path in removed for user, line in _users(checkout, name, path)}
    staying = {user: line for user, line in users.items() if user not in projects}
    if staying:
        others = dict.fromkeys(_project_name(checkout, user) for user in staying)
        raise GraphError(
            "cannot be removed: other images are built on it",
            where=" and ".join(names),
            quote=tuple(dict.fromkeys(staying.values())),
            hint=f"change these lines, or remove all: doit rm {' '.join((*names, *others))}",
        )
    for path in projects.values():
        if (checkout.root / path).is_dir():
            require_writable(checkout, path, posixpath.dirname(path))
    if aliases:
        require_writable(checkout, PROJECTS)
    return Removal(projects, tuple(aliases))


def remove(checkout: Checkout, removal: Removal) -> None:
    """Remove the projects and aliases, first from git's index. Raise RcError and OSError.

    A published image is kept as a previous one. So the jobs that use it go on, on NFS and Lustre too.
    """
    generated = checkout.root / GENERATED
    with contextlib.ExitStack() as locked:
        for name in sorted(removal.projects):
            locked.enter_context(held(checkout.lock(name), f"rm:{name}"))
            checkout.moves.require_settled(name)
        git.remove_from_index(checkout.root, removal.paths)
        for alias in removal.aliases:
            (checkout.root / PROJECTS / alias).unlink(missing_ok=True)
        for name, path in removal.projects.items():
            if not (checkout.root / path).is_dir():
                continue
            checkout.records.reread(Step.ENROOT, name)
            record = checkout.records.get(Step.ENROOT, name)
            why = checkout.previous.keep(Project(name, checkout.root, path), record)
            if why:
                print(f"warning: the published image of {name} is not kept: {why}", flush=True)
            # Under another name first: half a project must not look like one.
            trash = Path(tempfile.mkdtemp(prefix=temporary_prefix(_TEMPORARY), dir=generated))
            open_up(trash)
            put_in_place(checkout.root / path, trash / name)
            shutil.rmtree(trash)


def _several(checkout: Checkout, name: str) -> dict[str, str]:
    """Return the images that a project has for its matrix and its machines, and last the project.

    Return nothing for any other project. Among the images are those of values and machines that it had
    before, as long as they have a directory.
    """
    current = images_of(checkout, name)
    if not current:
        return {}
    images = {image: f"{PROJECTS}/{image}" for image in current}
    if matrix_of(checkout, name) is not None:
        names = sorted(path.name for path in (checkout.root / PROJECTS).glob(f"{name}:*"))
    else:
        names = [machines.image_name(name, machine) for machine in machines.KNOWN]
    for image in names:
        directory = checkout.root / PROJECTS / image
        is_directory = directory.is_dir() and not directory.is_symlink()
        if is_directory and PUBLISHED.issuperset(os.listdir(directory)):
            images[image] = f"{PROJECTS}/{image}"
    # The name without a machine is an alias of an image, whose directory is another one.
    path = f"{PROJECTS}/{name}"
    return {**images, name: path if (checkout.root / path).is_dir() else name}


def _project_name(checkout: Checkout, image: str) -> str:
    """Return what `doit rm` calls the project of an image."""
    node = checkout.graph.images.get(image)
    return node.project.owner if node is not None else image


def _users(checkout: Checkout, name: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield each image that is built on a project, or names an alias, with the line that says so.

    `path` is the directory of the project, and empty for an alias.
    """
    graph = checkout.graph
    for node in nodes(checkout):
        for base in node.dockerfile.bases:
            is_named = local_name(base.name, graph.names()) == name
            if is_named or node.local.get(base.name) == name:
                where = f"{node.project.shown_dockerfile}:{base.line}"
                yield node.project.name, f"{where}: {base.name}"
                break
        else:
            if path and node.project.takes_files_of(path):
                yield node.project.name, f"{node.project.shown_options}: files of {name}"
