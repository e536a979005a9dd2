"""Exactly the stale steps run, with real builds; tests/unit/state has each way of becoming stale."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.digests import sample_digest
from rc_tasks.state.records.records import Artifact, Step
from rc_tasks.tools import command
from rc_tasks.tools.command import Command
from tests.support.changes import CASES, Case, check_out_another_branch_and_back, steps
from tests.support.checkouts import pretend_built
from tests.support.doit import unstamped
from tests.support.family import ALL, NAMES, Family, published, started, write_family
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The family with everything fresh; tests work on copies of it."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "git")
    with own_storage() as (podman, environment):
        root = write_family(tmp_path_factory.mktemp("built") / "checkout")
        home = tmp_path_factory.mktemp("home")
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot", "HOME": str(home)}
        family = Family(root, podman, environment)
        assert set(family.run()) == ALL
        yield family


@pytest.fixture
def family(built: Family, tmp_path: Path) -> Family:
    """A copy in which everything is fresh; its name is as odd as a directory's may be."""
    return built.copied(tmp_path / "it's: a checkout é")


def images(*names: str) -> set[str]:
    """The steps that a new image takes; the EDF has the same facts and stays."""
    return steps(Step.PODMAN, *names) | steps(Step.ENROOT, *names)


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_log(family: Family, name: str) -> str:
    logs = sorted((family.root / ".rc/logs" / name / Step.PODMAN).glob("2*.log"))
    return logs[-1].read_text() if logs else ""


def content(family: Family, name: str, path: str) -> str:
    """A file of the published image."""
    return command.capture(Command(("unsquashfs", "-cat", str(family.artifact(name)), path))).stdout


def listing(family: Family, name: str) -> str:
    return command.capture(Command(("unsquashfs", "-l", str(family.artifact(name))))).stdout


@contextlib.contextmanager
def elsewhere(family: Family) -> Iterator[Family]:
    """The same checkout on a node that has no image."""
    with own_storage() as (podman, environment):
        yield Family(family.root, podman, {**family.environment, **environment})


# What runs of what is stale: the base's new comment leads to the same image, and in what top:1 takes of
# right:1 the other target changes nothing.
RAN = {
    "nothing": set(),
    "another branch and back": set(),
    "comment in the base": {"podman:base"},
    "RUN in the base": images(*NAMES),
    "context file's content": images("left:1", "top:1"),
    "target": images("right:1", "user:1") | {"podman:top:1"},
    "image.sqsh's middle": {"enroot:left:1"},
    "alias retargeted": images("user:1"),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES if case.id in RAN])
def test_exactly_the_stale_steps_run_as_told_before(family: Family, case: Case) -> None:
    case.change(family.root)
    planned = family.plan()
    ran = set(family.run())
    assert ran == RAN[case.id]
    # What is certain runs, and nothing runs that was not announced.
    assert {task for task, certain in planned.items() if certain} <= ran <= set(planned)
    assert set(family.states().values()) == {"fresh"}
    assert family.run() == {}


def test_the_places_of_a_checkout_change_only_what_names_them(family: Family) -> None:
    """Without `images_root`, env.toml names the image in this very checkout."""
    assert set(family.run(RC_IMAGES_ROOT=str(family.root))) == steps(Step.ENV, *NAMES)
    assert set(family.run(RC_EDF_WORKDIR="/there", RC_IMAGES_ROOT=str(family.root))) == steps(
        Step.ENV, *NAMES
    )
    assert 'workdir = "/there"' in (family.directory("top:1") / "env.toml").read_text()


def test_an_edited_env_toml_is_looked_at_again_and_keeps_the_edit(family: Family) -> None:
    path = family.directory("left:1") / "env.toml"
    edited = (
        path.read_text().replace("mounts = []", 'mounts = ["/data:/data"]')
        + '# mine\n[annotations]\nx = "1"\n'
    )
    path.write_text(edited)
    assert set(family.run()) == {"env:left:1"}
    assert path.read_text() == edited
    assert family.run() == {}


