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
        "With names: these images, what is built on them, and all that these need. An image with several"
        " bases stands below its first one; at the others it is only named, behind an arrow."
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
    opened = session()
    shown = judged(opened, images(opened, args.names))
    if args.format != "tree":
        sys.stdout.write(_FORMATS[args.format](shown))
    elif shown.nodes:
        print_tree(shown, sys.stdout)
    else:
        print("there are no images yet: a directory with a Dockerfile under projects/ makes one")
    if not args.names:
        for problem in opened.checkout.graph.problems:
            sys.stderr.write(f"{problem}\n")
    return 0


def judged(opened: Session, names: list[str]) -> GraphView:
    """The picture around these images, with their states."""
    graph = opened.checkout.graph
    statuses = [opened.judge.image(name) for name in around(graph, names)]
    rolled_back = opened.judge.rolled_back
    return graph_view(
        graph, {each.name: (each.state, each.reasons, rolled_back(each.name)) for each in statuses}
    )


_FORMATS: dict[str, Callable[[GraphView], str]] = {
    "mermaid": as_mermaid,
    "dot": as_dot,
    "svg": svg,
    "json": as_json,
}
