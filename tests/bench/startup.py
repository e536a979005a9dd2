"""How long commands that only look take to start, beside `python -c pass`.

    python -m tests.bench.startup [DOIT]

Ten fresh images in a chain. Prints for each command the median of its CPU times and how many times that
of an empty Python it is. DOIT is another checkout's program `doit`, such as
/var/tmp/old/.venv/bin/doit; it gets a checkout of its own, made by that version, and is run in turn with
this one: the last ratio is ours to its.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.noop import CHAINS, DOIT, alternating_s, make_ours, run

IMAGES = 10
COMMANDS = ("list", "plan", "graph", "settings", "history", "store", "why image9:1", "help")
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
        for line in COMMANDS:
            measure(line, line.split(), ours, theirs, other)
        measure("completion of a name", list(COMPLETION), ours, theirs, None)


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
    print(f"{what}: {ours_s * 1000:.0f} ms, {ours_s / floor_s:.1f} of an empty Python{told}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
