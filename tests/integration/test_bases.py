"""Pinned registry bases, with a registry whose tags move and go."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rc_tasks.model.graph.pin import LOCK, Pin
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from rc_tasks.tools.podman import Podman
from tests.integration.test_cache import path_without
from tests.support.checkouts import write_checkout
from tests.support.doit import Ran, doit
from tests.support.registry import PASSWORD, USER, Registry, serving
from tests.support.storage import remove_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman


@dataclass(frozen=True, slots=True)
class Site:
    """A registry, and nodes `a`, `b`, … that each have a podman storage of their own."""

    registry: Registry
    directory: Path
    storages: Path
    environ: dict[str, str]

    def checkout(self, name: str, **dockerfiles: str) -> Path:
        """A checkout with these projects; HOST stands for the registry."""
        files = {
            f"projects/{project}:1/Dockerfile": text.replace("HOST", self.registry.address)
            for project, text in dockerfiles.items()
        }
        return write_checkout(self.directory / name, files)

    def step(self, root: Path, name: str, *, node: str = "a", status: int = 0, **more: str) -> str:
        """The log of the podman step of an image on a node."""
        done = subprocess.run(
            (sys.executable, "-m", "rc_tasks.steps", "podman", name),
            cwd=root,
            env={**os.environ, **self.environ, "RC_PODMAN_STORAGE": str(self.storages / node), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status and "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def text(self, root: Path, name: str, *, node: str = "a") -> str:
        """What stands in the base that an image was built on."""
        found = open_checkout(root, {}).records.get(Step.PODMAN, name)
        assert found is not None and found.facts is not None
        storage = self.storages / node
        engine = Podman(str(storage / "root"), str(storage / "run"), "overlay")
        with engine.mounted(found.facts.image_id, name="looked-at") as mounted:
            return (mounted / "text").read_text()

    def doit(self, root: Path, *argv: str, **more: str) -> Ran:
        """`doit argv…` in a checkout."""
        return doit(root, *argv, environ={**self.environ, **more})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An empty registry and nodes."""
    if os.geteuid() != 0:
        pytest.skip("several storages side by side need root")
    require_tools("podman", "skopeo", "docker-registry", "busybox")
    with (
        serving(tmp_path / "registry") as registry,
        tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as storages,
    ):
        environ = {**registry.environ(tmp_path), "RC_PODMAN_DRIVER": "overlay"}
        yield Site(registry, tmp_path, Path(storages), environ)
        for storage in Path(storages).iterdir():
            remove_storage(storage)


def pin(root: Path, reference: str) -> Pin:
    """The pin of a base."""
    return open_checkout(root, {}).pins.read()[reference]


def stale(root: Path) -> dict[str, str]:
    """The images whose podman step would run, each with the first reason."""
    judge = Judge(open_checkout(root, {}))
    found = {name: judge.step(Step.PODMAN, name).causes for name in open_checkout(root, {}).graph.images}
    return {name: causes[0].words for name, causes in found.items() if causes}


APP = "FROM HOST/multi:1\nRUN echo app > /app\n"


