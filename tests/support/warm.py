"""`doit` in a fork of a process that has imported it: a fifth of the time of a new Python."""

import io
import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import rc_tasks.commands

# A running Python takes no notice of these.
_FOR_PYTHON = ("PYTHON", "LANG", "LC_")

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "__main__",
        "rc_tasks.engine",
        *(f"rc_tasks.commands.{each.name}" for each in pkgutil.iter_modules(rc_tasks.commands.__path__)),
    ]
)


def suits(environ: Mapping[str, str]) -> bool:
    """Whether a fork is the same as a new Python to a run with this environment."""
    return all(
        value == os.environ.get(name)
        for name, value in environ.items()
        if name.startswith(_FOR_PYTHON) and name != "PYTHONUNBUFFERED"
    )


def run(
    argv: tuple[str, ...], cwd: Path, environ: Mapping[str, str], timeout_s: float
) -> tuple[int, str]:
    """The exit status of `doit argv…`, and what it wrote on both outputs; it reads no input.

    Raises subprocess.TimeoutExpired.
    """
    umask = os.umask(0)
    os.umask(umask)
    with tempfile.TemporaryFile() as output:
        path = f"/proc/{os.getpid()}/fd/{output.fileno()}"
        process = _forks.Process(target=_doit, args=(argv, str(cwd), dict(environ), umask, path))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(argv, timeout_s)
        output.seek(0)
        return process.exitcode, output.read().decode()


def _doit(argv: tuple[str, ...], cwd: str, environ: dict[str, str], umask: int, output: str) -> None:
    for path, flags, number in (
        (os.devnull, os.O_RDONLY, 0),
        (output, os.O_WRONLY | os.O_APPEND, 1),
        (output, os.O_WRONLY | os.O_APPEND, 2),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environ)
    sys.stdin = sys.__stdin__ = open(0)  # noqa: SIM115 - as long as the process
    unbuffered = "PYTHONUNBUFFERED" in environ
    sys.stdout = sys.__stdout__ = _text(1, unbuffered)
    sys.stderr = sys.__stderr__ = _text(2, unbuffered=True)
    sys.argv = ["doit", *argv]

    from rc_tasks.commands.main import main

    sys.exit(main())


def _text(number: int, unbuffered: bool) -> io.TextIOWrapper:
    raw = io.FileIO(number, "w", closefd=False)
    # As Python itself opens them (create_stdio in Python/pylifecycle.c).
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        errors="backslashreplace",
        write_through=unbuffered,
    )
