"""The seconds of the parts of a publishing step.

    python -m tests.support.step_parts NAME

runs the enroot step of an image in the checkout around the current directory, and prints the parts that
took longest. Parts that run side by side count each.
"""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

from rc_tasks.steps import __main__ as steps
from rc_tasks.steps.publish import contents, merge, publish, squash

# Where each is looked up when it is called, its name there, and what it is.
_PARTS = (
    (merge, "read_layer", "read the tables of the layers"),
    (merge, "stack", "stack the layers"),
    (merge, "edited", "edit the tree"),
    (merge, "write", "write the image: copy data, make tables"),
    (merge._Stacked, "require_verified", "wait for the digests of the layers"),
    (contents.ContentsWalk, "run", "look for packages"),
    (publish, "blocks_digest", "digest of the image"),
    (squash, "check", "check the image with unsquashfs"),
    (squash, "publish", "sync the image and put it in place"),
)


def main(name: str) -> int:
    """Run the step and print its parts."""
    seconds: dict[str, float] = {}
    for owner, function, what in _PARTS:
        setattr(owner, function, _timed(getattr(owner, function), what, seconds))
    started = time.perf_counter()
    status = steps.main(["enroot", name])
    print(f"  enroot step by itself {time.perf_counter() - started:.2f} s")
    for what, took_s in seconds.items():
        print(f"    {took_s:5.2f} s {what}")
    return status


def _timed(function: Callable[..., Any], what: str, seconds: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **keywords)
        finally:
            seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - started

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
