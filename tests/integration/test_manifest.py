"""What is inside published images and where they come from: built, compared, verified and mended."""

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT
from tests.support.family import Family
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools
from tests.unit.model.test_packages import NAMED, header

pytestmark = pytest.mark.podman

APP = "projects/app:1"
SITE = "usr/lib/python3/dist-packages"
VENV = "opt/a venv/lib/python3.12/site-packages"
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n\nText\n"
STATUS = "Package: {}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {}\n\n"
CONDA = '{"name": "zlib", "version": "1.3", "build": "h_0", "subdir": "linux-64", "channel": "main"}'
FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY rootfs/ /\nRUN echo base > /etc/base\n",
    "base/rootfs/etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n',
    "base/rootfs/var/lib/dpkg/status": STATUS.format("libc6", "2.36-9") + STATUS.format("gcc", "12"),
    # Of the host, if anybody followed it.
    f"base/rootfs/{SITE}/evil-1.dist-info/METADATA": "-> /etc/hostname",
    "base/rootfs/srv/circle": "-> ../srv/circle",
    "base/rootfs/opt/conda/conda-meta": "-> /",
    f"{APP}/Dockerfile": (
        "FROM base\nARG FLAVOUR=plain\nCOPY data/ /\n"
        f"RUN mkfifo /{SITE}/evil-1.dist-info/PIPE && mkdir -p /{SITE}/fifo-2.dist-info"
        f" && mkfifo /{SITE}/fifo-2.dist-info/METADATA\nRUN echo $FLAVOUR > /etc/flavour\n"
    ),
    f"{APP}/project.toml": '[build_args]\nFLAVOUR = "sweet"\n',
    f"{APP}/data/{SITE}/numpy-2.0.0.dist-info/METADATA": METADATA.format("numpy", "2.0.0"),
    f"{APP}/data/{VENV}/torch-2.6.0.dist-info/METADATA": METADATA.format("torch", "2.6.0+cu126"),
    f"{APP}/data/opt/mamba/conda-meta/zlib-1.3-h_0.json": CONDA,
    f"{APP}/data/lib/apk/db/installed": "P:musl\nV:1.2.4-r2\nA:x86_64\n\n",
    ".gitignore": "*.sqsh\nimage.json\n.rc/\n",
}


def git(root: Path, *argv: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*")
    done = subprocess.run(
        ("git", *settings, *argv), cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The checkout, committed and published."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "git")
    with own_storage() as (podman, environment):
        root = write_checkout(tmp_path_factory.mktemp("shared") / "it's: é", FILES)
        (root / "pyproject.toml").write_text(f"[tool.rc_tasks]\nimages_root = {json.dumps(str(root))}\n")
        programs = root / "base/rootfs/bin"
        programs.mkdir()
        shutil.copy(BUSYBOX, programs / "busybox")
        for applet in ("sh", "mkfifo", "mkdir", "echo"):
            (programs / applet).symlink_to("busybox")
        (root / "base/rootfs/var/lib/rpm").mkdir()
        with sqlite3.connect(root / "base/rootfs/var/lib/rpm/rpmdb.sqlite") as connection:
            connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB)")
            connection.execute("INSERT INTO Packages VALUES (1, ?)", (header(NAMED),))
        connection.close()
        git(root, "init", "--quiet")
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "-m", "first")
        home = tmp_path_factory.mktemp("home")
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot", "HOME": str(home)}
        family = Family(root, podman, {**environment, "TZ": "UTC"})
        family.run()
        yield family


@pytest.fixture
def changing(first: Family, tmp_path: Path) -> Family:
    """A copy that a test may change."""
    root = tmp_path / "a copy"
    shutil.copytree(first.root, root, symlinks=True)
    settings = f"[tool.rc_tasks]\nimages_root = {json.dumps(str(root))}\n"
    (root / "pyproject.toml").write_text(settings)
    family = replace(first, root=root)
    family.doit("env:app:1", "env:base")
    return family


def image_id(family: Family, name: str) -> str:
    """The image ID of what is published."""
    told = json.loads((family.directory(name) / "image.json").read_text())
    return str(told["image_id"])


def manifest(family: Family) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(family.doit("manifest", "app:1", "--json"))
    return found


