"""skopeo: writing only those layers of an image that are new, which podman alone cannot."""

import hashlib
import os
from pathlib import Path

from rc_tasks.tools import command, registry
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


def served(reference: str, *, timeout_s: float) -> str:
    """The digest of what a registry serves under a reference: the index, where there is one.

    Only a manifest is loaded; the credentials are those of `skopeo login` and `podman login`. Raises
    RegistryError, and ToolNotFoundError without skopeo.
    """
    # podman minds this variable, skopeo 1.9 only the option.
    conf = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    wanted = Command(
        (
            "skopeo",
            *(("--registries-conf", conf) if conf else ()),
            # The bytes as they are: the digest is theirs, and skopeo's own is of one machine's image.
            *("inspect", "--raw"),
            f"docker://{reference}",
        )
    )
    done = registry.ask(wanted, reference, timeout_s)
    return f"sha256:{hashlib.sha256(done.stdout.encode()).hexdigest()}"