@pytest.mark.parametrize("touched", [False, True], ids=["as it was", "touched"])
def test_image_json_comes_back_without_squashing_again(family: Family, touched: bool) -> None:
    artifact, image_json = family.artifact("left:1"), family.directory("left:1") / "image.json"
    if touched:
        artifact.touch()
    before, told = published(artifact), json.loads(image_json.read_text())
    image_json.unlink()
    assert set(family.run()) == {"enroot:left:1"}
    assert published(artifact) == before
    assert json.loads(image_json.read_text()) == told


def test_image_json_says_from_what_the_image_is_made(family: Family) -> None:
    """Also after a change that led to the same image: others adopt it by its inputs."""
    family.edit("projects/left:1/Dockerfile", "FROM base", "# why\nFROM base")
    family.run()
    told = json.loads((family.directory("left:1") / "image.json").read_text())
    # As it is written: reading it adds what follows from podman's version.
    record = json.loads((family.root / ".rc/state/podman:left:1.json").read_text())
    assert told["inputs"] == record["inputs"]


def test_always_runs_what_is_named_alone(family: Family) -> None:
    assert set(family.run("-a", "podman:left:1")) == {"podman:left:1"}
    assert set(family.run("-a", "build:left:1")) == {f"{step}:left:1" for step in Step}


def test_always_all_runs_every_step_of_the_image_and_its_bases(family: Family) -> None:
    before = family.records()
    assert set(family.run("--always-all", "build:left:1")) == {
        f"{step}:{name}" for step in Step for name in ("base", "left:1")
    }
    after = family.records()
    assert after["podman:left:1"].facts == before["podman:left:1"].facts
    assert after["enroot:left:1"].artifact != before["enroot:left:1"].artifact
    assert family.run() == {}


def test_the_summary_counts_what_was_done(family: Family) -> None:
    last = len(NAMES)
    family.doit("forget", "env:left:1")
    assert family.doit().splitlines()[-1] == f"{last} images: 1 env.toml written; {last - 1} fresh"
    family.edit("projects/left:1/Dockerfile", "RUN", "# why\nRUN")
    assert family.doit().splitlines()[-1] == f"{last} images: 1 built; {last - 1} fresh"
    assert family.doit().splitlines()[-1] == f"{last} images: {last} fresh"


def test_only_what_was_written_wrongly_is_squashed_again(family: Family) -> None:
    settings = """ENV PATH=/bin OPTIONS="'-a' '-b'"\nENTRYPOINT ["/bin/sh"]\n"""
    family.edit("base/Dockerfile", "RUN", f"{settings}RUN")
    family.edit("projects/left:1/Dockerfile", "COPY", 'ENTRYPOINT [""]\nENV OPTIONS=-c\nCOPY')
    family.edit("projects/right:1/Dockerfile", "RUN echo right", "ENTRYPOINT []\nENV OPTIONS=-c\nRUN :")
    family.run()
    edfs = {name: (family.directory(name) / "env.toml").read_text() for name in NAMES}
    assert {name for name, text in edfs.items() if "entrypoint = true" in text} == {"base"}
    # As earlier versions recorded it.
    for record in (family.root / ".rc/state").glob("enroot:*.json"):
        found = json.loads(record.read_text())
        found["inputs"] = {"image": found["inputs"]["image"]}
        record.write_text(json.dumps(found))
    listed = {each["name"]: each["reasons"] for each in json.loads(family.doit("list", "--json"))}
    entrypoint = 'ENTRYPOINT [""] was written into /etc/rc as a command'
    assert listed == {
        "base": ["Enroot reads another value of ENV OPTIONS"],
        "left:1": [entrypoint],
        "right:1": [],
        "top:1": [entrypoint],
        "user:1": [],
    }
    assert f"  enroot  {entrypoint}\n" in family.doit("why", "top:1")
    assert set(family.run()) == steps(Step.ENROOT, "base", "left:1", "top:1")
    assert family.run() == {}


