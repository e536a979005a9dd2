"""`doit report`: the checkout, its images and its last run on one HTML page that needs nothing else."""

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

USUAL = f"{GENERATED}/report.html"


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The page is a single file without links to anything else: it can be copied, mailed or put on a"
        " web server. Its templates are templates/report.*"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="",
        metavar="FILE",
        help=f"the file to write, - for standard output; otherwise {USUAL} of the checkout",
    )


def run(args: Namespace) -> int:
    """Write the page."""
    opened = session()
    output: str = args.output
    if output == "-":
        sys.stdout.buffer.write(page(opened).encode())
        return 0
    path = Path(output) if output.strip() else opened.checkout.root / USUAL
    write(opened, path)
    print(f"{tables.printable(os.path.abspath(path))}  {tables.size(path.stat().st_size)}")
    return 0


def write(opened: Session, path: Path) -> None:
    """Write the page. Raises RcError when a template is broken or the file cannot be written."""
    # Whoever links to it from elsewhere keeps the link.
    real = Path(os.path.realpath(path))
    if os.path.lexists(real) and not real.is_file():
        raise RcError("this is no file that a page could replace", where=path, hint="name another one")
    text = page(opened)
    try:
        write_atomically(real, text)
    except OSError as error:
        raise RcError(
            f"cannot be written: {error.strerror}", where=path, hint="name another file with -o"
        ) from None


def page(opened: Session) -> str:
    """The page as it is now."""
    return render(overview(opened.checkout, opened.judge), opened.checkout.root)
