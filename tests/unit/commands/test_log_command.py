"""`doit log`, and which logs are kept."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from rc_tasks.model.config.settings import Logs
from rc_tasks.state import logs
from rc_tasks.state.disk import locks
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Step
from rc_tasks.views.tables import readable
from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT, doit

FILES = {
    "projects/app:1/Dockerfile": "FROM debian\n",
    "projects/app:2/Dockerfile": "FROM debian\n",
    "projects/wörk/Dockerfile": "FROM debian\n",
    "projects/app:latest": "-> app:2",
}
_PATIENCE_S = 30.0


def stamped(number: int) -> str:
    """The name of a log; a greater number is a newer one."""
    return f"2026-01-02T03-04-{number:02}.000Z.{99 - number}.log"


def leave(directory: Path, *numbers: int, text: str = "", age_days: float = 1.0) -> list[Path]:
    """Logs as past steps left them."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / stamped(number) for number in numbers]
    then_s = time.time() - age_days * 86400
    for path in paths:
        path.write_text(text or f"{directory.name} {path.name}\n")
        os.utime(path, (then_s, then_s))
    return paths


def numbers(directory: Path) -> list[int]:
    """The logs that are there, without links."""
    return sorted(int(path.name[17:19]) for path in directory.iterdir() if not path.is_symlink())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"plain\n", "plain"),
        (b"no end", "no end"),
        (b"dos\r\n", "dos"),
        (b"a\tb\n", "a       b"),
        (b"\x1b[1;31mred\x1b[0m \x1b[2K\x1b]0;title\x07done\n", "red done"),
        (b"10 %\r20 %\r100 %\r\n", "100 %"),
        (b"bell \x07 \x1b\x08 \x9b\n", "bell \\x07 \\x1b\\x08 \ufffd"),
        ("ü 日本 \u202e\u2028\n".encode(), "ü 日本 \\u202e\\u2028"),
        (b"\x1b]0;no end\n", "\\x1b]0;no end"),
        (b"\n", ""),
        (b"\r\r\n", ""),
    ],
)
def test_a_line_of_a_log_cannot_command_the_terminal(line: bytes, text: str) -> None:
    assert readable(line) == text + "\n"


def test_so_many_logs_are_kept_and_the_links_lead_to_the_newest(tmp_path: Path) -> None:
    leave(tmp_path, *range(10))
    logs.settle(tmp_path, Logs(keep=3, days=30))
    assert numbers(tmp_path) == [7, 8, 9]
    assert os.readlink(tmp_path / "latest.log") == stamped(9)
    assert logs.newest(tmp_path) == tmp_path / stamped(9)
    leave(tmp_path, 11)
    logs.settle(tmp_path, Logs(keep=3, days=30))
    assert (tmp_path / "latest.log").read_text().endswith(stamped(11) + "\n")
    assert not list(tmp_path.glob(".*"))


def test_old_logs_go_but_not_the_newest_nor_the_newest_failure(tmp_path: Path) -> None:
    failed, *_ = leave(tmp_path, 1, 2, 3, 4, age_days=40)
    leave(tmp_path, 5, age_days=29)
    logs.point(tmp_path / logs.FAILED, tmp_path / stamped(2))
    logs.point(tmp_path / logs.FAILED, failed)
    logs.settle(tmp_path, Logs(keep=20, days=30))
    assert numbers(tmp_path) == [1, 5]
    (tmp_path / stamped(5)).unlink()
    logs.settle(tmp_path, Logs(keep=1, days=30))
    assert numbers(tmp_path) == [1]
    assert logs.failed(tmp_path) == failed


def test_what_is_no_log_is_left_alone(tmp_path: Path) -> None:
    leave(tmp_path, 1, 2)
    for name in ("notes.log", "2026.log", f"{stamped(0)}.bak", "ü\n"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1, 1))
    logs.settle(tmp_path, Logs(keep=1, days=1))
    assert len(list(tmp_path.iterdir())) == 4 + 1 + 1
    logs.settle(tmp_path / "missing", Logs())
    assert logs.newest(tmp_path / "missing") is None


@pytest.mark.parametrize("target", ["../../../etc/passwd", "missing.log", stamped(7), "/dev/null"])
def test_a_link_that_leads_elsewhere_is_no_failure(tmp_path: Path, target: str) -> None:
    (tmp_path / logs.FAILED).symlink_to(target)
    assert logs.failed(tmp_path) is None


