"""Outside commands as values, and the functions that run them: only this module starts processes."""

import contextlib
import ctypes
import functools
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

from msgspec import Struct, field
from msgspec.structs import replace

from rc_tasks.errors import CommandError, ToolNotFoundError
from rc_tasks.tools import failures, interrupt

# How long a process group may take to end after TERM before it gets KILL.
GRACE_S = 10.0
# How often a command that prints nothing is polled, and how long its output is read after it has ended.
_POLL_S = 0.2
_DRAIN_S = 1.0
# How often `stream` calls `hopeless`.
_HOPELESS_POLL_S = 0.3
# How many of a failed tool's last lines an error shows.
TAIL_LINES = 15
# How many characters of a command are shown by the error that says it cannot be started.
_MOST_COMMAND_CHARACTERS = 1000
# A shell that ends our commands when we are killed and cannot. We write it the process groups of our
# commands; it reads until we are gone. prctl(2)'s death signal would reach podman, but not what a RUN
# has started in the background.
_GUARD_SCRIPT = """
groups=
while read -r sign group; do
    others=
    for other in $groups; do [ "$other" = "$group" ] || others="$others $other"; done
    groups=$others
    [ "$sign" = - ] || groups="$groups $group"
done
signal_all() {
    alive=
    for group in $groups; do kill -s "$1" -- "-$group" && alive="$alive $group"; done
    groups=$alive
}
signal_all TERM
tenths=0
while [ -n "$groups" ] && [ "$tenths" -lt "$1" ]; do
    sleep 0.1
    signal_all 0
    tenths=$((tenths + 1))
done
signal_all KILL
"""
# The shell that starts a command once it has written its own group to the guard. If we wrote the group,
# we could be killed before. Once we are gone the write fails, and the command does not start.
_ANNOUNCED = 'echo "+ $$" 1<>"$0" && exec "$@"'


