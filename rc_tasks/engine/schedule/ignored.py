"""Steps that runs leave out because of `doit ignore`."""

from collections.abc import Iterable

from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Task


def how_to_undo(ignored: Task) -> str:
    """Return a sentence with the command that ends the ignore: of all steps of the image at once."""
    return f"`doit ignore --undo {ignored.name}` ends that"


def ignored_steps(checkout: Checkout, judge: Judge, names: Iterable[str]) -> dict[Task, Task]:
    """Return the steps of images and their bases that no run takes: see `ignored_for`."""
    marked = checkout.records.ignored()
    if not marked:
        return {}
    # Few checkouts ignore anything, and every `doit list` would wait for this import.
    from rc_tasks.engine.schedule.estimates import ignored_for, order

    return ignored_for(order(checkout, judge, names).before, marked)
