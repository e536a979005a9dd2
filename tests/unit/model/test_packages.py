"""The books of package managers, read from their bytes, broken ones too."""

import json
import struct

import pytest

from rc_tasks.model.manifest import packages
from rc_tasks.model.manifest.manifest import Distribution, Package, PackageKind


def lines(text: str) -> list[bytes]:
    return text.encode().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(
            "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2.36-9\n"
            "Description: C\n Version: 9\n Package: none\n\n"
            "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
            "Package: half\nStatus: install reinstreq half-configured\nVersion: 2\n",
            [("libc6", "1:2.36-9", "amd64"), ("half", "2", "")],
            id="status",
        ),
        pytest.param("Package: base\nVersion: 1\n", [("base", "1", "")], id="status.d-has-no-status"),
        pytest.param("Package: a\n\nVersion: 1\n\nPackage:\nVersion: 1\n", [], id="halves"),
        pytest.param(f"Package: {'x' * 300}\nVersion: 1\n", [], id="endless-name"),
        pytest.param("\0\xff\n:::\n\n\n", [], id="garbage"),
    ],
)
def test_dpkg(text: str, found: list[tuple[str, str, str]]) -> None:
    told = list(packages.dpkg(lines(text), "/"))
    assert [(each.name, each.version, each.architecture) for each in told] == found
    assert {each.kind for each in told} <= {PackageKind.DPKG}


def test_apk() -> None:
    text = "C:Q1=\nP:musl\nV:1.2.4-r2\nA:x86_64\nF:lib\nR:ld.so\nZ:Q1\n\nP:busybox\nV:1.36\n\n"
    assert list(packages.apk(lines(text), "/srv")) == [
        Package(PackageKind.APK, "musl", "1.2.4-r2", "/srv", "x86_64"),
        Package(PackageKind.APK, "busybox", "1.36", "/srv"),
    ]


def header(values: dict[int, tuple[int, bytes]]) -> bytes:
    """An rpm header of tags, each with its type and its bytes."""
    entries, data = b"", b""
    for tag, (kind, value) in values.items():
        entries += struct.pack(">IIII", tag, kind, len(data), 1)
        data += value
    return struct.pack(">II", len(values), len(data)) + entries + data


NAMED = {1000: (6, b"bash\0"), 1001: (6, b"5.2\0"), 1002: (6, b"1.el9\0"), 1022: (6, b"noarch\0")}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        pytest.param(NAMED, ("bash", "5.2-1.el9", "noarch"), id="plain"),
        pytest.param(
            {1003: (4, b"\0\0\0\2"), **NAMED}, ("bash", "2:5.2-1.el9", "noarch"), id="with-an-epoch"
        ),
        pytest.param({**NAMED, 1000: (6, b"gpg-pubkey\0")}, None, id="a-signing-key"),
    ],
)
def test_rpm(values: dict[int, tuple[int, bytes]], found: tuple[str, str, str] | None) -> None:
    told = packages.rpm(header(values), "/")
    assert (told and (told.name, told.version, told.architecture)) == found


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 64, id="counts-without-end"),
        pytest.param(header(NAMED)[:-9], id="cut"),
        pytest.param(header({**NAMED, 1000: (6, b"no end")}), id="shifted"),
        pytest.param(header({1000: (6, b"no end")}), id="text-without-end"),
        pytest.param(struct.pack(">II4I", 1, 0, 1003, 4, 1 << 31, 1), id="number-far-outside"),
    ],
)
def test_a_broken_rpm_header_is_a_value_error_or_a_package(blob: bytes) -> None:
    try:
        told = packages.rpm(blob, "/")
    except ValueError:
        return
    assert told is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(
            b"Metadata-Version: 2.1\nName: numpy\nVersion: 2.0\n\nVersion: 9\n",
            ("numpy", "2.0"),
            id="plain",
        ),
        pytest.param(b"name:x\r\nVERSION:  1 \r\n\r\nbody", ("x", "1"), id="crlf"),
        pytest.param("Name: é\nVersion: 1\n".encode(), ("é", "1"), id="not-ascii"),
        pytest.param(b"Name: \xff\x1b[31m\nVersion: 1\n", ("\ufffd\x1b[31m", "1"), id="escapes"),
        pytest.param(
            b"Name: " + b" " * 1_000_000 + b"x\nVersion: 1\n", ("x", "1"), id="a-million-blanks"
        ),
    ],
)
def test_python(text: bytes, found: tuple[str, str]) -> None:
    told = packages.python(text, "/p")
    assert (told.name, told.version) == found


@pytest.mark.parametrize("text", [b"", b"\n\nName: a\nVersion: 1\n", b"Name: a\n", b"Name:\nVersion: 1"])
def test_python_without_name_or_version(text: bytes) -> None:
    with pytest.raises(ValueError, match="Name or Version"):
        packages.python(text, "/p")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("numpy-2.1.0.dist-info", ("numpy", "2.1.0")),
        ("old-1.0-py2.7.egg-info", ("old", "1.0")),
        ("old-1.0-py3.11.egg", ("old", "1.0")),
        ("develop.egg-info", None),
        (".dist-info", None),
    ],
)
def test_python_by_the_name_of_its_directory(name: str, found: tuple[str, str] | None) -> None:
    told = packages.python_directory(name, "/p")
    assert (told and (told.name, told.version)) == found


@pytest.mark.parametrize(
    ("channel", "kept"),
    [
        ("https://conda.anaconda.org/conda-forge/linux-64", None),
        ("https://ada:secret@conda.example/main", "https://conda.example/main"),
        ("https://conda.example/t/secret-token/main", "https://conda.example/main"),
        ("conda-forge", None),
    ],
)
def test_conda_keeps_no_password(channel: str, kept: str | None) -> None:
    text = {"name": "zlib", "version": "1.3", "build": "h1_0", "subdir": "linux-64", "channel": channel}
    assert packages.conda(json.dumps(text).encode(), "/opt/conda") == Package(
        PackageKind.CONDA, "zlib", "1.3", "/opt/conda", "linux-64", "h1_0", kept or channel
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"3",
        b'{"name": "x"}',
        b'{"name":"","version":"","build":""}',
        b"[" * 200_000,
        b"\xff",
    ],
)
def test_broken_conda_metadata(text: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        packages.conda(text, "/")


def test_os_release() -> None:
    text = b"NAME=x\nID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian 12 (bookworm)'\n"
    assert packages.os_release(text) == Distribution("debian", "12", "Debian 12 (bookworm)")
    assert packages.os_release(b"") == Distribution()
