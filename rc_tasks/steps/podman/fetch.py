"""Brings images into the node's podman by image ID: never one that only has the same name."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rc_tasks.errors import CommandError, RcError
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import RECIPE
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import STORE
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.outcome import NeedsError
from rc_tasks.steps.podman.pull import pulled
from rc_tasks.tools.podman import Podman

# How long podman may take from an image's name in its storage to its manifest: a few small files.
_COMMIT_S = 2.0
_MENDS = 20


@dataclass(frozen=True, slots=True)
class BuildBases:
    """The images that a build starts from, in the node's podman.

    `ids` maps each name in the Dockerfile to an image ID, and `digests` those of registries to the
    digest there. `pulls`: there are images of another platform, which podman pulls itself.
    """

    ids: Mapping[str, str]
    digests: Mapping[str, str]
    pulls: bool


def bring(checkout: Checkout, podman: Podman, name: str) -> str:
    """Make sure that the node has an image of this checkout as it was recorded; returns its ID.

    Raises NeedsError when it is nowhere to be had any more, CommandError when it was never built, and
    RcError when it is lost and, being frozen, cannot be built as it was.
    """
    image_id = _recorded(checkout, name)
    _bring(checkout, podman, {image_id: name})
    return image_id


def bring_bases(checkout: Checkout, podman: Podman, node: ImageNode) -> BuildBases:
    """Make sure that the node has what an image is built from; bases that are new are pulled.

    A stage that the image is not made of is passed over by podman, so that its bases are not needed.
    """
    used = [base for base in node.dockerfile.bases if base.stage in node.dockerfile.needed]
    local = {base.name: node.local[base.name] for base in used if base.name in node.local}
    foreign = {base.name for base in used if base.other_platform and base.name not in local}
    remote = {base.name: base for base in used if base.name not in local and base.name not in foreign}
    ids = {written: _recorded(checkout, name) for written, name in local.items()}
    _bring(checkout, podman, {ids[written]: name for written, name in local.items()})
    found = {name: pulled(checkout, podman, node, base) for name, base in sorted(remote.items())}
    ids |= {reference: base.image_id for reference, base in found.items()}
    digests = {reference: base.digest for reference, base in found.items()}
    digests |= {reference: podman.pull_missing(reference) for reference in _labelled(node) & foreign}
    return BuildBases(ids, digests, bool(foreign))


def bring_cache(checkout: Checkout, podman: Podman, name: str, keys: Iterable[str]) -> None:
    """Make a rebuild on another node resume where the Dockerfile changed, as on the node that built it.

    podman answers an instruction from cache when the image that it made is there; `keys` are those of
    the Dockerfile as it is now. What cannot be brought costs only time.
    """
    useful = {"", *keys}
    official = official_of(checkout)
    known = (*checkout.store.catalogue.cache(name), *(official.cache(name) if official else ()))
    cached = [image.image_id for image in known if image.key in useful]
    with contextlib.suppress(RcError):
        lacking = podman.lacking(cached)
        left = checkout.store.bring(podman, *lacking) if lacking else ()
        if official is not None and left:
            official.bring(podman, *left)


def mend(podman: Podman) -> None:
    """Remove the images that a killed podman left half-written: they make `podman images` fail."""
    for _ in range(_MENDS):
        image_id = podman.half_written()
        if not image_id:
            return
        # One that another build is just writing looks the same, for a moment.
        time.sleep(_COMMIT_S)
        if podman.half_written() == image_id:
            print(f"removing image {image_id[:12]}, which a killed podman left half-written", flush=True)
            podman.remove_image(image_id)


def _recorded(checkout: Checkout, name: str) -> str:
    record = checkout.records.get(Step.PODMAN, name)
    if record is None or record.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    return record.facts.image_id


def _bring(checkout: Checkout, podman: Podman, names: Mapping[str, str]) -> None:
    """Bring images of this checkout, given by ID with their names."""
    lacking = podman.lacking(names)
    for image_id in lacking:
        if checkout.store.has(image_id):
            print(f"bringing {names[image_id]} ({image_id[:12]}) from the store", flush=True)
    left = checkout.store.bring(podman, *lacking) if lacking else ()
    official = official_of(checkout) if left else None
    for image_id in official.bring(podman, *left) if official is not None else left:
        name = names[image_id]
        on_node = f"image {image_id[:12]} of {name} is neither on {nodes.this_node().name}"
        lost, node = f"{on_node} nor whole in the store", checkout.graph.images[name]
        if node.recipe.frozen and _changed(checkout, name):
            raise RcError(
                f"{lost}, and what it was made from has changed since it was frozen",
                where=node.project.shown(RECIPE),
                hint=f"`doit why {name}` tells what changed: take that back,\n"
                "or remove `frozen` to build it as it is now",
            )
        raise NeedsError(name, lost, hint=f"doit forget podman:{name} && doit build:{name}")


def _changed(checkout: Checkout, name: str) -> bool:
    held = Judge(checkout).step(Step.PODMAN, name).held
    return any(cause.part != STORE for cause in held)


def _labelled(node: ImageNode) -> set[str]:
    base = node.dockerfile.final_base
    return {base.name} if base is not None else set()
