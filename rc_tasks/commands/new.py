"""`doit new NAME`: a new project directory, made from the templates."""

import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from rc_tasks.commands.cli.confirm import at_terminal, choose, entered
from rc_tasks.commands.cli.parser import UsageError, add_names, one_name
from rc_tasks.engine.session import TASK_KINDS, session
from rc_tasks.engine.upkeep.new_recipe import (
    NewRecipe,
    axes_of,
    dockerfiles_elsewhere,
    path_in,
    project_text,
    usual_context,
)
from rc_tasks.errors import EdfError, ProjectError
from rc_tasks.model.config import project_toml
from rc_tasks.model.edf import merge, schema
from rc_tasks.model.graph.graph import local_name
from rc_tasks.model.graph.project import (
    DOCKERFILE,
    EDF,
    PROJECT_TOML,
    PROJECTS,
    Project,
    dockerfile_name,
)
from rc_tasks.model.reference import ImageReference, name_problem, near
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.disk.files import open_up, refused, umask
from rc_tasks.util import template

TEMPLATES = "templates/new"
ENTRYPOINT = "entrypoint.sh"
SCRATCH = "scratch"
OWN_FILES = NewRecipe()


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The templates are in templates/new. With --dockerfile, the project has no Dockerfile of its"
        " own, and its project.toml names that one. Paths are relative to the working directory. At a"
        " terminal and without options, it asks if the repository has Dockerfiles that belong to no"
        " project."
    )
    add_names(parser, "NAME", help="the name of the new image, such as reasoning:2025.2")
    parser.add_argument(
        "--from",
        dest="base",
        default="",
        metavar="BASE",
        help="base image: a project, an alias or a registry reference; without it, the checkout's base",
    )
    parser.add_argument(
        "--dockerfile", default="", metavar="PATH", help="a Dockerfile that exists in this repository"
    )
    parser.add_argument(
        "--context",
        default="",
        metavar="DIR",
        help="directory that COPY takes files from; by default the project's, or with --dockerfile the"
        " checkout if COPY names files there, else the Dockerfile's",
    )
    parser.add_argument(
        "--target", default="", metavar="STAGE", help="stage of that Dockerfile to stop at"
    )
    parser.add_argument(
        "--matrix",
        action="append",
        default=[],
        metavar="AXIS=V1,V2",
        help="an image for each value of the build argument AXIS; may be given several times",
    )


def run(args: Namespace) -> int:
    """Create a project directory."""
    checkout = session().checkout
    name = one_name(args, "new NAME [--from BASE]")
    unused(checkout, name)
    if args.dockerfile and args.base:
        raise UsageError(
            "--from and --dockerfile cannot be combined", hint="the Dockerfile names its base in FROM"
        )
    if args.target and not args.dockerfile:
        raise UsageError("--target needs --dockerfile", hint="a new Dockerfile has one stage")
    has_options = args.base or args.dockerfile or args.context or args.matrix
    recipe = _of_options(checkout, args) if has_options or not at_terminal() else _asked(checkout, name)
    project = create(checkout, name, args.base, recipe)
    print(f"made {project.path}/: {', '.join(sorted(os.listdir(project.directory)))}")
    if project.options_file.exists():
        sys.stdout.writelines(f"    {line}" for line in project.options_file.open(encoding="utf-8"))
    broken = open_checkout(checkout.root).graph.broken
    mine = (error for image, error in broken.items() if image.partition(":")[0] == name or image == name)
    if (error := next(mine, None)) is not None:
        print(f"it cannot be built yet:\n{error}")
    elif recipe.dockerfile:
        print(f"next: `doit list {name}`, then `doit build:{name}`")
    else:
        print(f"next: edit {project.shown_dockerfile}, then `doit build:{name}`")
    return 0


def _of_options(checkout: Checkout, args: Namespace) -> NewRecipe:
    dockerfile = args.dockerfile and path_in(checkout, args.dockerfile, "--dockerfile")
    context = args.context and path_in(checkout, args.context, "--context")
    if dockerfile and not context:
        context = usual_context(checkout, dockerfile)
    return NewRecipe(dockerfile, context, args.target, axes_of(args.matrix))


