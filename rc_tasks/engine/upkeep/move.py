"""Rename of a project, with all that is kept under its name and all in the checkout that names it.

Nothing is built: names of images are no inputs of their steps. Each phase can be run again, so that a
move that was killed is finished by doing all phases once more. Before the first change the journal
notes what a move is going to change, because a checkout that is half changed no longer says it.
"""

import contextlib
import functools
import os
import posixpath
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rc_tasks.errors import EdfError, ProjectError, RcError
from rc_tasks.model.config.project_toml import place
from rc_tasks.model.dockerfile.renaming import rename_bases
from rc_tasks.model.graph.graph import ImageNode, local_name
from rc_tasks.model.graph.project import IMAGE_JSON, PROJECT_TOML, PROJECTS, Project, dockerfile_name
from rc_tasks.state import history
from rc_tasks.state.checkout import (
    Checkout,
    images_of,
    matrix_of,
    open_checkout,
    parse_node,
    parse_project,
)
from rc_tasks.state.disk.files import put_in_place, temporary_prefix, write_atomically
from rc_tasks.state.disk.locks import held
from rc_tasks.state.disk.renaming import merge_directories, replace_name
from rc_tasks.state.history import Rename
from rc_tasks.state.moves import Move
from rc_tasks.state.published import manifests
from rc_tasks.state.records.records import Step
from rc_tasks.steps.image_json import write_image_json
from rc_tasks.steps.publish.env_toml import write_environment
from rc_tasks.tools import git
from rc_tasks.util.safe_read import read_bytes


def plan(checkout: Checkout, old: str, new: str, *, keep_alias: bool) -> Move:
    """Return what the move of a project to a name that is free would change; change nothing.

    Raise RcError when it cannot be done.
    """
    graph = checkout.graph
    if images_of(checkout, old) and matrix_of(checkout, old) is None:
        raise _not_renamed(
            checkout,
            old,
            new,
            "has an image for each machine in `arch`; doit mv renames single ones",
        )
    if old in graph.aliases:
        target = graph.aliases[old]
        raise ProjectError(
            f"{old} is an alias of {target}; doit mv renames projects",
            where=f"{PROJECTS}/{old}",
            hint=f"doit mv {target} {new}   renames the project, and its aliases follow\n"
            f"git mv '{PROJECTS}/{old}' '{PROJECTS}/{new}'   renames the alias",
        )
    if (matrix := matrix_of(checkout, old)) is not None:
        raise _not_renamed(
            checkout,
            old,
            new,
            f"is a matrix of {len(matrix.versions)} images; doit mv renames single ones",
        )
    project = graph.resolve(old).project
    require_own_directory(project)
    new_path = posixpath.join(posixpath.dirname(project.path), new)
    if os.path.lexists(checkout.root / new_path):
        raise ProjectError("exists already", where=new_path, hint="choose another name")
    for node in nodes(checkout):
        _require_independent(node, project, new)
        if not keep_alias:
            _require_no_context(checkout, node, old, new)
    move = Move(
        old,
        new,
        project.path,
        new_path,
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        dict(_aliases(checkout, old, new)),
        {
            node.project.name: {} if keep_alias else _written(checkout, node, old, new)
            for node in nodes(checkout)
            if old in node.bases
        },
        keep_alias,
    )
    dockerfiles(checkout, move)
    for name, names in move.children.items():
        if names:
            require_writable(checkout, checkout.directory(name))
    require_writable(checkout, project.path, posixpath.dirname(project.path))
    if move.aliases or keep_alias:
        require_writable(checkout, PROJECTS)
    return move


def require_writable(checkout: Checkout, *paths: str) -> None:
    """Raise ProjectError unless this user may write to these directories of the checkout."""
    for path in paths:
        if not os.access(checkout.root / path, os.W_OK):
            raise ProjectError(
                "you may not write here, so nothing was changed",
                where=f"{path or checkout.root}/",
                hint="work in a clone of your own, or ask its owner (`ls -ld`) for the right to write",
            )


def nodes(checkout: Checkout) -> Iterator[ImageNode]:
    """Yield every image whose Dockerfile can be read."""
    yield from checkout.graph.images.values()
    yield from checkout.graph.unbuildable.values()


