"""The instruction at which a `podman build` failed, and the image in which it ran, for `doit debug`."""

from rc_tasks.model.dockerfile.instructions import Instruction, encode, instructions
from rc_tasks.state.store.catalogue import FailedInstruction
from rc_tasks.steps.podman.cache import LayerImages
from rc_tasks.steps.podman.prepared import PreparedBuild
from rc_tasks.tools.podman import Podman
from rc_tasks.tools.podman import version as podman_version


def failed_instruction(
    prepared: PreparedBuild, layers: LayerImages, podman: Podman
) -> FailedInstruction | None:
    """Return where a build has failed that printed what `layers` has read; None if at no instruction."""
    stages, step = _by_stage(prepared), layers.step
    # The first step of a stage is its FROM.
    if step is None or not 0 <= step.stage < len(stages) or step.number < 2:
        return None
    stage = stages[step.stage]
    # ONBUILD triggers of the base run first, and podman counts them as well.
    triggers = step.total - len(stage)
    index = step.number - 1 - triggers
    if triggers < 0 or index >= len(stage):
        return None
    image_id = _start(prepared, step.stage, layers)
    return FailedInstruction(
        stage[max(index, 0)].line,
        prepared.text.decode(errors="replace"),
        # podman prints short IDs.
        next(iter(podman.held((image_id,))), "") if image_id else "",
        prepared.node.options.build_args,
        podman_version(),
        step.text if index < 1 else "",
    )


def _by_stage(prepared: PreparedBuild) -> list[list[Instruction]]:
    """Return the instructions of each stage; their lines are those of the user's Dockerfile."""
    where = prepared.node.project.shown_dockerfile
    stages: list[list[Instruction]] = []
    for instruction in instructions(encode(prepared.dockerfile.text), where=where).instructions:
        if instruction.name == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(instruction)
    return stages


def _start(prepared: PreparedBuild, stage: int, layers: LayerImages) -> str:
    """Return the image in which the next instruction of a stage runs, or an empty string."""
    if last := layers.last(stage):
        return last
    begin = prepared.node.dockerfile.stages[stage]
    if begin.parent is not None:
        return _start(prepared, begin.parent, layers)
    return prepared.ids.get(begin.base.name, "") if begin.base is not None else ""
