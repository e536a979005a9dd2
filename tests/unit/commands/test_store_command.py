"""`doit store`: what is there, what it adds, and what refers to it."""

import hashlib
import json
from pathlib import Path

from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.records.digests import content_digest
from rc_tasks.state.store.catalogue import Cached, Pulled
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit


def put(checkout: Checkout, image_id: str, layers: dict[str, int]) -> None:
    """An image in the store, with nothing in its layers."""
    layers = {hashlib.sha256(name.encode()).hexdigest(): size for name, size in layers.items()}
    store = checkout.store.directory
    (store / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    view = store / "images" / image_id
    view.mkdir(parents=True, exist_ok=True)
    parts = [{"digest": f"sha256:{name}", "size": size} for name, size in layers.items()]
    manifest = {"config": {"digest": f"sha256:{image_id}", "size": 100}, "layers": parts}
    (view / "manifest.json").write_text(json.dumps(manifest))
    for name, size in {**layers, image_id: 100}.items():
        (store / "blobs/sha256" / name).write_bytes(bytes(size))


def checkout(tmp_path: Path) -> Checkout:
    """A base of a registry, an image on it with its cache, and something that nothing refers to."""
    root = write_checkout(tmp_path / "imgs", {"projects/app:1/Dockerfile": "FROM debian\n"})
    pretend_built(root)
    opened = open_checkout(root, {})
    put(opened, "d" * 64, {"one": 1000})
    put(opened, content_digest(str(root / "projects/app:1/Dockerfile")), {"one": 1000, "two": 200})
    put(opened, "c" * 64, {"one": 1000, "two": 200})
    put(opened, "e" * 64, {"one": 1000, "three": 30})
    catalogue = opened.store.catalogue
    catalogue.put_base(Pulled("debian", "sha256:1", "d" * 64, "", ""), "x86_64")
    catalogue.put_cache("app:1", (Cached("c" * 64, ""), Cached("f" * 64, "")))
    return opened


def test_each_image_with_what_it_adds_and_what_refers_to_it(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    ran = doit(opened.root, "store", "--json")
    assert ran.status == 0, ran.text
    found = json.loads(ran.text)
    assert found["size_bytes"] == 1000 + 200 + 30 + 4 * 100
    app = content_digest(str(opened.root / "projects/app:1/Dockerfile"))
    assert {image["image_id"]: image for image in found["images"]} == {
        app: entry(app, 300, 1300, "image app:1"),
        "d" * 64: entry("d" * 64, 100, 1100, "registry base debian"),
        "c" * 64: entry("c" * 64, 100, 1300, "cache of app:1"),
        "e" * 64: entry("e" * 64, 130, 1130),
    }
    assert found["images"][0]["image_id"] == app, "those that add most come first"


def entry(image_id: str, alone: int, size: int, *referred_by: str) -> dict[str, object]:
    return {
        "image_id": image_id,
        "alone_bytes": alone,
        "size_bytes": size,
        "referred_by": list(referred_by),
    }


def test_the_table_is_for_people(tmp_path: Path) -> None:
    opened = checkout(tmp_path)
    ran = doit(opened.root, "store")
    assert ran.status == 0, ran.text
    lines = ran.text.splitlines()
    assert lines[0].split() == ["IMAGE", "ALONE", "TOTAL", "REFERRED", "TO", "BY"]
    assert any(line.startswith("e" * 12 + "  ") and line.endswith("nothing") for line in lines)
    assert lines[-1] == "2 kB on disk in .rc/store"


def test_without_a_store_there_is_nothing_to_show(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", {"projects/app:1/Dockerfile": "FROM debian\n"})
    ran = doit(root, "store", "--json")
    assert (ran.status, json.loads(ran.text)) == (0, {"images": [], "size_bytes": 0})
    damaged = root / ".rc/store/images" / ("a" * 64)
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{")
    assert doit(root, "store").status == 0