def dockerfiles(checkout: Checkout, move: Move) -> dict[Path, bytes]:
    """Return each Dockerfile that a move changes, with its new text. Raise DockerfileError."""
    texts = {}
    for name, names in move.children.items():
        if not names:
            continue
        path = checkout.directory(name)
        node = checkout.graph.images.get(name)
        if node is not None and node.project.recipe is not None:
            project = node.project
            parse = functools.partial(parse_node, node, architecture=checkout.architecture)
        elif (checkout.root / path).is_dir():
            project = Project(name, checkout.root, path, dockerfile_name(checkout.root / path))
            parse = functools.partial(parse_project, project, checkout=checkout)
        else:
            continue  # removed since the move was interrupted
        # A Dockerfile may be a symlink, and stays one.
        file = Path(os.path.realpath(project.dockerfile))
        before = read_bytes(file)
        text = rename_bases(before, project.shown_dockerfile, names, parse)
        if text != before:
            texts[file] = text
    return texts


def carry_out(checkout: Checkout, move: Move) -> None:
    """Rename the project, or finish doing so.

    Raise LockedError when one of the images is being built, and RcError. Nothing has changed then,
    unless the journal has the move.
    """
    with contextlib.ExitStack() as locked:
        for name in sorted(move.names):
            locked.enter_context(held(checkout.lock(name), f"mv:{move.old}"))
        for name in move.names:
            for step in Step:
                # A step may have ended since the checkout was opened.
                checkout.records.reread(step, name)
        resumed = checkout.moves.get(move.old) is not None
        if not resumed:
            for name in move.names:
                checkout.moves.require_settled(name)
            dockerfiles(checkout, move)
            # A project may have had this name before.
            checkout.records.forget_all(move.new)
            checkout.moves.put(move)
        try:
            git.rename_in_index(checkout.root, move.path, move.new_path)
        except RcError:
            if not resumed:
                checkout.moves.remove(move)
            raise
        for phase in PHASES:
            phase(checkout, move)
        checkout.moves.remove(move)


def _move_directory(checkout: Checkout, move: Move) -> None:
    old, new = checkout.root / move.path, checkout.root / move.new_path
    if old.is_dir() and not old.is_symlink():
        put_in_place(old, new)


