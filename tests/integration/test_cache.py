"""What travels between nodes: an empty node resumes at the first changed instruction."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rc_tasks.squashfs.superblock import SUPERBLOCK_BYTES
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.records.records import Step
from rc_tasks.state.store.loading import load_images
from rc_tasks.tools import command, podman
from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout
from tests.support.images import BUSYBOX
from tests.support.storage import remove_storage
from tests.support.tools import require_tools
from tests.support.users import ordinary_user, python

pytestmark = [
    pytest.mark.podman,
    pytest.mark.skipif(os.geteuid() != 0, reason="several storages side by side need root"),
]

BASE = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
# Three stages, one of which nothing is made of; instructions with and without a layer.
CHILD = """\
FROM base AS tools
RUN echo tool > /tool
ENV TOOL=1
FROM base AS unused
RUN exit 1
FROM localhost/base
ARG WHAT=this
WORKDIR /work
COPY --from=tools /tool /
RUN --mount=type=bind,from=tools,target=/mnt cat /mnt/tool > /copied
COPY data /data
RUN echo {last} > /last
"""
# What podman prints of the instructions above, each with an image.
INSTRUCTIONS = 8
# Below them are our labels, in one.
LABELS = 1


@dataclass(frozen=True, slots=True)
class Node:
    """A node with a podman storage of its own."""

    root: Path
    podman: Podman

    def step(self, name: str, *, status: int = 0, **variables: str) -> str:
        """Run the podman step here; returns its log."""
        done = subprocess.run(
            (sys.executable, "-m", "rc_tasks.steps", "podman", name),
            cwd=self.root,
            env={**os.environ, **self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stdout, done.stdout
        assert done.returncode == status, done.stdout
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RC_PODMAN_STORAGE": str(Path(self.podman.root).parent),
            "RC_PODMAN_DRIVER": self.podman.driver,
            "RC_RUNNER": "local",
        }


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where the storages are: podman wants a short path."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as name:
        yield Path(name)


def node(root: Path, directory: Path, name: str) -> Node:
    return Node(root, Podman(f"{directory}/{name}/root", f"{directory}/{name}/run", "overlay"))


@pytest.fixture(scope="module")
def built(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `base` and `child:1` were built, on a node that is gone."""
    require_tools("podman", "skopeo", "busybox")
    root = write_checkout(
        tmp_path_factory.mktemp("cache") / "imgs",
        {
            "base/Dockerfile": BASE,
            "projects/child:1/Dockerfile": CHILD.format(last="first"),
            "projects/child:1/data/file": "x\n",
        },
    )
    shutil.copy(BUSYBOX, root / "base/busybox")
    one = node(root, directory, "first")
    one.step("base", BUILDAH_ISOLATION="chroot")
    one.step("child:1", BUILDAH_ISOLATION="chroot")
    remove_storage(directory / "first")
    return root


