"""Displays of a run, which write in a thread of their own, and the one for pipes and files."""

import abc
import contextlib
import queue
import sys
import threading
import time
from typing import TextIO

from msgspec import Struct, field
from msgspec.structs import replace

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.progress.log_tail import Tail, doing
from rc_tasks.engine.session import NOTHING_LOST
from rc_tasks.state.records.records import Task
from rc_tasks.util.text import listed, printable

# How often the logs of running steps are read.
POLL_S = 0.3
# How long a blocked terminal or pipe may delay the end of the run.
_LAST_WORDS_S = 5.0
# The indentation of an event's further lines.
_INDENT = " " * 8
# Of more steps than these, only the number is printed.
_MOST_NAMED = 8


class Running(Struct):
    """A running step: its start event, the tail of its log, and what the step is doing."""

    event: Event
    tail: Tail
    since_s: float = field(default_factory=time.monotonic)
    doing: str = ""


class Display(abc.ABC):
    """Shows events in the order in which they are reported, and with `streams` the output of steps.

    `tell` never blocks, and may be called from a signal handler.
    """

    def __init__(self, out: TextIO, *, streams: bool) -> None:
        self.out = Unbreakable(out)
        self.streams = streams
        self.running: dict[Task, Running] = {}
        # Once several steps run at the same time, each line of output needs the name of its step.
        self._several = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="display")

    def start(self) -> None:
        """Start the thread of the display."""
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Queue an event to be shown."""
        self._events.put(event)

    def close(self) -> bool:
        """Show all queued events and end; return False if the output is blocked, as a pipe may be."""
        self._events.put(Event(EventKind.OVER))
        self._thread.join(_LAST_WORDS_S)
        return not self._thread.is_alive()

    @abc.abstractmethod
    def show(self, event: Event) -> None:
        """Show an event."""

    @abc.abstractmethod
    def stream(self, lines: list[str]) -> None:
        """Show output of steps."""

    @abc.abstractmethod
    def refresh(self) -> None:
        """Update the display; called after events, and a few times a second while steps run."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Remove everything that would be updated."""

    def take(self, event: Event) -> None:
        """Update the running steps by an event, and show it."""
        if event.kind is EventKind.START and event.task is not None and event.log is not None:
            self.running[event.task] = Running(event, Tail(event.log, whole=self.streams))
            self._several = self._several or len(self.running) > 1
        elif event.kind is EventKind.LEFT and event.task is not None and event.task in self.running:
            self._read(self.running[event.task])
            self.running.pop(event.task).tail.close()
        elif event.kind is EventKind.INTERRUPTED and self.running:
            event = replace(event, words=f"ending {self._named()}; {NOTHING_LOST}")
        self.show(event)

    def read(self) -> None:
        """Read what was added to the logs."""
        for running in self.running.values():
            self._read(running)

    def _work(self) -> None:
        next_s = 0.0
        while True:
            wait_s = max(0.0, next_s - time.monotonic()) if self.running else None
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=wait_s)
                while True:
                    if event.kind is EventKind.OVER:
                        self.finish()
                        return
                    self.take(event)
                    event = self._events.get_nowait()
            if time.monotonic() >= next_s:
                self.read()
                next_s = time.monotonic() + POLL_S
            self.refresh()

    def _read(self, running: Running) -> None:
        lines = running.tail.lines()
        for line in (running.tail.begun, *reversed(lines)):
            if now := doing(line):
                running.doing = now
                break
        if self.streams and lines:
            lead = f"{printable(running.event.subject)} | " if self._several else ""
            self.stream([f"{lead}{line}" for line in lines])

    def _named(self) -> str:
        starts = [step.event for step in self.running.values()]
        names = [f"{step.subject}{f' on {step.node}' if step.node else ''}" for step in starts]
        return listed(names, _MOST_NAMED)


class Plain(Display):
    """A display that writes a line with the time for each event, without control characters."""

    def __init__(self, out: TextIO, *, streams: bool) -> None:
        super().__init__(out, streams=streams)
        self._errors = Unbreakable(sys.stderr)

    def show(self, event: Event) -> None:
        if event.kind.printed:
            # The reader of the pipe may have been interrupted too, so write to stderr.
            out = self._errors if event.kind is EventKind.INTERRUPTED else self.out
            out.write(f"{event.at:%Y-%m-%d %H:%M:%S} {event_line(event)}\n")
            out.flush()

    def stream(self, lines: list[str]) -> None:
        self.out.write("".join(f"{line}\n" for line in lines))
        self.out.flush()

    def refresh(self) -> None:
        """Do nothing: lines stay as they are."""

    def finish(self) -> None:
        """Do nothing: lines stay as they are."""

    def read(self) -> None:
        if self.streams:
            super().read()


class Unbreakable:
    """A stream that ignores write errors, as of a closed terminal: the run must end cleanly."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.encoding = out.encoding or "utf-8"

    def write(self, text: str) -> int:
        """Write the text if the stream still works; return its length."""
        with contextlib.suppress(OSError, ValueError):
            return self._out.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if it still works."""
        with contextlib.suppress(OSError, ValueError):
            self._out.flush()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._out.isatty()

    def fileno(self) -> int:
        """Return its file descriptor."""
        return self._out.fileno()


def event_line(event: Event) -> str:
    """Return the line of an event; further lines are indented."""
    first, *rest = [printable(line) for line in event.words.split("\n")]
    words = "\n".join((first, *(f"{_INDENT}{line}" for line in rest)))
    subject = f"{printable(event.subject)}  " if event.subject else ""
    return f"{event.kind:7} {subject}{words}"
