"""The graph view as SVG: each image is to the right of its bases."""

import unicodedata
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from msgspec import Struct

from rc_tasks.model.graph.view import Edge, EdgeKind, GraphNode, GraphView, NodeKind, levels, tree
from rc_tasks.state.records.status import State
from rc_tasks.views.tables import printable

# A name at a level. At its own level it is a box; at later levels it is a bend that all edges from the
# name share. So a base of hundreds of images draws one line through a level, not hundreds.
_Point = tuple[str, int]


class Colours(Struct, frozen=True):
    """Fill and line colours on a light and on a dark page; text on a fill has contrast 7 or more."""

    fill: str
    line: str
    dark_fill: str
    dark_line: str


PLAIN = Colours("#f4f5f7", "#6b7280", "#23272e", "#9aa3af")
COLOURS: Mapping[str, Colours] = {
    State.FRESH: Colours("#e3f5e7", "#1e7d34", "#11301b", "#5fc97d"),
    State.STALE: Colours("#fff3cf", "#946800", "#392c05", "#e0b13c"),
    State.MISSING: Colours("#f6e4f8", "#8a3394", "#331438", "#d58ae0"),
    State.FAILED: Colours("#fde4e2", "#b3261e", "#41120f", "#ff8a80"),
    State.BUILDING: Colours("#dff3f9", "#0a6b80", "#07303a", "#58c4dc"),
}

# All lengths are in pixels. A monospaced letter is 0.6 times as wide as its font size.
_LETTER, _PADDING, _MARGIN = 7.25, 10, 16
_SMALL_LETTER = 6.4
_BOX, _BEND, _SPACE, _BETWEEN = 38, 4, 10, 64
# How far below its ends an edge that closes a cycle is drawn.
_BOW = 2 * _BOX
# The longest label; names of registry bases with a digest are longer.
_LONGEST = 44
_ROUNDS = 4


def svg(view: GraphView, links: Mapping[str, str] | None = None) -> str:
    """Return a self-contained SVG that follows the reader's light or dark mode.

    With `links`, which maps names of nodes to places in an HTML page, the SVG is a part of that page;
    the page must include `style()` once.
    """
    layout = _Layout(view)
    nodes = {node.name: node for node in view.nodes}
    drawn = [_path(layout, above, below, nodes) for above, below in layout.segments]
    drawn += [_back(layout, edge) for edge in view.edges if edge.kind is EdgeKind.CIRCULAR]
    drawn += [_linked(_box(layout, node), (links or {}).get(node.name)) for node in view.nodes]
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    lines = (
        # The role img would hide links from screen readers.
        f'<svg xmlns="http://www.w3.org/2000/svg" class="image-graph"'
        f' role="{"img" if links is None else "group"}"'
        f' width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' aria-labelledby="image-graph-title image-graph-desc">',
        '<title id="image-graph-title">Images and what they are built on</title>',
        f'<desc id="image-graph-desc">{escape(description(view))}</desc>',
        *((f"<style>{style()}</style>",) if links is None else ()),
        '<rect class="page" width="100%" height="100%"/>',
        *drawn,
        "</svg>",
    )
    return "\n".join(lines) + "\n"


def description(view: GraphView) -> str:
    """Return a text for screen readers: the numbers of images, states, bases and aliases."""
    kinds = Counter(node.kind for node in view.nodes)
    states = Counter(node.state for node in view.nodes if node.kind is NodeKind.IMAGE)
    parts = [_count(kinds[NodeKind.IMAGE], "image")]
    if states:
        parts[0] += f" ({', '.join(f'{number} {state}' for state, number in sorted(states.items()))})"
    parts += [
        _count(kinds[kind], words)
        for kind, words in ((NodeKind.REGISTRY, "registry base"), (NodeKind.ALIAS, "alias"))
        if kinds[kind]
    ]
    return f"{', '.join(parts)}. Each image stands to the right of its bases."


