"""A command whose output is passed on and read at the same time."""

import os
import time

import pytest

from rc_tasks.errors import ToolNotFoundError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command


def sh(script: str) -> Command:
    return Command(("sh", "-c", script))


def test_every_line_is_passed_on_and_read(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lines: list[str] = []
    assert (
        command.watch(sh("echo one; echo two >&2; printf '\\377\\r\\nno end'; exit 3"), lines.append)
        == 3
    )
    assert capfdbinary.readouterr().out == b"one\ntwo\n\xff\r\nno end"
    assert lines == ["one", "two", "\ufffd\r"]


def test_much_output_without_a_line_end_is_passed_on_whole(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    lines: list[str] = []
    assert command.watch(sh("head -c 3000000 /dev/zero; echo; echo end"), lines.append) == 0
    assert len(capfdbinary.readouterr().out) == 3_000_005
    assert lines[-1] == "end"


def test_what_a_command_leaves_behind_does_not_hold_us(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """A daemon that a RUN starts keeps the output open."""
    lines: list[str] = []
    started = time.monotonic()
    assert command.watch(sh("setsid sleep 30 & echo $!"), lines.append) == 0
    assert time.monotonic() - started < 20
    os.kill(int(lines[0]), 9)


def test_a_command_that_does_not_exist_is_told() -> None:
    with pytest.raises(ToolNotFoundError, match="no-such-tool"):
        command.watch(Command(("no-such-tool",)), print)


def test_what_is_drawn_on_terminals_alone_is_seen_state_by_state() -> None:
    seen: list[str] = []
    script = (
        "[ -t 1 ] && [ -t 2 ] && echo at a terminal; printf '\\r[=|  ] 1/3  33%%';"
        " printf '\\r[===/] 3/3 100%%\\n\\n'; echo gone wrong >&2; printf 'no end'; exit 3"
    )
    assert command.watch_drawing(sh(script), seen.append) == 3
    assert seen == ["at a terminal", "[=|  ] 1/3  33%", "[===/] 3/3 100%", "gone wrong", "no end"]


def test_what_a_drawing_command_leaves_behind_does_not_hold_us() -> None:
    seen: list[str] = []
    started = time.monotonic()
    # What is still in the shell's group is ended together with the shell: setsid has to be out first.
    script = 'setsid sleep 30 & until [ "$(ps -o sid= -p $!)" -eq $! ]; do sleep 0.01; done; echo $!'
    assert command.watch_drawing(sh(script), seen.append) == 0
    assert time.monotonic() - started < 20
    os.kill(int(seen[0]), 9)
