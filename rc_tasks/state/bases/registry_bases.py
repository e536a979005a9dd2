"""Registry bases of a checkout: how builds take each, and which images are built on it."""

from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.model.graph.graph import ImageGraph
from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.reference import ImageReference, own_digest


class BaseKind(StrEnum):
    """How builds take a base."""

    PINNED = "pinned"
    NOT_PINNED = "not pinned yet"
    IN_DOCKERFILE = "in the Dockerfile"
    FOREIGN = "another platform"
    UNUSED = "no image needs it"


class RegistryBase(Struct, frozen=True):
    """A base by its reference.

    `images` name it in their Dockerfiles; `dependents` are built on these images.
    """

    reference: str
    kind: BaseKind
    pin: Pin | None
    images: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()

    @property
    def digest(self) -> str | None:
        """The digest that builds take, `sha256:…`, where it is fixed."""
        return self.pin.digest if self.pin is not None else own_digest(self.reference)

    @property
    def whole(self) -> str:
        """The full reference to ask a registry for; a digest replaces the tag, as in podman."""
        if digest := own_digest(self.reference):
            return str(replace(ImageReference.parse(self.reference), tag=None, digest=digest))
        return (self.pin.name if self.pin is not None else "") or self.reference


def registry_bases(graph: ImageGraph, pins: Mapping[str, Pin]) -> tuple[RegistryBase, ...]:
    """Return every base that comes from a registry, and every pin, sorted by reference."""
    users: dict[str, list[str]] = defaultdict(list)
    dependents: dict[str, list[str]] = defaultdict(list)
    pinned: set[str] = set()
    # The registry bases of each image with those of what it is built on, which comes before it.
    reached: dict[str, set[str]] = {}
    for name, node in graph.images.items():
        pinned.update(node.pinned)
        used = {base.name for base in node.dockerfile.bases if base.stage in node.dockerfile.needed}
        own = used.intersection(node.remote)
        reached[name] = own.union(*(reached[base] for base in node.bases if base in reached))
        for reference in own:
            users[reference].append(name)
        for reference in reached[name] - own:
            dependents[reference].append(name)
    return tuple(
        RegistryBase(
            reference,
            _kind(reference, users, pinned, pins),
            # One that is left to podman in one image may be taken by its pin in another.
            pins.get(reference) if reference in pinned or reference not in users else None,
            tuple(users.get(reference, ())),
            tuple(dependents.get(reference, ())),
        )
        for reference in sorted({*users, *pins})
    )


def _kind(
    reference: str, users: Mapping[str, object], pinned: set[str], pins: Mapping[str, Pin]
) -> BaseKind:
    if reference not in users:
        return BaseKind.UNUSED
    if own_digest(reference):
        return BaseKind.IN_DOCKERFILE
    if reference not in pinned:
        return BaseKind.FOREIGN
    return BaseKind.PINNED if reference in pins else BaseKind.NOT_PINNED
