"""History: whole lines whatever happens to their writers, read newest first, shown newest last."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from rc_tasks.state import history, logs
from rc_tasks.state.history import HistoryEntry, Outcome, RunHistory
from rc_tasks.state.records.records import Artifact, Facts, Record, Step
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit

FILES = {
    "projects/app:1/Dockerfile": "FROM debian\n",
    "projects/app:2/Dockerfile": "FROM debian\n",
    "projects/wörk/Dockerfile": "FROM debian\n",
    "projects/app:latest": "-> app:2",
}
ENTRY = HistoryEntry(
    run="run",
    image="app:1",
    step=Step.PODMAN,
    outcome=Outcome.DONE,
    started_at="2026-01-02T03:04:05.678+00:00",
    duration_s=125.5,
    queued_s=3.25,
    node="nid 1",
    job_id="17",
    image_id_before="a" * 64,
    image_id="b" * 64,
    size_bytes=12,
    commit="c" * 40,
    dirty=True,
    reason="Dockerfile changed: 'ü'\n\x1b[31m",
    log=".rc/logs/app:1/podman/x.log",
)


def at(minutes_ago: float, **changes: object) -> HistoryEntry:
    """An entry of a step that began so long ago."""
    began = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return replace(ENTRY, started_at=began.isoformat(), **changes)


def write(directory: Path, run: str, *found: HistoryEntry) -> Path:
    """The file of a run that ended when its last step began."""
    for entry in found:
        RunHistory(directory, run).append(entry)
    path = directory / f"{run}.jsonl"
    os.utime(path, (found[-1].began.timestamp() + 1,) * 2)
    return path


def test_an_entry_reads_back_as_it_was(tmp_path: Path) -> None:
    run = RunHistory(tmp_path / "new" / "history")
    bare = HistoryEntry(
        "run", "x\ud800", Step.ENV, Outcome.FAILED, "2026-01-02T03:04:05+00:00", 0.0, 0.0
    )
    run.append(ENTRY)
    run.append(bare)
    assert list(history.entries(run.directory)) == [ENTRY, bare]
    assert [path.name for path in run.directory.iterdir()] == [f"{run.id}.jsonl"]


def test_entries_come_newest_first_over_runs_at_the_same_time(tmp_path: Path) -> None:
    write(tmp_path, "a", at(60, reason="1"), at(30, reason="3"), at(1, reason="6"))
    write(tmp_path, "b", at(50, reason="2"), at(20, reason="4"), at(10, reason="5"))
    write(tmp_path, "c", at(5000, reason="0"))
    assert [entry.reason for entry in history.entries(tmp_path)] == list("6543210")


def test_old_files_are_not_read_for_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "new", at(1, reason="new"))
    old = write(tmp_path, "old", at(5000, reason="old"))
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), real(path))[1])
    found = history.entries(tmp_path)
    assert next(found).reason == "new"
    assert old not in read
    assert next(found).reason == "old"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        *(
            json.dumps(to_builtins(ENTRY) | change).encode()
            for change in (
                {"step": "squash"},
                {"outcome": "exploded"},
                {"outcome": ["done"]},
                {"started_at": "yesterday"},
                {"started_at": "2026-01-02T03:04:05"},
                {"started_at": "0001-01-01T00:00:00+14:00"},
                {"duration_s": float("nan")},
                {"queued_s": "1e999"},
                {"duration_s": None},
                {"size_bytes": "big"},
                {"size_bytes": float("inf")},
            )
        ),
        json.dumps(to_builtins(ENTRY)).encode()[:-20],
    ],
)
def test_a_damaged_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    whole = json.dumps(to_builtins(ENTRY)).encode()
    (tmp_path / "x.jsonl").write_bytes(whole + b"\n" + line + b"\n" + whole + b"\n" + line)
    assert list(history.entries(tmp_path)) == [ENTRY, ENTRY]


def test_what_a_later_version_adds_or_an_earlier_one_lacks_is_no_damage(tmp_path: Path) -> None:
    found = to_builtins(ENTRY) | {"new": {"x": 1}, "size_bytes": None}
    del found["job_id"]
    (tmp_path / "x.jsonl").write_text(json.dumps(found) + "\n")
    assert list(history.entries(tmp_path)) == [replace(ENTRY, size_bytes=None, job_id="")]


def test_what_is_no_history_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "directory.jsonl").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    os.utime(tmp_path / "notes.txt", (1, 1))
    history.trim(tmp_path, 1)
    assert list(history.entries(tmp_path)) == []
    assert len(list(tmp_path.iterdir())) == 2
    assert list(history.entries(tmp_path / "missing")) == []
    history.trim(tmp_path / "missing", 1)


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunHistory(tmp_path)
    real = os.write
    run.append(ENTRY)
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:50]))
    run.append(replace(ENTRY, reason="the disk is full"))
    monkeypatch.undo()
    run.append(replace(ENTRY, reason="there is room again"))
    assert [entry.reason for entry in history.entries(tmp_path)] == ["there is room again", ENTRY.reason]


def test_that_history_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "history"
    in_the_way.write_text("")
    RunHistory(in_the_way).append(ENTRY)
    RunHistory(Path("/proc/nowhere")).append(ENTRY)
    assert in_the_way.read_text() == ""


WRITER = """
import sys
from pathlib import Path
from msgspec.structs import replace
from rc_tasks.state.history import RunHistory
from tests.unit.state.test_history import ENTRY
print("ready", flush=True)
# An end, so that a disk is not filled when the test does not come to killing them.
for _ in range(20_000):
    RunHistory(Path(sys.argv[1]), sys.argv[2]).append(replace(ENTRY, reason=sys.argv[2] * 5000))
