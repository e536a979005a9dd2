"""Layer cache of a build: the images that `podman build` made, and keys for those still useful.

podman prints the image of each instruction. Listing its storage instead would fail for ever when a
killed podman left an image half-written, and would not show which images belong together.
"""

import hashlib
import re
from collections.abc import Mapping

from msgspec import Struct, field

from rc_tasks.model.dockerfile.instructions import encode, instructions
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.store.catalogue import Cached
from rc_tasks.tools.podman import Podman

# Without the part in brackets when there is a single stage.
_STEP = re.compile(r"(?:\[(\d{1,6})/\d+\] )?STEP (\d{1,6})/(\d{1,6}): ")
_MADE = re.compile(r"--> (?:Using cache )?([0-9a-f]{11,64})")

Keys = tuple[tuple[str, ...], ...]


def keys(node: ImageNode, text: str, bases: Mapping[str, str]) -> Keys:
    """Return a key for each instruction of each stage, a digest of all above it and of its base's ID.

    `text` is the rewritten Dockerfile, with the digests of what its instructions read.

    An image whose key is no longer in the Dockerfile is useless. An image whose key is there may be
    useless too, as copied files and arguments do not count.
    """
    source = instructions(encode(text), where=node.project.shown_dockerfile)
    stages_keys: list[list[str]] = []
    for instruction in source.instructions:
        written = f"{instruction.name} {instruction.flags} {instruction.value}"
        if instruction.name == "FROM":
            stage = node.dockerfile.stages[len(stages_keys)]
            if stage.parent is not None:
                start = stages_keys[stage.parent][-1]
            else:
                start = bases.get(stage.base.name, stage.base.name) if stage.base else ""
            stages_keys.append([_digest("FROM", start)])
        elif stages_keys:
            stages_keys[-1].append(_digest(stages_keys[-1][-1], written))
    return tuple(map(tuple, stages_keys))


class BuildStep(Struct, frozen=True):
    """A step of a build as podman counts: `number` from 1 in `stage`, an index, which has `total`.

    `text` is the instruction.
    """

    stage: int
    number: int
    total: int
    text: str


class LayerImages(Struct):
    """The images that a build used or made, parsed from podman's output line by line.

    `step` is the step that began last.
    """

    keys: Keys = ()
    step: BuildStep | None = None
    _key: str = ""
    _keys_by_id: dict[str, str] = field(default_factory=dict)
    # The image that each step of each stage has made, by its short ID.
    _made: dict[int, dict[int, str]] = field(default_factory=dict)

    def read_line(self, line: str) -> None:
        """Parse the next line. A line of a RUN may look like podman's; then one image more is kept."""
        if step := _STEP.match(line):
            stage, number, total = int(step[1] or 1), int(step[2]), int(step[3])
            self.step = BuildStep(stage - 1, number, total, line[step.end() :])
            if number == 1:
                # Another build may have built the stage before.
                self._made[stage - 1] = {}
            known = self.keys[stage - 1] if 0 < stage <= len(self.keys) else ()
            # ONBUILD triggers of a base add instructions that the Dockerfile lacks.
            self._key = known[number - 1] if 0 < number <= total == len(known) else ""
        elif made := _MADE.fullmatch(line.rstrip("\r")):
            self._keys_by_id[made[1]] = self._key
            if self.step is not None:
                self._made.setdefault(self.step.stage, {})[self.step.number] = made[1]

    def last(self, stage: int) -> str:
        """Return the short ID of the last image that was made in a stage, or an empty string.

        The step that began last does not count: it failed, or its image is not complete.
        """
        at = self.step.number if self.step is not None and self.step.stage == stage else None
        earlier = [number for number in self._made.get(stage, ()) if at is None or number < at]
        return self._made[stage][max(earlier)] if earlier else ""

    def images(self, podman: Podman) -> tuple[Cached, ...]:
        """Return the images that podman's storage still holds, in the order of the instructions."""
        ids = self._keys_by_id.items()
        return tuple(
            Cached(image_id, next(key for short, key in ids if image_id.startswith(short)))
            for image_id in dict.fromkeys(podman.held(self._keys_by_id))
        )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
