"""Smoke tests: the commands that have to succeed in an image before it is published."""

import shlex
from collections.abc import Collection
from dataclasses import dataclass

from rc_tasks.model.graph.graph import ImageGraph, ImageNode
from rc_tasks.model.graph.project import RECIPE

_WIDTH = 120


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """One command with the time that it may take; `where` is the project.toml that asks for it."""

    argv: tuple[str, ...]
    timeout_s: int
    where: str

    def __str__(self) -> str:
        """The command as messages show it: one line, not too long."""
        return self.line if len(self.line) <= _WIDTH else f"{self.line[:_WIDTH]} …"

    @property
    def line(self) -> str:
        """The whole command, without what would confuse a terminal."""
        text = shlex.join(self.argv)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def wanted(graph: ImageGraph, node: ImageNode) -> tuple[SmokeTest, ...]:
    """The tests of an image and of those that it is built FROM, their bases' first, each once.

    What is only copied out of other images is no reason to run their tests. Of a command that is
    there twice, the image nearest to the node says how long it may take.
    """
    levels: list[ImageNode] = []
    at: ImageNode | None = node
    while at is not None:
        levels.append(at)
        base = at.dockerfile.final_base
        # An empty list turns off what is below.
        inherits = at.recipe.smoke != () and base is not None
        at = graph.images.get(at.local.get(base.name, "")) if inherits and base is not None else None
    found: dict[tuple[str, ...], SmokeTest] = {}
    for level in reversed(levels):
        for argv in level.recipe.smoke or ():
            where = level.project.shown(RECIPE)
            found[argv] = SmokeTest(argv, level.recipe.smoke_timeout_s, where)
    return tuple(found.values())


def lacking(tests: tuple[SmokeTest, ...], passed: Collection[tuple[str, ...]]) -> tuple[SmokeTest, ...]:
    """Those of the tests that an image which passed these commands has not passed."""
    return tuple(test for test in tests if test.argv not in passed)