class Command(Struct, frozen=True):
    """An argv with its changes to the environment and the working directory.

    `env` is added to the inherited environment; `unset` names variables that are taken out of it.
    `through` is the argv of what starts the command, in another namespace; messages leave it out.
    """

    argv: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    unset: frozenset[str] = frozenset()
    through: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the command as a person would paste it into a shell."""
        changes = [f"-u {name}" for name in sorted(self.unset)]
        changes += [f"{key}={shlex.quote(value)}" for key, value in sorted(self.env.items())]
        prefix = f"env {' '.join(changes)} " if changes else ""
        return prefix + shlex.join(self.argv)

    def wrapped(self, *argv: str) -> "Command":
        """Return this command as the last arguments of another one, in the same surroundings."""
        return replace(self, argv=(*argv, *self.argv))

    def environment(self) -> dict[str, str]:
        """Return the whole environment that the process gets."""
        kept = {key: value for key, value in os.environ.items() if key not in self.unset}
        return kept | dict(self.env)


class Completed(Struct, frozen=True):
    """How a command ended. `returncode` is negative for a signal, as in `subprocess`."""

    command: Command
    returncode: int
    stdout: str
    stderr: str
    duration_s: float


def which(tool: str) -> str | None:
    """Return the full path of a program on PATH, or None."""
    return shutil.which(tool)


def require(tool: str, hint: str) -> str:
    """Return the full path of a program on PATH. Raise ToolNotFoundError with the hint."""
    path = which(tool)
    if path is None:
        raise ToolNotFoundError(f"{tool} was not found on PATH", where=os.uname().nodename, hint=hint)
    return path


def capture(
    command: Command, *, stdin: str | None = None, timeout_s: float | None = None, check: bool = True
) -> Completed:
    """Run a command with small output and return that as text.

    Raise CommandError when it fails (unless `check` is false) or takes longer than `timeout_s`,
    and ToolNotFoundError when it does not exist.
    """
    started = time.monotonic()
    with _Started(
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


def stream(
    command: Command,
    log: IO[bytes] | None,
    *,
    grace_s: float = GRACE_S,
    hopeless: Callable[[], bool] | None = None,
) -> int:
    """Run a command whose whole output goes to `log` (None: to our own output).

    Return the exit status, negative for a signal. No output is held in memory. When we are interrupted,
    the command has `grace_s` to end. It also has `grace_s` once `hopeless` returns true, which says that
    the command will not end by itself; a thread calls it several times a second. Raise ToolNotFoundError
    when the command does not exist.
    """
    if log is not None:
        log.flush()
    with _Started(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, grace_s=grace_s) as process:
        if hopeless is None:
            return process.wait()
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_HOPELESS_POLL_S):
                if hopeless():
                    _signal_group(process, signal.SIGTERM)
                    _end(process, time.monotonic() + grace_s)
                    return

        threading.Thread(target=look, daemon=True, name="watch").start()
        try:
            return process.wait()
        finally:
            ended.set()


def watch(
    command: Command, on_line: Callable[[str], None], redact: Callable[[bytes], bytes] = bytes
) -> int:
    """Run a command as `stream` does to our own output, and call `on_line` with each line.

    Standard error is included. `redact` returns what may be shown of a chunk of output; its last call
    gets an empty chunk.
    """
    sys.stdout.flush()
    with _Started(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy
        _pass_lines(process, process.stdout, sys.stdout, on_line, redact)
        return process.wait()


def watch_drawing(command: Command, on_line: Callable[[str], None]) -> int:
    """Run a command that shows its progress only on a terminal, at a terminal of its own.

    Call `on_line` with each line of its output and errors that is not blank, and with each state of a
    line that is drawn again. Return the exit status, negative for a signal.
    """
    import pty
    import termios
    import tty

    terminal, end = pty.openpty()
    rest = b""
    try:
        # Raw mode keeps line ends as they are written. Without a width the command draws nothing.
        tty.setraw(end)
        termios.tcsetwinsize(end, (24, 80))
        with (
            open(end, "wb", buffering=0) as output,
            _Started(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process,
        ):
            # While our end is open, reading does not fail when the command has ended.
            output.close()
            while True:
                ended = process.poll() is not None
                if select.select([terminal], [], [], 0 if ended else 0.2)[0]:
                    try:
                        *lines, rest = re.split(rb"[\r\n]", rest + os.read(terminal, 1 << 16))
                    except OSError:
                        break
                    for line in lines:
                        if line.strip():
                            on_line(line.decode(errors="replace"))
                elif ended:
                    break
            if rest.strip():
                on_line(rest.decode(errors="replace"))
            return process.wait()
    finally:
        os.close(terminal)


def pour(
    command: Command, into: Callable[[bytes], None], *, timeout_s: float, grace_s: float = GRACE_S
) -> int | None:
    """Run a command and call `into` with each chunk of its output and errors as it comes.

    Return the exit status, negative for a signal. Return None after `timeout_s`; the command then has
    `grace_s` more to end. Processes that it leaves behind in its session are ended too. Raise
    ToolNotFoundError when the command does not exist.
    """
    deadline = time.monotonic() + timeout_s
    with _Started(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        grace_s=grace_s,
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy
        ended_s: float | None = None
        while (left_s := deadline - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], min(left_s, _POLL_S))[0]:
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return process.wait(max(0.0, deadline - time.monotonic()))
                    break
                into(chunk)
            elif process.poll() is not None:
                return process.returncode
            # A leftover child may hold the pipe open and write into it for ever.
            if process.poll() is not None:
                ended_s = ended_s or time.monotonic()
                if time.monotonic() > ended_s + _DRAIN_S:
                    return process.returncode
    return None


def interact(command: Command, on_line: Callable[[str], None] | None = None) -> int:
    """Run a command at our own terminal; until it ends, signals such as Ctrl-C belong to it.

    Return the exit status that becomes our own: 128 + N for a signal N, as a shell does. Call `on_line`
    with each line of its standard error, which we still copy to ours. Do not pass `on_line` for a shell:
    without a terminal as standard error it is not interactive.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # The terminal itself sends INT and QUIT to every process in the foreground.
        if number not in (signal.SIGINT, signal.SIGQUIT):
            early.append(number)
            for process in started:
                process.send_signal(number)

    # The command would inherit SIG_IGN, but not a handler.
    forwarded = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, pass_on) for number in forwarded}
    try:
        with _popen(
            command,
            stdin=None,
            stdout=None,
            stderr=None if on_line is None else subprocess.PIPE,
            # A command in a new session has no terminal.
            start_new_session=False,
        ) as process:
            started.append(process)
            for number in early:
                process.send_signal(number)
            if process.stderr is not None and on_line is not None:
                _pass_lines(process, process.stderr, sys.stderr, on_line)
            returncode = process.wait()
            return returncode if returncode >= 0 else 128 - returncode
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Companion:
    """A command that runs beside us until the end of its standard input.

    Its standard input also ends when we end, however we end. `end_all` leaves it alone: other commands
    need it until they have ended, so it is closed last.
    """

    def __init__(self, command: Command) -> None:
        self.last_lines: tuple[str, ...] = ()
        self._closing = threading.Lock()
        try:
            with interrupt.deferred():
                self._process = _popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                with _lock:
                    _companions.add(self._process)
                    # The command may be busy and not read its standard input: the guard has to end it.
                    _notify_guard("+", self._process)
        except KeyboardInterrupt:
            # Nobody gets this companion, to close it.
            self.close()
            raise

    def lines(self) -> Iterator[str]:
        """Yield the lines of its output and errors as they come; another call continues later."""
        for line in self._process.stdout or ():
            yield line.decode(errors="replace").rstrip("\n")

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def close(self, grace_s: float = GRACE_S) -> int:
        """Close its standard input, end it after `grace_s`, and return its exit status.

        Afterwards `last_lines` holds the lines of output that nobody has read.
        """
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _signal_group(self._process, signal.SIGTERM)
            _end(self._process, time.monotonic() + GRACE_S)
        returncode = self._process.wait()
        # Who waits for its lines closes it too when it ends.
        with self._closing:
            if self._process.stdout is not None and not self._process.stdout.closed:
                self.last_lines = tuple(_unread(self._process.stdout))
                self._process.stdout.close()
        with _lock:
            if self._process in _companions:
                _companions.remove(self._process)
                _notify_guard("-", self._process)
        return returncode


