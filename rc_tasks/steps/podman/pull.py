"""Bases from registries: taken as they are pinned, from a store or by one pull; pinned when new."""

import contextlib

from rc_tasks.errors import CommandError, DockerfileError, RcError
from rc_tasks.model.dockerfile.parser import BaseUse, Via, machine
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.pin import LOCK, Pin, is_digest
from rc_tasks.model.reference import ImageReference, own_digest
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.locks import held
from rc_tasks.state.store.catalogue import Pulled
from rc_tasks.steps.node import node as nodes
from rc_tasks.tools import skopeo
from rc_tasks.tools.podman import Image, Podman

# How long a registry may take to say what it has, before podman is asked to pull.
_ASK_S = 60.0


def pulled(checkout: Checkout, podman: Podman, node: ImageNode, base: BaseUse) -> Pulled:
    """A base of a registry in podman: from the store when any node has pulled it before.

    One that is not pinned yet is pinned to what it is now. Raises CommandError when it cannot be
    pulled, DockerfileError when it is for another machine, PinError when bases.lock is broken, RcError
    when it cannot be written.
    """
    reference = base.name
    if own_digest(reference):
        return _brought(checkout, podman, node, base, None)
    pin = checkout.pins.read().get(reference)
    found = _brought(checkout, podman, node, base, pin)
    if pin is not None:
        return found
    new = Pin(found.digest, nodes.now(), name=_whole_name(podman, reference, found.image_id))
    pin = checkout.pins.first(reference, new)
    if pin == new:
        print(f"{reference} is pinned to {pin.digest} in {LOCK}", flush=True)
    # Somebody else may have pinned it meanwhile, when its tag stood for another image.
    return found if pin.digest == found.digest else _brought(checkout, podman, node, base, pin)


def require_machine(node: ImageNode, base: BaseUse, image: Image, architecture: str) -> None:
    """Raise DockerfileError for an image of another machine: podman only warns, and builds on it."""
    here = machine(architecture)
    if base.other_platform or image.architecture in {"", here}:
        return
    raise DockerfileError(
        f"{base.name} is an image for {image.architecture}, and this node is {here}",
        where=f"{node.project.shown_dockerfile}:{base.line}",
        hint=f"name an image that exists for {here}, or, if the other machine is meant,\n"
        f"write FROM --platform=linux/{image.architecture} {base.name}"
        + (" AS STAGE, and take the files from that stage" if base.via is not Via.FROM else ""),
    )


def _brought(
    checkout: Checkout, podman: Podman, node: ImageNode, base: BaseUse, pin: Pin | None
) -> Pulled:
    reference = base.name
    catalogue, architecture = checkout.store.catalogue, checkout.architecture
    if not checkout.settings.store.enabled:
        new = _pull(podman, reference, pin)
        require_machine(node, base, podman.inspect(new.image_id), architecture)
        return new
    found = catalogue.base(reference, architecture)
    if found is not None and _agrees(found, pin) and _from_store(checkout, podman, found):
        return found
    official = official_of(checkout)
    theirs = official.base(reference, architecture) if official is not None else None
    if official is not None and theirs is not None and _agrees(theirs, pin):
        lacking = podman.lacking((theirs.image_id,))
        if not lacking or not official.bring(podman, theirs.image_id):
            return theirs
    with held(catalogue.base_lock(reference, architecture), f"the pull of {reference}", wait=True):
        found = catalogue.base(reference, architecture)
        if found is not None and _agrees(found, pin) and _from_store(checkout, podman, found):
            return found
        new = _pull(podman, reference, pin)
        image = podman.inspect(new.image_id)
        # Before anything is kept or pinned.
        require_machine(node, base, image, architecture)
        checkout.store.put(podman, image)
        catalogue.put_base(new, architecture)
    return new


def _agrees(found: Pulled, pin: Pin | None) -> bool:
    if pin is not None:
        return found.digest == pin.digest
    # A pin is made of it.
    return is_digest(found.digest) or own_digest(found.reference) is not None


def _from_store(checkout: Checkout, podman: Podman, found: Pulled) -> bool:
    if podman.lacking((found.image_id,)):
        if not checkout.store.has(found.image_id):
            return False
        print(f"bringing {found.reference} ({found.image_id[:12]}) from the store", flush=True)
        return not checkout.store.bring(podman, found.image_id)
    return True


def _pull(podman: Podman, reference: str, pin: Pin | None) -> Pulled:
    digest = own_digest(reference) or ""
    exact = reference
    if pin is not None:
        digest, exact = pin.digest, pin.exact(reference)
    elif not digest:
        digest, exact = _newest(podman, reference)
    try:
        podman.pull_missing(exact)
    except CommandError as error:
        if pin is None:
            raise
        raise error.with_hint(
            f"{error.hint}\n{LOCK} pins {reference} to this digest: `doit bases --check {reference}`"
            f" asks for it,\nand `doit bases --update {reference}` moves the pin"
        ) from None
    return Pulled(reference, digest, podman.inspect(exact).id, nodes.now(), nodes.this_node().name)


def _newest(podman: Podman, reference: str) -> tuple[str, str]:
    """The digest of what a reference stands for that is not pinned yet, and how podman has it then."""
    # What a short name stands for only podman knows.
    if skopeo.available() and ImageReference.parse(reference).registry:
        with contextlib.suppress(RcError):
            digest = skopeo.served(reference, timeout_s=_ASK_S)
            exact = Pin(digest).exact(reference)
            podman.pull_missing(exact)
            return digest, exact
    # What is here may be what the tag stood for a year ago.
    if podman.exists(reference) and not podman.pull_again(reference):
        print(f"{reference} is taken as it is on this node: no registry gives it", flush=True)
    podman.pull_missing(reference)
    # podman mixes the digests of all names that an image has.
    candidates = podman.digests(reference)
    confirmed = (each for each in candidates if podman.pull_again(Pin(each).exact(reference)))
    return next(confirmed, candidates[0]), reference


def _whole_name(podman: Podman, reference: str, image_id: str) -> str:
    """What a short name such as `debian:12` stood for here; empty for a whole one."""
    short = ImageReference.parse(reference)
    if short.registry:
        return ""
    wanted = f"/{short.repository}:{short.tag or 'latest'}"
    names = (each for each in podman.names(image_id) if not each.startswith("localhost/"))
    return next((each for each in names if each.endswith(wanted)), "")
