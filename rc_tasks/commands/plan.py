"""`doit plan [NAME…]`: what would run, in order, why, and how long it took last time. Runs nothing."""

from argparse import ArgumentParser, Namespace

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import add_names
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.state.records.records import Step
from rc_tasks.util.text import printable_lines
from rc_tasks.views import tables


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "A step marked `perhaps` runs only when what comes before it makes something new: a base that is"
        " rebuilt to the same image ID stops there."
    )
    add_names(parser)


def run(args: Namespace) -> int:
    """Show the steps that a run would take."""
    opened = session()
    graph = opened.checkout.graph
    wanted = images(opened, args.names)
    rows, known_s, unknown = [], 0.0, 0
    adoptable: dict[str, None] = {}
    broken = {name: graph.broken[name] for name in wanted if name in graph.broken}
    for name in graph.with_bases(wanted):
        for step in Step:
            try:
                status = opened.judge.step(step, name)
            except RcError as error:
                broken[name] = error
                break
            if status.adoptable:
                adoptable[name] = None
            if status.settled:
                continue
            record = opened.checkout.records.get(step, name)
            reason = ", ".join(dict.fromkeys(cause.words for cause in status.causes))
            rows.append(
                (
                    f"{step}:{name}",
                    tables.duration(record.duration_s) if record else "",
                    "" if status.certain else "perhaps",
                    reason,
                )
            )
            known_s += record.duration_s if record else 0.0
            unknown += record is None
    if rows:
        tables.table(("STEP", "LAST TIME", "", "WHY"), rows, right=frozenset({"LAST TIME"}))
        told = ["1 step" if len(rows) == 1 else f"{len(rows)} steps"]
        if unknown < len(rows):
            told.append(f"{tables.duration(known_s)} by their last times")
        if unknown:
            told.append(f"{unknown} never ran before")
        print("; ".join(told))
    elif not broken:
        print("nothing to do")
    if adoptable and opened.judge.offers is not None:
        count = "1 image" if len(adoptable) == 1 else f"{len(adoptable)} images"
        print(f"{count} can be adopted from {opened.judge.offers.official.root}")
    # The images of a cycle share one error.
    for text in dict.fromkeys(map(str, broken.values())):
        sharing = [name for name, error in broken.items() if str(error) == text]
        print(f"{', '.join(sharing)} cannot be built:\n{printable_lines(text)}")
    return 1 if broken else 0
