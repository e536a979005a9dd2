"""What `doit nightly` says to people: the summary of a night, and lines for a crontab."""

import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rc_tasks.engine.nightly.summary import Ending, FailedStep, Summary
from rc_tasks.views import tables

# As cron sets it (crontab(5)).
_CRONS_PATH = ("/usr/bin", "/bin")
_SHORT_COMMIT = 12
_ENDINGS = {
    Ending.FINISHED: "",
    Ending.TIME: "time ran out",
    Ending.CANCELLED: "cancelled",
    Ending.REFUSED: "not run",
}


def subject(summary: Summary) -> str:
    """One line on a night, as the subject of a mail: `imgs: 2 built, 1 failed, 3 not tried`."""
    counts = (
        (len(summary.built), "built"),
        (len(summary.env_only), "env.toml only"),
        (len(summary.adopted), "adopted"),
        (len({each.name for each in summary.failed}), "failed"),
        (len(summary.not_tried), "not tried"),
        (len(summary.left), "left"),
    )
    told = [f"{count} {words}" for count, words in counts if count] or ["nothing to do"]
    if summary.ending is Ending.REFUSED:
        told = []
    ending = _ENDINGS[summary.ending]
    return f"{Path(summary.root).name}: {', '.join([*([ending] if ending else []), *told])}"


def text(summary: Summary) -> str:
    """A night for people, fit for mail; ends with a line break."""
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
    for heading, found in _parts(summary):
        if found:
            yield from ("", *([heading] if heading else []), *found)
    yield ""
    if summary.resubmitted_as:
        yield f"goes on as job {summary.resubmitted_as}"
    elif summary.ending is Ending.TIME:
        yield "no other job follows: `doit nightly` goes on; nightly.time_limit_min may be raised"
    for name, path in (("report", summary.report), ("log", summary.log)):
        if path:
            yield f"{name + ':':8}{os.path.join(summary.root, path)}"


def _parts(summary: Summary) -> Iterator[tuple[str, list[str]]]:
    """What the summary lists, with its headings."""
    yield "", summary.begun.error.splitlines()
    width = max((len(each.name) for each in summary.built), default=0)
    yield (
        "built",
        [
            f"  {each.name:{width}}  {tables.duration(each.duration_s):>12}"
            f"  {tables.size(each.size_bytes):>8}"
            for each in summary.built
        ],
    )
    yield "env.toml written", [f"  {name}" for name in summary.env_only]
    yield "adopted", [f"  {name}" for name in summary.adopted]
    yield "failed", [line for each in summary.failed for line in _failed(each)]
    yield (
        "not tried",
        [f"  {each.name}: its base {each.because_of} failed" for each in summary.not_tried],
    )
    yield "left", [f"  {each.name}: {', '.join(each.reasons) or each.state}" for each in summary.left]


def _failed(failed: FailedStep) -> Iterator[str]:
    step = f"{failed.step}:" if failed.step else ""
    first, *rest = failed.error.splitlines() or ["failed"]
    yield f"  {step}{failed.name}  {first}"
    yield from (f"    {line}" for line in rest)
    yield from (f"    | {line}" for line in failed.last_lines)
    if failed.log:
        yield f"    log: {failed.log}"


def _commits(before: str, now: str) -> str:
    if not now:
        return ""
    if before and before != now:
        return f" at {before[:_SHORT_COMMIT]}, pulled to {now[:_SHORT_COMMIT]}"
    return f" at {now[:_SHORT_COMMIT]}"


def _clock(started: str, ended: str) -> str:
    """The end, without its date when that is the date of the beginning."""
    first, last = (datetime.fromisoformat(each).astimezone() for each in (started, ended))
    return last.strftime("%H:%M" if first.date() == last.date() else "%Y-%m-%d %H:%M")


def _clean(line: str) -> str:
    return tables.printable(line).rstrip()


def command_line(root: Path, doit: str, umask: int, tools: list[str], slurm_conf: str) -> str:
    """What cron runs, in a shell that knows nothing of its user's settings."""
    missing = [path for path in tools if path not in _CRONS_PATH]
    variables = []
    if missing:
        variables.append(f"PATH={shlex.quote(':'.join([*missing, *_CRONS_PATH]))}")
    if slurm_conf:
        variables.append(f"SLURM_CONF={shlex.quote(slurm_conf)}")
    wanted = " ".join([*variables, shlex.quote(doit), "nightly"])
    # What goes wrong is told on standard error, and cron mails it.
    return f"umask {umask:04o} && cd {shlex.quote(str(root))} && {wanted} > /dev/null"


def crontab(at: str, line: str) -> str:
    """A line for crontab(5), in which a % would end the command."""
    return f"{_when(at)} {line.replace('%', chr(92) + '%')}"


def scrontab(at: str, line: str, directives: str) -> str:
    """Lines for scrontab(1): a small job that hands in the night's."""
    options = directives.replace("#SBATCH ", "#SCRON ")
    return f"{options}{_when(at)} {line}"


def _when(at: str) -> str:
    hour, minute = map(int, at.split(":"))
    return f"{minute} {hour} * * *"