def test_a_directory_in_the_place_of_a_link_fails_nothing(tmp_path: Path) -> None:
    (log,) = leave(tmp_path, 1)
    (tmp_path / logs.LATEST / "x").mkdir(parents=True)
    logs.point(tmp_path / logs.LATEST, log)
    assert sorted(path.name for path in tmp_path.iterdir()) == [log.name, logs.LATEST]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = write_checkout(tmp_path / "imgs", FILES)
    kept = root / ".rc/logs"
    leave(kept / "app:1/podman", 1, 8)
    leave(kept / "app:1/enroot", 2)
    leave(kept / "app:2/podman", 3)
    failed, _ = leave(kept / "app:2/enroot", 4, 5)
    logs.point(failed.with_name(logs.FAILED), failed)
    return root


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (("app:1",), f"app:1/podman/{stamped(8)}"),
        (("app:1", "enroot"), f"app:1/enroot/{stamped(2)}"),
        (("enroot:app:1",), f"app:1/enroot/{stamped(2)}"),
        (("app:latest",), f"app:2/enroot/{stamped(5)}"),
        (("app",), f"app:1/podman/{stamped(8)}"),
        (("app", "--failed"), f"app:2/enroot/{stamped(4)}"),
        (("--failed", "build:app:2", "enroot"), f"app:2/enroot/{stamped(4)}"),
        (("app:2", "podman", "--follow"), f"app:2/podman/{stamped(3)}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_newest_log_is_printed(checkout: Path, argv: tuple[str, ...], path: str) -> None:
    ran = doit(checkout, "log", *argv)
    assert ran.status == 0, ran.text
    _, step, log = path.split("/")
    assert ran.text == f".rc/logs/{path}\n{step} {log}\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "NAME is missing"),
        (("wörkk",), "wörk"),
        (("wörk",), "build:wörk has no log yet\n  next: doit build:wörk, or see `doit why wörk`"),
        (("app:1", "env"), "env:app:1 has no log yet"),
        (("app:1", "--failed"), "build:app:1 has no log of a failure"),
        (("app:1", "enrot"), "there is no step named 'enrot'\n  next: doit log app:1 enroot"),
        (("app:1", "podman", "enroot"), "expected one image and at most one step: app:1 podman enroot"),
        (("app:1", "--all"), "--all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments_are_told(checkout: Path, argv: tuple[str, ...], told: str) -> None:
    ran = doit(checkout, "log", *argv)
    assert ran.status == 3
    assert told in ran.text and "next: " in ran.text and "Traceback" not in ran.text


@contextmanager
def following(checkout: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        (DOIT, "log", "app:1", "--follow"), cwd=checkout, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_log_is_followed_until_its_step_ends(checkout: Path) -> None:
    log = checkout / ".rc/logs/app:1/podman" / stamped(8)
    with locks.held(checkout / ".rc/locks/app:1.json", "podman:app:1"), following(checkout) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"podman {log.name}\n"
        with log.open("a") as file:
            file.write("STEP 1\nhalf a ")
            file.flush()
            assert process.stdout.readline() == "STEP 1\n"
            assert process.poll() is None
            file.write("line")
        # The next step of the same image holds the lock now.
        lock = checkout / ".rc/locks/app:1.json"
        held = json.loads(lock.read_text())
        taken = checkout / "taken"
        taken.write_text(json.dumps(held | {"step": "enroot:app:1"}))
        taken.rename(lock)
        assert process.stdout.read() == "half a line\n"
        assert process.wait(_PATIENCE_S) == 0


def test_ctrl_c_ends_following(checkout: Path) -> None:
    with locks.held(checkout / ".rc/locks/app:1.json", "podman:app:1"), following(checkout) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(_PATIENCE_S) == 130


@pytest.mark.parametrize(
    ("pager", "shown"),
    [
        pytest.param("sed 's/^/paged: /'", "paged: podman", id="the user's own"),
        pytest.param("no-such-pager", "\r\npodman", id="one that is missing"),
        pytest.param("an 'open quote", "podman", id="one that is none"),
    ],
)
def test_on_a_terminal_the_log_is_paged(checkout: Path, pager: str, shown: str) -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "PAGER": pager, "LESS": "-FX", "TERM": "xterm"}
    with subprocess.Popen(
        (DOIT, "log", "app:1"), cwd=checkout, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        text = b""
        while chunk := _read(ours):
            text += chunk
    os.close(ours)
    assert process.returncode == 0, text
    assert shown in text.decode()
    assert "Traceback" not in text.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""  # Linux: the last one at the other end has left


def ran_in(checkout: Path, run: str, *logs: str, outcome: str = "done") -> None:
    """Write a run's lines of the history; a log is `IMAGE/STEP/NAME`."""
    directory = checkout / ".rc/history"
    directory.mkdir(exist_ok=True)
    lines = []
    for number, log in enumerate(logs):
        image, step, _ = log.split("/")
        started_at = f"2026-01-02T03:04:{number:02}+00:00"
        entry = HistoryEntry(run, image, Step(step), Outcome(outcome), started_at, 3.0, 0.0)
        path = "" if log.endswith("/") else f".rc/logs/{log}"
        lines.append(json.dumps(to_builtins(replace(entry, log=path))) + "\n")
    (directory / f"{run}.jsonl").write_text("".join(lines))


def test_all_steps_of_the_last_run_are_shown(checkout: Path) -> None:
    podman, enroot = f"app:2/podman/{stamped(3)}", f"app:2/enroot/{stamped(5)}"
    ran_in(checkout, "2026-01-02T03-04-00.000Z.1", podman, enroot)
    ran = doit(checkout, "log", "app:2")
    assert ran.status == 0, ran.text
    headings = [line for line in ran.text.splitlines() if line.startswith("==>")]
    assert headings == [f"==> .rc/logs/{path} <==" for path in (podman, enroot)]
    assert f"podman {stamped(3)}\n" in ran.text
    assert doit(checkout, "log", "app:2", "podman").text.startswith(f".rc/logs/{podman}\n")
    # A rollback is a run without a log.
    ran_in(checkout, "2026-01-02T03-05-00.000Z.2", "app:2/enroot/")
    assert doit(checkout, "log", "app:2").text == ran.text


def test_following_tells_how_the_step_ended(checkout: Path) -> None:
    log = f"app:2/podman/{stamped(3)}"
    ran_in(checkout, "2026-01-02T03-04-00.000Z.1", log, outcome="failed")
    ran = doit(checkout, "log", "app:2", "podman", "--follow")
    assert ran.status == 1
    assert "podman:app:2 failed after 3.0 s" in ran.text


def test_the_history_of_a_removed_project_is_shown(checkout: Path) -> None:
    ran_in(checkout, "2026-01-02T03-04-00.000Z.1", f"gone:1/podman/{stamped(1)}")
    ran = doit(checkout, "history", "gone:1")
    assert ran.status == 0, ran.text
    assert "podman:gone:1" in ran.text
    assert doit(checkout, "history", "never:1").status == 3
