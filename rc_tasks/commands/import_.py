"""`doit import FILE`: projects made from a bake or compose file."""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from msgspec import to_builtins
from msgspec.structs import replace

from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json
from rc_tasks.commands.new import unused
from rc_tasks.engine.session import session
from rc_tasks.engine.upkeep import imports
from rc_tasks.engine.upkeep.imports import FileState, Plan
from rc_tasks.errors import ImportedFileError, ProjectError
from rc_tasks.model.graph.project import PROJECT_TOML, PROJECTS
from rc_tasks.model.imported.project import NotTaken, ProjectRecipe, Recipes
from rc_tasks.state.checkout import Checkout, arch_of, matrix_of
from rc_tasks.util import toml_text
from rc_tasks.util.safe_read import read_bytes, unreadable
from rc_tasks.util.text import printable, printable_lines

_BAKE = (".hcl", ".json")
_COMPOSE = (".yaml", ".yml")


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The images of a bake file (.hcl, .json) or a compose file (.yaml, .yml) become projects with a"
        " project.toml that says the same; further tags become aliases. Nothing else is changed, and no"
        " file is overwritten. What project.toml cannot say is listed. Paths in a bake file are relative"
        " to the working directory, as in bake, and those in a compose file to its directory. Variables"
        " of the environment override those of the file."
    )
    parser.usage = "%(prog)s [OPTION ...] FILE ..."
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="a compose file, or bake files, which count as one"
    )
    add_flag(parser, "-n", "--dry-run", help="show what would be written, and write nothing")
    add_json(parser)


def run(args: Namespace) -> int:
    """Write the projects of a file."""
    checkout = session().checkout
    groups = {name.partition(":")[0] for name in checkout.graph.names() if ":" in name}
    # A machine is not a version: `app:x86_64` is the image of `app` for it.
    groups = {name for name in groups if matrix_of(checkout, name) or not arch_of(checkout, name)}
    recipes, base = _read(args.files, groups)
    possible, impossible = _possible(checkout, recipes)
    origin = " and ".join(map(_origin, args.files))
    planned = imports.plan(checkout, possible, base, origin)
    planned = replace(
        planned, not_taken=(*recipes.not_taken, *impossible, *planned.not_taken), notes=recipes.notes
    )
    if not args.dry_run:
        imports.write(checkout, planned)
    if args.json:
        print(json.dumps(to_builtins(planned), indent=2))
    else:
        for line in _lines(planned, dry_run=args.dry_run):
            print(line)
    return int(FileState.DIFFERENT in planned.states or not planned.states)


def _read(files: list[str], groups: set[str]) -> tuple[Recipes, Path]:
    """Return the recipes of files, and the directory of their paths. Raise ImportedFileError."""
    if not files:
        raise UsageError("FILE is missing", hint="doit import docker-bake.hcl")
    from rc_tasks.model.imported import bake, compose

    if all(file.endswith(_BAKE) for file in files):
        return bake.read({file: _text(file) for file in files}, os.environ, groups), Path.cwd()
    if len(files) == 1 and files[0].endswith(_COMPOSE):
        directory = os.path.realpath(os.path.dirname(files[0]) or ".")
        return compose.read(_text(files[0]), files[0], os.environ, groups), Path(directory)
    raise UsageError(
        "expected one compose file (.yaml, .yml), or bake files (.hcl, .json)",
        where=" ".join(files),
        hint="run the command once for each compose file; rename a file whose name ends otherwise",
    )


def _text(file: str) -> str:
    try:
        content = read_bytes(file)
    except OSError as error:
        raise unreadable(ImportedFileError, error, file, "name a file that you may read") from None
    return toml_text.decode(content, file, ImportedFileError).removeprefix("\ufeff")


def _origin(file: str) -> str:
    """Return a file's name for a comment, the same from each directory that it is imported in."""
    return printable(os.path.basename(file))


def _possible(checkout: Checkout, recipes: Recipes) -> tuple[list[ProjectRecipe], list[NotTaken]]:
    """Return the recipes whose project exists or can be made, and the others with the reason."""
    possible: list[ProjectRecipe] = []
    impossible: list[NotTaken] = []
    for recipe in recipes.recipes:
        try:
            if imports.directory_of(checkout, recipe.name) is None:
                unused(checkout, recipe.name)
        except ProjectError as error:
            what = f"{recipe.build.source!r} is not taken: {error.headline}"
            impossible.append(NotTaken(recipe.build.where, what, error.hint or "choose another tag"))
        else:
            possible.append(recipe)
    return possible, impossible


def _lines(planned: Plan, *, dry_run: bool) -> Iterator[str]:
    """Yield what was written, what differs, and what was not taken."""
    writes = "would write" if dry_run else "wrote"
    for project in planned.projects:
        path = f"{project.directory}/{PROJECT_TOML}"
        match project.state:
            case FileState.NEW:
                yield f"{writes} {path}"
                if dry_run:
                    yield from (
                        f"    {line}".rstrip() for line in printable_lines(project.text).splitlines()
                    )
            case FileState.DIFFERENT:
                yield f"{path} differs and stays as it is"
                yield from (f"    {printable(line)}" for line in project.differences)
    for alias in planned.aliases:
        path = f"{PROJECTS}/{alias.name}"
        if alias.state is FileState.NEW:
            yield f"{writes} {path} -> {alias.target}"
        elif alias.state is FileState.DIFFERENT:
            yield f"{path} is no alias of {alias.target} and stays as it is"
    for item in planned.not_taken:
        yield printable(f"{item.where}: {item.what}")
        yield printable(f"  next: {item.hint}")
    for note in planned.notes:
        yield printable(f"note: {note}")
    if not planned.states:
        yield "nothing to write: the file makes no image that can be imported"
    elif FileState.NEW not in planned.states:
        same = planned.states.count(FileState.SAME)
        yield f"nothing to write: {same} of {len(planned.states)} files say the same already"
    elif not dry_run:
        yield "next: `git status` and `doit list`, then commit"
