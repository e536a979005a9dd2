"""Compare what is published with clean builds, in random checkouts, for as many steps as wanted."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.differential.world import Counts, Mismatch, world

# A new checkout after so many steps.
STEPS_EACH = 20


def run(
    seed: int, steps: int, tell: Callable[[str], None], *, keep_going: bool, verbose: bool = False
) -> tuple[Counts, list[Mismatch]]:
    """The steps of one checkout; without `keep_going` they end at the first mismatch."""
    found: list[Mismatch] = []
    with world(seed) as here:
        for _ in range(steps):
            began = time.monotonic()
            wrong = here.step()
            found += wrong
            if verbose or wrong:
                word = f"{len(wrong)} WRONG" if wrong else "good"
                took_s = time.monotonic() - began
                tell(f"seed {seed} step {here.number}: {word} ({took_s:.1f} s) {'; '.join(here.done)}")
            for mismatch in wrong:
                tell(f"MISMATCH {mismatch.kind}\n{mismatch.report}\n")
            if wrong and not keep_going:
                break
        return here.counts, found


def summary(counts: Counts) -> str:
    """The counts, for people."""
    seconds = ", ".join(f"{name} {ms / 1000:.0f} s" for name, ms in counts.seconds.items())
    lines = [
        f"{counts.steps} steps ({', '.join(f'{n} {how}' for how, n in counts.runs.items())}), "
        f"{counts.compared} images compared, {counts.oracle_builds} clean builds; {seconds}",
        f"failed in plain podman too: {counts.failed_in_both}",
        f"refused, though plain podman builds it: {counts.refused.total()}",
        *(f"  {number:5} {what}" for what, number in counts.refused.most_common()),
        f"mismatches: {counts.mismatches.total()}",
        *(f"  {number:5} {what}" for what, number in counts.mismatches.most_common()),
    ]
    return "\n".join(lines)


def _parts(steps: int, seed: int) -> Iterable[tuple[int, int]]:
    while steps > 0:
        yield seed, min(steps, STEPS_EACH)
        steps -= STEPS_EACH
        seed += 1


def main() -> int:
    """The exit status: 1 when anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help=f"a new seed begins every {STEPS_EACH}")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--jobs", type=int, default=1, help="checkouts at a time")
    parser.add_argument("--keep-going", action="store_true", help="count all mismatches")
    parser.add_argument("--verbose", action="store_true", help="print every step")
    options = parser.parse_args()
    # The modes of a new checkout decide those in an image.
    os.umask(0o022)
    # So that nothing stays mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    counts, wrong = Counts(), False

    def tell(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def part(what: tuple[int, int]) -> Counts:
        if wrong and not options.keep_going:
            return Counts()
        seen, found = run(*what, tell, keep_going=options.keep_going, verbose=options.verbose)
        return finished(seen, bool(found))

    def finished(seen: Counts, bad: bool) -> Counts:
        nonlocal wrong
        wrong |= bad
        return seen

    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        for seen in pool.map(part, _parts(options.steps, options.seed)):
            counts.add(seen)
    tell(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    tell(summary(counts))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
