"""The user's EDF: edited and never overwritten, and nobody else's file touched."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.errors import EdfError, RcError
from rc_tasks.model.edf import chain
from rc_tasks.state.edf.user_edf import UserEdf, workdir

NAME = "reasoning:2025.1"
SHOWN = f"~/.edf/{NAME}.toml"
REMOTE = {"base_environment": "/clone/projects/reasoning:2025.1/env.toml", "workdir": "/scratch/ada"}
LOCAL = {**REMOTE, "image": "/clone/projects/reasoning:2025.1/image.sqsh"}


def write(home: Path, values: dict[str, str], *, force: bool = False) -> str:
    edf = UserEdf.read(home, NAME, project=NAME, force=force)
    edf.write(edf.filled(values))
    return (home / f".edf/{NAME}.toml").read_text()


def put(home: Path, text: str) -> Path:
    path = home / f".edf/{NAME}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_an_image_comes_with_local_and_goes_with_remote(tmp_path: Path) -> None:
    first = write(tmp_path, REMOTE)
    assert tomllib.loads(first) == REMOTE
    assert tomllib.loads(write(tmp_path, LOCAL)) == LOCAL
    assert tomllib.loads(write(tmp_path, REMOTE)) == REMOTE
    assert tomllib.loads(write(tmp_path, LOCAL)) == LOCAL


def test_what_a_person_adds_stays(tmp_path: Path) -> None:
    path = put(tmp_path, write(tmp_path, REMOTE))
    mine = '# my own\nmounts = ["/a:/a"] # mine\n\n[env]\nTOKEN = "${TOKEN:-}"\n'
    path.write_text(path.read_text() + mine)
    local = write(tmp_path, LOCAL)
    assert all(line in local.splitlines() for line in mine.splitlines())
    assert tomllib.loads(local)["image"] == LOCAL["image"]
    again = write(tmp_path, REMOTE)
    assert all(line in again.splitlines() for line in mine.splitlines())
    assert "image" not in tomllib.loads(again)


def test_nothing_is_written_when_nothing_changes(tmp_path: Path) -> None:
    write(tmp_path, REMOTE)
    edf = UserEdf.read(tmp_path, NAME, project=NAME)
    assert not edf.write(edf.filled(REMOTE))


def test_another_clone_takes_the_file_over(tmp_path: Path) -> None:
    write(tmp_path, LOCAL)
    other = {key: value.replace("/clone", "/other clone") for key, value in REMOTE.items()}
    assert tomllib.loads(write(tmp_path, other)) == other


def test_a_workdir_of_ones_own_stays_changed_or_deleted(tmp_path: Path) -> None:
    text = write(tmp_path, REMOTE)
    put(tmp_path, text.replace("/scratch/ada", "/scratch/ada/exp"))
    assert tomllib.loads(write(tmp_path, LOCAL))["workdir"] == "/scratch/ada/exp"
    put(tmp_path, text.replace('workdir = "/scratch/ada"\n', ""))
    assert "workdir" not in tomllib.loads(write(tmp_path, LOCAL))


@pytest.mark.parametrize(
    ("change", "wanted", "words"),
    [
        (("/clone/", "/mine/"), REMOTE, "base_environment is your own value, and this command needs"),
        (("\nworkdir", '\nimage = "/mine.sqsh"\nworkdir'), REMOTE, "needs the file to have none"),
        (("\nworkdir", '\nimage = "/mine.sqsh"\nworkdir'), LOCAL, "image is your own value"),
    ],
    ids=["base", "image-remote", "image-local"],
)
def test_what_would_start_something_else_is_refused_without_force(
    tmp_path: Path, change: tuple[str, str], wanted: dict[str, str], words: str
) -> None:
    before = write(tmp_path, REMOTE).replace(*change)
    path = put(tmp_path, before)
    with pytest.raises(EdfError) as caught:
        write(tmp_path, wanted)
    assert words in str(caught.value) and f"{SHOWN}:" in str(caught.value)
    assert path.read_text() == before
    assert tomllib.loads(write(tmp_path, wanted, force=True)) == wanted


def test_deleted_lines_that_are_needed_come_back(tmp_path: Path) -> None:
    text = write(tmp_path, LOCAL)
    put(tmp_path, "".join(line for line in text.splitlines(True) if not line.startswith("image")))
    assert "image" not in tomllib.loads(write(tmp_path, REMOTE))
    assert tomllib.loads(write(tmp_path, LOCAL)) == LOCAL


def test_a_foreign_file_is_left_alone_and_with_force_keeps_all_else(tmp_path: Path) -> None:
    foreign = (
        '# Ada\'s\nimage = "ubuntu"  # pinned\nworkdir = "/w"\nentrypoint = true\n\n[env]\nA = "1"\n'
    )
    path = put(tmp_path, foreign)
    with pytest.raises(EdfError, match="not written by this program and is left alone"):
        write(tmp_path, REMOTE)
    assert path.read_text() == foreign
    forced = write(tmp_path, REMOTE, force=True)
    assert tomllib.loads(forced) == {**REMOTE, "entrypoint": True, "env": {"A": "1"}}
    assert "# Ada's" in forced and "# pinned" in forced
    assert tomllib.loads(write(tmp_path, LOCAL)) == {**LOCAL, "entrypoint": True, "env": {"A": "1"}}


@pytest.mark.parametrize("image", [True, False], ids=["local", "remote"])
def test_a_file_of_the_old_script_is_taken_over(tmp_path: Path, *, image: bool) -> None:
    project = f"/capstor/scratch/ada/imgs/projects/{NAME}"
    line = f'image = "{project}/image.sqsh"\n' if image else ""
    put(
        tmp_path,
        f'base_environment = "{project}/env.toml"\n{line}workdir = "{tmp_path}/scratch"\n',
    )
    assert tomllib.loads(write(tmp_path, REMOTE)) == REMOTE


def test_a_symlink_stays_one_and_its_target_is_edited(tmp_path: Path) -> None:
    path = put(tmp_path, "")
    path.unlink()
    (tmp_path / "dotfiles").mkdir()
    path.symlink_to("../dotfiles/mine.toml")
    write(tmp_path, REMOTE)
    assert path.is_symlink()
    assert tomllib.loads((tmp_path / "dotfiles/mine.toml").read_text()) == REMOTE


HOSTILE = {
    "not-toml": b"image = \n",
    "not-utf8": b"# \xff\n",
    "wrong-type": b"image = 3\n",
    "unknown-key": b'imgae = "x"\n',
    "nested": b"a = " + b"[" * 5000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_file_is_told_with_its_place_and_kept(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, "")
    path.write_bytes(content)
    for force in (False, True):
        with pytest.raises(RcError) as caught:
            write(tmp_path, REMOTE, force=force)
        assert str(caught.value).startswith(SHOWN)
    assert path.read_bytes() == content


def test_a_record_in_a_string_does_not_make_a_file_ours_to_damage(tmp_path: Path) -> None:
    text = 'workdir = """\n# generated: base_environment=00000000\n"""\n'
    put(tmp_path, text)
    with pytest.raises(EdfError):
        write(tmp_path, REMOTE)
    assert put(tmp_path, text).read_text() == text


