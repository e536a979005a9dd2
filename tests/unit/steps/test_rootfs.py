"""Enroot's files in a root file system: their text, and hostile images that point out of it."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.errors import ArtifactError
from rc_tasks.squashfs.merge import stack
from rc_tasks.squashfs.read import read_layer
from rc_tasks.squashfs.tree import Tree
from rc_tasks.squashfs.write import write
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.publish import enroot_tree
from rc_tasks.tools import enroot
from rc_tasks.tools.podman import Image
from tests.support.layers import squash
from tests.support.tools import require_tools

RC_LOCAL = "# This file is sourced by /etc/rc"


def image(
    *,
    env: tuple[str, ...] = ("A=1",),
    labels: dict[str, str] | None = None,
    entrypoint: tuple[str, ...] = (),
    cmd: tuple[str, ...] = (),
    workdir: str = "",
    volumes: tuple[str, ...] = (),
) -> Image:
    return Image(
        id="0" * 64,
        architecture="amd64",
        size_bytes=1,
        env=env,
        labels=labels or {},
        entrypoint=entrypoint,
        cmd=cmd,
        workdir=workdir,
        volumes=volumes,
        layers=(),
    )


def in_place(root: Path, about: Image) -> None:
    """As in a mounted image."""
    rootfs.prepare(root, about, ())


def in_tree(root: Path, about: Image) -> None:
    """As in the tree of a merged image, which takes the place of the directory."""
    require_tools("mksquashfs", "unsquashfs")
    with tempfile.TemporaryDirectory() as scratch:
        tree = stack([read_layer(squash(root, Path(scratch, "layer.sqsh")))])
        like = read_layer(Path(scratch, "layer.sqsh")).source
        made = enroot_tree.add(tree.root, about, (), like, Path(scratch, "contents"))
        merged = Path(scratch, "image.sqsh")
        write(Tree(tree.form, made), merged, made_at=0)
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        argv = ("unsquashfs", "-quiet", "-no-progress", "-force", "-dest", root, merged)
        subprocess.run(argv, check=True, capture_output=True)


PREPARED = pytest.mark.parametrize("prepare", [in_place, in_tree])
Prepared = Callable[[Path, Image], None]


def test_rc_is_what_enroot_writes() -> None:
    made = rootfs.rc(
        image(
            entrypoint=("/entry point.sh", "it's", "$HOME", "back\\slash"),
            cmd=("", '"quoted"'),
            workdir="/work space",
            labels={"one": "first\nsecond", "two": "é"},
        ),
        ("enroot-provenance: podman://x",),
    )
    assert (
        made
        == """\
# enroot-provenance: podman://x
# one first second
# two é

mkdir -p "/work space" 2> /dev/null
cd "/work space" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/entry point.sh' 'it'\\''s' '$HOME' 'back\\slash' "$@"
else
    exec '/entry point.sh' 'it'\\''s' '$HOME' 'back\\slash' '' '"quoted"'
