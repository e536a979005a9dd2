"""References to images: `doit store` shows them, and `doit gc` removes images without any."""

from collections.abc import Collection
from pathlib import Path

from msgspec import Struct, field

from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import reading
from rc_tasks.state.records.records import Step, Task

_SUFFIX = ".json"


class References(Struct):
    """Descriptions of the references to each image, by image ID.

    `leading` are the images that have references other than caches. `unreadable` are files that may
    hold more references.
    """

    words: dict[str, list[str]] = field(default_factory=dict)
    leading: set[str] = field(default_factory=set)
    unreadable: list[Path] = field(default_factory=list)

    def add(self, image_id: str, words: str) -> None:
        """Note that something refers to an image."""
        if image_id and words not in self.words.setdefault(image_id, []):
            self.words[image_id].append(words)


def references(
    checkout: Checkout, without: Collection[str] = (), leaving: Collection[Path] = ()
) -> References:
    """Return all references to images.

    Ignore the images in `without`, and the files of bases and directories of kept images in `leaving`.
    """
    result = References()
    for name in sorted(recorded(checkout) - set(without)):
        _of_image(checkout, name, result)
    for name in checkout.previous.names():
        if name not in without:
            for entry, image_id in checkout.previous.image_ids(name):
                path = checkout.previous.directory / name / entry
                if path in leaving:
                    continue
                if not image_id:
                    result.unreadable.append(path)
                if f"image {name}" not in result.words.get(image_id, ()):
                    result.add(image_id, f"previous image of {name}")
    for path, base in checkout.store.catalogue.base_files():
        if path not in leaving:
            result.add(base.image_id, f"registry base {base.reference}")
    result.leading |= set(result.words)
    for name, cached in checkout.store.catalogue.caches():
        for image in cached if name not in without else ():
            # The cache of an image holds the image itself too: leave that reference out.
            if f"image {name}" not in result.words.get(image.image_id, ()):
                result.add(image.image_id, f"cache of {name}")
    return result


def recorded(checkout: Checkout) -> set[str]:
    """Return the names of all images that have a record, including those of deleted projects."""
    names = set()
    for file in reading.names(checkout.records.directory):
        task = Task.parse(file.removesuffix(_SUFFIX))
        if file.endswith(_SUFFIX) and task is not None:
            names.add(task.name)
    return names


def _of_image(checkout: Checkout, name: str, result: References) -> None:
    for step in (Step.PODMAN, Step.ENROOT):
        # A step may have written it since this process has read it.
        checkout.records.reread(step, name)
        record = checkout.records.get(step, name)
        path, _ = checkout.records.files(step, name)
        if record is None:
            if path.exists():
                result.unreadable.append(path)
        elif record.facts is not None:
            result.add(record.facts.image_id, f"image {name}")
        else:
            image_id = record.inputs.get("image", "")
            if f"image {name}" not in result.words.get(image_id, ()):
                result.add(image_id, f"published image of {name}")
