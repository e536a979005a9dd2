"""skopeo: ask a registry for digests."""

import hashlib
import os

from rc_tasks.tools import command, registry
from rc_tasks.tools.command import Command


def available() -> bool:
    """Return whether this node has skopeo."""
    return command.which("skopeo") is not None


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
