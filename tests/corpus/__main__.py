"""Compare our reading of every Dockerfile below a directory with Go's parser, and with podman."""

import argparse
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.corpus.dockerfiles import Outcome, Read, compare
from tests.corpus.with_podman import Engine
from tests.support.storage import own_storage

_NAME = re.compile(r"dockerfile|containerfile", re.IGNORECASE)
# Programs and texts about Dockerfiles.
_OTHER = re.compile(r"\.(go|md|rst|py|sh|rs|ts|js|json|ya?ml|html|lock)$", re.IGNORECASE)
_IGNORE = re.compile(r"\.(docker|container)ignore$", re.IGNORECASE)


def files(directory: Path) -> Iterator[tuple[Path, bool]]:
    """The Dockerfiles and the ignore files (true) below a directory."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            if _IGNORE.search(path.name):
                yield path, True
            elif _NAME.search(path.name) and not _OTHER.search(path.name):
                yield path, False


def main() -> int:
    """The exit status: 1 when anything was read differently."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--podman", type=int, default=0, metavar="N", help="ask podman about N of each")
    parser.add_argument("--seed", type=int, default=1, help="which ones are asked about")
    parser.add_argument("--verbose", action="store_true", help="name each file that is refused")
    options = parser.parse_args()
    found = list(files(options.directory))
    read = {path: compare(path) for path, ignores in found if not ignores}
    different = _tell(read, verbose=options.verbose)
    if options.podman:
        chance = random.Random(options.seed)
        alike = [path for path, one in read.items() if one.outcome is Outcome.ALIKE]
        ignoring = [path for path, ignores in found if ignores]
        different += _ask(
            read,
            chance.sample(alike, min(options.podman, len(alike))),
            chance.sample(ignoring, min(options.podman, len(ignoring))),
        )
    return 1 if different else 0


def _tell(read: dict[Path, Read], *, verbose: bool) -> int:
    """Print the counts by outcome and reason; returns how many differ."""
    print(f"{len(read)} Dockerfiles")
    for outcome, number in Counter(one.outcome for one in read.values()).most_common():
        print(f"  {number:6} {outcome}")
    for outcome in (Outcome.REFUSED, Outcome.BOTH_REFUSE, Outcome.GO_REFUSES):
        reasons = Counter(one.reason for one in read.values() if one.outcome is outcome)
        for reason, number in reasons.most_common():
            print(f"  {number:6} {outcome}: {reason}")
    parsed = [one.parsed for one in read.values() if one.parsed is not None]
    uses = Counter(base.via.value for one in parsed for base in one.bases)
    print(f"stages: {sum(len(one.stages) for one in parsed)}; bases: {_counts(uses)}")
    for path, one in read.items():
        shown = {Outcome.DIFFERENT} | ({Outcome.REFUSED, Outcome.GO_REFUSES} if verbose else set())
        if one.outcome in shown:
            print(f"{one.outcome}: {path}: {one.reason}")
    return sum(one.outcome is Outcome.DIFFERENT for one in read.values())


def _ask(read: dict[Path, Read], dockerfiles: Iterable[Path], ignoring: Iterable[Path]) -> int:
    """Ask podman about some; returns how many differ."""
    bases: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    with own_storage() as (podman, environment), tempfile.TemporaryDirectory() as scratch:
        engine = Engine(podman, environment, Path(scratch))
        engine.prepare()
        for path in dockerfiles:
            parsed = read[path].parsed
            if parsed is not None:
                outcome, words = engine.bases(path.read_bytes(), parsed)
                bases[outcome] += 1
                if words:
                    print(f"podman, bases: {path}: {outcome}: {words}")
        for path in ignoring:
            difference, plain = engine.ignored(path.read_text(errors="replace"))
            refused = difference.startswith("refused")
            ignored["refused" if refused else "DIFFERENT" if difference else "alike"] += 1
            ignored["alike, but podman by itself reads it otherwise"] += not plain and not difference
            if difference:
                print(f"podman, ignore file: {path}: {difference}")
    print(f"bases with podman: {_counts(bases)}")
    print(f"ignore files with podman: {_counts(ignored)}")
    return bases["DIFFERENT"] + ignored["DIFFERENT"]


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number)


if __name__ == "__main__":
    sys.exit(main())
