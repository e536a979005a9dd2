"""Text of `doit nightly`: the summary of a nightly run, and lines for a crontab."""

import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rc_tasks.engine.nightly.summary import FailedStep, NightlyEnding, Summary
from rc_tasks.views import tables

# The PATH that cron sets (crontab(5)).
_CRON_PATH = ("/usr/bin", "/bin")
_SHORT_COMMIT = 12
_ENDINGS = {
    NightlyEnding.FINISHED: "",
    NightlyEnding.TIME: "time ran out",
    NightlyEnding.CANCELLED: "cancelled",
    NightlyEnding.REFUSED: "not run",
}


def subject(summary: Summary) -> str:
    """Return the summary on one line for the subject of a mail: `imgs: 2 built, 1 failed`."""
    counts = (
        (len(summary.built), "built"),
        (len(summary.env_only), "env.toml only"),
        (len(summary.adopted), "adopted"),
        (len({step.name for step in summary.failed}), "failed"),
        (len(summary.not_tried), "not tried"),
        (len(summary.left), "left"),
    )
    parts = [f"{count} {words}" for count, words in counts if count] or ["nothing to do"]
    if summary.ending is NightlyEnding.REFUSED:
        parts = []
    ending = _ENDINGS[summary.ending]
    return f"{Path(summary.root).name}: {', '.join([*([ending] if ending else []), *parts])}"


def text(summary: Summary) -> str:
    """Return the summary as the text of a mail, with a line break at its end."""
    return "\n".join(map(_clean, _lines(summary))) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    begun = summary.begun
    yield subject(summary)
    yield ""
    where = f" on {', '.join(summary.nodes)}" if summary.nodes else ""
    after = f", after job {begun.after}" if begun.after else ""
    times = f"{tables.when(begun.started_at)} to {_clock(begun.started_at, summary.ended_at)}"
    yield f"{times} ({tables.duration(summary.duration_s)}), job {begun.job_id}{after}{where}"
    yield f"{summary.root}{_commits(begun.commit_before, begun.commit)}"
    yield f"{summary.fresh} of {summary.images} images are fresh"
    for heading, entries in _parts(summary):
        if entries:
            yield from ("", *([heading] if heading else []), *entries)
    yield ""
    if summary.resubmitted_as:
        yield f"goes on as job {summary.resubmitted_as}"
    elif summary.ending is NightlyEnding.TIME:
        yield "no job follows: run `doit nightly` again, or raise nightly.time_limit_min"
    for name, path in (("report", summary.report), ("log", summary.log)):
        if path:
            yield f"{name + ':':8}{os.path.join(summary.root, path)}"


def _parts(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """Yield the lists of the summary, each with its heading."""
    yield "", summary.begun.error.splitlines()
    width = max((len(item.name) for item in summary.built), default=0)
    yield (
        "built",
        [
            f"  {item.name:{width}}  {tables.duration(item.duration_s):>12}"
            f"  {tables.size(item.size_bytes):>8}"
            for item in summary.built
        ],
    )
    yield "env.toml written", [f"  {name}" for name in summary.env_only]
    yield "adopted", [f"  {name}" for name in summary.adopted]
    yield "failed", [line for item in summary.failed for line in _failed(item)]
    yield (
        "not tried",
        [f"  {item.name}: its base {item.because_of} failed" for item in summary.not_tried],
    )
    yield "left", [f"  {item.name}: {', '.join(item.reasons) or item.state}" for item in summary.left]


def _failed(step_failure: FailedStep) -> Iterator[str]:
    step = f"{step_failure.step}:" if step_failure.step else ""
    first, *rest = step_failure.error.splitlines() or ["failed"]
    yield f"  {step}{step_failure.name}  {first}"
    yield from (f"    {line}" for line in rest)
    yield from (f"    | {line}" for line in step_failure.last_lines)
    if step_failure.log:
        yield f"    log: {step_failure.log}"


def _commits(before: str, now: str) -> str:
    if not now:
        return ""
    if before and before != now:
        return f" at {before[:_SHORT_COMMIT]}, pulled to {now[:_SHORT_COMMIT]}"
    return f" at {now[:_SHORT_COMMIT]}"


def _clock(started: str, ended: str) -> str:
    """Return the end, with its date only when that is not the date of the beginning."""
    first, last = (datetime.fromisoformat(time).astimezone() for time in (started, ended))
    return last.strftime("%H:%M" if first.date() == last.date() else "%Y-%m-%d %H:%M")


def _clean(line: str) -> str:
    return tables.printable(line).rstrip()


def command_line(root: Path, doit: str, umask: int, tools: list[str], slurm_conf: str) -> str:
    """Return the command for cron, whose shell has none of the user's variables."""
    missing = [path for path in tools if path not in _CRON_PATH]
    variables = []
    if missing:
        variables.append(f"PATH={shlex.quote(':'.join([*missing, *_CRON_PATH]))}")
    if slurm_conf:
        variables.append(f"SLURM_CONF={shlex.quote(slurm_conf)}")
    command = " ".join([*variables, shlex.quote(doit), "nightly"])
    # Errors go to standard error, which cron mails.
    return f"umask {umask:04o} && cd {shlex.quote(str(root))} && {command} > /dev/null"


def crontab(at: str, line: str) -> str:
    """Return a line for crontab(5), with % escaped, as it would end the command."""
    return f"{_when(at)} {line.replace('%', chr(92) + '%')}"


def scrontab(at: str, line: str, directives: str) -> str:
    """Return lines for scrontab(1): a small job that submits the nightly job."""
    options = directives.replace("#SBATCH ", "#SCRON ")
    return f"{options}{_when(at)} {line}"


def _when(at: str) -> str:
    hour, minute = map(int, at.split(":"))
    return f"{minute} {hour} * * *"
