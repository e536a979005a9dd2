"""What others could have planted in a checkout is told, and links lead no write out of it."""

import grp
import os
from pathlib import Path

import pytest

from rc_tasks.errors import RcError
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import open_checkout
from tests.support.checkouts import pretend_built, write_checkout

FILES = {"projects/a:1/Dockerfile": "FROM scratch\nCOPY x /\n", "projects/a:1/x": "1\n"}
NOBODY = 65534
GROUP = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout in which everything looks built."""
    made = write_checkout(tmp_path / "it's here", FILES)
    pretend_built(made)
    return made


def refusal(root: Path) -> str:
    """The first line of the error, or nothing where the checkout is trusted."""
    try:
        require_own(open_checkout(root, {}))
    except RcError as error:
        return str(error).splitlines()[0]
    return ""


def test_our_own(root: Path) -> None:
    (root / ".rc/locks").mkdir(mode=0o775)
    (root / ".rc/logs").symlink_to("locks")
    assert refusal(root) == ""
    # It was looked at.
    (root / ".rc/locks").chmod(0o777)
    assert refusal(root) == ".rc/locks: may be written by everybody (mode 0777)"


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "a", FILES)
    assert refusal(root) == ""
    assert not (root / ".rc").exists()


@pytest.mark.parametrize("path", [".rc", ".rc/state", ".rc/store", ".rc/store/images"])
def test_written_by_everybody(root: Path, path: str) -> None:
    (root / path).chmod(0o1777)
    with pytest.raises(RcError) as caught:
        require_own(open_checkout(root, {}))
    assert str(caught.value).startswith(f"{path}: may be written by everybody (mode 1777)")


@needs_root
def test_of_a_stranger(root: Path) -> None:
    os.chown(root / ".rc/state", NOBODY, NOBODY)
    with pytest.raises(RcError, match=r"\.rc/state: belongs to nobody, who could have changed"):
        require_own(open_checkout(root, {}))
    with (root / "pyproject.toml").open("a") as file:
        file.write('images_owners = ["nobody"]\n')
    require_own(open_checkout(root, {}))


@needs_root
@pytest.mark.parametrize(("mode", "trusted"), [(0o775, True), (0o755, False)])
def test_of_one_who_may_write_the_checkout(root: Path, mode: int, trusted: bool) -> None:
    os.chown(root, 0, NOBODY)
    root.chmod(mode)
    os.chown(root / ".rc/state", NOBODY, NOBODY)
    if trusted:
        require_own(open_checkout(root, {}))
    else:
        with pytest.raises(RcError, match="belongs to nobody"):
            require_own(open_checkout(root, {}))


@needs_root
def test_of_the_owner_of_the_checkout(root: Path) -> None:
    for path in (root, root / ".rc"):
        os.chown(path, NOBODY, NOBODY)
    assert refusal(root) == ""
    os.chown(root, 0, 0)
    assert refusal(root) == ".rc: belongs to nobody, who could have changed it"


def test_a_link_out_of_the_checkout(root: Path, tmp_path: Path) -> None:
    (root / ".rc/state").rename(tmp_path / "elsewhere")
    (root / ".rc/state").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RcError, match=r"\.rc/state: leads out of the checkout, to /"):
        require_own(open_checkout(root, {}))


@needs_root
@pytest.mark.parametrize("path", [".rc", ".rc/state", ".rc/store/images"])
def test_written_by_another_group(root: Path, path: str) -> None:
    os.chown(root / path, 0, GROUP)
    (root / path).chmod(0o775)
    with pytest.raises(RcError) as caught:
        require_own(open_checkout(root, {}))
    assert str(caught.value) == (
        f"{path}: may be written by the group nogroup (mode 0775)\n"
        "  next: ls -lR .rc shows what is not yours; then chmod -R g-w .rc\n"
        '        or, if you trust all its members: images_owners = ["@nogroup"] in pyproject.toml'
    )
    with (root / "pyproject.toml").open("a") as file:
        file.write('images_owners = ["@nogroup"]\n')
    require_own(open_checkout(root, {}))


@needs_root
@pytest.mark.parametrize(("mode", "trusted"), [(0o2775, True), (0o2755, False)])
def test_written_by_the_group_of_the_checkout(root: Path, mode: int, trusted: bool) -> None:
    for path, wanted in ((root, mode), (root / ".rc/state", 0o2775)):
        os.chown(path, 0, GROUP)
        path.chmod(wanted)
    if trusted:
        require_own(open_checkout(root, {}))
    else:
        with pytest.raises(RcError, match="may be written by the group nogroup"):
            require_own(open_checkout(root, {}))


@needs_root
@pytest.mark.parametrize(
    ("members", "name", "trusted"),
    [
        ([], "nobody", True),
        (["nobody"], "nobody", True),
        (["root"], "nobody", False),
        ([], "all", False),
    ],
)
def test_a_users_private_group_is_the_user(
    root: Path, monkeypatch: pytest.MonkeyPatch, members: list[str], name: str, trusted: bool
) -> None:
    """With the umask 002 that such groups are for, in a checkout that has another mode."""
    for path in (root, root / ".rc", root / ".rc/state"):
        os.chown(path, NOBODY, GROUP)
    (root / ".rc/state").chmod(0o775)
    found = grp.struct_group((name, "x", GROUP, members))
    monkeypatch.setattr(grp, "getgrgid", lambda _: found)
    if trusted:
        require_own(open_checkout(root, {}))
    else:
        with pytest.raises(RcError, match=f"may be written by the group {name}"):
            require_own(open_checkout(root, {}))
