"""A terminal for programs under test: what they draw, as a person sees it."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from rich.cells import get_character_cell_size

from tests.support.runs import PATIENCE_S

_SIZE = {"COLUMNS", "LINES"}
_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


class Screen:
    """The rows of a terminal with all that has scrolled away; knows what a run of ours draws with.

    What it does not know fails. Rows are not folded anew when the size changes, as in xterm.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self._rest = ""

    @property
    def text(self) -> str:
        """Everything, without spaces at the ends of lines."""
        return "\n".join("".join(line).rstrip() for line in self._lines).rstrip()

    def feed(self, text: str) -> None:
        """Take what a program writes."""
        text, self._rest = self._rest + text, ""
        at = 0
        while at < len(text):
            found = _PIECE.match(text, at)
            if found is None:
                assert len(text) - at < 16, f"unknown: {text[at : at + 16]!r}"
                self._rest = text[at:]
                return
            at = found.end()
            if found[2] is not None:
                self._control(found[1], found[2])
            elif found[0] == "\r":
                self._column = 0
            elif found[0] == "\n":
                self._down()
            else:
                self._put(found[0])

    def _control(self, numbers: str, letter: str) -> None:
        if letter == "A":
            top = max(0, len(self._lines) - self.rows)
            self._row = max(top, self._row - int(numbers or 1))
        elif letter == "K":
            assert numbers == "2"
            self._lines[self._row] = []
        else:
            assert letter == "m", f"unknown: {numbers}{letter}"

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append([])

    def _put(self, char: str) -> None:
        assert char.isprintable(), repr(char)
        width = get_character_cell_size(char)
        if self._column + width > self.columns:
            self._down()
            self._column = 0
        line = self._lines[self._row]
        line += " " * (self._column - len(line))
        line[self._column : self._column + width] = [char, *[""] * (width - 1)]
        self._column += width


class Terminal:
    """A program at a terminal of its own, which is its controlling one."""

    def __init__(
        self, argv: tuple[str, ...], cwd: Path, environ: Mapping[str, str], columns: int, rows: int
    ) -> None:
        self.screen = Screen(columns, rows)
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (rows, columns))
        # pytest-xdist exports the width of its own terminal, which would count for more than this one's.
        inherited = {name: value for name, value in os.environ.items() if name not in _SIZE}
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**inherited, "TERM": "xterm-256color", **environ},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After a failed test it may still run.
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
        self.hang_up()

    def resize(self, columns: int, rows: int) -> None:
        """Another size, as when a person pulls at the window."""
        self.screen.columns, self.screen.rows = columns, rows
        termios.tcsetwinsize(self._master, (rows, columns))

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._master, text.encode())

    def hang_up(self) -> None:
        """The window is closed."""
        with contextlib.suppress(OSError):
            os.close(self._master)

    def shows(self, happened: Callable[[str], object]) -> str:
        """Wait until something can be seen; returns all that can be seen then."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened(self.screen.text):
            assert time.monotonic() < deadline, self.screen.text
            assert self._read() or happened(self.screen.text), f"it ended:\n{self.screen.text}"
        return self.screen.text

    def end(self) -> tuple[int, str]:
        """Read to the end; returns the exit status and all that can be seen then."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S), self.screen.text

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone."""
        self.process.send_signal(number)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # what Linux says at the end of a terminal
            return False
        self.screen.feed(data.decode(errors="replace"))
        return bool(data)
