"""`doit rollback NAME [N]`: an image that was published before, put back in place of the one that is."""

import getpass
import os
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError
from rc_tasks.model.graph.project import Project
from rc_tasks.state import history
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import refused, write_atomically
from rc_tasks.state.disk.locks import held
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Record, Step
from rc_tasks.state.records.rollback import put_back_record, rolled_back_from
from rc_tasks.state.store.previous import Published, put_back
from rc_tasks.steps.publish import squash
from rc_tasks.views import tables

_SHORT_ID = 12
_SHORT_COMMIT = 10


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Without N the one before what is published now; 0 is the newest, and so the way forward again."
        " What jobs start from then on changes, at once and whole; jobs that run keep what they have,"
        " env.toml stays, and what is built on the image is built on the newest as before. The image is"
        " not published anew until something else is built of its recipe, or by `doit -a enroot:NAME`."
        " The settings store.previous and store.previous_days say how many are kept."
    )
    add_names(parser, "NAME [N]")
    add_flag(parser, "-l", "--list", help="show what can be put back, and change nothing")


def run(args: Namespace) -> int:
    """Put an earlier image back."""
    opened = session()
    name, number = _wanted(opened, args.names)
    require_own(opened.checkout)
    checkout = opened.checkout
    project = checkout.graph.resolve(name).project
    if args.list:
        found = checkout.previous.of(project, checkout.records.get(Step.ENROOT, name))
        if not found:
            raise _nothing(checkout, project)
        _table(found)
        return 0
    try:
        with held(checkout.lock(name), f"rollback:{name}"):
            for step in (Step.PODMAN, Step.ENROOT):
                checkout.records.reread(step, name)
            target = _roll_back(checkout, project, number)
    except OSError as error:
        raise refused(error) or error from None
    print(f"{name} is now {_words(target)}")
    if opened.judge.rolled_back(name):
        print(f"next: `doit rollback {name} 0` puts the newest back; a change of its recipe does, too")
    return 0


def _roll_back(checkout: Checkout, project: Project, number: int | None) -> Published:
    """Put an image back; killed at any moment, the file is one of both, and a run mends the rest."""
    name = project.name
    record = checkout.records.get(Step.ENROOT, name)
    if project.artifact.is_symlink():
        raise RcError(
            f"the image is adopted from {os.path.realpath(project.artifact)}",
            where=project.shown(project.artifact.name),
            hint="roll it back there; clones see it at once",
        )
    found = checkout.previous.of(project, record)
    if record is None or not found:
        raise _nothing(checkout, project)
    target = _chosen(found, number, name)
    if target.current and record.artifact == target.artifact:
        return target
    why = checkout.previous.keep(project, record)
    if why:
        raise RcError(
            f"the image that is published now could not be kept, so it is not replaced: {why}",
            hint="check free space, quota and the right to write in .rc/previous",
        )
    before = record.inputs.get("image", "")
    built = checkout.records.get(Step.PODMAN, name)
    newest = rolled_back_from(record, built) or before
    forward = target is found[0] and target.image_id == newest
    after = put_back_record(target.record, "" if forward else newest, built)
    squash.sweep(project.directory)
    put_back(project, target, squash.temporary(project.artifact))
    write_atomically(project.image_json, checkout.previous.restore_image_json(project, after))
    checkout.records.put(Step.ENROOT, name, after)
    verb = "forward again" if forward else "rolled back"
    run = history.RunHistory(checkout.history)
    reason = f"{verb} to the image published {tables.when(after.ended_at)}, by {getpass.getuser()}"
    run.append(_entry(run.id, name, before, after, reason))
    return target


def _chosen(found: list[Published], number: int | None, name: str) -> Published:
    now = next((at for at, each in enumerate(found) if each.current), -1)
    wanted = now + 1 if number is None else number
    if wanted < len(found):
        return found[wanted]
    if number is None:
        what = f"there is no image of {name} before the one that is published now"
    else:
        what = f"there is no number {number} of {name}"
    raise UsageError("\n".join((what, *(f"  {at}  {_words(each)}" for at, each in enumerate(found)))))


def _entry(run: str, name: str, before: str, after: Record, reason: str) -> HistoryEntry:
    # A line like those of the step that publishes: so every version can read it.
    entry = HistoryEntry(
        run=run,
        image=name,
        step=Step.ENROOT,
        outcome=Outcome.DONE,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        duration_s=0.0,
        queued_s=0.0,
        node=os.uname().nodename,
        image_id_before=before,
        reason=reason,
    )
    return entry.made(after)


def _wanted(opened: Session, words: list[str]) -> tuple[str, int | None]:
    """The one image that is meant, and a number."""
    if not words:
        raise UsageError("which image?", hint="doit rollback NAME; `doit list` shows all images")
    name, *rest = words
    found = images(opened, [name])
    if len(found) > 1:
        raise UsageError(f"{name} has several versions: {', '.join(found)}", hint="name one of them")
    if len(rest) > 1 or not all(word.isascii() and word.isdigit() for word in rest):
        raise UsageError(
            f"{' '.join(rest)!r} is no number of an image",
            hint=f"doit rollback {found[0]} --list shows them",
        )
    return found[0], int(rest[0]) if rest else None


def _nothing(checkout: Checkout, project: Project) -> RcError:
    kept = checkout.settings.store.previous
    hint = (
        "the setting store.previous is 0"
        if not kept
        else f"an image is kept when its successor is published, {kept} of them"
    )
    return RcError(f"no image of {project.name} is kept", where=f"{project.path}/", hint=hint)


def _words(image: Published) -> str:
    when = tables.when(image.record.ended_at)
    parts = [image.image_id[:_SHORT_ID], tables.size(image.artifact.size_bytes)]
    if image.record.commit:
        parts.append(f"commit {_commit(image.record)}")
    return f"the image published {when} ({', '.join(parts)})"


def _commit(record: Record) -> str:
    return record.commit[:_SHORT_COMMIT] + (" with changes" if record.dirty else "")


def _table(found: list[Published]) -> None:
    rows = [
        (
            str(number),
            tables.when(each.record.ended_at),
            each.image_id[:_SHORT_ID],
            tables.size(each.artifact.size_bytes),
            _commit(each.record),
            "damaged" if each.damaged else "published now" if each.current else "",
        )
        for number, each in enumerate(found)
    ]
    tables.table(("N", "PUBLISHED", "IMAGE", "SIZE", "COMMIT", ""), rows, right=frozenset({"N", "SIZE"}))
