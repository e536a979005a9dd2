"""sbatch and the queue: a script handed to Slurm, and which jobs of a name there are."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.errors import CommandError, SlurmError, UnreachableError
from rc_tasks.tools import command, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

_TIMEOUT_S = 60.0
# What people may choose for all that they submit. sbatch believes these variables more than its script.
_CHOICES = ("account", "partition", "qos", "reservation", "constraint", "wckey")
# What stands in an option of a script without being taken for something else.
_PLAIN = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Job:
    """A job in the queue: `state` as Slurm calls it, such as `PENDING`."""

    id: str
    state: str
    user: str


def directives(options: Iterable[str]) -> str:
    """Options as the `#SBATCH` lines of a script; each holds no line break."""
    return "".join(f"#SBATCH {_directive(option)}\n" for option in options)


def _directive(option: str) -> str:
    if _PLAIN.fullmatch(option):
        return option
    # Only between double quotes does sbatch 22.05 know a backslash, and leave # and spaces alone.
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def file_pattern(path: Path, suffix: str) -> str:
    """A path for --output; in `suffix`, which is added to it, `%j` is the job ID."""
    # sbatch(1), "filename pattern". The working directory of a relative one would be taken for a
    # pattern too. With a backslash in it, nothing is replaced at all.
    return str(path).replace("%", "%%") + suffix


def submit(script: str, directory: Path, request: StepRequest) -> str:
    """Hand in a batch script from a directory; returns the job ID. `request` is for errors.

    Raises SlurmError when Slurm refuses it.
    """
    command.require("sbatch", slurm.INSTALL_HINT)
    wanted = Command(("sbatch", "--parsable"), cwd=directory, unset=_unset(script))
    done = command.capture(wanted, stdin=script, timeout_s=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        raise slurm_words.explain(done.returncode, lines, request) or SlurmError(
            f"Slurm did not take {request}",
            quote=tuple(lines[-command.TAIL_LINES :]),
            hint="`scontrol ping` tells how Slurm is",
        )
    # JOB, or JOB;CLUSTER where there are several (sbatch(1), --parsable).
    return done.stdout.strip().partition(";")[0]


def _unset(script: str) -> frozenset[str]:
    """The variables that would change what a script asks for."""
    ours = {name for name in os.environ if name.startswith("SBATCH_")}
    open_choices = {
        f"SBATCH_{choice.upper()}"
        for choice in _CHOICES
        if not re.search(rf'^#SBATCH "?--{choice}\b', script, re.MULTILINE)
    }
    return slurm.of_the_job_around_us() | (ours - open_choices)


def jobs(name: str) -> list[Job]:
    """The jobs of a name that have not ended, whosever they are, as far as Slurm shows others' jobs.

    Raises SlurmError when Slurm cannot say, UnreachableError when its controller does not answer.
    """
    asked = slurm.queue(f"--name={name}", "--format=%A %T %u")
    try:
        done = command.capture(asked, timeout_s=_TIMEOUT_S)
    except CommandError as error:
        silent = slurm_words.unreachable("\n".join(error.quote))
        raise (UnreachableError if silent else SlurmError)(
            "Slurm cannot be asked for its jobs",
            quote=error.quote,
            hint="`scontrol ping` tells how Slurm is; then run the same command again",
        ) from None
    return [Job(*line.split(maxsplit=2)) for line in done.stdout.splitlines() if line.strip()]


def has_scrontab() -> bool:
    """Whether the site lets its users have a crontab of Slurm's (slurm.conf(5), ScronParameters)."""
    if command.which("scrontab") is None or command.which("scontrol") is None:
        return False
    asked = Command(("scontrol", "show", "config"))
    done = command.capture(asked, timeout_s=_TIMEOUT_S, check=False)
    return re.search(r"^ScronParameters\s*=.*\benable\b", done.stdout, re.MULTILINE) is not None
