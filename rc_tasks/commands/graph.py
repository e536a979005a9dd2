"""`doit graph [NAME…]`: which image is built on which, as a tree or for other programs."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from rc_tasks.commands.cli.command import images
from rc_tasks.commands.cli.parser import add_names
from rc_tasks.engine.session import Session, session
from rc_tasks.model.graph.view import GraphView, around, graph_view
from rc_tasks.views.graph_formats import as_dot, as_json, as_mermaid, print_tree
from rc_tasks.views.graph_svg import svg


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "With names, it shows these images, the images built on them, and all that these need. An image"
        " with several bases stands below its first base; the other bases only name it, behind an arrow."
    )
    add_names(parser)
    parser.add_argument(
        "--format",
        choices=("tree", *_FORMATS),
        default="tree",
        help="tree for the terminal, mermaid for Markdown, dot for Graphviz, svg for a browser, json",
    )


def run(args: Namespace) -> int:
    """Print the graph in one of the formats."""
    current = session()
    view = judged(current, images(current, args.names))
    if args.format != "tree":
        sys.stdout.write(_FORMATS[args.format](view))
    elif view.nodes:
        print_tree(view, sys.stdout)
    else:
        print("there are no images yet: a directory with a Dockerfile under projects/ makes one")
    if not args.names:
        for problem in current.checkout.graph.problems:
            sys.stderr.write(f"{problem}\n")
    return 0


def judged(current: Session, names: list[str]) -> GraphView:
    """Return the view of the graph around these images, with their states."""
    graph = current.checkout.graph
    statuses = [current.judge.image(name) for name in around(graph, names)]
    rolled_back = current.judge.rolled_back
    return graph_view(
        graph,
        {status.name: (status.state, status.reasons, rolled_back(status.name)) for status in statuses},
    )


_FORMATS: dict[str, Callable[[GraphView], str]] = {
    "mermaid": as_mermaid,
    "dot": as_dot,
    "svg": svg,
    "json": as_json,
}
