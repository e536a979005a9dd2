"""What doit is given to do, of all that was asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from doit.task import Task as DoitTask

from rc_tasks.engine.doit.selection import Selection, always_run, reach, selection
from rc_tasks.state.records.records import Step, Task
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import unstamped

DOIT = Path(sys.executable).with_name("doit")
FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY Dockerfile /\n",
    "projects/a:1/Dockerfile": "FROM base\n",
    "projects/b:1/Dockerfile": "FROM scratch\nCOPY Dockerfile /\n",
}
OWN = """
def task_own():
    return {"actions": ["echo done > own"], "task_dep": ["build:a:1"]}

def task_alone():
    return {"actions": ["true"]}

def task_slow():
    return {"actions": ["echo begun >&2; while ! [ -e go ]; do sleep 0.05; done"], "verbosity": 2}
"""
# `doit` that takes long to read its checkout.
SLOW = """
import sys, time
from rc_tasks.commands.main import main
from rc_tasks.engine import session

def slow(*_arguments):
    print("begun", flush=True)
    time.sleep(60)

session.open_checkout = slow
sys.exit(main())
"""


def tasks() -> dict[str, DoitTask]:
    """`top` on `base`, an image that is broken, a person's own task, and the groups."""

    def group(name: str, *on: str) -> DoitTask:
        return DoitTask(name, None, task_dep=list(on))

    def step(name: str, *on: str) -> DoitTask:
        return DoitTask(name, ["true"], task_dep=list(on))

    found = [
        step("podman:base"),
        step("enroot:base", "podman:base"),
        group("build:base", "podman:base", "enroot:base"),
        step("podman:top", "podman:base"),
        step("enroot:top", "podman:top", "enroot:base"),
        group("build:top", "podman:top", "enroot:top", "build:base"),
        step("build:broken"),
        group("build", "build:base", "build:top", "build:broken"),
        step("own", "build:top"),
        group("mine", "own"),
    ]
    return {task.name: task for task in found}


@pytest.mark.parametrize(
    ("names", "stale", "chosen", "fresh"),
    [
        pytest.param(["build:top"], [], [], {"top", "base"}, id="nothing is stale"),
        pytest.param(["build"], [], ["build:broken"], {"top", "base"}, id="a broken one"),
        pytest.param(
            ["build"],
            ["podman:base", "podman:top", "enroot:top"],
            ["podman:base", "podman:top", "enroot:top", "build:broken"],
            set(),
            id="bases first",
        ),
        pytest.param(["build:base"], ["enroot:base", "podman:top"], ["enroot:base"], set(), id="asked"),
        pytest.param(["podman:top"], ["enroot:top"], [], {"top", "base"}, id="a step"),
        pytest.param(["mine"], [], ["mine", "own"], {"top", "base"}, id="somebody's own task"),
    ],
)
def test_what_is_stale_of_what_was_asked_for(
    names: list[str], stale: list[str], chosen: list[str], fresh: set[str]
) -> None:
    found = selection(tasks(), reach(tasks(), names), [Task.parse(text) for text in stale])
    assert (list(found.tasks), set(found.fresh)) == (chosen, fresh)


def test_a_name_that_is_no_task_reaches_nothing() -> None:
    assert reach(tasks(), ["nosuch"]) == {}
    assert selection({}, [], [Task(Step.PODMAN, "a")]) == Selection((), ())


def test_what_makes_a_file_that_is_needed_is_reached() -> None:
    made = tasks() | {
        "enroot:top": DoitTask("enroot:top", ["true"], targets=["image.sqsh"]),
        "copy": DoitTask("copy", ["true"], file_dep=["image.sqsh"]),
    }
    assert list(reach(made, ["copy"])) == ["copy", "enroot:top"]


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (["podman:top"], ["podman:top"]),
        (["build:top"], ["podman:top", "enroot:top"]),
        (["build:alias"], ["podman:top", "enroot:top"]),
        (["build"], ["podman:base", "enroot:base", "podman:top", "enroot:top", "build:broken"]),
        (["mine"], ["own"]),
        (["nosuch"], []),
    ],
    ids=" ".join,
)
def test_always_is_for_what_was_named_alone(names: list[str], meant: list[str]) -> None:
    known = tasks() | {"build:alias": DoitTask("build:alias", None, task_dep=["build:top"])}
    for name in ("base", "top"):
        for step in ("podman", "enroot"):
            known[f"{step}:{name}"].subtask_of = f"build:{name}"
    assert list(always_run(known, names)) == meant


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Three images that are fresh, and a task that somebody has added to the dodo.py."""
    root = write_checkout(tmp_path / "c", FILES)
    pretend_built(root)
    with (root / "dodo.py").open("a") as file:
        file.write(OWN)
    return root


def doit(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        (DOIT, *arguments),
        cwd=root,
        env=os.environ | {"RC_RUNNER": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return unstamped(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "3 images: 3 fresh\n"),
        ("build", "3 images: 3 fresh\n"),
        ("build:a", "2 images: 2 fresh\n"),
        ("build:a:1 build:b:1", "3 images: 3 fresh\n"),
        ("podman:a:1", "2 images: 2 fresh\n"),
        ("build:*", "3 images: 3 fresh\n"),
        ("projects/b:1/env.toml", "1 image: 1 fresh\n"),
        ("--single env:b:1", "1 image: 1 fresh\n"),
    ],
)
def test_what_is_fresh_is_counted(arguments: str, told: str, checkout: Path) -> None:
    assert doit(checkout, *arguments.split()) == told
    assert not (checkout / "own").exists()


def test_other_reporters_tell_of_every_step(checkout: Path) -> None:
    told = doit(checkout, "--reporter", "console", "build:b:1").splitlines()
    assert told == ["-- podman:b:1", "-- enroot:b:1", "-- env:b:1"]


def test_somebodys_own_task_runs(checkout: Path) -> None:
    assert doit(checkout, "own") == "2 images: 2 fresh\n"
    assert (checkout / "own").read_text() == "done\n"


def test_what_is_stale_beside_or_below_an_own_task_runs(checkout: Path) -> None:
    for name in ("b:1", "a:1"):
        doit(checkout, "forget", f"env:{name}")
    assert doit(checkout, "alone", "build:b:1").splitlines()[-1] == "1 image: 1 env.toml written"
    assert doit(checkout, "own").splitlines()[-1] == "2 images: 1 env.toml written; 1 fresh"


def test_a_run_under_nohup_outlives_its_terminal(checkout: Path) -> None:
    with subprocess.Popen(("nohup", DOIT, "slow"), cwd=checkout, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while b"begun" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGHUP)
        (checkout / "go").touch()
        assert process.wait(60) == 0


@pytest.mark.parametrize("command", ["list", "build:a:1", "why a:1"])
def test_ctrl_c_while_the_checkout_is_read_is_no_traceback(checkout: Path, command: str) -> None:
    started = (sys.executable, "-c", SLOW, *command.split())
    with subprocess.Popen(
        started, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (130, b"interrupted\n")
