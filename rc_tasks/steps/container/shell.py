"""`python -m rc_tasks.steps.container.shell CHECKOUT EDF CMD…`: CMD in a container, here, by podman.

What podman starts has to be brought to the node first, so that it cannot be an argv of srun's alone.
"""

import os
import sys
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import Launcher
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.steps.container import failure, launch
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.tools import command

_SHORT_ID = 12
# podman-run(1): podman itself failed.
_NOT_STARTED = 125


def run(checkout: Checkout, edf: str, argv: tuple[str, ...]) -> int:
    """Start the container and wait for its end; return the exit status of `argv`, or podman's own."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    resolved = launch.resolve(edf, environ=os.environ, cwd=Path.cwd())
    launch.require_mounts(resolved)
    lines: list[str] = []
    with (
        nodes.prepared(checkout.settings.podman),
        mounted_images.available(checkout) as engine,
        launch.podman_image(resolved, engine, checkout) as image,
    ):
        if image.name != resolved.image and not image.rootfs:
            _say(
                f"podman starts image {image.name[:_SHORT_ID]}, from which {resolved.image} was"
                " made: files that only image.sqsh has, such as /etc/rc, are missing"
            )
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
            lines.append,
        )
    error = failure.runtime_error(status, lines)
    if error is not None:
        _say(str(error))
    # At a terminal, the program in the container writes nothing to the pipe: all lines are podman's.
    elif terminal and (hint := failure.launcher_hint(Launcher.PODMAN, status, lines)):
        _say(f"next: {hint}")
    return status


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Return the exit status: that of CMD, or podman's 125 when it could not be started."""
    try:
        return run(open_checkout(Path(argv[0])), argv[1], tuple(argv[2:]))
    except RcError as error:
        _say(str(error))
        return _NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
