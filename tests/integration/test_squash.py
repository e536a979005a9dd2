"""Images with everything odd in them, squashed for real from several kinds of storage."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rc_tasks.errors import ArtifactError, CommandError
from rc_tasks.model.config.settings import Compression, Squash, SquashMethod
from rc_tasks.squashfs import superblock
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.store import Store
from rc_tasks.steps.publish import squash
from rc_tasks.tools import command, enroot, squashfs
from rc_tasks.tools.podman import Podman
from tests.support.images import Layer, load, write_layout
from tests.support.publishing import squash_image
from tests.support.tools import refuse

pytestmark = pytest.mark.podman

REPOSITORY = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
with_enroot = pytest.mark.skipif(
    shutil.which("enroot") is None, reason="no enroot on PATH to compare with"
)

CONFIG: dict[str, object] = {
    "Entrypoint": [
        "/bin/printf",
        r"[%s]\n",
        "it's",
        'say "hi"',
        "$HOME `id`",
        "a\nb",
        "back\\slash",
        "",
    ],
    "Env": ["PATH=/bin", "GREETING=hello  'world' ${HOME}", "EMPTY="],
    "Labels": {"org.example.text": "one\ntouch /evil", "title": "é"},
    "Volumes": {"/data": {}, "/my data": {}},
    "WorkingDir": "/work dir/$(x)/deep",
}

# What Enroot makes of `odd()`: mode, size of what is no directory, time, name. "now" is the time of
# the import.
GOLDEN = b"""\
drwxr-xr-x now squashfs-root
-rw-r--r-- 2 then squashfs-root/.rc
-rw-r--r-- 2 then squashfs-root/a name
with a line
drwxr-xr-x then squashfs-root/bin
-rwxr-xr-x 4 then squashfs-root/caps
drwx------ then squashfs-root/deep
@DEEP@drwxr-xr-x then squashfs-root/dev
drwxr-xr-x now squashfs-root/etc
-rw-r----- 67 now squashfs-root/etc/environment
-rw-r--r-- 146 now squashfs-root/etc/fstab
-rw-r--r-- @RC@ now squashfs-root/etc/rc
-rw-r--r-- 140 now squashfs-root/etc/rc.local
prw-r--r-- 0 then squashfs-root/fifo
-r-------- 1 then squashfs-root/latin-\xe9
drwx--x--x then squashfs-root/mode-0111
drwx------ then squashfs-root/mode-0500
drwx------ then squashfs-root/mode-none
-r-------- 6 then squashfs-root/mode-none/file
-r-x--x--- 1 then squashfs-root/mode-none/group-x
@NODE@drwxr-xr-x then squashfs-root/sub
-rw-r--r-- 1 then squashfs-root/sub/.dockerenv
drwxr-xr-x then squashfs-root/sub/dev
-rw-r--r-- 1 then squashfs-root/sub/dev/kept
-rwsr-sr-x 4 then squashfs-root/suid
-rwsr-sr-x 4 then squashfs-root/suid-too
drwxrwxrwt then squashfs-root/tmp
drwxr-xr-x now squashfs-root/work dir
drwxr-xr-x now squashfs-root/work dir/$(x)
drwxr-xr-x now squashfs-root/work dir/$(x)/deep
"""


def odd() -> Layer:
    """No CMD, modes that shut people out, hard links, devices, odd names, a tree deeper than 15."""
    layer = Layer().directory("bin")
    layer.directory("etc").file("etc/environment", b"OLD=1\n" * 100, 0o640)
    layer.directory("dev").file("dev/regular").file("dev/.hidden").device("dev/null", 1, 3)
    layer.file(".dockerenv").file(".rc", b"rc").directory("sub").file("sub/.dockerenv", b"x")
    layer.directory("sub/dev").file("sub/dev/kept", b"x")
    layer.directory("mode-none", 0).file("mode-none/file", b"secret", 0)
    layer.file("mode-none/group-x", b"x", 0o010)
    layer.directory("mode-0111", 0o111).directory("mode-0500", 0o500).directory("tmp", 0o1777)
    layer.file("suid", b"suid", 0o6755).hardlink("suid-too", "suid", 0o6755)
    layer.file("a name\nwith a line", b"hi").file("latin-\udce9", b"x", 0o400)
    layer.file("caps", b"caps", 0o755, xattrs={"user.note": "lost"})
    layer.device("node", 1, 3).fifo("fifo")
    for depth in range(18):
        layer.directory("/".join(["deep", *"d" * depth]), 0o500)
    return layer


def golden(rc_bytes: int, *, nodes: bool) -> bytes:
    deep = b"".join(
        b"d%s------ then squashfs-root/deep%s\n"
        % (b"rwx" if depth <= 15 else b"r-x", b"/d" * (depth - 1))
        for depth in range(2, 19)
    )
    node = b"crw-rw-rw- 1,3 then squashfs-root/node\n" if nodes else b""
    return GOLDEN.replace(b"@DEEP@", deep).replace(b"@NODE@", node).replace(b"@RC@", b"%d" % rc_bytes)


def listing(path: Path) -> bytes:
    """`unsquashfs -lln` with what may differ between two images of the same content taken out."""
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    text = subprocess.run(
        squashfs.listing(path).argv, capture_output=True, check=True, env=environment
    ).stdout
    line = re.compile(
        rb"(?m)^(\S{10}) 0/0 +(\d+(?:, *\d+)?) (\d{4}-\d\d-\d\d \d\d:\d\d) (squashfs-root.*)$"
    )

    def short(found: re.Match[bytes]) -> bytes:
        mode, size, date, name = found.groups()
        when = b"then" if date == b"2024-01-02 03:04" else b"now"
        # A directory's size depends on how its entries are stored.
        sizes = () if mode.startswith(b"d") else (size.replace(b" ", b""),)
        return b" ".join((mode, *sizes, when, name))

    # unsquashfs 4.4 says how many processors it uses first.
    return line.sub(short, text[text.index(b"drwx") :])


@pytest.fixture(
    params=[
        pytest.param(("overlay", ()), id="overlay"),
        pytest.param(
            ("overlay", ("overlay.mount_program=/usr/bin/fuse-overlayfs",)),
            id="fuse-overlayfs",
            marks=pytest.mark.skipif(
                not Path("/usr/bin/fuse-overlayfs").exists(), reason="no fuse-overlayfs here"
            ),
        ),
        pytest.param(("vfs", ()), id="vfs"),
    ]
)
def each_storage(request: pytest.FixtureRequest) -> Iterator[Podman]:
    yield from storage(*request.param)


@pytest.fixture
def podman() -> Iterator[Podman]:
    yield from storage("overlay", ())


def storage(driver: str, options: tuple[str, ...]) -> Iterator[Podman]:
    """A storage of the test's own, which must have no containers in the end."""
    # podman wants the path of a runroot to be 50 characters at most; tmp_path is longer.
    base = Path(tempfile.mkdtemp(prefix="rc-podman-", dir="/tmp"))
    made = Podman(
        root=str(base / "root"),
        runroot=str(base / "run"),
        driver=driver,
        options=options,
        cgroup_manager="cgroupfs",
    )
    try:
        yield made
        assert containers(made) == [], "a container was left behind"
    finally:
        # podman keeps a bind mount of the overlay directory onto itself.
        subprocess.run(["umount", base / "root" / "overlay"], check=False, capture_output=True)
        shutil.rmtree(base)


