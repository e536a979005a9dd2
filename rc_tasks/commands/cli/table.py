"""Table of all commands: name, module, purpose and example of each, as `doit help` shows them."""

import importlib
from types import ModuleType

from msgspec import Struct

# Commands by group. Each row: name, purpose, example.
_GROUPS = {
    "build": (
        ("run", "build images that are stale (the default command)", "doit build:reasoning:2025.1"),
        (
            "watch",
            "build an image again whenever one of its inputs changes",
            "doit watch reasoning:2025.1",
        ),
        ("plan", "show what would run, in order, and why; runs nothing", "doit plan reasoning"),
        ("new", "create a project directory from the templates", "doit new reasoning:2025.2"),
        ("import", "make projects from a bake or compose file", "doit import docker-bake.hcl"),
        (
            "mv",
            "rename a project, with its images, history and all that names it",
            "doit mv reasoning:2025.1 reasoning:2025.2",
        ),
        ("rm", "remove projects and aliases", "doit rm reasoning:2024.9"),
        (
            "remote",
            "create a branch, and start a shell or CMD in the official image",
            "doit remote reasoning:2025.1",
        ),
        ("local", "start a shell or CMD in the image built here", "doit local reasoning -- python -V"),
        (
            "debug",
            "start a shell or CMD where an instruction of a build failed",
            "doit debug reasoning:2025.1",
        ),
        ("nightly", "submit a batch job that builds stale images", "doit nightly --print"),
    ),
    "look": (
        ("list", "show all images: state, reason, size", "doit list reasoning"),
        ("why", "show why an image is not fresh, with every cause", "doit why reasoning:2025.1"),
        ("log", "show the newest log of an image", "doit log reasoning:2025.1 --failed"),
        ("history", "show what past runs did, step by step", "doit history --since 2d"),
        ("graph", "show which image is built on which", "doit graph --format mermaid"),
        (
            "info",
            "show what a task depends on and why it would run",
            "doit info podman:reasoning:2025.1",
        ),
        ("settings", "show each setting, its value and where it comes from", "doit settings"),
    ),
    "share": (
        ("report", "write one HTML page: images, graph, last run, failures", "doit report -o page.html"),
        (
            "manifest",
            "show the packages in a published image, or where an image file comes from",
            "doit manifest reasoning:2025.1",
        ),
        (
            "diff",
            "show what a rebuild changed: packages, size, bases, Dockerfile",
            "doit diff reasoning:2025.1 -2",
        ),
        (
            "verify",
            "compare published images with their records, and report damage",
            "doit verify --all",
        ),
        (
            "rollback",
            "put a previously published image back",
            "doit rollback reasoning:2025.1",
        ),
    ),
    "maintain": (
        ("bases", "show registry bases and their pins; check and update the pins", "doit bases --check"),
        (
            "doctor",
            "check this host and a compute node, and show how to fix what is wrong",
            "doit doctor",
        ),
        ("store", "show the images in the image store, and what refers to each", "doit store"),
        ("gc", "remove files that nothing needs any more, and report their size", "doit gc --dry-run"),
        ("clean", "remove image.sqsh and image.json", "doit clean build:reasoning:2025.1"),
        (
            "forget",
            "forget that tasks were done, so that they run again",
            "doit forget enroot:reasoning:2025.1",
        ),
        ("ignore", "skip tasks in all runs until `doit ignore --undo`", "doit ignore build:reasoning"),
        ("help", "show all commands, or the options of one", "doit help list"),
        (
            "tabcompletion",
            "print a script that completes commands, options and names",
            "doit tabcompletion --shell zsh",
        ),
    ),
}
_BY_DOIT = {"run", "clean", "forget", "ignore"}
_MODULES = {
    "help": "cli.help",
    "import": "import_",  # `import` is a keyword of Python
    "tabcompletion": "cli.completion",
    **dict.fromkeys(_BY_DOIT, "cli.doit_options"),
}


class CommandEntry(Struct, frozen=True):
    """A row of the table. The module of the command has `arguments`, and `run` unless `by_doit`."""

    name: str
    group: str
    purpose: str
    example: str

    @property
    def by_doit(self) -> bool:
        """Whether doit parses the arguments and runs the command."""
        return self.name in _BY_DOIT

    def load(self) -> ModuleType:
        """Import and return the module of this command alone, because each import takes time."""
        return importlib.import_module(f"rc_tasks.commands.{_MODULES.get(self.name, self.name)}")


COMMANDS = {
    row[0]: CommandEntry(row[0], group, *row[1:]) for group, rows in _GROUPS.items() for row in rows
}
