"""The one door to outside programs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.errors import CommandError, ToolNotFoundError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command


def sh(script: str, *arguments: str) -> Command:
    return Command(("sh", "-c", script, "sh", *arguments))


def test_arguments_arrive_unchanged() -> None:
    odd = ("a b", "it's", '"', "$HOME", "two\nlines", "-n", "ümlaut", "")
    done = command.capture(Command(("printf", "<%s>", *odd)))
    assert done.stdout == "".join(f"<{word}>" for word in odd)


def test_a_command_reads_as_it_would_be_pasted(tmp_path: Path) -> None:
    wanted = Command(("podman", "a b"), cwd=tmp_path, env={"A": "1 2"}, unset=frozenset({"B"}))
    assert str(wanted) == "env -u B A='1 2' podman 'a b'"
    assert wanted.wrapped("srun", "-n1").argv == ("srun", "-n1", "podman", "a b")
    assert wanted.wrapped("srun").cwd == tmp_path


def test_the_environment_is_added_to_and_taken_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    done = command.capture(Command(("env",), env={"NEW": "2"}, unset=frozenset({"GONE"})))
    lines = done.stdout.splitlines()
    assert "NEW=2" in lines and not any(line.startswith("GONE=") for line in lines)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no >&2; exit 3", "sh failed with exit status 3: sh -c"),
        ("kill -KILL $$", "sh was ended by SIGKILL: sh -c"),
        ("exit 143", "sh was ended by SIGTERM: sh -c"),
    ],
)
def test_a_failure_names_the_command_and_its_end(script: str, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        command.capture(sh(script))
    assert str(caught.value).startswith(words)


def test_a_failure_quotes_the_last_lines() -> None:
    with pytest.raises(CommandError) as caught:
        command.capture(sh("seq 100 >&2; exit 1"))
    assert caught.value.quote == tuple(str(number) for number in range(86, 101))


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ToolNotFoundError) as caught:
        command.capture(Command(("no-such-program",)))
    assert str(caught.value).startswith(
        f"{os.uname().nodename}: no-such-program was not found\n  next: "
    )


def test_no_answer_is_an_error_and_leaves_no_process() -> None:
    started = time.monotonic()
    with pytest.raises(CommandError, match=r"no answer within 0\.2 s"):
        command.capture(sh("sleep 60"), timeout_s=0.2)
    assert time.monotonic() - started < 30


def test_the_whole_output_goes_to_the_log_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        output.write(b"first\n")
        assert command.stream(sh("echo out; echo err >&2; exit 7"), output) == 7
    assert log.read_text() == "first\nout\nerr\n"


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys", "ignores TERM"])
def test_ending_all_ends_whole_groups(tmp_path: Path, stubborn: bool) -> None:
    pids = tmp_path / "pids"
    trap = "trap '' TERM; " if stubborn else ""
    # The leader obeys in both cases; what it has started may not.
    script = f'sh -c \'{trap}echo $$ >> "$1"; sleep 60; sleep 60\' sh "$1" & echo $! >> "$1"; wait'
    script = script.replace("'' TERM", '"" TERM')
    waiting = threading.Thread(target=command.stream, args=(sh(script, str(pids)), None))
    waiting.start()
    while not pids.exists() or len(pids.read_text().split()) < 2:
        time.sleep(0.01)
    command.end_all(grace_s=0.5)
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            for _ in range(100):  # a killed process is there until it is reaped
                os.kill(int(pid), 0)
                time.sleep(0.05)


@pytest.mark.parametrize("stubborn", [False, True], ids=["obeys", "ignores TERM"])
def test_what_threads_have_started_ends_when_we_are_killed(tmp_path: Path, stubborn: bool) -> None:
    """With all its children, and also when it does not obey; what had ended before is left alone."""
    pids = tmp_path / "pids"
    trap = 'trap "" TERM; ' if stubborn else ""
    script = f'{trap}sleep 300 & echo $$ $! >> "$1"; wait'
    program = f"""
import threading
from rc_tasks.tools import command
from rc_tasks.tools.command import Command
command.GRACE_S = 0.1
command.capture(Command(("true",)))
run = Command(("sh", "-c", {script!r}, "sh", {str(pids)!r}))
for _ in range(4):
    threading.Thread(target=command.capture, args=(run,)).start()
