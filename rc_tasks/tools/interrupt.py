"""Signal handling: end this process cleanly at the first signal."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from rc_tasks.errors import RcError

_AGAIN_S = 0.05
# A program that starts us may pass on a Ctrl-C that the terminal has sent to us already.
_TWICE_S = 0.2


class _Deferral:
    """Whether the main thread is in `deferred`, and whether a signal has come there."""

    def __init__(self) -> None:
        self.active = False
        self.came = False


_deferral = _Deferral()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a signal that comes in the body at its end.

    Python may run the handler between any two of its instructions, and what the body begins could not
    be ended then. Keep the body short. In other threads than the main one this does nothing, as none is
    interrupted.
    """
    if _deferral.active or threading.current_thread() is not threading.main_thread():
        yield
        return
    _deferral.active = True
    try:
        yield
    finally:
        _deferral.active = False
        came, _deferral.came = _deferral.came, False
        if came:
            raise KeyboardInterrupt


@contextlib.contextmanager
def recognized() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of an error that one has caused in Python's own code.

    One that comes within a lock of `threading`, for example, ends as `RuntimeError: release unlocked
    lock`. Errors with a message for people stay: an RcError, and those of the system.
    """
    try:
        yield
    except (RcError, OSError):
        raise
    except Exception as error:
        before = error.__context__
        while before is not None and not isinstance(before, KeyboardInterrupt):
            before = before.__context__
        if before is None:
            raise
        raise KeyboardInterrupt from error


def stop_handling(then: signal.Handlers) -> None:
    """Replace our handlers at the end of the program by `then`, which is SIG_DFL or SIG_IGN.

    Python still ends its threads, and would print where a KeyboardInterrupt comes meanwhile.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            signal.signal(number, then)


def raise_each(_number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt at each signal; while `deferred` runs, at its end. A handler."""
    if _deferral.active:
        _deferral.came = True
    else:
        raise KeyboardInterrupt


def raise_once(
    signals: Iterable[signal.Signals],
    before: Callable[[], None] = lambda: None,
    again: Callable[[], None] = lambda: None,
) -> None:
    """Make the first of these signals call `before` and raise KeyboardInterrupt in the main thread.

    A later Ctrl-C calls `again` in another thread, as the main thread may be waiting. Other later
    signals do nothing: they must not interrupt the cleanup. Call this in the main thread.
    """
    handled = frozenset(signals)
    main = threading.main_thread()
    taken = threading.Event()

    # Commands that are started after the first signal would inherit SIG_IGN, but not a handler.
    def handle(number: int, frame: FrameType | None) -> None:
        if not taken.is_set():
            taken.set()
            before()
            raise_each(number, frame)

    def wake() -> None:
        while (number := ord(os.read(arrived, 1))) not in handled:
            pass
        while not taken.wait(_AGAIN_S) and main.ident is not None:
            signal.pthread_kill(main.ident, number)
        since_s = time.monotonic()
        while True:
            (number,) = os.read(arrived, 1)
            if number == signal.SIGINT and time.monotonic() > since_s + _TWICE_S:
                again()

    # The kernel may give a signal to any thread (signal(7)), and Python runs the handler in the main
    # thread. That may wait for a lock without end, so `wake` signals it until the handler has run.
    arrived, arrival = os.pipe()
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival, warn_on_full_buffer=False)
    threading.Thread(target=wake, daemon=True, name="wake").start()
    for number in handled:
        signal.signal(number, handle)
