"""Whether steps run through Slurm."""

from rc_tasks.model.config.settings import Runner
from rc_tasks.tools import slurm


def runner(setting: Runner) -> Runner:
    """Return where steps run: on a login node of a cluster only if the setting is `local`."""
    if setting is Runner.AUTO:
        return Runner.SLURM if slurm.configured() else Runner.LOCAL
    return setting
