"""Check of the credentials for the registries of the bases, and of who else may read them.

They are podman's and Enroot's own: of their files only the names of registries are looked at, and
nothing of them is kept or shown.
"""

import contextlib
import json
import os
import shlex
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from rc_tasks.model.config.settings import SquashMethod
from rc_tasks.state.checkout import Checkout
from rc_tasks.steps.doctor.finding import Finding, Level
from rc_tasks.tools import registry

_MOST_BYTES = 1 << 20


def findings(checkout: Checkout) -> Iterator[Finding]:
    """Yield the findings on the registries that the checkout's Dockerfiles name."""
    registries = sorted(
        {registry.host(name) for node in checkout.graph.images.values() for name in node.remote}
    )
    if not registries:
        return
    known: set[str] = set()
    for path in _podman_files():
        if path.is_file():
            known |= _podman_registries(path)
            yield from _readable_by_others(path)
    enroot = _enroot_file()
    in_use = checkout.settings.squash.method is SquashMethod.ENROOT
    if enroot.is_file():
        yield from _readable_by_others(enroot)
        if in_use:
            known |= _machines(enroot)
    here = [name for name in registries if name in known]
    if here:
        yield Finding(Level.OK, f"credentials for {', '.join(here)}")
    if lacking := [name for name in registries if name not in known]:
        yield Finding(
            Level.OK,
            f"no credentials for {', '.join(lacking)}, and none needed for what everybody may pull",
            "for the rest, on all hosts that share your home:"
            f" podman login --authfile ~/.config/containers/auth.json {lacking[0]}",
        )


def _podman_files() -> Iterator[Path]:
    """Yield the files that podman and skopeo read, in their order (containers-auth.json(5))."""
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield Path(runtime or f"/run/containers/{os.geteuid()}") / (
        "containers/auth.json" if runtime else "auth.json"
    )
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    yield Path(config) / "containers/auth.json"
    yield Path.home() / ".docker/config.json"


def _enroot_file() -> Path:
    """Return Enroot's netrc file (its doc/cmd/import.md)."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(os.environ.get("ENROOT_CONFIG_PATH") or Path(config) / "enroot") / ".credentials"


def _readable_by_others(path: Path) -> Iterator[Finding]:
    with contextlib.suppress(OSError):
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            yield Finding(
                Level.WARNING,
                f"credentials that others may read: {path} (mode {mode:04o})",
                f"chmod 600 {shlex.quote(str(path))}",
            )


def _podman_registries(path: Path) -> set[str]:
    """Return the registries of an auth.json; a key may go on with a repository."""
    try:
        registries = json.loads(path.read_bytes()[:_MOST_BYTES])
        names = [*(registries.get("auths") or ()), *(registries.get("credHelpers") or ())]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return set()
    hosts = {str(name).removeprefix("https://").partition("/")[0] for name in names}
    # As Docker writes its own registry.
    return hosts | ({"docker.io"} if "index.docker.io" in hosts else set())


def _machines(path: Path) -> set[str]:
    try:
        words = path.read_text(errors="replace")[:_MOST_BYTES].split()
    except OSError:
        return set()
    return {name for word, name in pairwise(words) if word == "machine"}