command.stream(run, None)
"""
    with subprocess.Popen((sys.executable, "-c", program)) as killed:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 10)
        killed.kill()
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not lives(int(pid)))  # its default has no type


def test_what_a_killed_command_leaves_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = sh('sleep 300 & echo $! > "$1"; kill -KILL $$', str(pid))
    assert command.stream(script, None) == -signal.SIGKILL
    assert not lives(int(pid.read_text()))


@pytest.mark.parametrize(
    ("script", "returncode", "output"),
    [
        pytest.param("echo out; echo err >&2; exit 7", 7, b"out\nerr\n", id="status"),
        pytest.param("kill -SEGV $$", -signal.SIGSEGV, b"", id="signal"),
        pytest.param("exec >&- 2>&-; sleep 0.2; exit 3", 3, b"", id="closes its output"),
        pytest.param("sleep 300 & echo out", 0, b"out\n", id="leaves a process"),
        pytest.param("printf '\\377\\0'", 0, b"\xff\0", id="no text"),
    ],
)
def test_output_is_poured(script: str, returncode: int, output: bytes) -> None:
    said: list[bytes] = []
    assert command.pour(sh(script), said.append, timeout_s=60) == returncode
    assert b"".join(said) == output


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('echo $$ > "$1"; sleep 300', id="waits"),
        pytest.param('trap "" TERM; echo $$ > "$1"; while :; do sleep 1; done', id="ignores TERM"),
        pytest.param('echo $$ > "$1"; while :; do echo noise; done', id="talks for ever"),
        pytest.param('echo $$ > "$1"; exec >&- 2>&-; sleep 300', id="closes its output"),
    ],
)
def test_what_takes_too_long_is_ended(script: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert command.pour(sh(script, str(pid)), lambda _: None, timeout_s=1, grace_s=0.2) is None
    assert not lives(int(pid.read_text()))


def test_what_is_left_behind_cannot_talk_for_ever(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = sh('(while :; do echo noise; done) & echo $! > "$1"', str(pid))
    assert command.pour(script, lambda _: None, timeout_s=60) == 0
    assert not lives(int(pid.read_text()))


def watched(script: Command) -> int:
    pieces: list[bytes] = []

    def shown(piece: bytes) -> bytes:
        pieces.append(piece)
        return piece

    returncode = command.watch(script, lambda _: None, shown)
    assert pieces[-1] == b"" and b"" not in pieces[:-1]
    return returncode


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(watched, id="watch"),
        pytest.param(lambda script: command.interact(script, lambda _: None), id="interact"),
    ],
)
def test_what_is_left_behind_keeps_nobody(run: Callable[[Command], int], tmp_path: Path) -> None:
    """It says more often than we look whether there is anything more."""
    pid = tmp_path / "pid"
    script = 'exec 3>&1 4>&2; (while [ -e "$1" ]; do echo noise >&3; echo noise >&4; sleep 0.05; done) &'
    pid.touch()
    try:
        assert run(sh(f"{script} exit 7", str(pid))) == 7
    finally:
        pid.unlink()


def test_a_signal_ends_it_as_shells_say() -> None:
    assert command.interact(sh("kill -TERM $$")) == 143


def lives(pid: int) -> bool:
    """Whether a process runs; the dead are there until somebody collects them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_have_names() -> None:
    assert command.ending(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert command.ending(137) == "was ended by SIGKILL"
    assert command.ending(255) == "failed with exit status 255"


def test_what_starts_a_command_elsewhere_is_not_shown(tmp_path: Path) -> None:
    through = Command(("sh", "-c", 'echo "$PWD $GREETING"'), tmp_path, through=("env", "GREETING=hello"))
    assert command.capture(through).stdout == f"{tmp_path} hello\n"
    assert str(through) == """sh -c 'echo "$PWD $GREETING"'"""
    with pytest.raises(CommandError, match=r"^false failed with exit status 1: false$"):
        command.capture(Command(("false",), through=("env", "GREETING=hello")))
