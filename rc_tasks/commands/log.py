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

# -R: less would otherwise ask about a log that it takes for a binary file's.
_PAGER = ("less", "-R")
# How often a log that grows is looked at.
_POLL_S = 0.5
# A step takes so long until it has its lock: Python starts, on a busy node.
_STARTING_S = 15.0


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "On a terminal the log is shown by $PAGER, or by less. All logs lie in .rc/logs/NAME/STEP, where"
        " latest.log and failed.log lead to the newest ones; the settings logs.keep and logs.days say"
        " which are kept."
    )
    add_names(parser, "NAME [podman|enroot|env]")
    add_flag(parser, "-f", "--follow", help="print the log as it grows, until its step ends")
    add_flag(parser, "--failed", help="the log of the newest failure")


def run(args: Namespace) -> int:
    """Show the newest log of an image."""
    opened = session()
    wanted, steps = _wanted(opened, args.names)
    checkout = opened.checkout
    found = _newest(checkout, wanted, steps, failed=args.failed)
    if found is None:
        raise _none(wanted, steps, failed=args.failed)
    path, step, name = found
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


def _wanted(opened: Session, words: list[str]) -> tuple[list[str], tuple[Step, ...]]:
    """The images and steps that arguments mean; `podman:NAME` means that step."""
    if not words:
        raise UsageError("which image?", hint="doit log NAME; `doit list` shows all images")
    name, *rest = words
    kind = name.partition(":")[0]
    if not rest and kind in set(Step) and name not in opened.checkout.graph.names():
        rest = [kind]
    found = images(opened, [name])
    if len(rest) > 1:
        raise UsageError(
            f"one image and one step are wanted: {' '.join(words)}", hint="doit log NAME STEP"
        )
    for word in rest:
        if word not in set(Step):
            close = near(word, Step) or tuple(Step)
            raise UsageError(
                f"there is no step named {word!r}", hint=f"doit log {name} {' or '.join(close)}"
            )
    return found, tuple(map(Step, rest)) or tuple(Step)


def _newest(
    checkout: Checkout, names: list[str], steps: tuple[Step, ...], *, failed: bool
) -> tuple[Path, Step, str] | None:
    found = []
    for name in names:
        for step in steps:
            directory = checkout.logs(step, name)
            path = logs.failed(directory) if failed else logs.newest(directory)
            if path is not None:
                found.append((path, step, name))
    return max(found, key=lambda each: each[0].name, default=None)


def _none(names: list[str], steps: tuple[Step, ...], *, failed: bool) -> RcError:
    name = names[0] if len(names) == 1 else names[0].partition(":")[0]
    task = f"{steps[0] if len(steps) == 1 else 'build'}:{name}"
    if failed:
        return RcError(f"there is no log of a failure of {task}", hint=f"doit history {name}")
    return RcError(f"{task} has no log yet", hint=f"`doit {task}` makes one; `doit why {name}`")


def _paged(log: BinaryIO, name: str) -> bool:
    """Show a log in the user's pager; whether there is one."""
    argv = _pager()
    if not argv:
        return False
    # A file and not a pipe: of a long log the end is wanted most.
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
    """Print a log as it grows until nobody is at its step any more."""
    quiet_since_s = time.monotonic()
    # What was written long ago is no log of a step that is just starting.
    begun = time.time() - os.fstat(log.fileno()).st_mtime > _STARTING_S
    rest = b""
    while True:
        # Asked before reading: what is written before the step's end is read then.
        holder = locks.holder(lock)
        running = holder is not None and holder.step in {task, "?"}
        begun = begun or running
        read = log.read()
        lines, newline, tail = (rest + read).rpartition(b"\n")
        if newline:
            # Not splitlines: a carriage return ends no line.
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
