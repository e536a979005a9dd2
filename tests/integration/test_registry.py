"""Bases from a registry, and secrets: what is pulled, what is recorded, and what must not be."""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout
from tests.support.doit import doit
from tests.support.tools import require_tools, which

pytestmark = pytest.mark.podman

BASE = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: "{address}"}}
"""


@pytest.fixture
def registry(podman_storage: Podman, tmp_path: Path) -> Iterator[str]:
    """A registry on this machine that serves `base:1`; yields its address."""
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
            name = f"{address}/base:1"
            for argv in (
                podman_storage.command(
                    "build", "--identity-label=false", "--tag", name, str(context)
                ).argv,
                podman_storage.command("push", "--tls-verify=false", name).argv,
                podman_storage.command("rmi", "--all", "--force").argv,
            ):
                subprocess.run(argv, check=True, capture_output=True)
            yield address
        finally:
            server.terminate()


def environ(registry: str, tmp_path: Path) -> dict[str, str]:
    """A user's environment in which the registry needs no certificate."""
    config = tmp_path / "registries.conf"
    config.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    return {
        "CONTAINERS_REGISTRIES_CONF": str(config),
        "RC_RUNNER": "local",
    }


def test_a_registry_base_is_pulled_once_and_named_in_the_labels(
    registry: str, podman_storage: Podman, tmp_path: Path
) -> None:
    root = write_checkout(
        tmp_path / "imgs",
        {"projects/app:1/Dockerfile": f"FROM {registry}/base:1\nRUN echo app > /app\n"},
    )
    variables = environ(registry, tmp_path)
    ran = doit(root, environ=variables)
    assert ran.status == 0, ran.text
    record = json.loads((root / "projects/app:1/image.json").read_text())
    assert record["bases"] == {f"{registry}/base:1": None}
    labels = podman_storage.inspect(record["image_id"]).labels
    assert labels["org.opencontainers.image.title"] == "app"
    assert labels["org.opencontainers.image.version"] == "1"
    assert labels["org.opencontainers.image.base.name"] == f"{registry}/base:1"
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")
    assert not any("buildah" in name for name in labels), "podman's version would change image IDs"
    assert doit(root, environ=variables).started == []


def test_an_unknown_image_of_a_registry_is_told_and_the_rest_goes_on(
    registry: str, podman_storage: Podman, tmp_path: Path
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
    assert f"podman pull {registry}/nosuch:1" in ran.text and "podman login" in ran.text
    assert (root / "projects/good:1/image.sqsh").exists()


def test_a_secret_is_seen_by_its_run_and_nowhere_else(
    registry: str, podman_storage: Podman, tmp_path: Path
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


def wait_for(address: str, timeout_s: float = 20) -> None:
    """Return when something listens there."""
    host, port = address.split(":")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
