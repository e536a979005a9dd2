"""Table of all commands: the module of each, and what `doit help` says about it."""

import importlib
from dataclasses import dataclass
from types import ModuleType

# By purpose: the name, what the command does, and an example.
_GROUPS = {
    "build": (
        ("run", "build what is stale (the default command)", "doit build:reasoning:2025.1"),
        ("plan", "show what would run, in order, and why; runs nothing", "doit plan reasoning"),
        ("new", "make a new project directory from the templates", "doit new reasoning:2025.2"),
        (
            "remote",
            "make a branch, and start a shell, or CMD, in the official image",
            "doit remote reasoning:2025.1",
        ),
        ("local", "start a shell, or CMD, in the image built here", "doit local reasoning -- python -V"),
        ("nightly", "submit a batch job that builds what is stale", "doit nightly --print"),
    ),
    "look": (
        ("list", "show all images: state, reason, size", "doit list reasoning"),
        ("why", "show every cause why an image is not fresh", "doit why reasoning:2025.1"),
        ("log", "show the newest log of an image", "doit log reasoning:2025.1 --failed"),
        ("history", "show what past runs did, step by step", "doit history --since 2d"),
        ("graph", "show which image is built on which", "doit graph --format mermaid"),
        (
            "info",
            "show what a task depends on and why it would run",
            "doit info podman:reasoning:2025.1",
        ),
        ("settings", "show each setting, its value and where it came from", "doit settings"),
    ),
    "share": (
        ("report", "write one HTML page: images, graph, last run, failures", "doit report -o page.html"),
        (
            "manifest",
            "show the packages in a published image; of a file, where it comes from",
            "doit manifest reasoning:2025.1",
        ),
        (
            "diff",
            "tell what a rebuild changed: packages, size, bases, Dockerfile",
            "doit diff reasoning:2025.1 -2",
        ),
        (
            "verify",
            "re-read published images against their records, and name what is damaged",
            "doit verify --all",
        ),
        (
            "rollback",
            "put back the image that was published before",
            "doit rollback reasoning:2025.1",
        ),
    ),
    "maintain": (
        ("bases", "show registry bases and their pins; check and move them", "doit bases --check"),
        (
            "doctor",
            "check this host and a compute node, and say how to fix what is wrong",
            "doit doctor",
        ),
        ("store", "show what the image store holds, and what refers to it", "doit store"),
        ("gc", "remove what nothing needs any more, and say what and how much", "doit gc --dry-run"),
        ("clean", "remove image.sqsh and image.json", "doit clean build:reasoning:2025.1"),
        (
            "forget",
            "forget that tasks were done, so that they run again",
            "doit forget enroot:reasoning:2025.1",
        ),
        ("ignore", "leave tasks out of runs until they are forgotten", "doit ignore build:reasoning"),
        ("help", "show all commands, or how one is used", "doit help list"),
        (
            "tabcompletion",
            "print a script that completes commands, options and names",
            "doit tabcompletion --shell zsh",
        ),
    ),
}
_BY_DOIT = {"run", "info", "clean", "forget", "ignore"}
_MODULES = {
    "help": "cli.help",
    "tabcompletion": "cli.completion",
    **dict.fromkeys(_BY_DOIT, "cli.doit_options"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A command. Its module declares its arguments, and runs it unless doit does: `by_doit`."""

    name: str
    group: str
    purpose: str
    example: str

    @property
    def by_doit(self) -> bool:
        """Whether doit parses its arguments and runs it."""
        return self.name in _BY_DOIT

    def load(self) -> ModuleType:
        """Import the module: only that of the command in use, as each takes a while."""
        return importlib.import_module(f"rc_tasks.commands.{_MODULES.get(self.name, self.name)}")


COMMANDS = {row[0]: Entry(row[0], group, *row[1:]) for group, rows in _GROUPS.items() for row in rows}
