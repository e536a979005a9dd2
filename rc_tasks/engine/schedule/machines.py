"""Machines that images can be built for from here; images for others are left alone."""

from rc_tasks.engine.runner import runner
from rc_tasks.model.config.settings import Runner
from rc_tasks.state.checkout import Checkout
from rc_tasks.tools import binfmt


def left_alone(checkout: Checkout) -> dict[str, str]:
    """Return the images that no run takes because no node has their machine, each with what to do."""
    others = {
        name: node.project.machine
        for name, node in checkout.graph.images.items()
        if node.project.machine not in ("", checkout.architecture)
    }
    # Few checkouts have images for several machines.
    if not others:
        return {}
    through_slurm = runner(checkout.settings.runner) is Runner.SLURM
    words = {}
    for machine in set(others.values()):
        if through_slurm and machine in checkout.settings.arch:
            continue
        if not through_slurm and binfmt.emulates(machine):
            continue
        words[machine] = (
            f"name its nodes in the settings: arch.{machine}.partition"
            if through_slurm
            else f"this host is {checkout.architecture}, and does not emulate {machine}"
        )
    return {name: words[machine] for name, machine in others.items() if machine in words}
