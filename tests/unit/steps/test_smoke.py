"""Smoke tests: which an image has to pass, what becomes stale by them, and what a clone adopts."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.engine.run import adopt
from rc_tasks.engine.session import Session
from rc_tasks.model.graph import smoke
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Failure, Passed, Step
from rc_tasks.state.records.status import State
from tests.support.checkouts import pretend_built, write_checkout

FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "tools/Dockerfile": "FROM scratch\n",
    "tools/project.toml": 'smoke = [["tool"]]\n',
    "projects/child:1/Dockerfile": "FROM tools AS build\nFROM base\nCOPY --from=build / /\n",
    "projects/child:latest": "-> child:1",
    "projects/grandchild:1/Dockerfile": "FROM localhost/child:latest AS a\nFROM a\n",
    "projects/other:1/Dockerfile": "FROM docker.io/library/debian:12\nCOPY --from=base / /\n",
}
NAMES = ("base", "tools", "child:1", "grandchild:1", "other:1")
TORCH = '["python3", "-c", "import torch"]'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout in which everything is fresh, from before there were smoke tests in it."""
    made = write_checkout(tmp_path / "my imgs: é", FILES)
    pretend_built(made)
    return made


def write(root: Path, name: str, text: str) -> None:
    directory = root / name if (root / name).is_dir() else root / "projects" / name
    (directory / "project.toml").write_text(text)


def wanted(root: Path, name: str) -> list[tuple[str, int, str]]:
    graph = open_checkout(root, {}).graph
    tests = smoke.smoke_tests(graph, graph.resolve(name))
    return [(str(test), test.timeout_s, test.where) for test in tests]


def stale(root: Path) -> dict[str, str]:
    judge = Judge(open_checkout(root, {}))
    steps = {f"{step}:{name}": judge.step(step, name) for name in NAMES for step in Step}
    return {
        task: ", ".join(dict.fromkeys(cause.words for cause in status.causes))
        for task, status in steps.items()
        if status.certain
    }


def passes(checkout: Checkout, *names: str) -> None:
    """Write down that images have passed what they have to."""
    for name in names:
        found = checkout.records.get(Step.ENROOT, name)
        assert found is not None
        tests = smoke.smoke_tests(checkout.graph, checkout.graph.resolve(name))
        passed = tuple(Passed(test.argv, "podman", 1.5) for test in tests)
        checkout.records.put(Step.ENROOT, name, replace(found, smoke=passed))


def test_tests_are_inherited_from_what_an_image_is_built_from(root: Path) -> None:
    write(root, "base", f"smoke = [{TORCH}, ['true']]")
    write(root, "child:1", "smoke = [['mine'], ['true']]\nsmoke_timeout_s = 5")
    base = [("python3 -c 'import torch'", 300, "base/project.toml")]
    own = "projects/child:1/project.toml"
    assert wanted(root, "base") == [*base, ("true", 300, "base/project.toml")]
    # Not the test of `tools`, from which the image has files only. Their own word on `true` counts.
    assert wanted(root, "child:1") == [*base, ("true", 5, own), ("mine", 5, own)]
    assert wanted(root, "grandchild:1") == wanted(root, "child:1")
    assert wanted(root, "other:1") == []


def test_an_empty_list_turns_them_off_from_there_on(root: Path) -> None:
    write(root, "base", f"smoke = [{TORCH}]")
    write(root, "child:1", "smoke = []")
    write(root, "grandchild:1", "smoke = [['mine']]")
    assert wanted(root, "child:1") == []
    assert [test for test, _, _ in wanted(root, "grandchild:1")] == ["mine"]


def test_the_tests_of_a_target_are_those_of_its_own_base(root: Path) -> None:
    write(root, "child:1", 'target = "build"')
    assert [test for test, _, _ in wanted(root, "child:1")] == ["tool"]


def test_a_broken_base_has_no_tests_to_give(root: Path) -> None:
    write(root, "base", "smoke = 1")
    assert wanted(root, "child:1") == []


def test_a_new_test_makes_the_enroot_step_stale_of_all_that_inherit_it(root: Path) -> None:
    passes(open_checkout(root, {}), "tools")
    assert stale(root) == {}
    write(root, "base", f"smoke = [{TORCH}]")
    names = ("base", "child:1", "grandchild:1")
    assert stale(root) == {f"enroot:{name}": "smoke tests changed" for name in names}
    passes(open_checkout(root, {}), *names)
    assert stale(root) == {}
    write(root, "child:1", "smoke = [['one'], ['two']]")
    assert stale(root) == {f"enroot:{name}": "smoke tests changed" for name in names[1:]}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none any more"),
        pytest.param("smoke = []", id="turned off"),
        pytest.param("smoke = [['b']]", id="one less"),
        pytest.param("smoke = [['b'], ['a']]", id="another order"),
        pytest.param("smoke = [['a'], ['b']]\nsmoke_timeout_s = 7", id="more or less time"),
    ],
)
def test_what_was_passed_already_makes_nothing_stale(root: Path, text: str) -> None:
    write(root, "base", "smoke = [['a'], ['b']]")
    passes(open_checkout(root, {}), *NAMES)
    assert stale(root) == {}
    write(root, "base", text)
    assert stale(root) == {}


