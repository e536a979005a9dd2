"""Compare versions as each package manager orders them."""

import itertools
import re

from rc_tasks.model.manifest.manifest import PackageKind

_PARTS = re.compile(rb"(\D*)(\d*)")
# packaging.python.org, version specifiers (PEP 440), with the alternative spellings that it permits.
_PYTHON = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|alpha|b|beta|c|rc|pre|preview)[-_.]?(?P<pre_number>\d*))?"
    r"(?P<post>-(?P<post_bare>\d+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_number>\d*))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_number>\d*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.ASCII,
)
_PHASES = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}
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

_Key = tuple[object, ...]


def compare(kind: PackageKind, old: str, new: str) -> int:
    """Return a positive number when `new` is newer, a negative one when `old` is, 0 when neither."""
    if old == new:
        return 0
    # int() refuses numbers of more than 4300 digits; no real version is so long.
    if max(len(old), len(new)) > _LONGEST:
        return _system(old, new)
    match kind:
        case PackageKind.PYTHON | PackageKind.CONDA:
            keys = [_python(old), _python(new)]
        case PackageKind.APK:
            keys = [_apk(old), _apk(new)]
        case PackageKind.DPKG | PackageKind.RPM:
            return _system(old, new)
    if keys[0] is None or keys[1] is None:
        return _system(old, new)
    first, second = keys[0], keys[1]
    return (second > first) - (second < first)


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


def _python(version: str) -> _Key | None:
    match = _PYTHON.fullmatch(version.strip().lower())
    if match is None:
        return None
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    post = int(match["post_bare"] or match["post_number"] or 0) if match["post"] else -1
    # 1.0.dev1 comes before 1.0a1, and both before 1.0.
    dev = int(match["dev_number"] or 0) if match["dev"] else None
    phase = _PHASES.get(match["pre"], match["pre"]) if match["pre"] else ""
    before_all = not phase and post < 0 and dev is not None
    pre = ("", 0) if before_all else (phase or "z", int(match["pre_number"] or 0))
    local = tuple(
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split("[-_.]", match["local"] or "")
        if part
    )
    return int(match["epoch"] or 0), release, pre, post, dev is None, dev or 0, local


def _apk(version: str) -> _Key | None:
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
