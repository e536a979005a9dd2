"""The image graph as people look at it: images, aliases and registry bases, and what stands on what."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from graphlib import TopologicalSorter

from rc_tasks.model.graph.graph import ImageGraph


class NodeKind(StrEnum):
    """What a node stands for; UNKNOWN is a base that an alias promises and that does not exist."""

    IMAGE = "image"
    ALIAS = "alias"
    REGISTRY = "registry"
    UNKNOWN = "unknown"


class EdgeKind(StrEnum):
    """What an edge stands for; CIRCULAR is a base that closes a circle."""

    BASE = "base"
    ALIAS = "alias"
    CIRCULAR = "circular"


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A name in the picture; only images have a state, a word as in `doit list`, and reasons for it.

    `rolled_back`: an older image is published in place of the newest.
    """

    name: str
    kind: NodeKind
    state: str = ""
    reasons: tuple[str, ...] = ()
    rolled_back: bool = False

    @property
    def words(self) -> str:
        """What stands below its name."""
        return f"{self.state or self.kind}{', rolled back' if self.rolled_back else ''}"


@dataclass(frozen=True, slots=True)
class Edge:
    """`above` is a base of `below`, or the image whose alias `below` is."""

    above: str
    below: str
    link: EdgeKind = EdgeKind.BASE


@dataclass(frozen=True, slots=True)
class GraphView:
    """Nodes by name; the edges to a node keep the order of its bases. Without the CIRCULAR edges there
    is no circle."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[Edge, ...]

    def bases(self, name: str) -> list[str]:
        """What an image is built on."""
        return [
            edge.above for edge in self.edges if edge.below == name and edge.link is not EdgeKind.ALIAS
        ]

    def aliases(self) -> dict[str, list[str]]:
        """The aliases of each image that has any."""
        found = defaultdict(list)
        for edge in self.edges:
            if edge.link is EdgeKind.ALIAS:
                found[edge.above].append(edge.below)
        return dict(found)


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A line of a tree. `lasts` says of each node on the way down whether it is the last of its base.

    `again` is set where the node is only named: it stands with all below it at its first base.
    """

    node: GraphNode
    lasts: tuple[bool, ...] = ()
    again: EdgeKind | None = None


def around(graph: ImageGraph, names: Iterable[str]) -> list[str]:
    """The named images, all that is built on them, and all that these are built on."""
    bases = {name: node.bases for name, node in {**graph.images, **graph.circular}.items()}
    users: dict[str, list[str]] = defaultdict(list)
    for name, each in bases.items():
        for base in each:
            users[base].append(name)
    wanted = _reached(_reached(names, users), bases)
    return [name for name in (*graph.images, *graph.broken) if name in wanted]


def picture(graph: ImageGraph, states: Mapping[str, tuple[str, tuple[str, ...], bool]]) -> GraphView:
    """The picture of the images in `states`: the state of each, why, and whether it is rolled back."""
    nodes = {name: GraphNode(name, NodeKind.IMAGE, *state) for name, state in states.items()}
    edges = []
    for name in sorted(states):
        image = graph.images.get(name) or graph.circular.get(name)
        for base in image.bases if image else ():
            nodes.setdefault(base, GraphNode(base, NodeKind.UNKNOWN))
            edges.append(Edge(base, name))
        for base in image.remote if image else ():
            nodes.setdefault(base, GraphNode(base, NodeKind.REGISTRY))
            edges.append(Edge(base, name))
    for alias, target in sorted(graph.aliases.items()):
        if target in states and alias not in nodes:
            nodes[alias] = GraphNode(alias, NodeKind.ALIAS)
            edges.append(Edge(target, alias, EdgeKind.ALIAS))
    circular = _circular(nodes, edges)
    return GraphView(
        tuple(nodes[name] for name in sorted(nodes)),
        tuple(Edge(e.above, e.below, EdgeKind.CIRCULAR) if e in circular else e for e in edges),
    )


def levels(shown: GraphView) -> dict[str, int]:
    """How far each node is from the bases that have none themselves, by the longest way."""
    above: dict[str, list[str]] = {node.name: [] for node in shown.nodes}
    for edge in shown.edges:
        if edge.link is not EdgeKind.CIRCULAR:
            above[edge.below].append(edge.above)
    found: dict[str, int] = {}
    for name in TopologicalSorter(above).static_order():
        found[name] = max((found[base] + 1 for base in above[name]), default=0)
    return found


def tree(shown: GraphView) -> Iterator[TreeRow]:
    """The picture as the lines of a tree: each image below its first base, aliases left out."""
    nodes = {node.name: node for node in shown.nodes}
    home: dict[str, str] = {}
    below: dict[str, list[Edge]] = defaultdict(list)
    for edge in shown.edges:
        if edge.link is not EdgeKind.ALIAS:
            below[edge.above].append(edge)
        if edge.link is EdgeKind.BASE:
            home.setdefault(edge.below, edge.above)
    roots = [node for node in shown.nodes if node.kind is not NodeKind.ALIAS and node.name not in home]
    # A stack and no recursion: a chain of images can be longer than Python's recursion is deep.
    todo = [TreeRow(node) for node in reversed(roots)]
    while todo:
        row = todo.pop()
        yield row
        if row.again is None:
            edges = sorted(below[row.node.name], key=lambda edge: edge.below)
            for number, edge in reversed(list(enumerate(edges, 1))):
                here = edge.link is EdgeKind.BASE and home[edge.below] == edge.above
                lasts = (*row.lasts, number == len(edges))
                todo.append(TreeRow(nodes[edge.below], lasts, None if here else edge.link))


def _reached(names: Iterable[str], ways: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += ways.get(name, ())
    return found


def _circular(names: Iterable[str], edges: Sequence[Edge]) -> set[Edge]:
    """The edges that lead back to a node on the way to them, searched from the roots first."""
    below: dict[str, list[Edge]] = defaultdict(list)
    for edge in edges:
        below[edge.above].append(edge)
    built = {edge.below for edge in edges}
    found: set[Edge] = set()
    done: set[str] = set()
    for start in sorted(names, key=lambda name: (name in built, name)):
        way = {} if start in done else {start: iter(below[start])}
        while way:
            name, todo = next(reversed(way.items()))
            for edge in todo:
                if edge.below in way:
                    found.add(edge)
                elif edge.below not in done:
                    way[edge.below] = iter(below[edge.below])
                    break
            else:
                del way[name]
                done.add(name)
    return found