def test_what_is_inside(first: Family) -> None:
    told = manifest(first)
    assert told["image_id"] == image_id(first, "app:1")
    contents = told["contents"]
    shown = {
        f"{each['kind']} {each['name']} {each['version']} {each['place']}"
        for each in contents["packages"]
    }
    assert shown == {
        "dpkg libc6 2.36-9 /",
        "dpkg gcc 12 /",
        "rpm bash 5.2-1.el9 /",
        "apk musl 1.2.4-r2 /",
        f"python numpy 2.0.0 /{SITE}",
        f"python torch 2.6.0+cu126 /{VENV}",
        # What their directories say; their metadata is no file.
        f"python evil 1 /{SITE}",
        f"python fifo 2 /{SITE}",
        "conda zlib 1.3 /opt/mamba",
    }
    assert {each["path"] for each in contents["unread"]} == {
        f"/{SITE}/evil-1.dist-info/METADATA",
        f"/{SITE}/fifo-2.dist-info/METADATA",
    }
    assert contents["distribution"] == {"id": "debian", "version": "12", "title": "Debian 12"}
    assert contents["sizes_bytes"]["/bin"] == BUSYBOX.stat().st_size
    assert told["origin"]["bases"] == {"base": image_id(first, "base")}
    assert told["origin"]["dockerfile"] == FILES[f"{APP}/Dockerfile"]
    assert told["origin"]["commit"] == git(first.root, "rev-parse", "HEAD")
    documented = (Path(__file__).parents[2] / "docs/reference/manifest.md").read_text()
    keys = [
        *told,
        *(f"contents.{key}" for key in contents),
        *(f"origin.{key}" for key in told["origin"]),
    ]
    assert not [
        key for key in keys if f"`{key}`" not in documented and key not in ("contents", "origin")
    ]


def test_a_bill_of_materials(first: Family) -> None:
    text = first.doit("manifest", "--cyclonedx", "app:1")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert "pkg:rpm/debian/bash@5.2-1.el9?arch=noarch&distro=debian-12" in text
    assert first.doit("manifest", "--cyclonedx", f"{APP}/image.sqsh") == text


def test_where_a_file_comes_from(first: Family, tmp_path: Path) -> None:
    alone = tmp_path / "some file.sqsh"
    shutil.copy(first.artifact("app:1"), alone)
    told = json.loads(first.doit("manifest", str(alone), "--json"))
    commit = git(first.root, "rev-parse", "HEAD")
    assert told["image"] == [f"app:1 ({image_id(first, 'app:1')})"]
    assert told["commit"] == [commit]
    assert told["base"] == [f"base ({image_id(first, 'base')})"]
    assert re.fullmatch(r"20\S+ by \S+ on \S+", told["built"][0])
    assert re.fullmatch(r"podman \S+, mksquashfs \S+", told["tools"][0])
    assert told["org.opencontainers.image.title"] == ["app"]
    # As docs/reference/manifest.md says.
    argv = ("unsquashfs", "-cat", str(alone), "etc/rc")
    rc = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert f"# commit: {commit}\n" in rc
    plain = first.doit("manifest", str(alone))
    assert f"commit      {commit}\n" in plain
    assert "its packages: doit manifest app:1\n" in plain
    assert first.doit("diff", "app:1", status=3).startswith("ERROR: no other build of app:1 is kept")


def test_what_a_rebuild_changed(changing: Family) -> None:
    before = image_id(changing, "app:1")
    data = changing.root / APP / "data"
    (data / SITE / "numpy-2.0.0.dist-info").rename(data / SITE / "numpy-2.1.0.dist-info")
    changing.write(
        f"{APP}/data/{SITE}/numpy-2.1.0.dist-info/METADATA", METADATA.format("numpy", "2.1.0")
    )
    changing.write("base/rootfs/var/lib/dpkg/status", STATUS.format("libc6", "2.36-10"))
    changing.write(f"{APP}/project.toml", '[build_args]\nFLAVOUR = "sour"\n')
    changed = FILES[f"{APP}/Dockerfile"].replace("FROM base\n", "FROM base\n# it's \x1b[31mred\n")
    changing.write(f"{APP}/Dockerfile", changed)
    changing.run()
    told = changing.doit("diff", "app:1")
    assert told.startswith(f"app:1: {before[:12]} of 20")
    for line in (
        r"base +base: [0-9a-f]{12} → [0-9a-f]{12}",
        r"build arg +FLAVOUR: sweet → sour",
        r"  \+# it's \\x1b\[31mred",
        r"packages +2 upgraded, 1 removed",
        r"  upgraded +libc6 +2\.36-9 → 2\.36-10",
        r"  removed +gcc +12",
        r"  upgraded +numpy +2\.0\.0 → 2\.1\.0",
    ):
        assert re.search(f"(?m)^{line}$", told), (line, told)
    # The other way round, by image IDs.
    back = changing.doit("diff", "app:1", image_id(changing, "app:1")[:12], before[:12])
    assert "packages    2 downgraded, 1 added\n" in back
    assert "with changes" in changing.doit("diff", "app:1", "--list")


