"""Images for several machines: their names, bases and aliases, and who is left alone."""

import os
from pathlib import Path

import pytest

from rc_tasks.engine.schedule.machines import left_alone
from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import load
from rc_tasks.model.edf import chain
from rc_tasks.model.machine import image_name, parse_machine, platform, without_machine
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from rc_tasks.steps.publish.env_toml import write_environment
from tests.support.checkouts import pretend_built, write_checkout

HERE = os.uname().machine
OTHER = "aarch64" if HERE != "aarch64" else "x86_64"
BOTH = f'arch = ["{HERE}", "{OTHER}"]\n'
FILES = {
    "projects/base:1/Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /x\n",
    "projects/base:1/project.toml": BOTH,
    "projects/base:latest": "-> base:1",
    "projects/app/Dockerfile": "ARG V\nFROM base:latest AS a\nFROM base:1\nCOPY --from=a /x /y\n",
    "projects/app/project.toml": f'{BOTH}build_args.V = "{{v}}"\n[matrix]\nv = ["7", "8"]\n',
    "projects/plain/Dockerfile": "FROM localhost/base\n",
}


def test_each_image_stands_on_the_base_for_its_machine(tmp_path: Path) -> None:
    graph = open_checkout(write_checkout(tmp_path, FILES), {}).graph
    assert not graph.broken
    assert set(graph.images) == {
        *(f"base:1-{machine}" for machine in (HERE, OTHER)),
        *(f"app:{version}-{machine}" for version in "78" for machine in (HERE, OTHER)),
        "plain",
    }
    for machine in (HERE, OTHER):
        assert graph.images[f"app:7-{machine}"].bases == (f"base:1-{machine}",)
    assert graph.images["plain"].bases == (f"base:1-{HERE}",)
    assert graph.aliases == {
        "base:1": f"base:1-{HERE}",
        "base:latest": f"base:1-{HERE}",
        **{f"app:{version}": f"app:{version}-{HERE}" for version in "78"},
    }
    assert graph.images[f"app:8-{OTHER}"].axis_values == {"v": "8"}
    assert graph.images[f"base:1-{OTHER}"].project.artifact == (
        tmp_path / f"projects/base:1-{OTHER}/image.sqsh"
    )


def test_a_base_that_is_not_built_for_the_machine(tmp_path: Path) -> None:
    root = write_checkout(tmp_path, FILES)
    (root / "projects/base:1/project.toml").unlink()
    graph = open_checkout(root, {}).graph
    assert str(graph.broken[f"app:7-{OTHER}"]) == (
        f"projects/app/Dockerfile:2: base:1 is not built for {OTHER}, as app:7-{OTHER} is\n"
        f"  next: name {OTHER} in `arch` of the project.toml of base:1"
    )
    assert f"app:7-{HERE}" in graph.images and "plain" in graph.images


def test_images_for_another_machine_alone_stand_on_one_another(tmp_path: Path) -> None:
    files = dict(FILES)
    for name in ("base:1", "app"):
        files[f"projects/{name}/project.toml"] = FILES[f"projects/{name}/project.toml"].replace(
            BOTH, f'arch = ["{OTHER}"]\n'
        )
    graph = open_checkout(write_checkout(tmp_path, files), {}).graph
    assert graph.images[f"app:7-{OTHER}"].bases == (f"base:1-{OTHER}",)
    assert graph.images[f"app:7-{OTHER}"].remote == ()
    assert graph.aliases["base:1"] == graph.aliases["base:latest"] == f"base:1-{OTHER}"
    assert graph.resolve("app:8").project.name == f"app:8-{OTHER}"
    # No registry is asked for an image of the checkout.
    assert graph.broken["plain"].headline == (
        f"projects/plain/Dockerfile:1: base:1 is not built for {HERE}, as plain is"
    )


def test_a_base_that_is_named_for_another_machine(tmp_path: Path) -> None:
    root = write_checkout(tmp_path, FILES)
    (root / "projects/plain/Dockerfile").write_text(f"FROM base:1-{OTHER}\n")
    graph = open_checkout(root, {}).graph
    assert str(graph.broken["plain"]) == (
        f"projects/plain/Dockerfile:1: base:1-{OTHER} is an image for {OTHER}, and plain is for {HERE}\n"
        "  next: write base:1: it is the image for the same machine"
    )
    (root / "projects/plain/Dockerfile").write_text(f"FROM base:1-{HERE}\n")
    assert open_checkout(root, {}).graph.images["plain"].bases == (f"base:1-{HERE}",)


def test_only_images_without_nodes_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_checkout(tmp_path, FILES)
    monkeypatch.setattr("rc_tasks.tools.binfmt.emulates", lambda machine: False)
    others = {f"base:1-{OTHER}", f"app:7-{OTHER}", f"app:8-{OTHER}"}
    assert left_alone(open_checkout(root, {"RC_RUNNER": "local"})).keys() == others
    assert left_alone(open_checkout(root, {"RC_RUNNER": "slurm"})).keys() == others
    (root / "rc_tasks.toml").write_text(f'[arch.{OTHER}]\npartition = "there"\n')
    assert left_alone(open_checkout(root, {"RC_RUNNER": "slurm"})) == {}
    assert left_alone(open_checkout(root, {"RC_RUNNER": "local"})).keys() == others
    monkeypatch.setattr("rc_tasks.tools.binfmt.emulates", lambda machine: True)
    assert left_alone(open_checkout(root, {"RC_RUNNER": "local"})) == {}


