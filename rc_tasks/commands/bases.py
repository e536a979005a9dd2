"""`doit bases [NAME…]`: registry bases, their pins, and whether their tags have moved."""

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
from rc_tasks.tools.interrupt import recognized
from rc_tasks.tools.registry import Refusal, RegistryError
from rc_tasks.views import tables
from rc_tasks.views.bases_text import _short, age, words

# How long one registry may take to answer, and how many requests run at a time.
_ANSWER_TIMEOUT_S = 30.0
_MOST_REQUESTS = 8
_MOVED = 1
_NO_ANSWER = 2
_MOVABLE = (BaseKind.PINNED, BaseKind.NOT_PINNED)

# The digest that a registry has for a reference, or why it is not known, by reference.
Answers = dict[str, str | RcError]


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        f"A base is pinned in {LOCK} by the first build on it. Builds take that digest until --update"
        " moves the pin. NAME is a base as a Dockerfile writes it, or an image, which means all registry"
        " bases under it. --check exits with 0 when no tag has moved, 1 when a tag has moved, and 2 when"
        " none has but a registry gave no answer. --update exits with 0, or 2 when a registry gave no"
        " answer."
    )
    add_names(parser, "[BASE|NAME ...]")
    add_flag(parser, "--check", help="ask the registries whether the tags have moved")
    add_flag(
        parser,
        "--update",
        help="pin the digests that the tags have now; images on a base that moves become stale",
    )
    add_json(parser)


def run(args: Namespace) -> int:
    """Show, check or move pins."""
    current = session()
    if args.check and args.update:
        raise UsageError("--check and --update cannot be combined", hint="give one of them")
    checkout = current.checkout
    bases = _chosen(current, registry_bases(checkout.graph, checkout.pins.read()), args.names)
    if args.update:
        if not args.names:
            # The output explains why a base has no pin to move only when the user names the base.
            bases = tuple(base for base in bases if base.kind in _MOVABLE)
        return _update(checkout, bases, as_json=args.json)
    answers = _ask_registries(bases) if args.check else {}
    if args.json:
        _print_json([_as_json(base, answers.get(base.reference)) for base in bases])
    elif bases:
        _table(bases, answers if args.check else None)
    else:
        print("no image of this checkout uses a registry base")
    _print_errors(answers)
    if any(_has_moved(base, answers.get(base.reference)) for base in bases):
        return _MOVED
    return _status(answers)


def _chosen(
    current: Session, known: tuple[RegistryBase, ...], names: list[str]
) -> tuple[RegistryBase, ...]:
    """Return the bases that arguments mean. Raise ProjectError for an unknown name."""
    if not names:
        return known
    graph = current.checkout.graph
    selected: set[str] = set()
    references = {base.reference for base in known}
    for name in names:
        # The table shows the name without a digest that a Dockerfile gives.
        same = {
            reference for reference in references if name in (reference, reference.partition("@")[0])
        }
        if same:
            selected |= same
            continue
        try:
            under = set(graph.with_bases(images(current, [name])))
        except ProjectError as error:
            if name in graph.broken:
                raise
            close = near(name, (*references, *graph.names()))
            raise ProjectError(
                f"{name!r} is neither a registry base nor an image of this checkout",
                hint=f"did you mean {' or '.join(close)}?" if close else "`doit bases` shows all bases",
            ) from error
        selected |= {base.reference for base in known if not under.isdisjoint(base.images)}
    return tuple(base for base in known if base.reference in selected)