def test_a_pass_counts_for_the_launcher_that_started_it(root: Path) -> None:
    write(root, "tools", "smoke = [['a']]")
    passes(open_checkout(root, {}), "tools")

    def reasons(**variables: str) -> tuple[str, ...]:
        return Judge(open_checkout(root, variables)).image("tools").reasons

    assert reasons() == reasons(RC_LAUNCHER="podman") == ()
    assert reasons(RC_LAUNCHER="pyxis") == ("smoke tests passed with podman, not with pyxis",)
    assert reasons(RC_LAUNCHER="ce") == ("smoke tests passed with podman, not with ce",)
    records = open_checkout(root, {}).records
    record = records.get(Step.ENROOT, "tools")
    assert record is not None
    # The official checkout has tested it as it tests its own.
    records.put(Step.ENROOT, "tools", replace(record, adopted_from="/official"))
    assert not any("smoke" in reason for reason in reasons(RC_LAUNCHER="pyxis"))


def test_a_failure_counts_until_the_test_is_changed(root: Path) -> None:
    write(root, "base", "smoke = [['a']]")
    checkout = open_checkout(root, {})
    failure = Failure(Judge(checkout).inputs(Step.ENROOT, "base"), "2026-01-02", "smoke test a", "log")
    checkout.records.put_failure(Step.ENROOT, "base", failure)
    status = Judge(open_checkout(root, {})).image("base")
    assert (status.state, status.reasons[0]) == (State.FAILED, "smoke test a")
    write(root, "base", "smoke = [['a']]\nsmoke_timeout_s = 1000")
    status = Judge(open_checkout(root, {})).image("base")
    assert (status.state, status.reasons) == (State.STALE, ("smoke tests changed",))


def test_a_command_is_shown_on_one_harmless_line() -> None:
    test = smoke.SmokeTest(("sh", "-c", "a\n\x1b[31m" + "b" * 200), 1, "")
    assert str(test).startswith("sh -c 'a\\n\\x1b[31mbbb")
    assert str(test).endswith("b …") and len(str(test)) == 122


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """A clone of the checkout, in which nothing is built."""
    settings = f'images_root = "{root}"'
    write_checkout(root, {}, settings)
    return write_checkout(tmp_path / "clone", FILES, settings)


def adopted(clone: Path) -> list[str]:
    checkout = open_checkout(clone, {})
    return adopt.adopt(Session(checkout, Judge(checkout)), ["base"])


@pytest.mark.parametrize(
    ("official", "here", "whole"),
    [
        pytest.param("smoke = [['a'], ['b']]", "smoke = [['b']]", True, id="passed more"),
        pytest.param("smoke = [['a']]", "smoke = [['a'], ['b']]", False, id="passed less"),
        pytest.param("", "smoke = [['b']]", False, id="was never tested"),
        pytest.param("smoke = [['a']]", "", True, id="nothing is wanted"),
    ],
)
def test_a_clone_adopts_what_has_passed_its_tests(
    root: Path, clone: Path, official: str, here: str, whole: bool
) -> None:
    write(root, "base", official)
    passes(open_checkout(root, {}), "base")
    write(clone, "base", here)
    assert adopted(clone) == ["base"]
    assert (clone / "base/image.sqsh").is_symlink() is whole
    checkout = open_checkout(clone, {})
    step = Judge(checkout).step(Step.ENROOT, "base")
    assert step.fresh is whole
    if whole and official:
        told = json.loads((clone / "base/image.json").read_text())["smoke"]
        assert told[0] == {"command": ["a"], "launcher": "podman", "duration_s": 1.5}


@pytest.mark.parametrize(
    "planted",
    [
        {"argv": ["b"], "launcher": "podman\n", "duration_s": 1},
        {"argv": ["b", 1], "launcher": "podman", "duration_s": 1},
        {"argv": ["b"], "launcher": "podman", "duration_s": float("inf")},
        {"argv": 1, "launcher": "podman", "duration_s": 1},
        {"launcher": "podman"},
        "b",
        None,
    ],
)
def test_what_an_official_record_says_is_not_believed_blindly(
    root: Path, clone: Path, planted: object
) -> None:
    path = root / ".rc/state/enroot:base.json"
    told = json.loads(path.read_text()) | {"smoke": [planted]}
    path.write_text(json.dumps(told))
    write(clone, "base", "smoke = [['b']]")
    assert adopted(clone) == []
