"""Parsers for package databases: dpkg, apk, rpm, conda, Python.

The bytes come from an image and may be anything. Parsers skip an impossible value, and raise ValueError
when they can read nothing of a database.
"""

import json
import re
import struct
from collections.abc import Iterable, Iterator

from rc_tasks.model.manifest.manifest import Distribution, Package, PackageKind

# Names and versions of real packages are far shorter.
LONGEST = 256

# dpkg(1): in these states the package is not installed, or only its configuration is.
_ABSENT = frozenset({b"not-installed", b"config-files", b"half-installed"})
_DPKG_KEYS = (b"Package:", b"Version:", b"Architecture:", b"Status:")
_APK_KEYS = (b"P:", b"V:", b"A:")
# rpmtag.h of rpm: numbers of tags and types.
_RPM_NAME, _RPM_VERSION, _RPM_RELEASE, _RPM_EPOCH, _RPM_ARCH = 1000, 1001, 1002, 1003, 1022
_RPM_INT32, _RPM_STRING = 4, 6
# `.*?` before white space would take for ever on a line of a million blanks.
_OS_RELEASE = re.compile(rb"^(ID|VERSION_ID|PRETTY_NAME)=(.*)$", re.MULTILINE)


def dpkg(lines: Iterable[bytes], place: str) -> Iterator[Package]:
    """Yield the packages in dpkg's `status`, or in a file of `status.d` (distroless images)."""
    for paragraph in _paragraphs(lines, _DPKG_KEYS):
        state = paragraph.get(b"Status:", b"").split(b" ")[-1]
        if state not in _ABSENT:
            yield from _package(
                PackageKind.DPKG,
                paragraph,
                b"Package:",
                b"Version:",
                place,
                paragraph.get(b"Architecture:", b""),
            )


def apk(lines: Iterable[bytes], place: str) -> Iterator[Package]:
    """Yield the packages in apk's `installed`."""
    for paragraph in _paragraphs(lines, _APK_KEYS):
        yield from _package(PackageKind.APK, paragraph, b"P:", b"V:", place, paragraph.get(b"A:", b""))


def rpm(header: bytes, place: str) -> Package | None:
    """Return the package in a header of an rpm database; None for a signing key, which rpm keeps there.

    The format is rpm's own (docs/manual/format_header.md): two counts, entries of tag, type, offset and
    count, and the data that they point into. Raise ValueError.
    """
    try:
        count, size_bytes = struct.unpack_from(">II", header)
        start = 8 + 16 * count
        if len(header) < start + size_bytes:
            raise ValueError("it is cut short")
        values = {}
        for number in range(count):
            tag, kind, offset, _ = struct.unpack_from(">IIII", header, 8 + 16 * number)
            if tag in _RPM_TAGS and kind == _RPM_TAGS[tag]:
                values[tag] = _rpm_value(header, start + offset, kind)
    except struct.error as error:
        raise ValueError(str(error)) from None
    name, version, release = (values.get(tag, "") for tag in (_RPM_NAME, _RPM_VERSION, _RPM_RELEASE))
    if name == "gpg-pubkey":
        return None
    epoch = values.get(_RPM_EPOCH, "0")
    full = f"{epoch}:{version}-{release}" if epoch != "0" else f"{version}-{release}"
    if not _sound(name) or not _sound(full):
        raise ValueError("a package has no name or version")
    return Package(PackageKind.RPM, name, full, place, values.get(_RPM_ARCH, "")[:LONGEST])


def python(metadata: bytes, place: str) -> Package:
    """Return the package of a METADATA or PKG-INFO; only the lines above the first empty one count.

    Raise ValueError.
    """
    head = re.split(rb"\r?\n[ \t]*\r?\n", metadata, maxsplit=1)[0]
    headers = {}
    for key in (b"Name", b"Version"):
        match = re.search(rb"(?mi)^%s:(.*)$" % key, head)
        headers[key] = match[1].strip() if match is not None else b""
    package = next(_package(PackageKind.PYTHON, headers, b"Name", b"Version", place), None)
    if package is None:
        raise ValueError("it has no Name or Version")
    return package


def python_directory(name: str, place: str) -> Package | None:
    """Return the package from the name of its directory: `numpy-2.1.0.dist-info`."""
    stem = name.removesuffix(".dist-info").removesuffix(".egg-info").removesuffix(".egg")
    distribution, _, rest = stem.partition("-")
    version = re.sub(r"-py\d.*", "", rest)
    headers = {b"Name": _bytes(distribution), b"Version": _bytes(version)}
    return next(_package(PackageKind.PYTHON, headers, b"Name", b"Version", place), None)


def conda(text: bytes, place: str) -> Package:
    """Return the package of a file in `conda-meta`. Raise ValueError."""
    try:
        record = json.loads(text)
        name, version, build = (str(record[key]) for key in ("name", "version", "build"))
        subdir, channel = str(record.get("subdir") or ""), str(record.get("channel") or "")
    except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"it does not tell a package ({type(error).__name__})") from None
    if not _sound(name) or not _sound(version):
        raise ValueError("it has no name or version")
    # Addresses of private channels may hold passwords or tokens.
    channel = re.sub(r"//[^/@]*@|/t/[^/]*(?=/)", lambda part: "//" if part[0][1] == "/" else "", channel)
    return Package(
        PackageKind.CONDA, name, version, place, subdir[:LONGEST], build[:LONGEST], channel[:LONGEST]
    )


def os_release(text: bytes) -> Distribution:
    """Parse an os-release."""
    variables = {
        key: _decoded(value.strip().strip(b"\"'"))[:LONGEST] for key, value in _OS_RELEASE.findall(text)
    }
    return Distribution(
        variables.get(b"ID", ""), variables.get(b"VERSION_ID", ""), variables.get(b"PRETTY_NAME", "")
    )


_RPM_TAGS = {
    _RPM_NAME: _RPM_STRING,
    _RPM_VERSION: _RPM_STRING,
    _RPM_RELEASE: _RPM_STRING,
    _RPM_ARCH: _RPM_STRING,
    _RPM_EPOCH: _RPM_INT32,
}


def _rpm_value(header: bytes, at: int, kind: int) -> str:
    if kind == _RPM_INT32:
        return str(struct.unpack_from(">I", header, at)[0])
    end = header.find(b"\0", at, at + LONGEST + 1)
    return _decoded(header[at:end]) if end >= 0 else ""


def _paragraphs(lines: Iterable[bytes], keys: tuple[bytes, ...]) -> Iterator[dict[bytes, bytes]]:
    """Yield the values of `keys` in each paragraph of `key: value` lines."""
    paragraph: dict[bytes, bytes] = {}
    for line in lines:
        if line.startswith(keys):
            key, _, value = line.partition(b":")
            paragraph[key + b":"] = value.strip()
        elif not line.strip():
            if paragraph:
                yield paragraph
            paragraph = {}
    if paragraph:
        yield paragraph


def _package(
    kind: PackageKind,
    paragraph: dict[bytes, bytes],
    name_key: bytes,
    version_key: bytes,
    place: str,
    architecture: bytes = b"",
) -> Iterator[Package]:
    name, version = _decoded(paragraph.get(name_key, b"")), _decoded(paragraph.get(version_key, b""))
    if _sound(name) and _sound(version):
        yield Package(kind, name, version, place, _decoded(architecture)[:LONGEST])


def _sound(text: str) -> bool:
    return 0 < len(text) <= LONGEST


def _decoded(value: bytes) -> str:
    return value.decode(errors="replace")


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
