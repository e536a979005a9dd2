"""Formats of the graph view: a tree for the terminal, JSON, DOT and Mermaid."""

import json
from collections.abc import Iterator, Mapping
from typing import TextIO

from rc_tasks.model.graph.view import EdgeKind, GraphView, NodeKind, TreeRow, tree
from rc_tasks.state.records.status import State
from rc_tasks.views import tables
from rc_tasks.views.graph_svg import COLOURS, PLAIN, Colours, label

# The lines before a node: before one with a next sibling, before the last one, below each of these.
_GUIDES = ("├─ ", "└─ ", "│  ", "   ")


_ASCII_GUIDES = ("|- ", "`- ", "|  ", "   ")


# Below this number of columns no name fits, and the terminal wraps the lines.
_NARROWEST = 24


_STYLES: dict[str, str] = {str(state): style for state, style in tables.STYLES.items()}


def print_tree(view: GraphView, out: TextIO) -> None:
    """Print the tree, coloured and wrapped on a terminal, plain otherwise."""
    guides = _guides(out)
    aliases = view.aliases()
    if not out.isatty():
        for row in tree(view):
            words = "".join(words for words, _ in _words(row, aliases))
            out.write(f"{_guide(row, guides)}{words}\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, highlight=False)
    for row in tree(view):
        text = Text.assemble(*_words(row, aliases))
        first = _guide(row, guides)
        following = "".join(guides[2 + last] for last in row.lasts)
        room = max(console.width - len(first), _NARROWEST)
        for number, line in enumerate(text.wrap(console, room)):
            line.rstrip()
            console.print(Text(following if number else first) + line, soft_wrap=True)


def as_json(view: GraphView) -> str:
    """Return nodes and edges as JSON; keys that `doit list --json` has too have the same names."""
    aliases = view.aliases()
    json_object = {
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "state": node.state or None,
                "reasons": list(node.reasons),
                "rolled_back": node.rolled_back,
                "dockerfile": node.dockerfile or None,
                "context": node.context or None,
                "matrix": dict(node.matrix),
                "bases": view.bases(node.name),
                "aliases": aliases.get(node.name, []),
            }
            for node in view.nodes
        ],
        "edges": [{"from": edge.above, "to": edge.below, "kind": edge.kind} for edge in view.edges],
    }
    return json.dumps(json_object, indent=2) + "\n"


def as_dot(view: GraphView) -> str:
    """Return the graph in the DOT language; names are only in labels, which can hold any text."""
    numbers = {node.name: number for number, node in enumerate(view.nodes)}
    lines = ['node [shape=box, style="filled,rounded", fontname="monospace"]']
    for node in view.nodes:
        colours = COLOURS.get(node.state, PLAIN)
        text = rf"{_dot_text(label(node))}\n{_dot_text(node.words)}"
        attributes = "" if node.kind is NodeKind.IMAGE else ', style="filled,rounded,dashed"'
        lines.append(
            f'n{numbers[node.name]} [label="{text}", tooltip="{_dot_text(tables.printable(node.name))}",'
            f' fillcolor="{colours.fill}", color="{colours.line}"{attributes}]'
        )
    for edge in view.edges:
        attributes = {
            EdgeKind.BASE: "",
            # Without constraint=false, this edge would turn the whole drawing upside down.
            EdgeKind.CIRCULAR: f' [style=bold, color="{COLOURS[State.FAILED].line}", constraint=false]',
            EdgeKind.ALIAS: " [style=dotted]",
        }[edge.kind]
        lines.append(f"n{numbers[edge.above]} -> n{numbers[edge.below]}{attributes}")
    return "\n".join(["digraph images {", *(f"  {line}" for line in lines), "}"]) + "\n"


def as_mermaid(view: GraphView) -> str:
    """Return a Mermaid flowchart, from left to right, as names are wider than high."""
    numbers = {node.name: number for number, node in enumerate(view.nodes)}
    lines = []
    for node in view.nodes:
        text = f"{_mermaid_text(label(node))}<br/>{_mermaid_text(node.words)}"
        lines.append(f'n{numbers[node.name]}["{text}"]:::{node.state or node.kind}')
    arrows = {EdgeKind.BASE: "-->", EdgeKind.CIRCULAR: "-. circular .->", EdgeKind.ALIAS: "-.-"}
    for edge in view.edges:
        lines.append(f"n{numbers[edge.above]} {arrows[edge.kind]} n{numbers[edge.below]}")
    styles: dict[str, tuple[Colours, str]] = {
        state: (colours_of_state, "") for state, colours_of_state in COLOURS.items()
    }
    styles |= {kind: (PLAIN, ",stroke-dasharray:4 3") for kind in NodeKind if kind is not NodeKind.IMAGE}
    for word in sorted({node.state or node.kind for node in view.nodes} & styles.keys()):
        colours, more = styles[word]
        lines.append(f"classDef {word} fill:{colours.fill},stroke:{colours.line},color:#16191d{more}")
    return "\n".join(["flowchart LR", *(f"  {line}" for line in lines)]) + "\n"


def _words(row: TreeRow, aliases: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a line, each with its style."""
    node = row.node
    name = tables.printable(node.name)
    if row.again is not None:
        yield f"→ {name}", "dim"
        if row.again is EdgeKind.CIRCULAR:
            yield " (cycle)", _STYLES[State.FAILED]
        return
    yield f"{name}  ", ""
    yield node.words, _STYLES.get(node.state, "dim")
    if node.name in aliases:
        named = ", ".join(map(tables.printable, aliases[node.name]))
        yield f"  {'alias' if len(aliases[node.name]) == 1 else 'aliases'} {named}", "dim"


def _guide(row: TreeRow, guides: tuple[str, ...]) -> str:
    if not row.lasts:
        return ""
    return "".join(guides[2 + last] for last in row.lasts[:-1]) + guides[row.lasts[-1]]


def _guides(out: TextIO) -> tuple[str, ...]:
    try:
        "".join(_GUIDES).encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return _ASCII_GUIDES
    return _GUIDES


def _dot_text(text: str) -> str:
    """Escape a text for a quoted label, where Graphviz reads escapes and HTML entities."""
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


def _mermaid_text(text: str) -> str:
    """Escape a text for a quoted label, where Mermaid reads quotes, Markdown and HTML."""
    safe = " _./@-+,…:"
    if not all(char.isalnum() or char in safe for char in text):
        # A bug of Mermaid: after `style` and a colon it drops the semicolon of the last `#34;`.
        safe = safe.replace(":", "")
    return "".join(char if char.isalnum() or char in safe else f"#{ord(char)};" for char in text)
