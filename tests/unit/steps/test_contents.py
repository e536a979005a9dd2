"""Looking into a root file system: what is found, and that nothing leads out of it."""

import json
import os
import sqlite3
import struct
import threading
from pathlib import Path

import pytest

from rc_tasks.model.manifest.manifest import Contents, PackageKind
from rc_tasks.steps.publish import contents
from rc_tasks.steps.publish.contents import ContentsWalk
from rc_tasks.steps.publish.image_files import MountedFiles
from tests.unit.model.test_packages import NAMED, header

SITE = "usr/lib/python3/dist-packages"
METADATA = "Name: {}\nVersion: {}\n"
STATUS = "Package: {}\nStatus: install ok installed\nVersion: {}\n"


def look(root: Path) -> Contents:
    seen = ContentsWalk()
    seen.run(MountedFiles(root), threading.Event())
    return seen.contents


def write(root: Path, path: str, text: str | bytes = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def packages(found: Contents) -> set[str]:
    return {f"{each.kind} {each.name} {each.version} {each.place}" for each in found.packages}


def unread(found: Contents) -> dict[str, str]:
    return {each.path: each.why for each in found.unread}


def test_every_kind_of_package(tmp_path: Path) -> None:
    write(tmp_path, "var/lib/dpkg/status", STATUS.format("libc6", "2.36"))
    write(tmp_path, "var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12\n")
    write(tmp_path, "var/lib/dpkg/status.d/base.md5sums", "00  etc/x\n")
    write(tmp_path, "srv/chroot/var/lib/dpkg/status", STATUS.format("inner", "1"))
    write(tmp_path, "lib/apk/db/installed", "P:musl\nV:1.2\n\n")
    write(tmp_path, f"{SITE}/numpy-2.0.dist-info/METADATA", METADATA.format("numpy", "2.0"))
    write(tmp_path, f"{SITE}/old-1.0.egg-info", METADATA.format("old", "1.0"))
    write(tmp_path, f"{SITE}/older-1.0.egg-info/PKG-INFO", METADATA.format("older", "1.0"))
    write(tmp_path, f"{SITE}/egg-1.0-py3.egg/EGG-INFO/PKG-INFO", METADATA.format("egg", "1.0"))
    write(tmp_path, f"{SITE}/~umpy-1.9.dist-info/METADATA", METADATA.format("numpy", "1.9"))
    write(
        tmp_path,
        "opt/a venv é/lib/python3.12/site-packages/x-1.dist-info/METADATA",
        METADATA.format("x", "1"),
    )
    zlib = json.dumps({"name": "zlib", "version": "1.3", "build": "h_0"})
    write(tmp_path, "opt/conda/conda-meta/zlib-1.3-h_0.json", zlib)
    write(tmp_path, "opt/conda/conda-meta/history", "no json")
    write(tmp_path, "opt/conda/envs/e/conda-meta/zlib-1.3-h_0.json", zlib)
    # conda's cache of what it has installed.
    cached = "opt/conda/pkgs/y-1/site-packages/y-1.dist-info/METADATA"
    write(tmp_path, cached, METADATA.format("y", "1"))
    write(tmp_path, "usr/lib/os-release", 'ID=debian\nVERSION_ID="12"\n')
    found = look(tmp_path)
    assert packages(found) == {
        "dpkg libc6 2.36 /",
        "dpkg base-files 12 /",
        "dpkg inner 1 /srv/chroot",
        "apk musl 1.2 /",
        f"python numpy 2.0 /{SITE}",
        f"python old 1.0 /{SITE}",
        f"python older 1.0 /{SITE}",
        f"python egg 1.0 /{SITE}",
        "python x 1 /opt/a venv é/lib/python3.12/site-packages",
        "conda zlib 1.3 /opt/conda",
        "conda zlib 1.3 /opt/conda/envs/e",
    }
    assert found.unread == ()
    assert (found.distribution.id, found.distribution.version) == ("debian", "12")


def test_rpm_databases(tmp_path: Path) -> None:
    def database(path: str, *rows: bytes | None, table: str = "TABLE Packages (hnum, blob)") -> None:
        file = write(tmp_path, path)
        with sqlite3.connect(file) as connection:
            connection.execute(f"CREATE {table}")
            for row in rows:
                connection.execute("INSERT INTO Packages VALUES (1, ?)", (row,))
        connection.close()

    database("var/lib/rpm/rpmdb.sqlite", header(NAMED))
    database("a/usr/lib/sysimage/rpm/rpmdb.sqlite", header(NAMED), b"\xff")
    database("b/var/lib/rpm/rpmdb.sqlite", table="VIEW Packages AS SELECT zeroblob(9) AS blob")
    database("c/var/lib/rpm/rpmdb.sqlite", table="TABLE other (x)")
    database("d/var/lib/rpm/rpmdb.sqlite", None)
    write(tmp_path, "e/var/lib/rpm/rpmdb.sqlite", b"SQLite format 3\0" + b"\xff" * 5000)
    write(tmp_path, "f/var/lib/rpm/Packages", b"bdb")
    write(tmp_path, "g/var/lib/rpm/Packages.db", b"RpmP")
    found = look(tmp_path)
    assert packages(found) == {"rpm bash 5.2-1.el9 /", "rpm bash 5.2-1.el9 /a"}
    told = unread(found)
    assert {path[1] for path in told} == set("abcdefg")
    assert told["/f/var/lib/rpm/Packages"].startswith("rpm packages are not listed")


def test_sizes_by_directory(tmp_path: Path) -> None:
    file = write(tmp_path, "usr/a", b"x" * 1000)
    write(tmp_path, "usr/deep/er/b", b"x" * 200)
    os.link(file, tmp_path / "usr/again")
    write(tmp_path, "top", b"x" * 30)
    write(tmp_path, "dev/left out", b"x" * 4000)
    (tmp_path / "usr/link").symlink_to("a")
    (tmp_path / "empty").mkdir()
    found = look(tmp_path)
    assert found.sizes_bytes == {"/": 30, "/usr": 1200}
    assert found.files == 3


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What no image may show: files of the host."""
    place = tmp_path / "host"
    write(place, "status", STATUS.format("host-package", "1"))
    write(place, "x-1.dist-info/METADATA", METADATA.format("host-x", "1"))
    write(place, "conda-meta/z-1-0.json", json.dumps({"name": "host-z", "version": "1", "build": "0"}))
    write(place, "PKG-INFO", METADATA.format("host-egg", "1"))
    write(place, "os-release", "ID=host\n")
    return place


def test_nothing_is_followed_out_of_the_root(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    for path, target in {
        "var/lib/dpkg/status": outside / "status",
        f"{SITE}/x-1.dist-info": outside / "x-1.dist-info",
        f"{SITE}/y-2.dist-info/METADATA": outside / "x-1.dist-info/METADATA",
        f"{SITE}/e-1-py3.egg/EGG-INFO": outside,
        "opt/conda/conda-meta": outside / "conda-meta",
        "opt/other/conda-meta/z-1-0.json": outside / "conda-meta/z-1-0.json",
        "usr/lib/os-release": outside / "os-release",
        "etc": outside,
        "srv": "/",
        "loop/a": "../loop",
        "loop/self": "self",
        "lib/apk/db": "../../../../..",
    }.items():
        link = root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    found = look(root)
    # The directory alone says so much.
    assert packages(found) == {f"python y 2 /{SITE}"}
    assert found.distribution.id == ""
    assert set(unread(found)) == {
        "/var/lib/dpkg/status",
        f"/{SITE}/y-2.dist-info/METADATA",
        "/opt/other/conda-meta/z-1-0.json",
    }


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    for path in (f"{SITE}/a-1.dist-info/METADATA", "c/conda-meta/x.json", "var/lib/dpkg/status"):
        pipe = tmp_path / path
        pipe.parent.mkdir(parents=True)
        # Opening it for reading would wait for a writer.
        os.mkfifo(pipe)
    directory = tmp_path / f"{SITE}/b-1.dist-info/METADATA"
    directory.mkdir(parents=True)
    found = look(tmp_path)
    assert packages(found) == {f"python a 1 /{SITE}", f"python b 1 /{SITE}"}
    assert len(found.unread) == 4
    assert {each.why for each in found.unread} == {
        "it is not a regular file, and no symlink is followed"
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_device_is_not_opened(tmp_path: Path) -> None:
    place = tmp_path / f"{SITE}/a-1.dist-info"
    place.mkdir(parents=True)
    # /dev/zero, which has no end.
    os.mknod(place / "METADATA", 0o600 | 0o020000, os.makedev(1, 5))
    assert packages(look(tmp_path)) == {f"python a 1 /{SITE}"}


def test_broken_and_huge_books_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_BOOK_BYTES", 1000)
    monkeypatch.setattr(contents, "_CONDA_BYTES", 1000)
    write(tmp_path, "var/lib/dpkg/status", "x" * 2000)
    write(tmp_path, "c/conda-meta/huge.json", "x" * 2000)
    write(tmp_path, "c/conda-meta/broken.json", "{")
    write(tmp_path, "c/conda-meta/deep.json", "[" * 900)
    write(tmp_path, f"{SITE}/good-1.0.dist-info/METADATA", b"\0" * 100)
    write(tmp_path, f"{SITE}/nothing.egg-info/other")
    found = look(tmp_path)
    assert packages(found) == {f"python good 1.0 /{SITE}"}
    assert set(unread(found)) == {
        "/var/lib/dpkg/status",
        *(f"/c/conda-meta/{name}.json" for name in ("huge", "broken", "deep")),
        f"/{SITE}/good-1.0.dist-info/METADATA",
    }


def test_more_packages_than_anybody_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_MOST_PACKAGES", 10)
    write(tmp_path, "var/lib/dpkg/status", "\n".join(STATUS.format(f"p{n}", 1) for n in range(100)))
    found = look(tmp_path)
    assert len(found.packages) == 10
    assert list(unread(found).values()) == ["it has more than 10 packages; the others are left out"]


def test_more_failures_than_anybody_reads(tmp_path: Path) -> None:
    for number in range(150):
        write(tmp_path, f"c/conda-meta/{number}.json")
    found = look(tmp_path)
    assert len(found.unread) == 101
    assert found.unread[-1].why == "50 more could not be read"


def test_odd_names(tmp_path: Path) -> None:
    name = b"line\nbreak \x1b[31m \xff 'quote' %s {0}"
    place = os.path.join(os.fsencode(tmp_path), name, b"q-1.dist-info")
    os.makedirs(place)
    Path(os.fsdecode(place), "METADATA").write_text(METADATA.format("q", "1"))
    found = look(tmp_path)
    assert [each.place for each in found.packages] == ["/" + os.fsdecode(name)]
    assert found.packages[0].kind is PackageKind.PYTHON


def test_a_tree_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    assert list(unread(look(tmp_path)).values()) == ["File name too long"]


def test_it_stops_when_it_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a/b")
    stop = threading.Event()
    stop.set()
    seen = ContentsWalk()
    seen.run(MountedFiles(tmp_path), stop)
    assert seen.contents.files == 0


def test_a_header_in_the_database_may_be_anything(tmp_path: Path) -> None:
    file = write(tmp_path, "var/lib/rpm/rpmdb.sqlite")
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE Packages (hnum, blob)")
        for value in (1, "text", None, struct.pack(">II", 1 << 31, 1 << 31)):
            connection.execute("INSERT INTO Packages VALUES (1, ?)", (value,))
    connection.close()
    assert set(unread(look(tmp_path))) == {"/var/lib/rpm/rpmdb.sqlite"}
