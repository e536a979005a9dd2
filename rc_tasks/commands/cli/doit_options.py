"""Options of the commands that doit parses and runs, for help and completion.

Options that have no effect here, such as the one for doit's database, are left out.
"""

from argparse import ArgumentParser

# Each row: the option strings, a placeholder for the value (empty for a flag), and the help.
_RUN = (
    (
        "-n -j --process --jobs",
        "N",
        "run at most N steps at a time; 0, the default: as many as there is room for",
    ),
    ("-c --continue --keep-going", "", "go on with other images when one fails"),
    ("-a --always-execute", "", "run the named tasks even if they are fresh"),
    ("--always-all", "", "the same for all that they depend on"),
    ("-s --single", "", "run the named tasks alone, without what they depend on"),
    ("-v --verbosity", "N", "2 shows the output of the steps as well"),
    ("-o --output-file", "FILE", "write the output of the run to a file"),
    (
        "-r --reporter",
        "NAME",
        "use a reporter of doit: console, executed-only, json, zero, error-only",
    ),
    ("-f --file", "FILE", "use another dodo.py"),
    ("-d --dir", "DIRECTORY", "use another working directory"),
)
_OPTIONS = {
    "run": _RUN,
    "info": (("--no-status", "", "leave out why the task would run"),),
    "forget": (
        ("-s --follow-sub", "", "also forget what the tasks depend on"),
        ("-a --all", "", "forget all tasks"),
    ),
    "ignore": (("-u --undo", "", "no longer skip the tasks; their records stay"),),
    "clean": (
        ("-n --dry-run", "", "show what would be removed, and remove nothing"),
        ("-c --clean-dep", "", "also clean what the tasks depend on"),
        ("-a --clean-all", "", "clean all tasks"),
        ("--forget", "", "also forget the tasks"),
    ),
}


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of the command that `parser.prog` names."""
    name = parser.prog.rpartition(" ")[2]
    if name == "run":
        parser.description = (
            "Options stand before names: `doit --continue build:reasoning`. A TASK is build:IMAGE, or"
            " podman:, enroot: or env: for one step. build:GROUP means every version, `*` matches any"
            " letters. Without a TASK, all images are built."
        )
    parser.usage = f"doit {'[run]' if name == 'run' else name} [OPTION ...] [TASK ...]"
    examples = "such as build:reasoning:2025.1 or, in the directory of a project, build:."
    also = "" if name == "run" else "; an image, a group or a directory means build:"
    dest = "tasks" if name == "run" else "names"  # for completion
    parser.add_argument(dest, nargs="*", metavar="TASK", help=examples + also)
    for options, metavar, help in _OPTIONS[name]:
        if metavar:
            parser.add_argument(*options.split(), metavar=metavar, help=help)
        else:
            parser.add_argument(*options.split(), action="store_true", help=help)
