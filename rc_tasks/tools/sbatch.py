"""sbatch and squeue: submit a batch script, and list the jobs of a name."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import CommandError, SlurmError, UnreachableError
from rc_tasks.tools import command, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

_TIMEOUT_S = 60.0
# Options that users may set for all their jobs with SBATCH_ variables. These override a script's
# #SBATCH.
_CHOICES = ("account", "partition", "qos", "reservation", "constraint", "wckey")
# Characters that need no quotes in an #SBATCH line.
_PLAIN = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


class Job(Struct, frozen=True):
    """A job in the queue: `state` as Slurm calls it, such as `PENDING`."""

    id: str
    state: str
    user: str


def directives(options: Iterable[str]) -> str:
    """Return options as the `#SBATCH` lines of a script; each holds no line break."""
    return "".join(f"#SBATCH {_directive(option)}\n" for option in options)


def _directive(option: str) -> str:
    if _PLAIN.fullmatch(option):
        return option
    # sbatch 22.05 reads a backslash as an escape, and # and spaces as text, only between double quotes.
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def file_pattern(path: Path, suffix: str) -> str:
    """Return a path for --output; in `suffix`, which is added to it, `%j` is the job ID."""
    # sbatch(1), "filename pattern". For a relative path, Slurm would also read the working directory as
    # a pattern. In a path with a backslash, Slurm replaces nothing at all.
    return str(path).replace("%", "%%") + suffix


def submit(script: str, directory: Path, request: StepRequest) -> str:
    """Submit a batch script from a directory and return the job ID. `request` is for errors.

    Raise SlurmError when Slurm refuses it.
    """
    command.require("sbatch", slurm.INSTALL_HINT)
    sbatch = Command(("sbatch", "--parsable"), cwd=directory, unset=_unset(script))
    done = command.capture(sbatch, stdin=script, timeout_s=_TIMEOUT_S, check=False)
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
    """Return the variables that would change what a script asks for."""
    set_here = {name for name in os.environ if name.startswith("SBATCH_")}
    open_choices = {
        f"SBATCH_{choice.upper()}"
        for choice in _CHOICES
        if not re.search(rf'^#SBATCH "?--{choice}\b', script, re.MULTILINE)
    }
    return slurm.job_variables() | (set_here - open_choices)


def jobs(name: str) -> list[Job]:
    """Return the unfinished jobs of a name, of all users as far as Slurm shows their jobs.

    Raise UnreachableError when Slurm's controller does not answer, SlurmError for another failure.
    """
    query = slurm.queue(f"--name={name}", "--format=%A %T %u")
    try:
        done = command.capture(query, timeout_s=_TIMEOUT_S)
    except CommandError as error:
        unreachable = slurm_words.unreachable("\n".join(error.quote))
        raise (UnreachableError if unreachable else SlurmError)(
            "Slurm cannot be asked for its jobs",
            quote=error.quote,
            hint="`scontrol ping` tells how Slurm is; then run the same command again",
        ) from None
    return [Job(*line.split(maxsplit=2)) for line in done.stdout.splitlines() if line.strip()]


def has_scrontab() -> bool:
    """Return whether the site offers users scrontab (slurm.conf(5), ScronParameters)."""
    if command.which("scrontab") is None or command.which("scontrol") is None:
        return False
    query = Command(("scontrol", "show", "config"))
    done = command.capture(query, timeout_s=_TIMEOUT_S, check=False)
    return re.search(r"^ScronParameters\s*=.*\benable\b", done.stdout, re.MULTILINE) is not None
