"""`doit rollback NAME [N]`: put a previously published image back."""

import getpass
import json
import os
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime

from rc_tasks.commands.cli.command import images, not_published
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
        "N is a number from --list; without it, the image published before the current one is put back."
        " 0 is the newest image: `doit rollback NAME 0` undoes a rollback. Jobs that start later use the"
        " image that was put back, and running jobs keep theirs. env.toml does not change. Images built"
        " on this one still use its newest build. The rollback stays until a build makes a different"
        " image, or until `doit -a enroot:NAME`. The settings store.previous and store.previous_days"
        " limit how many images are kept."
    )
    add_names(parser, "NAME [N]", help="an image, alias or task, and the number of a published image")
    add_flag(parser, "-l", "--list", help="list the images that can be put back, and change nothing")
    add_flag(parser, "--json", help="with --list: print JSON for programs")


def run(args: Namespace) -> int:
    """Put a previous image back, or list the previous images."""
    current = session()
    name, number = _image_and_number(current, args.names)
    checkout = current.checkout
    require_own(checkout)
    project = checkout.graph.resolve(name).project
    if args.json and not args.list:
        raise UsageError("--json needs --list", hint=f"doit rollback {name} --list --json")
    if args.list:
        previous = checkout.previous.of(project, checkout.records.get(Step.ENROOT, name))
        if not previous:
            raise _nothing_kept(checkout, project)
        if args.json:
            documents = [_as_json(number, image) for number, image in enumerate(previous)]
            print(json.dumps(documents, indent=2))
        else:
            _print_table(previous)
        return 0
    try:
        with held(checkout.lock(name), f"rollback:{name}"):
            for step in (Step.PODMAN, Step.ENROOT):
                checkout.records.reread(step, name)
            target = _roll_back(checkout, project, number)
    except OSError as error:
        raise refused(error) or error from None
    print(f"{name} is now {_description(target)}")
    if current.judge.rolled_back(name):
        print(f"next: `doit rollback {name} 0` or a change of the recipe puts the newest image back")
    return 0


def _roll_back(checkout: Checkout, project: Project, number: int | None) -> Published:
    """Put an image back and return it. Raise RcError when that is not possible.

    If the process is killed, image.sqsh is either the old or the new image, and the next run corrects
    image.json and the record.
    """
    name = project.name
    record = checkout.records.get(Step.ENROOT, name)
    if project.artifact.is_symlink():
        raise RcError(
            f"the image is adopted from {os.path.realpath(project.artifact)}",
            where=project.shown(project.artifact.name),
            hint="run `doit rollback` in the official checkout; clones see it at once",
        )
    previous = checkout.previous.of(project, record)
    if record is None or not previous:
        raise _nothing_kept(checkout, project)
    target = _select(previous, number, name)
    if target.current and record.artifact == target.artifact:
        return target
    why = checkout.previous.keep(project, record)
    if why:
        raise RcError(
            f"nothing was put back, because the current image could not be saved: {why}",
            hint="check free space, quota and write permission of .rc/previous",
        )
    before = record.inputs.get("image", "")
    built = checkout.records.get(Step.PODMAN, name)
    newest = rolled_back_from(record, built) or before
    forward = target is previous[0] and target.image_id == newest
    after = put_back_record(target.record, "" if forward else newest, built)
    squash.sweep(project.directory)
    put_back(project, target, squash.temporary(project.artifact))
    write_atomically(project.image_json, checkout.previous.restore_image_json(project, after))
    checkout.records.put(Step.ENROOT, name, after)
    verb = "forward again" if forward else "rolled back"
    run = history.RunHistory(checkout.history)
    reason = f"{verb} to the image published {tables.when(after.ended_at)}, by {getpass.getuser()}"
    run.append(_history_entry(run.id, name, before, after, reason))
    return target


def _select(previous: list[Published], number: int | None, name: str) -> Published:
    """Return image `number`, or the one before the current image. Raise UsageError without it."""
    current_index = next((index for index, image in enumerate(previous) if image.current), -1)
    index = current_index + 1 if number is None else number
    if index < len(previous):
        return previous[index]
    if number is None:
        what = f"no image of {name} that is older than the current one is kept"
    else:
        what = f"there is no image number {number} of {name}"
    lines = (f"  {index}  {_description(image)}" for index, image in enumerate(previous))
    raise UsageError("\n".join((what, *lines)))


def _history_entry(run: str, name: str, before: str, after: Record, reason: str) -> HistoryEntry:
    # The entry has the form of a publishing step, so that every version of doit can read it.
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


def _image_and_number(current: Session, words: list[str]) -> tuple[str, int | None]:
    """Return the image and the number that the arguments name. Raise UsageError."""
    if not words:
        raise UsageError("NAME is missing", hint="doit rollback NAME; `doit list` shows all images")
    name, *rest = words
    versions = images(current, [name])
    if len(versions) > 1:
        raise UsageError(f"{name} has several versions: {', '.join(versions)}", hint="name one of them")
    if len(rest) > 1 or not all(word.isascii() and word.isdigit() for word in rest):
        raise UsageError(
            f"{' '.join(rest)!r} is not the number of an image",
            hint=f"doit rollback {versions[0]} --list shows the numbers",
        )
    return versions[0], int(rest[0]) if rest else None


def _nothing_kept(checkout: Checkout, project: Project) -> RcError:
    if checkout.records.get(Step.ENROOT, project.name) is None:
        return not_published(project.name)
    limit = checkout.settings.store.previous
    hint = (
        f"doit keeps an image when it publishes the next one, at most {limit} of them"
        if limit
        else "to keep previous images, set store.previous to at least 1"
    )
    return RcError(f"no previous image of {project.name} is kept", where=f"{project.path}/", hint=hint)


def _description(image: Published) -> str:
    when = tables.when(image.record.ended_at)
    parts = [image.image_id[:_SHORT_ID], tables.size(image.artifact.size_bytes)]
    if image.record.commit:
        parts.append(f"commit {_commit(image.record)}")
    return f"the image published {when} ({', '.join(parts)})"


def _commit(record: Record) -> str:
    return record.commit[:_SHORT_COMMIT] + (" with changes" if record.dirty else "")


def _as_json(number: int, image: Published) -> dict[str, object]:
    return {
        "number": number,
        "image_id": image.image_id,
        "published_at": image.record.ended_at,
        "size_bytes": image.artifact.size_bytes,
        "commit": image.record.commit or None,
        "dirty": image.record.dirty,
        "damaged": bool(image.damaged),
        "current": image.current,
    }


def _print_table(previous: list[Published]) -> None:
    rows = [
        (
            str(number),
            tables.when(image.record.ended_at),
            image.image_id[:_SHORT_ID],
            tables.size(image.artifact.size_bytes),
            _commit(image.record),
            "damaged" if image.damaged else "published now" if image.current else "",
        )
        for number, image in enumerate(previous)
    ]
    tables.table(
        ("N", "PUBLISHED", "IMAGE", "SIZE", "COMMIT", "NOTE"), rows, right=frozenset({"N", "SIZE"})
    )
