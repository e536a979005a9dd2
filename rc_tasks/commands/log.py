"""`doit log NAME [STEP]`: the newest log of an image, paged, printed, or followed as it grows."""

import contextlib
import os
import shlex
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import BinaryIO

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.errors import INTERRUPTED
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError, ToolNotFoundError
from rc_tasks.model.reference import near
from rc_tasks.state import logs
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import locks
from rc_tasks.state.records.records import Step
from rc_tasks.tools import command
from rc_tasks.tools.command import Command
from rc_tasks.views import tables
from rc_tasks.views.tables import readable

# Without -R, less asks before it shows a log that it takes for a binary file.
_PAGER = ("less", "-R")
# How often a growing log is read.
_POLL_S = 0.5
# On a busy node, a step may take this long to start Python and take its lock.
_STARTING_S = 15.0


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "On a terminal the log is shown by $PAGER, or by less. All logs are in .rc/logs/NAME/STEP, where"
        " latest.log and failed.log are links to the newest ones. The settings logs.keep and logs.days"
        " say which logs are kept."
    )
    add_names(parser, "NAME [podman|enroot|env]", help="an image, such as reasoning:2025.2, and a step")
    add_flag(parser, "-f", "--follow", help="print the log as it grows, until its step ends")
    add_flag(parser, "--failed", help="show the log of the newest failure")


def run(args: Namespace) -> int:
    """Show the newest log of an image."""
    current = session()
    names, steps = _names_and_steps(current, args.names)
    checkout = current.checkout
    newest = _newest(checkout, names, steps, failed=args.failed)
    if newest is None:
        raise _no_log(names, steps, failed=args.failed)
    path, step, name = newest
    sys.stderr.write(f"{tables.printable(checkout.shown(path))}\n")
    sys.stderr.flush()
    with path.open("rb") as log:
        if args.follow:
            try:
                _follow(log, checkout.lock(name), f"{step}:{name}")
            except KeyboardInterrupt:
                return INTERRUPTED
        elif not (sys.stdout.isatty() and _paged(log, path.name)):
            sys.stdout.writelines(map(readable, log))
    return 0


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


def _paged(log: BinaryIO, name: str) -> bool:
    """Show a log in the user's pager. Return whether there is one."""
    argv = _pager()
    if not argv:
        return False
    # From a pipe, a pager would read all of a long log before it shows the end.
    with tempfile.TemporaryDirectory() as directory:
        clean = Path(directory) / name
        with clean.open("w", encoding="utf-8") as file:
            file.writelines(map(readable, log))
        try:
            command.interact(Command((*argv, str(clean))))
        except ToolNotFoundError:
            log.seek(0)
            return False
    return True


def _pager() -> tuple[str, ...]:
    chosen = os.environ.get("PAGER", "").strip()
    if chosen:
        with contextlib.suppress(ValueError):
            return tuple(shlex.split(chosen))
    return _PAGER if command.which(_PAGER[0]) else ()


def _follow(log: BinaryIO, lock: Path, task: str) -> None:
    """Print a log as it grows, until no process runs its step."""
    quiet_since_s = time.monotonic()
    # An old log does not belong to a step that is just starting.
    begun = time.time() - os.fstat(log.fileno()).st_mtime > _STARTING_S
    rest = b""
    while True:
        # Look before reading, else lines that the step writes in between would be lost.
        holder = locks.holder(lock)
        running = holder is not None and holder.step in {task, "?"}
        begun = begun or running
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
