"""`doit list`: every image with its state and the reason."""

import contextlib
import json
import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import add_json, add_names
from rc_tasks.engine.schedule.estimates import ignored_steps
from rc_tasks.engine.session import Session, session
from rc_tasks.model.graph.project import ARTIFACT
from rc_tasks.state.records.records import Step, Task
from rc_tasks.state.records.status import ImageStatus, State, briefly
from rc_tasks.views import tables

# What a narrow terminal leaves out first.
_NARROW = (("BUILT", 10), ("SIZE", 0), ("ALIASES", 0), ("BUILT", 0))


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "States: fresh, stale, missing, failed, building. `doit why NAME` explains one."
    add_names(parser)
    add_json(parser)
    doits = parser.add_argument_group("doit's own list, of tasks")
    doits.add_argument("--all", action="store_true", help="the steps of images, too")
    doits.add_argument("-q", "--quiet", action="store_true", help="only the names")
    doits.add_argument("-s", "--status", action="store_true", help="R to run, U up to date, I ignored")
    doits.add_argument("-p", "--private", action="store_true", help="tasks that start with _, too")
    doits.add_argument("--deps", action="store_true", help="the files that tasks depend on, too")
    doits.add_argument("--template", metavar="TEXT", help="how to print a task: '{name} {doc}'")
    doits.add_argument("--sort", choices=("name", "definition"), help="the order of tasks")
    # doit takes these too, and its older completion scripts pass them.
    for option in ("--db-file", "--backend", "--check_file_uptodate"):
        parser.add_argument(option, help=SUPPRESS)
    parser.add_argument("-f", "--file", help=SUPPRESS)
    parser.add_argument("-d", "--dir", help=SUPPRESS)
    parser.add_argument("-k", "--seek-file", action="store_true", help=SUPPRESS)


def run(args: Namespace) -> int:
    """Show the table of images, or doit's list of tasks when one of its options is given."""
    if any((args.all, args.quiet, args.status, args.private, args.deps, args.template, args.sort)):
        from rc_tasks.commands.doit_main import doit

        # doit looks for options in front of names.
        names = set(args.names)
        return doit([*(word for word in args.words if word not in names), *args.names])
    current = session()
    selected = images(current, args.names)
    statuses = [current.judge.image(name) for name in selected]
    skipped = ignored_steps(current.checkout, current.judge, selected)
    ignored = {task.name: reason for task, reason in reversed(skipped.items())}
    aliases = current.checkout.graph.aliases_of()
    if args.json:
        document = [
            as_json(current, status, aliases)
            | {"ignored": [str(task) for task in skipped if task.name == status.name]}
            for status in statuses
        ]
        json.dump(document, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    rows = [_row(current, status, aliases, ignored.get(status.name)) for status in statuses]
    headings = ("IMAGE", "STATE", "SIZE", "BUILT", "ALIASES", "REASON")
    if rows:
        styles = [tables.STYLES[status.state] for status in statuses]
        tables.table(headings, rows, styles=styles, right=frozenset({"SIZE"}), narrow=_NARROW)
    else:
        print("there are no images yet: a directory with a Dockerfile under projects/ makes one")
    for reason in sorted({str(ignored[name]) for name in selected if name in ignored}):
        print(f"no run takes {reason}: `doit ignore --undo {reason}` ends that")
    if not args.names:
        for problem in current.checkout.graph.problems:
            sys.stderr.write(f"{problem}\n")
    return 0


def as_json(current: Session, status: ImageStatus, aliases: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return an image for programs; users' scripts depend on the keys."""
    checkout, name = current.checkout, status.name
    node = checkout.graph.images.get(name)
    podman, enroot = (
        (checkout.records.get(Step.PODMAN, name), checkout.records.get(Step.ENROOT, name))
        if node
        else (None, None)
    )
    published = f"{node.project.base}/{ARTIFACT}" if node else ""
    size_bytes = None
    # An adopted image may lie in a directory that this user may not search.
    with contextlib.suppress(OSError):
        size_bytes = os.stat(published).st_size
    return {
        "name": name,
        "directory": node.project.path if node else None,
        "state": status.state,
        "reasons": list(status.reasons),
        "image_id": podman.facts.image_id if podman and podman.facts else None,
        "image": published if size_bytes is not None else None,
        "size_bytes": size_bytes,
        "built_at": enroot.ended_at if enroot else None,
        "adopted_from": (enroot.adopted_from or None) if enroot else None,
        "rolled_back": current.judge.rolled_back(name),
        "frozen": node.options.frozen if node else False,
        "bases": [*node.bases, *node.remote] if node else [],
        "aliases": aliases.get(name, []),
        "log": status.failure.log if status.failure else None,
    }


def _row(
    current: Session, status: ImageStatus, aliases: Mapping[str, list[str]], ignored: Task | None
) -> tuple[str, ...]:
    facts = as_json(current, status, aliases)
    remarks = []
    if ignored is not None:
        remarks.append("ignored" if ignored.name == status.name else f"ignored, as {ignored} is")
    if facts["rolled_back"] and status.state is not State.FRESH:
        remarks.append("rolled back")
    if status.reasons:
        remarks.append(briefly(status.name, status.reasons))
    return (
        status.name,
        status.state,
        tables.size(facts["size_bytes"]),
        tables.when(facts["built_at"]),
        ", ".join(facts["aliases"]),
        "; ".join(remarks),
    )