def test_slurm_is_asked_for_nodes_of_the_machine(tmp_path: Path) -> None:
    root = write_checkout(tmp_path, {}, '[tool.rc_tasks.slurm]\naccount = "a"\npartition = "p"\n')
    (root / "rc_tasks.toml").write_text('[arch.x86_64]\npartition = "q"\nextra = ["--constraint=gpu"]\n')
    settings = load(root, {}, tmp_path)
    assert (settings.slurm_for("").partition, settings.slurm_for("aarch64").partition) == ("p", "p")
    there = settings.slurm_for("x86_64")
    assert (there.account, there.partition, there.extra) == ("a", "q", ("--constraint=gpu",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('arch = ["arm64"]', 'arch: "arm64" is Docker\'s name; write "aarch64", as `uname -m` does'),
        ('arch = ["amd"]', 'arch: "amd" is not one of aarch64, x86_64, ppc64le, riscv64, s390x'),
        ("arch = []", 'arch: expected a list such as ["aarch64", "x86_64"], found []'),
        ('arch = ["x86_64", "x86_64"]', 'arch: expected a list such as ["aarch64", "x86_64"], found'),
        ('arch = "x86_64"', 'arch: expected a list of strings, found "x86_64"'),
    ],
)
def test_a_mistake_in_project_toml(tmp_path: Path, text: str, message: str) -> None:
    root = write_checkout(
        tmp_path, {"projects/x/Dockerfile": "FROM scratch\n", "projects/x/project.toml": text}
    )
    assert (
        open_checkout(root, {})
        .graph.broken["x"]
        .headline.startswith(f"projects/x/project.toml:1: {message}")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch.arm64.partition = 'x'", 'arch: "arm64" is Docker\'s name'),
        ("arch.x86_64 = 7", "arch: expected a table with keys of slurm for x86_64, found 7"),
        ("arch.x86_64.partitio = 'x'", "arch: x86_64: partitio is not a known key"),
        ("arch.x86_64.nodes = 'x'", "arch: x86_64: nodes: expected a whole number of at least 1"),
    ],
)
def test_a_mistake_in_the_settings(tmp_path: Path, text: str, message: str) -> None:
    root = write_checkout(tmp_path, {})
    (root / "rc_tasks.toml").write_text(text)
    with pytest.raises(RcError) as raised:
        load(root, {}, tmp_path)
    assert raised.value.headline.startswith(f"rc_tasks.toml:1: {message}")


def test_names_of_machines() -> None:
    for name in ("a", "a:1"):
        assert without_machine(image_name(name, "aarch64"), "aarch64") == name
    assert platform("aarch64") == "linux/arm64" and platform("armv7l") == "linux/arm/v7"
    assert parse_machine("ppc64le") == "ppc64le"


OLD_EDF = """\
# generated: image=00000000 workdir=0a137b37

image = "/official/projects/base:1/image.sqsh"
workdir = "/"
mounts = ["/mine:/mine"]
"""


@pytest.mark.parametrize("before", ["", OLD_EDF], ids=["new", "from before arch"])
def test_one_edf_starts_the_image_for_the_machine_it_is_read_on(tmp_path: Path, before: str) -> None:
    root = write_checkout(tmp_path / "it's: ä", FILES)
    common = root / "projects/base:1/env.toml"
    if before:
        common.write_text(before)
    pretend_built(root)
    checkout = open_checkout(root, {})
    for machine in (HERE, OTHER):
        (root / f"projects/base:1-{machine}/env.toml").unlink()
        write_environment(checkout, checkout.graph.images[f"base:1-{machine}"])
    for environ, machine in (
        ({"IMAGE_MACHINE": OTHER}, OTHER),
        ({"IMAGE_MACHINE": HERE}, HERE),
        ({}, HERE),
    ):
        edf = chain.resolve(str(common), environ=environ, cwd=root)
        assert edf.image == f"{root}/projects/base:1-{machine}/image.sqsh"
        assert [mount.source for mount in edf.mounts] == (["/mine"] if before else [])
    text = common.read_text()
    write_environment(checkout, checkout.graph.images[f"base:1-{HERE}"])
    assert common.read_text() == text
    assert Judge(open_checkout(root, {})).step(Step.ENV, f"base:1-{HERE}").fresh
    common.unlink()
    causes = Judge(open_checkout(root, {})).step(Step.ENV, f"base:1-{OTHER}").causes
    assert [cause.words for cause in causes] == ["projects/base:1/env.toml is missing"]


def test_the_edf_for_all_machines_of_a_matrix_has_a_directory_of_its_own(tmp_path: Path) -> None:
    root = write_checkout(tmp_path, FILES)
    pretend_built(root)
    checkout = open_checkout(root, {})
    write_environment(checkout, checkout.graph.images[f"app:7-{OTHER}"])
    assert (root / "projects/app:7/env.toml").exists()
    graph = open_checkout(root, {}).graph
    assert not graph.broken and not graph.problems
