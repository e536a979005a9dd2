"""`doit verify NAME…`: re-reads published images against their records."""

import contextlib
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.errors import INTERRUPTED
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.engine.run.step_command import runner
from rc_tasks.engine.session import Session, session
from rc_tasks.model.config.settings import Runner
from rc_tasks.state.published.verify import Verdict, Verification, Verified, verifiable
from rc_tasks.state.store.block_digest import threads
from rc_tasks.tools import slurm
from rc_tasks.views import tables

# On a login node others work too.
_SHARED_THREADS = 2
_NICE = 10


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Reads all of image.sqsh and of the layers in the store that the image is made of, and compares"
        " image.json and env.toml with the record. The exit status is 1 when something is damaged."
        " On a login node it reads slowly on purpose: `srun doit verify --all` uses a whole node."
    )
    add_names(parser, "NAME ... | --all")
    add_flag(parser, "--all", help="every image that has been published")


def run(args: Namespace) -> int:
    """Verify published images."""
    opened = session()
    names: list[str] = args.names
    if bool(names) == args.all:
        what = "either names or --all" if names else "which image?"
        raise UsageError(f"{what}", hint="doit verify NAME…, or doit verify --all")
    chosen = verifiable(opened.checkout) if args.all else images(opened, names)
    broken = opened.checkout.graph.broken
    for name in [name for name in chosen if name in broken]:
        sys.stderr.write(f"{name} is passed over: {broken[name]}\n")
    known = [name for name in chosen if name not in broken]
    began_s, read = time.monotonic(), _ByteCount()
    done: list[Verified] = []
    try:
        with _progress() as (begin, tell):
            verification = Verification(opened.checkout, _both(read, tell), _threads(opened))
            begin(verification.size_bytes(known))
            for name in known:
                done.append(verification.verify(name))
                _print(done[-1])
    except KeyboardInterrupt:
        print(f"interrupted: {len(done)} of {len(known)} images were verified")
        return INTERRUPTED
    damaged = [image for image in done if image.verdict is Verdict.DAMAGED]
    took = tables.duration(time.monotonic() - began_s)
    count = sum(image.verdict in {Verdict.WHOLE, Verdict.DAMAGED} for image in done)
    print(f"{_images(count)}, {len(damaged)} damaged; {tables.size(read.bytes)} read in {took}")
    if damaged or len(known) < len(chosen):
        return 1
    return 3 if any(image.verdict is Verdict.UNREADABLE for image in done) else 0


class _ByteCount:
    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, size_bytes: int) -> None:
        self.bytes += size_bytes


def _both(*listeners: Callable[[int], None]) -> Callable[[int], None]:
    def tell(size_bytes: int) -> None:
        for listener in listeners:
            listener(size_bytes)

    return tell


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'} verified"


def _print(verified: Verified) -> None:
    print(f"{verified.name}  {verified.verdict}")
    for damage in verified.damages:
        print(f"  {tables.printable(damage.where)} {tables.printable(damage.what)}")
        print(f"    next: {damage.hint}")
    for note in verified.notes:
        print(f"  note: {note}")
    # A bar may stand below; and in a log each image is there when it is done.
    sys.stdout.flush()


def _threads(opened: Session) -> int:
    """How many threads may read here; where others work too, they also give way to these."""
    login = runner(opened.checkout.settings.runner) is Runner.SLURM and slurm.job_id() is None
    if login:
        os.nice(_NICE)
    return min(_SHARED_THREADS, threads()) if login else threads()


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Two functions, one for the size of all that is to be read, one for each piece of it."""
    if not sys.stdout.isatty():
        yield lambda _bytes: None, lambda _bytes: None
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
    # What is printed meanwhile comes out above the bar.
    with Progress(*columns, console=Console(highlight=False), transient=True) as progress:
        bar = progress.add_task("verify")
        yield (
            lambda size_bytes: progress.update(bar, total=size_bytes),
            lambda size_bytes: progress.advance(bar, size_bytes),
        )
