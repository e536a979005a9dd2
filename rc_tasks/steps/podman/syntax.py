"""Check of Dockerfile syntax that this node's podman may be too old for."""

import os
from collections.abc import Collection, Iterator

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.instructions import Instruction, Source, heredocs_of
from rc_tasks.tools import podman_versions


def require_known(source: Source, needed: Collection[int], version: str, *, where: str) -> None:
    """Raise DockerfileError for the first instruction that podman of this version does not know.

    podman's own message would call it a mistake in the Dockerfile. `needed` are the indices of the
    stages that are built: podman skips the others.
    """
    stage = -1
    for instruction in source.instructions:
        stage += instruction.name == "FROM"
        if stage not in needed:
            continue
        for words, since in _needed(instruction):
            if not podman_versions.at_least(version, since):
                required = ".".join(map(str, since))
                raise DockerfileError(
                    f"podman {version} on {os.uname().nodename} does not know {words}: podman {required}"
                    " does",
                    where=f"{where}:{instruction.line}",
                    hint="build it on a node with a newer podman, or write it without",
                )


def _needed(instruction: Instruction) -> Iterator[tuple[str, tuple[int, ...]]]:
    if heredocs_of(instruction):
        yield "here-documents (<<)", podman_versions.HEREDOCS_SINCE
    for flag in instruction.flags:
        name = flag.partition("=")[0]
        if (since := podman_versions.FLAGS_SINCE.get((instruction.name, name))) is not None:
            yield f"{instruction.name} {name}", since
