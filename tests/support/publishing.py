"""Publishing of an image that is in podman's storage, as the enroot step does it."""

from pathlib import Path
from typing import IO

from rc_tasks.model.config.settings import Squash, SquashMethod
from rc_tasks.model.manifest.manifest import Contents
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.steps.publish import squash
from rc_tasks.steps.publish.contents import ContentsWalk
from rc_tasks.steps.publish.merge import merge
from rc_tasks.steps.save.layers import in_namespace, options
from rc_tasks.tools.podman import Image, Podman, parse_config


def squash_image(
    podman: Podman,
    image: Image,
    destination: Path,
    *,
    settings: Squash,
    provenance: tuple[str, ...],
    log: IO[bytes] | None,
    layers: SquashedLayers | None = None,
    walk: ContentsWalk | None = None,
) -> Contents | None:
    """Merge the layers of an image into `destination`, or squash it whole where that is right.

    Returns what is in it if it was merged.
    """
    config = podman.config(image.id)
    if layers is not None and config is not None and settings.method is SquashMethod.MERGE:
        contents = merge(
            parse_config(image.id, config, image.size_bytes),
            destination,
            layers=layers,
            directories=lambda: podman.layer_directories(image),
            make=options(settings, log),
            wrap=in_namespace(podman),
            provenance=provenance,
            log=log,
        )
        if contents is not None:
            return contents
    squash.squash(
        podman, image, destination, settings=settings, provenance=provenance, log=log, walk=walk
    )
    return None
