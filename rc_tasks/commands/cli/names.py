"""Names for shell completion, read from directories alone: it is asked at every press of a key."""

import sys
from collections.abc import Iterator
from pathlib import Path

KINDS = ("build", "podman", "enroot", "env")


def print_names(words: list[str]) -> int:
    """Print what a word may become: `tasks` or `names`, and the word as it is."""
    what, word = (*words, "", "")[:2]
    sys.stdout.writelines(f"{name}\n" for name in completions(word, tasks=what == "tasks"))
    return 0


def completions(word: str, *, tasks: bool) -> Iterator[str]:
    """Names that begin with a word; names of tasks alone, or those of images as well."""
    names = _names()
    if not tasks:
        yield from (name for name in names if name.startswith(word))
        if not word:
            return
    for kind in KINDS:
        # All kinds at once would be four lines for each image.
        if word.startswith(f"{kind}:") or (kind.startswith(word) and (word or kind == "build")):
            if kind == "build":
                yield kind
            yield from (task for name in names if (task := f"{kind}:{name}").startswith(word))


def _names() -> list[str]:
    """Images, aliases and groups of versions of the checkout around the working directory."""
    from rc_tasks.model.graph.project import Broken, discover

    here = Path.cwd()
    root = next((path for path in (here, *here.parents) if (path / "dodo.py").is_file()), None)
    if root is None:
        return []
    found = [each.name for each in discover(root) if not isinstance(each, Broken)]
    return sorted({*found, *(name.partition(":")[0] for name in found)})
