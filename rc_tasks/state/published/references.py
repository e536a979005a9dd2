"""References to images: `doit store` shows them, and `doit gc` removes images without any."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import reading
from rc_tasks.state.records.records import Step, Task

_SUFFIX = ".json"


@dataclass(slots=True)
class References:
    """By image ID what refers to it, in words. `leading` are those that not only a cache refers to.

    `unreadable` are files that may refer to more.
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
    """Return all that refers to images.

    `without` names images that count as if they had never been, `leaving` the files of bases and the
    directories of kept images that do.
    """
    found = References()
    for name in sorted(recorded(checkout) - set(without)):
        _of_image(checkout, name, found)
    for name in checkout.previous.names():
        if name not in without:
            for entry, image_id in checkout.previous.image_ids(name):
                path = checkout.previous.directory / name / entry
                if path in leaving:
                    continue
                if not image_id:
                    found.unreadable.append(path)
                if f"image {name}" not in found.words.get(image_id, ()):
                    found.add(image_id, f"previous image of {name}")
    for path, base in checkout.store.catalogue.base_files():
        if path not in leaving:
            found.add(base.image_id, f"registry base {base.reference}")
    found.leading |= set(found.words)
    for name, cached in checkout.store.catalogue.caches():
        for image in cached if name not in without else ():
            # That an image is in its own cache as well says nothing.
            if f"image {name}" not in found.words.get(image.image_id, ()):
                found.add(image.image_id, f"cache of {name}")
    return found


def recorded(checkout: Checkout) -> set[str]:
    """Return the names of all images of which a record is there, of projects that are gone too."""
    found = set()
    for file in reading.names(checkout.records.directory):
        task = Task.parse(file.removesuffix(_SUFFIX))
        if file.endswith(_SUFFIX) and task is not None:
            found.add(task.name)
    return found


def _of_image(checkout: Checkout, name: str, found: References) -> None:
    for step in (Step.PODMAN, Step.ENROOT):
        record = checkout.records.get(step, name)
        path, _ = checkout.records.files(step, name)
        if record is None:
            if path.exists():
                found.unreadable.append(path)
        elif record.facts is not None:
            found.add(record.facts.image_id, f"image {name}")
        else:
            image_id = record.inputs.get("image", "")
            if f"image {name}" not in found.words.get(image_id, ()):
                found.add(image_id, f"published image of {name}")