def containers(podman: Podman) -> list[str]:
    done = command.capture(podman.command("ps", "--all", "--external", "--format", "{{.Names}}"))
    return done.stdout.split()


def squashed(
    podman: Podman,
    image_id: str,
    directory: Path,
    *,
    settings: Squash | None = None,
    provenance: tuple[str, ...] = (),
) -> Path:
    """Squashed, checked and published."""
    directory.mkdir(exist_ok=True)
    final = directory / "image.sqsh"
    temporary = squash.temporary(final)
    with (directory / "log").open("wb") as log:
        squash_image(
            podman,
            podman.inspect(image_id),
            temporary,
            settings=settings or Squash(processors=1),
            provenance=provenance,
            log=log,
            layers=SquashedLayers(Store(directory.parent / "store")),
        )
    assert squash.check(temporary) == temporary.stat().st_size
    squash.publish(temporary, final)
    assert sorted(os.listdir(directory)) == ["image.sqsh", "log"]
    return final


def unpacked(path: Path, directory: Path) -> Path:
    subprocess.run(["unsquashfs", "-q", "-n", "-d", directory, path], check=True, capture_output=True)
    return directory


@as_root
def test_odd_images_become_what_enroot_makes_of_them(each_storage: Podman, tmp_path: Path) -> None:
    image_id = load(each_storage, tmp_path / "layout", CONFIG, odd())
    made = squashed(each_storage, image_id, tmp_path / "a project: 'é", provenance=("who: me",))
    tree = unpacked(made, tmp_path / "tree")
    rc = (tree / "etc/rc").read_text()
    assert listing(made) == golden(len(rc.encode()), nodes=True)
    assert rc.startswith("# who: me\n# org.example.text one touch /evil\n# title é\n\nmkdir -p ")
    assert (tree / "etc/environment").read_text() == (
        "PATH=/bin\nGREETING=hello  'world' $${_RC_TASKS_EMPTY}{HOME}\nEMPTY=\n"
    )
    assert (tree / "suid").samefile(tree / "suid-too")
    assert os.listxattr(tree / "caps") == []


