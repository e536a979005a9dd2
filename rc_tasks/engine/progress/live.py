"""Display of a run on a terminal: events scroll by above a few lines that show the running steps."""

import os
import shutil
import time
from collections.abc import Collection
from typing import IO, TextIO, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.progress.plain import Display, Running, event_line
from rc_tasks.engine.schedule.estimates import Order
from rc_tasks.state.records.records import Task
from rc_tasks.util.text import clock, duration, printable

_STYLES = {
    EventKind.DONE: "green",
    EventKind.FAILED: "bold red",
    EventKind.IGNORED: "yellow",
    EventKind.WAIT: "yellow",
    EventKind.RETRY: "yellow",
    EventKind.AGAIN: "yellow",
    EventKind.QUEUE: "yellow",
    EventKind.SLURM: "yellow",
    EventKind.INTERRUPTED: "bold yellow",
}
# Names are cut less on terminals that are at least this wide.
_WIDE = 120
# How often the remaining time is estimated, which takes all remaining steps into account.
_ESTIMATE_S = 1.0


class Live(Display):
    """Redraws the lines at the bottom after each change.

    They are shorter than the terminal is wide, so that each takes one row until it is made narrower.
    The cursor is never hidden, so that a killed run leaves the terminal usable.
    """

    def __init__(
        self, out: TextIO, left: Collection[Task], expected: Order | None, *, streams: bool
    ) -> None:
        """Expect the run to take the steps in `left`."""
        super().__init__(out, streams=streams)
        self._console = Console(file=cast(IO[str], self.out), highlight=False, emoji=False, markup=False)
        self._left = set(left)
        self._steps = len(self._left)
        self._expected = expected
        self._failed = 0
        self._queued: dict[Task, None] = {}
        self._slots = 1
        self._above: list[Text] = []
        self._drawn: list[Text] = []
        self._drawn_width = 0
        self._estimate_s: float | None = None
        self._estimated_at_s = 0.0

    def show(self, event: Event) -> None:
        if event.task is not None:
            self._count(event.kind, event.task)
        self._failed += event.kind is EventKind.FAILED
        if len(self.running) > self._slots:
            self._slots = len(self.running)
            self._estimated_at_s = 0.0
        if event.kind.printed:
            line = Text(self._encodable(event_line(event)))
            line.stylize(_STYLES.get(event.kind, ""), 0, len(event.kind))
            self._above.append(line)

    def _count(self, kind: EventKind, task: Task) -> None:
        match kind:
            case EventKind.READY | EventKind.WAIT:
                self._queued[task] = None
            case EventKind.START | EventKind.LEFT:
                self._queued.pop(task, None)
            case EventKind.DONE | EventKind.FAILED | EventKind.SETTLED:
                self._queued.pop(task, None)
                # A step that need not or cannot run no longer counts.
                self._steps -= kind is EventKind.SETTLED and task in self._left
                self._left.discard(task)

    def stream(self, lines: list[str]) -> None:
        self._above += [Text(self._encodable(line), style="dim") for line in lines]

    def refresh(self) -> None:
        width, height = self._size()
        # Keep the last column free, and the last row, where the cursor is.
        lines = self.lines(width - 1, height - 2)
        if self._above or lines != self._drawn or width != self._drawn_width:
            self._draw(lines, width)

    def finish(self) -> None:
        self._draw([], self._size()[0])

    def lines(self, width: int, height: int) -> list[Text]:
        """Return the lines of the running steps and the queue, in at most this many columns and rows."""
        if not self.running and not self._queued:
            return []
        footer = [self._fit(Text(line), width) for line in (self._queue(width), self._overall()) if line]
        running = list(self.running.values())
        room = max(1, height - len(footer))
        visible = running if len(running) <= room else running[: max(0, room - 1)]
        lines = self._steps_lines(visible, width)
        if len(visible) < len(running):
            lines.append(
                self._fit(Text(f"  {self._mark} and {len(running) - len(visible)} more"), width)
            )
        return [*lines, *footer][-max(1, height) :]

    def _steps_lines(self, visible: list[Running], width: int) -> list[Text]:
        now_s = time.monotonic()
        wide = width >= _WIDE
        cells = [
            (
                self._short(step.event.subject, 48 if wide else 32),
                self._short(step.event.node, 24 if wide else 10),
                clock(now_s - step.since_s),
                f" of ~{clock(step.event.last_s)}" if step.event.last_s else "",
                self._encodable(step.doing),
            )
            for step in visible
        ]
        widths = [max((cell_len(row[column]) for row in cells), default=0) for column in range(4)]
        lines = []
        for task, node, elapsed, last, doing in cells:
            line = Text("  ")
            line.append(set_cell_size(task, widths[0]), "cyan")
            if widths[1]:
                line.append("  " + set_cell_size(node, widths[1]), "dim")
            line.append(f"  {elapsed.rjust(widths[2])}")
            line.append(last.ljust(widths[3]), "dim")
            line.append(f"  {doing}")
            lines.append(self._fit(line, width))
        return lines

    def _queue(self, width: int) -> str:
        """Return how many steps wait for a slot, and those that are next."""
        if not self._queued:
            return ""
        tasks = list(self._queued)
        if (known := self._expected) is not None:
            tasks.sort(key=lambda task: (-known.paths_s.get(task, 0.0), known.turns.get(task, 0)))
        text = f"  queued {len(tasks)}: "
        for number, task in enumerate(tasks):
            more = f"{', ' if number else ''}{self._short(str(task), 48)}"
            if number and cell_len(text + more) > width - 3:
                return f"{text}, {self._mark}"
            text += more
        return text

    def _overall(self) -> str:
        counts = [f"{len(self.running)} running"]
        if self._queued:
            counts.append(f"{len(self._queued)} queued")
        if self._failed:
            counts.append(f"{self._failed} failed")
        parts = [", ".join(counts)]
        if self._steps:
            done = self._steps - len(self._left) - self._failed
            parts.insert(0, f"{max(0, done)} of {self._steps} steps done")
        left_s = self._left_s()
        if left_s is not None and self._late_s() > left_s:
            parts.append("longer than last time")
        elif left_s is not None and left_s >= 1:
            parts.append(f"about {_roughly(left_s)} left")
        return "  " + "; ".join(parts)

    def _left_s(self) -> float | None:
        now_s = time.monotonic()
        if self._expected is not None and now_s >= self._estimated_at_s + _ESTIMATE_S:
            since_s = {task: now_s - running.since_s for task, running in self.running.items()}
            self._estimate_s = self._expected.left_s(self._left, since_s, self._slots)
            self._estimated_at_s = now_s
        return self._estimate_s

    def _late_s(self) -> float:
        """Return by how much a running step has exceeded its last duration; 0 if none has."""
        now_s = time.monotonic()
        running = self.running.values()
        return max(
            (now_s - step.since_s - step.event.last_s for step in running if step.event.last_s),
            default=0.0,
        )

    def _draw(self, lines: list[Text], width: int) -> None:
        # A terminal that was made narrower has wrapped the lines.
        rows = sum(max(1, -(-line.cell_len // max(1, width))) for line in self._drawn)
        with self._console:
            if rows:
                # Typed characters, such as ^C, are in the row of the cursor.
                erase = (ControlType.ERASE_IN_LINE, 2)
                up = ((ControlType.CURSOR_UP, 1), erase) * rows
                self._console.control(Control(ControlType.CARRIAGE_RETURN, erase, *up))
            for line in [*self._above, *lines]:
                self._console.print(line, soft_wrap=True)
        self.out.flush()
        self._above, self._drawn, self._drawn_width = [], lines, width

    def _size(self) -> tuple[int, int]:
        """Return the current columns and rows."""
        try:
            width, height = os.get_terminal_size(self.out.fileno())
        except OSError:
            width, height = shutil.get_terminal_size()
        return width or 80, height or 24

    @property
    def _mark(self) -> str:
        return self._encodable("…", "...")

    def _fit(self, line: Text, width: int) -> Text:
        """Cut a line that is too long."""
        if line.cell_len > width:
            mark = self._mark if width > len(self._mark) else ""
            line.truncate(max(0, width - len(mark)))
            line.append(mark)
        return line

    def _short(self, name: str, width: int) -> str:
        """Cut the middle of a name that is too long: its end is the version."""
        name = self._encodable(printable(name))
        if cell_len(name) <= width:
            return name
        end = name[-(width // 3) :]
        while cell_len(end) > width // 3:
            end = end[1:]
        return set_cell_size(name, width - cell_len(self._mark + end)).rstrip() + self._mark + end

    def _encodable(self, text: str, instead: str = "") -> str:
        """Return a text as it will be written: characters that the locale lacks become escapes."""
        try:
            text.encode(self.out.encoding)
        except UnicodeError:
            return instead or text.encode(self.out.encoding, "backslashreplace").decode(
                self.out.encoding
            )
        return text


def _roughly(duration_s: float) -> str:
    """Format an estimated duration."""
    unit_s = 10 if duration_s < 120 else 60
    rounded_s = unit_s * max(1, round(duration_s / unit_s))
    return duration(rounded_s).removesuffix(" 0 s").removesuffix(" 0 min")
