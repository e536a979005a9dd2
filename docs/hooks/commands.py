"""Help of every command, put into docs/reference/commands.md when the site is built."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rc_tasks.commands.cli.table import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = "reference/commands.md"
MARKER = "<!-- the help of every command -->"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marker on the page of commands (an event of MkDocs)."""
    if page.file.src_uri != PAGE:
        return markdown
    if MARKER not in markdown:
        raise ValueError(f"docs/{PAGE}: the line {MARKER} is missing")
    sections = (f"### doit {name}\n\n```text\n{help_of(name)}\n```\n" for name in sorted(COMMANDS))
    return markdown.replace(MARKER, "\n".join(sections))


def help_of(name: str) -> str:
    """Return what `doit help NAME` prints."""
    doit = Path(sys.executable).with_name("doit")
    environ = {**os.environ, "COLUMNS": "90"}  # what fits on the page
    done = subprocess.run(
        (doit, "help", name), cwd=ROOT, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
