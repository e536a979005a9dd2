"""Findings of the checks of a host or node, with their fixes."""

from enum import StrEnum

from msgspec import Struct


class Level(StrEnum):
    """How bad a finding is; only problems make `doit doctor` exit with an error."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Struct, frozen=True):
    """The result of one check, and how to fix a problem."""

    level: Level
    what: str
    hint: str = ""
