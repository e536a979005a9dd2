"""Version of this program."""

from importlib.metadata import version as installed
from pathlib import Path

from rc_tasks.tools import git


def version() -> str:
    """Such as `rc_tasks 0.1.0, commit 0123456789ab`; the commit only in a git checkout."""
    source = Path(__file__).resolve().parents[3]
    # Installed in a directory of somebody else's repository, it has no commit.
    commit = git.commit(source) if (source / ".git").exists() else None
    shown = f", commit {commit.id[:12]}{' with changes' if commit.dirty else ''}" if commit else ""
    return f"rc_tasks {installed('rc-tasks')}{shown}"
