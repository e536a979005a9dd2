"""The graph view: images, aliases and registry bases as nodes, and the edges between them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from graphlib import TopologicalSorter

from msgspec import Struct

from rc_tasks.model.graph.graph import ImageGraph


class NodeKind(StrEnum):
    """The kind of a node; UNKNOWN is a base that an alias names and that does not exist."""

    IMAGE = "image"
    ALIAS = "alias"
    REGISTRY = "registry"
    UNKNOWN = "unknown"


class EdgeKind(StrEnum):
    """The kind of an edge; CIRCULAR is a base that closes a cycle."""

    BASE = "base"
    ALIAS = "alias"
    CIRCULAR = "circular"


class GraphNode(Struct, frozen=True):
    """A node; only images have a `state` (a word of `doit list`) and `reasons` for it.

    `rolled_back`: an older image than the newest is published. `dockerfile` and `context` are paths in
    the checkout, empty where they are not known. `matrix` has the values of its axes.
    """

    name: str
    kind: NodeKind
    state: str = ""
    reasons: tuple[str, ...] = ()
    rolled_back: bool = False
    dockerfile: str = ""
    context: str = ""
    matrix: Mapping[str, str] = {}

    @property
    def words(self) -> str:
        """The text below the name."""
        return f"{self.state or self.kind}{', rolled back' if self.rolled_back else ''}"


class Edge(Struct, frozen=True):
    """An edge: `above` is a base of `below`, or the image of the alias `below`."""

    above: str
    below: str
    kind: EdgeKind = EdgeKind.BASE


class GraphView(Struct, frozen=True):
    """Nodes by name, and edges; the edges to a node keep the order of its bases.

    Without its CIRCULAR edges, the graph has no cycle.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[Edge, ...]

    def bases(self, name: str) -> list[str]:
        """Return the bases of an image."""
        return [
            edge.above for edge in self.edges if edge.below == name and edge.kind is not EdgeKind.ALIAS
        ]

    def aliases(self) -> dict[str, list[str]]:
        """Return the aliases of each image that has any."""
        aliases = defaultdict(list)
        for edge in self.edges:
            if edge.kind is EdgeKind.ALIAS:
                aliases[edge.above].append(edge.below)
        return dict(aliases)


class TreeRow(Struct, frozen=True):
    """A line of a tree. `lasts` holds for each node on the path down whether it is the last of its base.

    `again` is set where the node is only named: its subtree is shown at its first base.
    """

    node: GraphNode
    lasts: tuple[bool, ...] = ()
    again: EdgeKind | None = None


def around(graph: ImageGraph, names: Iterable[str]) -> list[str]:
    """Return the named images, all images that are built on them, and all bases of these."""
    bases = {name: node.bases for name, node in {**graph.images, **graph.unbuildable}.items()}
    users: dict[str, list[str]] = defaultdict(list)
    for name, bases_of in bases.items():
        for base in bases_of:
            users[base].append(name)
    selected = _reached(_reached(names, users), bases)
    return [name for name in (*graph.images, *graph.broken) if name in selected]


def graph_view(graph: ImageGraph, states: Mapping[str, tuple[str, tuple[str, ...], bool]]) -> GraphView:
    """Return the graph view of the images in `states`: state, reasons, and whether rolled back."""
    nodes: dict[str, GraphNode] = {}
    edges = []
    for name in sorted(states):
        image = graph.images.get(name) or graph.unbuildable.get(name)
        recipe = (
            (image.project.shown_dockerfile, image.project.shown_context, image.axis_values)
            if image is not None
            else ()
        )
        nodes[name] = GraphNode(name, NodeKind.IMAGE, *states[name], *recipe)
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


def levels(view: GraphView) -> dict[str, int]:
    """Return the length of the longest path from a root to each node."""
    above: dict[str, list[str]] = {node.name: [] for node in view.nodes}
    for edge in view.edges:
        if edge.kind is not EdgeKind.CIRCULAR:
            above[edge.below].append(edge.above)
    level_of: dict[str, int] = {}
    for name in TopologicalSorter(above).static_order():
        level_of[name] = max((level_of[base] + 1 for base in above[name]), default=0)
    return level_of


def tree(view: GraphView) -> Iterator[TreeRow]:
    """Yield the lines of a tree: each image below its first base, without aliases."""
    nodes = {node.name: node for node in view.nodes}
    home: dict[str, str] = {}
    below: dict[str, list[Edge]] = defaultdict(list)
    for edge in view.edges:
        if edge.kind is not EdgeKind.ALIAS:
            below[edge.above].append(edge)
        if edge.kind is EdgeKind.BASE:
            home.setdefault(edge.below, edge.above)
    roots = [node for node in view.nodes if node.kind is not NodeKind.ALIAS and node.name not in home]
    # A chain of images can be longer than Python's recursion limit, so this uses a stack.
    todo = [TreeRow(node) for node in reversed(roots)]
    while todo:
        row = todo.pop()
        yield row
        if row.again is None:
            edges = sorted(below[row.node.name], key=lambda edge: edge.below)
            for number, edge in reversed(list(enumerate(edges, 1))):
                here = edge.kind is EdgeKind.BASE and home[edge.below] == edge.above
                lasts = (*row.lasts, number == len(edges))
                todo.append(TreeRow(nodes[edge.below], lasts, None if here else edge.kind))


def _reached(names: Iterable[str], edges: Mapping[str, Sequence[str]]) -> set[str]:
    reached: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += edges.get(name, ())
    return reached


def _circular(names: Iterable[str], edges: Sequence[Edge]) -> set[Edge]:
    """Return the edges that lead back to a node on the current path of a depth-first search."""
    below: dict[str, list[Edge]] = defaultdict(list)
    for edge in edges:
        below[edge.above].append(edge)
    built = {edge.below for edge in edges}
    circular: set[Edge] = set()
    done: set[str] = set()
    for start in sorted(names, key=lambda name: (name in built, name)):
        path = {} if start in done else {start: iter(below[start])}
        while path:
            name, todo = next(reversed(path.items()))
            for edge in todo:
                if edge.below in path:
                    circular.add(edge)
                elif edge.below not in done:
                    path[edge.below] = iter(below[edge.below])
                    break
            else:
                del path[name]
                done.add(name)
    return circular