@pytest.fixture
def nodes(built: Path, directory: Path, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two empty nodes of a copy of that checkout."""
    root = tmp_path / "it's a checkout"
    shutil.copytree(built, root, symlinks=True)
    yield node(root, directory, "a"), node(root, directory, "b")
    for name in "ab":
        remove_storage(directory / name)


def write_child(node: Node, text: str) -> None:
    (node.root / "projects/child:1/Dockerfile").write_text(text)


def _images(log: str) -> list[tuple[str, str]]:
    """Each image that podman printed, as it did first: whether from the cache, and the ID.

    A stage that a RUN mounts is built first by itself, and is in the cache when its turn comes again.
    """
    found: dict[str, tuple[str, str]] = {}
    for answered, image in re.findall(r"^--> (Using cache )?([0-9a-f]{11,64})$", log, re.M):
        found.setdefault(image[:11], (answered, image))
    return list(found.values())


def cached(log: str) -> list[str]:
    return [image for answered, image in _images(log) if answered]


def ran(log: str) -> int:
    """How many instructions were not answered from cache."""
    return sum(not answered for answered, _ in _images(log))


def image_id(node: Node, name: str) -> str:
    record = open_checkout(node.root, {}).records.get(Step.PODMAN, name)
    assert record is not None and record.facts is not None
    return record.facts.image_id


def test_an_empty_node_resumes_at_the_changed_instruction(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    here = cached(one.step("child:1"))
    write_child(one, CHILD.format(last="second"))
    log = other.step("child:1")
    assert "RUN exit 1" not in log, "podman passes over what nothing is made of"
    assert (cached(log), ran(log)) == (here[: INSTRUCTIONS - 1], 1 + LABELS), log
    assert "loading base" in log


def test_another_version_of_podman_is_told_of_what_it_does_not_share(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    for name in ("base", "child:1"):
        record = one.root / f".rc/state/podman:{name}.json"
        record.write_text(record.read_text().replace(f'"{podman.version()}"', '"99.1.0"'))
    note = f"note: podman 99.1.0 built this image before, and podman {podman.version()} builds it now:\n"
    assert note in one.step("base")
    assert note not in one.step("base")
    write_child(one, "FROM base\nRUN true\n")
    assert note not in one.step("child:1"), "it has no COPY"


def test_what_a_failed_build_made_travels_too(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    longer = CHILD.format(last="more") + "RUN echo yet more > /more\n"
    write_child(one, longer + "RUN echo no luck; exit 3\n")
    assert "no luck" in one.step("child:1", status=1)
    write_child(one, longer + "RUN echo luck > /luck\n")
    log = other.step("child:1")
    assert (len(cached(log)), ran(log)) == (INSTRUCTIONS + 1, 1 + LABELS), log


def test_what_cannot_be_of_use_is_not_brought(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    before = open_checkout(one.root, {}).store.catalogue.cache("child:1")
    write_child(one, CHILD.format(last="first").replace("WORKDIR /work", "WORKDIR /elsewhere"))
    log = other.step("child:1")
    # The stage `tools` as it is, and of the last one no more than ARG.
    assert len(cached(log)) == 3, log
    held = other.podman.held(image.image_id for image in before)
    assert set(held) == set(cached(log))


def test_a_base_with_onbuild_makes_no_difference(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    (one.root / "base/Dockerfile").write_text(BASE + "ONBUILD RUN echo on build > /on_build\n")
    one.step("base")
    write_child(one, "FROM base\nRUN echo one > /one\nRUN echo two > /two\n")
    one.step("child:1")
    write_child(one, "FROM base\nRUN echo one > /one\nRUN echo changed > /two\n")
    log = other.step("child:1")
    assert (len(cached(log)), ran(log)) == (2, 1 + LABELS), log


def half_write(podman: Podman, image: str) -> None:
    """Leave of an image what a podman leaves that is killed before it writes the manifest."""
    images = Path(podman.root) / "overlay-images"
    listed = json.loads((images / "images.json").read_text())
    (found,) = [each for each in listed if each["id"] == image]
    for key in ("big-data-names", "big-data-sizes", "big-data-digests"):
        found.pop(key, None)
    (images / "images.json").write_text(json.dumps(listed))
    for path in (images / image).iterdir():
        path.unlink()


def test_a_half_written_image_is_mended_and_told(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    victims = cached(one.step("child:1"))[2:4]
    for victim in victims:
        half_write(one.podman, victim)
    assert command.capture(one.podman.command("images", "--all"), check=False).returncode != 0
    write_child(one, CHILD.format(last="second"))
    log = one.step("child:1")
    for victim in victims:
        assert f"removing image {victim[:12]}, which a killed podman left half-written" in log
    # Brought from the store again, so that nothing had to be done twice.
    assert (len(cached(log)), ran(log)) == (INSTRUCTIONS - 1, 1 + LABELS), log
    listed = command.capture(one.podman.command("images", "--all", "--quiet", "--no-trunc")).stdout
    assert f"sha256:{image_id(one, 'child:1')}" in listed.split()
    assert "half-written" not in one.step("child:1")


def test_a_half_written_image_of_the_checkout_is_brought_again(nodes: tuple[Node, Node]) -> None:
    one, _ = nodes
    one.step("child:1")
    half_write(one.podman, image_id(one, "base"))
    log = one.step("child:1")
    assert "half-written" in log and "loading base" in log
    assert ran(log) == 0, log


def test_reading_from_the_store_mends_a_half_written_image_by_itself(
    nodes: tuple[Node, Node],
) -> None:
    """As when podman was killed while it read: other steps than a build do not look for such images."""
    one, _ = nodes
    store = open_checkout(one.root, {}).store
    base = image_id(one, "base")
    assert load_images(store, one.podman, base) == ()
    half_write(one.podman, base)
    assert load_images(store, one.podman, base) == ()
    assert one.podman.inspect(base).id == base
    assert not one.podman.half_written()


def damage(node: Node, name: str) -> Path:
    """Change bytes of the uppermost layer of an image in the store."""
    store = node.root / ".rc/store"
    manifest = json.loads((store / "images" / image_id(node, name) / "manifest.json").read_text())
    digest = str(manifest["layers"][-1]["digest"])
    layer = store / "layers" / digest.removeprefix("sha256:") / "layer.sqsh"
    text = bytearray(layer.read_bytes())
    # Behind the superblock and the compressor's options.
    for place in range(SUPERBLOCK_BYTES + 8, SUPERBLOCK_BYTES + 16):
        text[place] ^= 0xFF
    layer.write_bytes(text)
    return layer


def test_a_damaged_base_has_to_be_built_again_first(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    layer = damage(one, "base")
    log = other.step("child:1", status=1)
    assert str(layer) in log and "is damaged; removed" in log
    assert "of base is neither on" in log and "whole in the store" in log
    # What a later layer was built on is gone as well, and built or brought again with it.
    other.step("base")
    assert ran(other.step("child:1")) > 0


def test_a_damaged_cache_costs_only_time(nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    layer = damage(one, "child:1")
    log = other.step("child:1")
    assert str(layer) in log and "is damaged; removed" in log
    # Only the instruction whose layer that was, and what follows.
    assert (len(cached(log)), ran(log)) == (INSTRUCTIONS - 1, 1 + LABELS), log


def test_without_a_store_a_base_that_is_not_on_the_node_is_built_again(
    nodes: tuple[Node, Node],
) -> None:
    one, other = nodes
    shutil.rmtree(one.root / ".rc/store")
    log = other.step("child:1", status=1, RC_STORE_ENABLED="false")
    assert "of base is neither on" in log
    one.step("base", RC_STORE_ENABLED="false")
    one.step("child:1", RC_STORE_ENABLED="false")
    assert not (one.root / ".rc/store").exists()


def test_without_skopeo_the_same_travels(
    nodes: tuple[Node, Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = nodes
    monkeypatch.setenv("PATH", path_without("skopeo", tmp_path / "bin"))
    (one.root / "base/Dockerfile").write_text(BASE + "LABEL other=1\n")
    one.step("base")
    write_child(one, CHILD.format(last="second"))
    one.step("child:1")
    write_child(one, CHILD.format(last="third"))
    log = other.step("child:1")
    assert (len(cached(log)), ran(log)) == (INSTRUCTIONS - 1, 1 + LABELS), log


def path_without(tool: str, directory: Path) -> str:
    """A PATH that has every program but one."""
    directory.mkdir()
    for part in os.environ["PATH"].split(os.pathsep):
        for program in Path(part).glob("*"):
            if program.name != tool and not (directory / program.name).exists():
                (directory / program.name).symlink_to(program)
    return str(directory)


def test_an_ordinary_user_has_the_same() -> None:
    """Rootless, podman's files are in ranges of IDs, and squashing brings images in its namespace."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "runuser", "newuidmap")
    with ordinary_user() as user:
        root = user.home / "imgs"
        recipe = "FROM base\nRUN echo one > /one\nRUN echo {last} > /last\n"
        write_checkout(root, {"base/Dockerfile": BASE, "projects/child/Dockerfile": recipe})
        shutil.copy(BUSYBOX, root / "base/busybox")
        for path in (root, *root.rglob("*")):
            shutil.chown(path, user.name, user.name)
        argv = (*user.argv, "env", f"--chdir={root}", "BUILDAH_ISOLATION=chroot", "RC_RUNNER=local")

        def run(*command: str) -> str:
            done = subprocess.run((*argv, *command), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        step = (*python(user), "-m", "rc_tasks.steps")
        run(*step, "podman", "base")
        run(*step, "podman", "child")
        run("podman", "rmi", "--all", "--force")
        (root / "projects/child/Dockerfile").write_text(recipe.replace("{last}", "second"))
        log = run(*step, "podman", "child")
        assert (len(cached(log)), ran(log)) == (1, 1 + LABELS), log
        run("podman", "rmi", "--all", "--force")
        published = run(*step, "enroot", "child")
        # podman's default for this user is vfs on some hosts, so that layers are stored as archives.
        assert "merged " in published or "loading child" in published
        assert (root / "projects/child/image.sqsh").exists()
