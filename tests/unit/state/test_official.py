"""What a clone takes over from the official checkout, what it refuses, and in what words."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.commands import doctor
from rc_tasks.engine.run import adopt
from rc_tasks.engine.session import Session
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk import trust
from rc_tasks.state.disk.locks import held
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.digests import sample_digest
from rc_tasks.state.records.records import Artifact, Step
from rc_tasks.state.records.status import State
from rc_tasks.state.store.layer_files import LayerFiles
from rc_tasks.steps.doctor.finding import Finding, Level
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import DOIT, doit
from tests.support.tools import limited
from tests.unit.state.test_own import give

CHILD = "projects/child:1"
FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY . /\n",
    "base/data": "data\n",
    f"{CHILD}/Dockerfile": "FROM base\nCOPY run.sh /\n",
    f"{CHILD}/run.sh": "#!/bin/sh\n",
    "projects/child:latest": "-> child:1",
    "projects/grandchild/Dockerfile": "FROM child:latest\n",
}
NAMES = ["base", "child:1", "grandchild"]
IMAGE_ID = "0" * 64
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def official(tmp_path: Path) -> Path:
    root = tmp_path / "official ümgs"
    write_checkout(root, FILES, f'images_root = "{root}"')
    pretend_built(root)
    return root


@pytest.fixture
def clone(official: Path, tmp_path: Path) -> Path:
    return clone_of(official, tmp_path / "it's: a clone é")


def clone_of(official: Path, root: Path, settings: str = "") -> Path:
    """What git would bring of the official checkout; its images_root is the official one."""
    write_checkout(root, FILES, f'images_root = "{official}"\n{settings}')
    for path in official.glob("**/env.toml"):
        shutil.copyfile(path, root / path.relative_to(official))
    return root


def opened(root: Path) -> Session:
    checkout = open_checkout(root, {})
    return Session(checkout, Judge(checkout))


def adopted(root: Path) -> list[str]:
    return adopt.adopt(opened(root), NAMES)


def states(root: Path) -> dict[str, tuple[State, tuple[str, ...]]]:
    return states_in(opened(root))


def states_in(session: Session) -> dict[str, tuple[State, tuple[str, ...]]]:
    found = {name: session.judge.image(name) for name in NAMES}
    return {name: (status.state, status.reasons) for name, status in found.items()}


def refusals(root: Path) -> str:
    return "\n".join(map(str, adopt.warnings(opened(root), NAMES)))


def listing(root: Path) -> dict[str, tuple[int, ...]]:
    paths = {root, *root.rglob("*")}
    seen = {str(path): path.lstat() for path in paths}
    return {
        path: (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        for path, found in seen.items()
    }


def test_an_unchanged_clone_adopts_everything(official: Path, clone: Path) -> None:
    before = listing(official)
    offer = f"can be adopted from {official}: doit build:"
    assert states(clone) == {name: (State.MISSING, (offer + name,)) for name in NAMES}
    session = opened(clone)
    done = adopt.adopt(session, NAMES)
    assert done == NAMES
    assert adopt.words(session, done) == [f"{name} adopted from {official}" for name in NAMES]
    after = dict.fromkeys(NAMES, (State.FRESH, (f"adopted from {official}",)))
    assert states_in(session) == after
    assert states(clone) == after
    assert os.readlink(clone / CHILD / "image.sqsh") == str(official / CHILD / "image.sqsh")
    assert not (clone / CHILD / "image.json").is_symlink()
    assert json.loads((clone / CHILD / "image.json").read_text())["name"] == "child:1"
    assert adopted(clone) == []
    assert listing(official) == before


def git_clone(source: Path, target: Path, mask: int) -> Path:
    subprocess.run(("git", "clone", "-q", source, target), check=True, umask=mask)
    return target


@pytest.mark.parametrize("masks", [(0o002, 0o022), (0o022, 0o077), (0o077, 0o002)], ids=str)
@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "earlier version"])
def test_the_umask_of_a_clone_is_no_input(tmp_path: Path, masks: tuple[int, int], earlier: bool) -> None:
    source, official = tmp_path / "source", tmp_path / "official"
    write_checkout(source, FILES, f'images_root = "{official}"\nimages_owners = ["@root"]')
    (source / CHILD / "data").mkdir()
    (source / CHILD / "data/x").write_text("x\n")
    for argv in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.excludesFile=/dev/null")
        subprocess.run(("git", *identity, *argv), cwd=source, check=True)
    git_clone(source, official, masks[0])
    pretend_built(official)
    if earlier:
        as_recorded_by_an_earlier_version(official)
    clone = git_clone(source, tmp_path / "clone", masks[1])
    for path in official.glob("**/env.toml"):
        shutil.copyfile(path, clone / path.relative_to(official))
    assert adopted(clone) == NAMES
    assert {status.state for status in map(opened(clone).judge.image, NAMES)} == {State.FRESH}
    assert states(official) == dict.fromkeys(NAMES, (State.FRESH, ()))


def as_recorded_by_an_earlier_version(root: Path) -> None:
    """It recorded all permission bits that COPY keeps."""
    for path in (root / ".rc/state").glob("podman:*.json"):
        found = json.loads(path.read_text())
        project = next(root.glob(f"**/{found['task'].partition(':')[2]}/Dockerfile")).parent
        for part, value in found["inputs"].items():
            if part == "Dockerfile" or part.startswith("context/"):
                mode = (project / part.removeprefix("context/")).stat().st_mode & 0o1777
                found["inputs"][part] = f"{mode:04o} {value.partition(' ')[2]}"
        path.write_text(json.dumps(found))


@needs_root
def test_who_may_only_read_the_official_checkout_adopts_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody else may enter the directories of pytest.
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as directory:
        top = Path(directory)
        top.chmod(0o755)
        official = top / "official"
        write_checkout(official, FILES, f'images_root = "{official}"')
        pretend_built(official)
        clone = clone_of(official, top / "clone")
        subprocess.run(("chown", "-R", "nobody", clone), check=True)
        monkeypatch.setenv("HOME", directory)
        child = os.fork()
        if child == 0:
            # What was not imported yet can lie where only root may read.
            from concurrent.futures import ThreadPoolExecutor  # noqa: F401

            from rc_tasks.steps.publish import squash  # noqa: F401

            status = 1
            try:
                os.setgroups([])
                os.setuid(pwd.getpwnam("nobody").pw_uid)
                status = 0 if adopted(clone) == NAMES and adopted(clone) == [] else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert states(clone)["base"][0] is State.FRESH


def test_only_what_is_asked_for_and_its_bases_are_adopted(official: Path, clone: Path) -> None:
    assert adopt.adopt(opened(clone), ["child:latest"]) == ["base", "child:1"]


def test_the_official_checkout_adopts_nothing(official: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(official)
    for root in (official, tmp_path / "link"):
        for setting in (official, tmp_path / "link", f"{tmp_path}/./link/"):
            (official / "pyproject.toml").write_text(f'[tool.rc_tasks]\nimages_root = "{setting}"\n')
            judge = opened(root).judge
            assert judge.offers is None
            assert judge.step(Step.ENROOT, "base").fresh


def test_an_official_checkout_behind_a_symlink(official: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(official)
    clone = clone_of(tmp_path / "link", tmp_path / "clone")
    shutil.copyfile(official / "base/env.toml", clone / "base/env.toml")
    assert adopted(clone) == NAMES
    record = opened(clone).checkout.records.get(Step.PODMAN, "base")
    assert record is not None
    assert record.adopted_from == str(official), "what the link says tomorrow is not what was adopted"


def edit(path: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text(text)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(edit(f"{CHILD}/run.sh", "new"), ["base"], id="child"),
        pytest.param(edit("base/data", "new"), [], id="base"),
        pytest.param(edit("projects/grandchild/x", "new"), ["base", "child:1"], id="grandchild"),
        pytest.param(edit(f"{CHILD}/project.toml", '[build_args]\nA = "1"\n'), ["base"], id="argument"),
        pytest.param(edit(f"{CHILD}/Dockerfile", "FORM base\n"), ["base"], id="broken"),
        pytest.param(edit(f"{CHILD}/env.toml", 'image = "y"\n'), NAMES, id="env-by-hand"),
    ],
)
def test_only_what_is_equal_is_adopted(
    clone: Path, change: Callable[[Path], object], expected: list[str]
) -> None:
    change(clone)
    assert adopted(clone) == expected
    assert adopted(clone) == []


def test_an_env_toml_that_was_edited_is_brought_up_to_date_by_its_step(clone: Path) -> None:
    (clone / CHILD / "env.toml").write_text('image = "y"\n')
    adopted(clone)
    judge = opened(clone).judge
    assert [step for step in Step if not judge.step(step, "child:1").fresh] == [Step.ENV]


def test_a_clone_notices_that_the_official_image_changed(official: Path, clone: Path) -> None:
    adopted(clone)
    recipe = "# new\nFROM scratch\nCOPY . /\n"
    (official / "base/Dockerfile").write_text(recipe)
    pretend_built(official, ["base"])
    publish(official, "base", b"hsqs, and another image")
    assert states(clone)["base"] == (State.STALE, ("the official image changed",))
    assert adopted(clone) == []
    # With the official recipe the clone takes the new image; what is built on the old one is not equal.
    (clone / "base/Dockerfile").write_text(recipe)
    assert adopted(clone) == ["base"]
    assert states(clone)["base"] == (State.FRESH, (f"adopted from {official}",))
    assert states(clone)["child:1"] == (State.STALE, ("base image base was rebuilt",))


def publish(official: Path, name: str, content: bytes) -> None:
    """An image of other bytes, with a record that knows it."""
    checkout = open_checkout(official, {})
    record = checkout.records.get(Step.ENROOT, name)
    assert record is not None
    path = checkout.graph.images[name].project.artifact
    path.write_bytes(content)
    artifact = Artifact(len(content), path.stat().st_mtime_ns, sample_digest(str(path)))
    checkout.records.put(Step.ENROOT, name, replace(record, artifact=artifact))


def remove_store_entry(official: Path) -> None:
    shutil.rmtree(official / ".rc/store/images")


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        pytest.param(
            lambda official: official.rename(f"{official}.old"),
            State.MISSING,
            "the official image is gone: {official}/base/image.sqsh",
            id="unmounted",
        ),
        pytest.param(
            lambda official: (official / "base/image.sqsh").unlink(),
            State.MISSING,
            "the official image is gone: {official}/base/image.sqsh",
            id="no-sqsh",
        ),
        pytest.param(
            remove_store_entry,
            State.STALE,
            "the official image is no longer in the store of {official}",
            id="no-store",
        ),
        pytest.param(
            lambda official: (official / "base/image.sqsh").write_bytes(b"other"),
            State.STALE,
            "the official image changed",
            id="overwritten",
        ),
        pytest.param(
            lambda official: (official / "base").chmod(0o777),
            State.STALE,
            "the official image is refused: {official}/base: may be written by everybody"
            " (owner {owner}, mode 0777)",
            id="open-to-all",
        ),
    ],
)
def test_what_became_of_an_adopted_image(
    official: Path, clone: Path, change: Callable[[Path], object], state: State, reason: str
) -> None:
    adopted(clone)
    change(official)
    told = reason.format(official=official, owner=trust.user(os.geteuid()))
    found = states(clone)["base"]
    assert (found[0], found[1][0]) == (state, told)
    assert adopted(clone) == []
    judge = opened(clone).judge
    assert judge.step(Step.PODMAN, "base").certain


def test_an_official_image_that_was_rolled_back_is_not_adopted(official: Path, clone: Path) -> None:
    """Its file is that of other inputs; who has adopted it before notices."""
    second = clone_of(official, clone.with_name("second"))
    assert adopted(second) == NAMES
    session = opened(official)
    project = session.checkout.graph.images["child:1"].project
    published = session.checkout.records.get(Step.ENROOT, "child:1")
    assert published is not None
    assert session.checkout.previous.keep(project, published) == ""
    made = project.artifact.with_name("made")
    made.write_bytes(b"hsqs of the image before")
    os.replace(made, project.artifact)
    status = project.artifact.stat()
    sample = sample_digest(str(project.artifact))
    artifact = Artifact(status.st_size, status.st_mtime_ns, sample)
    before = replace(
        published,
        inputs={"image": "1" * 64},
        artifact=artifact,
        instead_of=published.inputs["image"],
    )
    session.checkout.records.put(Step.ENROOT, "child:1", before)
    state, reasons = states(official)["child:1"]
    assert state is State.FRESH and reasons[0].startswith(
        "rolled back to the image published 2026-01-02"
    )
    assert adopted(clone) == ["base"]
    offers = opened(clone).judge.offers
    assert offers is not None
    assert str(offers.refusal("child:1")) == "an older image replaces it there (doit rollback)"
    assert states(second)["child:1"][0] is State.STALE


def test_another_images_root_makes_it_stale(official: Path, clone: Path, tmp_path: Path) -> None:
    adopted(clone)
    (clone / "pyproject.toml").write_text('[tool.rc_tasks]\nimages_root = "/elsewhere"\n')
    assert states(clone)["base"][1][0] == (f"adopted from {official}, which is no longer images_root")


def test_why_says_that_images_root_does_not_exist(clone: Path) -> None:
    note = "  note    not adopted from /elsewhere: images_root does not exist here\n"
    assert "images_root does not exist" not in doit(clone, "why", "base").text
    (clone / "pyproject.toml").write_text('[tool.rc_tasks]\nimages_root = "/elsewhere"\n')
    assert note in doit(clone, "why", "base").text


def test_touching_the_official_image_changes_nothing(official: Path, clone: Path) -> None:
    adopted(clone)
    (official / "base/image.sqsh").touch()
    assert states(clone)["base"][0] is State.FRESH


def test_what_was_built_here_is_not_exchanged(official: Path, clone: Path) -> None:
    pretend_built(clone, ["base"])
    session = opened(clone)
    record = session.checkout.records.get(Step.PODMAN, "base")
    assert record is not None and record.facts is not None
    other = replace(record, facts=replace(record.facts, image_id=IMAGE_ID))
    session.checkout.records.put(Step.PODMAN, "base", other)
    stored = session.checkout.store.directory / "images" / IMAGE_ID / "manifest.json"
    stored.parent.mkdir(parents=True)
    stored.touch()
    (clone / "base/image.sqsh").unlink()
    assert adopted(clone) == []
    # Without its own record, the official image is as good.
    session.checkout.records.forget(Step.PODMAN, "base")
    assert adopted(clone) == NAMES


def test_a_locked_image_is_left_to_the_build(clone: Path) -> None:
    checkout = open_checkout(clone, {})
    with held(checkout.lock("child:1"), "podman:child:1"):
        assert adopted(clone) == ["base", "grandchild"]
    assert adopted(clone) == ["child:1"]


def test_a_link_that_a_killed_run_left_is_cleared(official: Path, clone: Path) -> None:
    left = clone / CHILD / f".image.{'0' * 16}.tmp.sqsh"
    left.symlink_to(official / CHILD / "image.sqsh")
    adopted(clone)
    assert not left.is_symlink()
    assert (official / CHILD / "image.sqsh").exists()


# What is refused, by the path below the official checkout that is made bad.
GUARDED = {
    "root": ".",
    "rc": ".rc",
    "state": ".rc/state",
    "record": ".rc/state/podman:base.json",
    "published": ".rc/state/enroot:base.json",
    "store": ".rc/store",
    "images": ".rc/store/images",
    "blobs": ".rc/store/blobs",
    "directory": "base",
    "artifact": "base/image.sqsh",
}


def guarded(official: Path, path: str) -> Path:
    (official / ".rc/store/blobs/sha256").mkdir(parents=True, exist_ok=True)
    return official / path if path != "." else official


@pytest.mark.parametrize("path", GUARDED.values(), ids=GUARDED)
def test_what_everybody_may_write_is_refused(official: Path, clone: Path, path: str) -> None:
    target = guarded(official, path)
    target.chmod(target.stat().st_mode | 0o002)
    assert "base" not in adopted(clone)
    told = refusals(clone)
    assert f"{target}: may be written by everybody (owner " in told
    assert "next: chmod o-w " in told


@pytest.mark.parametrize("path", GUARDED.values(), ids=GUARDED)
def test_what_a_user_may_write_through_an_access_control_list_is_refused(
    official: Path, tmp_path: Path, path: str
) -> None:
    target = guarded(official, path)
    give(target, (0x02, 7, 65534))
    group, writer = trust.group(target.stat().st_gid), trust.user(65534)
    clone = clone_of(official, tmp_path / "clone", f'images_owners = ["@{group}"]')
    assert "base" not in adopted(clone)
    told = refusals(clone)
    assert f"{target}: may be written by {writer}, through an access control list (owner " in told
    assert "next: setfacl -b " in told
    trusting = clone_of(official, tmp_path / "trusting", f'images_owners = ["@{group}", "{writer}"]')
    assert adopted(trusting) == NAMES


@pytest.mark.parametrize("path", GUARDED.values(), ids=GUARDED)
def test_what_a_group_may_write_is_refused_unless_the_settings_name_it(
    official: Path, tmp_path: Path, path: str
) -> None:
    target = guarded(official, path)
    target.chmod(target.stat().st_mode | 0o020)
    group = trust.group(target.stat().st_gid)
    clone = clone_of(official, tmp_path / "clone")
    assert "base" not in adopted(clone)
    assert f"{target}: may be written by the group {group} (owner " in refusals(clone)
    trusting = clone_of(official, tmp_path / "trusting", f'images_owners = ["@{group}"]')
    assert adopted(trusting) == NAMES


@needs_root
@pytest.mark.parametrize("path", GUARDED.values(), ids=GUARDED)
def test_what_belongs_to_somebody_else_is_refused_unless_the_settings_name_them(
    official: Path, tmp_path: Path, path: str
) -> None:
    target = guarded(official, path)
    shutil.chown(target, "nobody")
    clone = clone_of(official, tmp_path / "clone")
    assert "base" not in adopted(clone)
    told = refusals(clone)
    assert f"{target}: belongs to somebody whom images_owners does not name (owner nobody, mode" in told
    assert 'images_owners = ["nobody"]' in told
    for owner in ("nobody", "@nogroup"):
        assert adopted(clone_of(official, tmp_path / owner, f'images_owners = ["{owner}"]')) == NAMES


@pytest.mark.parametrize(
    "path", ["base", "base/image.sqsh", ".rc", ".rc/state", ".rc/store", ".rc/store/images"]
)
def test_a_symlink_that_leads_out_is_refused(
    official: Path, clone: Path, tmp_path: Path, path: str
) -> None:
    outside = (official / path).rename(tmp_path / "outside")
    (official / path).symlink_to(outside)
    assert "base" not in adopted(clone)
    told = refusals(clone)
    assert (
        f"{official / path}: is a symlink that leads out of the official checkout, to {outside}" in told
    )


def test_a_symlink_inside_is_followed(official: Path, clone: Path) -> None:
    (official / ".rc/store").rename(official / "store")
    (official / ".rc/store").symlink_to("../store")
    assert adopted(clone) == NAMES


def test_a_refusal_is_told_once(official: Path, clone: Path) -> None:
    (official / ".rc").chmod(0o777)
    told = adopt.warnings(opened(clone), NAMES)
    assert [str(error) for error in told] == [
        f"{official}/.rc: may be written by everybody (owner {trust.user(os.geteuid())}, mode 0777), so"
        f" {NAMES[0]} cannot be adopted\n  next: chmod o-w '{official}/.rc'"
    ]


def nested(text: str) -> str:
    return text * 200_000


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda record: "", id="empty"),
        pytest.param(lambda record: "{", id="half"),
        pytest.param(lambda record: "[]", id="list"),
        pytest.param(lambda record: nested("["), id="nested"),
        pytest.param(lambda record: nested('{"a":'), id="nested-tables"),
        pytest.param(lambda record: " " * (17 << 20), id="huge"),
        pytest.param(lambda record: "\ud800".encode("utf-8", "surrogatepass"), id="not-utf-8"),
        pytest.param(lambda record: record | {"schema": 99}, id="later-version"),
        pytest.param(lambda record: record | {"task": "podman:other"}, id="another-image"),
        pytest.param(lambda record: record | {"duration_s": 10**400}, id="endless-duration"),
        pytest.param(lambda record: record | {"duration_s": float("inf")}, id="infinite-duration"),
        pytest.param(lambda record: record | {"duration_s": float("nan")}, id="no-number"),
        pytest.param(lambda record: record | {"started_at": "yesterday"}, id="no-time"),
        pytest.param(lambda record: record | {"ended_at": "0001-01-01T00:00:00+00:00"}, id="first-year"),
        pytest.param(lambda record: record | {"ended_at": "2026-01-01T00:00:00"}, id="no-zone"),
        pytest.param(lambda record: record | {"node": ["x"]}, id="node-list"),
        pytest.param(lambda record: record | {"node": "\x1b[2J"}, id="terminal-escape"),
        pytest.param(lambda record: record | {"builder": "x" * 100_000}, id="long-text"),
        pytest.param(lambda record: record | {"commit": "\ud800"}, id="surrogate"),
        pytest.param(lambda record: record | {"tools": {"podman": {}}}, id="tools"),
        pytest.param(lambda record: record | {"tools": None}, id="no-tools"),
        pytest.param(lambda record: record | {"facts": []}, id="no-facts"),
        pytest.param(lambda record: record | {"facts": [1]}, id="facts-list"),
        pytest.param(lambda record: facts(record, image_id="../../../x"), id="id-is-a-path"),
        pytest.param(lambda record: facts(record, image_id=5), id="id-is-a-number"),
        pytest.param(lambda record: facts(record, size_bytes=-1), id="negative-size"),
        pytest.param(lambda record: facts(record, size_bytes=10**30), id="endless-size"),
        pytest.param(lambda record: facts(record, workdir='/"\nimage = "/evil'), id="two-lines"),
        pytest.param(lambda record: facts(record, sets_entrypoint="no"), id="text-for-truth"),
        pytest.param(lambda record: record | {"inputs": {"Dockerfile": 5}}, id="inputs"),
        pytest.param(lambda record: record | {"inputs": 5}, id="no-inputs"),
    ],
)
def test_a_hostile_record_is_refused_and_never_breaks_a_run(
    official: Path, clone: Path, change: Callable[[dict[str, object]], object]
) -> None:
    path = official / ".rc/state/podman:base.json"
    found = change(json.loads(path.read_text()))
    if isinstance(found, dict):
        found = json.dumps(found)
    path.write_bytes(found if isinstance(found, bytes) else str(found).encode())
    assert adopted(clone) == []
    assert states(clone)["base"] == (State.MISSING, ("never built",))
    error = opened(clone).judge.offers.refusal("base")  # type: ignore[union-attr]
    assert error is not None


def facts(record: dict[str, object], **changes: object) -> dict[str, object]:
    return record | {"facts": {**record["facts"], **changes}}  # type: ignore[dict-item]


def test_a_pipe_in_place_of_a_record_does_not_make_us_wait(official: Path, clone: Path) -> None:
    path = official / ".rc/state/podman:base.json"
    path.unlink()
    os.mkfifo(path, 0o644)
    assert adopted(clone) == []
    assert f"{path}: is not a file" in refusals(clone)


def test_without_an_official_checkout_nothing_is_said(tmp_path: Path) -> None:
    clone = write_checkout(tmp_path, FILES, 'images_root = "/nowhere"')
    assert adopted(clone) == []
    assert refusals(clone) == ""
    assert states(clone)["base"] == (State.MISSING, ("never built",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            lambda official: (official / ".rc/state/enroot:base.json").unlink(),
            "enroot:base never ran there",
            id="not-published",
        ),
        pytest.param(
            lambda official: (official / "base/image.sqsh").write_bytes(b"x"),
            "its image.sqsh there is not as it was published",
            id="damaged",
        ),
        pytest.param(remove_store_entry, "it is not in the image store there", id="not-in-the-store"),
        pytest.param(
            lambda official: (official / "base/data").write_text("new") and pretend_built(official),
            "it was built from other inputs",
            id="other-inputs",
        ),
    ],
)
def test_why_an_image_is_not_offered(
    official: Path, clone: Path, change: Callable[[Path], object], reason: str
) -> None:
    change(official)
    assert adopted(clone) == []
    offers = opened(clone).judge.offers
    assert offers is not None
    assert str(offers.refusal("base")) == reason


def test_a_squashed_layer_that_others_could_have_written_is_not_used(
    official: Path, clone: Path
) -> None:
    file = official / ".rc/store/layers" / ("1" * 64) / "layer.sqsh"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"hsqs")
    file.with_name("layer.json").write_text("{}")
    found = official_of(open_checkout(clone, {}))
    assert found is not None and found.layer(f"sha256:{'1' * 64}") == LayerFiles(file.parent)
    assert found.layer(f"sha256:{'2' * 64}") is None
    file.chmod(0o666)
    found = official_of(open_checkout(clone, {}))
    assert found is not None and found.layer(f"sha256:{'1' * 64}") is None
    file.chmod(0o644)
    file.parent.chmod(0o777)
    found = official_of(open_checkout(clone, {}))
    assert found is not None and found.layer(f"sha256:{'1' * 64}") is None


def test_the_doctor_names_what_clones_would_refuse(official: Path) -> None:
    def told() -> list[Finding]:
        return [found for found in doctor.host_findings(opened(official)) if "adopt" in found.what]

    assert told() == [Finding(Level.OK, f"clones can adopt what {official} has built")]
    (official / CHILD).chmod(0o777)
    (found,) = told()
    assert found.level is Level.WARNING
    assert found.what.startswith(
        f"clones adopt nothing from {official / CHILD}: may be written by everyb"
    )
    assert found.hint == f"chmod o-w '{official / CHILD}'"


@pytest.mark.parametrize("place", [".rc", ".rc/state", ".rc/store/images", "base/image.sqsh"])
def test_what_may_not_be_read_there_is_told(official: Path, clone: Path, place: str) -> None:
    """It looked as if nothing had been built there yet."""
    closed = official / place
    mode = closed.stat().st_mode
    closed.chmod(0)
    environment = os.environ | {"RC_RUNNER": "local"}
    try:
        told, explained = (
            subprocess.run(
                (*limited(), DOIT, *argv),
                cwd=clone,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            ).stdout
            for argv in (("doctor",), ("why", "base"))
        )
    finally:
        closed.chmod(mode)
    what = f"{closed}: cannot be read: Permission denied (owner {trust.user(os.geteuid())}, mode 0000)"
    assert f"clones adopt nothing from {what}" in told
    assert f"not adopted from {official}: {what}" in explained
