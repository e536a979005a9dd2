"""Exactly the stale steps are told: each way in which a checkout changes, without a build."""

import contextlib
import io
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from rc_tasks.commands import why
from rc_tasks.engine.session import Session
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records import digests
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import State
from tests.support.changes import CASES, Case
from tests.support.checkouts import pretend_built
from tests.support.family import NAMES, write_family

# What is built on each image.
BELOW = {"base": NAMES[1:], "left:1": ("top:1",), "right:1": ("top:1", "user:1")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family with everything fresh; tests work on copies of it."""
    root = write_family(tmp_path_factory.mktemp("built") / "checkout")
    pretend_built(root)
    checkout = open_checkout(root, {})
    with pytest.MonkeyPatch.context() as patch:
        # As if all had been written long ago: what is young is not remembered.
        patch.setattr(digests, "_SETTLE_NS", -3_600_000_000_000)
        judge = Judge(checkout)
        assert {judge.image(name).state for name in NAMES} == {State.FRESH}
        checkout.digests.save()
    return root


def after(task: str) -> set[str]:
    """The steps that run only when this one makes something new."""
    step, _, name = task.partition(":")
    later = {Step.PODMAN: (Step.ENROOT, Step.ENV), Step.ENROOT: (Step.ENV,), Step.ENV: ()}[Step(step)]
    below = BELOW.get(name, ()) if step == Step.PODMAN else ()
    return {f"{each}:{name}" for each in later} | {f"{each}:{image}" for each in Step for image in below}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_exactly_the_stale_steps_are_told(
    built: Path, tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its name is as odd as a directory's may be.
    root = tmp_path / "it's: a checkout é"
    subprocess.run(("cp", "-a", built, root), check=True)
    case.change(root)
    checkout = open_checkout(root, {})
    judge = Judge(checkout)
    told = {f"{step}:{name}": judge.step(step, name) for step in Step for name in NAMES}
    assert {task for task, status in told.items() if status.certain} == case.certain
    stale = {task for task, status in told.items() if not status.settled}
    assert stale == case.certain.union(*map(after, case.certain))
    states = {name for name in NAMES if judge.image(name).state is not State.FRESH}
    assert states == {task.partition(":")[2] for task in stale}
    monkeypatch.setattr(why, "session", lambda: Session(checkout, judge))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        why.run(Namespace(names=list(NAMES), json=False))
    assert case.why in said.getvalue()