class _Layout:
    """Coordinates of all points: a column for each level, ordered for few crossings."""

    def __init__(self, view: GraphView) -> None:
        self.level = levels(view)
        self.segments = self._segments(view)
        self._left: dict[_Point, list[_Point]] = defaultdict(list)
        self._right: dict[_Point, list[_Point]] = defaultdict(list)
        for above, below in self.segments:
            self._left[below].append(above)
            self._right[above].append(below)
        self.columns = self._ordered(self._first_order(view))
        self.boxes = {node.name: _width(node) for node in view.nodes}
        self.x, self.right = self._across()
        self.y = self._down()
        self.width = max(self.right, default=0) + _MARGIN
        self.height = max((y + _BOX / 2 for y in self.y.values()), default=0) + _MARGIN
        if any(edge.kind is EdgeKind.CIRCULAR for edge in view.edges):
            self.height += _BOW

    def is_box(self, point: _Point) -> bool:
        return self.level[point[0]] == point[1]

    def _segments(self, view: GraphView) -> dict[tuple[_Point, _Point], None]:
        segments: dict[tuple[_Point, _Point], None] = {}
        for edge in view.edges:
            if edge.kind is EdgeKind.CIRCULAR:
                continue
            first, last = self.level[edge.above], self.level[edge.below]
            points = [(edge.above, level) for level in range(first, last)] + [(edge.below, last)]
            segments |= dict.fromkeys(pairwise(points))
        return segments

    def _first_order(self, view: GraphView) -> list[list[_Point]]:
        """Return the order of the tree, which has no crossings if each image has one base."""
        places = {row.node.name: place for place, row in enumerate(tree(view)) if not row.again}
        for image, aliases in view.aliases().items():
            places |= dict.fromkeys(aliases, places[image])
        points = {(name, level) for name, level in self.level.items()}
        points |= {point for segment in self.segments for point in segment}
        columns: list[list[_Point]] = [[] for _ in range(max(self.level.values(), default=-1) + 1)]
        for point in sorted(points, key=lambda point: (places[point[0]], point)):
            columns[point[1]].append(point)
        return columns

    def _ordered(self, columns: list[list[_Point]]) -> list[list[_Point]]:
        """Sort columns by the mean place of neighbours, to the right and back; return the best round."""
        best, fewest = columns, self._crossings(columns)
        for _ in range(_ROUNDS):
            for neighbours, step in ((self._left, 1), (self._right, -1)):
                columns = [list(column) for column in columns]
                for number in range(len(columns))[::step]:
                    beside = number - step
                    places = _places(columns[beside]) if 0 <= beside < len(columns) else {}
                    columns[number] = _sorted_by(columns[number], neighbours, places)
                if (crossings := self._crossings(columns)) < fewest:
                    best, fewest = columns, crossings
        return best

    def _crossings(self, columns: Sequence[Sequence[_Point]]) -> int:
        crossings = 0
        for column, following in pairwise(columns):
            places = _places(following)
            seen: list[int] = []
            for point in column:
                ends = sorted(places[end] for end in self._right[point])
                crossings += sum(len(seen) - bisect_right(seen, end) for end in ends)
                for end in ends:
                    insort(seen, end)
        return crossings

    def _across(self) -> tuple[list[float], list[float]]:
        x, right, here = [], [], float(_MARGIN)
        for column in self.columns:
            x.append(here)
            right.append(here + max(self.boxes[name] for name, _ in filter(self.is_box, column)))
            here = right[-1] + _BETWEEN
        return x, right

    def _down(self) -> dict[_Point, float]:
        """Return the centre of each point, as near to the mean of its neighbours as the order allows."""
        y: dict[_Point, float] = {}
        for column in self.columns:
            y |= self._fitted(column, [0.0] * len(column))
        for _ in range(_ROUNDS):
            # The last pass goes to the right: most leaves have one base, and look best level with it.
            for neighbours, step in ((self._right, -1), (self._left, 1)):
                for column in self.columns[::step]:
                    targets = [
                        sum(y[neighbour] for neighbour in beside) / len(beside) if beside else y[point]
                        for point in column
                        for beside in [neighbours[point]]
                    ]
                    y |= self._fitted(column, targets)
        top = min(y.values(), default=0) - _BOX / 2 - _MARGIN
        return {point: value - top for point, value in y.items()}

    def _fitted(self, column: Sequence[_Point], targets: Sequence[float]) -> dict[_Point, float]:
        """Move the target heights apart until nothing overlaps: the mean of a pass down and one up."""
        heights = [_BOX if self.is_box(point) else _BEND for point in column]
        apart = [(a + b) / 2 + _SPACE for a, b in pairwise(heights)]
        down, up = list(targets), list(targets)
        for number, gap in enumerate(apart):
            down[number + 1] = max(down[number + 1], down[number] + gap)
        for number, gap in reversed(list(enumerate(apart))):
            up[number] = min(up[number], up[number + 1] - gap)
        return {point: (a + b) / 2 for point, a, b in zip(column, down, up, strict=True)}


def label(node: GraphNode) -> str:
    """Return the name for a box: without control characters, and without its middle when too long."""
    name = printable(node.name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 + 1 :]}"


