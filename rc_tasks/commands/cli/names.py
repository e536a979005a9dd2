"""Names for shell completion.

Only directories and the versions of matrices are read, because completion must answer faster than a user
notices.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

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
    from rc_tasks.model.graph.project import PROJECT_TOML, Broken, Project, discover

    here = Path.cwd()
    root = next((path for path in (here, *here.parents) if (path / "dodo.py").is_file()), None)
    if root is None:
        return []
    names: set[str] = set()
    for entry in discover(root):
        if isinstance(entry, Broken):
            continue
        versions = _versions(f"{entry.base}/{PROJECT_TOML}") if isinstance(entry, Project) else ()
        names |= {f"{entry.name}:{version}" for version in versions} or {entry.name}
    return sorted({*names, *(name.partition(":")[0] for name in names)})


def _versions(path: str) -> Iterable[str]:
    """Return the versions of a matrix; nothing for a project.toml that is missing, wrong or has none."""
    # Most projects have no such file, and this is the fastest call that says so.
    if not os.access(path, os.R_OK):
        return ()
    from rc_tasks.util.safe_read import read_bytes

    try:
        text = read_bytes(path)
        if b"matrix" not in text:
            return ()
        import tomllib

        from rc_tasks.model.config.matrix import parse_matrix

        table = tomllib.loads(text.decode().removeprefix("\ufeff")).get("matrix")
        return parse_matrix(table).versions if table else ()
    except (OSError, ValueError, RecursionError):
        return ()
