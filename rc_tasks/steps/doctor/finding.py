"""Findings of the checks of a host or node, with their fixes."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is; only problems make `doit doctor` exit with an error."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, and how to fix a problem."""

    level: Level
    what: str
    hint: str = ""
