"""Diagnosis of a failed step: its error report, else Slurm's lines or the last of its log."""

from itertools import groupby
from pathlib import Path
from textwrap import shorten

from msgspec import Struct

from rc_tasks.errors import NodeError, UnreachableError
from rc_tasks.state import logs
from rc_tasks.steps.error_report import ErrorKind, ErrorReport
from rc_tasks.tools import command, podman, slurm_words
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util.text import log_line

# How much of a log's end is read.
_TAIL_BYTES = 64 * 1024
_INSTRUCTION_WIDTH = 72


class Diagnosis(Struct, frozen=True):
    """Why a step failed, and what may be done about it.

    `needs` names an image that has to be built first. `locked`: another process is building the image.
    `lost_lock`: that process took the lock while this step was stopped. `elsewhere`: the node failed,
    not the step. `unreachable`: Slurm's controller did not answer. `unexplained`: the step exited with 0
    and reported no error, but its record is missing.
    """

    text: str
    needs: str = ""
    locked: bool = False
    lost_lock: bool = False
    elsewhere: bool = False
    unreachable: bool = False
    unexplained: bool = False

    @property
    def final(self) -> bool:
        """Whether another attempt would not help."""
        return not (self.needs or self.locked or self.elsewhere or self.unreachable)


def diagnose(returncode: int, log: Path, request: StepRequest | None) -> Diagnosis:
    """Return why a step failed, by its error report, else Slurm's words, else its last lines.

    Slurm's words come first where Slurm ended the step: it signals one process after the other, and a
    RUN may end before the step gets its signal.
    """
    lines = _tail(log)
    report = ErrorReport.read(logs.error_report(log))
    ended = request is not None and any(map(slurm_words.reports_cancellation, lines))
    if report is not None and not (ended and report.kind is ErrorKind.FAILED):
        # Slurm's own lines can stand anywhere among those of the step.
        own = [line for line in lines if request is None or not slurm_words.is_slurm_line(line)]
        return Diagnosis(
            _message(report, own),
            needs=report.needs,
            locked=report.kind in {ErrorKind.LOCKED, ErrorKind.LOST_LOCK},
            lost_lock=report.kind is ErrorKind.LOST_LOCK,
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


def _message(report: ErrorReport, lines: list[str]) -> str:
    """Return the text of a report; after a tool, name the failed instruction and quote its output."""
    first, *rest = [log_line(line.encode(errors="backslashreplace")) for line in report.text.split("\n")]
    if not report.after_tool:
        return "\n".join((first, *rest))
    # The tool's lines end where the message begins.
    at = max((number for number, line in enumerate(lines) if line == first), default=len(lines))
    before = lines[:at]
    instruction = shorten(podman.failed_instruction(before), _INSTRUCTION_WIDTH, placeholder=" …")
    if instruction:
        first = first.replace(podman.BUILD, instruction, 1)
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