def test_paths_are_taken_literally(tmp_path: Path) -> None:
    odd = str(tmp_path / 'a "${HOME}" $B ü')
    Path(odd).mkdir()
    (Path(odd) / "env.toml").write_text('image = "ubuntu"\n')
    text = write(tmp_path, {"base_environment": f"{odd}/env.toml", "workdir": odd})
    assert "$${HOME}" in text
    found = chain.resolve(NAME, environ={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert (found.workdir, found.image) == (odd, "ubuntu")
    # And a second time: what was escaped is still ours.
    assert write(tmp_path, {"base_environment": f"{odd}/env.toml", "workdir": odd}) == text


@pytest.mark.parametrize("what", ["file", "fifo", "directory"])
def test_something_else_in_the_place_is_told(tmp_path: Path, what: str) -> None:
    if what == "file":
        (tmp_path / ".edf").write_text("")
    else:
        path = put(tmp_path, "")
        path.unlink()
        os.mkfifo(path) if what == "fifo" else path.mkdir()
    with pytest.raises(EdfError) as caught:
        write(tmp_path, REMOTE)
    assert str(caught.value).startswith("~/.edf")


def test_work_begins_in_the_real_place_of_scratch(tmp_path: Path) -> None:
    (tmp_path / "iopsstor/ada").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to("iopsstor/ada")
    assert workdir("", tmp_path, {"SCRATCH": "/"}) == str(tmp_path / "iopsstor/ada")


@pytest.mark.parametrize(
    ("prepare", "environ", "begins"),
    [
        (lambda home: None, {}, "."),
        (lambda home: (home / "s").mkdir(), {"SCRATCH": "s"}, "s"),
        (lambda home: None, {"SCRATCH": "nowhere"}, "."),
        (lambda home: (home / "scratch").touch(), {}, "."),
        (lambda home: (home / "scratch").symlink_to("/gone"), {}, "."),
    ],
    ids=["missing", "missing-with-SCRATCH", "SCRATCH-is-missing-too", "file", "dangling"],
)
def test_without_scratch_work_begins_elsewhere(
    tmp_path: Path, prepare: Callable[[Path], None], environ: dict[str, str], begins: str
) -> None:
    prepare(tmp_path)
    places = {name: str(tmp_path / path) for name, path in environ.items()}
    assert workdir("", tmp_path, places) == str(tmp_path / begins)


def test_a_setting_says_where_work_begins(tmp_path: Path) -> None:
    (tmp_path / "scratch/mine").mkdir(parents=True)
    assert workdir("~/scratch/mine", tmp_path, {}) == str(tmp_path / "scratch/mine")
    assert workdir(str(tmp_path), tmp_path, {}) == str(tmp_path)
    for wrong in ("/nowhere/at all", "scratch", "~/gone"):
        with pytest.raises(RcError, match=f"debug.workdir is {wrong}, which is not a directory here"):
            workdir(wrong, tmp_path, {})
