"""`doit why NAME`: every cause, with old and new digests, and the chain of bases."""

import sys
from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import UsageError, add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import EdfError
from rc_tasks.model.edf import schema
from rc_tasks.model.graph.project import EDF, PROJECT_TOML, Project
from rc_tasks.state.adoption.official import OtherInputsError
from rc_tasks.state.disk.trust import AbsentError
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import Cause, ImageStatus, State
from rc_tasks.util.safe_read import read_text
from rc_tasks.util.text import printable_lines

_ROLLED_BACK = (
    "it was rolled back, and stays so until something else is built; doit rollback {name} 0 puts the"
    " newest back"
)


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "Digests are shortened; image.json and .rc/state hold them whole."
    add_names(parser, "NAME ...")


def run(args: Namespace) -> int:
    """Explain the state of images."""
    opened = session()
    if not args.names:
        raise UsageError("which image?", hint="doit why NAME; `doit list` shows all images")
    told: set[str] = set()
    for name in images(opened, args.names):
        _explain(opened, name, told)
    return 0


def _explain(opened: Session, start: str, told: set[str]) -> None:
    graph = opened.checkout.graph
    todo = [start]
    while todo:
        name = todo.pop(0)
        if name in told:
            continue
        told.add(name)
        broken = graph.broken.get(name)
        if broken is not None:
            _say(f"{name} cannot be built", *_indented(str(broken)))
            continue
        status = opened.judge.image(name)
        _say(f"{name} is {status.state}")
        if status.failure is not None:
            log = f", log {status.failure.log}" if status.failure.log else ""
            _say(f"  {status.failure.message}\n  at {status.failure.failed_at}{log}")
        if status.state is State.FAILED and not status.steps:
            _say(*_indented("\n".join(status.reasons)))
        for step in status.steps:
            for number, cause in enumerate(step.causes):
                _say(f"  {step.step if number == 0 else '':8}{_line(cause)}")
        for note in (*graph.notes([graph.images[name]]), *_notes_on_edf(graph.images[name].project)):
            _say(f"  note    {note}")
        _tell_frozen(opened, status)
        if opened.judge.rolled_back(name):
            _say(f"  note    {_ROLLED_BACK.format(name=name)}")
        _tell_official(opened, status)
        todo += [
            cause.part.removeprefix("base/")
            for step in status.steps
            if step.step is Step.PODMAN
            for cause in (*step.causes, *step.ignored)
            if cause.part.startswith("base/")
        ]


def _notes_on_edf(project: Project) -> list[str]:
    try:
        return list(schema.notes(read_text(project.edf), project.shown(EDF)))
    except (OSError, UnicodeDecodeError, EdfError):
        # The lines above report the error.
        return []


def _tell_frozen(opened: Session, status: ImageStatus) -> None:
    node = opened.checkout.graph.images[status.name]
    if node.options.frozen:
        ending = ", although" if status.ignored else ", whatever changes"
        _say(f"  note    frozen in {node.project.shown(PROJECT_TOML)}: it is not built again{ending}")
        _say(*(f"          {_line(cause)}" for cause in status.ignored))


def _tell_official(opened: Session, status: ImageStatus) -> None:
    """Why an image that the official checkout has is built here."""
    offers = opened.judge.offers
    if offers is None or any(step.adoptable for step in status.steps):
        return
    record = opened.checkout.records.get(Step.ENROOT, status.name)
    if status.state is State.FRESH and record is not None and record.adopted_from:
        return
    error = offers.refusal(status.name)
    offer = offers.get(status.name)
    if offer is not None and Step.ENROOT not in offer.records:
        _say(f"  note    the image of {offers.official.root} did not pass these smoke tests")
    if error is None or isinstance(error, AbsentError):
        return
    lines = [f"not adopted from {offers.official.root}: {error}"]
    if isinstance(error, OtherInputsError):
        lines += [f"  {_line(cause)}" for cause in error.causes]
    for number, line in enumerate("\n".join(lines).splitlines()):
        _say(f"  {'note' if number == 0 else '':8}{line}")


def _line(cause: Cause) -> str:
    if not cause.old and not cause.new:
        return cause.words
    return f"{cause.words}: {_short(cause.old)} → {_short(cause.new)}"


def _short(value: str) -> str:
    """`0644 3f2a9c1b0d4e…` with the digest shortened; other values as they are."""
    bare = [word.removeprefix("sha256:") for word in value.split(" ")]
    words = [word[:12] if len(word) == 64 else word for word in bare]
    return " ".join(words) or "nothing"


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _say(*lines: str) -> None:
    """Names of files, and what stands in them, may be anything."""
    sys.stdout.writelines(f"{printable_lines(line)}\n" for line in lines)
