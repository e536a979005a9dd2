"""The registry bases of a checkout: how each is taken, and which images stand on it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from rc_tasks.model.graph import ImageGraph
from rc_tasks.model.pin import Pin
from rc_tasks.model.reference import ImageReference, own_digest


class Kind(StrEnum):
    """How builds take a base."""

    PINNED = "pinned"
    NOT_PINNED = "not pinned yet"
    IN_DOCKERFILE = "in the Dockerfile"
    FOREIGN = "another platform"
    UNUSED = "no image needs it"


@dataclass(frozen=True, slots=True)
class RegistryBase:
    """A base by its reference. `images` name it in their Dockerfiles; `above` are built on these."""

    reference: str
    kind: Kind
    pin: Pin | None
    images: tuple[str, ...] = ()
    above: tuple[str, ...] = ()

    @property
    def digest(self) -> str | None:
        """The digest that builds take, `sha256:…`, where it is fixed."""
        return self.pin.digest if self.pin is not None else own_digest(self.reference)

    @property
    def whole(self) -> str:
        """What a registry is asked for: where a digest is written, that alone, as podman takes it."""
        if digest := own_digest(self.reference):
            return str(replace(ImageReference.parse(self.reference), tag=None, digest=digest))
        return (self.pin.name if self.pin is not None else "") or self.reference


def registry_bases(graph: ImageGraph, pins: Mapping[str, Pin]) -> tuple[RegistryBase, ...]:
    """Every base that comes from a registry, and every pin, sorted by reference."""
    users: dict[str, list[str]] = {}
    pinned: set[str] = set()
    for name, node in graph.images.items():
        pinned.update(node.pinned)
        used = {base.name for base in node.dockerfile.bases if base.stage in node.dockerfile.needed}
        for reference in node.remote:
            if reference in used:
                users.setdefault(reference, []).append(name)
    return tuple(
        RegistryBase(
            reference,
            _kind(reference, users, pinned, pins),
            # One that is left to podman in one image may be taken by its pin in another.
            pins.get(reference) if reference in pinned or reference not in users else None,
            tuple(users.get(reference, ())),
            built_on(graph, users.get(reference, ())),
        )
        for reference in sorted({*users, *pins})
    )


def built_on(graph: ImageGraph, names: Iterable[str]) -> tuple[str, ...]:
    """The images that are built on these, at whatever distance, bases first."""
    found = set(names)
    start = frozenset(found)
    for name, node in graph.images.items():
        # They come after what they are built on.
        if not found.isdisjoint(node.bases):
            found.add(name)
    return tuple(name for name in graph.images if name in found - start)


def _kind(
    reference: str, users: Mapping[str, object], pinned: set[str], pins: Mapping[str, Pin]
) -> Kind:
    if reference not in users:
        return Kind.UNUSED
    if own_digest(reference):
        return Kind.IN_DOCKERFILE
    if reference not in pinned:
        return Kind.FOREIGN
    return Kind.PINNED if reference in pins else Kind.NOT_PINNED