@as_root
@with_enroot
@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_the_listing_equals_enroots(driver: str, tmp_path: Path) -> None:
    for podman in storage(driver, ()):
        # Enroot cannot quote these for /etc/rc and /etc/fstab, so their sizes differ.
        plain = {"Cmd": ["/bin/sh", "-c", "it's"], "Volumes": {"/data": {}}, "WorkingDir": "/work dir"}
        image_id = load(podman, tmp_path / "layout", {**CONFIG, "Entrypoint": [], **plain}, odd())
        theirs = squashed(
            podman,
            image_id,
            tmp_path / "theirs",
            settings=Squash(method=SquashMethod.ENROOT, processors=1),
        )
        # Its releases up to 4.1.2 do not write this line.
        line = f"enroot-provenance: podman://{image_id}"
        written = (unpacked(theirs, tmp_path / "tree") / "etc/rc").read_text().startswith(f"# {line}\n")
        ours = squashed(podman, image_id, tmp_path / "ours", provenance=(line,) if written else ())
        assert listing(ours) == listing(theirs)
        for name in ("rc", "rc.local", "environment", "fstab"):
            mine, its = (
                unpacked(path, tmp_path / f"{path.parent.name}-{name}") / "etc" / name
                for path in (ours, theirs)
            )
            assert mine.read_bytes() == its.read_bytes()


@as_root
@with_enroot
def test_enroot_takes_an_image_without_cmd_too(podman: Podman, tmp_path: Path) -> None:
    """By itself it cannot: podman makes no container of such an image unless a command is given."""
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    made = squashed(podman, image_id, tmp_path / "out", settings=Squash(method=SquashMethod.ENROOT))
    rc = (unpacked(made, tmp_path / "tree") / "etc/rc").read_text()
    assert rc.split()[-2:] == ["'/bin/sh'", "fi"]


@as_root
@with_enroot
def test_enroot_is_given_settings_that_it_can_write(podman: Podman, tmp_path: Path) -> None:
    config = {"Env": ["OPTIONS='-a' '-b'", "REFERENCE=${X}"], "Entrypoint": [""], "Cmd": ["sh"]}
    image_id = load(podman, tmp_path / "layout", config, Layer().busybox())
    made = squashed(podman, image_id, tmp_path / "out", settings=Squash(method=SquashMethod.ENROOT))
    etc = unpacked(made, tmp_path / "tree") / "etc"
    image = podman.inspect(image_id)
    assert (etc / "environment").read_text().splitlines() == list(enroot.environment(image.env))
    assert "exec  'sh'\n" in (etc / "rc").read_text()


