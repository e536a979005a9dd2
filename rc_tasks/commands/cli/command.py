"""The commands of ours that need no doit tasks: they open the checkout themselves, and start fast."""

import abc
import sys
from typing import Any, ClassVar

from rc_tasks.commands.cli.errors import Told, reader_left
from rc_tasks.engine.session import TASK_KINDS, Session, remember_digests, session


class CheckoutCommand(Told, abc.ABC):
    """A command about the checkout around the working directory."""

    cmd_options: ClassVar[tuple[dict[str, Any], ...]] = ()

    def execute(self, opt_values: Any, pos_args: list[str]) -> int:
        """Open the checkout and show."""
        try:
            status = self.show(session(), dict(opt_values), pos_args)
            sys.stdout.flush()
        except BrokenPipeError:
            # `doit list | head`: the reader has seen enough, and nothing is left undone.
            reader_left()
            return 0
        else:
            return status
        finally:
            remember_digests()

    @abc.abstractmethod
    def show(self, opened: Session, options: dict[str, Any], names: list[str]) -> int:
        """The command's own work; returns the exit status."""


def images(opened: Session, names: list[str]) -> list[str]:
    """The images that arguments mean: names, aliases and groups, also as names of tasks."""
    graph = opened.checkout.graph
    everything = dict.fromkeys((*graph.images, *graph.broken))
    if not names:
        return list(everything)
    known = frozenset(graph.names())
    found: dict[str, None] = {}
    for argument in names:
        kind, _, rest = argument.partition(":")
        name = rest if kind in TASK_KINDS and argument not in known else argument
        name = graph.aliases.get(name, name)
        if name in everything:
            found[name] = None
            continue
        group = [known for known in everything if known.partition(":")[0] == name]
        if not group:
            graph.resolve(name)  # raises with the nearest names
        found |= dict.fromkeys(group)
    return list(found)


OPT_JSON = {
    "name": "json",
    "long": "json",
    "type": bool,
    "default": False,
    "help": "print JSON for programs",
}
