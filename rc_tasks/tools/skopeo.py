"""skopeo: copying images between a podman storage and directories, without a registry."""

from pathlib import Path

from rc_tasks.tools import command
from rc_tasks.tools.command import Command


def copy_to_layout(source: str, layout: Path, blobs: Path) -> Command:
    """Copy an image into an OCI layout whose blobs lie in a directory that many layouts share."""
    return Command(
        (
            *("skopeo", "copy", "--quiet"),
            # Otherwise every layer is compressed again: slow, and its digest is no longer its diff ID.
            "--dest-oci-accept-uncompressed-layers",
            *("--dest-shared-blob-dir", str(blobs)),
            source,
            # Relative: a colon in the path of an `oci:` reference would begin a tag.
            f"oci:{layout.name}",
        ),
        cwd=layout.parent,
    )


def copy_from_directory(directory: Path, destination: str) -> Command:
    """Copy an image from skopeo's `dir:` form into another place."""
    return Command(("skopeo", "copy", "--quiet", f"dir:{directory}", destination))


def raw_config(source: str) -> str:
    """An image's configuration, byte for byte: its SHA-256 is the image ID."""
    return command.capture(Command(("skopeo", "inspect", "--config", "--raw", source))).stdout