def _ask_registries(bases: Iterable[RegistryBase]) -> Answers:
    """Return the answers of the registries by reference, without pins that no image needs.

    Raise ToolNotFoundError without skopeo.
    """
    used = [base for base in bases if base.kind is not BaseKind.UNUSED]
    if not used:
        return {}
    command.require(
        "skopeo",
        "install skopeo, or run this command in a clone on a machine that has it and copy its"
        f" {LOCK}.\nBuilds pin and pull without skopeo",
    )
    pool = ThreadPoolExecutor(_MOST_REQUESTS)
    try:
        with recognized():
            served = pool.map(_served_digest, used)
            return dict(zip((base.reference for base in used), served, strict=True))
    except KeyboardInterrupt:
        command.end_all()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _served_digest(base: RegistryBase) -> str | RcError:
    try:
        return skopeo.served(base.whole, timeout_s=_ANSWER_TIMEOUT_S)
    except RegistryError as error:
        if error.refusal is Refusal.UNKNOWN and base.pin is not None:
            return error.with_hint(
                "name another tag in the Dockerfile;\n"
                "builds take the pinned digest as long as the store or the registry has it"
            )
        return error
    except RcError as error:
        return error


def _has_moved(base: RegistryBase, answer: str | RcError | None) -> bool:
    return isinstance(answer, str) and base.pin is not None and answer != base.pin.digest


def _status(answers: Answers) -> int:
    return _NO_ANSWER if any(isinstance(answer, RcError) for answer in answers.values()) else 0


def _print_errors(answers: Answers) -> None:
    """Print the errors of registries, those with the same hint together and the hint once."""
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
    movable = tuple(base for base in bases if base.kind in _MOVABLE)
    answers = _ask_registries(movable)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    moved: dict[str, Pin] = {}
    for base in movable:
        answer = answers[base.reference]
        if isinstance(answer, str) and answer != base.digest:
            known = checkout.store.catalogue.base(base.reference, checkout.architecture)
            before = base.digest or (known.digest if known is not None else "")
            name = base.pin.name if base.pin is not None else ""
            # The store's record may be damaged.
            previous = before if before != answer and is_digest(before) else ""
            moved[base.reference] = Pin(answer, now, previous, name)
    if moved:
        checkout.pins.move(moved)
    stale = _stale(checkout, moved)
    if as_json:
        entries = [
            {**_as_json(base, answers.get(base.reference)), "updated": base.reference in moved}
            for base in bases
        ]
        _print_json({"bases": entries, "stale": stale})
    else:
        _print_update(bases, answers, moved, stale)
    _print_errors(answers)
    return _status(answers)


_WHY_NO_PIN = {
    BaseKind.IN_DOCKERFILE: "its digest is written in the Dockerfile",
    BaseKind.FOREIGN: "podman pulls it itself, for another platform",
    BaseKind.UNUSED: f"no image needs it; remove its entry from {LOCK}",
}


def _print_update(
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
            print(f"{name}  has no pin to move: {_WHY_NO_PIN[base.kind]}")
        else:
            print(f"{name}  {_short(answer)}, as before")
    if not bases:
        print("no image of this checkout uses a registry base")
    if stale:
        print(f"stale now: {', '.join(stale)}")
    if moved:
        print(f"next: doit build, and commit {LOCK}")


def _stale(checkout: Checkout, moved: Iterable[str]) -> list[str]:
    """Return the images that these pins make stale, and those that are built on them."""
    judge, parts = Judge(checkout), {PIN + reference for reference in moved}
    stale = list[str]()
    for name in checkout.graph.images:
        try:
            causes = judge.step(Step.PODMAN, name).causes
        except RcError:
            continue  # `doit list` shows the error
        if any(cause.part in parts for cause in causes):
            stale.append(name)
            # Bases come first. A frozen base does not become stale, and neither do images on it.
            parts.add(f"base/{name}")
    return stale


def _table(bases: tuple[RegistryBase, ...], answers: Answers | None) -> None:
    headings = ["BASE", "PIN", "AGE", *(["TAG"] if answers is not None else []), "IMAGES"]
    rows = []
    for base in bases:
        row = [*words(base), age(base.pin.pinned_at) if base.pin else ""]
        if answers is not None:
            row.append(_answer_text(base, answers.get(base.reference)))
        rows.append([*row, ", ".join(base.images) or base.kind])
    tables.table(headings, rows, right=frozenset({"AGE"}))


def _answer_text(base: RegistryBase, answer: str | RcError | None) -> str:
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
