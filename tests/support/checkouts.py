"""Checkouts for tests: written file by file, and made to look built without building."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rc_tasks.engine.session import session
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.edf.values import edf_inputs
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.digests import content_digest, sample_digest, text_digest
from rc_tasks.state.records.records import Artifact, Facts, Record, Step

if TYPE_CHECKING:
    # The benches come without the tests' packages.
    import pytest

SOURCE = Path(__file__).resolve().parents[2]
DODO = SOURCE / "dodo.py"
TEMPLATES = SOURCE / "templates"


def write_checkout(root: Path, files: Mapping[str, str], settings: str = "") -> Path:
    """A checkout with these files; a text `-> target` makes a symlink, `#!` a program."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(DODO, root / "dodo.py")
    shutil.copytree(TEMPLATES, root / "templates", dirs_exist_ok=True)
    (root / "pyproject.toml").write_text(f"[tool.rc_tasks]\n{settings}\n")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
            path.chmod(0o755 if text.startswith("#!") else 0o644)
    return root


def copy_demo(root: Path) -> Path:
    """The demo in a copy of what it needs of this checkout, with what bootstrap.sh adds; not built."""
    shutil.copy(DODO, root)
    for name in ("templates", "examples"):
        shutil.copytree(SOURCE / name, root / name, symlinks=True, ignore=shutil.ignore_patterns(".rc"))
    demo = root / "examples/demo"
    shutil.copy(str(shutil.which("busybox")), demo / "demo_base/busybox")
    return demo


@contextmanager
def entered(
    root: Path, files: Mapping[str, str], built: Iterable[str], monkeypatch: "pytest.MonkeyPatch"
) -> Iterator[Path]:
    """A checkout in which commands run as in a process of their own, with some images built."""
    made = write_checkout(root, files)
    pretend_built(made, built)
    monkeypatch.chdir(made)
    session.cache_clear()
    yield made
    session.cache_clear()


def digest_cache(context: str) -> str:
    """Return where the digests of a build context are cached; both paths are in the checkout."""
    return f".rc/cache/digests/{text_digest(context)[:32]}.json"


def pretend_built(root: Path, names: Iterable[str] | None = None) -> None:
    """Leave the records and files that a real run would leave, without podman."""
    checkout = open_checkout(root, {})
    judge = Judge(checkout)
    for name, node in checkout.graph.images.items():
        if names is not None and name not in set(names):
            continue
        node.project.directory.mkdir(exist_ok=True)
        for values in judge.listings.shared(node.project).values():
            checkout.contexts.put(values)
        image_id = content_digest(str(node.project.dockerfile))
        facts = Facts(image_id, "amd64", 1000, "/workspace", False)
        stored = checkout.store.directory / "images" / image_id / "manifest.json"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.touch()
        checkout.records.put(Step.PODMAN, name, record(judge.build_inputs(node), facts=facts))
        node.project.artifact.write_bytes(b"hsqs" + name.encode() * 100)
        node.project.image_json.write_text("{}\n")
        node.project.edf.write_text('image = "x"\n')
        status = node.project.artifact.stat()
        sample = sample_digest(str(node.project.artifact))
        artifact = Artifact(status.st_size, status.st_mtime_ns, sample)
        checkout.records.put(Step.ENROOT, name, record({"image": image_id}, artifact=artifact))
        inputs = {**edf_inputs(checkout, node, facts), "env.toml": content_digest(str(node.project.edf))}
        checkout.records.put(Step.ENV, name, record(inputs))


def record(
    inputs: Mapping[str, str], *, facts: Facts | None = None, artifact: Artifact | None = None
) -> Record:
    """A record of a step that took ten seconds."""
    return Record(
        inputs,
        "2026-01-02T03:04:05+00:00",
        "2026-01-02T03:04:15+00:00",
        10.0,
        "node1",
        facts=facts,
        artifact=artifact,
    )
