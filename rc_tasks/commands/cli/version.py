"""Version of this program, with the commit when it runs from a git checkout."""

from importlib.metadata import version as installed
from pathlib import Path

from rc_tasks.tools import git


def version() -> str:
    """Return a line such as `rc_tasks 0.1.0, commit 0123456789ab`."""
    source = Path(__file__).resolve().parents[3]
    # Below another project's repository, git would report the commit of that project.
    commit = git.commit(source) if (source / ".git").exists() else None
    suffix = f", commit {commit.id[:12]}{' with changes' if commit.dirty else ''}" if commit else ""
    return f"rc_tasks {installed('rc-tasks')}{suffix}"
