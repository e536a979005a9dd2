"""`doit list`: every image with its state and the reason."""

import contextlib
import json
import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rc_tasks.commands.cli.command import enter, images
from rc_tasks.commands.cli.parser import UsageError, add_json, add_names
from rc_tasks.engine.schedule.ignored import ignored_steps, reasons_to_ignore
from rc_tasks.engine.session import Session, session
from rc_tasks.model.graph.graph import ImageGraph
from rc_tasks.model.graph.project import ARTIFACT
from rc_tasks.state.records.records import Step, Task
from rc_tasks.state.records.status import ImageStatus, State, briefly
from rc_tasks.views import tables

# Options of doit's own list.
_FLAGS = ("all", "quiet", "status", "private", "deps")
_VALUES = ("template", "sort")
# A small terminal keeps the day of BUILT, then gives up columns.
_NARROW = (("BUILT", len("2026-11-22")), ("SIZE", 0), ("ALIASES", 0), ("BUILT", 0))


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = "`doit why NAME` explains a state. The table may change; scripts use --json."
    add_names(parser, help="an image, alias, group of versions, pattern with `*`, directory or task")
    parser.add_argument(
        "--state", choices=tuple(map(str, State)), help="only the images with this state"
    )
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
    enter(args.dir, args.file)
    of_doit = [f"--{name}" for name in _FLAGS if getattr(args, name)]
    of_doit += [f"--{name}={value}" for name in _VALUES if (value := getattr(args, name)) is not None]
    if of_doit:
        return _list_tasks(args, of_doit)
    current = session()
    selected = _matrices_together(current.checkout.graph, images(current, args.names))
    statuses = [current.judge.image(name) for name in selected]
    if args.state:
        statuses = [status for status in statuses if status.state == args.state]
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
    facts = [as_json(current, status, aliases) for status in statuses]
    rows = [
        _row(status, of_image, ignored.get(status.name))
        for status, of_image in zip(statuses, facts, strict=True)
    ]
    headings = ("IMAGE", "STATE", "SIZE", "BUILT", "ALIASES", "REASON")
    if rows:
        styles = [tables.STYLES[status.state] for status in statuses]
        tables.table(headings, rows, styles=styles, right=frozenset({"SIZE"}), narrow=_NARROW)
        if sys.stdout.isatty():
            # In a pipe, another line could be taken for an image.
            print(_totals(statuses, [of_image["size_bytes"] or 0 for of_image in facts]))
    elif args.state:
        print(f"no image is {args.state}")
    else:
        print("there are no images yet: a directory with a Dockerfile under projects/ makes one")
    for line in reasons_to_ignore(
        current.checkout, (ignored[name] for name in selected if name in ignored)
    ):
        print(line)
    if not args.names:
        for problem in current.checkout.graph.problems:
            sys.stderr.write(f"{problem}\n")
    return 0


def as_json(current: Session, status: ImageStatus, aliases: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return an image for programs; users' scripts depend on the keys."""
    checkout, name = current.checkout, status.name
    node = checkout.graph.images.get(name)
    podman, enroot = (checkout.records.get(step, name) for step in (Step.PODMAN, Step.ENROOT))
    # A broken project may have a published image, too.
    published = f"{checkout.root}/{checkout.directory(name)}/{ARTIFACT}"
    size_bytes = None
    # An adopted image may lie in a directory that this user may not search.
    with contextlib.suppress(OSError):
        size_bytes = os.stat(published).st_size
    return {
        "name": name,
        "directory": node.project.path if node else None,
        "dockerfile": node.project.shown_dockerfile if node else None,
        "context": node.project.shown_context if node else None,
        "matrix": dict(node.axis_values) if node else {},
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


def _matrices_together(graph: ImageGraph, names: list[str]) -> list[str]:
    """Return names in their order, but those of each matrix together and in the order of its axes."""
    order: dict[str, tuple[int, int]] = {}
    # Of each group: where it begins, and the place of each version in its matrix.
    groups: dict[str, tuple[int, Mapping[str, int]]] = {}
    for number, name in enumerate(names):
        node = graph.images.get(name)
        if node is None or node.options.matrix is None:
            order[name] = number, 0
            continue
        group = name.partition(":")[0]
        if group not in groups:
            groups[group] = (
                number,
                {key: place for place, key in enumerate(node.options.matrix.versions)},
            )
        begin, places = groups[group]
        order[name] = begin, places.get(node.project.version, 0)
    return sorted(names, key=order.__getitem__)


def _list_tasks(args: Namespace, options: list[str]) -> int:
    """Print doit's own list. Raise UsageError for options of the list of images."""
    from rc_tasks.commands.doit_main import doit

    for option, value in (("--json", args.json), ("--state", args.state)):
        if value:
            raise UsageError(
                f"{option} and {options[0].partition('=')[0]} cannot be combined:"
                f" {option} is for images, and {options[0].partition('=')[0]} lists tasks",
                hint=f"doit list {option}{f' {value}' * (value is not True)}",
            )
    return doit(["list", *options, "--", *args.names])


def _totals(statuses: list[ImageStatus], sizes_bytes: list[int]) -> str:
    """Return a line such as `3 images, 1.2 GB: 2 fresh, 1 stale`."""
    counts = Counter(status.state for status in statuses)
    states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    count = "1 image" if len(statuses) == 1 else f"{len(statuses)} images"
    size = f", {tables.size(sum(sizes_bytes))}" * any(sizes_bytes)
    return f"{count}{size}: {states}"


def _row(status: ImageStatus, facts: Mapping[str, Any], ignored: Task | None) -> tuple[str, ...]:
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
