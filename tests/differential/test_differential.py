"""Random steps: what is published and called fresh is what a clean build gives."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.differential.__main__ import STEPS_EACH, run, summary
from tests.differential.world import Counts, Mismatch
from tests.support.soak import ROUNDS
from tests.support.tools import require_tools

pytestmark = [pytest.mark.podman, pytest.mark.soak]

SEEDS = range(1, 2 + ROUNDS // 5)
_AT_A_TIME = 2

Found = tuple[Counts, list[Mismatch]]


@pytest.fixture(scope="module")
def runs() -> "Iterator[dict[int, Future[Found]]]":
    """The steps of all seeds, running side by side."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "git", "docker-registry")
    if os.geteuid() != 0:
        pytest.skip("mounting an image outside of `podman unshare` needs root")
    umask = os.umask(0o022)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        yield {seed: pool.submit(run, seed, STEPS_EACH, print, keep_going=False) for seed in SEEDS}
        pool.shutdown(cancel_futures=True)
    os.umask(umask)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_fresh_is_what_a_clean_build_gives(runs: "dict[int, Future[Found]]", seed: int) -> None:
    counts, mismatches = runs[seed].result()
    assert not mismatches, "\n".join(mismatch.report for mismatch in mismatches)
    assert counts.steps == STEPS_EACH
    # Steps that build nothing, or only what podman refuses too, would show nothing.
    assert counts.compared > STEPS_EACH, summary(counts)
