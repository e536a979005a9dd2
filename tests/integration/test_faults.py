"""One injection of each kind of the fault suite, which docs/explanation/faults.md describes."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import pytest

from tests.faults.__main__ import Result, inject
from tests.faults.catalogue import Case, cases
from tests.faults.ground import Ground, Place, ground
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

CHOSEN = (
    "kill -9 of the step, enroot after the rename, left:1",
    "full disk, enroot before the rename, left:1",
    "read-only file system, podman before the record, left:1",
    "permission lost, env before the rename, left:1",
    "exit 0 with no output, podman, left:1",
    "exit 0 with no output, mksquashfs, left:1",
    "half a file, exit 0, mksquashfs, left:1",
    "damaged layer, one block overwritten, left:1",
    "layer removed while it is copied, enroot while layers are copied, left:1",
    "damaged record, enroot: another task's, left:1",
    "clock, -2d, left:1",
    "stopped lock holder, podman before the record, left:1",
    "kill -9 of the step, mounted layers, podman while layers are mounted, left:1",
    "kill -9 of the tool, mounted layers, podman during the tool, left:1",
)


@pytest.fixture(scope="module")
def at() -> Iterator[Callable[[Place], Ground]]:
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "faketime")
    if os.geteuid() != 0:
        pytest.skip("needs root, for a file system of its own that can be filled")
    with contextlib.ExitStack() as grounds:
        yield functools.cache(lambda place: grounds.enter_context(ground(place)))


@pytest.mark.parametrize(
    "case", [each for each in cases() if each.name in CHOSEN], ids=lambda each: each.name
)
def test_nothing_is_wrong_lost_or_left(at: Callable[[Place], Ground], case: Case) -> None:
    result = inject(case, at(case.place))
    assert result == Result(result.status), result


def test_every_chosen_case_exists() -> None:
    assert set(CHOSEN) <= {each.name for each in cases()}
