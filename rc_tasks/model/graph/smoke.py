"""Smoke tests: the commands that have to succeed in an image before it is published."""

import shlex
from collections.abc import Collection

from msgspec import Struct

from rc_tasks.model.graph.graph import ImageGraph, ImageNode

_WIDTH = 120


class SmokeTest(Struct, frozen=True):
    """One command with its time limit; `where` is the project.toml that has it."""

    argv: tuple[str, ...]
    timeout_s: int
    where: str

    def __str__(self) -> str:
        """Return the command on one line, cut to the width of messages."""
        return self.line if len(self.line) <= _WIDTH else f"{self.line[:_WIDTH]} …"

    @property
    def line(self) -> str:
        """The whole command, with control characters escaped."""
        text = shlex.join(self.argv)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def smoke_tests(graph: ImageGraph, node: ImageNode) -> tuple[SmokeTest, ...]:
    """Return the tests of an image and of its FROM bases, the tests of the bases first, each once.

    Images that it only copies from do not add their tests. If several images have the same command, the
    image nearest to the node sets its time limit.
    """
    levels: list[ImageNode] = []
    at: ImageNode | None = node
    while at is not None:
        levels.append(at)
        base = at.dockerfile.final_base
        # An empty list turns off the tests of the bases.
        inherits = at.options.smoke != () and base is not None
        at = graph.images.get(at.local.get(base.name, "")) if inherits and base is not None else None
    tests: dict[tuple[str, ...], SmokeTest] = {}
    for level in reversed(levels):
        for argv in level.options.smoke or ():
            where = level.project.shown_options
            tests[argv] = SmokeTest(argv, level.options.smoke_timeout_s, where)
    return tuple(tests.values())


def lacking(tests: tuple[SmokeTest, ...], passed: Collection[tuple[str, ...]]) -> tuple[SmokeTest, ...]:
    """Return the tests whose commands are not among those that an image has passed."""
    return tuple(test for test in tests if test.argv not in passed)