"""


def test_runs_that_are_killed_leave_whole_lines_to_readers(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen((sys.executable, "-c", WRITER, tmp_path, letter), stdout=subprocess.PIPE)
        for letter in "ab"
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        deadline = time.monotonic() + 30
        while len({entry.reason[0] for entry in history.entries(tmp_path)}) < 2:
            assert time.monotonic() < deadline
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
    found = list(history.entries(tmp_path))
    assert {entry.reason for entry in found} == {"a" * 5000, "b" * 5000}
    # At most the last line of each is torn.
    lines = sum(path.read_bytes().count(b"\n") for path in tmp_path.iterdir())
    assert len(found) == lines


def test_threads_of_a_run_do_not_mix_their_lines(tmp_path: Path) -> None:
    run = RunHistory(tmp_path)
    threads = [threading.Thread(target=lambda: [run.append(ENTRY) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(history.entries(tmp_path))) == 400


def test_runs_that_wrote_last_too_long_ago_are_removed(tmp_path: Path) -> None:
    long_ago, recent = at(3 * 24 * 60), at(60)
    write(tmp_path, "old", long_ago)
    write(tmp_path, "long", long_ago, recent)
    history.trim(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


@pytest.mark.parametrize(
    ("record", "image_id", "size_bytes"),
    [
        pytest.param({"facts": Facts("d" * 64, "amd64", 5, "/", False)}, "d" * 64, 5, id="podman"),
        pytest.param(
            {"inputs": {"image": "d" * 64}, "artifact": Artifact(7, 1, "s")}, "d" * 64, 7, id="enroot"
        ),
        pytest.param({}, "", None, id="env"),
    ],
)
def test_what_a_step_made_is_taken_from_its_record(
    record: dict[str, object], image_id: str, size_bytes: int | None
) -> None:
    begun = replace(ENTRY, image_id="", size_bytes=None, commit="", dirty=False)
    made = Record(**{"inputs": {}} | record, **_TIMES, commit="e" * 40)
    found = begun.made(made)
    assert (found.image_id, found.size_bytes, found.commit) == (image_id, size_bytes, "e" * 40)
    assert history.image_id(made) == image_id
    assert begun.made(None) == begun


_TIME = "2026-01-02T03:04:05+00:00"
_TIMES = {"started_at": _TIME, "ended_at": _TIME, "duration_s": 1.0, "node": ""}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two runs: one of an hour and one of three days ago."""
    root = write_checkout(tmp_path / "imgs", FILES)
    write(
        root / ".rc/history",
        "first",
        at(3 * 1440, image="app:2", outcome=Outcome.FAILED, image_id="", reason="first"),
        at(3 * 1440 - 1, image="gone", reason="second"),
    )
    write(
        root / ".rc/history",
        "second",
        at(60, reason="third", image_id="a" * 64),
        at(50, image="wörk", outcome=Outcome.INTERRUPTED, step=Step.ENROOT, reason="x\n\x1b[31m"),
    )
    return root


def test_the_table_ends_with_the_newest(checkout: Path) -> None:
    ran = doit(checkout, "history")
    assert ran.status == 0, ran.text
    heading, *lines = ran.text.splitlines()
    assert heading.split() == ["WHEN", "STEP", "OUTCOME", "TOOK", "QUEUED", "NODE", "IMAGE", "REASON"]
    assert [line.split()[2:4] for line in lines] == [
        ["podman:app:2", "failed"],
        ["podman:gone", "done"],
        ["podman:app:1", "done"],
        ["enroot:wörk", "interrupted"],
    ]
    assert "2 min 6 s" in lines[0] and "3.2 s" in lines[0] and "nid 1" in lines[0]
    assert "b" * 12 + "  second" in lines[1]
    assert "as before" in lines[2]
    assert lines[3].endswith("x\\n\\x1b[31m")


