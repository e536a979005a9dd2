"""How long commands that only look take to start, beside `python -c pass`.

    python -m tests.bench.startup [DOIT]

Ten fresh images in a chain. Prints for each command the median of its CPU times, the most that it may
be (1.5 times that of an empty Python, and 60 ms more), and how many times that of an empty Python it is.
DOIT is another checkout's program `doit`, such as /var/tmp/old/.venv/bin/doit; it gets a checkout of its
own, made by that version, and is run in turn with this one: the last ratio is ours to its.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.noop import CHAINS, DOIT, alternating_s, make_ours, run

IMAGES = 10
COMMANDS = (
    *("list", "plan", "graph", "settings", "history", "store", "bases", "help"),
    *("why image9:1", "log image9:1", "info build:image9:1"),
)
MOST_TIMES_PYTHON, MOST_MORE_S = 1.5, 0.06
LOG = ".rc/logs/image9:1/podman/2026-01-02T03-04-05.678Z.1.log"
COMPLETION = ("tabcompletion", "--names", "tasks", "build:")
# The other version makes its own, from the same files.
MAKE = """
import sys
from pathlib import Path
from tests.support.checkouts import pretend_built
pretend_built(Path(sys.argv[1]))
"""


def main(other: str | None) -> None:
    """Measure each command."""
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory, "ours"), Path(directory, "theirs")
        make_ours(ours, IMAGES, CHAINS)
        if other is not None:
            make_ours(theirs, IMAGES, CHAINS)
            subprocess.run(("rm", "-r", theirs / ".rc"), check=True)
            source = Path(other).absolute().parents[2]
            python = str(Path(other).with_name("python"))
            subprocess.run((python, "-c", MAKE, theirs), cwd=source, check=True)
            run(theirs, command=(other,))
            write_log(theirs)
        write_log(ours)
        for line in COMMANDS:
            measure(line, line.split(), ours, theirs, other)
        measure("completion of a name", list(COMPLETION), ours, theirs, None)


def write_log(root: Path) -> None:
    """The log of a build, for `doit log`."""
    (root / LOG).parent.mkdir(parents=True)
    (root / LOG).write_text("STEP 1/1: FROM scratch\n")


def measure(what: str, words: list[str], ours: Path, theirs: Path, other: str | None) -> None:
    """Print the time of a command, and its ratios."""
    programs = [
        lambda: run(ours, "-c", "pass", command=(sys.executable,)),
        lambda: run(ours, *words, command=DOIT),
    ]
    if other is not None:
        programs.append(lambda: run(theirs, *words, command=(other,)))
    floor_s, ours_s, *theirs_s = alternating_s(programs)
    told = f", {ours_s / theirs_s[0]:.2f} of {other}" if theirs_s else ""
    most_s = MOST_TIMES_PYTHON * floor_s + MOST_MORE_S
    print(
        f"{what}: {ours_s * 1000:.0f} ms (at most {most_s * 1000:.0f}),"
        f" {ours_s / floor_s:.1f} of an empty Python{told}",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