def _unread(pipe: IO[bytes]) -> list[str]:
    """Return the unread lines of a pipe, without waiting for more."""
    os.set_blocking(pipe.fileno(), False)
    # A leftover child may hold the other end open: read() then returns None in place of b"".
    return (pipe.read() or b"").decode(errors="replace").splitlines()


def failure(
    command: Command, returncode: int, lines: list[str], *, hint: str | None = None
) -> CommandError:
    """Return the error for a command that ended with `returncode` after printing `lines`.

    Without `hint`, the hint is that of the cause that the lines name, if they name one.
    """
    return CommandError(
        f"{Path(command.argv[0]).name} {ending(returncode)}: {command}",
        quote=tuple(lines[-TAIL_LINES:]),
        hint=_hint(lines, returncode) if hint is None else hint,
    )


def _hint(lines: Iterable[str], returncode: int = 1) -> str | None:
    causes = (*failures.PODMAN, *failures.LIMITS, *failures.SQUASHFS)
    cause = failures.find(lines, causes, returncode)
    return f"on {failures.node_name()}, {cause.what}:\n{cause.hint}" if cause else None


def ending(returncode: int) -> str:
    """Return how a process ended, in words."""
    # A shell, srun and podman report "ended by signal N" as 128+N.
    number = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
    if number:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(number).name}"
    return f"failed with exit status {returncode}"