def _retarget_aliases(checkout: Checkout, move: Move) -> None:
    links = dict(move.aliases)
    if move.keep_alias:
        links[move.old] = move.new if move.path.startswith(f"{PROJECTS}/") else f"../{move.new_path}"
    for alias, target in links.items():
        path = checkout.root / PROJECTS / alias
        temporary = path.with_name(f"{temporary_prefix(alias)}{threading.get_ident()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        put_in_place(temporary, path)


def _rename_in_dockerfiles(checkout: Checkout, move: Move) -> None:
    for file, text in dockerfiles(checkout, move).items():
        write_atomically(file, text, mode=stat.S_IMODE(os.stat(file).st_mode))


def _rename_state(checkout: Checkout, move: Move) -> None:
    old, new = move.old, move.new
    checkout.records.rename(old, new, lambda log: log.replace(f"/logs/{old}/", f"/logs/{new}/", 1))
    for name in move.children:
        checkout.records.rename_base(name, old, new)
    checkout.previous.rename(old, new)
    manifests.rename(checkout, old, new)
    for step in Step:
        merge_directories(checkout.logs(step, old), checkout.logs(step, new))
    with contextlib.suppress(OSError):  # it may be missing, or hold other files
        checkout.logs(Step.PODMAN, old).parent.rmdir()
    checkout.store.catalogue.rename_cache(old, new)
    history.put_rename(checkout.history, Rename(old, new, move.started_at))


def _write_public_files(checkout: Checkout, move: Move) -> None:
    """Write image.json and env.toml, which name the image and its bases."""
    replace_name(checkout.root / move.new_path / IMAGE_JSON, move.new, indent=2)
    after = open_checkout(checkout.root)
    for name in move.children:
        node, built = after.graph.images.get(name), after.records.get(Step.PODMAN, name)
        if node is not None and built is not None and not built.adopted_from:
            write_image_json(node, built, after.records.get(Step.ENROOT, name))
    node = after.graph.images.get(move.new)
    if node is not None and after.records.get(Step.ENV, move.new) is not None:
        try:
            write_environment(after, node)
        except EdfError as error:
            # The next run reports it again, as the record does not fit the new name.
            print(f"warning: {error}", flush=True)


# In this order; a test kills the process before each of them.
PHASES = (
    _move_directory,
    _retarget_aliases,
    _rename_in_dockerfiles,
    _rename_state,
    _write_public_files,
)


def _not_renamed(checkout: Checkout, old: str, new: str, why: str) -> ProjectError:
    """Return the error for a project with several images."""
    path = f"{PROJECTS}/{old}"
    path = path if (checkout.root / path).is_dir() else old
    return ProjectError(
        f"{old} {why}",
        where=f"{path}/{PROJECT_TOML}",
        hint=f"git mv '{path}' '{posixpath.join(posixpath.dirname(path), new)}'   renames it; its"
        " images are built again",
    )


def require_own_directory(project: Project) -> None:
    """Raise ProjectError for an image of a matrix or for a machine, which has no directory in git."""
    if project.machine:
        raise ProjectError(
            f"{project.name} is the image of {project.owner} for {project.machine}, and has no directory"
            " of its own in git",
            where=project.shown_options,
            hint="change `arch` there, and `doit gc` removes what is left;\n"
            f"or name {project.owner}, which is all of its images",
        )
    if project.is_of_matrix:
        raise ProjectError(
            f"{project.name} is an image of this matrix, and has no directory of its own in git",
            where=project.shown_options,
            hint="change the axes, `exclude` or `version` there; `doit gc` removes what is left",
        )


def _require_independent(node: ImageNode, project: Project, new: str) -> None:
    """Raise ProjectError when a rename would change the meaning of an image's Dockerfile."""
    for base in node.dockerfile.bases:
        if base.name in node.remote and local_name(base.name, {new}) is not None:
            raise ProjectError(
                f"takes {base.name} from a registry, and would be built on the renamed project",
                where=f"{node.project.shown_dockerfile}:{base.line}",
                hint="choose another name, or write the registry's host before this one",
            )
    if node.project.takes_files_of(project.path):
        raise ProjectError(
            f"names files in {project.path}",
            where=node.project.shown_options,
            hint="move them to a directory that is no project, then run the same command again",
        )
    real = os.path.realpath(node.project.dockerfile)
    if node.project != project and Path(real).is_relative_to(os.path.realpath(project.directory)):
        raise ProjectError(
            f"is a symlink into {project.path}",
            where=node.project.shown_dockerfile,
            hint="make it a file, then run the same command again",
        )


def _require_no_context(checkout: Checkout, node: ImageNode, old: str, new: str) -> None:
    """Raise ProjectError when [contexts] of an image name a project: only Dockerfiles are changed."""
    for context, image in node.options.projects.items():
        if local_name(image, checkout.graph.names()) == old:
            project = node.project
            raise ProjectError(
                f"contexts.{context} names {old}, and doit mv changes Dockerfiles alone",
                where=place(project.options_file, project.shown_options, ("contexts", context)),
                hint=f"doit mv {old} {new} --alias\nthen write {new} here; `doit rm {old}` removes the"
                " alias",
            )


def _written(checkout: Checkout, node: ImageNode, old: str, new: str) -> dict[str, str]:
    """Return the names in a Dockerfile that mean a project and not its aliases, with their new ones."""
    names = checkout.graph.names()
    host = "localhost/"
    return {
        written: f"{host if written.startswith(host) else ''}{new}"
        for written in node.local
        if local_name(written, names) == old
    }


def _aliases(checkout: Checkout, old: str, new: str) -> Iterator[tuple[str, str]]:
    for alias in checkout.graph.aliases_of().get(old, ()):
        directory, name = os.path.split(os.readlink(checkout.root / PROJECTS / alias).rstrip("/"))
        # One that leads to another alias stays.
        if name == old:
            yield alias, os.path.join(directory, new)
