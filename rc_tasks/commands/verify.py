"""`doit verify NAME…`: compare published images with their records, byte by byte."""

import contextlib
import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator

from msgspec import Struct, to_builtins

from rc_tasks.commands.cli.command import images, not_published
from rc_tasks.commands.cli.errors import INTERRUPTED
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json, add_names
from rc_tasks.engine.runner import runner
from rc_tasks.engine.session import Session, session
from rc_tasks.model.config.settings import Runner
from rc_tasks.state.published.verify import Verdict, Verification, Verified, verifiable
from rc_tasks.state.store.block_digest import threads
from rc_tasks.tools import slurm
from rc_tasks.tools.interrupt import recognized
from rc_tasks.views import tables

# Other users work on a login node.
_SHARED_THREADS = 2
_NICE = 10


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Reads all of image.sqsh and the layers of the image in the store, and compares them, image.json"
        " and env.toml with the record. The exit status is 1 when something is damaged. On a login node"
        " it reads slowly on purpose; `srun doit verify --all` uses a whole node."
    )
    add_names(parser, "NAME ... | --all")
    add_flag(parser, "--all", help="verify all published images")
    add_json(parser)


def run(args: Namespace) -> int:
    """Verify published images."""
    current = session()
    names: list[str] = args.names
    if bool(names) == args.all:
        what = "NAME and --all cannot be combined" if names else "NAME is missing"
        raise UsageError(what, hint="doit verify NAME…, or doit verify --all")
    selected = verifiable(current.checkout) if args.all else images(current, names)
    broken = current.checkout.graph.broken
    for name in [name for name in selected if name in broken]:
        sys.stderr.write(f"warning: {name} is not verified: {broken[name]}\n")
    names = [name for name in selected if name not in broken]
    start_s = time.monotonic()
    results: list[Verified] = []
    try:
        with recognized(), _progress(drawn=not args.json) as progress:
            verification = Verification(current.checkout, progress.advance, _limit_threads(current))
            progress.begin(verification.size_bytes(names))
            for name in names:
                results.append(verification.verify(name))
                if not args.json:
                    _print(results[-1])
    except KeyboardInterrupt:
        words = f"interrupted: {len(results)} of {len(names)} images were verified"
        print(words, file=sys.stderr if args.json else sys.stdout)
        return INTERRUPTED
    verdicts = [result.verdict for result in results]
    damaged = verdicts.count(Verdict.DAMAGED)
    count = verdicts.count(Verdict.WHOLE) + damaged
    took = tables.duration(time.monotonic() - start_s)
    if args.json:
        documents = [
            {**to_builtins(result), "verdict": result.verdict.name.lower()} for result in results
        ]
        print(json.dumps(documents, indent=2))
    else:
        if not count and Verdict.UNPUBLISHED in verdicts:
            return 3
        print(
            f"{count} image{'' if count == 1 else 's'} verified, {damaged} damaged;"
            f" {tables.size(progress.read_bytes)} read in {took}"
        )
    if damaged or len(names) < len(selected):
        return 1
    return 3 if {Verdict.UNREADABLE, Verdict.UNPUBLISHED} & {*verdicts} else 0


def _print(verified: Verified) -> None:
    if verified.verdict is Verdict.UNPUBLISHED:
        sys.stderr.write(f"ERROR: {not_published(verified.name)}\n")
        return
    print(f"{verified.name}  {verified.verdict}")
    for damage in verified.damages:
        print(f"  {tables.printable(damage.where)} {tables.printable(damage.what)}")
        print(f"    next: {damage.hint}")
    for note in verified.notes:
        print(f"  note: {note}")
    # Without this, a log file would show the result only at the end.
    sys.stdout.flush()


def _limit_threads(current: Session) -> int:
    """Return how many threads may read; on a login node, also lower the priority of this process."""
    if runner(current.checkout.settings.runner) is not Runner.SLURM or slurm.job_id() is not None:
        return threads()
    os.nice(_NICE)
    return min(_SHARED_THREADS, threads())


class _Progress(Struct):
    """The number of bytes read so far, and two functions that draw the progress bar."""

    read_bytes: int = 0
    begin: Callable[[int], None] = lambda _total_bytes: None
    draw: Callable[[int], None] = lambda _size_bytes: None

    def advance(self, size_bytes: int) -> None:
        """Count bytes that have been read."""
        self.read_bytes += size_bytes
        self.draw(size_bytes)


@contextlib.contextmanager
def _progress(*, drawn: bool) -> Iterator[_Progress]:
    """Yield the progress, with a bar on a terminal if `drawn`."""
    if not (drawn and sys.stdout.isatty()):
        yield _Progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # rich redirects standard output, so that printed lines appear above the bar.
    with Progress(*columns, console=Console(highlight=False), transient=True) as bars:
        bar = bars.add_task("verify", total=None)
        yield _Progress(
            begin=lambda total_bytes: bars.update(bar, total=total_bytes),
            draw=lambda size_bytes: bars.advance(bar, size_bytes),
        )
