"""`doit graph [NAME…]`: which image is built on which, as a tree or for other programs."""

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from rc_tasks.commands.cli.arguments import options_first
from rc_tasks.commands.cli.command import CheckoutCommand, images
from rc_tasks.engine.session import Session
from rc_tasks.model.graph.view import GraphView, around, graph_view
from rc_tasks.views.graph_formats import as_dot, as_json, as_mermaid, print_tree
from rc_tasks.views.graph_svg import svg


class Graph(CheckoutCommand):
    """Prints the picture in one of the formats."""

    doc_purpose = "show which image is built on which"
    doc_usage = "[NAME ...]"
    doc_description = (
        "With names: these images, what is built on them, and all that these need. An image with several"
        " bases stands below its first one; at the others it is only named, behind an arrow."
    )
    cmd_options: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "format",
            "long": "format",
            "type": str,
            "default": "tree",
            "choices": (
                ("tree", "for the terminal"),
                ("mermaid", "for Markdown on GitHub or GitLab"),
                ("dot", "for Graphviz"),
                ("svg", "for a browser"),
                ("json", "for programs"),
            ),
            "help": "what to print:",
        },
    )

    def parse_execute(self, in_args: list[str]) -> Any:
        """Options may follow the names."""
        return super().parse_execute(options_first(self.cmdparser, in_args))

    def show(self, opened: Session, options: dict[str, Any], names: list[str]) -> int:
        shown = judged(opened, images(opened, names))
        if options["format"] != "tree":
            sys.stdout.write(_FORMATS[options["format"]](shown))
        elif shown.nodes:
            print_tree(shown, sys.stdout)
        else:
            print("there are no images yet: a directory with a Dockerfile under projects/ makes one")
        if not names:
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
