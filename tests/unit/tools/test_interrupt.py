"""A signal that ends this process is noticed wherever the kernel delivers it."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from rc_tasks.commands.cli.errors import INTERRUPTED, report_errors
from rc_tasks.errors import RcError
from rc_tasks.steps import __main__ as steps
from rc_tasks.tools import command, interrupt

PROGRAM = """
    import queue, signal, subprocess, threading, time
    from rc_tasks.tools import interrupt

    def again():
        print("again")
        twice.set()

    twice = threading.Event()
    interrupt.raise_once({signal.SIGTERM, signal.SIGINT}, lambda: print("before"), again)

    def deliver_here():
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        threading.Event().wait()

    threading.Thread(target=deliver_here, daemon=True).start()
    try:
        queue.Queue().get()
    except KeyboardInterrupt:
        print("raised")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    print("not again")
    status = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True)
    ignored = int(status.stdout.split()[1], 16)
    both = (signal.SIGTERM, signal.SIGINT)
    time.sleep(0.3)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    twice.wait(20)
    print("ignored by a child:", [each.name for each in both if ignored >> each - 1 & 1])
"""


def test_a_signal_that_another_thread_gets() -> None:
    done = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "before\nraised\nnot again\nagain\nignored by a child: []\n"
    assert done.stderr == ""


def interrupted_in_a_lock() -> None:
    """As `threading` ends when a signal comes while it waits."""
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("release unlocked lock")


def test_an_error_that_an_interruption_causes_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        interrupted_in_a_lock()
        return 0

    assert report_errors(run) == INTERRUPTED
    assert capfd.readouterr() == ("", "interrupted\n")


def test_so_is_one_of_a_step(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(steps, "find_root", lambda _directory: interrupted_in_a_lock())
    monkeypatch.setattr(interrupt, "raise_once", lambda _signals: None)
    monkeypatch.setattr(command, "end_with_parent", lambda: None)
    monkeypatch.setattr(steps, "with_careful_umask", lambda _umask: None)
    assert steps.main(["clear"]) == INTERRUPTED
    assert capfd.readouterr() == ("", "interrupted\n")


@pytest.mark.parametrize("error", [RcError("the disk is full"), OSError("the disk is full")])
def test_an_error_for_people_stays(error: Exception) -> None:
    with pytest.raises(type(error), match="the disk is full"), interrupt.recognized():
        try:
            raise KeyboardInterrupt
        finally:
            raise error


def test_any_other_error_stays() -> None:
    with pytest.raises(RuntimeError), interrupt.recognized():
        raise RuntimeError


AT_EACH_LINE = """
    import os, signal, subprocess, sys
    from rc_tasks.tools import command, interrupt
    from rc_tasks.tools.command import Command

    FILES = (command.__file__, interrupt.__file__, subprocess.__file__)

    def started_with_signal_at(moment):
        # Return how many lines run before the command is waited for, and what runs after the signal.
        lines = set()

        def see(frame, event, _argument):
            if frame.f_code.co_filename not in FILES:
                return None
            if event == "call" and frame.f_code.co_name == "wait":
                raise TimeoutError
            if event == "return":
                return None  # no handler of a signal runs here
            lines.add((frame.f_code, frame.f_lineno))
            if len(lines) == moment:
                sys.settrace(None)
                signal.raise_signal(signal.SIGTERM)
            return see

        sys.settrace(see)
        try:
            if sys.argv[2] == "command":
                command.stream(Command(("sleep", "60")), None)
            companion = command.Companion(Command(("cat",)))
            sys.settrace(None)
            companion.close()
        except (KeyboardInterrupt, TimeoutError):
            sys.settrace(None)
        own = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
        argvs = [open(f"/proc/{child}/cmdline").read() for child in open(own).read().split()]
        return len(lines), [argv for argv in argvs if {"sleep", "cat"} & {*argv.split("\\0")}]

    def in_a_process(moment):
        if os.fork() == 0:
            interrupt.raise_once({signal.SIGTERM})
            lines, running = started_with_signal_at(moment)
            if running:
                print(f"at line {moment}: {running}", flush=True)
            if moment == 0:
                print(lines, file=open(sys.argv[1], "w"), flush=True)
            os._exit(0)

    in_a_process(0)
    os.wait()
    most = int(open(sys.argv[1]).read())
    assert most > 100, most
    for moment in range(1, most):
        in_a_process(moment)
        if moment >= 8:
            os.wait()
    for _ in range(7):
        os.wait()
    print("done")
"""


@pytest.mark.parametrize("started", ["command", "companion"])
def test_a_signal_while_a_command_starts_leaves_no_process(tmp_path: Path, started: str) -> None:
    """At each line of ours and of Python's."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(AT_EACH_LINE), str(tmp_path / "lines"), started],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr


IN_THE_GRACE = """
    import signal, sys, threading, time
    from rc_tasks.tools import command, interrupt
    from rc_tasks.tools.command import Command

    interrupt.raise_once({signal.SIGTERM})
    threading.Timer(0.5, signal.raise_signal, (signal.SIGTERM,)).start()
    started_s = time.monotonic()
    try:
        command.pour(Command(("sh", "-c", sys.argv[1])), print, timeout_s=0.2)
    except KeyboardInterrupt:
        assert time.monotonic() < started_s + command.GRACE_S / 2
        print("raised")
"""


def test_a_signal_while_a_command_has_time_to_end_kills_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    stubborn = f"trap '' TERM; echo $$ > {pid}; exec sleep 60"
    done = subprocess.run(
        [sys.executable, "-c", dedent(IN_THE_GRACE), stubborn],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("raised\n", "")
    assert not Path("/proc", pid.read_text().strip(), "exe").exists()
