"""Diagnosis of a failed step from the end of its log."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import shorten

from rc_tasks.errors import NodeError, UnreachableError
from rc_tasks.steps.outcome import FAILED, FAILED_AS_ABOVE, LOCKED, LOST, NEEDS
from rc_tasks.tools import command, podman, slurm_words
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util.text import log_line

# How much of a log's end is read.
_TAIL_BYTES = 64 * 1024
_INSTRUCTION_WIDTH = 72


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a step failed, and what may be done about it.

    `needs` names an image that has to be built first. `locked`: another process is building the image.
    `lost`: that process took the lock while this step was stopped. `elsewhere`: the node failed, not the
    step. `unreachable`: Slurm's controller did not answer. `unexplained`: the step exited with 0 and
    reported no error, but its record is missing.
    """

    text: str
    needs: str = ""
    locked: bool = False
    lost: bool = False
    elsewhere: bool = False
    unreachable: bool = False
    unexplained: bool = False

    @property
    def final(self) -> bool:
        """Whether another attempt would not help."""
        return not (self.needs or self.locked or self.elsewhere or self.unreachable)


def verdict(returncode: int, log: Path, request: StepRequest | None) -> Diagnosis:
    """Diagnose a step from its own error at the end of the log, else from Slurm's, else the last lines.

    Slurm's error comes first where Slurm ended the step: it signals one process after the other, and a
    RUN may end before the step gets its signal.
    """
    lines = _tail(log)
    # Slurm's lines can stand anywhere among those of the step.
    own = [line for line in lines if request is None or not slurm_words.said(line)]
    marks = [at for at, line in enumerate(own) if _is_mark(line)]
    mark = own[marks[-1]] if marks else ""
    ended = request is not None and any(map(slurm_words.ended, lines))
    if marks and not (ended and mark in {FAILED, FAILED_AS_ABOVE}):
        text = _own_words(own, marks[-1])
        return Diagnosis(
            text,
            needs=mark.removeprefix(NEEDS) if mark.startswith(NEEDS) else "",
            locked=mark in {LOCKED, LOST},
            lost=mark == LOST,
        )
    if request is not None:
        error = slurm_words.explain(returncode, lines, request, guarded=True)
        if error is not None:
            return Diagnosis(
                str(error),
                elsewhere=isinstance(error, NodeError),
                unreachable=isinstance(error, UnreachableError),
            )
    what = command.ending(returncode) if returncode else "ended without finishing its work"
    return Diagnosis("\n".join((f"the step {what}", *_quote(lines))), unexplained=not returncode)


def _is_mark(line: str) -> bool:
    return line in {FAILED, FAILED_AS_ABOVE, LOCKED, LOST} or line.startswith(NEEDS)


def _own_words(lines: list[str], mark: int) -> str:
    before, (first, *rest) = lines[:mark], lines[mark + 1 :] or ["the step failed"]
    if lines[mark] != FAILED_AS_ABOVE:
        return "\n".join((first, *rest))
    instruction = shorten(podman.failed_instruction(before), _INSTRUCTION_WIDTH, placeholder=" …")
    if instruction:
        first = first.replace("podman build", instruction, 1)
    # Leave out the instructions before the failing one, which explain nothing.
    steps = [number for number, line in enumerate(before) if line.startswith("STEP ")]
    return "\n".join((first, *_quote(before[steps[-1] :] if steps else before), *rest))


def _quote(lines: list[str]) -> list[str]:
    """Quote the last lines of a log, without the command in its first line; repeated lines once."""
    shown = [line for line, _ in groupby(lines) if line.strip() and not line.startswith("$ ")]
    return [f"  | {line}" for line in shown[-command.TAIL_LINES :]]


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return [log_line(line) for line in file.read().removesuffix(b"\n").split(b"\n")]
