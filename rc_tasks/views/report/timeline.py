"""The geometry of the report's timeline of a run."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from rc_tasks.state.history import HistoryEntry
from rc_tasks.views.report.overview import ended, interval, ready

# Lengths are in pixels. A lane has a heading, and as many tracks as steps ran there at the same time.
_HEADING, _TRACK, _GAP, _AXIS = 22, 24, 10, 26
_MOST_TICKS = 8
# Seconds between the ticks of an axis of time.
_STEPS_S = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800),
)
NOT_STARTED = "not started"


class Bar(Struct, frozen=True):
    """A try on the timeline. `x`, `width` and `ready_x` (the start of its wait) are in percent."""

    entry: HistoryEntry
    x: float
    width: float
    ready_x: float
    y: int


class Lane(Struct, frozen=True):
    """The tries on a node: its name is at `y`, its bars below, and the lane ends at `bottom`."""

    node: str
    y: int
    bottom: int
    bars: tuple[Bar, ...]


class Tick(Struct, frozen=True):
    """A moment on the axis, at `x` percent."""

    x: float
    label: str


class Timeline(Struct, frozen=True):
    """A run over its nodes; it has at least one try."""

    begin: datetime
    end: datetime
    height: int
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]


def timeline(tries: Sequence[HistoryEntry]) -> Timeline:
    """Return the timeline of a run's tries, with a lane for each node."""
    begin, end = interval(tries)
    begin, end = begin.astimezone(), end.astimezone()
    # A run of no duration would divide by zero.
    span_s = max((end - begin).total_seconds(), 1.0)

    def percent(time: datetime) -> float:
        return round((time - begin).total_seconds() / span_s * 100, 3)

    by_node: dict[str, list[HistoryEntry]] = defaultdict(list)
    for entry in tries:
        by_node[entry.node or NOT_STARTED].append(entry)
    lanes, y = [], _AXIS
    for node, entries in sorted(by_node.items(), key=lambda item: (item[0] == NOT_STARTED, item[0])):
        tracks: list[datetime] = []
        bars = []
        for entry in sorted(entries, key=lambda entry: entry.began):
            track = _free(tracks, entry)
            bars.append(
                Bar(
                    entry,
                    percent(entry.began),
                    round(percent(ended(entry)) - percent(entry.began), 3),
                    percent(ready(entry)),
                    y + _HEADING + track * _TRACK,
                )
            )
        bottom = y + _HEADING + len(tracks) * _TRACK + _GAP
        lanes.append(Lane(node, y, bottom, tuple(bars)))
        y = bottom
    return Timeline(begin, end, y, tuple(lanes), tuple(_ticks(begin, span_s)))


def _free(tracks: list[datetime], entry: HistoryEntry) -> int:
    """Return the first track that is free when a try begins, and occupy it until the try ends."""
    end = ended(entry)
    for number, free_from in enumerate(tracks):
        if free_from <= entry.began:
            tracks[number] = end
            return number
    tracks.append(end)
    return len(tracks) - 1


def _ticks(begin: datetime, span_s: float) -> Iterable[Tick]:
    step_s = next((seconds for seconds in _STEPS_S if span_s / seconds <= _MOST_TICKS), _STEPS_S[-1])
    form = "%H:%M:%S" if step_s < 60 else "%H:%M" if step_s < 86400 else "%d %b"
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    first_s = step_s - (begin - midnight).total_seconds() % step_s
    for number in range(_MOST_TICKS + 1):
        after_s = first_s + number * step_s
        x = after_s / span_s * 100
        # A label closer to the end would be cut off.
        if x <= 96:
            yield Tick(round(x, 3), (begin + timedelta(seconds=after_s)).strftime(form))
