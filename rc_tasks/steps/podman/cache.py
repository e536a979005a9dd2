"""Which images `podman build` made on its way, and which of them a Dockerfile can still use.

podman prints the image of each instruction; to list its storage instead fails for ever when a killed
podman left one half-written, and would not tell which belong together.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rc_tasks.model.dockerfile.instructions import encode, instructions
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.store.catalogue import Cached
from rc_tasks.tools.podman import Podman

# Without the part in brackets when there is a single stage.
_STEP = re.compile(r"(?:\[(\d{1,6})/\d+\] )?STEP (\d{1,6})/(\d{1,6}): ")
_MADE = re.compile(r"--> (?:Using cache )?([0-9a-f]{11,64})")

Keys = tuple[tuple[str, ...], ...]


def keys(node: ImageNode, text: str, bases: Mapping[str, str]) -> Keys:
    """A key for each instruction of each stage: it says all above it, back to the base's image ID.

    `text` is the Dockerfile as podman is given it, with the digests of what instructions read.

    An image whose key a Dockerfile has not got any more is of no use to it. One whose key it has may
    be of none all the same, as files that are copied and arguments do not count.
    """
    source = instructions(encode(text), where=node.project.shown_dockerfile)
    found: list[list[str]] = []
    for instruction in source.instructions:
        written = f"{instruction.name} {instruction.flags} {instruction.value}"
        if instruction.name == "FROM":
            stage = node.dockerfile.stages[len(found)]
            if stage.parent is not None:
                start = found[stage.parent][-1]
            else:
                start = bases.get(stage.base.name, stage.base.name) if stage.base else ""
            found.append([_digest("FROM", start)])
        elif found:
            found[-1].append(_digest(found[-1][-1], written))
    return tuple(map(tuple, found))


@dataclass(slots=True)
class Made:
    """The images that a build used or made, read off podman's output line by line."""

    keys: Keys = ()
    _key: str = ""
    _found: dict[str, str] = field(default_factory=dict)

    def see(self, line: str) -> None:
        """Read the next line. What a RUN prints may look like podman's: then an image more is kept."""
        if step := _STEP.match(line):
            stage, number, total = int(step[1] or 1), int(step[2]), int(step[3])
            known = self.keys[stage - 1] if 0 < stage <= len(self.keys) else ()
            # ONBUILD of a base adds instructions that the Dockerfile has not got.
            self._key = known[number - 1] if 0 < number <= total == len(known) else ""
        elif made := _MADE.fullmatch(line.rstrip("\r")):
            self._found[made[1]] = self._key

    def images(self, podman: Podman) -> tuple[Cached, ...]:
        """The images that podman's storage still holds, in the order of the instructions."""
        held = dict.fromkeys(podman.held(self._found))
        return tuple(
            Cached(
                image_id, next(key for short, key in self._found.items() if image_id.startswith(short))
            )
            for image_id in held
        )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