def test_builds_take_the_pin_until_it_is_moved(site: Site) -> None:
    registry, base = site.registry, f"{site.registry}/multi:1"
    first = registry.index("multi", "1", "one")
    root = site.checkout("it's ours", app=APP, other="FROM HOST/other:1\nRUN true\n")
    registry.image("other", "1", "other")
    log = site.step(root, "app:1")
    assert f"{base} is pinned to {first} in {LOCK}" in log
    assert pin(root, base).digest == first, "the index, which serves every machine"
    site.step(root, "other:1")
    text = (root / LOCK).read_text()
    assert [line for line in text.splitlines() if line.startswith("[")] == [
        f'["{base}"]',
        f'["{registry}/other:1"]',
    ]
    assert stale(root) == {}
    assert site.doit(root, "bases", "--check").status == 0

    second = registry.index("multi", "1", "two")
    ran = site.doit(root, "bases", "--check")
    assert ran.status == 1 and f"moved to {second[7:19]}" in ran.text, ran.text
    assert stale(root) == {} and (root / LOCK).read_text() == text
    for path in (root / ".rc/store").rglob("references/*/*.json"):
        path.unlink()
    (root / "projects/app:1/Dockerfile").write_text(f"FROM {base}\nRUN echo new > /app\n")
    assert f"Trying to pull {registry}/multi@{first}" in site.step(root, "app:1", node="b")
    assert site.text(root, "app:1", node="b") == "one", "the tag has moved, the pin has not"

    ran = site.doit(root, "bases", "--update", "app:1")
    assert ran.status == 0 and f"{base}  {first[7:19]} → {second[7:19]}\n" in ran.text, ran.text
    assert "stale now: app:1\n" in ran.text
    assert stale(root) == {"app:1": f"base image {base} was pinned to another digest"}
    assert f"Trying to pull {registry}/multi@{second}" in site.step(root, "app:1", node="b")
    assert site.text(root, "app:1", node="b") == "two"
    assert stale(root) == {}

    # What is in the store is what the pin says: only for another pin a node needs the registry.
    registry.stop()
    assert "Trying to pull" not in site.step(root, "app:1", node="c")
    moved = (root / LOCK).read_text()
    (root / LOCK).write_text(moved.replace(f'digest = "{second}"', f'digest = "{first}"'))
    log = site.step(root, "app:1", node="d", status=1)
    assert f" pull {registry}/multi@{first}" in log and f"doit bases --update {base}" in log
    found = json.loads(site.doit(root, "bases", "--json").text)
    assert [each["images"] for each in found] == [["app:1"], ["other:1"]]


def test_a_moved_pin_stops_at_a_frozen_image(site: Site) -> None:
    site.registry.index("frozen", "1", "one")
    base = f"{site.registry}/frozen:1"
    on_base = f"FROM {base}\nRUN true\n"
    root = site.checkout("frozen", app=on_base, plain=on_base, top="FROM app:1\nRUN true\n")
    for name in ("app:1", "plain:1", "top:1"):
        site.step(root, name)
    (root / "projects/app:1/project.toml").write_text("frozen = true\n")
    site.registry.index("frozen", "1", "two")
    ran = site.doit(root, "bases", "--update")
    assert ran.status == 0 and "stale now: plain:1\n" in ran.text, ran.text
    assert stale(root) == {"plain:1": f"base image {base} was pinned to another digest"}


def test_a_whole_build_records_the_digest(site: Site) -> None:
    digest = site.registry.index("multi", "1", "one")
    root = site.checkout(
        "imgs",
        app=f"FROM HOST/unneeded:1 AS unneeded\nFROM HOST/multi:1@{digest} AS own\n"
        "FROM HOST/multi:1\nCOPY --from=own /text /own\n",
    )
    ran = site.doit(root, RC_PODMAN_STORAGE=str(site.storages / "a"))
    assert ran.status == 0, ran.text
    found = json.loads((root / "projects/app:1/image.json").read_text())
    host = site.registry.address
    assert found["bases"] == {
        f"{host}/multi:1": digest,
        f"{host}/multi:1@{digest}": digest,
        f"{host}/unneeded:1": None,
    }
    assert found["inputs"][f"pin/{host}/multi:1"] == digest
    assert [*open_checkout(root, {}).pins.read()] == [f"{host}/multi:1"]
    again = site.doit(root, RC_PODMAN_STORAGE=str(site.storages / "a"))
    assert again.started == [], again.text


def test_without_skopeo_on_the_node_a_base_is_pinned_all_the_same(site: Site) -> None:
    index = site.registry.index("multi", "1", "one")
    # The same image by its own manifest: podman mixes up the digests of the two.
    alone = site.registry.image("alone", "1", "one")
    root = site.checkout("imgs", app="FROM HOST/multi:1\nCOPY --from=HOST/alone:1 /text /two\n")
    path = path_without("skopeo", site.directory / "bin")
    site.step(root, "app:1", PATH=path)
    assert pin(root, f"{site.registry}/multi:1").digest == index
    assert pin(root, f"{site.registry}/alone:1").digest == alone


