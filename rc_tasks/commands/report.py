"""`doit report`: the checkout, its images and its last run on one HTML page that needs nothing else."""

import base64
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from doit.exceptions import InvalidCommand

from rc_tasks.commands import bases, details, show
from rc_tasks.commands.base import CheckoutCommand
from rc_tasks.commands.charts import timeline
from rc_tasks.commands.drawing import colours, style, svg
from rc_tasks.commands.log import readable
from rc_tasks.engine.session import Session
from rc_tasks.errors import RcError
from rc_tasks.model import template
from rc_tasks.model.picture import Kind, Link
from rc_tasks.state.checkout import GENERATED
from rc_tasks.state.files import write_atomically
from rc_tasks.state.overview import Built, Image, Overview, overview
from rc_tasks.state.status import State

USUAL = f"{GENERATED}/report.html"
TEMPLATE = "templates/report.html.j2"
STYLES = "templates/report.css"
PROGRAM = "templates/report.js"
# The order in which they want to be looked at.
URGENT = (State.FAILED, State.BUILDING, State.STALE, State.MISSING, State.FRESH)
_SHORT_ID = 8
# What the HTML parser, or JavaScript of old, would see in a JSON text.
_IN_SCRIPTS = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


class Report(CheckoutCommand):
    """Writes the page."""

    doc_purpose = "write one HTML page: images, graph, last run, failures"
    doc_usage = ""
    doc_description = (
        "The page is a single file without links to anything else: it can be copied, mailed or put on a"
        " web server. Its templates are templates/report.*"
    )
    cmd_options: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "output",
            "short": "o",
            "long": "output",
            "type": str,
            "default": "",
            "help": f"the file to write, - for standard output; otherwise {USUAL} of the checkout",
        },
    )

    def show(self, opened: Session, options: dict[str, Any], names: list[str]) -> int:
        if names:
            raise InvalidCommand(f"the page shows all images: {names[0]!r} has no meaning here")
        output = options["output"]
        if output == "-":
            sys.stdout.buffer.write(page(opened).encode())
            return 0
        path = Path(output) if output.strip() else opened.checkout.root / USUAL
        write(opened, path)
        print(f"{show.printable(os.path.abspath(path))}  {show.size(path.stat().st_size)}")
        return 0


def write(opened: Session, path: Path) -> None:
    """Write the page. Raises RcError when a template is broken or the file cannot be written."""
    # Whoever links to it from elsewhere keeps the link.
    real = Path(os.path.realpath(path))
    if os.path.lexists(real) and not real.is_file():
        raise RcError("this is no file that a page could replace", where=path, hint="name another one")
    write_atomically(real, page(opened))


def page(opened: Session) -> str:
    """The page as it is now."""
    return render(overview(opened.checkout, opened.judge), opened.checkout.root)


def render(shown: Overview, root: Path) -> str:
    """The page of these values, with the templates of the checkout at `root`."""
    images = sorted(shown.images, key=lambda image: _natural(image.name))
    counts = Counter(image.state for image in images)
    style_element, style_hash = _inlined("style", "\n".join((_template(root, STYLES), _drawn())))
    script, script_hash = _inlined("script", _template(root, PROGRAM))
    values: dict[str, object] = {
        "shown": shown,
        "images": images,
        "counts": [(state, counts[state]) for state in URGENT],
        "urgent": {str(state): number for number, state in enumerate(URGENT)},
        "total_bytes": sum(image.size_bytes or 0 for image in images),
        "run": timeline(shown.tries) if shown.tries else None,
        "outcomes": list(Counter(str(entry.outcome) for entry in shown.tries).items()),
        "graph": _safe(svg(shown.picture, _links(shown))),
        "policy": f"default-src 'none'; style-src {style_hash}; script-src {script_hash};"
        " base-uri 'none'; form-action 'none'",
        "style": style_element,
        "script": script,
        "data": _safe(in_script(details.data(shown, images))),
    }
    return template.fill_page(_template(root, TEMPLATE), TEMPLATE, values, _FILTERS, RcError)


def in_script(value: object) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":")).translate(_IN_SCRIPTS)


def _links(shown: Overview) -> dict[str, str]:
    """Where the nodes of the picture lead: to the rows of the table."""
    targets = {node.name: node.name for node in shown.picture.nodes if node.kind is Kind.IMAGE}
    aliases = {e.below: e.above for e in shown.picture.edges if e.link is Link.ALIAS}
    return {name: f"#{quote(_row_id(image))}" for name, image in {**targets, **aliases}.items()}


def _row_id(name: str) -> str:
    return f"image:{show.printable(name)}"


def _drawn() -> str:
    """The rules of the states' colours, for the page and for the graph in it."""
    return colours(".report", ".stateless") + style()


def _template(root: Path, name: str) -> str:
    try:
        return (root / name).read_text(encoding="utf-8")
    except OSError as error:
        raise RcError(
            f"the report's template cannot be read: {error.strerror}",
            where=name,
            hint=f"`git checkout -- {name}` brings it back",
        ) from None
    except UnicodeDecodeError:
        raise RcError("the template is not UTF-8", where=name, hint="save it as UTF-8") from None


def _inlined(element: str, text: str) -> tuple[Any, str]:
    """A style or script element, and the source expression that allows this one and no other."""
    # Inside of strings, where alone it can stand, the backslash means nothing.
    text = text.replace("</", "<\\/").replace("\r\n", "\n")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return _safe(f"<{element}>{text}</{element}>"), f"'sha256-{digest}'"


def _safe(html: str) -> Any:
    """Text that is HTML already."""
    from markupsafe import Markup

    return Markup(html)  # noqa: S704 - each caller has escaped, or holds a template


def _natural(name: str) -> list[tuple[str, int]]:
    """Version 10 comes after version 9."""
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _name(name: str) -> Any:
    """A name that may be broken where its parts end, and is still copied whole."""
    return _safe("<wbr>").join(re.split(r"(?<=[/:@-])", show.printable(name)))


def _local(time: datetime, form: str) -> str:
    return time.astimezone().strftime(form)


def _when(iso: str) -> str:
    try:
        return show.when(iso)
    except ValueError:
        # Records and failures are files: a damaged one still has an image.
        return show.printable(iso)


def _last(image: Image) -> Built | None:
    """The last run in which an image was made or published."""
    return next((built for built in reversed(image.built) if built.durations_s), None)


_FILTERS: dict[str, Callable[..., object]] = {
    "text": show.printable,
    "name": _name,
    "size": show.size,
    "when": _when,
    "duration": show.duration,
    "local": _local,
    "readable": lambda line: readable(line).rstrip("\n"),
    "row_id": _row_id,
    "row_link": lambda name: f"#{quote(_row_id(name))}",
    "short": lambda commit: commit[:_SHORT_ID],
    "pin": lambda base: bases.words(base)[1],
    "base_name": lambda base: _name(bases.words(base)[0]),
    "pinned": details.pinned,
    "last": _last,
    "lines": lambda text: [show.printable(line) for line in text.split("\n")],
}
