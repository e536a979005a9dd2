"""What is published is what the files say now: each input that podman does not look at by itself."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT
from tests.support.images import BUSYBOX
from tests.support.registry import ELSEWHERE, HERE, serving
from tests.support.storage import remove_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

BASE = "FROM scratch\nCOPY rootfs/ /\nENV PATH=/bin\nRUN echo base > /base\n"


@dataclass(frozen=True, slots=True)
class Site:
    """A checkout with a base, and nodes that each have a podman storage of their own."""

    root: Path
    storages: Path
    environ: Mapping[str, str]

    def write(self, name: str, text: str) -> Path:
        """Write a file of the checkout; a Dockerfile's directory is made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def doit(self, *argv: str, node: str = "a", status: int = 0, **more: str) -> str:
        """The output of `doit argv…`, whose steps run on a node."""
        done = subprocess.run(
            (DOIT, *argv),
            cwd=self.root,
            env={**os.environ, **self.environ, "RC_PODMAN_STORAGE": str(self.storages / node), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status and "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def read(self, name: str, path: str) -> str | None:
        """A file in a published image; None when it has none."""
        argv = ("unsquashfs", "-cat", str(self.root / "projects" / name / "image.sqsh"), path)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def states(self) -> dict[str, str]:
        """Each image that is not fresh, with the first reason."""
        listed = json.loads(self.doit("list", "--json"))
        return {image["name"]: image["reasons"][0] for image in listed if image["state"] != "fresh"}

    def log(self, name: str) -> str:
        """The newest log of an image's podman step."""
        return max((self.root / ".rc/logs" / name / "podman").iterdir()).read_text()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A checkout with a base; two nodes."""
    if os.geteuid() != 0:
        pytest.skip("several storages side by side need root")
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox")
    root = write_checkout(tmp_path / "imgs", {"projects/b/Dockerfile": BASE})
    programs = root / "projects/b/rootfs/bin"
    programs.mkdir(parents=True)
    (programs / "busybox").write_bytes(BUSYBOX.read_bytes())
    (programs / "busybox").chmod(0o755)
    for applet in ("sh", "cat", "ls", "sleep", "cp", "mkdir"):
        (programs / applet).symlink_to("busybox")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as storages:
        environ = {"RC_RUNNER": "local", "RC_PODMAN_DRIVER": "overlay"}
        yield Site(root, Path(storages), environ)
        for storage in Path(storages).iterdir():
            remove_storage(storage)


def test_files_that_a_run_mounts(site: Site) -> None:
    site.write("projects/b2/Dockerfile", "FROM b\nRUN echo 1 > /two\n")
    site.write(
        "projects/m/Dockerfile",
        "FROM b\n"
        "RUN --mount=type=bind,source=f,target=/m cat /m > /file\n"
        "RUN --mount=type=bind,target=/m ls -A /m > /all && cat /m/f >> /all\n"
        "RUN --mount=type=bind,from=b2,target=/m cat /m/two > /image\n",
    )
    site.write("projects/m/.containerignore", "left-out\n")
    site.write("projects/m/left-out", "x")
    for round_, (path, text) in enumerate(
        (
            ("m/f", "one\n"),
            ("m/f", "two\n"),
            ("b2/Dockerfile", "FROM b\nRUN echo 9 > /two\n"),
        )
    ):
        site.write(f"projects/{path}", text)
        site.doit("build:m")
        here = site.root / "projects/m"
        assert site.read("m", "file") == (here / "f").read_text()
        # The image that was published before is no part of the build context.
        assert site.read("m", "all") == f".containerignore\nDockerfile\nf\n{(here / 'f').read_text()}"
        assert site.read("m", "image") == ("9\n" if round_ == 2 else "1\n")
        assert not site.states()
    # Nothing that was put into the Dockerfile is shown, and unchanged instructions come from the cache.
    log = site.log("m")
    assert "STEP 2/5: RUN --mount=type=bind,source=f,target=/m cat /m > /file" in log
    assert "STEP 1/5: FROM b\n" in log and "reads-" not in log
    # An empty node answers from the cache that the store keeps.
    site.doit("-a", "podman:m", node="b")
    assert site.log("m").count("Using cache") == 4


def test_a_stage_that_a_run_mounts(site: Site) -> None:
    """podman 4.3 shows an earlier state of a stage that comes whole from the cache, and misreads 0."""
    site.write(
        "projects/m/Dockerfile",
        "FROM b\nRUN echo one > /one\nRUN echo two > /two\n"
        "FROM b\nCOPY f /f\nRUN --mount=type=bind,from=0,target=/m ls /m > /all\n",
    )
    for text in ("1", "2"):
        site.write("projects/m/f", text)
        site.doit("build:m")
        listed = site.read("m", "all")
        assert listed is not None and {"one", "two"} <= set(listed.split())
    assert "RUN --mount=type=bind,from=0,target=/m ls /m > /all" in site.log("m")
    assert "Using cache" in site.log("m")


def test_a_mount_of_a_file_that_is_left_out_is_refused(site: Site) -> None:
    site.write(
        "projects/m/Dockerfile", "FROM b\nRUN --mount=type=bind,source=f,target=/m cat /m > /out\n"
    )
    site.write("projects/m/f", "x")
    site.write("projects/m/.dockerignore", "f\n")
    assert (
        "projects/m/Dockerfile:2: RUN --mount reads f, which the build context leaves out\n"
        in site.doit("build:m", status=1)
    )


def test_values_of_arguments(site: Site) -> None:
    dockerfile = "ARG G=1\nFROM b\nARG G\nARG D=1\nARG P\nENV G=$G D=$D P=$P\nCOPY f /$D/\nWORKDIR /$P\n"
    site.write("projects/v/f", "x")
    site.write("projects/v/Dockerfile", dockerfile)
    for values in ("111", "211", "221", "222", "111"):
        g, d, p = values
        text = dockerfile.replace("ARG G=1", f"ARG G={g}").replace("ARG D=1", f"ARG D={d}")
        site.write("projects/v/Dockerfile", text)
        site.write("projects/v/project.toml", f'[build_args]\nP = "{p}"\n')
        site.doit("build:v")
        environment = site.read("v", "etc/environment")
        assert environment is not None
        assert {f"G={g}", f"D={d}", f"P={p}"} <= set(environment.split("\n"))
        assert site.read("v", f"{d}/f") == "x"
        assert json.loads(site.doit("list", "--json", "v"))[0]["state"] == "fresh"
    assert "${rc_" not in site.log("v")


def test_a_stage_hides_the_image_of_its_name(site: Site) -> None:
    site.write(
        "projects/s/Dockerfile",
        "FROM b AS b\nRUN echo changed > /f\n"
        "FROM b\nRUN echo end > /end\nCOPY --from=b /f /copied\n"
        "RUN --mount=type=bind,from=b,target=/m cat /m/f > /mounted\n",
    )
    site.doit("build:s")
    assert {site.read("s", path) for path in ("f", "copied", "mounted")} == {"changed\n"}


def test_a_base_named_by_a_variable_is_the_recorded_one(site: Site) -> None:
    site.write("projects/b:2/Dockerfile", "FROM b\nRUN echo two > /base\n")
    site.write(
        "projects/v/Dockerfile",
        "ARG TAG=2\nARG INNER=first\nFROM b:${TAG} AS first\nFROM ${INNER}\nRUN echo 2\n",
    )
    site.doit("build:v")
    assert site.read("v", "base") == "two\n"
    # On another node its tag stands for something else, and on an empty one for nothing.
    site.doit("podman:b", node="b", status=0)
    podman = ("podman", "--root", f"{site.storages}/b/root", "--runroot", f"{site.storages}/b/run")
    site.doit("-a", "podman:b", node="b")
    subprocess.run((*podman, "tag", "localhost/b", "localhost/b:2"), check=True)
    for node in ("b", "c"):
        site.write(
            "projects/v/Dockerfile",
            (site.root / "projects/v/Dockerfile").read_text() + f"RUN echo {node}\n",
        )
        site.doit("build:v", node=node)
        assert site.read("v", "base") == "two\n"


@pytest.mark.parametrize("what", ["file", "new"])
def test_a_tree_that_changes_and_changes_back(site: Site, what: str) -> None:
    site.write("projects/t/Dockerfile", "FROM b\nRUN echo started; sleep 3\nCOPY . /copied/\n")
    file = site.write("projects/t/f", "main\n")
    subprocess.run(
        "git init -q && git add -A && git -c user.name=t -c user.email=t@localhost commit -qm v1",
        shell=True,
        cwd=site.root,
        check=True,
    )
    changed = file if what == "file" else file.with_name("other")

    def change() -> None:
        while "started" not in "".join(
            log.read_text() for log in (site.root / ".rc/logs/t/podman").glob("*.log")
        ):
            time.sleep(0.05)
        changed.write_text("branch\n")

    (site.root / ".rc/logs/t/podman").mkdir(parents=True)
    thread = threading.Thread(target=change)
    thread.start()
    site.doit("podman:t")
    thread.join()
    if what == "file":
        file.write_text("main\n")
    else:
        changed.unlink()
    record = open_checkout(site.root, {}).records.get(Step.PODMAN, "t")
    assert record is not None and record.dirty
    causes = Judge(open_checkout(site.root, {})).step(Step.PODMAN, "t").causes
    words = {
        "file": "f changed during the last build",
        "new": "the directory changed during the last build",
    }
    assert words[what] in {cause.words for cause in causes}
    site.doit("build:t")
    assert site.read("t", "copied/f") == "main\n" and site.read("t", "copied/other") is None
    assert "t" not in site.states()


def test_a_base_for_another_machine_is_refused_and_not_pinned(site: Site, tmp_path: Path) -> None:
    require_tools("docker-registry")
    with serving(tmp_path / "registry") as registry:
        registry.image("far", "1", "x", machine=ELSEWHERE)
        site.write("projects/f/Dockerfile", f"FROM {registry}/far:1\nCOPY x /x\n")
        site.write("projects/f/x", "x")
        site.write("projects/c/Dockerfile", f"FROM b\nCOPY --from={registry}/far:1 /text /text\n")
        for name, more in (("f", ""), ("c", " AS STAGE, and take the files from that stage")):
            text = site.doit(f"build:{name}", status=1, **registry.environ(tmp_path))
            line = 1 if name == "f" else 2
            assert (
                f"projects/{name}/Dockerfile:{line}: {registry}/far:1 is an image for {ELSEWHERE},"
                f" and this node is {HERE}\n"
            ) in text
            assert f"write FROM --platform=linux/{ELSEWHERE} {registry}/far:1{more}\n" in text
        assert not (site.root / "bases.lock").exists()
        site.write(
            "projects/f/Dockerfile", f"FROM --platform=linux/{ELSEWHERE} {registry}/far:1\nCOPY x /x\n"
        )
        site.doit("build:f", **registry.environ(tmp_path))
        assert site.read("f", "text") == "x"


def test_triggers_of_a_base(site: Site) -> None:
    own = (
        "FROM b\nONBUILD ARG V\nONBUILD ENV X=$V\n"
        "ONBUILD RUN --mount=type=bind,source=f,target=/m cat /m > /file\n"
    )
    site.write("projects/on/Dockerfile", own)
    site.write("projects/child/Dockerfile", "FROM on\n")
    for file, value in (("one", "1"), ("two", "1"), ("two", "2")):
        site.write("projects/child/f", file)
        site.write("projects/child/project.toml", f'[build_args]\nV = "{value}"\n')
        site.doit("build:child")
        environment = site.read("child", "etc/environment")
        assert environment is not None and f"X={value}\n" in environment
        assert site.read("child", "file") == file
    # podman would take the project of that name, or what else has the name on the node.
    site.write("projects/on/Dockerfile", f"{own}ONBUILD COPY --from=tools /two /two\n")
    site.write("projects/child/Dockerfile", "FROM b AS tools\nRUN echo stage > /two\nFROM on\n")
    assert (
        "projects/child/Dockerfile:3: on has the trigger ONBUILD COPY --from=tools /two /two:"
        " which image that names depends on the node\n"
    ) in site.doit("build:child", status=1)


def test_after_an_upgrade_only_what_may_be_wrong_is_stale(site: Site) -> None:
    site.write("projects/plain/Dockerfile", "FROM b\nARG V=1\nRUN echo $V > /v\n")
    site.write("projects/mount/Dockerfile", "FROM b\nRUN --mount=target=/m ls /m > /v\n")
    site.write("projects/arg/Dockerfile", "FROM b\nARG V=1\nENV V=$V\n")
    site.write("projects/shadow/Dockerfile", "FROM b AS b\nRUN echo x > /x\nFROM b\n")
    site.doit()
    older = {"mount": "4.3.1", "arg": "5.8.4", "shadow": "5.8.4", "plain": "4.3.1"}
    for name, version in older.items():
        path = site.root / f".rc/state/podman:{name}.json"
        record = json.loads(path.read_text())
        record["inputs"] = {k: v for k, v in record["inputs"].items() if not k.startswith("cache/")}
        record["tools"]["podman"] = version
        path.write_text(json.dumps(record))
    assert site.states() == {
        "mount": "podman's cache may have used older files for RUN --mount",
        "arg": "podman's cache may have used an older value of ARG",
        "shadow": "podman may have used the image of the same name instead of a stage",
    }
    path = site.root / ".rc/state/podman:mount.json"
    path.write_text(path.read_text().replace('"4.3.1"', '"5.4.2"'))
    assert "mount" not in site.states()
    site.doit()
    assert not site.states()


def test_the_step_by_hand_refuses_a_dockerfile_that_changed_just_now(site: Site) -> None:
    """The graph was read before, so that bases and stages may be others."""
    site.write("projects/x/Dockerfile", "FROM b\n")
    site.doit("podman:b")
    script = (
        "from pathlib import Path\nfrom rc_tasks.state.checkout import open_checkout\n"
        "from rc_tasks.steps.podman.build import build\nimport os\n"
        "checkout = open_checkout(Path.cwd())\n"
        "Path('projects/x/Dockerfile').write_text('FROM b AS one\\nFROM one\\n')\n"
        "build(checkout, checkout.graph.images['x'])\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", script),
        cwd=site.root,
        env={**os.environ, **site.environ, "RC_PODMAN_STORAGE": str(site.storages / "a")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "projects/x/Dockerfile: the Dockerfile was changed while this build began" in done.stderr