def _box(layout: _Layout, node: GraphNode) -> str:
    point = node.name, layout.level[node.name]
    x, y, width = layout.x[point[1]], layout.y[point] - _BOX / 2, layout.boxes[node.name]
    kind, word = printable(node.state or node.kind), printable(node.words)
    # Browsers show the title as a tooltip.
    tooltip = "\n".join([f"{printable(node.name)}: {word}", *map(printable, node.reasons)])
    return (
        f'<g class="{node.kind} {escape(kind)}"><title>{escape(tooltip)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BOX}" rx="5"/>'
        f'<text x="{x + _PADDING:.1f}" y="{y + 16:.1f}">{escape(label(node))}</text>'
        f'<text class="word" x="{x + _PADDING:.1f}" y="{y + 30:.1f}">{escape(word)}</text></g>'
    )


def _linked(box: str, link: str | None) -> str:
    return f'<a href="{escape(link)}">{box}</a>' if link else box


def _path(layout: _Layout, above: _Point, below: _Point, nodes: Mapping[str, GraphNode]) -> str:
    start = layout.x[above[1]] + (layout.boxes[above[0]] if layout.is_box(above) else 0)
    edge, end = layout.right[above[1]], layout.x[below[1]]
    middle, y1, y2 = (edge + end) / 2, layout.y[above], layout.y[below]
    kind = ' class="to-alias"' if layout.is_box(below) and nodes[below[0]].kind is NodeKind.ALIAS else ""
    return (
        f'<path{kind} d="M{start:.1f} {y1:.1f}H{edge:.1f}'
        f'C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {end:.1f} {y2:.1f}"/>'
    )


def _back(layout: _Layout, edge: Edge) -> str:
    above, below = ((name, layout.level[name]) for name in (edge.above, edge.below))
    x1, y1 = layout.x[above[1]] + layout.boxes[edge.above], layout.y[above]
    x2, y2 = layout.x[below[1]], layout.y[below]
    bow = max(y1, y2) + _BOW
    return (
        f'<path class="circular" d="M{x1:.1f} {y1:.1f}'
        f'C{x1 + _BETWEEN:.1f} {bow:.1f} {x2 - _BETWEEN:.1f} {bow:.1f} {x2:.1f} {y2:.1f}"/>'
    )


def style() -> str:
    """Return the CSS, all below one class, as the rules of an SVG apply to its whole HTML page."""
    failed = COLOURS[State.FAILED]
    return (
        ".image-graph{font:12px ui-monospace,Menlo,Consolas,monospace;"
        "--page:#fff;--ink:#16191d;--edge:#8b93a0}"
        "@media (prefers-color-scheme:dark){"
        ".image-graph{--page:#14171b;--ink:#eef0f3;--edge:#727b88}}"
        f"{colours('.image-graph', 'g')}"
        ".image-graph .page{fill:var(--page)}"
        ".image-graph g rect{fill:var(--fill);stroke:var(--line);stroke-width:1.5}"
        ".image-graph .alias rect,.image-graph .registry rect{stroke-dasharray:4 3}"
        ".image-graph text{fill:var(--ink)}.image-graph .word{font-size:10.5px}"
        ".image-graph path{fill:none;stroke:var(--edge);stroke-width:1.5}"
        ".image-graph .to-alias{stroke-dasharray:2 3}"
        f".image-graph .circular{{stroke:{failed.line};stroke-width:2;stroke-dasharray:7 4}}"
        f"@media (prefers-color-scheme:dark){{.image-graph .circular{{stroke:{failed.dark_line}}}}}"
    )


def colours(scope: str, plain: str) -> str:
    """Return CSS that sets --fill and --line for the classes of the states inside of `scope`.

    `plain` selects the elements without a state there.
    """
    light, dark = [], []
    for selector, colour in (
        (plain, PLAIN),
        *((f".{state}", of_state) for state, of_state in COLOURS.items()),
    ):
        light.append(f"{scope} {selector}{{--fill:{colour.fill};--line:{colour.line}}}")
        dark.append(f"{scope} {selector}{{--fill:{colour.dark_fill};--line:{colour.dark_line}}}")
    return f"{''.join(light)}@media (prefers-color-scheme:dark){{{''.join(dark)}}}"


def _sorted_by(
    column: Sequence[_Point], neighbours: Mapping[_Point, list[_Point]], places: Mapping[_Point, int]
) -> list[_Point]:
    keys = {}
    for place, point in enumerate(column):
        beside = [places[neighbour] for neighbour in neighbours.get(point, ())]
        keys[point] = sum(beside) / len(beside) if beside else float(place)
    return sorted(column, key=lambda point: keys[point])


def _places(column: Sequence[_Point]) -> dict[_Point, int]:
    return {point: place for place, point in enumerate(column)}


def _width(node: GraphNode) -> float:
    word = _SMALL_LETTER * len(node.words)
    return 2 * _PADDING + max(_LETTER * _cells(label(node)), word)


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _count(number: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"
