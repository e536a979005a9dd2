"""`python -m tests.faults [PATTERN…]`: injects every fault, and prints one table.

Needs root, for a small file system and what is mounted over it. A case runs if its name, as
`--list` prints it, has all patterns; `--times N` does each N times; `--part 1/2` and `2/2` are halves
that can run side by side; `--verbose` shows all that was wrong.
"""

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.catalogue import Case, Ends, cases
from tests.faults.ground import Ground, Place, ground


@dataclass(slots=True)
class Result:
    """What became of one injection; all three lists are empty when nothing was lost.

    `status` is the exit status of the run that was hit.
    """

    status: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.wrong or self.lost or self.leftovers)


def inject(case: Case, here: Ground) -> Result:
    """Let a fault happen, look, run once more without it, and look again."""
    result = Result()
    before, logs = here.records(), here.logs()
    hit = case.run(here)
    result.status = hit.status
    # What is shown of a log is its end.
    said = {"doit": hit.text, **{name: text for name, text in here.logs().items() if name not in logs}}
    result.wrong += [f"a traceback in {name}: {text}" for name, text in said.items() if _broke(text)]
    if case.ends is Ends.BADLY and hit.status == 0:
        result.wrong.append(f"the run said that all is well: {hit.text}")
    if case.ends is Ends.WELL and hit.status != 0:
        result.lost.append(f"the run failed: {hit.text}")
    result.wrong += here.wrong()
    done = {task for task, record in here.records().items() if before.get(task) != record}
    following = here.run()
    if following.status != 0:
        result.wrong.append(f"the next run failed: {following.text}")
    # What was done before the fault or during it is not done again.
    result.lost += sorted(done & set(following.started) - case.again)
    again = here.run()
    if again.started:
        result.lost.append(f"not up to date after the next run: {again.text}")
    if hit.status == 0:
        changed = done - set(hit.started)
        result.wrong += [f"recorded without a run: {task}" for task in sorted(changed)]
    result.wrong += [f"after the next run: {each}" for each in here.not_right()]
    result.leftovers += here.leftovers()
    # Counted once: the next injection begins on clean ground.
    here.clear()
    return result


def _broke(text: str) -> bool:
    return re.search(r'^\W*(Traceback |File ".+", line \d)', text, re.MULTILINE) is not None


def table(results: Iterable[tuple[Case, Result]]) -> str:
    """The results by fault, as Markdown."""
    rows: dict[str, list[Result]] = {}
    moments: dict[str, list[str]] = {}
    for case, result in results:
        rows.setdefault(case.fault, []).append(result)
        known = moments.setdefault(case.fault, [])
        if case.moment not in known:
            known.append(case.moment)
    lines = [
        "| fault | moments | times | published wrong | finished work lost | left over |",
        "|---|---|---|---|---|---|",
    ]
    for fault, found in rows.items():
        numbers = _numbers(found)
        lines.append(f"| {fault} | {len(moments[fault])} | {len(found)} | {numbers} |")
    everything = [result for found in rows.values() for result in found]
    count = sum(map(len, moments.values()))
    lines.append(f"| all | {count} | {len(everything)} | {_numbers(everything)} |")
    return "\n".join(lines)


def _numbers(found: list[Result]) -> str:
    wrong = sum(bool(each.wrong) for each in found)
    lost = sum(bool(each.lost) for each in found)
    return f"{wrong} | {lost} | {sum(bool(each.leftovers) for each in found)}"


def _told(case: Case, here: Ground, verbose: bool) -> Result:
    began = time.monotonic()
    try:
        result = inject(case, here)
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        # What cannot even be looked at is wrong, and the others still have to be tried.
        result = Result(wrong=[repr(error)])
    word = "good" if result.good else "NOT GOOD"
    took_s = time.monotonic() - began
    print(f"{case.name}: {word} (exit {result.status}, {took_s:.1f} s)", file=sys.stderr, flush=True)
    for kind in ("wrong", "lost", "leftovers"):
        for each in getattr(result, kind):
            print(f"    {kind}: {each if verbose else each[:300]}", file=sys.stderr, flush=True)
    return result


def main() -> int:
    """The exit status: 0 when all is zero."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("pattern", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--part", default="1/1")
    options = parser.parse_args()
    chosen = [
        case for case in cases() if all(pattern in case.name for pattern in options.pattern)
    ] * options.times
    part, parts = map(int, options.part.split("/"))
    faults = list(dict.fromkeys(case.fault for case in chosen))[part - 1 :: parts]
    chosen = [case for case in chosen if case.fault in faults]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    results: list[tuple[Case, Result]] = []
    # So that nothing stays mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for place in Place:
        here_too = [case for case in chosen if case.place is place]
        if here_too:
            with ground(place) as here:
                results += [(case, _told(case, here, options.verbose)) for case in here_too]
    print(table(results))
    return 0 if all(result.good for _, result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
