"""The request of a step to Slurm."""

from msgspec import Struct


class StepRequest(Struct, frozen=True):
    """What a command needs from Slurm. Empty strings and zeros leave the choice to Slurm.

    `nodes` is the number of nodes of an allocation, each for `steps` steps of `cpus` CPUs.
    Inside an allocation only `job_name`, `cpus`, `node` and `extra` count. Hints name
    `settings_table`, the settings with these values, and `again` where another try may help.
    """

    job_name: str
    account: str = ""
    partition: str = ""
    time_limit_min: int = 0
    cpus: int = 0
    nodes: int = 0
    steps: int = 1
    node: str = ""
    extra: tuple[str, ...] = ()
    settings_table: str = "slurm"
    again: str = "run `doit` again: finished steps are kept"

    def __str__(self) -> str:
        """Return the request in words, for errors."""
        account = f"account {self.account}" if self.account else "no account"
        partition = f"partition {self.partition}" if self.partition else "the default partition"
        return f"{self.job_name} ({account}, {partition})"
