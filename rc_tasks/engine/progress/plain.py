"""How a run is shown: one thread of its own writes, whoever tells; here for pipes and files."""

import abc
import contextlib
import queue
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TextIO

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.progress.log_tail import Tail, doing
from rc_tasks.engine.session import NOTHING_LOST
from rc_tasks.state.records.records import Task
from rc_tasks.util.text import listed, printable

# How often the logs of running steps are looked at.
POLL_S = 0.3
# How long a terminal or a pipe may keep us from ending.
_LAST_WORDS_S = 5.0
# The words of an event start here when they have several lines.
_INDENT = " " * 8
# Of more steps than these, only the number is told.
_MOST_NAMED = 8


@dataclass(slots=True)
class Running:
    """A step that runs: its start, and what is known of its log."""

    event: Event
    tail: Tail
    since_s: float = field(default_factory=time.monotonic)
    doing: str = ""


class Display(abc.ABC):
    """Shows events in the order in which they are told, and what steps write when that is wanted.

    Telling never waits, and may be done from a signal's handler.
    """

    def __init__(self, out: TextIO, *, streams: bool) -> None:
        self.out = Unbreakable(out)
        self.streams = streams
        self.running: dict[Task, Running] = {}
        # Once several steps ran at the same time, a line without a name could be of any.
        self._several = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="display")

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Show an event, soon."""
        self._events.put(event)

    def close(self) -> bool:
        """Show what was told until now; whether all could be shown, as a pipe may be read no more."""
        self._events.put(Event(EventKind.OVER))
        self._thread.join(_LAST_WORDS_S)
        return not self._thread.is_alive()

    @abc.abstractmethod
    def show(self, event: Event) -> None:
        """Show an event."""

    @abc.abstractmethod
    def stream(self, lines: list[str]) -> None:
        """Show what steps have written."""

    @abc.abstractmethod
    def refresh(self) -> None:
        """Show what is there now; called after events, and a few times a second while steps run."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Leave nothing that would change."""

    def take(self, event: Event) -> None:
        """Follow an event, and show it."""
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
        starts = [each.event for each in self.running.values()]
        names = [f"{each.subject}{f' on {each.node}' if each.node else ''}" for each in starts]
        return listed(names, _MOST_NAMED)


class Plain(Display):
    """A line for each event, with the time and without anything that a file should not hold."""

    def __init__(self, out: TextIO, *, streams: bool) -> None:
        super().__init__(out, streams=streams)
        self._errors = Unbreakable(sys.stderr)

    def show(self, event: Event) -> None:
        if event.kind.printed:
            # What reads a pipe may have been interrupted as well.
            out = self._errors if event.kind is EventKind.INTERRUPTED else self.out
            out.write(f"{event.at:%Y-%m-%d %H:%M:%S} {event_line(event)}\n")
            out.flush()

    def stream(self, lines: list[str]) -> None:
        self.out.write("".join(f"{line}\n" for line in lines))
        self.out.flush()

    def refresh(self) -> None:
        """Lines stay as they are."""

    def finish(self) -> None:
        """Lines stay as they are."""

    def read(self) -> None:
        if self.streams:
            super().read()


class Unbreakable:
    """A stream that may go away, as when a terminal is closed: the run ends as it has to."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.encoding = out.encoding or "utf-8"

    def write(self, text: str) -> int:
        """Write, if there still is anybody."""
        with contextlib.suppress(OSError, ValueError):
            return self._out.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        with contextlib.suppress(OSError, ValueError):
            self._out.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._out.isatty()

    def fileno(self) -> int:
        """Its file descriptor."""
        return self._out.fileno()


def event_line(event: Event) -> str:
    """An event in words; further lines are indented."""
    first, *rest = [printable(line) for line in event.words.split("\n")]
    words = "\n".join((first, *(f"{_INDENT}{line}" for line in rest)))
    subject = f"{printable(event.subject)}  " if event.subject else ""
    return f"{event.kind:7} {subject}{words}"
