"""What others could have planted in a checkout is told, and links lead no write out of it."""

import grp
import os
import struct
from pathlib import Path

import pytest

from rc_tasks.errors import RcError
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import find_root, open_checkout
from rc_tasks.state.disk import trust
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


def give(path: Path, *entries: tuple[int, int, int]) -> None:
    """Give a path an access control list: tags, rights and IDs beside those of every list."""
    usual = ((0x01, 7, 0xFFFFFFFF), (0x04, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 5, 0xFFFFFFFF))
    text = b"".join(struct.pack("<HHI", *entry) for entry in sorted((*usual, *entries)))
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + text)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")


@pytest.mark.parametrize("path", [".rc", ".rc/state", ".rc/store", ".rc/store/images"])
@pytest.mark.parametrize(
    ("tag", "shown", "owner"),
    [
        (0x02, trust.user(NOBODY), trust.user(NOBODY)),
        (0x08, f"the group {trust.group(GROUP)}", f"@{trust.group(GROUP)}"),
    ],
    ids=["user", "group"],
)
def test_written_through_an_access_control_list(
    root: Path, path: str, tag: int, shown: str, owner: str
) -> None:
    # The group that the mode shows is trusted: it is the owner's own.
    os.chown(root / path, -1, os.getegid())
    (root / path).chmod(0o775)
    give(root / path, (tag, 7, NOBODY))
    settings = f'[tool.rc_tasks]\nimages_owners = ["@{trust.group(os.getegid())}"]\n'
    (root / "pyproject.toml").write_text(settings)
    with pytest.raises(RcError) as caught:
        require_own(open_checkout(root, {}))
    assert str(caught.value) == (
        f"{path}: may be written by {shown}, through an access control list\n"
        "  next: getfacl -R .rc shows the lists; setfacl -R -b .rc removes them\n"
        f'        or, if you trust {shown}: images_owners = ["{owner}"] in pyproject.toml'
    )
    (root / "pyproject.toml").write_text(settings.replace('"]\n', f'", "{owner}"]\n'))
    assert refusal(root) == ""
    (root / "pyproject.toml").write_text(settings)
    root.chmod(0o775)
    give(root, (tag, 7, NOBODY))
    assert refusal(root) == "", "whoever may write the checkout may write its files"
    root.chmod(0o755)
    give(root / path, (tag, 5, NOBODY))
    (root / "pyproject.toml").write_text(settings)
    assert refusal(root) == "", "who may only read is no danger"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o755], ids=oct)
@pytest.mark.parametrize("owner", [pytest.param(NOBODY, marks=needs_root), os.geteuid()])
def test_a_program_that_anybody_could_have_put_there_is_not_run(
    tmp_path: Path, mode: int, owner: int
) -> None:
    common = tmp_path / "common"
    here = common / "mine"
    here.mkdir(parents=True)
    (common / "dodo.py").write_text("")
    os.chown(common / "dodo.py", owner, -1)
    common.chmod(mode)
    if mode == 0o755 or owner == os.geteuid():
        assert find_root(here) == common
        return
    with pytest.raises(RcError) as caught:
        find_root(here)
    assert str(caught.value) == (
        f"{common}: everybody may write here, and the dodo.py that doit would run belongs to"
        f" {trust.user(owner)}\n"
        "  next: go into a checkout of the image repository and run the command there;\n"
        f"        if you trust this one: chmod o-w {common}"
    )


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