def test_an_edit_while_the_build_runs_is_stale_afterwards(family: Family) -> None:
    recipe = "projects/user:1/Dockerfile"
    family.write(recipe, "FROM tool:current\nRUN touch /started && sleep 2 && echo first > /etc/user\n")
    with family.start("build:user:1") as process:
        wait_for(lambda: "touch /started" in last_log(family, "user:1"))
        family.edit(recipe, "echo first", "echo second")
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert family.states()["user:1"] == "stale"
    assert family.run()["podman:user:1"] == "Dockerfile changed during the last build"
    assert content(family, "user:1", "/etc/user") == "second\n"
    assert family.run() == {}


def test_a_failed_edit_that_is_taken_back_needs_no_run(family: Family) -> None:
    family.edit("projects/left:1/Dockerfile", "echo $FLAVOUR", "false; exit 3 #")
    output = family.doit("--continue", status=1)
    assert set(started(output)) == {"podman:left:1"}
    assert family.states() == dict.fromkeys(NAMES, "fresh") | {"left:1": "failed", "top:1": "stale"}
    family.edit("projects/left:1/Dockerfile", "false; exit 3 #", "echo $FLAVOUR")
    assert set(family.states().values()) == {"fresh"}
    assert family.run() == {}


def test_a_foreign_image_of_the_same_name_is_never_a_base(family: Family, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /foreign\n")
    for name in ("base", "left:1", "right:1", "tool:current"):
        command.capture(
            family.podman.command("build", "--tag", f"localhost/{name}", "--format=docker", str(foreign))
        )
    family.write("projects/left:1/data/one file.txt", "with a foreign base about\n")
    family.edit("projects/user:1/Dockerfile", "echo user", "echo still user")
    assert set(family.run()) == images("left:1", "top:1") | images("user:1")
    for name in NAMES:
        assert "foreign" not in listing(family, name)


def test_a_node_without_any_image_gets_the_bases_from_the_store(family: Family) -> None:
    """Everything below was built elsewhere; here the storage is empty."""
    with elsewhere(family) as other:
        assert other.run() == {}
        other.write("projects/left:1/data/one file.txt", "built on another node\n")
        assert set(other.run()) == images("left:1", "top:1")
        for name in ("base", "left:1", "right:1", "top:1"):
            assert other.podman.exists(other.image_id(name))
        assert not other.podman.exists(other.image_id("user:1"))
        # Without the store, what is not on the node is made anew, and all is well again.
        shutil.rmtree(other.root / ".rc/store")
        assert steps(Step.PODMAN, *NAMES) <= set(other.run())
        assert other.run() == {}


def test_a_storage_that_is_wiped_between_two_steps(family: Family) -> None:
    family.edit("projects/left:1/Dockerfile", "echo $FLAVOUR", "echo more $FLAVOUR")
    assert set(family.run("podman:left:1")) == {"podman:left:1"}
    with elsewhere(family) as other:
        assert set(other.run("build:left:1")) == {"enroot:left:1"}
        assert content(other, "left:1", "/etc/left") == "more plain\n"


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_store_mends_itself(family: Family, damage: str) -> None:
    layer = family.podman.inspect(family.image_id("base")).layers[-1].removeprefix("sha256:")
    file = family.root / ".rc/store/layers" / layer / "layer.sqsh"
    if damage == "missing":
        file.unlink()
    else:
        os.truncate(file, 100)
    family.write("projects/left:1/data/one file.txt", "new\n")
    with elsewhere(family) as other:
        output = unstamped(other.doit("build:left:1"))
        assert re.search(
            r"^again   podman:base  image \w{12} of base is neither on \S+ nor whole in the store$",
            output,
            re.MULTILINE,
        )
        assert re.search(
            r"^done    podman:base  .*\n.*start   enroot:base  the image was rebuilt$",
            output,
            re.MULTILINE,
        )
        assert other.run("build:left:1") == {}


def test_the_same_inputs_give_the_same_image_id_and_labels(family: Family) -> None:
    before = family.records()
    family.doit("forget", *(f"podman:{name}" for name in NAMES))
    assert set(family.run()) == steps(Step.PODMAN, *NAMES)
    after = family.records()
    for name in NAMES:
        assert after[f"podman:{name}"].facts == before[f"podman:{name}"].facts
    labels = family.podman.inspect(family.image_id("left:1")).labels
    assert labels == {
        "org.opencontainers.image.title": "left",
        "org.opencontainers.image.version": "1",
        "org.opencontainers.image.base.name": "base",
        "org.opencontainers.image.base.digest": f"sha256:{family.image_id('base')}",
    }


def test_a_secret_is_used_and_told_nowhere(family: Family, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("swordfish")
    family.write("projects/user:1/project.toml", f'secrets = ["id=token,src={secret}"]\n')
    family.write(
        "projects/user:1/Dockerfile",
        "FROM tool:current\n"
        "RUN --mount=type=secret,id=token grep -c swordfish /run/secrets/token > /etc/user\n",
    )
    assert set(family.run()) == images("user:1")
    assert content(family, "user:1", "/etc/user") == "1\n"
    listed = command.capture(
        Command(("unsquashfs", "-cat", str(family.artifact("user:1")), "/etc/rc"))
    ).stdout
    told = [listed, family.doit("why", "user:1"), family.doit("list", "--json")]
    told += [
        path.read_text(errors="replace") for path in (family.root / ".rc").rglob("*") if path.is_file()
    ]
    told += [path.read_text() for path in family.directory("user:1").glob("*.[jt]*")]
    # The Dockerfile itself holds the word, and podman shows its lines.
    assert not [text for text in told if "swordfish" in text.replace("grep -c swordfish", "")]
    secret.write_text("another")
    assert family.run() == {}


def test_image_json_has_the_documented_keys(family: Family) -> None:
    told = json.loads((family.directory("top:1") / "image.json").read_text())
    records = family.records()
    documented = (Path(__file__).parents[2] / "docs/reference/image-json.md").read_text()
    assert not [key for key in told if f"`{key}`" not in documented]
    assert told["schema"] == 1
    assert told["name"] == "top:1"
    assert told["image_id"] == family.image_id("top:1")
    assert told["bases"] == {name: family.image_id(name) for name in ("right:1", "left:1")}
    assert told["inputs"] == records["podman:top:1"].inputs
    assert told["size_bytes"] == family.artifact("top:1").stat().st_size
    assert told["commit"] is None


def test_etc_rc_tells_where_the_image_comes_from(family: Family) -> None:
    check_out_another_branch_and_back(family.root)
    # The first build knew of no git; this one does, and is answered from the cache.
    family.doit("forget", "podman:left:1")
    family.artifact("left:1").unlink()
    family.run()
    commit = subprocess.run(
        ("git", "rev-parse", "HEAD"), cwd=family.root, capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = content(family, "left:1", "/etc/rc").splitlines()
    assert f"# image: left:1 ({family.image_id('left:1')})" in lines
    assert any(line.startswith("# squashed: 20") for line in lines)
    assert f"# commit: {commit}" in lines
    assert json.loads((family.directory("left:1") / "image.json").read_text())["commit"] == commit


def test_twenty_gigabytes_are_judged_without_reading_them(tmp_path: Path) -> None:
    root = write_family(tmp_path / "checkout")
    pretend_built(root)
    artifact = root / "projects/left:1/image.sqsh"
    os.truncate(artifact, 20_000_000_000)
    records = open_checkout(root, {}).records
    recorded = records.get(Step.ENROOT, "left:1")
    assert recorded is not None
    status = artifact.stat()
    sample = sample_digest(str(artifact))
    artifact_then = Artifact(status.st_size, status.st_mtime_ns, sample)
    records.put(Step.ENROOT, "left:1", replace(recorded, artifact=artifact_then))

    def judged() -> tuple[list[str], int]:
        before = read_bytes()
        causes = Judge(open_checkout(root, {})).step(Step.ENROOT, "left:1").causes
        return [cause.words for cause in causes], read_bytes() - before

    words, unread = judged()
    assert words == []
    artifact.touch()
    words, touched = judged()
    assert words == []
    with artifact.open("r+b") as file:
        file.seek(10_000_000_000)
        file.write(b"x")
    words, damaged = judged()
    assert words == ["image.sqsh was changed after its publication"]
    assert max(touched, damaged) - unread < 2_000_000


def read_bytes() -> int:
    """What this process has read so far (proc(5))."""
    return int(
        dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"]
    )
