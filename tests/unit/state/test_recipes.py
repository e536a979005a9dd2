"""Recipes whose files lie elsewhere: images, graph, staleness, and what project.toml names wrongly."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.commands.cli.names import completions
from rc_tasks.engine.upkeep import move, removal
from rc_tasks.engine.upkeep.garbage import Collector
from rc_tasks.engine.watched import look
from rc_tasks.errors import RcError
from rc_tasks.model.graph import context
from rc_tasks.model.graph.project import BuildContext
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.inputs import is_file
from rc_tasks.state.records.records import Step
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit
from tests.support.recipes import APPS, FILES, IMAGES, STACK_BASES, STACK_FILES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout in which everything is built."""
    made = write_checkout(tmp_path / "it's: ä", FILES, 'images_root = "/official"')
    pretend_built(made)
    return made


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A checkout with images on the bases of a vendor, in which everything is built."""
    made = write_checkout(tmp_path / "stack", STACK_FILES)
    pretend_built(made)
    return made


def reasons(root: Path) -> dict[str, list[str]]:
    """Why images that are not fresh have to be built."""
    checkout = open_checkout(root, {})
    judge = Judge(checkout)
    causes = {name: judge.step(Step.PODMAN, name).causes for name in checkout.graph.images}
    return {name: [cause.words for cause in of_image] for name, of_image in causes.items() if of_image}


def test_each_combination_is_an_image_with_its_own_base(root: Path) -> None:
    graph = open_checkout(root, {}).graph
    assert not graph.broken and not graph.problems
    assert set(graph.images) == set(IMAGES)
    assert graph.images["user:13.0"].bases == ("app:13.0-py3.12",)
    assert graph.images["app:12.8-py3.10"].options.build_args == {"CUDA": "12.8", "PYTHON": "3.10"}
    assert graph.aliases == {"app:latest": "app:13.0-py3.12"}
    assert (
        graph.images["app:12.8-py3.10"].project.artifact == root / "projects/app:12.8-py3.10/image.sqsh"
    )


def test_the_context_is_what_its_ignore_file_lets_through(root: Path) -> None:
    images = open_checkout(root, {}).graph.images
    of_app = context.of_project(images["app:12.8-py3.10"].project).paths
    assert of_app == ("src", "src/lib", "src/lib/module.py")
    of_docs = context.of_project(images["docs"].project).paths
    assert "README.md" in of_docs and "docs/index.md" in of_docs and "docker/Dockerfile.app" in of_docs
    # .dockerignore names src; the rest belongs to the checkout and not to an image.
    left_out = ("src", "projects", ".rc", "dodo.py", ".git", "templates/")
    assert not [path for path in of_docs if path.startswith(left_out) and path != ".gitignore"]


def test_a_repository_has_templates_of_its_own(root: Path) -> None:
    (root / "templates/chat.jinja").write_text("{{ messages }}\n")
    paths = context.of_project(open_checkout(root, {}).graph.images["docs"].project).paths
    assert [path for path in paths if path.startswith("templates/")] == ["templates/chat.jinja"]


def test_an_ignore_file_takes_back_what_belongs_to_the_checkout(root: Path) -> None:
    (root / ".dockerignore").write_text("!projects\nprojects/*\n!projects/base\n")
    paths = context.of_project(open_checkout(root, {}).graph.images["docs"].project).paths
    below = [path for path in paths if path.startswith("projects/")]
    # project.toml is ours wherever it lies.
    assert below == [
        "projects/base",
        "projects/base/files",
        *(f"projects/base/files/bin{end}" for end in ("", "/readme")),
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda root: None, {}, id="nothing"),
        pytest.param(
            lambda root: (root / "src/lib/module.py").write_text("x = 2\n"),
            {
                **{name: ["src/lib/module.py changed"] for name in APPS},
                "docs": ["base image app:13.0-py3.12 is stale"],
                "user:12.8": ["base image app:12.8-py3.12 is stale"],
                "user:13.0": ["base image app:13.0-py3.12 is stale"],
            },
            id="file of a shared context",
        ),
        pytest.param(lambda root: (root / "src/lib/test.log").write_text("more"), {}, id="ignored file"),
        pytest.param(
            lambda root: edit(root / "docker/Dockerfile.docs", "COPY docs", "COPY  docs"),
            {"docs": ["Dockerfile changed", "docker/Dockerfile.docs changed"]},
            id="Dockerfile in the context",
        ),
        pytest.param(
            lambda root: edit(root / "projects/user/project.toml", '"12.8", ', ""),
            {},
            id="value removed",
        ),
        pytest.param(
            lambda root: edit(root / "projects/app/project.toml", "}\n\n", ', NEW = "{cuda}" }\n\n'),
            {
                **{name: ["build_args.NEW changed"] for name in APPS},
                "docs": ["base image app:13.0-py3.12 is stale"],
                "user:12.8": ["base image app:12.8-py3.12 is stale"],
                "user:13.0": ["base image app:13.0-py3.12 is stale"],
            },
            id="argument added",
        ),
        pytest.param(
            lambda root: [
                (root / ".rc/contexts").joinpath(name).unlink()
                for name in os.listdir(root / ".rc/contexts")
            ],
            {},
            id="listings gone",
        ),
    ],
)
def test_exactly_the_stale_images_are_stale(
    root: Path, change: Callable[[Path], object], expected: dict[str, list[str]]
) -> None:
    change(root)
    assert reasons(root) == expected


def test_doit_takes_no_fresh_image_for_a_changed_one(root: Path) -> None:
    """The images share Dockerfiles and directories, of which each takes other files."""
    checkout = open_checkout(root, {})
    for _ in ("read", "compared with the last reading"):
        judge = Judge(checkout)
        for name in checkout.graph.images:
            assert judge.step(Step.PODMAN, name).fresh
            record = checkout.records.get(Step.PODMAN, name)
            assert record is not None
            read = {part: value for part, value in record.inputs.items() if is_file(part)}
            assert set(read) >= {"Dockerfile"}
            assert [part for part in read if judge.modified(name, part, read[part])] == []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_context_without_its_listing_is_told_as_one(root: Path) -> None:
    for name in os.listdir(root / ".rc/contexts"):
        (root / ".rc/contexts" / name).unlink()
    (root / "docs/new.md").write_text("new")
    assert reasons(root) == {"docs": ["the context changed"]}


def test_a_shared_context_is_listed_and_digested_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    real = context.of_context

    def counted(root: Path, build_context: BuildContext) -> context.Listing:
        listed.append((build_context.directory, build_context.ignorefile))
        return real(root, build_context)

    monkeypatch.setattr(context, "of_context", counted)
    (root / "src/lib/module.py").write_text("x = 2\n")
    reasons(root)
    assert len(listed) == len(set(listed)) == 4


WRONG = {
    "dockerfile-missing": (
        'dockerfile = "../../docker/None"\n',
        "projects/x/project.toml:1: dockerfile: ../../docker/None is not a file",
    ),
    "dockerfile-outside": (
        'dockerfile = "../../../Dockerfile"\n',
        "projects/x/project.toml:1: dockerfile: ../../../Dockerfile leads out of the checkout, to",
    ),
    "link-outside": (
        'context = "../../outside"\ndockerfile = "../../docker/Dockerfile.app"\n',
        "projects/x/project.toml:1: context: ../../outside leads out of the checkout, to",
    ),
    "context-missing": (
        'dockerfile = "../../docker/Dockerfile.app"\n\ncontext = "src"\n',
        "projects/x/project.toml:3: context: src is not a directory",
    ),
    "context-file": (
        'dockerfile = "../../docker/Dockerfile.app"\ncontext = "../../README.md"\n',
        "projects/x/project.toml:2: context: ../../README.md is not a directory",
    ),
    "ignorefile-missing": (
        'dockerfile = "../../docker/Dockerfile.app"\nignorefile = "x"\n',
        "projects/x/project.toml:2: ignorefile: x is not a file",
    ),
    "absolute": (
        'dockerfile = "/etc/passwd"\n',
        "projects/x/project.toml:1: dockerfile: expected a path that begins at the directory of this"
        ' file, found "/etc/passwd"',
    ),
    "contexts-outside": (
        'dockerfile = "../../docker/Dockerfile.app"\n[contexts]\nx = "../../outside"\n',
        "projects/x/project.toml:3: contexts.x: ../../outside leads out of the checkout, to",
    ),
    "contexts-no-directory": (
        'dockerfile = "../../docker/Dockerfile.app"\ncontexts.x = "./none"\n',
        "projects/x/project.toml:2: contexts.x: ./none is not a directory",
    ),
    "contexts-no-image": (
        'dockerfile = "../../docker/Dockerfile.app"\ncontexts.x = "image:ap"\n',
        "projects/x/project.toml:2: contexts.x: ap is not an image of this checkout",
    ),
    "contexts-no-reference": (
        'dockerfile = "../../docker/Dockerfile.app"\ncontexts.x = "Ubuntu"\n',
        "projects/x/project.toml:2: contexts: x: 'Ubuntu' is not an image reference",
    ),
    "contexts-url": (
        'dockerfile = "../../docker/Dockerfile.app"\ncontexts.x = "https://example.org/x.git"\n',
        "projects/x/project.toml:2: contexts: x: expected a directory",
    ),
    "contexts-name": (
        'dockerfile = "../../docker/Dockerfile.app"\ncontexts."-x" = "../x"\n',
        'projects/x/project.toml:2: contexts: "-x" cannot be the name of a context',
    ),
    "from-a-directory": (
        'dockerfile = "../../docker/Dockerfile.app"\nbuild_args.BASE = "x"\ncontexts.x = "."\n',
        "docker/Dockerfile.app:2: FROM x: the context x is a directory, and not an image",
    ),
    "no-dockerfile": ('context = "../../src"\n', "projects/x/: this project has no Dockerfile"),
    "two": (
        'dockerfile = "a"\ncontext = "b"\n',
        "2 problems in projects/x/project.toml",
    ),
    "matrix": (
        'dockerfile = "../../docker/Dockerfile.{a}"\n[matrix]\na = ["none", "no"]\n',
        "projects/x/project.toml:1: dockerfile: ../../docker/Dockerfile.none is not a file",
    ),
}


def test_the_directory_of_a_matrix_has_no_version(root: Path) -> None:
    (root / "projects/x:1").mkdir()
    (root / "projects/x:1/Dockerfile").write_text("FROM scratch\n")
    (root / "projects/x:1/project.toml").write_text('target = "0"\nmatrix.a = ["1"]\n')
    graph = open_checkout(root, {}).graph
    assert str(graph.broken["x:1"]) == (
        "projects/x:1/project.toml:2: matrix: its images are named x:VERSION, and this directory has a"
        " version already\n  next: rename the directory: git mv 'projects/x:1' projects/x"
    )


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_named_wrongly_breaks_that_project_alone(root: Path, text: str, message: str) -> None:
    (root / "outside").symlink_to(root.parent)
    (root / "projects/x").mkdir()
    (root / "projects/x/project.toml").write_text(text)
    graph = open_checkout(root, {}).graph
    assert set(graph.images) == set(IMAGES)
    assert graph.broken["x"].headline.startswith(message)


def test_a_context_written_as_in_docker_names_its_directory(root: Path) -> None:
    """Docker takes each context for a directory unless it begins with a scheme."""
    (root / "projects/x/data").mkdir(parents=True)
    (root / "projects/x/Dockerfile").write_text("FROM scratch\nCOPY --from=data / /\n")
    options = root / "projects/x/project.toml"
    options.write_text('[contexts]\ndata = "data"\n')
    assert str(open_checkout(root, {}).graph.broken["x"]) == (
        "projects/x/project.toml:2: contexts.data: data is a directory, but without ./ an image"
        ' reference\n  next: write "./data" for the directory, or "data:latest" for the image'
    )
    for right in ("./data", "data:latest"):
        options.write_text(f'[contexts]\ndata = "{right}"\n')
        assert "x" in open_checkout(root, {}).graph.images


def test_a_combination_without_its_dockerfile_breaks_that_image_alone(root: Path) -> None:
    (root / "projects/x").mkdir()
    (root / "projects/x/project.toml").write_text(
        'dockerfile = "../../docker/Dockerfile.{a}"\n[matrix]\na = ["app", "none"]\n'
    )
    graph = open_checkout(root, {}).graph
    assert set(graph.images) == {*IMAGES, "x:app"}
    assert set(graph.broken) == {"x:none"}
    assert graph.broken["x:none"].what == "dockerfile: ../../docker/Dockerfile.none is not a file"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("dockerfile", "dockerfiel", id="key"),
        pytest.param("[matrix]", "[matrix", id="syntax"),
        pytest.param("Dockerfile.app", "Dockerfile.none", id="path"),
    ],
)
def test_no_version_of_a_wrong_matrix_comes_from_a_registry(root: Path, old: str, new: str) -> None:
    edit(root / "projects/app/project.toml", old, new)
    (root / "projects/named").mkdir()
    (root / "projects/named/Dockerfile").write_text("FROM start\n")
    (root / "projects/named/project.toml").write_text('[contexts]\nstart = "image:app:13.0-py3.12"\n')
    graph = open_checkout(root, {}).graph
    # One problem has one message, also where an alias names a version.
    assert set(graph.broken) == {"app"}
    with pytest.raises(RcError) as raised:
        graph.resolve(APPS[0])
    assert raised.value is graph.broken["app"]
    assert graph.aliases == {"app:latest": "app"}
    for name in ("docs", "user:13.0", "named"):
        assert graph.images[name].bases == ("app",)
        assert graph.images[name].remote == ()


def test_a_registry_base_may_have_the_name_of_a_project(root: Path) -> None:
    (root / "projects/user/Dockerfile").write_text("ARG CUDA\nFROM base:${CUDA}\n")
    edit(root / "projects/base/project.toml", "Dockerfile.base", "Dockerfile.none")
    graph = open_checkout(root, {}).graph
    assert set(graph.broken) == {"base"}
    assert graph.images["user:13.0"].remote == ("base:13.0",)


def test_two_recipes_of_one_name(root: Path) -> None:
    (root / "projects/user:13.0/Dockerfile").write_text("FROM base\n")
    graph = open_checkout(root, {}).graph
    assert graph.broken["user:13.0"].headline == (
        "projects/user:13.0: two recipes make an image named user:13.0: projects/user/project.toml and"
        " projects/user:13.0"
    )


def test_a_thousand_images_of_twenty_matrices(tmp_path: Path) -> None:
    files = {}
    for number in range(20):
        files[f"projects/m{number}/Dockerfile"] = "ARG A\nARG B\nFROM scratch\nLABEL a=$A b=$B\n"
        axes = f"a = {[str(a) for a in range(10)]}\nb = {[str(b) for b in range(5)]}\n"
        files[f"projects/m{number}/project.toml"] = (
            f'build_args = {{ A = "{{a}}", B = "{{b}}" }}\n[matrix]\n{axes}'
        )
    root = write_checkout(tmp_path, files)
    assert len(open_checkout(root, {}).graph.images) == 1000


def test_a_deleted_value_leaves_no_broken_project(root: Path) -> None:
    (root / "projects/user:12.8/env.toml").write_text("")
    edit(root / "projects/user/project.toml", '"12.8", ', "")
    graph = open_checkout(root, {}).graph
    assert "user:12.8" not in graph.names() and not graph.broken


def test_an_alias_of_an_image_that_was_never_published(root: Path) -> None:
    shutil.rmtree(root / "projects/user:12.8")
    (root / "projects/mine").symlink_to("user:12.8")
    (root / "projects/wrong").symlink_to("user:9")
    graph = open_checkout(root, {}).graph
    assert graph.aliases["mine"] == "user:12.8"
    assert graph.broken["wrong"].what == "this alias points to user:9, which is not an image"


def test_the_context_of_two_projects_is_kept_once(root: Path) -> None:
    assert len(os.listdir(root / ".rc/contexts")) == len({"base", "app", "docs", "user"})


@pytest.mark.parametrize(
    "plan",
    [
        lambda checkout, name: move.plan(checkout, name, "x", keep_alias=False),
        lambda checkout, name: removal.plan(checkout, [name]),
    ],
)
def test_an_image_of_a_matrix_is_no_project_to_move(
    root: Path, plan: Callable[[Checkout, str], object]
) -> None:
    with pytest.raises(RcError) as raised:
        plan(open_checkout(root, {}), "user:12.8")
    assert str(raised.value) == (
        "projects/user/project.toml: user:12.8 is an image of this matrix, and has no directory of its"
        " own in git\n"
        "  next: change the axes, `exclude` or `version` there; `doit gc` removes what is left"
    )


def test_a_project_whose_files_others_use_stays(root: Path) -> None:
    (root / "projects/x").mkdir()
    (root / "projects/x/project.toml").write_text('context = "../base/files"\n')
    (root / "projects/x/Dockerfile").write_text("FROM scratch\n")
    checkout = open_checkout(root, {})
    with pytest.raises(RcError) as raised:
        move.plan(checkout, "base", "y", keep_alias=False)
    assert raised.value.headline == "projects/x/project.toml: names files in projects/base"
    with pytest.raises(RcError) as raised:
        removal.plan(checkout, ["base"])
    assert "projects/x/project.toml: files of base" in raised.value.quote


def test_gc_removes_listings_that_no_record_names(root: Path) -> None:
    kept = os.listdir(root / ".rc/contexts")
    for name, age_days in (("a" * 64, 2), ("b" * 64, 0)):
        path = root / f".rc/contexts/{name}.json"
        path.write_text("{}")
        changed_s = path.stat().st_mtime - age_days * 86_400
        os.utime(path, (changed_s, changed_s))
    collector = Collector(open_checkout(root, {}))
    collector.remove(collector.find())
    assert set(os.listdir(root / ".rc/contexts")) == {*kept, f"{'b' * 64}.json"}


def test_a_context_stands_for_an_image_of_the_checkout_or_of_a_registry(root: Path) -> None:
    (root / "projects/x").mkdir()
    (root / "projects/x/Dockerfile").write_text(
        "FROM start\nCOPY --from=tools /a /a\nCOPY --from=alpine /b /b\n"
    )
    (root / "projects/x/project.toml").write_text(
        '[contexts]\nstart = "image:app:latest"\ntools = "ghcr.io/a/tools:1"\nalpine = "image:base"\n'
    )
    node = open_checkout(root, {}).graph.images["x"]
    assert node.bases == ("app:13.0-py3.12", "base")
    assert node.remote == ("ghcr.io/a/tools:1",)


def test_a_stage_has_another_name_than_a_context(root: Path) -> None:
    (root / "projects/x").mkdir()
    (root / "projects/x/Dockerfile").write_text("FROM base AS src\nFROM src\n")
    (root / "projects/x/project.toml").write_text('contexts.src = "../../src"\n')
    assert str(open_checkout(root, {}).graph.broken["x"]) == (
        "projects/x/Dockerfile:1: stage src has the name of a context in project.toml\n"
        "  next: give one of the two another name"
    )


def test_a_file_of_a_named_context_makes_stale(root: Path) -> None:
    (root / "projects/user/project.toml").write_text(
        'build_args = { CUDA = "{cuda}" }\ncontexts.src = "../../src"\n\n[matrix]\ncuda = ["12.8"]\n'
    )
    assert reasons(root)["user:12.8"] == [
        f"src/lib{path} added" for path in ("", "/module.py", "/test.log")
    ]
    pretend_built(root)
    assert reasons(root) == {}
    (root / "src/lib/test.log").write_text("more")
    assert reasons(root) == {"user:12.8": ["src/lib/test.log changed"]}


def test_watching_sees_each_file_of_a_shared_context(root: Path) -> None:
    before = look(root, ["app:12.8-py3.10"])
    assert f"{root}/docker/Dockerfile.app.dockerignore" in before.stamps
    (root / "src/lib/module.py").write_text("x = 2\n")
    (root / "src/lib/test.log").write_text("more")
    changed = before.changed(look(root, ["app:12.8-py3.10"]))
    assert changed == [f"{root}/src/lib/module.py"]


def test_a_context_of_a_matrix_is_named_by_its_axes(root: Path) -> None:
    (root / "projects/x").mkdir()
    (root / "projects/x/Dockerfile").write_text("ARG TAG\nFROM vendor.example/torch:${TAG}\n")
    (root / "projects/x/project.toml").write_text(
        'build_args = { TAG = "{cuda}-py3" }\n'
        "[matrix]\n"
        'cuda = ["12.8", "13.0"]\n'
        "[contexts]\n"
        '"vendor.example/torch:{cuda}-py3" = "image:app:{cuda}-py3.12"\n'
    )
    images = open_checkout(root, {}).graph.images
    assert images["x:12.8"].bases == ("app:12.8-py3.12",)
    assert images["x:13.0"].bases == ("app:13.0-py3.12",)


def test_a_directory_of_dockerfiles_is_no_project(root: Path) -> None:
    for path in ("docker/Dockerfile", "Tools/Dockerfile"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("FROM debian:12\n")
    graph = open_checkout(root, {}).graph
    assert {"docker", "Tools"} <= set(graph.names())
    (root / "rc_tasks.toml").write_text("top_projects = false\n")
    graph = open_checkout(root, {}).graph
    assert set(graph.images) == set(IMAGES) and not graph.broken


def test_the_shell_completes_images_of_a_matrix(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "projects/wrong").mkdir()
    (root / "projects/wrong/project.toml").write_text("[matrix")
    monkeypatch.chdir(root)
    assert list(completions("app", tasks=False)) == ["app", *APPS, "app:latest"]
    assert list(completions("env:user:", tasks=True)) == ["env:user:12.8", "env:user:13.0"]
    assert list(completions("wr", tasks=False)) == ["wrong"]


def test_a_thousand_changed_files_are_no_line_of_output(root: Path) -> None:
    for number in range(1000):
        (root / f"docs/{number:03}.md").write_text("new\n")
    expected = (
        "docs/000.md added, docs/001.md added, docs/002.md added, docs/003.md added, docs/004.md added"
    )
    for argv in (("plan", "docs"), ("info", "podman:docs")):
        assert f"{expected} and 995 more\n" in doit(root, *argv).text
    assert len(json.loads(doit(root, "plan", "docs", "--json").text)["steps"][0]["reasons"]) == 1000


def test_images_stand_in_for_the_bases_of_a_vendor(stack: Path) -> None:
    graph = open_checkout(stack, {}).graph
    assert not graph.broken and not graph.problems
    assert {name: node.bases for name, node in graph.images.items()} == STACK_BASES
    assert {name: node.remote for name, node in graph.images.items() if node.remote} == {}
    assert graph.aliases == {"stack:latest": "stack:two"}
    assert reasons(stack) == {}


WHOLE_CHECKOUT = ("stack:one", "stack:two", "stack:three", "full", "full:deps")


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("Stack/apps/train/tests/run.sh", {*WHOLE_CHECKOUT, "app:train"}),
        ("Stack/apps/serve/settings", {*WHOLE_CHECKOUT, "app:serve"}),
        ("Stack/common/setup.sh", {*WHOLE_CHECKOUT}),
        ("requirements/base.txt", {*WHOLE_CHECKOUT, "fetch:1"}),
        ("Docker/release 1/Dockerfile.base", {*WHOLE_CHECKOUT, "lab:base-r1"}),
        ("Tools/image/Containerfile", {*WHOLE_CHECKOUT, "tools"}),
        ("Tools/image/build.log", {"tools"}),
        ("projects/standin/bin/readme", {"standin"}),
        ("templates/env.toml.j2", set()),
        ("__pycache__/dodo.cpython-311.pyc", set()),
    ],
)
def test_a_changed_file_of_the_stack_concerns_whose_context_takes_it(
    stack: Path, changed: str, stale: set[str]
) -> None:
    path = stack / changed
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n# changed\n")
    after_bases = {name for name, words in reasons(stack).items() if "is stale" not in words[0]}
    assert after_bases == stale


@pytest.mark.parametrize(
    ("name", "written", "is_same"),
    [
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04", True),
        ("docker.io/library/ubuntu", "ubuntu:latest", True),
        ("start:latest", "start", True),
        ("lab/start:1", "index.docker.io/lab/start:1", True),
        ("start:1", "start", False),
        ("lab/start:1", "start:1", False),
        ("library/start", "quay.io/library/start", False),
    ],
)
def test_a_context_stands_for_a_base_under_each_name_that_docker_gives_it(
    tmp_path: Path, name: str, written: str, is_same: bool
) -> None:
    files = {
        "projects/own/Dockerfile": "FROM scratch\n",
        "projects/x/Dockerfile": f"FROM {written}\nCOPY --from={written} /a /a\n",
        "projects/x/project.toml": f'contexts."{name}" = "image:own"\n',
    }
    node = open_checkout(write_checkout(tmp_path, files), {}).graph.images["x"]
    assert (node.bases, node.remote) == ((("own",), ()) if is_same else ((), (written,)))
