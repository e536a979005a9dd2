"""`doit log NAME [STEP]`: the logs of an image's last run, paged, printed, or followed as they grow."""

import contextlib
import os
import shlex
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.errors import INTERRUPTED
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError, ToolNotFoundError
from rc_tasks.model.reference import near
from rc_tasks.state import history, logs
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import locks
from rc_tasks.state.history import Outcome
from rc_tasks.state.records.records import Step
from rc_tasks.tools import command
from rc_tasks.tools.command import Command
from rc_tasks.views import tables
from rc_tasks.views.tables import readable

# Without -R, less asks before it shows a log that it takes for a binary file. With -F and -X, it only
# prints a short log.
_PAGER = ("less", "-FRX")
# How often a growing log is read.
_POLL_S = 0.5
# On a busy node, a step may take this long to start Python and take its lock.
_STARTING_S = 15.0
# A run writes a step's line of the history within this time after the step has ended.
_HISTORY_S = 5.0
# Only so many of the newest steps are searched for the one that was followed.
_MOST_RECENT = 200


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Without a step, the logs of all steps of the last run are shown. On a terminal, $PAGER or less"
        " shows them. All logs are in .rc/logs/NAME/STEP, where latest.log and failed.log are links to"
        " the newest ones. The settings logs.keep and logs.days say which logs are kept."
    )
    add_names(parser, "NAME [podman|enroot|env]", help="an image, such as reasoning:2025.2, and a step")
    add_flag(
        parser,
        "-f",
        "--follow",
        help="print the log as it grows, until its step ends, then how it ended; the exit status is 1 if"
        " it failed",
    )
    add_flag(parser, "--failed", help="show the log of the newest failure")


def run(args: Namespace) -> int:
    """Show the logs of the last run of an image, or follow the newest one."""
    current = session()
    names, steps = _names_and_steps(current, args.names)
    checkout = current.checkout
    newest = _newest(checkout, names, steps, failed=args.failed)
    if newest is None:
        raise _no_log(names, steps, failed=args.failed)
    path, step, name = newest
    is_whole_run = len(steps) > 1 and not (args.failed or args.follow)
    paths = (_of_last_run(checkout, names, path) if is_whole_run else None) or [path]
    if len(paths) == 1:
        sys.stderr.write(f"{tables.printable(checkout.shown(paths[0]))}\n")
        sys.stderr.flush()
    if args.follow:
        try:
            with path.open("rb") as log:
                was_running = _follow(log, checkout.lock(name), f"{step}:{name}")
            return _print_ending(checkout, path, patience_s=_HISTORY_S * was_running)
        except KeyboardInterrupt:
            return INTERRUPTED
    if not (sys.stdout.isatty() and _paged(checkout, paths)):
        sys.stdout.writelines(_lines(checkout, paths))
    return 0


def _of_last_run(checkout: Checkout, names: list[str], newest: Path) -> list[Path]:
    """Return the logs of the run that wrote `newest`, the oldest first; none while its step runs."""
    run = ""
    paths: list[Path] = []
    for entry in history.entries(checkout.history):
        # A rollback has no log.
        if entry.image not in names or not entry.log:
            continue
        if run and entry.run != run:
            break
        run = entry.run
        # Only the name counts: a damaged history could lead out of the logs.
        path = checkout.logs(entry.step, entry.image) / Path(entry.log).name
        if path.is_file():
            paths.insert(0, path)
    return paths if newest in paths else []


def _lines(checkout: Checkout, paths: list[Path]) -> Iterator[str]:
    """Yield the lines of logs; above each of several, the path of its file."""
    for path in paths:
        if len(paths) > 1:
            yield f"==> {tables.printable(checkout.shown(path))} <==\n"
        with path.open("rb") as log:
            yield from map(readable, log)


def _print_ending(checkout: Checkout, path: Path, *, patience_s: float) -> int:
    """Print how the step with this log ended, if that is known; return 1 if it did not succeed."""
    shown = checkout.shown(path)
    deadline_s = time.monotonic() + patience_s
    while True:
        newest = islice(history.entries(checkout.history), _MOST_RECENT)
        entry = next((entry for entry in newest if entry.log == shown), None)
        if entry is not None:
            sys.stderr.write(f"{entry.task} {entry.outcome} after {tables.duration(entry.duration_s)}\n")
            return 0 if entry.outcome is Outcome.DONE else 1
        if time.monotonic() > deadline_s:
            return 0
        time.sleep(_POLL_S)


