"""`doit plan [NAME…]`: the steps that a run would take, why, and how long each took last time."""

from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import add_names
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.state.records.records import Step
from rc_tasks.util.text import printable_lines
from rc_tasks.views import tables

_NARROW = (("LAST TIME", 0), ("NOTE", 0))


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "A step marked `perhaps` runs only when the step before it changes something: if a base is"
        " rebuilt to the same image ID, the steps after it do not run."
    )
    add_names(parser)


def run(args: Namespace) -> int:
    """Print the steps that a run would take, in order."""
    current = session()
    graph = current.checkout.graph
    selected = images(current, args.names)
    rows, total_s, never_ran = [], 0.0, 0
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
            reason = ", ".join(dict.fromkeys(cause.words for cause in status.causes))
            rows.append(
                (
                    f"{step}:{name}",
                    tables.duration(record.duration_s) if record else "",
                    "" if status.certain else "perhaps",
                    reason,
                )
            )
            total_s += record.duration_s if record else 0.0
            never_ran += record is None
    if rows:
        tables.table(
            ("STEP", "LAST TIME", "NOTE", "WHY"), rows, right=frozenset({"LAST TIME"}), narrow=_NARROW
        )
        summary = ["1 step" if len(rows) == 1 else f"{len(rows)} steps"]
        if never_ran < len(rows):
            summary.append(f"{tables.duration(total_s)} if each takes as long as last time")
        if never_ran:
            summary.append(f"{never_ran} never ran before")
        print("; ".join(summary))
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
