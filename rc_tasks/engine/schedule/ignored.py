"""Steps that runs leave out: because of `doit ignore`, or because no node has their machine."""

from collections.abc import Iterable

from rc_tasks.engine.schedule.machines import left_alone
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step, Task


def marked(checkout: Checkout) -> frozenset[str]:
    """Return the names of the tasks that no run takes."""
    alone = (str(Task(step, name)) for name in left_alone(checkout) for step in Step)
    return checkout.records.ignored() | {*alone}


def reasons_to_ignore(checkout: Checkout, ignored: Iterable[Task]) -> list[str]:
    """Return a line for each reason why no run takes some steps."""
    alone = left_alone(checkout)
    subjects = {task: task.name if task.name in alone else str(task) for task in ignored}
    lines = (f"{subject}: {how_to_undo(checkout, task)}" for task, subject in subjects.items())
    return [f"no run takes {line}" for line in sorted(set(lines))]


def how_to_undo(checkout: Checkout, ignored: Task) -> str:
    """Return a sentence with what ends the ignore: of all steps of the image at once."""
    if words := left_alone(checkout).get(ignored.name):
        machine = checkout.graph.images[ignored.name].project.machine
        return f"no node of {machine} is known here; {words}"
    return f"`doit ignore --undo {ignored.name}` ends that"


def ignored_steps(checkout: Checkout, judge: Judge, names: Iterable[str]) -> dict[Task, Task]:
    """Return the steps of images and their bases that no run takes: see `ignored_for`."""
    tasks = marked(checkout)
    if not tasks:
        return {}
    # Few checkouts ignore anything, and every `doit list` would wait for this import.
    from rc_tasks.engine.schedule.estimates import ignored_for, order

    return ignored_for(order(checkout, judge, names).before, tasks)
