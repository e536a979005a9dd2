"""git: which commit a checkout is at."""

from dataclasses import dataclass
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command


@dataclass(frozen=True, slots=True)
class Commit:
    """A checkout's commit in full hex, and whether a directory in it differs from that commit."""

    id: str
    dirty: bool


def commit(directory: Path) -> Commit | None:
    """The commit that a directory is at, or None where git cannot tell (no repository, no git)."""
    try:
        head = command.capture(_git(directory, "rev-parse", "--verify", "HEAD")).stdout.strip()
        changes = command.capture(_git(directory, "status", "--porcelain", "--", ".")).stdout
    except RcError:
        return None
    return Commit(head, bool(changes))


def _git(directory: Path, *argv: str) -> Command:
    # An official checkout belongs to somebody else than its nightly builder; we only read it.
    return Command(("git", "-c", "safe.directory=*", "-C", str(directory), *argv))
