"""ONBUILD triggers: instructions that an image adds to every stage that is built on it."""

from collections.abc import Iterable

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.instructions import Instruction, instructions
from rc_tasks.model.dockerfile.parser import EXPANDED


def of_stage(source: Iterable[Instruction], index: int) -> tuple[str, ...]:
    """The triggers that a stage of a Dockerfile itself defines."""
    found: list[list[str]] = []
    for instruction in source:
        if instruction.name == "FROM":
            found.append([])
        elif instruction.name == "ONBUILD" and found:
            found[-1].append(instruction.value)
    return tuple(found[index])


def require_own_files(triggers: Iterable[str], *, base: str, where: str) -> None:
    """Raise DockerfileError when a trigger of `base` takes files from another image or stage.

    podman 4.3.1 passes over the stages of the Dockerfile that is built, and takes whatever image has
    that name on the node.
    """
    for trigger in triggers:
        for instruction in instructions(trigger.encode(), where=where).instructions:
            if any(_takes_from_elsewhere(flag) for flag in instruction.flags):
                raise DockerfileError(
                    f"{base} has the trigger ONBUILD {trigger}: which image that names depends on the"
                    " node",
                    where=where,
                    hint="take the trigger out of the base and write its instruction in this Dockerfile",
                )


def are_overlooked(triggers: Iterable[str], where: str) -> bool:
    """Whether a trigger reads what podman's layer cache does not see; its text cannot be marked.

    See `model/dockerfile/rewrite.py`.
    """
    for trigger in triggers:
        for instruction in instructions(trigger.encode(), where=where).instructions:
            text = " ".join((*instruction.flags, instruction.value))
            if instruction.name in EXPANDED and "$" in text:
                return True
            if instruction.name == "RUN" and any(f.startswith("--mount=") for f in instruction.flags):
                return True
    return False


def _takes_from_elsewhere(flag: str) -> bool:
    key, _, value = flag.partition("=")
    return key == "--from" or (
        key == "--mount" and any(field.startswith("from=") for field in value.split(","))
    )
