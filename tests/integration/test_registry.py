"""Bases from a registry, and secrets: what is pulled, what is recorded, and what must not be."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.records.records import Step
from rc_tasks.state.store.layer_files import LayerFiles
from rc_tasks.tools.podman import Image, Podman
from tests.support.checkouts import write_checkout
from tests.support.containers import ulimits
from tests.support.doit import doit
from tests.support.registry import wait_for
from tests.support.storage import remove_storage
from tests.support.tools import require_tools, which

pytestmark = pytest.mark.podman

BASE = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: "{address}"}}
"""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry on this machine that serves `base:1`; `digest` is that of its manifest there."""

    address: str
    digest: str
    server: "subprocess.Popen[bytes]"

    def __str__(self) -> str:
        return self.address

    def stop(self) -> None:
        """What a node without a network sees."""
        self.server.terminate()
        self.server.wait()


@pytest.fixture
def registry(podman_storage: Podman, tmp_path: Path) -> Iterator[Registry]:
    """A registry with one image."""
    require_tools("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(CONFIG.format(directory=tmp_path / "registry", address=address))
    with subprocess.Popen(
        [str(which("docker-registry")), "serve", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_for(address)
            context = tmp_path / "base"
            context.mkdir()
            (context / "Dockerfile").write_text(BASE)
            (context / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
            (context / "busybox").chmod(0o755)
            name, digest = f"{address}/base:1", tmp_path / "digest"
            for argv in (
                podman_storage.command(
                    "build", "--identity-label=false", *ulimits(), "--tag", name, str(context)
                ).argv,
                podman_storage.command(
                    "push", "--tls-verify=false", f"--digestfile={digest}", name
                ).argv,
                podman_storage.command("rmi", "--all", "--force").argv,
            ):
                subprocess.run(argv, check=True, capture_output=True)
            yield Registry(address, digest.read_text().strip(), server)
        finally:
            server.terminate()


@dataclass(frozen=True, slots=True)
class Node:
    """A node with a podman storage of its own."""

    root: Path
    storage: Path
    environment: dict[str, str]

    def start(self, name: str) -> "subprocess.Popen[str]":
        """The podman step of an image, running here."""
        return subprocess.Popen(
            (sys.executable, "-m", "rc_tasks.steps", "podman", name),
            cwd=self.root,
            env={**os.environ, **self.environment, "RC_PODMAN_STORAGE": str(self.storage)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def step(self, name: str, *, status: int = 0) -> str:
        """Run it; returns its log."""
        with self.start(name) as process:
            log, _ = process.communicate()
        assert "Traceback" not in log, log
        assert process.returncode == status, log
        return log

    def image(self, name: str) -> Image:
        """What podman here says of an image that was built here."""
        found = open_checkout(self.root, {}).records.get(Step.PODMAN, name)
        assert found is not None and found.facts is not None
        engine = Podman(str(self.storage / "root"), str(self.storage / "run"), "overlay")
        return engine.inspect(found.facts.image_id)


@pytest.fixture
def nodes(registry: Registry, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    """Two empty nodes of one checkout with an image on the registry's."""
    if os.geteuid() != 0:
        pytest.skip("several storages side by side need root")
    root = write_checkout(
        tmp_path / "it's a checkout",
        {"projects/app:1/Dockerfile": f"FROM {registry}/base:1\nRUN echo app > /app\n"},
    )
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as name:
        variables = environ(registry, tmp_path) | {"RC_PODMAN_DRIVER": "overlay"}
        yield Node(root, Path(name, "a"), variables), Node(root, Path(name, "b"), variables)
        for storage in Path(name).iterdir():
            remove_storage(storage)


PULLED = "Trying to pull"


