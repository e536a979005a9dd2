"""`doit why NAME`: each cause why an image is not fresh, with digests, and the same for its bases."""

import json
import sys
from argparse import ArgumentParser, Namespace

from msgspec import to_builtins

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import UsageError, add_json, add_names
from rc_tasks.engine.schedule.ignored import how_to_undo, ignored_steps
from rc_tasks.engine.schedule.machines import left_alone
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import EdfError
from rc_tasks.model.edf import schema
from rc_tasks.model.graph.project import EDF, Project
from rc_tasks.state.adoption.official import OtherInputsError
from rc_tasks.state.disk.trust import AbsentError
from rc_tasks.state.published import manifests
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import Cause, ImageStatus, State
from rc_tasks.util.safe_read import read_text
from rc_tasks.util.text import printable_lines
from rc_tasks.views import recipe_text, tables

_ROLLED_BACK = (
    "rolled back until a build makes a different image; `doit rollback {name} 0` puts the newest image"
    " back"
)


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "Digests are shortened. image.json and .rc/state contain them in full."
    add_names(parser, "NAME ...")
    add_json(parser)


def run(args: Namespace) -> int:
    """Print why images have the state that they have."""
    current = session()
    if not args.names:
        raise UsageError("NAME is missing", hint="doit why NAME; `doit list` shows all images")
    if args.json:
        statuses = map(current.judge.image, images(current, args.names))
        print(json.dumps([_as_json(status) for status in statuses], indent=2))
        return 0
    explained: set[str] = set()
    for name in images(current, args.names):
        _explain(current, name, explained)
    return 0


def _as_json(status: ImageStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "state": status.state,
        "reasons": list(status.reasons),
        "failure": to_builtins(status.failure) if status.failure is not None else None,
        "steps": [to_builtins(step) for step in status.steps],
    }


def _print_ignored(current: Session, name: str) -> None:
    """Print which steps of an image no run takes."""
    alone = left_alone(current.checkout)
    for task, reason in ignored_steps(current.checkout, current.judge, [name]).items():
        if task.name == name and name in alone:
            _print(f"  note    {name} is left alone: {how_to_undo(current.checkout, reason)}")
            return
        if task.name == name:
            because = "" if reason == task else f", as {reason} is"
            _print(f"  note    {task} is ignored{because}: {how_to_undo(current.checkout, reason)}")


def _explain(current: Session, start: str, explained: set[str]) -> None:
    """Print the causes of an image and of its bases, except those already `explained`."""
    graph = current.checkout.graph
    todo = [start]
    while todo:
        name = todo.pop(0)
        if name in explained:
            continue
        explained.add(name)
        broken = graph.broken.get(name)
        if broken is not None:
            _print(f"{name} cannot be built", *_indented(str(broken)))
            continue
        status = current.judge.image(name)
        _print(f"{name} is {status.state}")
        for number, (heading, text) in enumerate(recipe_text.facts(graph.images[name])):
            _print(f"  {'recipe' if number == 0 else '':8}{heading}: {text}")
        if status.failure is not None:
            log = f", log {status.failure.log}" if status.failure.log else ""
            _print(f"  {status.failure.message}\n  at {tables.when(status.failure.failed_at)}{log}")
        if status.state is State.FAILED and not status.steps:
            _print(*_indented("\n".join(status.reasons)))
        build_args = _build_args(current, name)
        for step in status.steps:
            for number, cause in enumerate(step.causes):
                words = build_args.get(cause.part) or _describe(cause)
                _print(f"  {step.step if number == 0 else '':8}{words}")
        for note in (*graph.notes([graph.images[name]]), *_notes_on_edf(graph.images[name].project)):
            _print(f"  note    {note}")
        _print_frozen(current, status)
        if current.judge.rolled_back(name):
            _print(f"  note    {_ROLLED_BACK.format(name=name)}")
        _print_ignored(current, name)
        _print_refusal(current, status)
        todo += [
            cause.part.removeprefix("base/")
            for step in status.steps
            if step.step is Step.PODMAN
            for cause in (*step.causes, *step.ignored)
            if cause.part.startswith("base/")
        ]
        # A base that was taken out of the checkout has nothing more to explain.
        todo = [base for base in todo if base in graph.images or base in graph.broken]


def _build_args(current: Session, name: str) -> dict[str, str]:
    """Return the causes by build arguments with their values, by part, as far as they are recorded."""
    record = current.checkout.records.get(Step.PODMAN, name)
    image_id = record.facts.image_id if record is not None and record.facts is not None else ""
    origin = manifests.origin(current.checkout, name, image_id)
    if origin is None:
        return {}
    old, new = origin.build_args, current.checkout.graph.images[name].options.build_args
    return {
        f"build_args.{key}": f"build argument {key} changed:"
        f" {old.get(key, '') or 'nothing'} → {new.get(key, '') or 'nothing'}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    }


def _notes_on_edf(project: Project) -> list[str]:
    try:
        return list(schema.notes(read_text(project.edf), project.shown(EDF)))
    except (OSError, UnicodeDecodeError, EdfError):
        # The lines above report the error.
        return []


def _print_frozen(current: Session, status: ImageStatus) -> None:
    node = current.checkout.graph.images[status.name]
    if node.options.frozen:
        ending = ", although" if status.ignored else ", whatever changes"
        _print(f"  note    frozen in {node.project.shown_options}: it is not built again{ending}")
        _print(*(f"          {_describe(cause)}" for cause in status.ignored))


def _print_refusal(current: Session, status: ImageStatus) -> None:
    """Print why an image is built here although the official checkout has one."""
    offers = current.judge.offers
    if offers is None or any(step.adoptable for step in status.steps):
        return
    record = current.checkout.records.get(Step.ENROOT, status.name)
    if status.state is State.FRESH and record is not None and record.adopted_from:
        return
    error = offers.refusal(status.name)
    offer = offers.get(status.name)
    if offer is not None and Step.ENROOT not in offer.records:
        _print(f"  note    the image of {offers.official.root} did not pass these smoke tests")
    if error is None or isinstance(error, AbsentError):
        return
    lines = [f"not adopted from {offers.official.root}: {error}"]
    if isinstance(error, OtherInputsError):
        lines += [f"  {_describe(cause)}" for cause in error.causes]
    for number, line in enumerate("\n".join(lines).splitlines()):
        _print(f"  {'note' if number == 0 else '':8}{line}")


def _describe(cause: Cause) -> str:
    if not cause.old and not cause.new:
        return cause.words
    return f"{cause.words}: {_short(cause.old)} → {_short(cause.new)}"


def _short(value: str) -> str:
    """Return a value with its digests shortened to 12 digits, such as `0644 3f2a9c1b0d4e`."""
    bare = [word.removeprefix("sha256:") for word in value.split(" ")]
    words = [word[:12] if len(word) == 64 else word for word in bare]
    return " ".join(words) or "nothing"


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _print(*lines: str) -> None:
    """Print lines with control characters escaped, because file names may contain any."""
    sys.stdout.writelines(f"{printable_lines(line)}\n" for line in lines)
