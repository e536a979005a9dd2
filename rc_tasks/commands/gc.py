"""`doit gc`: removal of files that nothing needs any more."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Mapping

from rc_tasks.commands.cli.parser import add_flag, add_json
from rc_tasks.engine.session import Session, session
from rc_tasks.engine.upkeep.garbage import (
    GONE_DAYS,
    Collector,
    Garbage,
    GarbageKind,
    Item,
    freed_bytes,
    measure,
)
from rc_tasks.errors import RcError
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.disk.locks import LockedError, LostLockError, held
from rc_tasks.views import tables

# More lines would push the table off the screen.
_MOST_LEFT = 10


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "It keeps what an image of this checkout, an image kept for `doit rollback`, or an EDF in reach"
        " needs. It also keeps what is younger than a day, because a running step may need it next. It"
        " can run while images are built."
    )
    add_flag(parser, "-n", "--dry-run", help="print what would be removed, and remove nothing")
    add_flag(parser, "-v", "--verbose", help="name every file and directory")
    add_json(parser)


def run(args: Namespace) -> int:
    """Free space."""
    return collect(session(), dry_run=args.dry_run, verbose=args.verbose, as_json=args.json)


def collect(current: Session, *, dry_run: bool, verbose: bool, as_json: bool = False) -> int:
    """Print what can be removed, and remove it unless it is a dry run. Raise RcError."""
    require_own(current.checkout)
    collector = Collector(current.checkout)
    if dry_run:
        garbage = collector.find()
        measured = measure(garbage.items)
        if as_json:
            _print_json(current, garbage, measured, ())
        else:
            _print_garbage(current, garbage, measured, verbose=verbose)
        return 0
    try:
        with held(collector.lock, "gc"):
            garbage = collector.find()
            measured = measure(garbage.items)
            if not as_json:
                _print_garbage(current, garbage, measured, verbose=verbose)
            printed = len(garbage.left)
            removed = collector.remove(garbage)
    except LostLockError:
        raise
    except LockedError as error:
        raise RcError("another doit gc is running", where=collector.lock, hint=error.hint) from None
    if as_json:
        _print_json(current, garbage, measured, removed)
        return 0
    if garbage.items:
        print(f"freed {tables.size(sum(freed_bytes(measured, removed).values()))}")
    _print_left(garbage.left[printed:])
    return 0


def _print_json(
    current: Session,
    garbage: Garbage,
    measured: Mapping[Item, tuple[os.stat_result, ...]],
    removed: Collection[Item],
) -> None:
    document = {
        "items": [
            {
                "kind": item.kind.name.lower(),
                "path": current.checkout.shown(item.path),
                "image": item.image or None,
                "removed": item in removed,
            }
            for item in garbage.items
        ],
        "size_bytes": sum(freed_bytes(measured, garbage.items).values()),
        "freed_bytes": sum(freed_bytes(measured, removed).values()),
        "left": garbage.left,
        "young": garbage.young,
    }
    print(json.dumps(document, indent=2))


def _print_garbage(
    current: Session,
    garbage: Garbage,
    measured: Mapping[Item, tuple[os.stat_result, ...]],
    *,
    verbose: bool,
) -> None:
    """Print what can be removed, and what is kept though nothing needs it."""
    if garbage.items:
        sizes = freed_bytes(measured, garbage.items)
        rows = [
            (str(count), tables.size(sizes[kind]), str(kind))
            for kind in GarbageKind
            if (count := garbage.count(kind))
        ]
        rows.append(("", tables.size(sum(sizes.values())), "in all"))
        tables.table(("COUNT", "SIZE", "WHAT"), rows, right=frozenset({"COUNT", "SIZE"}))
    else:
        print("nothing to remove")
    for item in garbage.items if verbose else ():
        print(f"  {tables.printable(current.checkout.shown(item.path))}")
    gone = {item.image for item in garbage.items if item.kind is GarbageKind.GONE}
    if gone:
        print(f"projects that are gone: {tables.printable(', '.join(sorted(gone)))}")
    soon = sorted(set(garbage.gone) - gone)
    if soon:
        print(f"projects that are gone, kept for {GONE_DAYS} days: {tables.printable(', '.join(soon))}")
    if garbage.young:
        print(f"images of the store that nothing refers to, younger than a day: {garbage.young}")
    _print_left(garbage.left)
    sys.stdout.flush()


def _print_left(notes: list[str]) -> None:
    for line in notes[:_MOST_LEFT]:
        sys.stderr.write(f"left alone: {tables.printable(line)}\n")
    if len(notes) > _MOST_LEFT:
        sys.stderr.write(f"left alone: {len(notes) - _MOST_LEFT} more\n")
