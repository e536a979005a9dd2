"""Records: whole or not at all, and readable by older and newer versions."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from rc_tasks.state.disk.files import sweep_temporaries, write_atomically
from rc_tasks.state.disk.processes import space
from rc_tasks.state.records.records import Artifact, Facts, Failure, Record, Records, Step

FACTS = Facts("a" * 64, "amd64", 12, "/wörk dir", True)
RECORD = Record(
    {"Dockerfile": "0644 abc", "context/ü\n'x": "link 1"},
    "2026-01-02T03:04:05+00:00",
    "2026-01-02T03:04:15+00:00",
    10.0,
    "node 1",
    "17",
    FACTS,
    Artifact(5, 1_700_000_000_123_456_789, "b" * 64),
)
FAILURE = Failure({"Dockerfile": "0644 def"}, "2026-01-02T03:04:05+00:00", "podman build failed", "log")


def test_a_record_reads_back_as_it_was(tmp_path: Path) -> None:
    records = Records(tmp_path / "state")
    assert records.get(Step.PODMAN, "x:1") is None
    for record in (RECORD, replace(RECORD, facts=None, artifact=None)):
        records.put(Step.PODMAN, "x:1", record)
        assert records.get(Step.PODMAN, "x:1") == record
        assert Records(tmp_path / "state").get(Step.PODMAN, "x:1") == record
    assert Records(tmp_path / "state").get(Step.ENROOT, "x:1") is None


def test_what_another_process_wrote_is_seen_when_asked_anew(tmp_path: Path) -> None:
    mine, theirs = Records(tmp_path), Records(tmp_path)
    assert mine.get(Step.ENV, "x") is None
    theirs.put(Step.ENV, "x", RECORD)
    assert mine.get(Step.ENV, "x") is None
    mine.reread(Step.ENV, "x")
    assert mine.get(Step.ENV, "x") == RECORD


def test_forgetting_leaves_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.forget(Step.PODMAN, "x")
    records.put(Step.PODMAN, "x", RECORD)
    records.put_failure(Step.PODMAN, "x", FAILURE)
    records.forget(Step.PODMAN, "x")
    assert records.get(Step.PODMAN, "x") is None
    assert records.failure(Step.PODMAN, "x") is None
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_last_success_and_ends_with_the_next(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(Step.PODMAN, "x", RECORD)
    records.put_failure(Step.PODMAN, "x", FAILURE)
    assert records.failure(Step.PODMAN, "x") == FAILURE
    assert Records(tmp_path).get(Step.PODMAN, "x") == RECORD
    records.put(Step.PODMAN, "x", RECORD)
    assert records.failure(Step.PODMAN, "x") is None


@pytest.mark.parametrize("name", ["x.failed", "x.json", "x.ignore", "x.failed.json"])
def test_no_name_of_an_image_reads_another_ones_record(tmp_path: Path, name: str) -> None:
    records = Records(tmp_path)
    records.put(Step.PODMAN, name, RECORD)
    records.put_failure(Step.PODMAN, "x", FAILURE)
    assert Records(tmp_path).get(Step.PODMAN, name) == RECORD
    assert records.failure(Step.PODMAN, "x") == FAILURE
    records.put(Step.PODMAN, "x", replace(RECORD, node="other"))
    assert Records(tmp_path).get(Step.PODMAN, name) == RECORD


def test_what_a_newer_version_adds_is_no_reason_to_build(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(Step.PODMAN, "x", RECORD)
    path = tmp_path / "podman:x.json"
    found = json.loads(path.read_text())
    found |= {"new": 1, "facts": found["facts"] | {"new": 2}, "artifact": found["artifact"] | {"new": 3}}
    path.write_text(json.dumps(found))
    assert Records(tmp_path).get(Step.PODMAN, "x") == RECORD


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "7", '{"schema": 1}', '{"schema": 2, "task": "podman:x"}', "\xff\xfe"],
    ids=["empty", "cut", "null", "list", "number", "keys missing", "other schema", "not UTF-8"],
)
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "podman:x.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "podman:x.failed").write_bytes(text.encode("latin-1"))
    records = Records(tmp_path)
    assert records.get(Step.PODMAN, "x") is None
    assert records.failure(Step.PODMAN, "x") is None


@pytest.mark.parametrize(
    "values",
    [
        {"started_at": 5},
        {"ended_at": "yesterday"},
        {"ended_at": "2026-01-02T03:04:15"},
        {"ended_at": "0001-01-01T00:00:00+00:00"},
        {"duration_s": float("nan")},
        {"node": None},
        {"inputs": {"image": 5}},
        {"tools": {"podman": {}}},
        {"dirty": "no"},
        {"instead_of": 5},
        {"smoke": [{"argv": [5], "launcher": "enroot", "duration_s": 1}]},
        {"facts": to_builtins(FACTS) | {"image_id": 5}},
        {"facts": to_builtins(FACTS) | {"size_bytes": "large"}},
        {"artifact": {"size_bytes": 5, "mtime_ns": 10**30, "sample": "b"}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_record_with_a_wrong_value_counts_as_none(tmp_path: Path, values: dict[str, object]) -> None:
    records = Records(tmp_path)
    records.put(Step.PODMAN, "x", RECORD)
    path = tmp_path / "podman:x.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert Records(tmp_path).get(Step.PODMAN, "x") is None


def test_a_record_of_another_task_is_not_taken_for_this_one(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(Step.PODMAN, "x", RECORD)
    (tmp_path / "podman:x.json").rename(tmp_path / "podman:y.json")
    assert records.get(Step.PODMAN, "y") is None


WRITER = """
import sys
from pathlib import Path
from rc_tasks.state.disk.processes import space
from rc_tasks.state.disk.files import write_atomically
print("ready", flush=True)
while True:
    for letter in "ab":
        write_atomically(Path(sys.argv[1]), letter * 200_000)
"""


def test_nobody_ever_sees_half_a_file(tmp_path: Path) -> None:
    """Also when the writer is killed at any moment."""
    path = tmp_path / "x.json"
    write_atomically(path, "a" * 200_000)
    wholes = {"a" * 200_000, "b" * 200_000}
    for _ in range(5):
        with subprocess.Popen((sys.executable, "-c", WRITER, path), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            until = time.monotonic() + 0.1
            while time.monotonic() < until:
                assert path.read_text() in wholes
            process.send_signal(signal.SIGKILL)
        assert path.read_text() in wholes


@pytest.mark.parametrize(("error", "stays"), [(PermissionError, True), (ProcessLookupError, False)])
def test_whose_a_temporary_file_is_needs_no_proc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], stays: bool
) -> None:
    """Mounted with hidepid, /proc shows the processes of nobody else."""

    def kill(pid: int, number: int) -> None:
        assert number == 0
        raise error

    with subprocess.Popen(("true",)) as ended:
        pass
    temporary = tmp_path / f".x.json.{os.uname().nodename}+{space()}.{ended.pid}.abc"
    temporary.touch()
    monkeypatch.setattr(os, "kill", kill)
    sweep_temporaries(tmp_path, "x.json")
    assert temporary.exists() is stays


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_has_the_mode_that_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "x.json", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o666 & ~umask
