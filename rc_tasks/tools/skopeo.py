"""skopeo: copy only the new layers of an image, which podman cannot, and ask a registry for digests."""

import hashlib
import os
from pathlib import Path

from rc_tasks.tools import command, registry
from rc_tasks.tools.command import Command


def available() -> bool:
    """Return whether this node has skopeo."""
    return command.which("skopeo") is not None


def copy_to_layout(source: str, layout: Path, blobs: Path, through: tuple[str, ...] = ()) -> Command:
    """Copy an image into an OCI layout whose blobs lie in a directory that many layouts share.

    `through` is that of the podman whose storage holds the image.
    """
    return Command(
        (
            *("skopeo", "copy", "--quiet"),
            # Without it, skopeo compresses every layer: slow, and the digest is no longer the diff ID.
            "--dest-oci-accept-uncompressed-layers",
            *("--dest-shared-blob-dir", str(blobs)),
            source,
            # A colon in the path of an `oci:` reference would begin a tag, so the path is relative.
            f"oci:{layout.name}",
        ),
        cwd=layout.parent,
        through=through,
    )


def raw_config(source: str, through: tuple[str, ...] = ()) -> bytes:
    """Return an image's configuration, byte for byte: its SHA-256 is the image ID."""
    inspect = Command(("skopeo", "inspect", "--config", "--raw", source), through=through)
    done = command.capture(inspect)
    return done.stdout.encode()


def served(reference: str, *, timeout_s: float) -> str:
    """Return the digest that a registry serves under a reference: the index's, where there is one.

    Load only a manifest, with the credentials of `skopeo login` and `podman login`. Raise RegistryError,
    and ToolNotFoundError without skopeo.
    """
    # podman reads this variable, skopeo 1.9 only the option.
    registries_conf = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    inspect = Command(
        (
            "skopeo",
            *(("--registries-conf", registries_conf) if registries_conf else ()),
            # The digest is that of the raw bytes; skopeo itself prints that of one platform's image.
            *("inspect", "--raw"),
            f"docker://{reference}",
        )
    )
    done = registry.ask(inspect, reference, timeout_s)
    return f"sha256:{hashlib.sha256(done.stdout.encode()).hexdigest()}"
