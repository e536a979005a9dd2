"""`doit history [NAME…]`: the steps of past runs."""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

from msgspec import to_builtins

from rc_tasks.commands.cli.command import images, split_task
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json, add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import ProjectError
from rc_tasks.state import history
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.status import State
from rc_tasks.views import tables

# A table of this many lines fits on a large screen.
_USUAL_LIMIT = 50
_SHORT_ID = 12
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_STYLES = {Outcome.FAILED: tables.STYLES[State.FAILED]}


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "The newest step comes last. OUTCOME is done, failed, interrupted, or retried (its node failed"
        " or its base was lost, and it ran again). QUEUED is the time between being ready and"
        " starting. The setting history.days says how far back it goes."
    )
    add_names(parser)
    add_flag(parser, "--failed", help="only steps that failed")
    parser.add_argument(
        "--since",
        default="",
        metavar="WHEN",
        help="only steps that began since then: 12h or 2d ago, or a date such as 2026-11-01",
    )
    add_json(parser)
    parser.add_argument(
        "-n",
        "--limit",
        type=int,
        metavar="N",
        help=f"only the newest N; without it and without --since, a table shows {_USUAL_LIMIT}",
    )


def run(args: Namespace) -> int:
    """Show past steps."""
    current = session()
    limit: int | None = args.limit
    if limit is not None and limit < 1:
        raise UsageError(f"-n must be at least 1, not {limit}", hint="-n 1 shows the newest step")
    if limit is None and not args.since and not args.json:
        limit = _USUAL_LIMIT
    names = frozenset(_selected(current, args.names)) if args.names else None
    since = _since(args.since) if args.since else None
    entries = (
        entry
        for entry in _newer(history.entries(current.checkout.history), since)
        if (names is None or entry.image in names)
        and (not args.failed or entry.outcome is Outcome.FAILED)
    )
    newest = list(islice(entries, limit))[::-1]
    if args.json:
        json.dump([to_builtins(entry) for entry in newest], sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif newest:
        if args.limit is None and next(entries, None) is not None:
            sys.stderr.write(f"the newest {limit} steps; -n and --since show more\n")
        _table(newest)
    else:
        which = "no such step is in the history" if args.failed or since or args.names else ""
        print(which or "no step has run yet")
    return 0


def _selected(current: Session, arguments: list[str]) -> Iterator[str]:
    """Yield the images that arguments mean; a removed project counts while the history has its steps."""
    for argument in arguments:
        try:
            yield from images(current, [argument])
        except ProjectError:
            name = split_task(current.checkout, argument)[1]
            if all(entry.image != name for entry in history.entries(current.checkout.history)):
                raise
            yield name


def _table(entries: list[HistoryEntry]) -> None:
    headings = ("WHEN", "STEP", "OUTCOME", "TOOK", "QUEUED", "NODE", "IMAGE", "REASON")
    styles = [_STYLES.get(entry.outcome, "") for entry in entries]
    tables.table(
        headings, [_row(entry) for entry in entries], styles=styles, right=_RIGHT, narrow=_NARROW
    )


_RIGHT = frozenset({"TOOK", "QUEUED"})
_NARROW = (("IMAGE", 0), ("QUEUED", 0), ("NODE", 0), ("TOOK", 0))


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    same = entry.image_id and entry.image_id == entry.image_id_before
    return (
        tables.when(entry.started_at),
        str(entry.task),
        entry.outcome,
        tables.duration(entry.duration_s),
        tables.duration(entry.queued_s),
        entry.node,
        "as before" if same else entry.image_id[:_SHORT_ID],
        entry.reason,
    )


def _newer(entries: Iterator[HistoryEntry], since: datetime | None) -> Iterator[HistoryEntry]:
    for entry in entries:
        if since is not None and entry.began < since:
            # Entries come newest first.
            return
        yield entry


def _since(text: str) -> datetime:
    """Return the time that `12h` ago or a local date or time means. Raise UsageError."""
    ago = re.fullmatch(r"(\d+)([mhdw])", text.strip(), re.ASCII)
    try:
        if ago is not None:
            return datetime.now().astimezone() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text!r} is not a time",
            hint="give --since 12h, --since 2d, or a date such as --since 2026-11-01",
        ) from None
