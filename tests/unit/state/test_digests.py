"""Digests: never an old answer for a new content, and no reading for nothing."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.state.records import digests, inputs
from rc_tasks.state.records.digests import ContextDigests, Digests, content_digest, sample_digest

BLOCK = 4096


def opened(root: Path) -> Digests:
    return Digests(root, root / ".rc" / "digests.json")


def old(path: Path, text: str = "one") -> Path:
    """A file that has not changed for an hour, as far as its time of modification tells."""
    path.write_text(text)
    then = time.time() - 3600
    os.utime(path, (then, then))
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as settled: a time of change (ctime) cannot be set back."""
    monkeypatch.setattr(digests, "_SETTLE_NS", -3_600_000_000_000)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    read: list[str] = []

    def counted(path: str) -> str:
        read.append(path)
        return content_digest(path)

    monkeypatch.setattr(digests, "content_digest", counted)
    return read


def test_a_file_is_read_once_also_by_the_next_process(
    tmp_path: Path, settled: None, readings: list[str]
) -> None:
    path = old(tmp_path / "it's: a file\nü")
    first = opened(tmp_path)
    assert [first.content(str(path)) for _ in range(3)] == [hashlib.sha256(b"one").hexdigest()] * 3
    first.save()
    assert opened(tmp_path).content(str(path)) == hashlib.sha256(b"one").hexdigest()
    assert len(readings) == 1


def test_what_was_learnt_moves_with_the_checkout(
    tmp_path: Path, settled: None, readings: list[str]
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    first = opened(here)
    first.content(str(old(here / "file")))
    first.save()
    here.rename(tmp_path / "there")
    opened(tmp_path / "there").content(str(tmp_path / "there" / "file"))
    assert len(readings) == 1


def keep_times(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file and set its time of modification back, as `cp -p` and editors' plugins do."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text("two"), id="other content of the same size"),
        pytest.param(
            lambda path: keep_times(path, lambda each: each.write_text("two")), id="the time set back"
        ),
        pytest.param(
            lambda path: keep_times(path, lambda each: old(each.with_name("new"), "two").rename(each)),
            id="another file in its place",
        ),
    ],
)
def test_a_change_is_seen(tmp_path: Path, settled: None, change: Callable[[Path], object]) -> None:
    path = old(tmp_path / "file")
    known = opened(tmp_path)
    known.content(str(path))
    known.save()
    change(path)
    for asked in (known, opened(tmp_path)):
        assert asked.content(str(path)) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, readings: list[str]) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    known = opened(tmp_path)
    known.content(str(path))
    known.content(str(path))
    known.save()
    assert len(readings) == 2
    assert not (tmp_path / ".rc").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '{"content file": 1}', '{"content file": [1]}']
)
def test_a_damaged_memory_costs_only_time(tmp_path: Path, settled: None, text: str) -> None:
    path = old(tmp_path / "file")
    (tmp_path / ".rc").mkdir()
    (tmp_path / ".rc/digests.json").write_text(text)
    known = opened(tmp_path)
    assert known.content(str(path)) == hashlib.sha256(b"one").hexdigest()
    known.save()
    assert len(json.loads((tmp_path / ".rc/digests.json").read_text())) == 1


