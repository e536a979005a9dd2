"""`doit manifest` and `doit diff` on manifests that were left in a checkout, and which ones are kept.

The whole output of each case of `diff` stands in tests/golden/diff/CASE.txt;

    UPDATE_GOLDEN=1 pytest tests/unit/commands/test_diff_command.py

writes them all anew.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from msgspec.structs import replace

from rc_tasks.commands.manifest import provenance
from rc_tasks.model.manifest.diff import PackageChangeKind, package_changes
from rc_tasks.model.manifest.manifest import (
    Contents,
    Distribution,
    Manifest,
    Origin,
    Package,
    PackageKind,
    Unread,
    document,
    parse_manifest,
    parse_origin,
)
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.published import manifests
from rc_tasks.state.records.records import Step
from rc_tasks.views.cyclonedx import bill
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit

GOLDEN = Path(__file__).parents[2] / "golden/diff"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
NAME = "app:1"
SITE = "/usr/lib/python3/dist-packages"


def image_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def dpkg(name: str, version: str, architecture: str = "amd64") -> Package:
    return Package(PackageKind.DPKG, name, version, "/", architecture)


def pip(name: str, version: str, place: str = SITE) -> Package:
    return Package(PackageKind.PYTHON, name, version, place)


ORIGIN = Origin(
    dockerfile="FROM base\nARG CUDA\nRUN make\n",
    build_args={"CUDA": "12.6", "OLD": "1"},
    target="",
    bases={"base": image_id(100), "docker.io/library/debian:12": f"sha256:{image_id(101)}"},
    files={"a file.txt": "0644 1", "gone": "0644 2", "same": "0644 3"},
    built_at="2026-11-20T01:00:00+00:00",
    builder="ada",
    node="nid1",
    commit="c" * 40,
)
OLD = Manifest(
    NAME,
    image_id(1),
    "amd64",
    "2026-11-20T02:00:00+00:00",
    300_000_000,
    900_000_000,
    Contents(
        Distribution("debian", "12", "Debian GNU/Linux 12 (bookworm)"),
        (dpkg("libc6", "2.36-9"), dpkg("gcc-12", "12.2-14"), pip("numpy", "2.0.0"), pip("Foo.Bar", "1")),
        {"/usr": 800_000_000, "/opt": 90_000_000},
        1234,
    ),
    ORIGIN,
)
NEW = replace(
    OLD,
    image_id=image_id(2),
    published_at="2026-11-21T02:00:00+00:00",
    size_bytes=310_000_000,
    image_size_bytes=890_000_000,
    contents=Contents(
        OLD.contents.distribution,
        (
            dpkg("libc6", "2.36-10"),
            dpkg("zlib1g", "1.2"),
            pip("numpy", "1.26.4"),
            pip("foo_bar", "1"),
            pip("x\x1b[31m\udce9", "1\n2", "/opt/a\nb"),
            Package(PackageKind.CONDA, "zlib", "1.3", "/opt/conda", "linux-64", "h1", "conda-forge"),
        ),
        {"/usr": 780_000_000, "/opt": 90_000_000, "/srv": 3},
        1240,
        (Unread("/opt/x\n", "Permission denied"),),
    ),
    origin=replace(
        ORIGIN,
        dockerfile="FROM base\nARG CUDA\n# with a comment\nRUN make \x1b]0;title\x07 %s {0}\n",
        build_args={"CUDA": "12.8", "NEW": "it's"},
        target="runtime",
        bases={"base": image_id(102), "docker.io/library/debian:12": f"sha256:{image_id(101)}"},
        files={"a file.txt": "0755 1", "new é": "0644 4", "same": "0644 3"},
        built_at="2026-11-21T01:00:00+00:00",
        commit="d" * 40,
        dirty=True,
    ),
)
THIRD = replace(NEW, image_id=image_id(3), published_at="2026-11-22T02:00:00+00:00")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TZ", "UTC")
    files = {
        f"projects/{NAME}/Dockerfile": "FROM scratch\n",
        "projects/app:2/Dockerfile": "FROM scratch\n",
    }
    return write_checkout(tmp_path / "a checkout", files)


def keep(root: Path, *found: Manifest, present: Manifest | None = None) -> Checkout:
    """Leave manifests as published images leave them."""
    checkout = open_checkout(root, {})
    for manifest in found:
        manifests.put(checkout, manifest)
        if manifest.origin is not None:
            path = root / f".rc/manifests/{manifest.name}/{manifest.image_id}.origin.json"
            path.write_text(json.dumps(document(manifest.origin)))
    if present is not None:
        told = json.dumps({"image_id": present.image_id})
        (root / f"projects/{present.name}/image.json").write_text(told)
    return checkout


def test_a_manifest_is_read_as_it_was_written(root: Path) -> None:
    checkout = keep(root, NEW, present=NEW)
    (build,) = manifests.builds(checkout, NAME)
    assert build.present
    assert build.manifest == NEW


CASES: dict[str, tuple[tuple[Manifest, ...], Manifest | None, tuple[str, ...]]] = {
    "rebuilt": ((OLD, NEW), NEW, ()),
    "rolled-back": ((OLD, NEW, THIRD), OLD, ()),
    "by-place": ((OLD, NEW, THIRD), THIRD, ("-2",)),
    "by-date": ((OLD, NEW, THIRD), THIRD, ("2026-11-20", "2026-11-21")),
    "by-id": ((OLD, NEW, THIRD), THIRD, (OLD.image_id[:8], f"sha256:{NEW.image_id}")),
    "same-inputs": ((NEW, THIRD), THIRD, ()),
    "itself": ((OLD, NEW), NEW, ("-0",)),
    "without-origin": ((replace(OLD, origin=None), NEW), NEW, ()),
    "one-build": ((NEW,), NEW, ()),
    "not-published": ((), None, ()),
    "older-than-manifests": ((OLD,), NEW, ()),
    "wrong-place": ((OLD, NEW), NEW, ("-7",)),
    "wrong-date": ((OLD, NEW), NEW, ("2026-10",)),
    "wrong-id": ((OLD, NEW), NEW, ("zz'; rm",)),
    "empty-id": ((OLD, NEW), NEW, ("",)),
    "listed": ((OLD, NEW, THIRD), NEW, ("--list",)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_words_of_diff(root: Path, case: str) -> None:
    kept, present, arguments = CASES[case]
    keep(root, *kept, present=present)
    ran = doit(root, "diff", NAME, *arguments)
    text = f"$ doit diff {' '.join((NAME, *arguments))}\n{ran.text}[{ran.status}]\n"
    golden = GOLDEN / f"{case}.txt"
    if UPDATE:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert "Traceback" not in text
    assert text == golden.read_text(), "UPDATE_GOLDEN=1 writes it anew; read the diff"


def test_every_golden_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == set(CASES)


def test_diff_for_programs(root: Path) -> None:
    keep(root, OLD, NEW, present=NEW)
    told = json.loads(doit(root, "diff", "--json", NAME).text)
    assert (told["old"]["image_id"], told["new"]["image_id"]) == (OLD.image_id, NEW.image_id)
    assert told["build_args"]["CUDA"] == {"old": "12.6", "new": "12.8"}
    assert {change["how"] for change in told["packages"]} == {
        "upgraded",
        "downgraded",
        "added",
        "removed",
    }


def test_manifest_for_people(root: Path) -> None:
    keep(root, NEW, present=NEW)
    told = doit(root, "manifest", NAME)
    assert told.status == 0
    assert "\x1b" not in told.text
    assert doit(root, "manifest", f"projects/{NAME}/") == told
    assert re.search(r"(?m)^libc6 +2\.36-10 +dpkg +/$", told.text)
    assert "packages    2 dpkg\n            1 conda in /opt/conda\n" in told.text
    assert f"base        docker.io/library/debian:12 (sha256:{image_id(101)})\n" in told.text
    assert "commit      " + "d" * 40 + " with changes\n" in told.text
    assert "not read    /opt/x\\n: Permission denied\n" in told.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "NAME is missing"),
        (("app",), "app means 2 images"),
        (("nope",), "there is no image named 'nope'"),
        (("app:2",), "app:2 is not published yet"),
        ((NAME, "app:2"), "expected one NAME, not 2: "),
        (("nowhere.sqsh",), "cannot be read: No such file"),
        (("/proc",), "there is no image in this directory"),
        (("projects/app:1/Dockerfile",), "give the path of a whole image.sqsh"),
    ],
)
def test_wrong_arguments(root: Path, arguments: tuple[str, ...], words: str) -> None:
    keep(root, NEW, present=NEW)
    ran = doit(root, "manifest", *arguments)
    assert ran.status == 3
    assert words in ran.text
    assert "Traceback" not in ran.text


def errors_of(text: str) -> object:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_cyclonedx(root: Path) -> None:
    twice = replace(NEW.contents, packages=(*NEW.contents.packages, *NEW.contents.packages))
    keep(root, replace(NEW, contents=twice), present=NEW)
    text = doit(root, "manifest", NAME, "--cyclonedx").text
    assert errors_of(text) is None
    told = json.loads(text)
    assert told["metadata"]["component"]["name"] == "app"
    urls = {each["purl"] for each in told["components"] if "purl" in each}
    assert {
        "pkg:deb/debian/libc6@2.36-10?arch=amd64&distro=debian-12",
        "pkg:pypi/numpy@1.26.4",
        "pkg:pypi/foo-bar@1",
        "pkg:conda/zlib@1.3?build=h1&channel=conda-forge&subdir=linux-64",
    } <= urls
    assert bill(NEW) == bill(NEW)


@pytest.mark.parametrize("kind", PackageKind)
@pytest.mark.parametrize(
    "name", ["a/b?c#d@e", "%s{0}", "\udce9\x00", "/", ".", "<b>&amp;", " ", "é" * 200]
)
def test_any_name_has_its_place_in_cyclonedx(kind: PackageKind, name: str) -> None:
    odd = Package(kind, name, name, f"/{name}", name, name, name)
    contents = Contents(Distribution(name, name, name), (odd, odd), {}, 0)
    text = bill(replace(NEW, contents=contents))
    assert errors_of(text) is None
    assert len(json.loads(text)["components"]) == 3


def changed(old: tuple[Package, ...], new: tuple[Package, ...]) -> list[str]:
    return [f"{change.how} {change.package.name}" for change in package_changes(old, new)]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ((), (), []),
        ((pip("A.b", "1"),), (pip("a-B", "1.0"),), ["rebuilt a-B"]),
        ((pip("a", "1"),), (pip("a", "1"),), []),
        ((pip("A.b", "1"),), (pip("a-B", "1"),), []),
        ((pip("a", "1"),), (pip("a", "1", "/opt"),), ["added a", "removed a"]),
        (
            (dpkg("l", "1"), dpkg("l", "1", "i386")),
            (dpkg("l", "2"), dpkg("l", "1", "i386")),
            ["upgraded l"],
        ),
        ((dpkg("l", "1"),), (dpkg("l", "1", "all"),), ["rebuilt l"]),
        ((dpkg("l", "1"),), (dpkg("l", "1"), dpkg("l", "1", "i386")), ["added l"]),
        ((pip("a", "1"), pip("a", "2")), (pip("a", "2"),), ["removed a"]),
        ((dpkg("a", "1"),), (pip("a", "2"),), ["removed a", "added a"]),
    ],
)
def test_which_packages_changed(
    old: tuple[Package, ...], new: tuple[Package, ...], told: list[str]
) -> None:
    assert sorted(changed(old, new)) == sorted(told)
    assert {PackageChangeKind(each.split()[0]) for each in told} <= set(PackageChangeKind)


def spoiled(change: Callable[[dict[str, object]], object]) -> bytes:
    found = document(replace(NEW, origin=None))
    change(found)
    return json.dumps(found).encode()


DAMAGED: Mapping[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "later": spoiled(lambda found: found.update(schema=2)),
    "sizes": spoiled(lambda found: found.update(size_bytes="1")),
    "negative": spoiled(lambda found: found.update(size_bytes=-1)),
    "contents": spoiled(lambda found: found.pop("contents")),
    "kind": spoiled(lambda found: found.update(contents={"packages": [{"kind": "exe"}]})),
    "name": spoiled(lambda found: found.update(name=["x"])),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_manifest_is_none(case: str) -> None:
    assert parse_manifest(DAMAGED[case]) is None
    assert parse_origin(DAMAGED[case]) is None


@pytest.mark.parametrize("when", ["soon", "", "2026-11-21T02:00:00"])
def test_a_manifest_without_a_time_is_none(when: str) -> None:
    assert parse_manifest(json.dumps({**document(NEW), "published_at": when}).encode()) is None


def test_a_damaged_manifest_is_as_good_as_none(root: Path) -> None:
    keep(root, OLD, NEW, present=NEW)
    (root / f".rc/manifests/{NAME}/{NEW.image_id}.json").write_bytes(DAMAGED["kind"])
    ran = doit(root, "manifest", NAME)
    assert (ran.status, "Traceback" in ran.text) == (3, False)
    assert "no manifest of app:1" in ran.text


def test_the_last_builds_are_kept(root: Path) -> None:
    many = [
        replace(NEW, image_id=image_id(number), published_at=f"2026-01-{number:02}T00:00:00+00:00")
        for number in range(1, 26)
    ]
    checkout = keep(root, *many, present=many[-1])
    kept = manifests.builds(checkout, NAME)
    assert [build.manifest.image_id for build in kept] == [each.image_id for each in many[:4:-1]]
    # A manifest whose time is that of another name stays where it is.
    assert manifests.builds(checkout, "app:2") == ()


def test_a_record_of_before_tells_what_is_published(root: Path) -> None:
    pretend_built(root, [NAME])
    checkout = open_checkout(root, {})
    wanted = hashlib.sha256(b"FROM scratch\n").hexdigest()
    assert manifests.present_id(checkout, NAME) == wanted


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs on PATH")
@pytest.mark.parametrize("name", ["../../..", "gone:1", "app:1"])
def test_a_file_may_call_itself_anything(root: Path, tmp_path: Path, name: str) -> None:
    keep(root, NEW, present=NEW)
    etc = tmp_path / "tree/etc"
    etc.mkdir(parents=True)
    (etc / "rc").write_text(f"# image: {name} ({image_id(7)})\n# x\x1b[31m: \udcff\n", errors="replace")
    path = tmp_path / "a file.sqsh"
    argv = ("mksquashfs", etc.parent, path, "-quiet", "-no-progress")
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    ran = doit(root, "manifest", str(path))
    assert (ran.status, "Traceback" in ran.text, "\x1b" in ran.text) == (0, False, False)
    assert ran.text.startswith(f"image       {name} ({image_id(7)})\n")
    assert "its packages" not in ran.text
    assert "no manifest of this image" in doit(root, "manifest", str(path), "--cyclonedx").text


def test_comments_of_rc() -> None:
    text = (
        "# image: a:1 (x)\n# base: b (y)\n# base: c (z)\n# org.label two words\n\nexec sh\n# no: more\n"
    )
    assert provenance(text) == {
        "image": ["a:1 (x)"],
        "base": ["b (y)", "c (z)"],
        "org.label": ["two words"],
    }


def test_why_shows_the_values_of_build_arguments(root: Path) -> None:
    options = root / f"projects/{NAME}/project.toml"
    options.write_text('[build_args]\nCUDA = "12.6"\n')
    pretend_built(root)
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.PODMAN, NAME)
    assert record is not None
    manifests.put_origin(checkout, checkout.graph.images[NAME], record, "FROM scratch\n")
    options.write_text('[build_args]\nCUDA = "12.8"\n')
    assert "  podman  build argument CUDA changed: 12.6 → 12.8\n" in doit(root, "why", NAME).text
