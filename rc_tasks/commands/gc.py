"""`doit gc`: removal of files that nothing needs any more."""

import contextlib
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from rc_tasks.commands.cli.confirm import confirm
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json
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
from rc_tasks.errors import DiskFullError, RcError
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk.locks import LockedError, LostLockError, held
from rc_tasks.views import tables

# More lines would push the table off the screen.
_MOST_LINES = 10
_SHORT_ID = 12


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "It keeps what an image of this checkout, an image kept for `doit rollback`, or an EDF in reach"
        " needs. It also keeps what is younger than a day, because a running step may need it next. It"
        " can run while images are built."
    )
    add_flag(parser, "-n", "--dry-run", help="print what would be removed, and remove nothing")
    add_flag(
        parser,
        "--now",
        help="also remove images of the store that nothing refers to and that are younger than a day,"
        " except what running steps may need; print what that costs, and ask first",
    )
    add_flag(parser, "-y", "--yes", help="with --now: do not ask")
    add_flag(parser, "-v", "--verbose", help="name every file and directory")
    add_json(parser)


def run(args: Namespace) -> int:
    """Free space."""
    if args.yes and not args.now:
        raise UsageError("--yes needs --now", hint="doit gc --now --yes")
    if args.now and args.json and not (args.yes or args.dry_run):
        raise UsageError(
            "--now asks first, which --json cannot", hint="add --yes to remove, or --dry-run to look"
        )
    return collect(
        session(),
        dry_run=args.dry_run,
        verbose=args.verbose,
        as_json=args.json,
        now=args.now,
        asks=args.now and not args.yes,
    )


def collect(
    current: Session,
    *,
    dry_run: bool,
    verbose: bool,
    as_json: bool = False,
    now: bool = False,
    asks: bool = False,
) -> int:
    """Print what can be removed, and remove it unless it is a dry run. Raise RcError.

    With `now`, images do not stay for a day. With `asks`, return 1 when the user does not agree.
    """
    require_own(current.checkout)
    collector = Collector(current.checkout, now=now)
    shown: Garbage | None = None
    if dry_run or asks:
        shown = collector.find()
        measured = measure(shown.items)
        if as_json:
            _print_json(current, shown, measured, ())
        else:
            _print_garbage(current, collector, shown, measured, verbose=verbose)
        if dry_run or not shown.items:
            return 0
        if not confirm("remove all this?", yes=False, command="doit gc --now"):
            print("nothing was removed")
            return 1
        # Steps may have run while the user thought about it, and recipes may have changed.
        collector = Collector(open_checkout(current.checkout.root), now=now)
    try:
        with contextlib.ExitStack() as stack:
            # A full disk has no room for the lock. Two at a time would only count what both remove.
            with contextlib.suppress(DiskFullError):
                stack.enter_context(held(collector.lock, "gc"))
            garbage = collector.find()
            if shown is not None:
                garbage.items = [item for item in garbage.items if item in set(shown.items)]
            measured = measure(garbage.items)
            if shown is None and not as_json:
                _print_garbage(current, collector, garbage, measured, verbose=verbose)
            printed = set((shown or garbage).left)
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
    _print_left([line for line in garbage.left if line not in printed])
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
        "young": garbage.young_images,
        "young_bytes": _young_bytes(garbage),
    }
    print(json.dumps(document, indent=2))


def _print_garbage(
    current: Session,
    collector: Collector,
    garbage: Garbage,
    measured: Mapping[Item, tuple[os.stat_result, ...]],
    *,
    verbose: bool,
) -> None:
    """Print what can be removed, and what is kept though nothing needs it."""
    young = _young(collector, garbage)
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
        print(f"nothing to remove; {young}" if young else "nothing to remove")
    for item in garbage.items if verbose else ():
        print(f"  {tables.printable(current.checkout.shown(item.path))}")
    gone = {item.image for item in garbage.items if item.kind is GarbageKind.GONE}
    if gone:
        print(f"projects that are gone: {tables.printable(', '.join(sorted(gone)))}")
    soon = sorted(set(garbage.gone) - gone)
    if soon:
        print(f"projects that are gone, kept for {GONE_DAYS} days: {tables.printable(', '.join(soon))}")
    if collector.now:
        _print_images(garbage, verbose=verbose)
    elif garbage.items and young:
        print(f"kept: {young}")
    _print_left(garbage.left)
    sys.stdout.flush()


def _young(collector: Collector, garbage: Garbage) -> str:
    """Return a line about the images that stay for a day, or an empty string."""
    count = garbage.young_images
    if not count or collector.now:
        return ""
    images = "1 image" if count == 1 else f"{count} images"
    are = "is" if count == 1 else "are"
    next_command = "clones may be using them" if collector.serves_clones else "doit gc --now"
    return (
        f"{images} of the store that nothing refers to, {tables.size(_young_bytes(garbage))},"
        f" {are} younger than a day: {next_command}"
    )


def _young_bytes(garbage: Garbage) -> int:
    return sum(freed_bytes(measure(garbage.young), garbage.young).values())


def _print_images(garbage: Garbage, *, verbose: bool) -> None:
    """Print the images of the store that go, the last used one first, and what their removal costs."""
    images = [item for item in garbage.items if item.kind is GarbageKind.IMAGE]
    if not images:
        return
    images.sort(key=lambda item: -garbage.used_ns[item.path])
    most = len(images) if verbose else _MOST_LINES
    for item in images[:most]:
        used = datetime.fromtimestamp(garbage.used_ns[item.path] / 1e9, UTC).isoformat()
        what = f"built for {item.image}" if item.image else "layer cache"
        line = f"image {item.path.name[:_SHORT_ID]}, {what}, last used {tables.when(used)}"
        print(f"  {tables.printable(line)}")
    if len(images) > most:
        print(f"  {len(images) - most} more: -v names them")
    print("cost: a recipe that goes back to what one of these was built from is built without cache")
    print("kept: published images, those that `doit rollback` can put back, the cache of each recipe")


def _print_left(notes: list[str]) -> None:
    for line in notes[:_MOST_LINES]:
        sys.stderr.write(f"left alone: {tables.printable(line)}\n")
    if len(notes) > _MOST_LINES:
        sys.stderr.write(f"left alone: {len(notes) - _MOST_LINES} more\n")
