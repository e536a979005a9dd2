"""Files that a watched build depends on, and which of them have changed."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import RcError
from rc_tasks.model.config import settings
from rc_tasks.model.graph.graph import ImageGraph
from rc_tasks.model.graph.pin import LOCK
from rc_tasks.model.graph.project import DOCKERFILES, EDF, PROJECT_TOML, PROJECTS
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge

# Temporary files and locks of vim, Emacs, JetBrains, GNOME and KDE. They are in the build context unless
# it ignores them, but opening an editor must not start a build.
_EDITORS = re.compile(
    r".*~|\..*\.sw[a-p]|4913|\.?#.*|.*___jb_(tmp|old)___|\.goutputstream-.*|\..*\.kate-swp"
)
# Mode, size, times and inode of a file; the mode alone of a directory; empty for what does not exist.
Stamp = tuple[int, ...]


class Inputs(Struct, frozen=True):
    """What the builds of some images depend on, as seen at one time.

    `stamps` has each file and directory by its absolute path, and files that may come to exist.
    `errors` say what prevents a build. `images` is the number of the images, bases included.
    """

    stamps: Mapping[str, Stamp]
    errors: tuple[str, ...]
    images: int

    @property
    def files(self) -> int:
        """The number of files that exist."""
        return sum(len(stamp) > 1 for stamp in self.stamps.values())

    @property
    def directories(self) -> list[Path]:
        """The directories in which a change of a file, or a new one, can be seen."""
        directories = {
            place
            for path, stamp in self.stamps.items()
            for place in (os.path.dirname(path), path if _is_directory(stamp) else "")
        }
        return [Path(path) for path in sorted(directories) if path]

    def changed(self, later: "Inputs") -> list[str]:
        """Return the paths that differ in `later`, files before directories."""
        return sorted(
            (
                path
                for path in self.stamps.keys() | later.stamps.keys()
                if self.stamps.get(path, ()) != later.stamps.get(path, ())
            ),
            key=lambda path: (
                _is_directory(later.stamps.get(path) or self.stamps.get(path, ())),
                path,
            ),
        )


def look(root: Path, names: Sequence[str], before: Inputs | None = None) -> Inputs:
    """Return what the builds of these images of a checkout depend on now.

    The paths of an image that cannot be read are those of `before`, so that its repair does not show all
    its files as new.
    """
    own = [*settings.files(root, os.environ, Path.home())]
    try:
        checkout = open_checkout(root)
    except RcError as error:
        stamps = _stamps([*_known(before), *map(str, own)])
        return Inputs(stamps, (str(error),), before.images if before is not None else 0)
    # A new project may be what a Dockerfile here names.
    own += (checkout.template, checkout.root / LOCK, checkout.root / PROJECTS)
    judge = Judge(checkout)
    reached = _with_bases(checkout.graph, names)
    errors, context = [], list[str]()
    for name in reached:
        own += _own_files(checkout, name)
        try:
            inputs = judge.listings.every_file(checkout.graph.resolve(name))
        except RcError as error:
            errors.append(str(error))
        else:
            context += (f"{checkout.root}/{path}" for path in inputs)
    paths = [path for path in context if not _EDITORS.fullmatch(os.path.basename(path))]
    for path in own:
        # A file that a symlink names is an input, unless the link is one in a build context.
        paths += (str(path), os.path.realpath(path)) if path.is_symlink() else (str(path),)
    images = len(reached)
    if errors and before is not None:
        # The bases of a Dockerfile that cannot be parsed are unknown.
        paths, images = [*_known(before), *paths], max(images, before.images)
    return Inputs(_stamps(paths), tuple(errors), images)


def made_by_builds(path: str) -> bool:
    """Return whether builds write this file, which people edit too."""
    return os.path.basename(path) in {EDF, LOCK}


def _with_bases(graph: ImageGraph, names: Sequence[str]) -> list[str]:
    """Return the images with all their bases, those included that cannot be built."""
    reached: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached[name] = None
            node = graph.images.get(name) or graph.unbuildable.get(name)
            todo += node.bases if node is not None else ()
    return list(reached)


def _own_files(checkout: Checkout, name: str) -> Iterator[Path]:
    """Yield the files of a project that are inputs of any step, whether they exist or not."""
    node = checkout.graph.images.get(name) or checkout.graph.unbuildable.get(name)
    if node is not None:
        yield from (node.project.dockerfile, node.project.options_file, node.project.edf)
    directory = checkout.root / checkout.directory(name)
    yield from (directory / file for file in (*DOCKERFILES, PROJECT_TOML))


def _known(before: Inputs | None) -> Iterable[str]:
    return before.stamps if before is not None else ()


def _stamps(paths: Iterable[str]) -> dict[str, Stamp]:
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> Stamp:
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    if stat.S_ISDIR(status.st_mode):
        # Its times also change with files that are not inputs.
        return (status.st_mode,)
    times_ns = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_mode, status.st_size, *times_ns, status.st_ino)


def _is_directory(stamp: Stamp) -> bool:
    return bool(stamp) and stat.S_ISDIR(stamp[0])