def _asked(checkout: Checkout, name: str) -> NewRecipe:
    """Return the recipe that the user chooses: as without options, or a Dockerfile of the repository."""
    dockerfiles = dockerfiles_elsewhere(checkout)
    if not dockerfiles:
        return OWN_FILES
    dockerfile = choose(
        "Dockerfiles of this repository:", dockerfiles, f"the Dockerfile of {name} [Enter: a new one]"
    )
    if not dockerfile:
        return OWN_FILES
    usual = usual_context(checkout, dockerfile)
    shown = os.path.relpath(checkout.root / usual)
    written = entered(f"the directory that COPY takes files from [Enter: {shown}]")
    return NewRecipe(dockerfile, path_in(checkout, written, "--context") if written else usual)


class Base(Struct, frozen=True):
    """Base of a new project. `project` is None for an image of a registry."""

    written: str
    project: Project | None


def create(checkout: Checkout, name: str, base: str = "", recipe: NewRecipe = OWN_FILES) -> Project:
    """Create the directory of a new project, complete or not at all.

    Raise ProjectError when the name cannot be used or is in use, or for a stage or argument that is not
    in the Dockerfile of the recipe, and EdfError for a wrong template.
    """
    project = unused(checkout, name)
    files = {PROJECT_TOML: project_text(checkout, name, recipe)}
    if not recipe.dockerfile:
        files |= _own_files(checkout, project, base, recipe)
    parent = checkout.root / PROJECTS
    scratch: str | None = None
    try:
        parent.mkdir(exist_ok=True)
        # After a kill, a leftover whose name begins with a dot is not taken for a project.
        scratch = tempfile.mkdtemp(prefix=".new.", dir=parent)
        for file, text in files.items():
            if text:
                path = Path(scratch, file)
                path.write_text(text, encoding="utf-8")
                path.chmod((0o777 if text.startswith("#!") else 0o666) & ~umask())
        open_up(scratch)
        os.rename(scratch, project.directory)
    except OSError as error:
        raise refused(error, parent) or error from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return project


def _own_files(checkout: Checkout, project: Project, base: str, recipe: NewRecipe) -> dict[str, str]:
    chosen = find_base(checkout, base)
    if chosen.project is None and not _is_plausible(chosen.written):
        raise _no_base(checkout, chosen.written)
    names = {"name": project.name, "base": chosen.written, "arguments": recipe.arguments}
    files = {DOCKERFILE: _filled(checkout, f"{DOCKERFILE}.j2", names)}
    if not recipe.context:
        files[ENTRYPOINT] = _filled(checkout, f"{ENTRYPOINT}.j2", names)
    if not recipe.axes:
        # Each image of a matrix has its own, in the directory that its first build makes.
        files[EDF] = first_edf(checkout, project, chosen)
    return files


def unused(checkout: Checkout, name: str, *, renamed: str = "") -> Project:
    """Return the project that a name would make. Raise ProjectError when it cannot be made.

    `renamed` is the project that would get this name.
    """
    problem = name_problem(name)
    if problem is not None:
        raise ProjectError(
            f"{name!r} cannot be the name of an image: it {problem}",
            hint="choose something like reasoning:2025.2",
        )
    kind = name.partition(":")[0]
    if kind in TASK_KINDS:
        raise ProjectError(
            f"{name!r} cannot be the name of an image: doit reads {kind}: as the beginning of a task",
            hint="choose something like reasoning:2025.2",
        )
    _require_no_image(checkout, name)
    for path in (f"{PROJECTS}/{name}", name):
        place = checkout.root / path
        # Beside projects/, a directory without a Dockerfile is not a project.
        has_dockerfile = (place / dockerfile_name(place)).exists()
        if not os.path.lexists(place) or (path == name and not has_dockerfile):
            continue
        if place.is_symlink():
            points_to = os.readlink(place)
            is_known = place.exists() or name in checkout.graph.aliases
            dangling = "" if is_known else ", which does not exist"
            what, hint = f"is an alias, a symlink to {points_to}{dangling}", f"rm '{path}'"
        elif has_dockerfile or name in checkout.graph.names():
            what, hint = "is a project already", f"doit build:{name}"
        else:
            what, hint = "exists and has no Dockerfile", "move it away, or write a Dockerfile into it"
        raise ProjectError(what, where=path, hint=f"{hint}, or choose another name")
    others = (other for other in checkout.graph.names() if other != renamed)
    versions = [other for other in others if other.partition(":")[0] == name]
    if versions:
        raise ProjectError(
            f"an image named {name} would hide the group of {', '.join(versions)}",
            hint=f"name a version, such as {name}:1",
        )
    return Project(name, checkout.root, f"{PROJECTS}/{name}")


