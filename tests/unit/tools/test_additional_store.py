"""The additional image store that podman reads; tests/integration/test_mounted_images.py uses it."""

import hashlib
import json
from pathlib import Path

from rc_tasks.tools import additional_store
from rc_tasks.tools.additional_store import ArchiveRecipe, StoredImage

LOW, HIGH, OTHER = (f"sha256:{digit * 64}" for digit in "123")


def image(name: str, *diff_ids: str) -> StoredImage:
    config = json.dumps({"name": name}).encode()
    return StoredImage(hashlib.sha256(config).hexdigest(), config, b'{"manifest": 1}', diff_ids)


def test_a_layer_is_named_by_all_below_it() -> None:
    low, high = additional_store.layer_ids((LOW, HIGH))
    assert low == "1" * 64
    assert high == hashlib.sha256(f"{'1' * 64}+{'2' * 64}".encode()).hexdigest()
    assert additional_store.layer_ids((OTHER, HIGH))[1] != high


def test_images_share_their_layers(tmp_path: Path) -> None:
    additional_store.create(tmp_path)
    first, second = image("first", LOW, HIGH), image("second", LOW, HIGH, OTHER)
    assert first.id not in additional_store.image_ids(tmp_path)
    for added in (first, second):
        additional_store.add_image(tmp_path, added, {HIGH: ArchiveRecipe(tmp_path / "recipe", 7)})
        assert added.id in additional_store.image_ids(tmp_path)
    layers = json.loads((tmp_path / "overlay-layers/layers.json").read_text())
    ids = additional_store.layer_ids((LOW, HIGH, OTHER))
    assert [(layer["id"], layer.get("parent")) for layer in layers] == [
        (ids[0], None),
        (ids[1], ids[0]),
        (ids[2], ids[1]),
    ]
    assert [layer.get("diff-size") for layer in layers] == [None, 7, None]
    (recipe,) = tmp_path.glob("overlay-layers/*.tar-split.gz")
    assert (recipe.name, recipe.readlink()) == (f"{ids[1]}.tar-split.gz", tmp_path / "recipe")
    lower = (tmp_path / "overlay" / ids[2] / "lower").read_text().split(":")
    # The nearest first, as overlayfs wants them, each by a short name that leads to its files.
    assert [(tmp_path / "overlay" / name).readlink() for name in lower] == [
        Path(f"../{ids[1]}/diff"),
        Path(f"../{ids[0]}/diff"),
    ]
    assert additional_store.known_layers(tmp_path, (LOW, OTHER)) == (ids[0],)


def test_a_layer_that_is_not_mounted_has_no_directory(tmp_path: Path) -> None:
    """podman would take an empty one for a layer without files."""
    additional_store.create(tmp_path)
    additional_store.add_image(tmp_path, image("first", LOW, HIGH), {})
    assert not additional_store.mount_point(tmp_path, "1" * 64).exists()


def test_podmans_own_storage_leads_to_the_layers(tmp_path: Path) -> None:
    """By relative links with the same text in each step: podman joins it with its own directory."""
    store, root, seen = tmp_path / "step/images", tmp_path / "storage/root", tmp_path / "storage/mounted"
    additional_store.create(store)
    additional_store.add_image(store, image("first", LOW, HIGH), {})
    for _ in range(2):
        additional_store.link_layers(store, seen, root)
    links = {path.name: path for path in (root / "overlay/l").iterdir()}
    assert links.keys() == {path.name for path in (store / "overlay/l").iterdir()}
    for layer_id in additional_store.layer_ids((LOW, HIGH)):
        link = links[(store / "overlay" / layer_id / "link").read_text()]
        assert link.readlink() == Path("../../../mounted/overlay", layer_id, "diff")
    seen.symlink_to(store)
    additional_store.mount_point(seen, LOW.removeprefix("sha256:")).mkdir()
    assert sum(link.exists() for link in links.values()) == 1
