"""`doit bases [NAME…]`: registry bases, what they are pinned to, and whether their tags have moved."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json, add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import ProjectError, RcError
from rc_tasks.model.graph.pin import LOCK, Pin, is_digest
from rc_tasks.model.reference import near
from rc_tasks.state.bases.registry_bases import BaseKind, RegistryBase, registry_bases
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.inputs import PIN
from rc_tasks.state.records.records import Step
from rc_tasks.tools import command, skopeo
from rc_tasks.tools.registry import Refusal, RegistryError
from rc_tasks.views import tables
from rc_tasks.views.bases_text import _short, age, words

# How long one registry may take to answer, and how many are asked at a time.
_ASK_S = 30.0
_AT_ONCE = 8
_MOVED = 1
_NOT_ASKED = 2
_MOVABLE = (BaseKind.PINNED, BaseKind.NOT_PINNED)

# What a registry serves under a reference, or why that is not known.
Answers = dict[str, str | RcError]


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        f"A base is pinned in {LOCK} when it is first built on: builds take that digest until the pin is"
        " moved. A name is a base as a Dockerfile writes it, or an image, which means all registry bases"
        " under it. The exit status of --check is 0 when no tag has moved, 1 when one has, and 2 when"
        " none has but a registry gave no answer; of --update, 0, or 2 when a registry gave no answer."
    )
    add_names(parser, "[BASE|NAME ...]")
    add_flag(
        parser, "--check", help="ask the registries whether the tags stand for something else by now"
    )
    add_flag(
        parser,
        "--update",
        help="pin to what the tags stand for now; the images on what moved become stale",
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Show, check or move pins."""
    opened = session()
    if args.check and args.update:
        raise UsageError("--check and --update cannot be combined", hint="give one of them")
    checkout = opened.checkout
    found = _chosen(opened, registry_bases(checkout.graph, checkout.pins.read()), args.names)
    if args.update:
        # All means all that have a pin to move; a base that is named is told about.
        wanted = found if args.names else tuple(base for base in found if base.kind in _MOVABLE)
        return _update(checkout, wanted, as_json=args.json)
    answers = _ask(found) if args.check else {}
    if args.json:
        _print_json([_as_json(base, answers.get(base.reference)) for base in found])
    elif found:
        _table(found, answers if args.check else None)
    else:
        print("no image here is built on one from a registry")
    _complain(answers)
    if any(_has_moved(base, answers.get(base.reference)) for base in found):
        return _MOVED
    return _status(answers)


def _chosen(
    opened: Session, known: tuple[RegistryBase, ...], names: list[str]
) -> tuple[RegistryBase, ...]:
    """The bases that arguments mean."""
    if not names:
        return known
    graph = opened.checkout.graph
    wanted: set[str] = set()
    references = {base.reference for base in known}
    for name in names:
        # The table shows a digest in a Dockerfile in a column of its own.
        same = {each for each in references if name in (each, each.partition("@")[0])}
        if same:
            wanted |= same
            continue
        try:
            under = set(graph.with_bases(images(opened, [name])))
        except ProjectError as error:
            if name in graph.broken:
                raise
            close = near(name, (*references, *graph.names()))
            raise ProjectError(
                f"{name!r} is neither a registry base nor an image of this checkout",
                hint=f"did you mean {' or '.join(close)}?" if close else "`doit bases` shows all bases",
            ) from error
        wanted |= {base.reference for base in known if not under.isdisjoint(base.images)}
    return tuple(base for base in known if base.reference in wanted)


def _ask(bases: Iterable[RegistryBase]) -> Answers:
    """What the registries serve; those of pins that no image needs are left alone."""
    asked = [base for base in bases if base.kind is not BaseKind.UNUSED]
    if not asked:
        return {}
    command.require(
        "skopeo",
        "install skopeo, or run this in a clone on a machine that has it, and take over its"
        f" {LOCK}.\nBuilds pin and pull without it",
    )
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return dict(zip((base.reference for base in asked), pool.map(_served, asked), strict=True))
    except KeyboardInterrupt:
        command.end_all()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _served(base: RegistryBase) -> str | RcError:
    try:
        return skopeo.served(base.whole, timeout_s=_ASK_S)
    except RegistryError as error:
        if error.refusal is Refusal.UNKNOWN and base.pin is not None:
            return error.with_hint(
                "builds go on with the pinned digest as long as the store or the registry has it;\n"
                "name another tag in the Dockerfile"
            )
        return error
    except RcError as error:
        return error


def _has_moved(base: RegistryBase, answer: str | RcError | None) -> bool:
    return isinstance(answer, str) and base.pin is not None and answer != base.pin.digest


def _status(answers: Answers) -> int:
    return _NOT_ASKED if any(isinstance(answer, RcError) for answer in answers.values()) else 0


