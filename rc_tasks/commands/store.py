"""`doit store`: what the image store holds, what each image adds to it, and what refers to it."""

import json
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import asdict, dataclass

from rc_tasks.commands.cli.parser import add_json
from rc_tasks.engine.session import session
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.published.references import references
from rc_tasks.views import tables

_SHORT_ID = 12


@dataclass(frozen=True, slots=True)
class Stored:
    """An image in the store; `alone_bytes` is what it adds to the others.

    Caches and what nothing refers to share everything with the images that they led to: they do not
    count as others for these.
    """

    image_id: str
    alone_bytes: int
    size_bytes: int
    referred_by: tuple[str, ...]


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "ALONE is the size of the layers that no other image has; for an image of this checkout and for"
        " a base from a registry, no other one of these. What nothing refers to is of no use any more:"
        " `doit gc` removes it."
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Show the image store."""
    checkout = session().checkout
    images = stored(checkout)
    size_bytes = checkout.store.size_bytes()
    if args.json:
        document = {"images": [asdict(image) for image in images], "size_bytes": size_bytes}
        print(json.dumps(document, indent=1))
        return 0
    rows = [
        (
            image.image_id[:_SHORT_ID],
            tables.size(image.alone_bytes),
            tables.size(image.size_bytes),
            ", ".join(image.referred_by) or "nothing",
        )
        for image in images
    ]
    tables.table(
        ("IMAGE", "ALONE", "TOTAL", "REFERRED TO BY"), rows, right=frozenset({"ALONE", "TOTAL"})
    )
    print(f"{tables.size(size_bytes)} on disk in {checkout.shown(checkout.store.directory)}")
    return 0


def stored(checkout: Checkout) -> list[Stored]:
    """Every image in the store, those first that alone take most."""
    needed = references(checkout)
    referred, leading = needed.words, needed.leading
    sizes = dict(checkout.store.sizes())
    users = Counter(digest for blobs in sizes.values() for digest in blobs)
    of_leading = Counter(digest for each in leading for digest in sizes.get(each, ()))
    images = [
        Stored(
            image_id,
            sum(
                size
                for digest, size in blobs.items()
                if (of_leading if image_id in leading else users)[digest] == 1
            ),
            sum(blobs.values()),
            tuple(referred.get(image_id, ())),
        )
        for image_id, blobs in sizes.items()
    ]
    return sorted(images, key=lambda image: (-image.alone_bytes, -image.size_bytes, image.image_id))
