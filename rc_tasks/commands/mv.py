"""`doit mv OLD NEW`: rename of a project."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from rc_tasks.commands.cli.command import project_or_alias
from rc_tasks.commands.cli.confirm import confirm
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_names
from rc_tasks.commands.new import unused
from rc_tasks.engine.session import session
from rc_tasks.engine.upkeep import move as moves
from rc_tasks.errors import RcError
from rc_tasks.model.graph.project import ARTIFACT, PROJECTS
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import Checkout, images_of
from rc_tasks.state.edf import in_use
from rc_tasks.state.moves import Move
from rc_tasks.state.records.records import Step
from rc_tasks.tools import git


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "Records, previous images, manifests, logs and history go along, and nothing is built. Aliases"
        " lead to NEW, and Dockerfiles that name OLD name NEW. It lists what changes, and asks first."
        " git's index has the new name, as after `git mv`; nothing is committed. After an interrupt, the"
        " same command finishes the rest."
    )
    add_names(parser, "OLD NEW", help="a project, and its new name")
    add_flag(
        parser, "--alias", help="make OLD an alias of NEW, and leave the Dockerfiles that name it alone"
    )
    add_flag(parser, "-y", "--yes", help="do not ask")


def run(args: Namespace) -> int:
    """Rename a project."""
    if len(args.names) != 2:
        raise UsageError(
            f"expected two names, not {len(args.names)}", hint="doit mv OLD NEW; `doit list` shows all"
        )
    checkout = session().checkout
    old, new = project_or_alias(checkout, args.names[0]), args.names[1]
    require_own(checkout)
    move = checkout.moves.get(old)
    if move is not None and move.new != new:
        raise RcError(
            f"the move of {old} to {move.new} was interrupted",
            where=move.path,
            hint=f"finish it first: doit mv {old} {move.new}",
        )
    if move is None:
        if old not in checkout.graph.aliases and not images_of(checkout, old):
            checkout.graph.resolve(old)
        unused(checkout, new, renamed=old)
        move = moves.plan(checkout, old, new, keep_alias=args.alias)
        for line in _changes(checkout, move):
            print(line, flush=True)
        command = f"doit mv {old} {new}{' --alias' if args.alias else ''}"
        if not confirm(f"rename {old} to {new}?", yes=args.yes, command=command):
            print("nothing was changed")
            return 1
    moves.carry_out(checkout, move)
    print(f"{old} is {new} now")
    if git.uncommitted(checkout.root, move.new_path):
        print("next: `git status`, then commit")
    return 0


def _changes(checkout: Checkout, move: Move) -> Iterator[str]:
    """Yield what a move changes, and what it cannot change."""
    yield f"{move.path} becomes {move.new_path}, with its records, previous images, logs and history"
    for alias, target in sorted(move.aliases.items()):
        yield f"  {PROJECTS}/{alias} leads to {target}"
    if move.keep_alias:
        yield f"  {PROJECTS}/{move.old} becomes an alias"
    stale = []
    for name, names in move.children.items():
        node = next(node for node in moves.nodes(checkout) if node.project.name == name)
        lines = {base.line: base.name for base in node.dockerfile.bases if base.name in names}
        for line, written in lines.items():
            yield f"  {node.project.shown_dockerfile}:{line} names {names[written]}"
        if lines:
            stale.append(name)
        else:
            yield f"  {name} is built on it through an alias, and does not change"
    if stale:
        yield f"stale then, because their Dockerfiles change: {', '.join(stale)}"
        yield f"  --alias keeps {move.old} as an alias: then no Dockerfile changes, and nothing is stale"
    record = checkout.records.get(Step.PODMAN, move.old)
    if record is not None and record.adopted_from:
        yield f"built here then, as {record.adopted_from} has no {move.new}: {move.new}"
    yield from _unchanged(checkout, move)


def _unchanged(checkout: Checkout, move: Move) -> Iterator[str]:
    """Yield what may name the project and is not changed."""
    if move.keep_alias and move.path.startswith(f"{PROJECTS}/"):
        return
    root = checkout.images_root
    yield "not changed:"
    yield f"  job scripts that name {root}/{move.path}/{ARTIFACT}"
    yield f"    it is {root}/{move.new_path}/{ARTIFACT} then"
    own = checkout.root / move.path
    for edf in in_use.that_name(checkout, f"/{move.path}/"):
        if not edf.is_relative_to(own):
            yield f"  {_shown(checkout, os.fspath(edf))}"
    for name, error in checkout.graph.broken.items():
        if name not in checkout.graph.unbuildable and name not in move.children:
            yield f"  {name}, whose Dockerfile cannot be read: {error.headline}"


def _shown(checkout: Checkout, path: str) -> str:
    root, home = f"{checkout.root}/", f"{os.path.expanduser('~')}/"
    if path.startswith(root):
        return path.removeprefix(root)
    return f"~/{path.removeprefix(home)}" if path.startswith(home) else path