def _names_and_steps(current: Session, words: list[str]) -> tuple[list[str], tuple[Step, ...]]:
    """Return the images and steps that arguments mean; `podman:NAME` means that step.

    Raise UsageError.
    """
    if not words:
        raise UsageError("NAME is missing", hint="doit log NAME; `doit list` shows all images")
    name, *rest = words
    kind = name.partition(":")[0]
    if not rest and kind in set(Step) and name not in current.checkout.graph.names():
        rest = [kind]
    names = images(current, [name])
    if len(rest) > 1:
        raise UsageError(
            f"expected one image and at most one step: {' '.join(words)}", hint="doit log NAME STEP"
        )
    for word in rest:
        if word not in set(Step):
            close = near(word, Step) or tuple(Step)
            raise UsageError(
                f"there is no step named {word!r}", hint=f"doit log {name} {' or '.join(close)}"
            )
    return names, tuple(map(Step, rest)) or tuple(Step)


def _newest(
    checkout: Checkout, names: list[str], steps: tuple[Step, ...], *, failed: bool
) -> tuple[Path, Step, str] | None:
    candidates = []
    for name in names:
        for step in steps:
            directory = checkout.logs(step, name)
            path = logs.failed(directory) if failed else logs.newest(directory)
            if path is not None:
                candidates.append((path, step, name))
    return max(candidates, key=lambda candidate: candidate[0].name, default=None)


def _no_log(names: list[str], steps: tuple[Step, ...], *, failed: bool) -> RcError:
    name = names[0] if len(names) == 1 else names[0].partition(":")[0]
    task = f"{steps[0] if len(steps) == 1 else 'build'}:{name}"
    if failed:
        return RcError(f"{task} has no log of a failure", hint=f"doit history {name}")
    return RcError(f"{task} has no log yet", hint=f"doit {task}, or see `doit why {name}`")


def _paged(checkout: Checkout, paths: list[Path]) -> bool:
    """Show logs in the user's pager. Return whether there is one."""
    argv = _pager()
    if not argv:
        return False
    # From a pipe, a pager would read all of a long log before it shows the end.
    with tempfile.TemporaryDirectory() as directory:
        clean = Path(directory) / paths[-1].name
        with clean.open("w", encoding="utf-8") as file:
            file.writelines(_lines(checkout, paths))
        try:
            command.interact(Command((*argv, str(clean))))
        except ToolNotFoundError:
            return False
    return True


def _pager() -> tuple[str, ...]:
    chosen = os.environ.get("PAGER", "").strip()
    if chosen:
        with contextlib.suppress(ValueError):
            return tuple(shlex.split(chosen))
    return _PAGER if command.which(_PAGER[0]) else ()


def _follow(log: BinaryIO, lock: Path, task: str) -> bool:
    """Print a log as it grows, until no process runs its step; return whether one has run it."""
    was_running = False
    quiet_since_s = time.monotonic()
    # An old log does not belong to a step that is just starting.
    begun = time.time() - os.fstat(log.fileno()).st_mtime > _STARTING_S
    rest = b""
    while True:
        # Look before reading, else lines that the step writes in between would be lost.
        holder = locks.holder(lock)
        running = holder is not None and holder.step in {task, "?"}
        begun, was_running = begun or running, was_running or running
        read = log.read()
        lines, newline, tail = (rest + read).rpartition(b"\n")
        if newline:
            # splitlines would also split at a carriage return.
            for line in lines.split(b"\n"):
                sys.stdout.write(readable(line))
            sys.stdout.flush()
        rest = tail
        if read:
            quiet_since_s = time.monotonic()
        elif not running and (begun or time.monotonic() - quiet_since_s > _STARTING_S):
            break
        else:
            time.sleep(_POLL_S)
    if rest:
        sys.stdout.write(readable(rest))
    return was_running
