"""Brings a built image of this checkout into the node's podman, by image ID."""

import contextlib

from rc_tasks.errors import CommandError, RcError
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.records import Step
from rc_tasks.steps import node as nodes
from rc_tasks.tools.podman import Podman


def bring(checkout: Checkout, podman: Podman, name: str) -> str:
    """Make sure that the node has the image as it was recorded; returns its ID.

    Never an image that only has the same name. Raises CommandError when it is nowhere to be had.
    """
    record = checkout.records.get(Step.PODMAN, name)
    if record is None or record.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    image_id = record.facts.image_id
    if podman.exists(image_id):
        return image_id
    if checkout.store.has(image_id):
        nodes.require("skopeo", "skopeo")
        print(f"bringing {name} ({image_id[:12]}) from the store", flush=True)
        checkout.store.bring(podman, image_id)
        return image_id
    raise CommandError(
        f"image {image_id[:12]} of {name} is neither on {nodes.this_node().name} nor in the store",
        hint=f"doit forget podman:{name} && doit build:{name}",
    )


def bring_cache(checkout: Checkout, podman: Podman, name: str) -> None:
    """Make a rebuild on another node resume where the Dockerfile changed, as on the node that built it.

    podman answers an instruction from cache when the image that it made is there. What cannot be
    brought costs only time.
    """
    record = checkout.records.get(Step.PODMAN, name)
    if record is None or record.facts is None or podman.exists(record.facts.image_id):
        return
    with contextlib.suppress(RcError):
        for image_id in (*record.intermediate, record.facts.image_id):
            checkout.store.bring(podman, image_id)
