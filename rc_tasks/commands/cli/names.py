"""Names for shell completion.

Only directories and the matrices in them are read, because completion must answer faster than a user
notices.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rc_tasks.model.graph.project import Alias, Project

KINDS = ("build", "podman", "enroot", "env")


def print_names(words: list[str]) -> int:
    """Print completions. `words` are `tasks` or `names`, and the word to complete; both are optional."""
    what, word = (*words, "", "")[:2]
    sys.stdout.writelines(f"{name}\n" for name in completions(word, tasks=what == "tasks"))
    return 0


def completions(word: str, *, tasks: bool) -> Iterator[str]:
    """Yield the names that begin with a word: of tasks, and unless `tasks`, of images too."""
    names = _names()
    if not tasks:
        yield from (name for name in names if name.startswith(word))
        if not word:
            return
    for kind in KINDS:
        # Without a prefix, offer build only: all kinds would be four lines for each image.
        if word.startswith(f"{kind}:") or (kind.startswith(word) and (word or kind == "build")):
            if kind == "build":
                yield kind
            yield from (task for name in names if (task := f"{kind}:{name}").startswith(word))


def _names() -> list[str]:
    """Return images, aliases and groups of versions of the checkout around the working directory."""
    from rc_tasks.model.graph.project import Broken, discover

    here = Path.cwd()
    root = next((path for path in (here, *here.parents) if (path / "dodo.py").is_file()), None)
    if root is None:
        return []
    names = {
        name
        for project in discover(root)
        if not isinstance(project, Broken)
        for name in _images(project)
    }
    return sorted({*names, *(name.partition(":")[0] for name in names)})


def _images(project: "Project | Alias") -> Iterator[str]:
    """Yield the names of a project's images; of a matrix, they are those of its versions."""
    from rc_tasks.model.graph.project import Project

    if isinstance(project, Project) and project.options_file.is_file():
        from rc_tasks.errors import RcError
        from rc_tasks.model.config import project_toml

        # Other commands report what is wrong in the file.
        with contextlib.suppress(RcError):
            matrix = project_toml.load(project.options_file, project.shown_options).matrix
            if matrix is not None:
                yield from (f"{project.name}:{version}" for version in matrix.versions)
                return
    yield project.name
