"""ONBUILD triggers: instructions that an image adds to every stage that is built on it."""

from collections.abc import Iterable

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.instructions import Instruction, instructions
from rc_tasks.model.dockerfile.parser import EXPANDED


def of_stage(source: Iterable[Instruction], index: int) -> tuple[str, ...]:
    """Return the triggers that a stage of a Dockerfile defines itself."""
    stages: list[list[str]] = []
    for instruction in source:
        if instruction.name == "FROM":
            stages.append([])
        elif instruction.name == "ONBUILD" and stages:
            stages[-1].append(instruction.value)
    return tuple(stages[index])


def require_own_files(triggers: Iterable[str], *, base: str, where: str) -> None:
    """Raise DockerfileError when a trigger of `base` takes files from another image or stage.

    podman 4.3.1 ignores the stages of the Dockerfile that is built, and takes any image of that name on
    the node.
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
    """Return whether podman's layer cache overlooks an input of a trigger.

    `model/dockerfile/rewrite.py` cannot mark the text of a trigger.
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
