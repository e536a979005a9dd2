"""`doit store`: what the image store holds, what each image adds to it, and what refers to it."""

import json
from argparse import ArgumentParser, Namespace
from collections import Counter

from msgspec import Struct, to_builtins

from rc_tasks.commands.cli.parser import add_json
from rc_tasks.engine.session import session
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.published.references import references
from rc_tasks.views import tables

_SHORT_ID = 12


class Stored(Struct, frozen=True):
    """An image in the store, its size, and what refers to it.

    `alone_bytes` is the size of its layers that no other image has. For an image of this checkout and
    a registry base, only these count as other images: caches and unused images share their layers.
    """

    image_id: str
    alone_bytes: int
    size_bytes: int
    referred_by: tuple[str, ...]


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "ALONE is the size of the layers that no other image has. For images of this checkout and bases"
        " from a registry, only these count as other images. `doit gc` removes images to which nothing"
        " refers."
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Print the images of the store, as a table or as JSON."""
    checkout = session().checkout
    images = stored(checkout)
    size_bytes = checkout.store.size_bytes()
    if args.json:
        document = {"images": [to_builtins(image) for image in images], "size_bytes": size_bytes}
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
    """Return all images in the store, the one with the most bytes of its own first."""
    refs = references(checkout)
    leading = refs.leading
    sizes = dict(checkout.store.sizes())
    users = Counter(digest for blobs in sizes.values() for digest in blobs)
    of_leading = Counter(digest for image_id in leading for digest in sizes.get(image_id, ()))
    images = [
        Stored(
            image_id,
            sum(
                size
                for digest, size in blobs.items()
                if (of_leading if image_id in leading else users)[digest] == 1
            ),
            sum(blobs.values()),
            tuple(refs.words.get(image_id, ())),
        )
        for image_id, blobs in sizes.items()
    ]
    return sorted(images, key=lambda image: (-image.alone_bytes, -image.size_bytes, image.image_id))
