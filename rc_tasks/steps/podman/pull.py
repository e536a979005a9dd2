"""Registry bases: loaded from a store or pulled at their pinned digest, and pinned when new."""

import contextlib

from rc_tasks.errors import CommandError, DockerfileError, RcError
from rc_tasks.model.dockerfile.parser import BaseUse, Via
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.pin import LOCK, Pin, is_digest
from rc_tasks.model.machine import docker_name, platform
from rc_tasks.model.reference import ImageReference, own_digest
from rc_tasks.state.adoption.official import official_of, squashed_layers
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.locks import held
from rc_tasks.state.store.catalogue import Pulled
from rc_tasks.state.store.loading import load_images
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.save.image import save
from rc_tasks.tools import skopeo
from rc_tasks.tools.podman import Image, Podman

# How long skopeo may ask a registry for a digest, before podman pulls by name.
_ASK_S = 60.0


def pulled(checkout: Checkout, podman: Podman, node: ImageNode, base: BaseUse) -> Pulled:
    """Load a registry base into podman, from the store when any node has pulled it before.

    A base without a pin is pinned to its current digest. Raise CommandError when it cannot be pulled,
    DockerfileError when it is for another machine, PinError when bases.lock is broken, RcError when
    bases.lock cannot be written.
    """
    reference = base.name
    if own_digest(reference):
        return _load_pulled(checkout, podman, node, base, None)
    pin = checkout.pins.read().get(reference)
    base_pulled = _load_pulled(checkout, podman, node, base, pin)
    if pin is not None:
        return base_pulled
    new = Pin(base_pulled.digest, nodes.now(), name=_whole_name(podman, reference, base_pulled.image_id))
    pin = checkout.pins.first(reference, new)
    if pin == new:
        print(f"{reference} is pinned to {pin.digest} in {LOCK}", flush=True)
    # Another process may have pinned it meanwhile, when its tag named another image.
    return (
        base_pulled
        if pin.digest == base_pulled.digest
        else _load_pulled(checkout, podman, node, base, pin)
    )


def require_machine(node: ImageNode, base: BaseUse, image: Image, architecture: str) -> None:
    """Raise DockerfileError for an image of another machine: podman only warns, and builds on it."""
    here = docker_name(architecture)
    if base.other_platform or image.architecture in {"", here}:
        return
    raise DockerfileError(
        f"{base.name} is an image for {image.architecture}, and this node is {here}",
        where=f"{node.project.shown_dockerfile}:{base.line}",
        hint=f"name an image that exists for {here}, or, if the other machine is meant,\n"
        f"write FROM --platform=linux/{image.architecture} {base.name}"
        + (" AS STAGE, and take the files from that stage" if base.via is not Via.FROM else ""),
    )


def _load_pulled(
    checkout: Checkout, podman: Podman, node: ImageNode, base: BaseUse, pin: Pin | None
) -> Pulled:
    reference = base.name
    catalogue, architecture = checkout.store.catalogue, checkout.machine(node.project)
    if not checkout.settings.store.enabled:
        new = _pull(checkout, podman, node, base, pin)
        require_machine(node, base, podman.inspect(new.image_id), architecture)
        return new
    known = catalogue.base(reference, architecture)
    if known is not None and _agrees(known, pin) and _from_store(checkout, podman, known):
        return known
    official = official_of(checkout)
    official_base = official.base(reference, architecture) if official is not None else None
    if official is not None and official_base is not None and _agrees(official_base, pin):
        mounted_images.mount(checkout, podman, (official_base.image_id,))
        lacking = podman.lacking((official_base.image_id,))
        if not lacking or not official.load(podman, official_base.image_id):
            return official_base
    with held(catalogue.base_lock(reference, architecture), f"the pull of {reference}", wait=True):
        known = catalogue.base(reference, architecture)
        if known is not None and _agrees(known, pin) and _from_store(checkout, podman, known):
            return known
        new = _pull(checkout, podman, node, base, pin)
        image = podman.inspect(new.image_id)
        # Check it before anything is kept or pinned.
        require_machine(node, base, image, architecture)
        save(podman, image, squashed_layers(checkout), checkout.settings.squash)
        catalogue.put_base(new, architecture)
    return new


