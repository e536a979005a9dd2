"""Versions of tools, and what is known of some of them."""

import re
from dataclasses import dataclass


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, such as `4.7.5`, to compare; none when it has none."""
    return tuple(map(int, re.findall(r"\d{1,6}", version.partition("-")[0])))


@dataclass(frozen=True, slots=True)
class Fault:
    """What a tool does wrong from one version on and before another.

    `does` follows the name of the tool and its version; `source` says where it is reported.
    """

    since: tuple[int, ...]
    before: tuple[int, ...]
    does: str
    advice: str
    source: str

    def affects(self, version: str) -> bool:
        """Whether that version has it."""
        return self.since <= numbers(version) < self.before
