"""Wait for Slurm's controller, which may restart in the middle of a run."""

import threading
import time
from collections.abc import Callable, Iterable

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.errors import SlurmError
from rc_tasks.tools import slurm
from rc_tasks.util.text import duration

# How often a request may get no answer although the controller answers `scontrol ping`.
MOST_MISSES = 5
# How long a controller that is back may take to hear from its nodes. A step that is created before that
# waits in srun for one or two minutes (Slurm 22.05).
_NODES_S = 60.0


class ClosedError(Exception):
    """The run is ending, so no more steps start."""


class Controller:
    """Lets all steps of a run wait for the controller together, and reports the wait once."""

    def __init__(self, tell: Callable[[Event], None], closing: threading.Event) -> None:
        self._tell = tell
        self._closing = closing
        self._turn = threading.Lock()
        # When it last answered, and the error of a wait that was given up.
        self._answered_s = -1.0
        self._given_up: SlurmError | None = None
        self.absent = False

    def wait(
        self, since_s: float, deadline_s: float | None, *, nodes: Iterable[str] = (), why: str = ""
    ) -> bool:
        """Return whether the controller was absent after `since_s`, once it answers again.

        `since_s` and `deadline_s` are times of the monotonic clock. `why` is Slurm's error message.
        Raise SlurmError at `deadline_s` (None: wait until the run ends), and ClosedError when the run
        ends.
        """
        with self._turn:
            # Another thread has asked, or waited, already.
            if self._answered_s >= since_s:
                return True
            if self._closing.is_set():
                raise ClosedError
            if self._given_up is not None and _is_over(deadline_s):
                raise self._given_up
            if not slurm.answers():
                self.absent = True
                try:
                    self._await(deadline_s, why)
                    self._await_nodes(nodes)
                finally:
                    self.absent = False
                return True
            self._answered_s = time.monotonic()
        self._closing.wait(slurm.POLL_S)
        return False

    def _await(self, deadline_s: float | None, why: str) -> None:
        began_s = time.monotonic()
        self._tell(Event(EventKind.SLURM, words=slurm.ABSENT))
        while not slurm.answers():
            if _is_over(deadline_s):
                self._given_up = SlurmError(
                    f"Slurm's controller has not answered for {duration(time.monotonic() - began_s)}",
                    quote=(why,) if why else (),
                    hint="when `scontrol ping` finds it, run `doit` again: finished steps are kept",
                )
                raise self._given_up
            if self._closing.wait(slurm.POLL_S):
                raise ClosedError
        self._answered_s, self._given_up = time.monotonic(), None
        self._tell(Event(EventKind.SLURM, words=slurm.BACK))

    def _await_nodes(self, nodes: Iterable[str]) -> None:
        until_s = time.monotonic() + _NODES_S
        while nodes and time.monotonic() < until_s and not slurm.all_known(nodes):
            if self._closing.wait(slurm.POLL_S):
                raise ClosedError


def _is_over(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.monotonic() > deadline_s
