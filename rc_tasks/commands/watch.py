"""`doit watch NAME`: build an image again after each change of a file that it depends on."""

import errno
import signal
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rc_tasks.commands.cli.command import images, tasks
from rc_tasks.commands.cli.errors import leave_at_once
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.engine.nightly.job import program
from rc_tasks.engine.runner import runner
from rc_tasks.engine.session import Session, session
from rc_tasks.engine.watched import Inputs, look, made_by_builds
from rc_tasks.model.config.settings import Runner
from rc_tasks.tools import command, interrupt, slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.inotify import Events, blind_spot
from rc_tasks.util.text import listed, printable

_POLL_S = 1.0
# Files that differ are looked at again until they stay the same: `git checkout` writes many. A program
# that never stops writing must not delay the build for ever.
_SETTLE_S = 0.3
_MOST_SETTLE_S = 10.0
# Looking at the files of a large context takes seconds. It gets at most a tenth of one CPU.
_REST = 9
# A build that is interrupted ends its steps and releases its allocation.
_GRACE_S = 120.0
_MOST_SHOWN = 5
# The settings of the kernel (inotify(7)) that limit the watches, by the error when they are reached.
_LIMITS = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Builds NAME and what it is built on, as `doit build:NAME` does, then again after each change,"
        " until Ctrl-C. A build that fails does not end it."
    )
    add_names(parser, "NAME ...")
    add_flag(parser, "--poll", help="look at all files every second, without inotify")


def run(args: Namespace) -> int:
    """Build images, wait for a change and build them again, until a signal ends this."""
    if not args.names:
        raise UsageError("NAME is missing", hint="doit watch NAME; `doit list` shows all images")
    current = session()
    names, root = images(current, args.names), current.checkout.root
    build = Command((program(), *tasks(current, args.names, bare=True)), cwd=root)
    interrupt.raise_once({signal.SIGINT, signal.SIGTERM, signal.SIGHUP}, again=leave_at_once)
    _print_allocation(current)
    Watch(
        lambda seen: look(root, names, seen), lambda: command.stream(build, None, grace_s=_GRACE_S), root
    ).run(poll=args.poll)


class Watch:
    """Builds and waits in turn. `look` returns the inputs now, `build` the exit status of a build."""

    def __init__(
        self, look: Callable[[Inputs | None], Inputs], build: Callable[[], int], root: Path
    ) -> None:
        self._look = look
        self._build = build
        self._root = root
        self._polls = False

    def run(self, *, poll: bool) -> NoReturn:
        """Build again and again. Raise KeyboardInterrupt at the first signal."""
        seen = self._look(None)
        if poll:
            self._poll("--poll was given")
        elif (blind := blind_spot(seen.directories)) is not None:
            self._poll(f"{blind.directory} is {blind.kind}, where inotify misses changes of other nodes")
        else:
            _print("changes are noticed by inotify")
        while True:
            self._build()
            now = self._look(seen)
            if _by_people(seen.changed(now)):
                now = self._settled(now)
                self._print_changed(_by_people(seen.changed(now)))
            else:
                images = "1 image" if now.images == 1 else f"{now.images} images"
                _print(f"watching {now.files} files of {images}; Ctrl-C ends")
                seen, now = now, self._next(now)
                self._print_changed(seen.changed(now))
            seen = now

    def _poll(self, reason: str) -> None:
        self._polls = True
        _print(f"changes are noticed by polling every {_POLL_S:g} s: {reason}")

    def _next(self, seen: Inputs) -> Inputs:
        """Wait until the inputs differ from those seen, and return them."""
        events = self._events(seen)
        if events is None:
            return self._awaited(seen, lambda: time.sleep(_POLL_S))
        with events:
            return self._awaited(seen, events.wait)

    def _events(self, seen: Inputs) -> Events | None:
        if self._polls:
            return None
        try:
            return Events(seen.directories)
        except OSError as error:
            limit = _LIMITS.get(error.errno or 0)
            words = f"its limit {limit} is reached" if limit else str(error.strerror)
            self._poll(f"inotify failed: {words}")
            return None

    def _awaited(self, seen: Inputs, wait: Callable[[], None]) -> Inputs:
        while True:
            began_s = time.monotonic()
            now = self._look(seen)
            # What was changed may have been changed back.
            if now != seen and (now := self._settled(now)) != seen:
                return now
            time.sleep(_REST * (time.monotonic() - began_s))
            wait()

    def _settled(self, now: Inputs) -> Inputs:
        deadline_s = time.monotonic() + _MOST_SETTLE_S
        while True:
            time.sleep(_SETTLE_S)
            before, now = now, self._look(now)
            if now == before or time.monotonic() > deadline_s:
                return now

    def _print_changed(self, paths: list[str]) -> None:
        shown = [printable(path.removeprefix(f"{self._root}/")) for path in paths]
        _print(f"changed: {listed(shown, _MOST_SHOWN) if shown else 'another project'}")


def _by_people(paths: list[str]) -> list[str]:
    """Leave out what the build may have written. People hardly edit these files in the same minute."""
    return [path for path in paths if not made_by_builds(path)]


def _print_allocation(current: Session) -> None:
    through_slurm = runner(current.checkout.settings.runner) is Runner.SLURM
    if through_slurm and slurm.job_id() is None:
        _print("each build waits for an allocation of its own; within `salloc`, builds use that one")


def _print(line: str) -> None:
    print(line, flush=True)