def test_a_node_without_a_network_builds_on_what_another_pulled(
    registry: Registry, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    assert PULLED in one.step("app:1")
    registry.stop()
    log = other.step("app:1")
    assert f"loading {registry}/base:1 (" in log and PULLED not in log
    assert "Using cache" in log
    (one.root / "projects/app:1/Dockerfile").write_text(f"FROM {registry}/base:1\nRUN echo new > /app\n")
    log = other.step("app:1")
    assert PULLED not in log and "loading" not in log
    labels = other.image("app:1").labels
    assert labels["org.opencontainers.image.base.digest"] == registry.digest


def test_a_clone_takes_the_base_that_the_official_checkout_pulled(
    registry: Registry, nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, other = nodes
    one.step("app:1")
    registry.stop()
    dockerfile = f"FROM {registry}/base:1\nRUN echo mine > /mine\n"
    root = write_checkout(tmp_path / "clone", {"projects/mine:1/Dockerfile": dockerfile})
    clone = replace(other, root=root, environment={**other.environment, "RC_IMAGES_ROOT": str(one.root)})
    log = clone.step("mine:1")
    assert PULLED not in log and f"from the store of {one.root}" in log
    labels = clone.image("mine:1").labels
    assert labels["org.opencontainers.image.base.digest"] == registry.digest
    layers = list((root / ".rc/store/layers").iterdir())
    assert any(layer.is_symlink() for layer in layers), "layers of a base of 20 GB are not kept twice"
    assert clone_bytes(root) < 100_000


def clone_bytes(root: Path) -> int:
    """What the store of a clone has itself."""
    return sum(path.lstat().st_size for path in (root / ".rc/store").rglob("*") if not path.is_symlink())


def test_two_nodes_that_need_the_same_base_at_once_pull_it_once(
    registry: Registry, nodes: tuple[Node, Node]
) -> None:
    (nodes[0].root / "projects/more:1").mkdir()
    (nodes[0].root / "projects/more:1/Dockerfile").write_text(f"FROM {registry}/base:1\nRUN true\n")
    running = [node.start(name) for node, name in zip(nodes, ("app:1", "more:1"), strict=True)]
    logs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], logs
    assert sum(PULLED in log for log in logs) == 1, logs
    assert sum("loading" in log for log in logs) == 1, logs


def test_a_damaged_base_is_pulled_again(registry: Registry, nodes: tuple[Node, Node]) -> None:
    one, other = nodes
    one.step("app:1")
    first = one.image("app:1")
    layer = one.root / ".rc/store/layers" / first.layers[0].removeprefix("sha256:") / "layer.sqsh"
    good = layer.read_bytes()
    layer.write_bytes(good[:200] + bytes(byte ^ 0xFF for byte in good[200:300]) + good[300:])
    log = other.step("app:1")
    assert f"{layer} is damaged; removed" in log and PULLED in log
    assert other.image("app:1").layers[:2] == first.layers[:2]
    assert not LayerFiles(layer.parent).damage()


def test_every_way_to_name_a_base_is_answered_from_the_store(
    registry: Registry, nodes: tuple[Node, Node]
) -> None:
    one, other = nodes
    (one.root / "projects/app:1/Dockerfile").write_text(
        f"FROM {registry}/base@{registry.digest} AS tools\n"
        f"FROM {registry}/nosuch:1 AS unused\n"
        f"FROM {registry}/base:1\n"
        f"COPY --from={registry}/base@{registry.digest} /bin/busybox /one\n"
        f"COPY --from=tools /bin/busybox /two\n"
        f"RUN --mount=type=bind,from={registry}/base:1@{registry.digest},target=/mnt"
        " cp /mnt/bin/busybox /three\n"
    )
    # The others are the same image, which podman then has under these names as well.
    assert PULLED in one.step("app:1")
    registry.stop()
    assert PULLED not in other.step("app:1")


def test_an_image_of_another_platform_is_left_to_podman(
    registry: Registry, nodes: tuple[Node, Node]
) -> None:
    one, _ = nodes
    (one.root / "projects/app:1/Dockerfile").write_text(
        f"FROM --platform=linux/s390x {registry}/base:1 AS foreign\n"
        "FROM scratch\nCOPY --from=foreign /bin/busybox /busybox\n"
    )
    assert PULLED in one.step("app:1")
    assert list((one.root / ".rc/store").glob("references/*/*.json")) == []


def environ(registry: Registry, tmp_path: Path) -> dict[str, str]:
    """A user's environment in which the registry needs no certificate."""
    config = tmp_path / "registries.conf"
    config.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    return {
        "CONTAINERS_REGISTRIES_CONF": str(config),
        "RC_RUNNER": "local",
    }


def test_a_registry_base_is_pulled_once_and_named_in_the_labels(
    registry: Registry, podman_storage: Podman, tmp_path: Path
) -> None:
    root = write_checkout(
        tmp_path / "imgs",
        {"projects/app:1/Dockerfile": f"FROM {registry}/base:1\nRUN echo app > /app\n"},
    )
    variables = environ(registry, tmp_path)
    ran = doit(root, environ=variables)
    assert ran.status == 0, ran.text
    record = json.loads((root / "projects/app:1/image.json").read_text())
    labels = podman_storage.inspect(record["image_id"]).labels
    digest = labels["org.opencontainers.image.base.digest"]
    assert record["bases"] == {f"{registry}/base:1": digest}
    told = doit(root, "manifest", "projects/app:1/image.sqsh").text
    assert re.search(rf"(?m)^base +{registry}/base:1 \({digest}\)$", told)
    assert labels["org.opencontainers.image.title"] == "app"
    assert labels["org.opencontainers.image.version"] == "1"
    assert labels["org.opencontainers.image.base.name"] == f"{registry}/base:1"
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert not any("buildah" in name for name in labels), "podman's version would change image IDs"
    assert doit(root, environ=variables).started == []


def test_an_unknown_image_of_a_registry_is_told_and_the_rest_goes_on(
    registry: Registry, podman_storage: Podman, tmp_path: Path
) -> None:
    root = write_checkout(
        tmp_path / "imgs",
        {
            "projects/app:1/Dockerfile": f"FROM {registry}/nosuch:1\n",
            "projects/good:1/Dockerfile": f"FROM {registry}/base:1\nRUN true\n",
        },
    )
    ran = doit(root, "--continue", environ=environ(registry, tmp_path))
    assert ran.status != 0
    assert f"{registry}/nosuch:1: the registry has no such image\n" in ran.text
    assert "next: it may have been removed or renamed: name another one in the Dockerfile" in ran.text
    assert (root / "projects/good:1/image.sqsh").exists()


def test_a_secret_is_seen_by_its_run_and_nowhere_else(
    registry: Registry, podman_storage: Podman, tmp_path: Path
) -> None:
    root = write_checkout(
        tmp_path / "imgs",
        {
            "projects/app:1/Dockerfile": (
                f"FROM {registry}/base:1\n"
                "RUN --mount=type=secret,id=token busybox wc -c < /run/secrets/token > /length\n"
            ),
            "projects/app:1/project.toml": 'secrets = ["id=token,env=APP_TOKEN"]\n',
        },
    )
    secret = "correct-horse-battery"
    variables = {**environ(registry, tmp_path), "APP_TOKEN": secret}
    ran = doit(root, environ=variables)
    assert ran.status == 0, ran.text
    artifact = root / "projects/app:1/image.sqsh"
    length = subprocess.run(["unsquashfs", "-cat", artifact, "length"], check=True, capture_output=True)
    assert int(length.stdout) == len(secret)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        subprocess.run(["unsquashfs", "-dest", tree, artifact], check=True, capture_output=True)
        for place in (tree, root):
            holding = [path for path in files(place) if secret.encode() in path.read_bytes()]
            assert holding == []


def files(directory: Path) -> Iterator[Path]:
    """Every regular file below a directory."""
    for parent, _, names in os.walk(directory):
        yield from (path for name in names if (path := Path(parent, name)).is_file())
