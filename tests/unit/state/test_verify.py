"""`doit verify`: what of a published image is damaged, in checkouts that look built."""

import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk.locks import held
from rc_tasks.state.published.verify import Verdict, Verification, verifiable
from rc_tasks.state.records.records import Step
from rc_tasks.state.store import block_digest
from rc_tasks.state.store.block_digest import blocks_digest
from rc_tasks.state.store.layer_files import LayerRecord
from rc_tasks.util.json_decode import encode
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import DOIT, doit

FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "projects/app:1/Dockerfile": "FROM base\n",
    "projects/new:1/Dockerfile": "FROM base\nRUN true\n",
}
_PATIENCE_S = 60.0


def put_blob(root: Path, text: bytes) -> str:
    digest = hashlib.sha256(text).hexdigest()
    path = root / ".rc/store/blobs/sha256" / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two published images, whole, and one that was never built."""
    root = write_checkout(tmp_path / "it's a checkout", FILES)
    pretend_built(root, ["base"])
    pretend_built(root, ["app:1"])
    checkout = open_checkout(root, {})
    for name in ("base", "app:1"):
        project = checkout.graph.images[name].project
        record = checkout.records.get(Step.ENROOT, name)
        assert record is not None
        assert record.artifact is not None
        image_id = record.inputs["image"]
        artifact = replace(record.artifact, blocks_digest=blocks_digest(str(project.artifact)))
        checkout.records.put(Step.ENROOT, name, replace(record, artifact=artifact))
        told = {
            "name": name,
            "image_id": image_id,
            "size_bytes": artifact.size_bytes,
            "sample": artifact.sample,
            "blocks_digest": artifact.blocks_digest,
        }
        project.image_json.write_text(json.dumps(told))
        project.edf.write_text(f'image = "{project.artifact}"\n')
        layers = [put_blob(root, b"shared layer"), put_blob(root, f"layer of {name}".encode())]
        manifest = {
            "config": {"digest": f"sha256:{layers[1]}", "size": 10},
            "layers": [{"digest": f"sha256:{layers[0]}", "size": 12}],
        }
        stored = checkout.store.image(image_id) / "manifest.json"
        stored.write_text(json.dumps(manifest))
    return root


def verdicts(root: Path) -> dict[str, Verdict]:
    checkout = open_checkout(root, {})
    verification = Verification(checkout, lambda _bytes: None, 2)
    return {name: verification.verify(name).verdict for name in checkout.graph.images}


def test_whole_images(root: Path) -> None:
    ran = doit(root, "verify", "--all")
    assert ran.status == 0
    assert "app:1  whole\n" in ran.text
    assert "2 images verified, 0 damaged" in ran.text
    assert verdicts(root) == {
        "app:1": Verdict.WHOLE,
        "base": Verdict.WHOLE,
        "new:1": Verdict.UNPUBLISHED,
    }


def squash_layer(root: Path, blob: bytes, text: bytes, recipe: bytes = b"") -> Path:
    """Let a layer have been squashed."""
    file = open_checkout(root, {}).store.layer(hashlib.sha256(blob).hexdigest()).file
    file.parent.mkdir(parents=True)
    file.write_bytes(text)
    record = LayerRecord(len(text), blocks_digest(str(file)), "4.5.1")
    if recipe:
        file.with_name("tar-split.gz").write_bytes(recipe)
        digest = hashlib.sha256(recipe).hexdigest()
        record = replace(record, archive_bytes=len(blob), recipe_sha256=digest)
    file.with_name("layer.json").write_text(encode(record))
    return file


def test_a_squashed_layer_with_other_content(root: Path) -> None:
    file = squash_layer(root, b"shared layer", b"squashed")
    assert doit(root, "verify", "--all").status == 0
    file.write_bytes(b"Squashed")
    ran = doit(root, "verify", "app:1")
    assert ran.status == 1
    assert f"{file.relative_to(root.resolve())} has other content, with the digest " in ran.text
    assert f"rm -r {shlex.quote(str(file.parent))} " in ran.text and "doit build:app:1 " in ran.text


def test_a_layer_that_is_squashed_alone_needs_no_blob(root: Path) -> None:
    file = squash_layer(root, b"shared layer", b"squashed", recipe=b"recipe")
    (root / SHARED).unlink()
    assert doit(root, "verify", "--all").status == 0
    file.with_name("tar-split.gz").write_bytes(b"Recipe")
    ran = doit(root, "verify", "app:1")
    assert (ran.status, ran.text.count(" tar-split.gz beside it has other content")) == (1, 1)
    shutil.rmtree(file.parent)
    ran = doit(root, "verify", "app:1")
    assert ran.status == 1 and f"{SHARED} is missing" in ran.text


@pytest.mark.parametrize("text", ["", "{", '{"size_bytes": "x"}', None])
def test_a_squashed_layer_without_its_record(root: Path, text: str | None) -> None:
    file = squash_layer(root, b"shared layer", b"squashed")
    record = file.with_name("layer.json")
    record.unlink()
    if text is not None:
        record.write_text(text)
    ran = doit(root, "verify", "app:1")
    assert ran.status == 1
    assert "has no record beside it that can be read" in ran.text
    assert shlex.quote(str(file.parent)) in ran.text


@pytest.mark.parametrize(
    "command", ["verify", "diff", "diff --list", "rollback", "rollback --list", "manifest"]
)
def test_an_image_that_is_not_published_yet(root: Path, command: str) -> None:
    verb, *options = command.split()
    ran = doit(root, verb, "new:1", *options)
    assert (ran.status, ran.text) == (
        3,
        "ERROR: new:1 is not published yet\n  next: doit build:new:1\n",
    )


def test_the_other_images_are_verified(root: Path) -> None:
    ran = doit(root, "verify", "new:1", "app:1")
    assert ran.status == 3
    assert "ERROR: new:1 is not published yet\n" in ran.text
    assert "app:1  whole\n1 image verified, 0 damaged" in ran.text
    documents = doit(root, "verify", "new:1", "--json")
    assert documents.status == 3
    assert [document["verdict"] for document in json.loads(documents.text)] == ["unpublished"]


def overwrite(path: str, text: bytes, at: int = 0) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        with (root / path).open("r+b") as file:
            file.seek(at)
            file.write(text)

    return change


def edited(path: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


def forget_digest(root: Path) -> None:
    """As a version that kept none has published it."""
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.ENROOT, "app:1")
    assert record is not None
    assert record.artifact is not None
    artifact = replace(record.artifact, blocks_digest="")
    checkout.records.put(Step.ENROOT, "app:1", replace(record, artifact=artifact))


def both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [change(root) for change in changes]


P = "projects/app:1"
SHARED = f".rc/store/blobs/sha256/{hashlib.sha256(b'shared layer').hexdigest()}"
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "changed": (
        overwrite(f"{P}/image.sqsh", b"X", 200),
        "image.sqsh has another content",
        "squashed again",
    ),
    "longer": (overwrite(f"{P}/image.sqsh", b"X", 9999), "image.sqsh has 10000 bytes, and", "squashed"),
    "missing": (
        lambda root: (root / f"{P}/image.sqsh").unlink(),
        "image.sqsh is missing",
        "squashed again",
    ),
    "directory": (
        lambda root: [(root / f"{P}/image.sqsh").unlink(), (root / f"{P}/image.sqsh").mkdir()],
        "image.sqsh has",
        "squashed again",
    ),
    "without-digest": (
        both(forget_digest, overwrite(f"{P}/image.sqsh", b"X", 200)),
        "image.sqsh has another content",
        "squashed again",
    ),
    "json-differs": (
        edited(f"{P}/image.json", '"size_bytes": ', '"size_bytes": 1'),
        "image.json says something else than the record: size_bytes",
        "written again",
    ),
    "json-broken": (
        edited(f"{P}/image.json", "{", "["),
        "image.json is no JSON object",
        "written again",
    ),
    "json-list": (
        lambda root: (root / f"{P}/image.json").write_text("[]"),
        "is no JSON object",
        "image.json' && doit build:app:1 ",
    ),
    "json-missing": (
        lambda root: (root / f"{P}/image.json").unlink(),
        "image.json is missing",
        "doit build:app:1    (it is written again)",
    ),
    "edf-elsewhere": (
        edited(f"{P}/env.toml", "image.sqsh", "other.sqsh"),
        "env.toml names ",
        "doit env:app:1",
    ),
    "edf-broken": (edited(f"{P}/env.toml", "=", "= ="), "env.toml is no TOML", "correct it"),
    "edf-bytes": (
        lambda root: (root / f"{P}/env.toml").write_bytes(b"\xff"),
        "is no TOML",
        "correct it",
    ),
    "edf-missing": (lambda root: (root / f"{P}/env.toml").unlink(), "env.toml is missing", "doit env:"),
    "blob": (overwrite(SHARED, b"X"), f"{SHARED} has other content", f"{SHARED}' "),
    "blob-missing": (lambda root: (root / SHARED).unlink(), f"{SHARED} is missing", "rm -r "),
    "image-missing": (
        lambda root: shutil.rmtree(root / ".rc/store/images"),
        "is no longer in the store",
        "made again",
    ),
    "image-planted": (
        lambda root: [
            edited(str(path.relative_to(root)), "sha256:", "../../../")(root)
            for path in root.glob(".rc/store/images/*/manifest.json")
        ],
        "cannot be read as an image",
        "rm -r ",
    ),
    "image-broken": (
        lambda root: [
            path.write_text('{"config": 3}') for path in root.glob(".rc/store/images/*/manifest.json")
        ],
        "cannot be read as an image",
        "rm -r ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(root: Path, case: str) -> None:
    change, words, hint = DAMAGE[case]
    change(root)
    found = Verification(open_checkout(root, {}), lambda _bytes: None, 2).verify("app:1")
    assert found.verdict is Verdict.DAMAGED
    (damage,) = [each for each in found.damages if words in f"{each.where} {each.what}"][:1]
    assert hint in damage.hint
    assert bool(found.notes) == (case == "without-digest")


def test_the_words_of_damage(root: Path) -> None:
    DAMAGE["blob"][0](root)
    DAMAGE["changed"][0](root)
    ran = doit(root, "verify", "app:1")
    assert ran.status == 1
    ids = [path.name for path in sorted((root / ".rc/store/images").iterdir())]
    assert "Traceback" not in ran.text
    assert (
        "app:1  damaged\n  projects/app:1/image.sqsh has another content than when published" in ran.text
    )
    path = shlex.quote(str((root / P / "image.sqsh").resolve()))
    assert f"    next: rm {path} && doit build:app:1    (it is squashed again)" in ran.text
    # One line for the blob, and what was made with it goes too.
    assert ran.text.count(SHARED) == 2
    assert all(image_id in ran.text for image_id in ids)
    assert "1 image verified, 1 damaged" in ran.text


@pytest.mark.parametrize("case", DAMAGE)
def test_the_command_of_a_hint_works_in_a_subfolder(root: Path, tmp_path: Path, case: str) -> None:
    DAMAGE[case][0](root)
    found = Verification(open_checkout(root, {}), lambda _bytes: None, 2).verify("app:1")
    for damage in found.damages:
        wanted = damage.hint.partition("    (")[0]
        if not wanted.startswith("correct it"):
            done = tmp_path / "done"
            doit_alone = f'doit() {{ echo "$@" > {shlex.quote(str(done))}; }}'
            subprocess.run(["sh", "-c", f"{doit_alone}\n{wanted}"], cwd=root / P, check=True)
            assert done.read_text() in {"build:app:1\n", "env:app:1\n"}
            assert wanted.startswith("doit") or not os.path.lexists(root / damage.where)


@pytest.fixture
def put_back(root: Path) -> Path:
    """The checkout, with an older image of app:1 put back in place of one that is in the store too."""
    checkout = open_checkout(root, {})
    published = checkout.records.get(Step.ENROOT, "app:1")
    built = checkout.records.get(Step.PODMAN, "app:1")
    assert published is not None and built is not None and built.facts is not None
    newest = "e" * 64
    facts = replace(built.facts, image_id=newest)
    checkout.records.put(Step.PODMAN, "app:1", replace(built, facts=facts))
    shutil.copytree(checkout.store.image(built.facts.image_id), checkout.store.image(newest))
    checkout.records.put(Step.ENROOT, "app:1", replace(published, instead_of=newest))
    return root


def test_an_image_that_was_put_back_is_not_mended_by_a_build(put_back: Path) -> None:
    DAMAGE["changed"][0](put_back)
    found = Verification(open_checkout(put_back, {}), lambda _bytes: None, 2).verify("app:1")
    (damage,) = found.damages
    assert damage.hint.startswith("doit rollback app:1 --list    (another one can be put back;")
    assert damage.hint.endswith(" && doit build:app:1` would publish the newest)")


def test_layers_that_only_an_image_that_was_put_back_has_are_no_damage(put_back: Path) -> None:
    own = hashlib.sha256(b"layer of app:1").hexdigest()
    (put_back / f".rc/store/blobs/sha256/{own}").unlink()
    ran = doit(put_back, "verify", "app:1")
    assert (ran.status, ran.text.splitlines()[0]) == (0, "app:1  whole")
    assert f"note: .rc/store/blobs/sha256/{own} is missing; it is a part of" in ran.text
    assert "needed only by the image of a rollback, which nothing is built on" in ran.text
    # What its base has too, something is built on.
    (put_back / SHARED).unlink()
    ran = doit(put_back, "verify", "app:1")
    assert (ran.status, ran.text.splitlines()[0]) == (1, "app:1  damaged")


def test_published_before_there_was_a_digest(root: Path) -> None:
    forget_digest(root)
    edited(f"{P}/image.json", '"blocks_digest"', '"unknown"')(root)
    ran = doit(root, "verify", "app:1")
    assert ran.status == 0
    assert "note: published before digests of the whole file were kept" in ran.text


def test_a_build_at_work_is_no_damage(root: Path) -> None:
    DAMAGE["changed"][0](root)
    checkout = open_checkout(root, {})
    with held(checkout.lock("app:1"), "enroot:app:1"):
        assert verdicts(root)["app:1"] is Verdict.BUILDING
    assert verdicts(root)["app:1"] is Verdict.DAMAGED


def test_which_images_all_means(root: Path) -> None:
    assert sorted(verifiable(open_checkout(root, {}))) == ["app:1", "base"]


def test_a_published_image_with_a_mistake_in_its_project_is_named(root: Path) -> None:
    (root / "projects/app:1/project.toml").write_text("shiny = 1\n")
    ran = doit(root, "verify", "--all")
    assert ran.status == 1
    assert "warning: app:1 is not verified: projects/app:1/project.toml:1: shiny" in ran.text
    assert re.search(r"^base +whole$", ran.text, re.MULTILINE)


@pytest.mark.parametrize("arguments", [(), ("--all", "base"), ("nope",)])
def test_wrong_arguments(root: Path, arguments: tuple[str, ...]) -> None:
    ran = doit(root, "verify", *arguments)
    assert ran.status == 3
    assert "next: " in ran.text


def by_hand(text: bytes, block_bytes: int) -> str:
    pieces = [text[at : at + block_bytes] for at in range(0, len(text), block_bytes)]
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, 4097, 3 * 4096 + 5, 2_500_000])
def test_the_digest_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr(block_digest, "BLOCK_BYTES", 4096 if size_bytes < 100_000 else 2 << 20)
    path = tmp_path / "file"
    text = os.urandom(size_bytes)
    path.write_bytes(text)
    read: list[int] = []
    assert blocks_digest(str(path), read.append) == by_hand(text, block_digest.BLOCK_BYTES)
    assert sum(read) == size_bytes


@pytest.mark.skipif(shutil.which("split") is None, reason="no coreutils")
def test_the_documented_shell_command(tmp_path: Path) -> None:
    path = tmp_path / "image.sqsh"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 5)
        file.write(b"start")
    document = (Path(__file__).parents[3] / "docs/reference/image-json.md").read_text()
    (command,) = [line.strip() for line in document.splitlines() if line.startswith("    split ")]
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == blocks_digest(str(path))


def test_it_is_interrupted_at_a_terminal(root: Path) -> None:
    """With a bar, in the middle of a file that takes long: a sparse one."""
    path = root / f"{P}/image.sqsh"
    with path.open("r+b") as file:
        file.truncate(200 << 30)
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.ENROOT, "app:1")
    assert record is not None
    assert record.artifact is not None
    artifact = replace(record.artifact, size_bytes=200 << 30)
    checkout.records.put(Step.ENROOT, "app:1", replace(record, artifact=artifact))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [DOIT, "verify", "--all"],
        cwd=root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        # A shell lets what it starts in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        os.close(theirs)
        text = ""
        deadline_s = time.monotonic() + _PATIENCE_S
        while "GB/s" not in text and "MB/s" not in text and time.monotonic() < deadline_s:
            text += os.read(ours, 4096).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        while True:
            try:
                text += os.read(ours, 4096).decode(errors="replace")
            except OSError:
                break
        assert process.wait(_PATIENCE_S) == 130, text
    os.close(ours)
    assert "Traceback" not in text
    assert "interrupted: 1 of 2 images were verified" in text
