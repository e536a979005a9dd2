"""`doit gc`: removes what nothing needs any more, after it has said what and how much."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping

from rc_tasks.commands.cli.parser import add_flag
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

# More than a screen of lines tells less than their number.
_MOST_LEFT = 10


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Nothing is removed that an image of this checkout, an image kept for `doit rollback`, or an EDF"
        " in reach needs, nor what is younger than a day: a step may just be about to refer to it. It"
        " can run beside builds."
    )
    add_flag(parser, "-n", "--dry-run", help="only say what would be removed")
    add_flag(parser, "-v", "--verbose", help="name every file and directory")


def run(args: Namespace) -> int:
    """Free space."""
    return collect(session(), dry_run=args.dry_run, verbose=args.verbose)


def collect(opened: Session, *, dry_run: bool, verbose: bool) -> int:
    """Say what can go, and remove it unless it is a dry run."""
    require_own(opened.checkout)
    collector = Collector(opened.checkout)
    if dry_run:
        found = collector.find()
        _tell(opened, found, measure(found.items), verbose=verbose)
        return 0
    try:
        with held(collector.lock, "gc"):
            found = collector.find()
            measured = measure(found.items)
            _tell(opened, found, measured, verbose=verbose)
            told = len(found.left)
            removed = collector.remove(found)
    except LostLockError:
        raise
    except LockedError as error:
        raise RcError("another doit gc is at work", where=collector.lock, hint=error.hint) from None
    if found.items:
        print(f"freed {tables.size(sum(freed_bytes(measured, removed).values()))}")
    _tell_left(found.left[told:])
    return 0


def _tell(
    opened: Session,
    found: Garbage,
    measured: Mapping[Item, tuple[os.stat_result, ...]],
    *,
    verbose: bool,
) -> None:
    """Say what can go, and what stays though it looks so."""
    if found.items:
        sizes = freed_bytes(measured, found.items)
        rows = [
            (str(count), tables.size(sizes[kind]), str(kind))
            for kind in GarbageKind
            if (count := found.count(kind))
        ]
        rows.append(("", tables.size(sum(sizes.values())), "in all"))
        tables.table(("COUNT", "SIZE", "WHAT"), rows, right=frozenset({"COUNT", "SIZE"}))
    else:
        print("nothing to remove")
    for item in found.items if verbose else ():
        print(f"  {tables.printable(opened.checkout.shown(item.path))}")
    gone = {item.image for item in found.items if item.kind is GarbageKind.GONE}
    if gone:
        print(f"projects that are gone: {tables.printable(', '.join(sorted(gone)))}")
    soon = sorted(set(found.gone) - gone)
    if soon:
        print(f"not here, and kept for {GONE_DAYS} days: {tables.printable(', '.join(soon))}")
    if found.young:
        print(f"images of the store that nothing refers to, younger than a day: {found.young}")
    _tell_left(found.left)
    sys.stdout.flush()


def _tell_left(left: list[str]) -> None:
    for line in left[:_MOST_LEFT]:
        sys.stderr.write(f"left alone: {tables.printable(line)}\n")
    if len(left) > _MOST_LEFT:
        sys.stderr.write(f"left alone: {len(left) - _MOST_LEFT} more\n")