def _agrees(candidate: Pulled, pin: Pin | None) -> bool:
    if pin is not None:
        return candidate.digest == pin.digest
    # Without a digest it could not be pinned.
    return is_digest(candidate.digest) or own_digest(candidate.reference) is not None


def _from_store(checkout: Checkout, podman: Podman, candidate: Pulled) -> bool:
    mounted_images.mount(checkout, podman, (candidate.image_id,))
    if podman.lacking((candidate.image_id,)):
        if not checkout.store.has(candidate.image_id):
            return False
        print(f"loading {candidate.reference} ({candidate.image_id[:12]}) from the store", flush=True)
        return not load_images(checkout.store, podman, candidate.image_id)
    return True


def _other_platform(checkout: Checkout, node: ImageNode) -> str:
    """Return the platform of an image for a machine that this node emulates, and else nothing."""
    machine = checkout.machine(node.project)
    return platform(machine) if machine != checkout.architecture else ""


def _require_no_namesake(podman: Podman, node: ImageNode, base: BaseUse) -> None:
    """Raise DockerfileError if podman would take a short name for an image that was built on this node.

    It prefers such an image to that of a registry, and other nodes do not have it.
    """
    namesake = f"localhost/{base.name}"
    if ImageReference.parse(base.name).registry or not podman.exists(namesake):
        return
    raise DockerfileError(
        f"{base.name} is not an image of this checkout, and podman on this node takes that name for"
        f" {namesake}, which was built here",
        where=f"{node.project.shown_dockerfile}:{base.line}",
        hint="name an image of this checkout (`doit list`), or the image of a registry\n"
        "with its host, as in docker.io/library/debian:12",
    )


def _pull(checkout: Checkout, podman: Podman, node: ImageNode, base: BaseUse, pin: Pin | None) -> Pulled:
    reference, other_platform = base.name, _other_platform(checkout, node)
    digest = own_digest(reference) or ""
    exact = reference
    if pin is not None:
        digest, exact = pin.digest, pin.exact(reference)
    elif not digest:
        _require_no_namesake(podman, node, base)
        digest, exact = _newest(podman, reference, other_platform)
    try:
        podman.pull_missing(exact, other_platform)
    except CommandError as error:
        if pin is None:
            raise
        raise error.with_hint(
            f"{error.hint}\n{LOCK} pins {reference} to this digest: `doit bases --check {reference}`"
            f" asks for it,\nand `doit bases --update {reference}` moves the pin"
        ) from None
    return Pulled(reference, digest, podman.inspect(exact).id, nodes.now(), nodes.this_node().name)


def _newest(podman: Podman, reference: str, other_platform: str) -> tuple[str, str]:
    """Pull a reference without a pin; return its digest, and the name that podman has it under."""
    # Only podman can resolve a short name.
    if skopeo.available() and ImageReference.parse(reference).registry:
        with contextlib.suppress(RcError):
            digest = skopeo.served(reference, timeout_s=_ASK_S)
            exact = Pin(digest).exact(reference)
            podman.pull_missing(exact, other_platform)
            return digest, exact
    # The image on this node may be a year old.
    if podman.exists(reference) and not podman.pull_again(reference):
        print(f"no registry has {reference}: the image on this node is used", flush=True)
    podman.pull_missing(reference)
    # podman mixes the digests of all names that an image has.
    candidates = podman.digests(reference)
    confirmed = (
        digest_known
        for digest_known in candidates
        if podman.pull_again(Pin(digest_known).exact(reference))
    )
    return next(confirmed, candidates[0]), reference


def _whole_name(podman: Podman, reference: str, image_id: str) -> str:
    """Return the full name that a short one such as `debian:12` has here; empty for a full name."""
    short = ImageReference.parse(reference)
    if short.registry:
        return ""
    suffix = f"/{short.repository}:{short.tag or 'latest'}"
    names = (name for name in podman.names(image_id) if not name.startswith("localhost/"))
    return next((name for name in names if name.endswith(suffix)), "")