def end_all(grace_s: float = GRACE_S) -> None:
    """End every process group that is still running: with TERM, and after `grace_s` with KILL.

    Signal handlers and the end of a run call it; threads that wait in `stream` then return.
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
_companions: set[subprocess.Popen[bytes]] = set()
_guards: list[subprocess.Popen[bytes]] = []
_lock = threading.Lock()


class _Started:
    """A command that runs during the body of `with`; what is left of it then has `grace_s` to end.

    A generator of `contextlib` would leave the process alone if a signal came as the body begins.
    """

    def __init__(
        self,
        command: Command,
        *,
        stdin: int | None,
        stdout: int | IO[bytes] | None,
        stderr: int | IO[bytes] | None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._start = functools.partial(_popen, command, stdin=stdin, stdout=stdout, stderr=stderr)
        self._command = command
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> subprocess.Popen[bytes]:
        try:
            with interrupt.deferred():
                self._process = process = self._start(before=_announced(self._command))
                with _lock:
                    _running.add(process)
            return process  # noqa: TRY300 - a signal may still come here
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_error: object) -> None:
        process = self._process
        if process is None:
            return
        # When the command itself has ended by a kill, processes that it started may live on.
        if process.poll() is None or _group_lives(process):
            _signal_group(process, signal.SIGTERM)
            _end(process, time.monotonic() + self._grace_s)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        with _lock:
            _running.discard(process)
            _notify_guard("-", process)


def _announced(command: Command) -> tuple[str, ...]:
    with _lock:
        pipe = _guard().stdin
    # A program that cannot be started has to fail in Popen with the reason; the shell would exit with
    # 127.
    if pipe is None or not _is_on_path(command):
        return ()
    return ("sh", "-c", _ANNOUNCED, f"/proc/{os.getpid()}/fd/{pipe.fileno()}")


def _is_on_path(command: Command) -> bool:
    program = command.argv[0]
    # execvp(3) looks for a name with a slash from the directory in which the command will run.
    path = str((command.cwd or Path()) / program) if os.sep in program else program
    return shutil.which(path, path=command.environment().get("PATH", os.defpath)) is not None


def _notify_guard(sign: str, *processes: subprocess.Popen[bytes]) -> None:
    """Write to the guard that groups have begun (`+`) or ended (`-`). The caller holds the lock."""
    if (pipe := _guard().stdin) is not None and processes:
        with contextlib.suppress(BrokenPipeError):
            pipe.write("".join(f"{sign} {process.pid}\n" for process in processes).encode())


def _guard() -> subprocess.Popen[bytes]:
    """Return the guard; start it when there is none or it has ended. The caller holds the lock."""
    if not _guards or _guards[-1].poll() is not None:
        # A command that gets TERM may take GRACE_S itself to end what it has started, hence twice that.
        argv = ("sh", "-c", _GUARD_SCRIPT, "sh", f"{2 * GRACE_S * 10:.0f}")
        nothing = subprocess.DEVNULL
        _guards.append(
            subprocess.Popen(
                argv,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=nothing,
                stderr=nothing,
                cwd="/",
                start_new_session=True,
            )
        )
        _notify_guard("+", *_running, *_companions)
    return _guards[-1]


def _popen(
    command: Command,
    *,
    stdin: int | None,
    stdout: int | IO[bytes] | None,
    stderr: int | IO[bytes] | None,
    start_new_session: bool = True,
    before: tuple[str, ...] = (),
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            (*before, *command.through, *command.argv),
            cwd=command.cwd,
            env=command.environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            # In a session of its own, Ctrl-C reaches us alone and we can end the group with
            # grandchildren.
            start_new_session=start_new_session,
        )
    except FileNotFoundError:
        raise ToolNotFoundError(
            f"{command.argv[0]} was not found",
            where=os.uname().nodename,
            hint="`doit doctor` lists what is missing and how to install it",
        ) from None
    except OSError as error:
        text = str(command)
        # Arguments that are too long for the system are too long for a message.
        quoted = text if len(text) <= _MOST_COMMAND_CHARACTERS else f"{text[:_MOST_COMMAND_CHARACTERS]}…"
        hint = _hint((error.strerror or "",))
        raise CommandError(f"cannot start {quoted}: {error.strerror}", hint=hint) from None


def _pass_lines(
    process: subprocess.Popen[bytes],
    pipe: IO[bytes],
    out: TextIO,
    on_line: Callable[[str], None],
    redact: Callable[[bytes], bytes] = bytes,
) -> None:
    """Copy a pipe to `out` line by line, until the pipe or the process ends."""
    rest = b""
    ended = False
    ended_s: float | None = None
    while not ended:
        chunk = b""
        if ended_s is None and process.poll() is not None:
            ended_s = time.monotonic()
        # A leftover child may hold the pipe open and write into it for ever.
        late = ended_s is not None and time.monotonic() > ended_s + _DRAIN_S
        if not late and select.select([pipe], [], [], _POLL_S)[0]:
            chunk = os.read(pipe.fileno(), 1 << 16)
            ended = not chunk
        elif ended_s is not None:
            ended = True
        else:
            continue
        chunk = redact(chunk)
        out.buffer.write(chunk)
        out.flush()
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-(1 << 16) :]
        for line in lines:
            on_line(line.decode(errors="replace"))


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        # Wait for the whole group: what a RUN started may ignore a TERM that podman obeys.
        while process.poll() is None or _group_lives(process):
            if time.monotonic() > deadline:
                _signal_group(process, signal.SIGKILL)
                process.wait()
                return
            time.sleep(0.05)
    except KeyboardInterrupt:
        # Nobody would wait for it any more.
        _signal_group(process, signal.SIGKILL)
        raise


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # The kernel also counts zombies until init collects them, which the init of a container may never
    # do.
    return any(_lives_in(process.pid, entry) for entry in os.listdir("/proc") if entry.isdigit())


def _lives_in(group: int, pid: str) -> bool:
    try:
        stat = Path("/proc", pid, "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # proc(5): state, parent and group follow the name, which may hold any character, also ")".
    state, _, pgrp = stat.rpartition(")")[2].split()[:3]
    return int(pgrp) == group and state not in "ZX"
