"""Format text for people: printable text, durations, lists of names."""

import re
from collections.abc import Sequence
from datetime import datetime

# The control sequences of ECMA-48: colours, cursor movements and titles.
_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


def printable(text: str) -> str:
    """Return a text with its control characters escaped, which could break a table or a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each as `printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))


def log_line(line: bytes) -> str:
    """Return a line of a log without control sequences, and only the last state of a progress bar."""
    text = _CONTROL_SEQUENCE.sub("", line.decode(errors="replace").rstrip("\r\n"))
    last = next((part for part in reversed(text.split("\r")) if part), "")
    return printable(last.expandtabs())


def duration(duration_s: float) -> str:
    """Return a duration for people: `0.4 s`, `48 s`, `3 min 20 s`, `2 h 5 min`."""
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    whole_s = round(duration_s)
    if whole_s < 60:
        return f"{whole_s} s"
    if whole_s < 3600:
        return f"{whole_s // 60} min {whole_s % 60} s"
    return f"{whole_s // 3600} h {whole_s % 3600 // 60} min"


def clock(duration_s: float) -> str:
    """Return a duration in the form of a running clock: `0:07`, `12:30`, `2:05:10`."""
    minutes, seconds = divmod(int(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def listed(names: Sequence[str], most: int) -> str:
    """Return names for a sentence: the first `most`, and the number of the others."""
    first = ", ".join(names[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def local_time(iso: str) -> str:
    """Return a UTC time stamp for people, in the local time: `2026-11-22 10:04`."""
    return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M")
