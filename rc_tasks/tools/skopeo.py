"""skopeo: writing only those layers of an image that are new, which podman alone cannot."""

from pathlib import Path

from rc_tasks.tools import command
from rc_tasks.tools.command import Command


def available() -> bool:
    """Whether this node has skopeo."""
    return command.which("skopeo") is not None


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


def raw_config(source: str) -> bytes:
    """An image's configuration, byte for byte: its SHA-256 is the image ID."""
    done = command.capture(Command(("skopeo", "inspect", "--config", "--raw", source)))
    return done.stdout.encode()