@as_root
@pytest.mark.parametrize(
    ("config", "layer", "said"),
    [
        pytest.param(
            {"Env": ["A=1", "B=one\ntwo"]},
            Layer().busybox(),
            "{project}: `enroot import` cannot keep the line break in the image's variable B\n"
            '  next: set `method = "direct"` in the [squash] settings, or give it a value of one line\n'
            "        in the Dockerfile",
            id="line break",
            marks=with_enroot,
        ),
        pytest.param(
            {},
            Layer().busybox().directory("etc").symlink("etc/fstab", "/nowhere/fstab"),
            "the image's root file system: /etc/fstab leads through a symlink that Enroot follows on the"
            ' host\n  next: set `method = "direct"` in the [squash] settings, or remove it in the'
            " Dockerfile",
            id="symlink",
        ),
    ],
)
def test_what_enroot_cannot_import_is_refused(
    podman: Podman, tmp_path: Path, config: dict[str, object], layer: Layer, said: str
) -> None:
    image_id = load(podman, tmp_path / "layout", config, layer)
    with pytest.raises(ArtifactError) as caught:
        squashed(podman, image_id, tmp_path / "out", settings=Squash(method=SquashMethod.ENROOT))
    assert str(caught.value) == said.format(project=tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["log"]


@as_root
@with_enroot
def test_enroots_failure_is_told_in_its_words(podman: Podman, tmp_path: Path) -> None:
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    existing = squash.temporary(tmp_path / "image.sqsh")
    existing.touch()
    with pytest.raises(CommandError) as caught:
        squash.squash(
            podman,
            podman.inspect(image_id),
            existing,
            settings=Squash(method=SquashMethod.ENROOT),
            provenance=(),
            log=None,
        )
    told = str(caught.value)
    assert told.startswith("enroot failed with exit status ")
    assert "ENROOT_" not in told.splitlines()[0], "its environment is for the log"
    assert not list(tmp_path.glob(".image*"))


@as_root
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(
            (), ["it's", 'say "hi"', "$HOME `id`", "a\nb", "back\\slash", "", "cmd;ls"], id="none"
        ),
        pytest.param(
            ("x y", "$1"),
            ["it's", 'say "hi"', "$HOME `id`", "a\nb", "back\\slash", "", "x y", "$1"],
            id="two",
        ),
    ],
)
def test_the_published_image_starts(
    podman: Podman, tmp_path: Path, arguments: tuple[str, ...], expected: list[str]
) -> None:
    config = {**CONFIG, "Cmd": ["cmd;ls"]}
    image_id = load(podman, tmp_path / "layout", config, Layer().busybox())
    tree = unpacked(squashed(podman, image_id, tmp_path / "out"), tmp_path / "tree")
    # A container has one; a chroot only what the image has, and /dev of an image is emptied.
    (tree / "dev").mkdir(exist_ok=True)
    (tree / "dev/null").write_text("")
    done = subprocess.run(
        [shutil.which("chroot") or "chroot", tree, "/bin/sh", "/etc/rc", *arguments],
        check=False,
        capture_output=True,
        env={"PATH": "/bin"},
    )
    assert done.stderr == b""
    assert done.stdout.decode() == "".join(f"[{word}]\n" for word in expected)
    assert not (tree / "evil").exists()


