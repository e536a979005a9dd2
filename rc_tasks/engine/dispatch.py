"""Runs one step where it belongs: as a Slurm job step, or here where there is no Slurm."""

import contextlib
import os
import sys
import time
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from textwrap import shorten

from doit.exceptions import TaskFailed

from rc_tasks.engine.session import Session
from rc_tasks.errors import RcError
from rc_tasks.model.settings import Runner, Slurm
from rc_tasks.state.files import refused
from rc_tasks.state.records import Failure, Step
from rc_tasks.steps.outcome import FAILED, FAILED_AS_ABOVE
from rc_tasks.tools import command, podman, slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm import StepRequest

# How much of a log's end is read to tell why a step failed.
_TAIL_BYTES = 64 * 1024
_INSTRUCTION_WIDTH = 72
# Longer than what a step gives its own tools: it has to clean up after them.
STEP_GRACE_S = 2 * command.GRACE_S


def run_step(session: Session, step: Step, name: str) -> TaskFailed | None:
    """doit's action of a step: None when it succeeded, else the failure with its whole text."""
    started = time.monotonic()
    log = _new_log(session.checkout.logs(step, name))
    # Taken before the step starts: what failed is what was there then.
    inputs: dict[str, str] = {}
    records = session.checkout.records
    try:
        before, version = records.get(step, name), records.version(step, name)
        inputs = session.judge.inputs(step, name)
        wanted, request = step_command(session, step, name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            output.write(f"$ {wanted}\n".encode())
            returncode = command.stream(wanted, output, grace_s=STEP_GRACE_S)
        session.judge.done(step, name)
        # The record is the proof, not the status: srun 22.05 returns 0 when the node fails.
        after = records.get(step, name)
        if returncode == 0 and after and records.version(step, name) != version:
            if before and before.facts and before.facts == after.facts:
                session.remarks[f"{step}:{name}"] = "to the same image as before"
            return None
        text = _why(returncode, log, request)
    except RcError as error:
        text = str(error)
    except OSError as error:
        told = refused(error, log)
        if told is None:
            raise
        text = str(told)
    finally:
        session.judge.done(step, name)
    text = text.removeprefix(f"{session.checkout.root}/")
    shown = session.checkout.shown(log) if log.exists() else ""
    message = text.partition("\n")[0]
    failed_at = datetime.now(UTC).isoformat(timespec="seconds")
    # Where nothing can be written, the text itself says so.
    with contextlib.suppress(RcError):
        records.put_failure(step, name, Failure(inputs, failed_at, message, shown))
    took = f"after {time.monotonic() - started:.1f} s"
    return TaskFailed(f"{text}\n  log:  {shown} ({took})" if shown else text)


def step_command(session: Session, step: Step, name: str) -> tuple[Command, StepRequest | None]:
    """The command that carries out a step, and what is asked of Slurm for it (None: it runs here)."""
    checkout = session.checkout
    settings = checkout.graph.resolve(name).recipe.slurm.apply(checkout.settings.slurm)
    return in_a_step(session, f"{step}:{name}", step, settings, name)


def in_a_step(
    session: Session, job_name: str, action: str, settings: Slurm, *names: str
) -> tuple[Command, StepRequest | None]:
    """`python -m rc_tasks.steps action names…` where steps run."""
    checkout = session.checkout
    inner = Command((sys.executable, "-m", "rc_tasks.steps", action, *names), cwd=checkout.root)
    if runner(checkout.settings.runner) is Runner.LOCAL:
        return inner, None
    request = StepRequest(
        job_name=job_name,
        account=settings.account,
        partition=settings.partition,
        time_limit_min=settings.time_limit_min,
        cpus=settings.cpus,
        extra=settings.extra,
    )
    return slurm.srun(inner, request), request


def runner(wanted: Runner) -> Runner:
    """Where steps run: nothing heavy ever runs on a login node of a cluster unless it is asked for."""
    if wanted is Runner.AUTO:
        return Runner.SLURM if slurm.configured() else Runner.LOCAL
    return wanted


def _new_log(directory: Path) -> Path:
    start = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3] + "Z"
    return directory / f"{start}.{os.getpid()}.log"


def _why(returncode: int, log: Path, request: StepRequest | None) -> str:
    """Why a step failed: our own words at the end of its log, else Slurm's, else its last lines."""
    lines = _tail(log)
    # Slurm's own lines can stand anywhere among those of the step.
    own = [line for line in lines if request is None or not slurm.said(line)]
    marks = [at for at, line in enumerate(own) if line in (FAILED, FAILED_AS_ABOVE)]
    if marks:
        at = marks[-1]
        before, (first, *rest) = own[:at], own[at + 1 :] or ["the step failed"]
        if own[at] != FAILED_AS_ABOVE:
            return "\n".join((first, *rest))
        instruction = shorten(podman.failed_instruction(before), _INSTRUCTION_WIDTH, placeholder=" …")
        if instruction:
            first = first.replace("podman build", instruction, 1)
        # What was answered from cache before the failing instruction explains nothing.
        steps = [number for number, line in enumerate(before) if line.startswith("STEP ")]
        return "\n".join((first, *_quote(before[steps[-1] :] if steps else before), *rest))
    if request is not None:
        error = slurm.explain(returncode, lines, request)
        if error is not None:
            return str(error)
    what = command.ending(returncode) if returncode else "ended without finishing its work"
    return "\n".join((f"the step {what}", *_quote(lines)))


def _quote(lines: list[str]) -> list[str]:
    """The last lines of a log, without its first one, our own command; repeated lines once."""
    told = [line for line, _ in groupby(lines) if line.strip() and not line.startswith("$ ")]
    return [f"  | {line}" for line in told[-command.TAIL_LINES :]]


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()
