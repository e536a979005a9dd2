"""Adoption of official images: a clone takes those that it would build from the same inputs."""

import os
from collections.abc import Iterable

from rc_tasks.engine.session import Session
from rc_tasks.errors import RcError
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.adoption.official import Offer
from rc_tasks.state.disk.files import put_in_place, refused
from rc_tasks.state.disk.locks import held
from rc_tasks.state.disk.trust import NotOfferedError, RefusedError
from rc_tasks.state.records.records import Step

# Print only the number of adopted images when there are more.
_MOST_LINES = 10
_MOST_WARNINGS = 3
_WRITERS = 8


def adopt(session: Session, names: Iterable[str]) -> list[str]:
    """Adopt the images that a build of `names` needs; return the names of those adopted, bases first.

    An image that another process is building, or that cannot be written, is left to its steps: they
    wait, or report the error.
    """
    judge = session.judge
    if judge.offers is None:
        return []
    adoptable = {name: steps for name in _needed(session, names) if (steps := _adoptable(session, name))}
    if not adoptable:
        return []
    # Imported here, like the modules in `_link`, because most runs adopt nothing.
    from concurrent.futures import ThreadPoolExecutor

    # The threads wait for the file server most of the time.
    with ThreadPoolExecutor(_WRITERS) as pool:
        successes = pool.map(lambda name: _take(session, name, adoptable[name]), adoptable)
        adopted = [name for name, success in zip(adoptable, successes, strict=True) if success]
    for name in adoptable:
        judge.forget(name)
    return adopted


def words(session: Session, adopted: list[str]) -> list[str]:
    """Return lines that report the adopted images."""
    if session.judge.offers is None or not adopted:
        return []
    root = session.judge.offers.official.root
    if len(adopted) > _MOST_LINES:
        return [f"{len(adopted)} images adopted from {root}"]
    return [f"{name} adopted from {root}" for name in adopted]


def warnings(session: Session, names: Iterable[str]) -> list[RcError]:
    """Return a warning for each refused path of the official checkout, with the images concerned.

    Those images have to be built here.
    """
    refusals: dict[str, RefusedError] = {}
    concerned: dict[str, list[str]] = {}
    for name in _needed(session, names):
        error = _refusal(session, name)
        if isinstance(error, RefusedError):
            refusals.setdefault(str(error), error)
            concerned.setdefault(str(error), []).append(name)
    shown = [_warning(error, concerned[text]) for text, error in refusals.items()]
    if len(shown) <= _MOST_WARNINGS:
        return shown
    more = len(shown) - _MOST_WARNINGS + 1
    return [
        *shown[: _MOST_WARNINGS - 1],
        RcError(
            f"{more} more paths of the official checkout are refused", hint="doit why NAME shows each"
        ),
    ]


def _needed(session: Session, names: Iterable[str]) -> tuple[str, ...]:
    graph = session.checkout.graph
    return graph.with_bases(graph.aliases.get(name, name) for name in names)


def _adoptable(session: Session, name: str) -> tuple[Step, ...]:
    """Return the steps of an image that its adoption settles."""
    judge = session.judge
    try:
        return tuple(step for step in Step if judge.step(step, name).adoptable)
    except RcError:
        return ()  # the step itself will report the error


def _refusal(session: Session, name: str) -> NotOfferedError | None:
    judge = session.judge
    try:
        if judge.offers is None or all(judge.step(step, name).fresh for step in Step):
            return None
    except RcError:
        return None
    return judge.offers.refusal(name)


def _take(session: Session, name: str, steps: tuple[Step, ...]) -> bool:
    """Link the published file, then write the records; return whether that succeeded.

    The records come last, as they make the adoption count.
    """
    checkout, offers = session.checkout, session.judge.offers
    offer = offers.get(name) if offers is not None else None
    if offer is None:
        return False
    try:
        with held(checkout.lock(name), f"adopt:{name}"):
            if Step.ENROOT in steps:
                _link(checkout.graph.images[name], offer)
            for step in steps:
                checkout.records.put(step, name, offer.records[step])
    except RcError:
        for step in Step:
            checkout.records.reread(step, name)
        return False
    return True


def _link(node: ImageNode, offer: Offer) -> None:
    from rc_tasks.steps.image_json import write_image_json
    from rc_tasks.steps.publish import squash

    artifact = node.project.artifact
    squash.sweep(node.project.directory)
    temporary = squash.temporary(artifact)
    try:
        os.symlink(offer.artifact, temporary)
        put_in_place(temporary, artifact)
    except OSError as error:
        raise refused(error, artifact) or error from None
    finally:
        temporary.unlink(missing_ok=True)
    # Write it from the records, whose values were checked; the official file was not.
    write_image_json(node, offer.records[Step.PODMAN], offer.records[Step.ENROOT])


def _warning(error: RefusedError, names: list[str]) -> RcError:
    images = names[0] if len(names) == 1 else f"{len(names)} images"
    return RcError(f"{error.what}, so {images} cannot be adopted", where=error.where, hint=error.hint)
