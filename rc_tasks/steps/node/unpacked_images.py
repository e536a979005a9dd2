"""Images of the store on a node where nothing can be mounted: their layers are unpacked side by side.

It takes the node's memory, as loading does, but unsquashfs uses all CPUs, and no archive is written and
taken apart. What is unpacked stays for the next steps of the job.
"""

from collections.abc import Mapping
from pathlib import Path

from rc_tasks.steps.node import node as nodes
from rc_tasks.tools import additional_store, command
from rc_tasks.tools.additional_store import ArchiveRecipe, StoredImage
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman, rootless

# Lines of FILE and DIRECTORY as arguments. A directory gets its name when it is whole.
_UNPACK = """\
while [ $# -gt 0 ]; do
    rm -rf "$2.part"
    unsquashfs -quiet -no-progress -dest "$2.part" "$1" && mv "$2.part" "$2" || exit
    shift 2
done
"""


def possible() -> bool:
    """Return whether this node can unpack layers."""
    return command.which("unsquashfs") is not None


def unpack(
    podman: Podman,
    images: Path,
    image: StoredImage,
    files: Mapping[str, Path],
    recipes: Mapping[str, ArchiveRecipe],
) -> bool:
    """Unpack an image whose layers have these files, by their IDs; return whether it was not there yet.

    `images` is the additional image store. Raise CommandError, and leave what was there.
    """
    with nodes.unpacking(images):
        if image.id in additional_store.image_ids(images):
            return False
        arguments: list[str] = []
        for layer_id, file in files.items():
            place = additional_store.mount_point(images, layer_id)
            if not place.exists():
                place.parent.mkdir(exist_ok=True)
                arguments += (str(file), str(place))
        unpack_all = Command(("sh", "-c", _UNPACK, "sh", *arguments))
        command.capture(podman.unshare(unpack_all) if rootless() else unpack_all)
        additional_store.add_image(images, image, recipes)
    return True
