"""Render the HTML page of `doit report`."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rc_tasks.errors import RcError
from rc_tasks.model.graph.view import EdgeKind, NodeKind
from rc_tasks.state.records.status import State
from rc_tasks.util import template
from rc_tasks.views import bases_text, diff_text, tables
from rc_tasks.views.graph_svg import colours, style, svg
from rc_tasks.views.report import details
from rc_tasks.views.report.overview import ImageOverview, ImageRun, Overview
from rc_tasks.views.report.timeline import timeline
from rc_tasks.views.tables import readable

TEMPLATE = "templates/report.html.j2"


STYLES = "templates/report.css"


PROGRAM = "templates/report.js"


# States in order of urgency.
URGENT = (State.FAILED, State.BUILDING, State.STALE, State.MISSING, State.FRESH)


_SHORT_ID = 8


# Characters of a JSON text that are special to the HTML parser or to old JavaScript.
_IN_SCRIPTS = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def render(overview: Overview, root: Path) -> str:
    """Render the page with the templates of the checkout at `root`. Raise RcError."""
    images = sorted(overview.images, key=lambda image: _natural(image.name))
    counts = Counter(image.state for image in images)
    style_element, style_hash = _inlined("style", "\n".join((_template(root, STYLES), _drawn())))
    script, script_hash = _inlined("script", _template(root, PROGRAM))
    values: dict[str, object] = {
        "shown": overview,
        "images": images,
        "counts": [(state, counts[state]) for state in URGENT],
        "urgent": {str(state): number for number, state in enumerate(URGENT)},
        "total_bytes": sum(image.size_bytes or 0 for image in images),
        "run": timeline(overview.tries) if overview.tries else None,
        "outcomes": list(Counter(str(entry.outcome) for entry in overview.tries).items()),
        "graph": _safe(svg(overview.graph_view, _links(overview))),
        "policy": f"default-src 'none'; style-src {style_hash}; script-src {script_hash};"
        " base-uri 'none'; form-action 'none'",
        "style": style_element,
        "script": script,
        "data": _safe(in_script(details.data(overview, images))),
    }
    return template.fill_page(_template(root, TEMPLATE), TEMPLATE, values, _FILTERS, RcError)


def in_script(value: object) -> str:
    """Return JSON that is safe inside a script element."""
    return json.dumps(value, separators=(",", ":")).translate(_IN_SCRIPTS)


def _links(overview: Overview) -> dict[str, str]:
    """Return for each node of the graph the link to its row in the table."""
    targets = {node.name: node.name for node in overview.graph_view.nodes if node.kind is NodeKind.IMAGE}
    aliases = {e.below: e.above for e in overview.graph_view.edges if e.kind is EdgeKind.ALIAS}
    return {name: f"#{quote(_row_id(image))}" for name, image in {**targets, **aliases}.items()}


def _row_id(name: str) -> str:
    return f"image:{tables.printable(name)}"


def _drawn() -> str:
    """Return the CSS of the states' colours, for the page and for the graph in it."""
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
    """Return a style or script element, and the CSP source expression that allows only this one."""
    # `</` can only be in strings, where the added backslash changes nothing.
    text = text.replace("</", "<\\/").replace("\r\n", "\n")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return _safe(f"<{element}>{text}</{element}>"), f"'sha256-{digest}'"


def _safe(html: str) -> Any:
    """Mark a text as HTML that needs no escaping."""
    from markupsafe import Markup

    return Markup(html)  # noqa: S704 - each caller has escaped, or holds a template


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a sort key by which version 10 comes after version 9."""
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _name(name: str) -> Any:
    """Return a name with possible line breaks between its parts, which copying leaves out."""
    return _safe("<wbr>").join(re.split(r"(?<=[/:@-])", tables.printable(name)))


def _local(time: datetime, form: str) -> str:
    return time.astimezone().strftime(form)


def _when(iso: str) -> str:
    try:
        return tables.when(iso)
    except ValueError:
        # A damaged record may hold any text, and its image is shown nevertheless.
        return tables.printable(iso)


def _last(image: ImageOverview) -> ImageRun | None:
    """Return the last run in which an image was made or published."""
    return next((built for built in reversed(image.built) if built.durations_s), None)


_FILTERS: dict[str, Callable[..., object]] = {
    "text": tables.printable,
    "name": _name,
    "size": tables.size,
    "size_change": diff_text.size_change,
    "when": _when,
    "duration": tables.duration,
    "local": _local,
    "readable": lambda line: readable(line).rstrip("\n"),
    "row_id": _row_id,
    "row_link": lambda name: f"#{quote(_row_id(name))}",
    "short": lambda commit: commit[:_SHORT_ID],
    "pin": lambda base: bases_text.words(base)[1],
    "base_name": lambda base: _name(bases_text.words(base)[0]),
    "pinned": details.pinned,
    "last": _last,
    "lines": lambda text: [tables.printable(line) for line in text.split("\n")],
}