def _require_no_image(checkout: Checkout, name: str) -> None:
    """Raise ProjectError for the name of a matrix, or of an image that another directory describes."""
    for image, node in checkout.graph.images.items():
        is_group = node.options.matrix is not None and image.partition(":")[0] == name
        if not is_group and (image != name or not node.project.is_of_matrix):
            continue
        project = node.project
        key = "matrix" if node.options.matrix is not None else "arch"
        kind = "matrix" if node.options.matrix is not None else "project"
        what = "is a matrix already" if is_group else f"is an image of this {kind} already"
        raise ProjectError(
            f"{name} {what}",
            where=project_toml.place(project.options_file, project.shown_options, (key,)),
            hint=f"doit build:{name}, or choose another name",
        )


def find_base(checkout: Checkout, written: str = "") -> Base:
    """Return the base that a name means, or the only base of the checkout without a name.

    Raise ProjectError.
    """
    graph = checkout.graph
    projects = {name: node.project for name, node in graph.images.items()}
    if not written:
        # Of several images for machines, the name without a machine.
        owners = dict.fromkeys(
            project.owner
            for project in projects.values()
            if "/" not in (project.recipe.directory if project.recipe else project.path)
        )
        bases = [name for name in owners if name in graph.names()]
        if len(bases) != 1:
            which = f"several: {', '.join(bases)}" if bases else "none"
            raise ProjectError(
                f"no base given, and this checkout has {which}",
                hint="name one, or an image of a registry: doit new NAME --from BASE",
            )
        (written,) = bases
    name = local_name(written, graph.names())
    if name is not None:
        target = graph.aliases.get(name, name)
        return Base(written, projects[target] if target in projects else graph.resolve(target).project)
    reference = ImageReference.parse(written)
    close = near(written.removeprefix("localhost/"), graph.names())
    if reference.registry == "localhost" or (close and "/" not in written):
        raise _no_base(checkout, written)
    return Base(written, None)


def _is_plausible(written: str) -> bool:
    """Return whether a reference may be meant for a registry: a misspelt project is one word."""
    return written == SCRATCH or not set("/:@").isdisjoint(written)


def _no_base(checkout: Checkout, written: str) -> ProjectError:
    close = near(written.removeprefix("localhost/"), checkout.graph.names())
    return ProjectError(
        f"there is no image named {written!r} in this checkout",
        hint=(f"did you mean {' or '.join(close)}? Otherwise " if close else "")
        + "write the image of a registry\nwith its host, as in docker.io/library/debian:12",
    )


def first_edf(checkout: Checkout, project: Project, base: Base) -> str:
    """Return the env.toml of a project whose image is not built yet; empty for the base `scratch`.

    Raise ProjectError or EdfError for a wrong template.
    """
    if base.project is None and base.written == SCRATCH:
        return ""
    official = f"{checkout.images_root}/{base.project.path}/{EDF}" if base.project else ""
    if base.project and not os.path.exists(official):
        # A base that only this clone has.
        official = str(base.project.edf)
    values = {
        "base_environment": official,
        "image": "" if base.project else _edf_image(ImageReference.parse(base.written)),
    }
    rendered = _filled(checkout, f"{EDF}.j2", values)
    try:
        schema.check(rendered, "rendered text")
    except EdfError as error:
        raise EdfError(
            "the template does not make a valid EDF",
            where=f"{TEMPLATES}/{EDF}.j2",
            quote=(f"{error.where}: {error.what}", *error.quote),
        ) from None
    # merge marks the generated lines, which the env step removes again.
    return merge.merge(None, rendered, project.shown(EDF))


def _edf_image(reference: ImageReference) -> str:
    """Return a registry reference in the form of an EDF: `nvcr.io#nvidia/pytorch:25.01-py3`."""
    written = str(reference)
    if reference.registry is None:
        return written
    return f"{reference.registry}#{written.removeprefix(f'{reference.registry}/')}"


def _filled(checkout: Checkout, name: str, values: Mapping[str, object]) -> str:
    where = f"{TEMPLATES}/{name}"
    try:
        text = (checkout.root / where).read_text(encoding="utf-8")
    except OSError as error:
        raise ProjectError(
            f"the template of a new project cannot be read: {error.strerror}",
            where=where,
            hint=f"`git checkout -- {TEMPLATES}` brings it back",
        ) from None
    except UnicodeDecodeError:
        raise ProjectError("the template is not UTF-8", where=where, hint="save it as UTF-8") from None
    return template.fill(text, where, values, ProjectError)
