"""Compare versions as each package manager orders them."""

import itertools
import re
from typing import Any

from rc_tasks.model.manifest.manifest import PackageKind

_PARTS = re.compile(rb"(\D*)(\d*)")
# apk-tools, src/version.c: suffixes that sort before a release (negative) and after it (positive).
_APK_PHASES = {
    "alpha": -4,
    "beta": -3,
    "pre": -2,
    "rc": -1,
    "cvs": 1,
    "svn": 2,
    "git": 3,
    "hg": 4,
    "p": 5,
}

_LONGEST = 1000


def compare(kind: PackageKind, old: str, new: str) -> int:
    """Return a positive number when `new` is newer, a negative one when `old` is, 0 when neither."""
    if old == new:
        return 0
    # int() refuses numbers of more than 4300 digits; no real version is so long.
    if max(len(old), len(new)) > _LONGEST:
        return _system(old, new)
    match kind:
        case PackageKind.PYTHON | PackageKind.CONDA:
            first, second = _python(old), _python(new)
        case PackageKind.APK:
            first, second = _apk(old), _apk(new)
        case PackageKind.DPKG | PackageKind.RPM:
            return _system(old, new)
    if first is None or second is None:
        return _system(old, new)
    return int(second > first) - int(second < first)


def _system(old: str, new: str) -> int:
    """Compare epoch, version and revision by deb-version(7); rpm's order differs only in rare cases."""
    for before, after in zip(_split(old), _split(new), strict=True):
        order = _runs(before, after)
        if order:
            return order
    return 0


def _split(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch, upstream, revision


def _runs(old: str, new: str) -> int:
    """Compare runs of non-digits and digits: `~` sorts before the end, letters before the rest."""
    pieces = (_PARTS.findall(text.encode(errors="replace")) for text in (old, new))
    for (old_word, old_number), (new_word, new_number) in itertools.zip_longest(
        *pieces, fillvalue=(b"", b"")
    ):
        for first, second in itertools.zip_longest(old_word, new_word, fillvalue=0):
            difference = _weight(second) - _weight(first)
            if difference:
                return difference
        # int() would fail on a number of a million digits.
        first_digits, second_digits = old_number.lstrip(b"0"), new_number.lstrip(b"0")
        if len(first_digits) != len(second_digits):
            return len(second_digits) - len(first_digits)
        if first_digits != second_digits:
            return 1 if second_digits > first_digits else -1
    return 0


def _weight(character: int) -> int:
    if character == ord("~"):
        return -1
    return character if character == 0 or chr(character).isalpha() else character + 256


def _python(version: str) -> Any:
    """Return a version to compare by PEP 440, or None for any other text."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version)
    except InvalidVersion:
        return None


def _apk(version: str) -> Any:
    match = re.fullmatch(
        r"(\d+(?:\.\d+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*)(?:-r(\d+))?",
        version,
        re.ASCII,
    )
    if match is None:
        return None
    numbers = [int(part) for part in match[1].split(".")]
    phases = [
        (_APK_PHASES[name], int(number or 0)) for name, number in re.findall(r"_([a-z]+)(\d*)", match[3])
    ]
    return numbers, match[2], [*phases, (0, 0)], int(match[4] or 0)