fi
"""
    )


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "with_arguments", "without"),
    [
        pytest.param((), (), 'exec  "$@"', "exec  '/bin/sh'", id="neither"),
        pytest.param(("/e",), (), "exec '/e' \"$@\"", "exec '/e' ", id="entrypoint"),
        pytest.param((), ("/c", "1"), 'exec  "$@"', "exec  '/c' '1'", id="cmd"),
    ],
)
def test_rc_of_sparse_images(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], with_arguments: str, without: str
) -> None:
    lines = rootfs.rc(image(entrypoint=entrypoint, cmd=cmd), ()).split("\n")
    assert lines[0] == 'mkdir -p "/" 2> /dev/null'
    assert f"    {with_arguments}" in lines
    assert f"    {without}" in lines


@pytest.mark.parametrize("shell", [("sh",), ("dash",), ("bash",), ("busybox", "sh")], ids=" ".join)
def test_no_label_runs_and_every_word_arrives(shell: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    words = (
        "a b",
        "",
        "'",
        '"',
        "$HOME `id` $(id)",
        "back\\slash\\",
        "line\nbreak\n",
        "tab\t\x01",
        "é*?~!",
        "-n",
    )
    workdir = tmp_path / 'wd "$HOME" `x` \\ end'
    labels = {"evil": "x\ntouch evil", "evil\nkey": "\rtouch evil\r\ntouch evil"}
    code = rootfs.rc(
        image(entrypoint=("printf", r"%s\0", *words), workdir=str(workdir), labels=labels), ("p\nq",)
    )
    done = subprocess.run([*shell, "-c", code, "rc"], cwd=tmp_path, check=False, capture_output=True)
    assert done.stdout.decode().split("\0")[:-1] == list(words)
    assert done.stderr == b""
    assert os.listdir(tmp_path) == [workdir.name]


@pytest.mark.parametrize("shell", [("sh",), ("dash",), ("bash",), ("busybox", "sh")], ids=" ".join)
def test_rc_restores_line_breaks_of_variables(shell: tuple[str, ...]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    names = ("KEPT", "CHANGED", "GONE", "DOLLAR")
    env = (
        "KEPT=one\nPATH=/evil\n",
        "CHANGED=a\nb",
        "GONE=a\nb",
        "DOLLAR='$(id)\n\\${X}'",
        "foo.bar=a\nb",
        "PLAIN=a b",
    )
    code = rootfs.rc(image(env=env), ()).removeprefix("mkdir")
    assert "PLAIN" not in code
    assert "foo.bar" not in code
    show = "".join(f'printf "%s\\0" "${{{name}-unset}}"; ' for name in (*names, "PATH"))
    environ = enroot.variables("\n".join(enroot.environment(env)), {"X": "of the host"})
    environ |= {"CHANGED": "by the EDF", "PATH": os.environ["PATH"]}
    del environ["GONE"]
    done = subprocess.run(
        [*shell, "-c", f"true {code}", "rc", *shell, "-c", show],
        env=environ,
        check=False,
        capture_output=True,
    )
    assert done.stdout.decode().split("\0")[:-1] == [
        "one\nPATH=/evil\n",
        "by the EDF",
        "unset",
        "'$(id)\n\\${X}'",
        os.environ["PATH"],
    ]
    assert done.stderr == b""


def test_odd_volumes_stay_one_field_of_fstab() -> None:
    assert rootfs.fstab(("/data", "/my data\\x")) == (
        "${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw,nosuid,nodev\n"
        r"${ENROOT_ROOTFS}/my\040data\134x /my\040data\134x none x-create=dir,bind,rw,nosuid,nodev"
        "\n"
    )


@PREPARED
def test_an_empty_image_gets_all_four_files(tmp_path: Path, prepare: Prepared) -> None:
    previous = os.umask(0o077)
    try:
        prepare(tmp_path, image(env=("A=1", "B=${X} 'y'"), workdir="/work dir/deep"))
    finally:
        os.umask(previous)
    assert (tmp_path / "etc/environment").read_text() == "A=1\nB=$${_RC_TASKS_EMPTY}{X} 'y'\n"
    assert (tmp_path / "etc/fstab").read_text() == ""
    assert (tmp_path / "etc/rc.local").read_text().startswith(RC_LOCAL)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert modes == {
        "etc": 0o755,
        "etc/environment": 0o644,
        "etc/fstab": 0o644,
        "etc/rc": 0o644,
        "etc/rc.local": 0o644,
        "work dir": 0o755,
        "work dir/deep": 0o755,
    }


@PREPARED
def test_an_existing_environment_is_replaced_and_keeps_its_mode(
    tmp_path: Path, prepare: Prepared
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/environment").write_text("OLD=" + "x" * 100)
    (tmp_path / "etc/environment").chmod(0o640)
    prepare(tmp_path, image())
    assert (tmp_path / "etc/environment").read_text() == "A=1\n"
    assert stat.S_IMODE((tmp_path / "etc/environment").stat().st_mode) == 0o640


Prepare = Callable[[Path, Path], None]


def link(name: str, target: str) -> Prepare:
    """A symlink in the root; `HOST` in its target stands for a directory outside."""

    def make(root: Path, host: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target.replace("HOST", str(host)))

    return make


@pytest.mark.parametrize(
    ("hostile", "environment"),
    [
        pytest.param(link("etc", "/"), "environment", id="/etc is /"),
        pytest.param(link("etc", "usr/etc"), "usr/etc/environment", id="/etc is usr/etc"),
        pytest.param(link("etc", "/usr/./../usr/etc/"), "usr/etc/environment", id="/etc is /usr/etc"),
        pytest.param(link("etc", "../../../../usr"), "usr/environment", id="/etc is above the root"),
        pytest.param(link("etc", "HOST"), "{host}/environment", id="/etc is a host directory"),
        pytest.param(
            link("etc/environment", "../../../../HOST/file"),
            "{host}/file",
            id="relative, to a host file",
        ),
        pytest.param(
            link("etc/environment", "HOST/file"), "etc/environment", id="absolute, to a host file"
        ),
        pytest.param(link("etc/environment", "default/env"), "etc/default/env", id="dangling, inside"),
        pytest.param(link("etc/environment", "/dev/null"), "etc/environment", id="to a device"),
    ],
)
@PREPARED
def test_no_symlink_leads_out(
    tmp_path: Path, hostile: Prepare, environment: str, prepare: Prepared
) -> None:
    root, host = tmp_path / "root", tmp_path / "host"
    root.mkdir()
    host.mkdir()
    (host / "file").write_text("the host's")
    hostile(root, host)
    prepare(root, image(workdir="/../../../wd"))
    assert {path.name: path.read_text() for path in host.iterdir()} == {"file": "the host's"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "root"]
    inside = root / environment.format(host=str(host).lstrip("/"))
    assert inside.read_text() == "A=1\n"
    assert not inside.is_symlink()
    assert (root / "wd").is_dir()
    # Launchers find the files from outside of the container.
    for name in ("environment", "fstab", "rc", "rc.local"):
        found = Path(os.path.realpath(root / "etc" / name))
        assert found.is_relative_to(root)
        assert found == rootfs.seen_inside(root, f"/etc/{name}")


@PREPARED
def test_a_workdir_behind_a_symlink_is_made_inside(tmp_path: Path, prepare: Prepared) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "data").symlink_to(tmp_path / "host")
    prepare(root, image(workdir="/data/work"))
    assert not (tmp_path / "host").exists()
    assert (root / str(tmp_path).lstrip("/") / "host/work").is_dir()


@pytest.mark.parametrize(
    ("obstacle", "workdir", "said"),
    [
        pytest.param(
            lambda root: (root / "etc").write_text(""), "", "Not a directory", id="/etc is a file"
        ),
        pytest.param(
            lambda root: (root / "etc/rc").mkdir(parents=True),
            "",
            "/etc/rc is not a regular",
            id="directory",
        ),
        pytest.param(
            lambda root: ((root / "etc").mkdir(), os.mkfifo(root / "etc/rc")),
            "",
            "/etc/rc is not a regular file",
            id="fifo",
        ),
        pytest.param(
            lambda root: (root / "etc").symlink_to("etc"),
            "",
            "leads through a loop of symlinks",
            id="loop",
        ),
        pytest.param(
            lambda root: ((root / "etc").mkdir(), (root / "etc/rc").symlink_to("..")),
            "",
            "/etc/rc ",
            id="a symlink to a directory",
        ),
        pytest.param(
            lambda root: (root / "w").write_text(""), "/w", "/w cannot be written", id="workdir"
        ),
        pytest.param(lambda root: None, "/" + "w" * 256, "File name too long", id="long workdir"),
    ],
)
@PREPARED
def test_what_is_in_the_way_is_named(
    tmp_path: Path, obstacle: Callable[[Path], object], workdir: str, said: str, prepare: Prepared
) -> None:
    obstacle(tmp_path)
    with pytest.raises(ArtifactError) as error:
        prepare(tmp_path, image(workdir=workdir))
    assert said in str(error.value)
    assert "next: " in str(error.value)


@pytest.mark.parametrize(
    ("obstacle", "said"),
    [
        pytest.param(
            lambda root: (root / "dev").symlink_to("/host"), "/dev is not a directory", id="dev"
        ),
        pytest.param(
            lambda root: (root / "proc").symlink_to("x"), "/proc is not a directory", id="proc"
        ),
        pytest.param(
            lambda root: (os.mkfifo(root / "pipe"), (root / "etc/rc").symlink_to("/pipe")),
            "/etc/rc is not a regular file",
            id="a symlink to a pipe",
        ),
        pytest.param(
            lambda root: os.mkfifo(root / "etc/passwd"), "/etc/passwd is not a regular file", id="passwd"
        ),
        pytest.param(
            lambda root: (root / "etc/group").symlink_to("group"),
            "/etc/group leads through a loop of symlinks",
            id="loop",
        ),
    ],
)
def test_what_would_hang_a_launcher_or_lead_it_out_is_refused(
    tmp_path: Path, obstacle: Callable[[Path], object], said: str
) -> None:
    (tmp_path / "etc").mkdir()
    obstacle(tmp_path)
    with pytest.raises(ArtifactError) as error:
        rootfs.require_plain(tmp_path)
    assert said in str(error.value)
    assert "next: " in str(error.value)


def test_paths_are_followed_inside_of_the_image_alone(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "etc").symlink_to("../../../usr")
    (tmp_path / "usr/passwd").symlink_to("/etc/nothing")
    rootfs.require_plain(tmp_path)
    assert rootfs.seen_inside(tmp_path, "/etc/passwd") == tmp_path / "usr/nothing"


@pytest.mark.parametrize(
    "harmless",
    [
        pytest.param(lambda root, host: None, id="empty"),
        pytest.param(link("etc", "usr/etc"), id="/etc is usr/etc"),
        pytest.param(link("etc/environment", "../opt/env"), id="a file beside"),
        pytest.param(link("scratch", "data/./scratch"), id="workdir"),
    ],
)
def test_enroot_may_import_what_stays_in_the_tree(tmp_path: Path, harmless: Prepare) -> None:
    harmless(tmp_path, tmp_path)
    rootfs.require_contained(tmp_path, "/scratch/here")


@pytest.mark.parametrize(
    ("obstacle", "path"),
    [
        pytest.param(link("etc", "/usr/etc"), "/etc/fstab", id="/etc"),
        pytest.param(link("etc/fstab", "/nowhere"), "/etc/fstab", id="fstab"),
        pytest.param(link("etc/environment", "../../nowhere"), "/etc/environment", id="environment"),
        pytest.param(link("etc/rc", "there"), "/etc/rc", id="rc, by two"),
        pytest.param(link("etc/rc.local", "/nowhere"), "/etc/rc.local", id="rc.local"),
        pytest.param(link("scratch", "/nowhere"), "/scratch/here", id="workdir"),
    ],
)
def test_enroot_may_not_import_what_leads_out_of_the_tree(
    tmp_path: Path, obstacle: Prepare, path: str
) -> None:
    obstacle(tmp_path, tmp_path)
    if path == "/etc/rc":
        link("etc/there", "/nowhere")(tmp_path, tmp_path)
    with pytest.raises(ArtifactError) as error:
        rootfs.require_contained(tmp_path, "/scratch/here")
    assert str(error.value) == (
        f"the image's root file system: {path} leads through a symlink that Enroot follows on the host\n"
        '  next: set `method = "direct"` in the [squash] settings, or remove it in the Dockerfile'
    )


def test_enroot_may_not_write_to_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/rc.local")
    with pytest.raises(ArtifactError, match=r"/etc/rc.local is not a regular file"):
        rootfs.require_contained(tmp_path, "")