def test_a_short_name_is_pinned_to_what_podman_made_of_it(site: Site) -> None:
    digest = site.registry.index("multi", "1", "one")
    conf = Path(site.environ["CONTAINERS_REGISTRIES_CONF"])
    conf.write_text(f'unqualified-search-registries = ["{site.registry}"]\n{conf.read_text()}')
    root = site.checkout("imgs", app="FROM multi:1\nRUN true\n")
    site.step(root, "app:1")
    found = pin(root, "multi:1")
    assert (found.digest, found.name) == (digest, f"{site.registry}/multi:1")
    assert site.doit(root, "bases", "--check").status == 0
    (root / ".rc/store").rename(root / "lost")
    assert f"Trying to pull {site.registry}/multi@{digest}" in site.step(root, "app:1", node="b")


@pytest.mark.parametrize("answers", [True, False], ids=["registry", "no registry"])
def test_what_a_node_has_of_a_tag_that_moved(site: Site, answers: bool) -> None:
    conf = Path(site.environ["CONTAINERS_REGISTRIES_CONF"])
    conf.write_text(f'unqualified-search-registries = ["{site.registry}"]\n{conf.read_text()}')
    digests = {"one": site.registry.index("multi", "1", "one")}
    storage = site.storages / "a"
    has = Podman(str(storage / "root"), str(storage / "run"), "overlay").command("pull", "multi:1")
    subprocess.run(has.argv, env={**os.environ, **site.environ}, check=True, capture_output=True)
    digests["two"] = site.registry.index("multi", "1", "two")
    if not answers:
        site.registry.stop()
    root = site.checkout("imgs", app="FROM multi:1\nRUN true\n")
    log = site.step(root, "app:1")
    assert ("no registry has multi:1: the image on this node is used" in log) is not answers
    text = site.text(root, "app:1")
    assert text == ("two" if answers else "one")
    assert pin(root, "multi:1").digest == digests[text]


def test_two_bases_with_one_digest_are_moved_apart(site: Site) -> None:
    registry = site.registry
    digest = registry.image("base", "1", "one")
    assert registry.image("base", "one", "one") == digest
    root = site.checkout(
        "imgs", app="FROM HOST/base:1\nRUN true\n", more="FROM HOST/base:one\nRUN true\n"
    )
    for name in ("app:1", "more:1"):
        site.step(root, name)
    assert {found.digest for found in open_checkout(root, {}).pins.read().values()} == {digest}
    registry.image("base", "1", "two")
    ran = site.doit(root, "bases", "--update")
    assert f"{registry}/base:one  {digest[7:19]}, as before\n" in ran.text, ran.text
    assert [*stale(root)] == ["app:1"]


