"""`doit report`: one self-contained HTML page about the checkout, its images and its last run."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError
from rc_tasks.state.checkout import GENERATED
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.views import tables
from rc_tasks.views.report.overview import overview
from rc_tasks.views.report.page import render

DEFAULT_OUTPUT = f"{GENERATED}/report.html"


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The page is one self-contained file: copy it, mail it or put it on a web server. Its"
        " templates are templates/report.*"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="",
        metavar="FILE",
        help="the file to write, in a directory that is made if it is missing; - for standard output;"
        f" {DEFAULT_OUTPUT} of the checkout by default",
    )


def run(args: Namespace) -> int:
    """Write the page to the file that the arguments name, or to standard output."""
    current = session()
    output: str = args.output
    if output == "-":
        sys.stdout.buffer.write(page(current).encode())
        return 0
    if output.endswith("/"):
        raise RcError("is a directory, not a file", where=output, hint="name a file in it with -o")
    path = Path(output) if output.strip() else current.checkout.root / DEFAULT_OUTPUT
    write(current, path)
    print(f"{tables.printable(os.path.abspath(path))}  {tables.size(path.stat().st_size)}")
    return 0


def write(current: Session, path: Path) -> None:
    """Write the page. Raise RcError when a template is broken or the file cannot be written."""
    # Replacing a symlink would break it, so write the file behind it.
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        raise RcError("is not a regular file", where=path, hint="name another file with -o")
    text = page(current)
    try:
        write_atomically(target, text)
    except OSError as error:
        raise RcError(
            f"cannot be written: {error.strerror}", where=path, hint="name another file with -o"
        ) from None


def page(current: Session) -> str:
    """Return the page as HTML, from the current state of the checkout."""
    return render(overview(current.checkout, current.judge), current.checkout.root)
