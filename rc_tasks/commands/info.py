"""`doit info TASK`: what tasks depend on, and why they would run."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping

from rc_tasks.commands.cli import doit_options
from rc_tasks.commands.cli.command import tasks
from rc_tasks.commands.cli.parser import UsageError
from rc_tasks.engine.outline import Outline, files, outlines, reason
from rc_tasks.engine.session import Session, session
from rc_tasks.state.records.status import first_line
from rc_tasks.util.text import printable_lines

# Those of doit's own info.
arguments = doit_options.arguments


def run(args: Namespace) -> int:
    """Print the tasks; return 1 if one of them would run."""
    if not args.names:
        raise UsageError("TASK is missing", hint="doit info podman:NAME, or enroot:, env: or build:NAME")
    current = session()
    known = {outline.name: outline for outline in outlines(current.checkout.graph)}
    names = tasks(current, args.names, bare=True)
    if any(name not in known for name in names):
        # A dodo.py may add tasks, and doit suggests names.
        from rc_tasks.commands.doit_main import doit

        return doit(["info", *(["--no-status"] if args.no_status else []), *names])
    status = 0
    for name in names:
        causes = None if args.no_status else [*_causes(current, known, name)]
        # File names may contain control characters.
        sys.stdout.write(printable_lines(_text(current, known[name], causes)))
        status |= bool(causes)
    return status


def _causes(current: Session, known: Mapping[str, Outline], name: str) -> Iterator[str]:
    """Yield why a task would run; a group runs for what it stands for."""
    reached: dict[str, None] = {}
    todo = [name]
    while todo:
        outline = known[todo.pop()]
        if outline.name in reached:
            continue
        reached[outline.name] = None
        prefix = "" if outline.name == name else f"{outline.name}: "
        if outline.errors:
            yield prefix + first_line(outline.errors[0])
        elif outline.step is None:
            todo += outline.task_dep[::-1]
        elif cause := reason(current, outline.step):
            yield prefix + cause


def _text(current: Session, outline: Outline, causes: list[str] | None) -> str:
    """Return the text about a task, in the form of doit's own info; None leaves out the status."""
    parts = [f"{outline.name}\n", f"{outline.doc}\n" if outline.doc else ""]
    if causes is not None:
        words = "run" if causes else "up-to-date"
        parts.append(f"{'status':11}: {words}\n" + "".join(f" * {cause}\n" for cause in causes))
    lists = {
        "file_dep": files(current, outline.step) if outline.step else (),
        "task_dep": outline.task_dep,
        "targets": outline.targets,
    }
    for key, values in lists.items():
        if values:
            parts.append(f"{key:11}: \n" + "".join(f" - {value}\n" for value in values))
    return "".join(f"\n{part}" for part in parts if part)
