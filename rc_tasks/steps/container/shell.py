"""`python -m rc_tasks.steps.container.shell CHECKOUT EDF CMD…`: CMD in a container, here, by podman.

What podman starts has to be brought to the node first, so that it cannot be an argv of srun's alone.
"""

import os
import sys
from collections import deque
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import Launcher
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.steps.container import failure, launch
from rc_tasks.steps.node import node as nodes
from rc_tasks.tools import command


def run(checkout: Checkout, edf: str, argv: tuple[str, ...]) -> int:
    """Start the container and wait for its end; return the exit status of `argv`."""
    lines: deque[str] = deque(maxlen=command.TAIL_LINES)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    resolved = launch.resolve(edf, environ=os.environ, cwd=Path.cwd())
    with (
        nodes.prepared(checkout.settings.podman) as engine,
        launch.podman_image(resolved, engine, checkout) as image,
    ):
        status = command.interact(
            launch.command(
                Launcher.PODMAN,
                edf,
                resolved,
                argv,
                None,
                interactive=terminal,
                engine=engine,
                image=image,
            ),
            # With a terminal of its own, the program in the container writes nothing to this pipe.
            lines.append,
        )
    unable = failure.runtime_error(status, tuple(lines))
    if unable is not None:
        print(unable, file=sys.stderr, flush=True)
    return status


def main(argv: list[str]) -> int:
    """Return the exit status: that of CMD, or 1 when it could not be started and we said why."""
    try:
        return run(open_checkout(Path(argv[0])), argv[1], tuple(argv[2:]))
    except RcError as error:
        print(error, file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
