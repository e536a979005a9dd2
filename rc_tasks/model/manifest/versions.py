"""Which of two versions is the newer one, as the package managers order them."""

import itertools
import re

from rc_tasks.model.manifest.manifest import PackageKind

_PARTS = re.compile(rb"(\D*)(\d*)")
# packaging.python.org, version specifiers (PEP 440), with the spellings that it lets pass.
_PYTHON = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>a|alpha|b|beta|c|rc|pre|preview)[-_.]?(?P<pre_number>\d*))?"
    r"(?P<post>-(?P<post_bare>\d+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_number>\d*))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_number>\d*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.ASCII,
)
_PHASES = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}
# apk-tools, src/version.c: what stands before a release and what after it.
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
    """Above 0 when `new` is the newer version, below 0 when `old` is, 0 when neither."""
    if old == new:
        return 0
    # Python reads no number of more than 4300 digits, and no version has so many.
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
    """Epoch, version and revision by deb-version(7), which rpm's order equals but for oddities."""
    for before, after in zip(_split(old), _split(new), strict=True):
        found = _runs(before, after)
        if found:
            return found
    return 0


def _split(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch, upstream, revision


def _runs(old: str, new: str) -> int:
    """Runs of letters and runs of digits in turn; `~` sorts before the end, letters before the rest."""
    pieces = (_PARTS.findall(text.encode(errors="replace")) for text in (old, new))
    for (old_word, old_number), (new_word, new_number) in itertools.zip_longest(
        *pieces, fillvalue=(b"", b"")
    ):
        for first, second in itertools.zip_longest(old_word, new_word, fillvalue=0):
            difference = _weight(second) - _weight(first)
            if difference:
                return difference
        # Not as integers: a number may have a million digits.
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
    found = _PYTHON.fullmatch(version.strip().lower())
    if found is None:
        return None
    release = [int(part) for part in found["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    post = int(found["post_bare"] or found["post_number"] or 0) if found["post"] else -1
    # 1.0.dev1 comes before 1.0a1, and both before 1.0.
    dev = int(found["dev_number"] or 0) if found["dev"] else None
    phase = _PHASES.get(found["pre"], found["pre"]) if found["pre"] else ""
    before_all = not phase and post < 0 and dev is not None
    pre = ("", 0) if before_all else (phase or "z", int(found["pre_number"] or 0))
    local = tuple(
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split("[-_.]", found["local"] or "")
        if part
    )
    return int(found["epoch"] or 0), release, pre, post, dev is None, dev or 0, local


def _apk(version: str) -> _Key | None:
    found = re.fullmatch(
        r"(\d+(?:\.\d+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*)(?:-r(\d+))?",
        version,
        re.ASCII,
    )
    if found is None:
        return None
    numbers = [int(part) for part in found[1].split(".")]
    phases = [
        (_APK_PHASES[name], int(number or 0)) for name, number in re.findall(r"_([a-z]+)(\d*)", found[3])
    ]
    return numbers, found[2], [*phases, (0, 0)], int(found[4] or 0)