@pytest.mark.parametrize(
    ("argv", "reasons"),
    [
        ((), ["first", "second", "third", "x"]),
        (("--failed",), ["first"]),
        (("-n", "2"), ["third", "x"]),
        (("--limit=1", "--since", "1w"), ["x"]),
        (("--since", "1d"), ["third", "x"]),
        (("--since", "55m"), ["x"]),
        (("--since", "2020-01-01"), ["first", "second", "third", "x"]),
        (("app",), ["first", "third"]),
        (("app:latest",), ["first"]),
        (("podman:wörk", "-n", "5"), ["x"]),
        (("build:app:1", "--since", "1d", "--failed"), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_asked_for_is_shown(checkout: Path, argv: tuple[str, ...], reasons: list[str]) -> None:
    ran = doit(checkout, "history", "--json", *argv)
    assert ran.status == 0, ran.text
    assert [each["reason"].partition("\n")[0] for each in json.loads(ran.text)] == reasons
    if not reasons:
        assert "no such step is in the history" in doit(checkout, "history", *argv).text


def test_json_has_every_field(checkout: Path) -> None:
    (found,) = json.loads(doit(checkout, "history", "--json", "-n1", "app:1").text)
    assert found == to_builtins(replace(ENTRY, image_id="a" * 64, reason="third")) | {
        "started_at": found["started_at"]
    }


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--since", "soon"), "--since 'soon' is not a time"),
        (("--since", "99999999999d"), "is not a time"),
        (("--since", "2026-13-01"), "is not a time"),
        (("-n", "0"), "-n must be at least 1, not 0"),
        (("-n", "many"), "-n: must be a whole number, not 'many'"),
        (("wörkk",), "wörk"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments_are_told(checkout: Path, argv: tuple[str, ...], told: str) -> None:
    ran = doit(checkout, "history", *argv)
    assert ran.status == 3
    assert told in ran.text and "next: " in ran.text and "Traceback" not in ran.text


def test_a_table_of_many_steps_says_that_there_are_more(checkout: Path) -> None:
    run = RunHistory(checkout / ".rc/history", "long")
    for number in range(60):
        run.append(at(10 - number / 10))
    lines = doit(checkout, "history").text.splitlines()
    assert lines[0] == "the newest 50 steps; -n and --since show more"
    assert len(lines) == 52
    assert len(doit(checkout, "history", "--since=1d").text.splitlines()) == 63
    assert len(json.loads(doit(checkout, "history", "--json").text)) == 64


def test_a_run_writes_down_what_became_of_its_steps(tmp_path: Path) -> None:
    """One of its steps needs no podman, and another one does not find it."""
    root = write_checkout(tmp_path / "imgs", {name: FILES[name] for name in FILES if "app" in name})
    pretend_built(root)
    (root / "projects/app:1/env.toml").unlink()
    (root / "projects/app:2/Dockerfile").write_text("FROM debian\nRUN true\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    old = write(root / ".rc/history", "old", at(91 * 1440))
    environ = {"PATH": str(programs), "RC_RUNNER": "local"}
    ran = doit(root, "--continue", environ=environ)
    assert ran.status != 0, ran.text
    done, failed = sorted(history.entries(root / ".rc/history"), key=lambda entry: entry.outcome)
    assert (done.step, done.image, done.outcome) == (Step.ENV, "app:1", Outcome.DONE)
    assert (failed.step, failed.image, failed.outcome) == (Step.PODMAN, "app:2", Outcome.FAILED)
    assert done.node == os.uname().nodename and done.duration_s > 0
    assert failed.reason == "Dockerfile changed" and len(failed.image_id_before) == 64
    assert {done.run, failed.run} == {path.stem for path in (root / ".rc/history").iterdir()}
    assert not old.exists()
    # So that it can be copied into a shell.
    begins = (root / failed.log).read_text().splitlines()[0]
    assert begins.endswith(" -m rc_tasks.steps podman app:2")
    report = logs.error_report(root / failed.log)
    assert report.is_file()
    report.unlink()
    for entry, links in ((done, {"latest.log"}), (failed, {"latest.log", "failed.log"})):
        log = root / entry.log
        assert {path.name for path in log.parent.iterdir()} == {log.name, *links}
        assert {os.path.realpath(log.parent / link) for link in links} == {str(log)}


def test_before_anything_has_run_there_is_nothing(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", FILES)
    assert doit(root, "history").text == "no step has run yet\n"
    assert json.loads(doit(root, "history", "--json").text) == []
