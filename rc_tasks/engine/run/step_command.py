"""Command of a step; here the commands find it without doit."""

import sys
from pathlib import Path

from rc_tasks.engine.run.allocator import Slot
from rc_tasks.tools import slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest


def step_process(root: Path, action: str, *arguments: str) -> Command:
    """Return the command `python -m rc_tasks.steps action arguments…`."""
    return Command((sys.executable, "-m", "rc_tasks.steps", action, *arguments), cwd=root)


def step_command(
    root: Path, slot: Slot, action: str, *arguments: str
) -> tuple[Command, StepRequest | None]:
    """Return the command that runs a step in its slot, and its request to Slurm, if any."""
    inner = step_process(root, action, *arguments)
    if not slot.job_id:
        return inner, None
    request = StepRequest(
        job_name=":".join((action, *arguments[:1])),
        time_limit_min=slot.settings.time_limit_min,
        cpus=slot.cpus,
        node=slot.node,
        # Of an allocation of ours they are part already.
        extra=slot.settings.extra if slurm.job_id() is not None else (),
    )
    return slurm.srun(inner, request, allocation=None if slurm.job_id() else slot.job_id), request