def test_each_registry_that_does_not_answer_is_told_and_the_others_are_asked(
    site: Site, tmp_path: Path
) -> None:
    registry = site.registry
    good, gone = registry.image("good", "1", "one"), registry.image("gone", "1", "gone")
    with serving(tmp_path / "private", password=True) as private:
        private.image("base", "1", "secret")
        root = site.checkout(
            "imgs",
            a="FROM HOST/good:1\n",
            b="FROM HOST/gone:1\n",
            c=f"FROM {private}/base:1\n",
            d="FROM 127.0.0.1:1/nobody:1\n",
        )
        pins = {"good": good, "gone": gone}
        open_checkout(root, {}).pins.move(
            {f"{registry}/{name}:1": Pin(each) for name, each in pins.items()}
        )
        registry.delete("gone", gone)
        moved = registry.image("good", "1", "two")
        conf = tmp_path / "both.conf"
        insecure = "[[registry]]\nlocation = '{}'\ninsecure = true\n"
        conf.write_text("".join(map(insecure.format, (registry, private, "127.0.0.1:1"))))
        before = (root / LOCK).read_text()
        more = {"CONTAINERS_REGISTRIES_CONF": str(conf), "REGISTRY_AUTH_FILE": str(tmp_path / "auth")}
        ran = site.doit(root, "bases", "--check", **more)
        assert ran.status == 1, ran.text
        for words in (
            f"{registry}/gone:1: the registry has no such image",
            f"{private}/base:1: the registry wants other credentials",
            f"`podman login {private}`",
            "127.0.0.1:1/nobody:1: the registry cannot be reached",
            f"moved to {moved[7:19]}",
        ):
            assert words in ran.text, ran.text
        assert ran.text.count("no answer") == 3 and (root / LOCK).read_text() == before
        ran = site.doit(root, "bases", "--check", "--json", "b:1", "c:1", **more)
        assert ran.status == 2, ran.text
        log = site.step(root, "c:1", status=1, **more)
        assert "podman login" in log
        login = ("podman", "login", "--tls-verify=false", f"-u{USER}", f"-p{PASSWORD}", str(private))
        subprocess.run(login, check=True, capture_output=True, env={**os.environ, **more})
        ran = site.doit(root, "bases", "--update", **more)
        assert ran.status == 2 and f"{registry}/gone:1  no answer: the pin stays" in ran.text, ran.text
        found = open_checkout(root, {}).pins.read()
        assert found[f"{registry}/good:1"].digest == moved and f"{private}/base:1" in found
        assert found[f"{registry}/gone:1"] == Pin(gone)
        site.step(root, "c:1", **more)
        ran = site.doit(root, "doctor", **more, RC_PODMAN_STORAGE=str(site.storages / "a"))
        assert f"credentials for {private}\n" in ran.text, ran.text


def test_a_clone_agrees_with_its_own_pins(site: Site) -> None:
    base = f"{site.registry}/multi:1"
    first = site.registry.index("multi", "1", "one")
    official = site.checkout("official", app=APP)
    storage = {"RC_PODMAN_STORAGE": str(site.storages / "a")}
    assert site.doit(official, **storage).status == 0
    second = site.registry.index("multi", "1", "two")
    theirs = {"RC_IMAGES_ROOT": str(official), **storage}

    clone = site.checkout("clone", app=APP, mine="FROM HOST/multi:1\nRUN echo mine > /mine\n")
    assert "can be adopted" in site.doit(clone, "list", **theirs).text
    site.step(clone, "mine:1", node="b", RC_IMAGES_ROOT=str(official))
    assert pin(clone, base).digest == first, "what the official images stand on, not the tag"

    open_checkout(clone, {}).pins.move({base: Pin(second)})
    ran = site.doit(clone, "why", "app:1", **theirs)
    assert "not adopted" in ran.text and f"base image {base} was pinned to another digest" in ran.text
    site.step(clone, "mine:1", node="b", RC_IMAGES_ROOT=str(official))
    assert site.text(clone, "mine:1", node="b") == "two"


def test_an_image_that_was_built_on_the_node_is_no_registry_base(site: Site) -> None:
    conf = Path(site.environ["CONTAINERS_REGISTRIES_CONF"])
    conf.write_text(f'unqualified-search-registries = ["{site.registry}"]\n{conf.read_text()}')
    site.registry.image("start", "1", "built here")
    digest = site.registry.index("gone", "1", "of the registry")
    root = site.checkout("imgs", gone="FROM HOST/start:1\nRUN true\n", app="FROM gone:1\nRUN true\n")
    site.step(root, "gone:1")
    # As a value that is removed from a matrix: it is no image of this checkout any more.
    (root / "projects/gone:1/Dockerfile").unlink()
    (root / "projects/gone:1").rmdir()
    log = site.step(root, "app:1", status=1)
    assert "projects/app:1/Dockerfile:1: gone:1 is not an image of this checkout, and podman" in log
    assert "gone:1" not in open_checkout(root, {}).pins.read()
    # A node that never built it takes that of the registry.
    site.step(root, "app:1", node="b")
    assert site.text(root, "app:1", node="b") == "of the registry"
    assert pin(root, "gone:1").digest == digest
    # By its pin, also the first one.
    site.step(root, "app:1")
    assert site.text(root, "app:1") == "of the registry"