def test_other_recipes_of_one_image(changing: Family) -> None:
    """A comment and another commit are in no image, so that the image ID stays; what is told changes."""
    app_id = image_id(changing, "app:1")
    changing.write("base/Dockerfile", FILES["base/Dockerfile"].replace("\n", "\n# why\n", 1))
    base_id = image_id(changing, "base")
    assert "podman:base" in changing.run()
    assert (image_id(changing, "base"), image_id(changing, "app:1")) == (base_id, app_id)
    told = json.loads(changing.doit("manifest", "base", "--json"))
    assert told["origin"]["dockerfile"].startswith("FROM scratch\n# why\n")
    assert told["origin"]["dirty"] is True
    assert changing.doit("diff", "base", status=3).startswith("ERROR: no other build of base")


def test_damage_is_found_and_mended_as_it_says(changing: Family) -> None:
    changing.doit("verify", "--all")
    artifact, app_id = changing.artifact("app:1"), image_id(changing, "app:1")
    with artifact.open("r+b") as file:
        # Between the blocks that are looked at when nothing else is asked for.
        file.seek(artifact.stat().st_size // 2 - 50_000)
        file.write(os.urandom(100))
    changing.write(f"{APP}/image.json", "{}")
    changing.write(f"{APP}/env.toml", 'image = "/somewhere/else.sqsh"\n')
    image = changing.root / ".rc/store/images" / app_id
    manifest = json.loads((image / "manifest.json").read_text())
    digest = manifest["layers"][-1]["digest"].removeprefix("sha256:")
    with (changing.root / ".rc/store/layers" / digest / "layer.sqsh").open("r+b") as file:
        file.write(b"X")
    told = changing.doit("verify", "--all", status=1)
    assert "base  whole\n" in told
    assert "app:1  damaged\n" in told
    for words in ("image.sqsh has another content", "image.json says", "env.toml names", digest):
        assert words in told
    hints = re.findall(r"(?m)^    next: (.*?)    \(", told)
    assert len(hints) == 4
    for hint in hints:
        command = hint.replace("doit ", f"{shlex.quote(str(DOIT))} ")
        subprocess.run(
            ("bash", "-ec", command),
            cwd=changing.root,
            env={**os.environ, **changing.environment},
            check=True,
            capture_output=True,
        )
    assert "2 images verified, 0 damaged" in changing.doit("verify", "--all")


def test_a_clone_reads_the_official_manifests(first: Family, tmp_path: Path) -> None:
    generated = shutil.ignore_patterns(".rc", "image.sqsh", "image.json")
    clone = replace(first, root=tmp_path / "clone")
    shutil.copytree(first.root, clone.root, ignore=generated, symlinks=True)
    assert "adopted from" in clone.doit("build:app:1")
    theirs, ours = manifest(first), manifest(clone)
    assert ours == theirs
    assert "2 images verified, 0 damaged" in clone.doit("verify", "--all")
    # What a change of one's own changes.
    clone.write(f"{APP}/data/{VENV}/torch-2.6.0.dist-info/METADATA", METADATA.format("torch", "2.7.0"))
    clone.run("build:app:1")
    told = clone.doit("diff", "app:1")
    assert told.startswith(f"app:1: {theirs['image_id'][:12]} of 20")
    assert re.search(r"(?m)^  upgraded +torch +2\.6\.0\+cu126 → 2\.7\.0$", told)
    assert f"in {first.root}" in clone.doit("diff", "app:1", "--list")


def test_an_image_of_before_has_no_manifest(changing: Family) -> None:
    shutil.rmtree(changing.root / ".rc/manifests")
    path = changing.root / ".rc/state/enroot:app:1.json"
    record = json.loads(path.read_text())
    del record["artifact"]["blocks_digest"], record["bases"]
    path.write_text(json.dumps(record))
    # A record without these is as good as one with them.
    assert changing.run() == {}
    assert "no manifest of app:1" in changing.doit("manifest", "app:1", status=3)
    changing.doit("forget", "enroot:app:1")
    changing.run("build:app:1")
    assert manifest(changing)["contents"]["packages"]
    assert manifest(changing)["origin"] is None
