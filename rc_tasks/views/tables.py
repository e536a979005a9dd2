"""Print tables: coloured on a terminal, plain columns in a pipe."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from rc_tasks.state.records.status import State
from rc_tasks.util.text import duration, local_time, log_line, printable

__all__ = ["STYLES", "duration", "printable", "size", "table", "when"]

# The minimum width of the last column, which has sentences.
_LAST_COLUMN = 24
# A terminal of fewer columns shows no table.
_LEAST_FOR_TABLE = 50
STYLES = {
    State.FRESH: "green",
    State.STALE: "yellow",
    State.MISSING: "magenta",
    State.FAILED: "bold red",
    State.BUILDING: "cyan",
}


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: Sequence[str] = (),
    right: frozenset[str] = frozenset(),
    narrow: Sequence[tuple[str, int]] = (),
    out: TextIO | None = None,
) -> None:
    """Print rows in columns; `styles` colours whole rows on a terminal, `right` aligns columns right.

    `narrow` says how a table becomes narrower on a small terminal: step by step, each the heading of a
    column and the number of characters to keep of it, where 0 drops the column. Then the last column is
    cut to one line. A table that is still too wide becomes one paragraph for each row.
    """
    out = out or sys.stdout
    # A newline or an escape sequence in a name must not break the table or the terminal.
    clean = [[printable(cell) for cell in row] for row in rows]
    if out.isatty():
        _on_terminal(headings, clean, styles, right, narrow, out)
        return
    lines = [list(headings), *clean]
    widths = [_width(column) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        out.write("  ".join(cells).rstrip() + "\n")


def _on_terminal(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str],
    right: frozenset[str],
    narrow: Sequence[tuple[str, int]],
    out: TextIO,
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False)
    columns = {name: tuple(row[index] for row in rows) for index, name in enumerate(headings)}
    needed = min(_LAST_COLUMN, _width((headings[-1], *columns[headings[-1]])))
    room = _room(columns, console.width)
    for heading, kept in narrow:
        if room >= needed:
            break
        columns[heading] = tuple(cell[:kept] for cell in columns[heading])
        if kept == 0:
            del columns[heading]
        room = _room(columns, console.width)
        columns[headings[-1]] = tuple(_cut(row[-1], room) for row in rows)
    if room < needed or console.width < _LEAST_FOR_TABLE:
        # Columns of a few letters can neither be read nor copied, so each cell gets a line.
        for number, row in enumerate(rows):
            console.print(Text(row[0], style=styles[number] if styles else "bold"), soft_wrap=True)
            for heading, cell in zip(headings[1:], row[1:], strict=True):
                if cell:
                    console.print(Text(f"  {heading.lower()}: {cell}"))
        return
    rich_table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        rich_table.add_column(
            heading,
            justify="right" if heading in right else "left",
            overflow="fold",
            no_wrap=heading != headings[-1],
        )
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        style = styles[number] if styles else ""
        rich_table.add_row(*(Text(cell, style=style if cell in STYLES else "") for cell in row))
    console.print(rich_table)


def _room(columns: Mapping[str, Sequence[str]], width: int) -> int:
    """Return how many characters the other columns leave to the last one."""
    *widths, _ = (_width((heading, *cells)) for heading, cells in columns.items())
    return width - sum(widths) - 2 * len(widths)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def _width(cells: Iterable[str]) -> int:
    return max(map(len, cells))


def size(size_bytes: int | None) -> str:
    """Return a size for people, in decimal units: `323 MB`."""
    if size_bytes is None:
        return ""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return (
                f"{value:.0f} {unit}" if unit in ("B", "kB") or value >= 100 else f"{value:.1f} {unit}"
            )
        value /= 1000
    raise AssertionError


def when(iso: str | None) -> str:
    """Return a UTC time stamp for people, in the local time: `2026-11-22 10:04`."""
    return local_time(iso) if iso else ""


def readable(line: bytes) -> str:
    """Return a line of a log for a terminal."""
    return log_line(line) + "\n"
