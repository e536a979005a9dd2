"""EDFs in reach, and the images that they name: an image that jobs start from is not removed.

In reach are the user's own (`EDF_PATH`, else `~/.edf`), those of the checkout, and all that these
extend. They are read as text: one that cannot be resolved here, for want of a variable, counts as well.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.edf.chain import SUFFIX, search_path
from rc_tasks.state.checkout import Checkout
from rc_tasks.util.safe_read import read_bytes

# What stands in quotes; TOML's strings of several lines hold no path.
_QUOTED = re.compile(r"\"([^\"\n]+)\"|'([^'\n]+)'")
# Nobody's EDF is larger.
_MOST_BYTES = 1 << 20


def naming(checkout: Checkout, environ: Mapping[str, str] = os.environ) -> Callable[[str], bool]:
    """Return a function that tests whether an EDF in reach contains a text; its first call reads all."""
    texts: list[str] = []

    def named(text: str) -> bool:
        if not texts:
            texts.extend(("", *(text for _, text in _texts(checkout, environ))))
        return any(text in content for content in texts)

    return named


def that_name(checkout: Checkout, text: str, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the EDFs in reach that contain a text."""
    return sorted(path for path, content in _texts(checkout, environ) if text in content)


def _texts(checkout: Checkout, environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    directories: tuple[Path, ...] = ()
    with contextlib.suppress(RcError):
        directories = search_path(environ)
    todo = [node.project.edf for node in checkout.graph.images.values()]
    for directory in directories:
        todo += sorted(directory.glob(f"*{SUFFIX}"))
    seen = set()
    while todo:
        path = todo.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        text = _text(real)
        yield path, text
        # What it extends is among its words; those that name no EDF are no file.
        for quoted in _QUOTED.finditer(text):
            word = os.path.expandvars(quoted[1] or quoted[2])
            if word.endswith(SUFFIX):
                todo.append(path.parent / word)
            elif "/" not in word:
                todo += [directory / f"{word}{SUFFIX}" for directory in directories]


def _text(path: str) -> str:
    # A pipe would be waited for.
    with contextlib.suppress(OSError):
        if os.path.isfile(path) and os.path.getsize(path) <= _MOST_BYTES:
            return read_bytes(path).decode(errors="replace")
    return ""
