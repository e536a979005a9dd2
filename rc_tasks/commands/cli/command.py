"""Runner of the commands that do not need doit, and the images that arguments of commands name."""

import fnmatch
import os
import posixpath
import sys
from collections.abc import Sequence
from pathlib import Path

from rc_tasks.commands.cli.errors import discard_output
from rc_tasks.commands.cli.parser import UsageError, parsed
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.engine.session import TASK_KINDS, Session, remember_digests
from rc_tasks.errors import ProjectError, RcError
from rc_tasks.model.graph.project import PROJECTS
from rc_tasks.state.checkout import DODO, Checkout, images_of


def execute(name: str, words: Sequence[str]) -> int:
    """Parse the arguments of a command, run it and return its exit status. Raise RcError."""
    args = parsed(name, words)
    try:
        status: int = COMMANDS[name].load().run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # In `doit list | head`, head stops reading early: that is not a failure.
        discard_output()
        return 0
    else:
        return status
    finally:
        remember_digests()


def enter(directory: str | None, file: str | None) -> None:
    """Change to the directory of the options -d and -f, as `make -C` does. Raise UsageError.

    A relative `file` is relative to `directory`. The name dodo.py alone is found from any folder.
    """
    if directory is not None:
        if not os.path.isdir(directory):
            raise _absent(directory, "directory", "-d")
        os.chdir(directory)
    if file not in {None, DODO}:
        if not os.path.isfile(file):
            raise _absent(file, "file", "-f")
        os.chdir(os.path.dirname(file) or ".")


def _absent(path: str, kind: str, option: str) -> UsageError:
    return UsageError(
        f"there is no such {kind}",
        where=path,
        hint=f"name another {kind} with {option}, or leave {option} out in a checkout",
    )


def not_published(name: str) -> RcError:
    """Return the error of each command that needs a published image."""
    return RcError(f"{name} is not published yet", hint=f"doit build:{name}")


def images(current: Session, names: list[str]) -> list[str]:
    """Return the images that arguments name, or all images when there is no argument.

    An argument is the name of an image, an alias, a group of versions, a pattern with `*`, a directory,
    or a task of one of these. Raise ProjectError for any other name.
    """
    graph = current.checkout.graph
    if not names:
        return [*dict.fromkeys((*graph.images, *graph.broken))]
    return [*dict.fromkeys(image for name in names for image in _images(current.checkout, name))]


def _images(checkout: Checkout, argument: str) -> list[str]:
    """Return the images that one argument means. Raise ProjectError."""
    graph = checkout.graph
    all_images = dict.fromkeys((*graph.images, *graph.broken))
    kind, name = split_task(checkout, argument)
    if kind and not name:
        if argument == "build":
            return list(all_images)
        raise ProjectError(
            f"{argument!r} names a step without an image",
            hint=f"write {kind}:NAME; `doit list` shows all images",
        )
    if "*" in name:
        matches = fnmatch.filter(graph.names(), name)
        if not matches:
            raise ProjectError(f"no image matches {name!r}", hint="`doit list` shows all images")
        return [graph.aliases.get(match, match) for match in matches]
    name = graph.aliases.get(name, name)
    if name in all_images:
        return [name]
    group = [image for image in all_images if image.partition(":")[0] == name]
    if group:
        return group
    inside = images_in(checkout, name)
    if inside is None:
        graph.resolve(name)  # raises an error that suggests the nearest names
    return inside or []


def split_task(checkout: Checkout, argument: str) -> tuple[str, str]:
    """Split the name of a task into its kind and its image; the kind of an image's name is empty."""
    kind, _, name = argument.partition(":")
    if kind in TASK_KINDS and argument not in checkout.graph.names():
        return kind, name
    return "", argument


def images_in(checkout: Checkout, path: str) -> list[str] | None:
    """Return the images whose directories are at, below or above an existing directory.

    The path is relative to the working directory or to the checkout. Return None for a word that is not
    the path of a directory. Raise ProjectError for a directory without images.
    """
    if "/" not in path and path not in {".", ".."}:
        return None
    places = (path, f"{checkout.root}/{path}")
    place = next((os.path.realpath(place) for place in places if os.path.isdir(place)), None)
    if place is None:
        return None
    graph = checkout.graph
    inside = []
    for name in dict.fromkeys((*graph.images, *graph.broken)):
        directories = {checkout.directory(name)}
        if (node := graph.images.get(name)) is not None:
            directories.add(posixpath.dirname(node.project.shown_options))
        paths = (f"{checkout.root}/{directory}/" for directory in directories)
        if any(path.startswith(f"{place}/") or f"{place}/".startswith(path) for path in paths):
            inside.append(name)
    if not inside:
        raise ProjectError(
            "there is no image in this directory", where=path, hint="`doit list` shows all images"
        )
    return inside


def project_or_alias(checkout: Checkout, word: str) -> str:
    """Return the name of one project or alias that a word means: itself, or that of a directory.

    The path of an alias means the alias. Raise ProjectError for a directory with several projects.
    """
    path = Path(word)
    if "/" in word and path.is_symlink() and path.parent.resolve() == checkout.root / PROJECTS:
        return path.name
    inside = images_in(checkout, word)
    project = path.resolve().name
    if inside and set(inside) <= {*images_of(checkout, project), project}:
        return project
    if inside is not None and len(inside) > 1:
        raise ProjectError(f"has several projects: {', '.join(inside)}", where=word, hint="name one")
    return inside[0] if inside else word


def tasks(current: Session, words: Sequence[str], *, bare: bool) -> list[str]:
    """Return words with each directory replaced by the tasks of its images.

    `bare`: replace names and patterns of images, too. Other words stay as they are.
    """
    checkout, graph = current.checkout, current.checkout.graph
    known = {*graph.names(), *(name.partition(":")[0] for name in graph.names())}
    named: list[str] = []
    for word in words:
        kind, name = split_task(checkout, word)
        if not (kind or bare):
            named.append(word)
        elif not kind and name in known:
            named.append(f"build:{name}")
        elif kind and kind != "build" and name in graph.aliases:
            # Only build: has tasks of aliases.
            named.append(f"{kind}:{graph.aliases[name]}")
        elif not kind and "*" in name:
            named += [f"build:{image}" for image in _images(checkout, name)]
        else:
            inside = images_in(checkout, name)
            named += [word] if inside is None else [f"{kind or 'build'}:{image}" for image in inside]
    return named
