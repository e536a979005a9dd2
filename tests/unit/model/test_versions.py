"""The order of versions, as each package manager has it."""

import shutil
import subprocess

import pytest

from rc_tasks.model.manifest.manifest import PackageKind
from rc_tasks.model.manifest.versions import compare

# Each the older of its pair.
DPKG = [
    ("1.0", "1.1"),
    ("1.9", "1.10"),
    ("2.36-9+deb12u4", "2.36-9+deb12u10"),
    ("1:1.0", "2:0.1"),
    ("9.0", "1:0.1"),
    ("1.0~rc1", "1.0"),
    ("1.0~~", "1.0~"),
    ("1.0", "1.0a"),
    ("1.0a", "1.0+b"),
    ("1.0-1", "1.0-1.1"),
    ("1.0", "1.0-1"),
    ("1-2-3", "1-3-1"),
]
PYTHON = [
    ("1.0.dev1", "1.0a1"),
    ("1.0a1", "1.0b1"),
    ("1.0b2", "1.0rc1"),
    ("1.0rc1", "1.0"),
    ("1.0", "1.0.post1"),
    ("1.0.post1", "1.0.1"),
    ("1.9", "1.10"),
    ("2.0", "1!0.1"),
    ("1.0", "1.0+cu128"),
    ("1.0+cu126", "1.0+cu128"),
    ("2.6.0a0+ecf3bae40a.nv25.1", "2.6.0"),
    ("2024b", "2025a"),
    ("1.0-alpha.1", "1.0-beta"),
]
APK = [
    ("1.2.4-r2", "1.2.4-r10"),
    ("1.2_rc1-r0", "1.2-r0"),
    ("1.2_alpha", "1.2_beta"),
    ("1.2-r0", "1.2_p1-r0"),
    ("1.2", "1.2a"),
    ("1.2a", "1.2.1"),
]
ODD = [("", "1"), ("x" * 2000, "y" * 2000), ("1" * 9000, "2" * 9000), ("1.0é", "1.1é"), ("\udce9", "é")]


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        *((PackageKind.DPKG, *pair) for pair in DPKG),
        *((PackageKind.PYTHON, *pair) for pair in PYTHON),
        *((PackageKind.APK, *pair) for pair in APK),
        *((kind, *pair) for kind in PackageKind for pair in ODD[1:3]),
    ],
)
def test_the_newer_one(kind: PackageKind, old: str, new: str) -> None:
    assert compare(kind, old, new) > 0
    assert compare(kind, new, old) < 0
    assert compare(kind, new, new) == 0


@pytest.mark.parametrize("kind", PackageKind)
@pytest.mark.parametrize(("old", "new"), ODD)
def test_odd_versions_have_some_order(kind: PackageKind, old: str, new: str) -> None:
    there, back = compare(kind, old, new), compare(kind, new, old)
    assert (there > 0) == (back < 0)


@pytest.mark.parametrize(("old", "new"), [("1.0", "1.0.0"), ("1.0-1", "1.0.post1"), ("v1", "1")])
def test_spellings_of_one_python_version(old: str, new: str) -> None:
    assert compare(PackageKind.PYTHON, old, new) == 0


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg to ask")
@pytest.mark.parametrize(("old", "new"), DPKG)
def test_dpkg_agrees(old: str, new: str) -> None:
    subprocess.run(["dpkg", "--compare-versions", old, "lt", new], check=True)
