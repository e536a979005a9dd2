"""Loader of local bases and cached images into the node's podman, by image ID and never by name."""

import contextlib
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct

from rc_tasks.errors import CommandError, RcError
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import STORE
from rc_tasks.state.store.loading import load_images
from rc_tasks.steps.error_report import NeedsError
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.podman.pull import pulled
from rc_tasks.tools.podman import Podman

# podman may take this long between an image's entry in its storage and its manifest: small files.
_COMMIT_S = 2.0
_MOST_HALF_WRITTEN = 20


class BuildBases(Struct, frozen=True):
    """The images that a build starts from, in the node's podman.

    `ids` maps each name in the Dockerfile to an image ID. `digests` maps each registry base to its
    digest there. `pulls`: podman itself pulls bases of another platform.
    """

    ids: Mapping[str, str]
    digests: Mapping[str, str]
    pulls: bool


def load_image(checkout: Checkout, podman: Podman, name: str) -> str:
    """Load the recorded image of this checkout into the node's podman; return its ID.

    Raise NeedsError when no node or store has it any more, CommandError when it was never built, and
    RcError when a frozen image is gone and its inputs have changed.
    """
    image_id = _recorded(checkout, name)
    _load(checkout, podman, {image_id: name})
    return image_id


def load_bases(checkout: Checkout, podman: Podman, node: ImageNode) -> BuildBases:
    """Load the bases of an image into the node's podman, and pull new ones.

    podman skips stages that the image does not use, so their bases are not needed.
    """
    used = [base for base in node.dockerfile.bases if base.stage in node.dockerfile.needed]
    local = {base.name: node.local[base.name] for base in used if base.name in node.local}
    foreign = {base.name for base in used if base.other_platform and base.name not in local}
    remote = {base.name: base for base in used if base.name not in local and base.name not in foreign}
    ids = {written: _recorded(checkout, name) for written, name in local.items()}
    _load(checkout, podman, {ids[written]: name for written, name in local.items()})
    pulled_bases = {name: pulled(checkout, podman, node, base) for name, base in sorted(remote.items())}
    ids |= {reference: base.image_id for reference, base in pulled_bases.items()}
    digests = {reference: base.digest for reference, base in pulled_bases.items()}
    digests |= {reference: podman.pull_missing(reference) for reference in _labelled(node) & foreign}
    return BuildBases(ids, digests, bool(foreign))


def load_cache(checkout: Checkout, podman: Podman, name: str, keys: Iterable[str]) -> None:
    """Load the layer cache, so that a rebuild resumes where the Dockerfile changed, on any node.

    podman answers an instruction from its cache when the image that the instruction made is there.
    `keys` are those of the current Dockerfile. An image that cannot be loaded costs only time.
    """
    useful = {"", *keys}
    official = official_of(checkout)
    known = (*checkout.store.catalogue.cache(name), *(official.cache(name) if official else ()))
    cached = [image.image_id for image in known if image.key in useful]
    with contextlib.suppress(RcError):
        mounted_images.mount(checkout, podman, cached)
        lacking = podman.lacking(cached)
        not_loaded = load_images(checkout.store, podman, *lacking) if lacking else ()
        if official is not None and not_loaded:
            official.load(podman, *not_loaded)


def remove_half_written(podman: Podman) -> None:
    """Remove the images that a killed podman left half-written: they make `podman images` fail."""
    for _ in range(_MOST_HALF_WRITTEN):
        image_id = podman.half_written()
        if not image_id:
            return
        # An image that another build is writing looks the same for a moment.
        time.sleep(_COMMIT_S)
        if podman.half_written() == image_id:
            print(f"removing image {image_id[:12]}, which a killed podman left half-written", flush=True)
            podman.remove_image(image_id)


def _recorded(checkout: Checkout, name: str) -> str:
    record = checkout.records.get(Step.PODMAN, name)
    if record is None or record.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    return record.facts.image_id


def _load(checkout: Checkout, podman: Podman, names: Mapping[str, str]) -> None:
    """Load images of this checkout; `names` maps image IDs to names."""
    mounted_images.mount(checkout, podman, names)
    lacking = podman.lacking(names)
    for image_id in lacking:
        if checkout.store.has(image_id):
            print(f"loading {names[image_id]} ({image_id[:12]}) from the store", flush=True)
    not_loaded = load_images(checkout.store, podman, *lacking) if lacking else ()
    official = official_of(checkout) if not_loaded else None
    for image_id in official.load(podman, *not_loaded) if official is not None else not_loaded:
        name = names[image_id]
        on_node = f"image {image_id[:12]} of {name} is neither on {nodes.this_node().name}"
        message, node = f"{on_node} nor whole in the store", checkout.graph.images[name]
        if node.options.frozen and _changed(checkout, name):
            raise RcError(
                f"{message}, and what it was made from has changed since it was frozen",
                where=node.project.shown_options,
                hint=f"`doit why {name}` shows what changed: revert that,\n"
                "or remove `frozen` to build it as it is now",
            )
        raise NeedsError(name, message, hint=f"doit forget podman:{name} && doit build:{name}")


def _changed(checkout: Checkout, name: str) -> bool:
    ignored = Judge(checkout).step(Step.PODMAN, name).ignored
    return any(cause.part != STORE for cause in ignored)


def _labelled(node: ImageNode) -> set[str]:
    base = node.dockerfile.final_base
    return {base.name} if base is not None else set()