@as_root
def test_a_hostile_etc_does_not_reach_the_host(podman: Podman, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    layer = Layer().busybox().directory("usr").symlink("etc", str(host))
    image_id = load(podman, tmp_path / "layout", {"Env": ["A=1"]}, layer)
    made = squashed(podman, image_id, tmp_path / "out")
    assert list(host.iterdir()) == []
    assert b" squashfs-root%b/rc\n" % os.fsencode(host) in listing(made)


@as_root
@pytest.mark.parametrize("compression", list(Compression))
def test_each_compression(podman: Podman, tmp_path: Path, compression: Compression) -> None:
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    made = squashed(
        podman, image_id, tmp_path / "out", settings=Squash(compression=compression, level=3)
    )
    expected = "zstd" if compression is Compression.AUTO else compression.value
    assert superblock.inspect(made).compression == expected


@as_root
def test_an_old_mksquashfs_without_zstd_still_works(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    real = shutil.which("mksquashfs")
    help_ = r"printf '\t\tCompressors available:\n\t\t\tgzip (default)\n\t\t\txz\n'; exit 1"
    (bin_ / "mksquashfs").write_text(f'#!/bin/sh\ncase $1 in -help*) {help_};; esac\nexec {real} "$@"\n')
    (bin_ / "mksquashfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    made = squashed(podman, image_id, tmp_path / "out", settings=Squash(level=19))
    assert superblock.inspect(made).compression == "gzip"


def answering(directory: Path, monkeypatch: pytest.MonkeyPatch, *cases: str) -> None:
    """A mksquashfs that is the real one but for some cases of a shell."""
    directory.mkdir()
    real = shutil.which("mksquashfs")
    script = f'#!/bin/sh\ncase " $* " in {"".join(cases)} esac\nexec {real} "$@"\n'
    (directory / "mksquashfs").write_text(script)
    (directory / "mksquashfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@as_root
def test_files_of_zeros_leave_the_others_as_they_are(podman: Podman, tmp_path: Path) -> None:
    """mksquashfs 4.7.4 gave files after them wrong content in every third image, with exit status 0."""
    layer, wanted = Layer().busybox(), {}
    for number in range(40):
        wanted[f"data/{number:02}a"] = bytes(131072 * (2 + number))
        for small in range(8):
            wanted[f"data/{number:02}b{small}"] = os.urandom(20_000)
        wanted[f"data/{number:02}c"] = os.urandom(131072 * (1 + number % 3))
    layer.directory("data")
    for name, data in wanted.items():
        layer.file(name, data)
    image_id = load(podman, tmp_path / "layout", {}, layer)
    tree = unpacked(squashed(podman, image_id, tmp_path / "out"), tmp_path / "unpacked")
    assert [name for name, data in wanted.items() if (tree / name).read_bytes() != data] == []


@as_root
@pytest.mark.parametrize(
    "method", [SquashMethod.DIRECT, pytest.param(SquashMethod.ENROOT, marks=with_enroot)]
)
def test_a_mksquashfs_that_writes_wrong_content_is_given_what_avoids_it(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: SquashMethod
) -> None:
    given = tmp_path / "given"
    answering(
        tmp_path / "bin",
        monkeypatch,
        '" -version ") echo "mksquashfs version 4.7.4 (2025/11/09)"; exit;;',
        f'*" -noappend "*|*" -comp "*) echo "$@" >> {given};;',
    )
    image_id = load(podman, tmp_path / "layout", {"Cmd": ["sh"]}, Layer().busybox())
    squashed(podman, image_id, tmp_path / "out", settings=Squash(method=method))
    assert " -no-sparse" in given.read_text()
    told, _, _ = (tmp_path / "out/log").read_text().partition("\n")
    assert told == (
        "mksquashfs 4.7.4 can silently write wrong content into files where an image has files "
        "of zeros only: -no-sparse avoids it"
    )


@as_root
def test_other_versions_look_for_holes(podman: Podman, tmp_path: Path) -> None:
    if squashfs.workaround_options(squashfs.version()):
        pytest.skip("this mksquashfs has the fault")
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    squashed(podman, image_id, tmp_path / "out")
    log = (tmp_path / "out/log").read_text()
    assert log.startswith("+ ") and "-no-sparse" not in log and "-no-duplicates" not in log


@as_root
@pytest.mark.parametrize(
    "words",
    [
        "FATAL ERROR: zstd uncompress failed with error code 20",
        "FATAL ERROR: BUG in get_virt_disk, 1991996551 not found",
    ],
)
def test_a_mksquashfs_that_fails_over_equal_files_does_without_comparing(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """The words are those of squashfs-tools#361 and #360."""
    answering(
        tmp_path / "bin",
        monkeypatch,
        '" -version ") echo "mksquashfs version 4.7.5 (2026/03/01)"; exit;;',
        '*" -no-duplicates "*) ;;',
        f'*" -noappend "*) echo half > "$2"; echo; echo "{words}"; exit 1;;',
    )
    same = os.urandom(1 << 20)
    layer = Layer().busybox().file("one", same).file("two", same)
    image_id = load(podman, tmp_path / "layout", {}, layer)
    made = squashed(podman, image_id, tmp_path / "out")
    tree = unpacked(made, tmp_path / "unpacked")
    assert (tree / "one").read_bytes() == (tree / "two").read_bytes() == same
    log = (tmp_path / "out/log").read_text()
    assert f"\n{words}\nmksquashfs 4.7.5 failed while it compared files: once more without" in log


@as_root
def test_what_fails_without_comparing_too_is_told_once(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    words = "FATAL ERROR: BUG in get_virt_disk, 5 not found"
    fails = f'*" -noappend "*) echo once >> {calls}; echo "{words}"; exit 1;;'
    answering(tmp_path / "bin", monkeypatch, fails)
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    with pytest.raises(CommandError) as raised:
        squashed(podman, image_id, tmp_path / "out")
    assert words in raised.value.quote
    assert calls.read_text() == "once\nonce\n"
    assert os.listdir(tmp_path / "out") == ["log"]


@as_root
@pytest.mark.parametrize(
    "method", [SquashMethod.DIRECT, pytest.param(SquashMethod.ENROOT, marks=with_enroot)]
)
def test_a_full_disk_is_named_and_the_old_image_stays(
    podman: Podman, tmp_path: Path, method: SquashMethod
) -> None:
    big = Layer().busybox().file("big", os.urandom(24 << 20))
    image_id = load(podman, tmp_path / "layout", {"Cmd": ["sh"]}, big)
    project = tmp_path / "small disk"
    project.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", project], check=True)
    try:
        (project / "image.sqsh").write_text("the old one")
        with pytest.raises(ArtifactError) as error:
            squashed(podman, image_id, project, settings=Squash(method=method))
        assert str(error.value).startswith(f"{project}: no space left while squashing: ")
        assert "next: free space" in str(error.value)
        assert sorted(os.listdir(project)) == ["image.sqsh", "log"]
        assert (project / "image.sqsh").read_text() == "the old one"
    finally:
        subprocess.run(["umount", project], check=True)


@as_root
def test_a_quota_that_is_used_up_is_not_taken_for_a_full_disk(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words are those of mksquashfs 4.5.1 on a btrfs with a limit."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    words = "Write failed because Disk quota exceeded"
    fail = f"echo {words} >&2; echo FATAL ERROR: Failed to write to output filesystem >&2; exit 1"
    real = shutil.which("mksquashfs")
    script = f'#!/bin/sh\ncase $1 in -help*|-version) exec {real} "$@";; esac\n{fail}\n'
    (bin_ / "mksquashfs").write_text(script)
    (bin_ / "mksquashfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    image_id = load(podman, tmp_path / "layout", {}, Layer().busybox())
    with pytest.raises(ArtifactError) as error:
        squashed(podman, image_id, tmp_path / "out")
    told = str(error.value)
    assert "the disk quota was used up while squashing; the image is 0.0 GB unpacked" in told
    assert words in told and "are free" not in told and "ask for more quota" in told


@as_root
@with_enroot
def test_a_full_scratch_directory_is_the_one_named(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = Layer().busybox().file("big", os.urandom(24 << 20))
    image_id = load(podman, tmp_path / "layout", {"Cmd": ["sh"]}, big)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("ENROOT_TEMP_PATH", str(scratch))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", scratch], check=True)
    try:
        with pytest.raises(ArtifactError) as error:
            squashed(podman, image_id, tmp_path / "out", settings=Squash(method=SquashMethod.ENROOT))
        assert str(error.value).startswith(f"{scratch}: no space left while squashing: ")
        assert os.listdir(scratch) == []
    finally:
        subprocess.run(["umount", scratch], check=True)


# A step as the job starts it: TERM ends it like Ctrl-C.
STEP = """
import json, signal, sys
from pathlib import Path
from rc_tasks.model.config.settings import Compression, Squash, SquashMethod
from rc_tasks.steps.publish import squash
from rc_tasks.tools.podman import Podman

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
podman, image_id, final, settings, provenance = json.loads(sys.argv[1])
podman = Podman(**podman | {"options": tuple(podman["options"])})
method, compression = SquashMethod(settings["method"]), Compression(settings["compression"])
settings = Squash(method=method, compression=compression, processors=1)
final = Path(final)
squash.sweep(final.parent)
temporary = squash.temporary(final)
image = podman.inspect(image_id)
squash.squash(podman, image, temporary, settings=settings, provenance=tuple(provenance), log=None)
print("size:", squash.check(temporary))
squash.publish(temporary, final)
"""


def step(
    podman: Podman, image_id: str, final: Path, *, method: str = "direct", compression: str = "auto"
) -> list[str]:
    """The argv of a squash in a process of its own."""
    facts = {
        name: getattr(podman, name)
        for name in ("root", "runroot", "driver", "options", "cgroup_manager")
    }
    settings = {"method": method, "compression": compression}
    return [sys.executable, "-c", STEP, json.dumps([facts, image_id, str(final), settings, []])]


def wait_for_a_temporary(directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in directory.glob(".image.*.tmp.sqsh")):
        assert process.poll() is None, "the squash ended before it could be interrupted"
        assert time.monotonic() < deadline, "mksquashfs never wrote anything"
        time.sleep(0.01)


@as_root
@pytest.mark.parametrize("method", ["direct", pytest.param("enroot", marks=with_enroot)])
def test_term_leaves_nothing(podman: Podman, tmp_path: Path, method: str) -> None:
    # xz takes several seconds for this.
    slow = Layer().busybox().file("big", os.urandom(32 << 20))
    image_id = load(podman, tmp_path / "layout", {"Cmd": ["sh"]}, slow)
    final = tmp_path / "project" / "image.sqsh"
    final.parent.mkdir()
    argv = step(podman, image_id, final, method=method, compression="xz")
    with subprocess.Popen(
        argv, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_a_temporary(final.parent, process)
        process.terminate()
        assert process.wait(30) != 0
    assert os.listdir(final.parent) == []
    assert containers(podman) == []
    assert f"{podman.root}/overlay/" not in Path("/proc/self/mounts").read_text()


@as_root
@pytest.mark.parametrize("method", ["direct", pytest.param("enroot", marks=with_enroot)])
def test_what_kill_9_leaves_is_cleared_by_the_next_run(
    podman: Podman, tmp_path: Path, method: str
) -> None:
    slow = Layer().busybox().file("big", os.urandom(32 << 20))
    image_id = load(podman, tmp_path / "layout", {"Cmd": ["sh"]}, slow)
    final = tmp_path / "project" / "image.sqsh"
    final.parent.mkdir()
    # What `enroot import` unpacked stays in here.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    argv = step(podman, image_id, final, method=method, compression="xz")
    surroundings = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        argv, cwd=REPOSITORY, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_a_temporary(final.parent, process)
        process.send_signal(signal.SIGKILL)
    # Enroot makes one of its own.
    assert len(containers(podman)) == (2 if method == "enroot" else 1)
    # mksquashfs is ended as well, and may have taken its file away.
    assert len(os.listdir(final.parent)) <= 1
    again = step(podman, image_id, final, method=method)
    subprocess.run(again, cwd=REPOSITORY, env=surroundings, check=True, capture_output=True)
    assert os.listdir(final.parent) == ["image.sqsh"]


def test_sweep_takes_nothing_else(tmp_path: Path) -> None:
    ours = [squash.temporary(tmp_path / "image.sqsh") for _ in range(2)]
    kept = ["image.sqsh", ".image.sqsh", ".image.tmp.sqsh", f"x{ours[0].name}", f"{ours[0].name}~"]
    for path in (*ours, *(tmp_path / name for name in kept)):
        path.write_text("")
    folder, link = squash.temporary(tmp_path / "image.sqsh"), squash.temporary(tmp_path / "image.sqsh")
    folder.mkdir()
    # Of an image that a clone was adopting; what it leads to stays.
    link.symlink_to("image.sqsh")
    squash.sweep(tmp_path)
    assert set(os.listdir(tmp_path)) == {*kept, folder.name}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_publish_follows_the_umask(tmp_path: Path, mask: int) -> None:
    new, final = squash.temporary(tmp_path / "image.sqsh"), tmp_path / "image.sqsh"
    final.write_text("old")
    new.write_text("new")
    new.chmod(0o600)
    with final.open() as running:
        previous = os.umask(mask)
        try:
            squash.publish(new, final)
        finally:
            os.umask(previous)
        assert running.read() == "old"
    assert final.read_text() == "new"
    assert final.stat().st_mode & 0o777 == 0o666 & ~mask


@as_root
def test_publish_gives_the_directorys_group(tmp_path: Path) -> None:
    os.chown(tmp_path, -1, 12345)
    new = squash.temporary(tmp_path / "image.sqsh")
    new.write_text("new")
    squash.publish(new, tmp_path / "image.sqsh")
    assert (tmp_path / "image.sqsh").stat().st_gid == 12345


def plain_squashfs(tree: Path, path: Path) -> Path:
    subprocess.run(["mksquashfs", tree, path, "-noappend", "-quiet", "-no-progress"], check=True)
    return path


def test_check_wants_a_start_script(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "usr/etc").mkdir(parents=True)
    (tree / "fake squashfs-root").mkdir()
    path = tmp_path / "image.sqsh"
    with pytest.raises(ArtifactError, match="no /etc/rc"):
        squash.check(plain_squashfs(tree, path))
    (tree / "usr/etc/rc").write_text("")
    (tree / "etc").symlink_to("/usr/etc/")
    with pytest.raises(ArtifactError, match="no /etc/rc"):
        squash.check(plain_squashfs(tree, path))
    (tree / "usr/etc/rc").write_text("exec sh")
    assert squash.check(plain_squashfs(tree, path)) == path.stat().st_size


def test_check_believes_no_odd_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a\n squashfs-root/etc").mkdir(parents=True)
    (tree / "a\n squashfs-root/etc/rc").write_text("exec sh")
    (tree / "etc/rc").mkdir(parents=True)
    (tree / "link").symlink_to("x squashfs-root/etc/rc")
    (tree / "other").symlink_to("x squashfs-root/etc -> y")
    with pytest.raises(ArtifactError, match="no /etc/rc"):
        squash.check(plain_squashfs(tree, tmp_path / "image.sqsh"))


def test_check_reads_the_tables(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/rc").write_text("exec sh")
    path = plain_squashfs(tree, tmp_path / "image.sqsh")
    used = superblock.inspect(path).used_bytes
    with path.open("r+b") as file:
        file.seek(96)
        file.write(b"\xff" * (used - 96))
    with pytest.raises(ArtifactError, match="unsquashfs cannot list the image"):
        squash.check(path)


@pytest.fixture
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], Path]]:
    """An ordinary user with ranges of subordinate IDs: how to run as them, and their home."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "runuser", "newuidmap"))):
        refuse("needs root, useradd, runuser and newuidmap (Debian: uidmap)")
    name = f"rc-test-{os.getpid()}"
    home = Path("/var/tmp") / name
    environment = (
        f"HOME={home}",
        f"PATH={os.environ['PATH']}",
        f"XDG_RUNTIME_DIR={home / 'run'}",
        f"PYTHONPATH={home}",
        "PYTHONDONTWRITEBYTECODE=1",
    )
    as_user = ["runuser", "-u", name, "--", "env", "-i", f"--chdir={home}", *environment]
    subprocess.run(
        ["useradd", "--create-home", "--home-dir", home, name], check=True, capture_output=True
    )
    try:
        (home / "run").mkdir(mode=0o700)
        shutil.chown(home / "run", name, name)
        for package in (REPOSITORY / "rc_tasks", Path(msgspec.__file__).parent):
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package, home / package.name, ignore=without)
        yield as_user, home
    finally:
        # Ends the process with which podman keeps the user's namespace.
        subprocess.run([*as_user, "podman", "system", "migrate"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run(["userdel", name], check=True, capture_output=True)


def python_for(user: list[str]) -> str:
    """A Python that the user may run; the one of these tests can lie in root's home."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        if (
            subprocess.run(
                [*user, candidate, "-c", "import enum; enum.StrEnum"], check=False, capture_output=True
            ).returncode
            == 0
        ):
            return candidate
    pytest.skip("no Python 3.11 that an ordinary user may run")


@pytest.mark.parametrize(
    ("driver", "options", "method"),
    [
        pytest.param("overlay", (), "direct", id="overlay"),
        pytest.param("vfs", (), "direct", id="vfs"),
        pytest.param(
            "overlay", ("overlay.mount_program=/usr/bin/fuse-overlayfs",), "direct", id="fuse-overlayfs"
        ),
        pytest.param("overlay", (), "enroot", id="enroot", marks=with_enroot),
    ],
)
def test_an_ordinary_user(
    user: tuple[list[str], Path], tmp_path: Path, driver: str, options: tuple[str, ...], method: str
) -> None:
    as_user, home = user
    if options and not Path("/usr/bin/fuse-overlayfs").exists():
        refuse("no fuse-overlayfs here")
    if options and subprocess.run([*as_user, "test", "-w", "/dev/fuse"], check=False).returncode != 0:
        pytest.skip("/dev/fuse is for root only on this machine")
    python = python_for(as_user)
    podman = Podman(
        root=str(home / "root"),
        runroot=str(home / "run/r"),
        driver=driver,
        options=options,
        cgroup_manager="cgroupfs",
    )
    write_layout(home / "layout", {**CONFIG, "Cmd": ["sh"]}, [odd().tar()])
    pull = [*as_user, *podman.command("pull", "--quiet", f"oci:{home / 'layout'}").argv]
    image_id = subprocess.run(pull, check=True, capture_output=True, text=True).stdout.strip()
    project = home / "project: é"
    project.mkdir()
    shutil.chown(project, home.owner(), home.group())
    final = project / "image.sqsh"
    argv = step(podman, image_id, final, method=method)
    inner = [python, *argv[1:]]
    done = subprocess.run(
        [*as_user, *podman.command("unshare", *inner).argv], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(project) == ["image.sqsh"]
    assert final.owner() == home.owner()
    if method == "direct":
        rc = unpacked(final, tmp_path / "tree") / "etc/rc"
        assert listing(final) == golden(rc.stat().st_size, nodes=False)
    left = subprocess.run(
        [*as_user, *podman.command("ps", "-aq", "--external").argv], check=False, capture_output=True
    )
    assert left.stdout == b""
