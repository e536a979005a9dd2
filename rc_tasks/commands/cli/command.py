"""Runner of the commands that do not need doit, and the images that their arguments name."""

import sys
from collections.abc import Sequence

from rc_tasks.commands.cli.errors import discard_output
from rc_tasks.commands.cli.parser import parsed
from rc_tasks.commands.cli.table import COMMANDS
from rc_tasks.engine.session import TASK_KINDS, Session, remember_digests


def execute(name: str, words: Sequence[str], before: Sequence[str] = ()) -> int:
    """Parse the arguments of a command, run it and return its exit status. Raise RcError.

    `before` are doit's options that stand before the name of the command.
    """
    args = parsed(name, words)
    args.words = [*before, name, *words]
    try:
        status: int = COMMANDS[name].load().run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # In `doit list | head`, head stops reading early: that is not a failure.
        discard_output()
        return 0
    else:
        return status
    finally:
        remember_digests()


def images(current: Session, names: list[str]) -> list[str]:
    """Return the images that arguments name, or all images when there is no argument.

    An argument is the name of an image, an alias, a group of versions, or a task of one of these. Raise
    ProjectError for any other name.
    """
    graph = current.checkout.graph
    all_images = dict.fromkeys((*graph.images, *graph.broken))
    if not names:
        return list(all_images)
    known = frozenset(graph.names())
    selected: dict[str, None] = {}
    for argument in names:
        kind, _, rest = argument.partition(":")
        name = rest if kind in TASK_KINDS and argument not in known else argument
        name = graph.aliases.get(name, name)
        if name in all_images:
            selected[name] = None
            continue
        group = [image for image in all_images if image.partition(":")[0] == name]
        if not group:
            graph.resolve(name)  # raises an error that suggests the nearest names
        selected |= dict.fromkeys(group)
    return list(selected)
