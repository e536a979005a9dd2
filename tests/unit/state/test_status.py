"""The judge: which steps are stale after which change, and in what words. No podman is needed."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.errors import ProjectError
from rc_tasks.model.graph.project import Project
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.digests import Digests
from rc_tasks.state.records.inputs import file_inputs
from rc_tasks.state.records.records import Failure, Step
from rc_tasks.state.records.status import State
from rc_tasks.state.store.store import Store
from tests.support.checkouts import pretend_built, write_checkout

CHILD = "projects/child:1"
FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY . /\n",
    "base/data": "data\n",
    f"{CHILD}/Dockerfile": "FROM base\nCOPY run.sh /\n",
    f"{CHILD}/run.sh": "#!/bin/sh\n",
    f"{CHILD}/ignored.txt": "x\n",
    f"{CHILD}/.containerignore": "ignored.txt\n",
    f"{CHILD}/link": "-> run.sh",
    f"{CHILD}/project.toml": '[build_args]\nA = "1"\n',
    "projects/child:latest": "-> child:1",
}


@pytest.fixture(params=[False, True], ids=["", "remembered"])
def root(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which everything is fresh, under a name that needs care.

    It is so, too, by what an earlier command has remembered.
    """
    checkout = write_checkout(tmp_path / "my imgs: é", FILES)
    pretend_built(checkout)
    if request.param:
        remember(checkout, monkeypatch)
    return checkout


