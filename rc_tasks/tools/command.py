"""One outside command as a value, and the only door that starts a process."""

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from rc_tasks.errors import CommandError, ToolNotFoundError

# How long a process group may take to end after TERM before it gets KILL.
GRACE_S = 10.0
# How many of a failed tool's last lines an error shows.
TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Command:
    """An argv with what it changes of its surroundings.

    `env` is added to the inherited environment; `unset` names variables that are taken out of it.
    """

    argv: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    unset: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """The command as a person would paste it into a shell."""
        changes = [f"-u {name}" for name in sorted(self.unset)]
        changes += [f"{key}={shlex.quote(value)}" for key, value in sorted(self.env.items())]
        prefix = f"env {' '.join(changes)} " if changes else ""
        return prefix + shlex.join(self.argv)

    def wrapped(self, *argv: str) -> "Command":
        """This command as the last arguments of another one, in the same surroundings."""
        return replace(self, argv=(*argv, *self.argv))

    def environment(self) -> dict[str, str]:
        """The whole environment that the process gets."""
        kept = {key: value for key, value in os.environ.items() if key not in self.unset}
        return kept | dict(self.env)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended. `returncode` is negative for a signal, as in `subprocess`."""

    command: Command
    returncode: int
    stdout: str
    stderr: str
    duration_s: float


def which(tool: str) -> str | None:
    """The full path of a program on PATH, or None."""
    return shutil.which(tool)


def require(tool: str, hint: str) -> str:
    """The full path of a program on PATH; raises ToolNotFoundError with the hint."""
    path = which(tool)
    if path is None:
        raise ToolNotFoundError(f"{tool} was not found on PATH", where=os.uname().nodename, hint=hint)
    return path


def capture(
    command: Command, *, stdin: str | None = None, timeout_s: float | None = None, check: bool = True
) -> Completed:
    """Run a command whose output is small and wanted as text.

    Raises CommandError when it fails (unless `check` is false) or takes longer than `timeout_s`,
    and ToolNotFoundError when it does not exist.
    """
    started = time.monotonic()
    with _started(
        command,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            out, err = process.communicate(
                stdin.encode() if stdin is not None else None, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise CommandError(
                f"no answer within {timeout_s:g} s from: {command}",
                hint="run the command by hand to see what it waits for",
            ) from None
    done = Completed(
        command,
        process.returncode,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
        time.monotonic() - started,
    )
    if check and done.returncode != 0:
        raise failure(done.command, done.returncode, (done.stderr or done.stdout).splitlines())
    return done


def stream(command: Command, log: IO[bytes] | None, *, grace_s: float = GRACE_S) -> int:
    """Run a command whose whole output goes to `log` (None: to our own output).

    Returns the exit status, negative for a signal. Nothing is held in memory. When we are interrupted,
    the command has `grace_s` to end. Raises ToolNotFoundError when it does not exist.
    """
    if log is not None:
        log.flush()
    with _started(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, grace_s=grace_s) as process:
        return process.wait()


def failure(
    command: Command, returncode: int, lines: list[str], *, hint: str | None = None
) -> CommandError:
    """The error for a command that ended with `returncode` after printing `lines`."""
    return CommandError(
        f"{Path(command.argv[0]).name} {ending(returncode)}: {command}",
        quote=tuple(lines[-TAIL_LINES:]),
        hint=hint,
    )


def ending(returncode: int) -> str:
    """How a process ended, in words."""
    # A shell, srun and podman report "ended by signal N" as 128+N.
    number = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
    if number:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
    return f"failed with exit status {returncode}"


def end_all(grace_s: float = GRACE_S) -> None:
    """End every process group that is still running, first politely, then for certain.

    For signal handlers and the end of a run: threads that wait in `stream` then return.
    """
    with _lock:
        running = list(_running)
    for process in running:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in running:
        _end(process, deadline)


def end_with_parent() -> None:
    """Ask for TERM when the process that started us dies, however it dies (prctl(2))."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def _started(
    command: Command,
    *,
    stdin: int | None,
    stdout: int | IO[bytes] | None,
    stderr: int | IO[bytes] | None,
    grace_s: float = GRACE_S,
) -> Iterator[subprocess.Popen[bytes]]:
    try:
        process = subprocess.Popen(
            command.argv,
            cwd=command.cwd,
            env=command.environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            # Its own session: Ctrl-C reaches us alone, and we end the whole group, grandchildren too.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ToolNotFoundError(
            f"{command.argv[0]} was not found",
            where=os.uname().nodename,
            hint="`doit doctor` lists what is missing and how to install it",
        ) from None
    except OSError as error:
        raise CommandError(f"cannot start {command}: {error.strerror}") from None
    with _lock:
        _running.add(process)
    try:
        yield process
    finally:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            _end(process, time.monotonic() + grace_s)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        with _lock:
            _running.discard(process)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    # The group, not its leader alone: what a RUN started may ignore a TERM that podman obeys.
    while process.poll() is None or _group_lives(process):
        if time.monotonic() > deadline:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.05)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
