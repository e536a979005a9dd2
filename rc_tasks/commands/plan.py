"""`doit plan [NAME…]`: the steps that a run would take, why, and how long each took last time."""

import json
from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import add_json, add_names
from rc_tasks.engine.schedule.ignored import ignored_steps, reasons_to_ignore
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.state.records.records import Step, Task
from rc_tasks.state.records.status import StepStatus, on_one_line
from rc_tasks.util.text import printable_lines
from rc_tasks.views import tables


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "RUNS is `perhaps` for a step that runs only when the step before it changes something: if a"
        " base is rebuilt to the same image ID, the steps after it do not run. It is `ignored` for steps"
        " that `doit ignore` leaves out, and for those after them."
    )
    add_names(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    """Print the steps that a run would take, in order."""
    current = session()
    graph = current.checkout.graph
    selected = images(current, args.names)
    skipped = ignored_steps(current.checkout, current.judge, selected)
    steps: list[dict[str, object]] = []
    rows, total_s, never_ran, ignored = [], 0.0, 0, 0
    adoptable: dict[str, None] = {}
    broken = {name: graph.broken[name] for name in selected if name in graph.broken}
    for name in graph.with_bases(selected):
        for step in Step:
            try:
                status = current.judge.step(step, name)
            except RcError as error:
                broken[name] = error
                break
            if status.adoptable:
                adoptable[name] = None
            if status.settled:
                continue
            record = current.checkout.records.get(step, name)
            reasons = list(dict.fromkeys(cause.words for cause in status.causes))
            runs = _runs(status, skipped.get(Task(step, name)))
            last_s = record.duration_s if record else None
            planned = {"image": name, "step": step, "runs": runs, "reasons": reasons}
            steps.append(planned | {"last_duration_s": last_s})
            last = tables.duration(last_s) if last_s is not None else ""
            rows.append((f"{step}:{name}", last, runs, on_one_line(reasons)))
            if Task(step, name) in skipped:
                ignored += 1
                continue
            total_s += record.duration_s if record else 0.0
            never_ran += record is None
    if args.json:
        errors = {name: str(error) for name, error in broken.items()}
        print(json.dumps({"steps": steps, "adoptable": list(adoptable), "broken": errors}, indent=2))
        return 0
    if rows:
        headings = ("STEP", "LAST TIME", "RUNS", "WHY")
        narrow = (("LAST TIME", 0), ("RUNS", 0))
        tables.table(headings, rows, right=frozenset({"LAST TIME"}), narrow=narrow)
        print(_summary(len(rows) - ignored, total_s, never_ran, ignored))
        for line in reasons_to_ignore(current.checkout, skipped.values()):
            print(line)
    elif not broken:
        print("nothing to do")
    if adoptable and current.judge.offers is not None:
        count = "1 image" if len(adoptable) == 1 else f"{len(adoptable)} images"
        print(f"{count} can be adopted from {current.judge.offers.official.root}")
    # The images of a cycle share one error.
    for text in dict.fromkeys(map(str, broken.values())):
        sharing = [name for name, error in broken.items() if str(error) == text]
        print(f"{', '.join(sharing)} cannot be built:\n{printable_lines(text)}")
    return 0


def _runs(status: StepStatus, ignored_for: Task | None) -> str:
    if ignored_for is not None:
        return "ignored"
    return "yes" if status.certain else "perhaps"


def _summary(count: int, total_s: float, never_ran: int, ignored: int) -> str:
    """Return how many steps run, without ignored ones, and how long they took last time."""
    parts = ["1 step" if count == 1 else f"{count} steps"]
    if never_ran < count:
        parts.append(f"{tables.duration(total_s)} if each takes as long as last time")
    if never_ran:
        parts.append(f"{never_ran} never ran before")
    if ignored:
        parts.append(f"{ignored} ignored")
    return "; ".join(parts)
