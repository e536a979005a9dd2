"""Runs of mksquashfs: their output in the log, a second run where one may help, and their errors."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

from msgspec.structs import replace

from rc_tasks.errors import ArtifactError
from rc_tasks.tools import command, squashfs
from rc_tasks.tools.command import Command, Completed


def run(
    make: Callable[[bool], Command],
    directory: Path,
    unpacked_bytes: int,
    log: IO[bytes] | None,
    *,
    draws: bool = True,
) -> None:
    """Run mksquashfs, which writes to `directory`; a log of None is our own output.

    `make` returns the command; its argument says whether mksquashfs compares files to store the same
    content once. `unpacked_bytes` is the size of the image, for messages. `draws`: the log gets its
    percentage and statistics, and nothing else writes to the log meanwhile; without, it gets errors.
    Raise ArtifactError when the disk is full, or CommandError.
    """
    execute = _draw if draws else _quiet
    done = execute(make(True), log)
    if done.returncode != 0 and squashfs.failed_comparing(done.stdout):
        # A second attempt with the same files may fail again, so do not compare them.
        say(
            log,
            f"mksquashfs {squashfs.version()} failed while it compared files: once more without, which"
            " stores files with the same content several times",
        )
        done = execute(make(False), log)
    if done.returncode != 0:
        fail(done, directory, unpacked_bytes)


def _draw(invocation: Command, log: IO[bytes] | None) -> Completed:
    """Run mksquashfs; the log gets its percentage in one line that is overwritten."""
    output = log if log is not None else sys.stdout.buffer
    lines: list[str] = []
    last_percent = -1

    def write(text: str) -> None:
        output.write(text.encode(errors="surrogateescape"))
        output.flush()

    def see(line: str) -> None:
        nonlocal last_percent
        percent = squashfs.drawn_percent(line)
        if percent is None:
            write("\n" * (last_percent >= 0) + f"{line}\n")
            if squashfs.may_explain_failure(line):
                lines.append(line)
            last_percent = -1
        elif percent != last_percent:
            write(f"{squashfs.progress_line(percent)}\r")
            last_percent = percent

    write(f"+ {invocation}\n")
    started = time.monotonic()
    returncode = command.watch_drawing(invocation, see)
    write("\n" * (last_percent >= 0))
    return Completed(invocation, returncode, "\n".join(lines), "", time.monotonic() - started)


def _quiet(invocation: Command, log: IO[bytes] | None) -> Completed:
    """Run mksquashfs; an image may have a hundred layers, each with thirty lines of statistics."""
    done = command.capture(invocation, check=False)
    if done.returncode != 0:
        say(log, f"+ {invocation}")
        say(log, (done.stdout + done.stderr).removesuffix("\n"))
    return done


def copied(invocation: Command, log: IO[bytes] | None) -> Completed:
    """Run a tool with short output, and copy its output to the log."""
    say(log, f"+ {invocation}")
    done = command.capture(invocation, check=False)
    if output := (done.stdout + done.stderr).removesuffix("\n"):
        say(log, output)
    return done


def say(log: IO[bytes] | None, line: str) -> None:
    """Write a line to the log."""
    output = log if log is not None else sys.stdout.buffer
    output.write(f"{line}\n".encode(errors="surrogateescape"))
    output.flush()


def fail(done: Completed, directory: Path, unpacked_bytes: int) -> NoReturn:
    """Raise the error of a tool; `directory` is where it wrote, and has removed its file."""
    lines = (done.stderr or done.stdout).splitlines()
    output = done.stdout + done.stderr
    if "Disk quota exceeded" in output:
        # The free space of the disk does not matter then.
        raise ArtifactError(
            f"the disk quota was used up while squashing; the image is {_gb(unpacked_bytes)} unpacked",
            where=directory,
            quote=tuple(lines[-3:]),
            hint="remove what is not needed (`doit gc`) or ask for more quota there, then run again;\n"
            "the image that was there before is untouched",
        )
    if "No space left on device" not in output:
        # The log shows its environment, such as the changed PATH.
        raise command.failure(replace(done.command, env={}), done.returncode, lines)
    free = shutil.disk_usage(directory).free
    raise ArtifactError(
        f"no space left while squashing: {_gb(free)} are free here without the unfinished file, and "
        f"the image is {_gb(unpacked_bytes)} unpacked",
        where=directory,
        quote=tuple(lines[-3:]),
        hint="free space or ask for more quota there, then run again;\n"
        "the image that was there before is untouched",
    )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
