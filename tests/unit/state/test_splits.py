"""The cache of Dockerfiles that were split: it is used, and never believed when it is old or damaged."""

import json
import os
from pathlib import Path

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile import instructions
from rc_tasks.state.records.splits import Splits

TEXT = b"# syntax=docker/dockerfile:1\nFROM scratch AS a\nCOPY --from=b \\\n  x /\nRUN <<E\n1\nE\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cache/dockerfiles.json"
    path.parent.mkdir()
    splits = Splits(path)
    splits.split(TEXT, "Dockerfile")
    splits.save()
    return path


def no_split(*_arguments: object, where: str) -> instructions.Source:
    raise AssertionError(f"{where} was split again")


def test_what_was_split_is_not_split_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = instructions.instructions(TEXT, where="Dockerfile")
    monkeypatch.setattr(instructions, "instructions", no_split)
    before = file.stat().st_ino
    splits = Splits(file)
    assert splits.split(TEXT, "Dockerfile") == expected
    splits.save()
    assert file.stat().st_ino == before
    with pytest.raises(AssertionError, match="was split again"):
        splits.split(TEXT + b"ENV A=1\n", "Dockerfile")


@pytest.mark.parametrize(
    "damaged",
    [
        *("", "{", "[]", "[1, {}]", "null", '["VERSION", []]', '["VERSION", {"KEY": 1}]'),
        '["VERSION", {"KEY": ["x", [["FROM"]]]}]',
        '["VERSION", {"KEY": ["x", [["RUN", [], "", "a", 1]]]}]',
    ],
)
def test_a_damaged_cache_is_not_believed(file: Path, damaged: str) -> None:
    expected = instructions.instructions(TEXT, where="Dockerfile")
    version, known = json.loads(file.read_text())
    (key,) = known
    file.write_text(damaged.replace('"VERSION"', str(version)).replace("KEY", key))
    assert Splits(file).split(TEXT, "Dockerfile") == expected


def test_another_version_splits_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = file.with_name("instructions.py")
    here.touch()
    os.utime(here, ns=(0, 0))
    monkeypatch.setattr(instructions, "__file__", str(here))
    monkeypatch.setattr(instructions, "instructions", no_split)
    with pytest.raises(AssertionError, match="was split again"):
        Splits(file).split(TEXT, "Dockerfile")


def test_what_cannot_be_split_is_told_each_time(file: Path) -> None:
    splits = Splits(file)
    for _ in range(2):
        with pytest.raises(DockerfileError, match="has no end"):
            splits.split(b"FROM scratch\nRUN <<E\n", "Dockerfile")