def test_not_being_able_to_remember_is_no_error(tmp_path: Path, settled: None) -> None:
    (tmp_path / ".rc").write_text("a file where the directory should be")
    known = opened(tmp_path)
    path = str(old(tmp_path / "file"))
    known.content(path)
    known.save()
    assert (tmp_path / ".rc").read_text() == "a file where the directory should be"
    for asked in (known, opened(tmp_path)):
        assert asked.content(path) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize(
    "size_bytes", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 2_000_000, 50_000_001]
)
def test_a_sample_sees_the_size_and_the_first_middle_and_last_bytes(
    tmp_path: Path, size_bytes: int
) -> None:
    path = tmp_path / "image.sqsh"
    path.write_bytes(bytes(size_bytes))
    samples = {sample_digest(str(path))}
    places = {0, size_bytes // 2, size_bytes - 1} if size_bytes else set()
    for place in places:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\xff")
            file.flush()
            samples.add(sample_digest(str(path)))
            file.seek(place)
            file.write(b"\0")
    os.truncate(path, size_bytes + 1)
    samples.add(sample_digest(str(path)))
    assert len(samples) == 2 + len(places)


@pytest.mark.parametrize("size_bytes", [1_000_000, 1_048_576])
def test_every_byte_of_a_small_file_is_in_the_sample(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "image.sqsh"
    path.write_bytes(bytes(size_bytes))
    untouched = sample_digest(str(path))
    for place in range(0, size_bytes, size_bytes // 61):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\xff")
            file.flush()
            assert sample_digest(str(path)) != untouched
            file.seek(place)
            file.write(b"\0")


@pytest.mark.parametrize("target", [b"run.sh", "ü".encode(), b"\xff/x"])
def test_the_target_of_a_link_is_its_bytes(tmp_path: Path, target: bytes) -> None:
    path = tmp_path / "link"
    os.symlink(os.fsdecode(target), path)
    found = inputs.file_value(str(path), path.lstat(), opened(tmp_path))
    assert found == f"link {hashlib.sha256(target).hexdigest()}"


@pytest.mark.parametrize(
    ("mode", "counted"),
    [
        *((0o644, "0644"), (0o600, "0644"), (0o664, "0644"), (0o4644, "0644"), (0o654, "0644")),
        *((0o755, "0755"), (0o700, "0755"), (0o775, "0755"), (0o4755, "0755"), (0o744, "0755")),
    ],
)
def test_a_files_mode_counts_as_in_git(tmp_path: Path, mode: int, counted: str) -> None:
    """The expected modes are those that git itself writes into its index."""
    path = tmp_path / "data"
    path.write_bytes(b"x")
    path.chmod(mode)
    value = inputs.file_value(str(path), path.stat(), opened(tmp_path))
    assert value == f"{counted} {hashlib.sha256(b'x').hexdigest()}"
    for argv in (("init", "-q"), ("add", "data")):
        subprocess.run(("git", *argv), cwd=tmp_path, check=True)
    staged = ("git", "ls-files", "--stage", "data")
    entry = subprocess.run(staged, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert entry.stdout.startswith(f"10{counted} ")


@pytest.mark.parametrize("mode", [0o700, 0o775, 0o2775, 0o1777], ids=oct)
def test_a_directory_has_no_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(mode)
    assert inputs.file_value(str(path), path.stat(), opened(tmp_path)) == "0755 directory"


def test_inputs_of_an_earlier_version_are_read_in_todays_form() -> None:
    """It recorded all permission bits, and no image may become stale by an upgrade."""
    recorded = {
        "Dockerfile": f"0664 {'a' * 64}",
        "context/run.sh": f"0700 {'b' * 64}",
        "context/set": f"1644 {'c' * 64}",
        "context/plain": f"0644 {'d' * 64}",
        "context/data": "2775 directory",
        "context/private": "0700 directory",
        "context/link": f"link {'e' * 64}",
        "context/odd": "0999 what",
        "target": "0664 x",
        "build_args.A": f"0664 {'f' * 64}",
    }
    assert inputs.recorded(recorded) == {
        "Dockerfile": f"0644 {'a' * 64}",
        "context/run.sh": f"0755 {'b' * 64}",
        "context/set": f"0644 {'c' * 64}",
        "context/plain": f"0644 {'d' * 64}",
        "context/data": "0755 directory",
        "context/private": "0755 directory",
        "context/link": f"link {'e' * 64}",
        "context/odd": "0999 what",
        "target": "0664 x",
        "build_args.A": f"0664 {'f' * 64}",
    }


def test_each_context_has_a_cache_of_its_own_that_others_do_not_read(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        old(tmp_path / name / "data")
    caches = ContextDigests(tmp_path, tmp_path / ".rc/digests")
    for name in ("one", "two"):
        caches.of(f"{tmp_path}/{name}").content(f"{tmp_path}/{name}/data")
    caches.save()
    opened_files: list[Path] = []
    monkeypatch.setattr(digests, "read_bytes", lambda path: opened_files.append(path) or b"{}")
    again = ContextDigests(tmp_path, tmp_path / ".rc/digests")
    again.of(f"{tmp_path}/two").content(f"{tmp_path}/two/data")
    written = set((tmp_path / ".rc/digests").iterdir())
    assert len(written) == 2
    assert len(opened_files) == 1 and opened_files[0] in written
