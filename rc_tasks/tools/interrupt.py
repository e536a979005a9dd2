"""Signals that end this process in order."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType

_AGAIN_S = 0.05


def raise_once(signals: Iterable[signal.Signals], before: Callable[[], None] = lambda: None) -> None:
    """Make the first of these signals call `before` and raise KeyboardInterrupt in the main thread.

    Later ones do nothing: a second one must not break the cleaning up. To be called by the main thread.
    """
    wanted = frozenset(signals)
    main = threading.main_thread()
    taken = threading.Event()

    # Not SIG_IGN for later ones, which commands that are started then would inherit.
    def handle(_number: int, _frame: FrameType | None) -> None:
        if not taken.is_set():
            taken.set()
            before()
            raise KeyboardInterrupt

    def wake() -> None:
        while (number := ord(os.read(arrived, 1))) not in wanted:
            pass
        while not taken.wait(_AGAIN_S) and main.ident is not None:
            signal.pthread_kill(main.ident, number)

    # The kernel may give a signal to any thread (signal(7)), and Python's handler waits for the main
    # thread, which may itself wait for a lock, without end: it is signalled until it answers.
    arrived, arrival = os.pipe()
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival, warn_on_full_buffer=False)
    threading.Thread(target=wake, daemon=True, name="wake").start()
    for number in wanted:
        signal.signal(number, handle)