def _complain(answers: Answers) -> None:
    """Say which registries gave no answer, and what to do next once for all that it helps."""
    sys.stdout.flush()
    hints: dict[str | None, list[RcError]] = {}
    for answer in answers.values():
        if isinstance(answer, RcError):
            hints.setdefault(answer.hint, []).append(answer)
    for hint, errors in hints.items():
        for error in errors[:-1]:
            sys.stderr.write(f"{RcError(error.what, where=error.where, quote=error.quote)}\n")
        last = errors[-1]
        sys.stderr.write(f"{RcError(last.what, where=last.where, quote=last.quote, hint=hint)}\n")


def _update(checkout: Checkout, bases: tuple[RegistryBase, ...], *, as_json: bool) -> int:
    wanted = tuple(base for base in bases if base.kind in _MOVABLE)
    answers = _ask(wanted)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    moved: dict[str, Pin] = {}
    for base in wanted:
        answer = answers[base.reference]
        if isinstance(answer, str) and answer != base.digest:
            known = checkout.store.catalogue.base(base.reference, checkout.architecture)
            before = base.digest or (known.digest if known is not None else "")
            name = base.pin.name if base.pin is not None else ""
            # As it stands in the store, it may be damaged.
            previous = before if before != answer and is_digest(before) else ""
            moved[base.reference] = Pin(answer, now, previous, name)
    if moved:
        checkout.pins.move(moved)
    stale = _stale(checkout, moved)
    if as_json:
        found = [
            {
                **_as_json(base, answers.get(base.reference)),
                "updated": base.reference in moved,
            }
            for base in bases
        ]
        _print_json({"bases": found, "stale": stale})
    else:
        _tell_update(bases, answers, moved, stale)
    _complain(answers)
    return _status(answers)


_WHY_NONE = {
    BaseKind.IN_DOCKERFILE: "its digest is written in the Dockerfile",
    BaseKind.FOREIGN: "podman pulls it itself, for another platform",
    BaseKind.UNUSED: f"no image needs it; its entry in {LOCK} can go",
}


def _tell_update(
    bases: tuple[RegistryBase, ...], answers: Answers, moved: dict[str, Pin], stale: list[str]
) -> None:
    for base in bases:
        name, answer = tables.printable(base.reference), answers.get(base.reference)
        if base.reference in moved:
            pin = moved[base.reference]
            before = f"{_short(pin.previous)} → " if pin.previous else "pinned to "
            print(f"{name}  {before}{_short(pin.digest)}")
        elif isinstance(answer, RcError):
            print(f"{name}  no answer: {'the pin stays' if base.pin else 'not pinned'}")
        elif answer is None:
            print(f"{name}  has no pin to move: {_WHY_NONE[base.kind]}")
        else:
            print(f"{name}  {_short(answer)}, as before")
    if not bases:
        print("no image here is built on one from a registry")
    if stale:
        print(f"stale now: {', '.join(stale)}")
    if moved:
        print(f"next: doit build, and commit {LOCK}")


def _stale(checkout: Checkout, moved: Iterable[str]) -> list[str]:
    """The images that these pins make stale, and those that are built on them."""
    judge, parts = Judge(checkout), {PIN + reference for reference in moved}
    found = list[str]()
    for name in checkout.graph.images:
        try:
            causes = judge.step(Step.PODMAN, name).causes
        except RcError:
            continue  # `doit list` tells what is wrong with it
        if any(cause.part in parts for cause in causes):
            found.append(name)
            # Bases come first, and a frozen one stops it.
            parts.add(f"base/{name}")
    return found


def _table(bases: tuple[RegistryBase, ...], answers: Answers | None) -> None:
    headings = ["BASE", "PIN", "AGE", *(["TAG"] if answers is not None else []), "IMAGES"]
    rows = []
    for base in bases:
        row = [*words(base), age(base.pin.pinned_at) if base.pin else ""]
        if answers is not None:
            row.append(_told(base, answers.get(base.reference)))
        rows.append([*row, ", ".join(base.images) or base.kind])
    tables.table(headings, rows, right=frozenset({"AGE"}))


def _told(base: RegistryBase, answer: str | RcError | None) -> str:
    if answer is None:
        return "not asked"
    if isinstance(answer, RcError):
        return "no answer"
    if base.digest is None:
        return _short(answer)
    if base.kind is BaseKind.IN_DOCKERFILE:
        return "still there"
    return "as pinned" if answer == base.digest else f"moved to {_short(answer)}"


def _as_json(base: RegistryBase, answer: str | RcError | None) -> dict[str, Any]:
    return {
        "base": base.reference,
        "kind": base.kind.name.lower(),
        "digest": base.digest,
        "pinned_at": (base.pin.pinned_at or None) if base.pin else None,
        "previous": (base.pin.previous or None) if base.pin else None,
        "images": list(base.images),
        "built_on": list(base.dependents),
        "served": answer if isinstance(answer, str) else None,
        "moved": _has_moved(base, answer) if isinstance(answer, str) else None,
        "error": str(answer) if isinstance(answer, RcError) else None,
    }


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
