"""Running a command of ours, without doit."""

import sys
from collections.abc import Sequence

from rc_tasks.commands.cli.errors import reader_left
from rc_tasks.commands.cli.parser import parsed
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.engine.session import TASK_KINDS, Session, remember_digests


def execute(name: str, words: Sequence[str], before: Sequence[str] = ()) -> int:
    """Parse the arguments of a command and run it; returns the exit status. Raises RcError.

    `before` are options of doit's that stood before the name.
    """
    args = parsed(name, words)
    args.words = [*before, name, *words]
    try:
        status: int = COMMANDS[name].load().run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # `doit list | head`: the reader has seen enough, and nothing is left undone.
        reader_left()
        return 0
    else:
        return status
    finally:
        remember_digests()


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