def remember(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge everything as an earlier command did, all files being old enough for that."""
    monkeypatch.setattr("rc_tasks.state.records.digests._SETTLE_NS", -3_600_000_000_000)
    checkout = open_checkout(root, {})
    judge = Judge(checkout)
    assert {judge.image(name).state for name in checkout.graph.images} == {State.FRESH}
    checkout.remember()


def stale(root: Path, **environ: str) -> dict[str, str]:
    """The steps that would certainly run, with the reason in words."""
    judge = Judge(open_checkout(root, {f"RC_{key}": value for key, value in environ.items()}))
    return {
        f"{step}:{name}": ", ".join(
            cause.words for cause in judge.step(step, name).causes if not cause.upstream
        )
        for name in ("base", "child:1")
        for step in Step
        if judge.step(step, name).certain
    }


def edit(path: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text(text)


def overwrite(path: str, at: int) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        with (root / path).open("r+b") as file:
            file.seek(at)
            file.write(b"????")

    return change


NOTHING: dict[str, str] = {}


def umask_was(root: Path, mask: int) -> None:
    """Give everything that git tracks the modes that it would have been checked out with."""
    for path in (root / "base", root / CHILD, *root.glob("base/*"), *(root / CHILD).iterdir()):
        if path.name not in {"image.sqsh", "image.json"} and not path.is_symlink():
            path.chmod((0o777 if os.access(path, os.X_OK) else 0o666) & ~mask)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda root: None, NOTHING, id="nothing"),
        pytest.param(
            lambda root: [path.touch() for path in root.rglob("*") if path.is_file()],
            NOTHING,
            id="touched",
        ),
        pytest.param(
            edit("base/Dockerfile", "# note\nFROM scratch\n"),
            {"podman:base": "Dockerfile changed"},
            id="dockerfile",
        ),
        pytest.param(edit("base/data", "new"), {"podman:base": "data changed"}, id="context"),
        pytest.param(edit("base/more", ""), {"podman:base": "more added"}, id="added"),
        pytest.param(
            lambda root: (root / "base/data").unlink(), {"podman:base": "data removed"}, id="removed"
        ),
        pytest.param(
            lambda root: (root / "base/data").chmod(0o755),
            {"podman:base": "mode of data changed"},
            id="executable",
        ),
        pytest.param(
            lambda root: (root / "base/Dockerfile").chmod(0o755),
            # `COPY . /` takes it along.
            {"podman:base": "mode of Dockerfile changed"},
            id="executable-dockerfile",
        ),
        pytest.param(lambda root: umask_was(root, 0o002), NOTHING, id="umask-002"),
        pytest.param(lambda root: umask_was(root, 0o077), NOTHING, id="umask-077"),
        pytest.param(edit(f"{CHILD}/ignored.txt", "y"), NOTHING, id="ignored"),
        pytest.param(
            edit(f"{CHILD}/.containerignore", "*.txt\n"),
            {"podman:child:1": ".containerignore changed"},
            id="ignorefile",
        ),
        pytest.param(
            lambda root: ((root / CHILD / "link").unlink(), (root / CHILD / "link").symlink_to("x")),
            {"podman:child:1": "link changed"},
            id="symlink",
        ),
        pytest.param(
            # COPY takes the file, under its name.
            lambda root: (root / "base/Dockerfile").rename(root / "base/Containerfile"),
            {"podman:base": "Containerfile replaces Dockerfile"},
            id="renamed-dockerfile",
        ),
        pytest.param(
            edit("base/Containerfile", "FROM scratch\n"),
            {"podman:base": "Containerfile replaces Dockerfile"},
            id="containerfile",
        ),
        pytest.param(
            edit(f"{CHILD}/project.toml", '[build_args]\nA = "2"\n'),
            {"podman:child:1": "build_args.A changed"},
            id="build-arg",
        ),
        pytest.param(
            edit(f"{CHILD}/project.toml", '[build_args]\nA = "1"\n[slurm]\ncpus = 4\n'),
            NOTHING,
            id="slurm",
        ),
        pytest.param(
            edit(f"{CHILD}/project.toml", '[build_args]\nA = "1"\n[edf]\nworkdir = "/w"\n'),
            {"env:child:1": "EDF settings changed"},
            id="edf",
        ),
        pytest.param(
            lambda root: (root / "base/image.sqsh").unlink(),
            {"enroot:base": "image.sqsh is missing"},
            id="no-sqsh",
        ),
        pytest.param(
            lambda root: os.truncate(root / "base/image.sqsh", 9),
            {"enroot:base": "image.sqsh is damaged: it has 9 bytes"},
            id="truncated",
        ),
        pytest.param(
            overwrite("base/image.sqsh", 200),
            {"enroot:base": "image.sqsh was changed after its publication"},
            id="overwritten",
        ),
        pytest.param(
            lambda root: (root / "base/image.json").unlink(),
            {"enroot:base": "image.json is missing"},
            id="no-json",
        ),
        pytest.param(
            lambda root: (root / "base/env.toml").unlink(),
            {"env:base": "env.toml is missing"},
            id="no-env",
        ),
        pytest.param(
            edit("base/env.toml", 'image = "y"\n'), {"env:base": "env.toml changed"}, id="env-by-hand"
        ),
        pytest.param(
            edit("templates/env.toml.j2", "image = <@ image | toml @>\n"),
            {
                "env:base": "templates/env.toml.j2 changed",
                "env:child:1": "templates/env.toml.j2 changed",
            },
            id="template",
        ),
        pytest.param(
            lambda root: (root / ".rc/state/podman:base.json").write_text("{"),
            {"podman:base": "no record of a build"},
            id="record-lost",
        ),
    ],
)
def test_exactly_the_stale_steps_are_stale(
    root: Path, change: Callable[[Path], object], expected: dict[str, str]
) -> None:
    change(root)
    assert stale(root) == expected


def compared(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images whose files a command compares one by one; all of them are fresh."""
    names = []

    def counted(
        project: Project, files: Iterable[str], digests: Callable[[str], Digests]
    ) -> dict[str, str]:
        names.append(project.name)
        return file_inputs(project, files, digests)

    monkeypatch.setattr("rc_tasks.state.listings.file_inputs", counted)
    remember(root, monkeypatch)
    return names


def test_files_are_compared_one_by_one_only_when_something_changed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context of 240,000 files takes three times as long to compare as to list."""
    compared(root, monkeypatch)
    assert compared(root, monkeypatch) == []
    os.utime(root / "base/data", (1, 1))
    assert compared(root, monkeypatch) == ["base"]
    assert compared(root, monkeypatch) == []
    record = root / ".rc/state/podman:child:1.json"
    text = record.read_text()
    record.unlink()
    record.write_text(text)
    assert compared(root, monkeypatch) == ["child:1"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "7", '{"base": 1}', '{"base": ["x", 1, 2]}'])
def test_a_damaged_memory_costs_only_time(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    (root / ".rc/cache").mkdir(exist_ok=True)
    (root / ".rc/cache/unchanged.json").write_text(damage)
    assert compared(root, monkeypatch)
    assert compared(root, monkeypatch) == []


def test_a_change_is_seen_by_a_command_that_has_judged_before(root: Path) -> None:
    """`doit` judges a step when it is ready, which may be hours after it listed the files."""
    judge = Judge(open_checkout(root, {}))
    node = open_checkout(root, {}).graph.images["base"]
    assert judge.listings.shown(node) == ["base/Dockerfile", "base/data"]
    assert judge.step(Step.PODMAN, "base").fresh
    (root / "base/data").write_text("new")
    (root / "base/more").write_text("more")
    judge.forget("base")
    causes = judge.step(Step.PODMAN, "base").causes
    assert [cause.words for cause in causes] == ["data changed", "more added"]


def test_doit_is_answered_by_what_the_judge_saw(root: Path) -> None:
    checkout = open_checkout(root, {})
    judge = Judge(checkout)
    recorded = {name: checkout.records.get(Step.PODMAN, name) for name in ("base", "child:1")}
    assert judge.step(Step.PODMAN, "base").fresh and judge.step(Step.PODMAN, "child:1").fresh

    def modified() -> list[str]:
        return [
            f"{name} {part}"
            for name, part in (
                ("base", "context/data"),
                ("base", "Dockerfile"),
                ("child:1", "context/run.sh"),
            )
            if (record := recorded[name]) and judge.modified(name, part, record.inputs[part])
        ]

    assert modified() == []
    (root / "base/data").write_text("new")
    judge.forget("base")
    assert not judge.step(Step.PODMAN, "base").fresh
    assert modified() == ["base context/data"]


def test_a_setting_of_the_edf_concerns_only_the_env_steps(root: Path) -> None:
    assert stale(root, EDF_WORKDIR="/elsewhere") == {
        "env:base": "EDF settings changed",
        "env:child:1": "EDF settings changed",
    }


def test_a_moved_checkout_is_fresh_but_for_its_own_path(root: Path) -> None:
    (root / "pyproject.toml").write_text('[tool.rc_tasks]\nimages_root = "/official"\n')
    pretend_built(root)
    moved = root.rename(root.with_name("moved"))
    assert stale(moved) == {}


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        pytest.param({"Env": ["A=1", 'B=it\'s "x"', "EMPTY="]}, (), id="ordinary"),
        pytest.param({"Env": ["foo.bar='1'"], "Entrypoint": []}, (), id="dropped by Enroot"),
        pytest.param({"Entrypoint": ["/x", ""], "Env": None}, (), id="entrypoint"),
        pytest.param(
            {"Entrypoint": [""]}, ('ENTRYPOINT [""] was written into /etc/rc as a command',), id="empty"
        ),
        pytest.param(
            {"Env": ["PATH=/bin", "OPTIONS='-a' '-b'", "REFERENCE=${X}", "LINES=one\nPATH=/evil"]},
            tuple(
                f"Enroot reads another value of ENV {name}"
                for name in ("PATH", "OPTIONS", "REFERENCE", "LINES")
            ),
            id="variables",
        ),
    ],
)
def test_settings_that_earlier_versions_wrote_wrongly(
    root: Path, config: dict[str, object], reasons: tuple[str, ...]
) -> None:
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.ENROOT, "base")
    assert record is not None
    blob = checkout.store.blob(record.inputs["image"])
    blob.parent.mkdir(parents=True)
    blob.write_text(json.dumps({"config": config}))
    for _ in range(2):
        judge = Judge(checkout)
        assert judge.image("base").reasons == reasons
        # Nothing is built anew.
        assert judge.step(Step.PODMAN, "base").fresh
        assert judge.image("child:1").state is State.FRESH
        checkout.remember()
        checkout = open_checkout(root, {})
    # As it is recorded when it has been squashed again.
    inputs = Judge(checkout).inputs(Step.ENROOT, "base")
    checkout.records.put(Step.ENROOT, "base", replace(record, inputs=inputs))
    assert Judge(checkout).image("base").state is State.FRESH


@pytest.mark.parametrize(
    ("mksquashfs", "reasons"),
    [
        ("4.5.1", ()),
        ("4.7.4", ("mksquashfs 4.7.4 may have written wrong content into its files",)),
        ("4.7.5", ()),
        ("", ()),
    ],
)
def test_content_that_a_mksquashfs_may_have_written_wrongly(
    root: Path, mksquashfs: str, reasons: tuple[str, ...]
) -> None:
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.ENROOT, "base")
    assert record is not None
    made = replace(record, tools={"mksquashfs": mksquashfs} if mksquashfs else {})
    checkout.records.put(Step.ENROOT, "base", made)
    judge = Judge(checkout)
    assert judge.image("base").reasons == reasons
    assert judge.step(Step.PODMAN, "base").fresh
    assert judge.image("child:1").state is State.FRESH
    # Steps avoid it now, so that an image of theirs is as good as any.
    checkout.records.put(Step.ENROOT, "base", replace(made, inputs=judge.inputs(Step.ENROOT, "base")))
    assert Judge(checkout).image("base").state is State.FRESH
    # What was put back was wanted back.
    checkout.records.put(Step.ENROOT, "base", replace(made, instead_of=made.inputs["image"]))
    (reason,) = Judge(checkout).image("base").reasons
    assert reason.startswith("rolled back")


ODD = json.dumps({"config": {"Env": ["A='x'"]}})


def odd_image(root: Path, **changes: str) -> Checkout:
    """A checkout in which an earlier version has published `base` with a variable in quotes."""
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.ENROOT, "base")
    assert record is not None
    blob = checkout.store.blob(record.inputs["image"])
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_text(ODD)
    checkout.records.put(Step.ENROOT, "base", replace(record, **changes))
    return open_checkout(root, {})


def test_an_image_that_was_put_back_stays_as_it_was_written(root: Path) -> None:
    assert Judge(odd_image(root)).image("base").reasons == ("Enroot reads another value of ENV A",)
    checkout = open_checkout(root, {})
    record = checkout.records.get(Step.ENROOT, "base")
    assert record is not None
    (reason,) = Judge(odd_image(root, instead_of=record.inputs["image"])).image("base").reasons
    assert reason.startswith("rolled back")


def test_a_configuration_that_cannot_be_read_is_no_reason(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = odd_image(root)

    def refused(_: Store, image_id: str) -> bytes:
        raise ProjectError("cannot be read", where=image_id)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "config", refused)
        assert Judge(checkout).image("base").state is State.FRESH
        checkout.remember()
    # Nothing was learnt by that.
    assert Judge(open_checkout(root, {})).image("base").state is State.STALE


def test_staleness_is_passed_down_in_words(root: Path) -> None:
    (root / "base/data").write_text("new")
    judge = Judge(open_checkout(root, {}))
    assert judge.image("base").reasons == ("data changed",)
    child = judge.image("child:1")
    assert (child.state, child.reasons) == (State.STALE, ("base image base is stale",))
    assert not judge.step(Step.PODMAN, "child:1").certain


def test_states(root: Path) -> None:
    def state(name: str) -> State:
        return Judge(open_checkout(root, {})).image(name).state

    assert state("child:1") is State.FRESH
    (root / CHILD / "image.sqsh").unlink()
    assert state("child:1") is State.MISSING
    (root / "base/data").write_text("new")
    assert state("base") is State.STALE
    checkout = open_checkout(root, {})
    inputs = Judge(checkout).inputs(Step.PODMAN, "base")
    checkout.records.put_failure(Step.PODMAN, "base", Failure(inputs, "2026-01-01", "RUN failed", "log"))
    assert state("base") is State.FAILED
    (root / "base/data").write_text("another try")
    assert state("base") is State.STALE, "what failed was something else"
    (root / "base/data").write_text("data\n")
    assert state("base") is State.FRESH, "the last success still stands"


def test_a_broken_project_is_failed_and_its_children_stale(root: Path) -> None:
    (root / "base/Dockerfile").write_text("FORM scratch\n")
    judge = Judge(open_checkout(root, {}))
    assert judge.image("base").state is State.FAILED
    assert judge.image("base").reasons[0].startswith("base/Dockerfile:1: ")
    child = judge.image("child:1")
    assert (child.state, child.reasons) == (State.STALE, ("base image base is stale",))


def test_a_long_chain_is_judged(tmp_path: Path) -> None:
    files = {f"projects/i{number}/Dockerfile": f"FROM i{number + 1}\n" for number in range(1200)}
    root = write_checkout(tmp_path, {**files, "projects/i1200/Dockerfile": "FROM scratch\n"})
    assert Judge(open_checkout(root, {})).image("i0").state is State.MISSING
