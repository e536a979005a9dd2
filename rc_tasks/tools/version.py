"""Versions of tools, and known faults of some versions."""

import re

from msgspec import Struct


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as `4.7.5` for comparison; empty when it has none."""
    return tuple(map(int, re.findall(r"\d{1,6}", version.partition("-")[0])))


class Fault(Struct, frozen=True):
    """A fault that a tool has since one version and before another.

    `does` continues a sentence that begins with the tool and its version; `source` is the report.
    """

    since: tuple[int, ...]
    before: tuple[int, ...]
    does: str
    advice: str
    source: str

    def affects(self, version: str) -> bool:
        """Return whether a version has this fault."""
        return self.since <= numbers(version) < self.before
