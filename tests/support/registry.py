"""A registry on this machine, filled over HTTP: tags that move and go, indexes, passwords."""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.images import Layer
from tests.support.tools import require_tools, which

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
HERE = MACHINES.get(os.uname().machine, os.uname().machine)
ELSEWHERE = "arm64" if HERE == "amd64" else "amd64"
USER, PASSWORD = "ada", "s3cret"
# `htpasswd -B` for them; Debian's docker-registry reads bcrypt only.
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"
OCI = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry; `authorization` is the header that its requests need."""

    address: str
    server: "subprocess.Popen[bytes]"
    authorization: str = ""

    def __str__(self) -> str:
        return self.address

    def image(
        self, repository: str, tag: str, text: str, *, machine: str = HERE, layers: int = 1
    ) -> str:
        """Put a small image with a shell under a tag; returns the digest of its manifest.

        Each layer after the first adds a file `layer-NUMBER`.
        """
        tars = [Layer().busybox().directory("tmp").file("text", text.encode()).tar()]
        tars += [Layer().file(f"layer-{number}", text.encode()).tar() for number in range(1, layers)]
        return self.archives(repository, tag, tars, machine=machine)

    def archives(
        self,
        repository: str,
        tag: str,
        archives: Iterable[bytes],
        *,
        machine: str = HERE,
        compressed: bool = False,
    ) -> str:
        """Put an image with these layers under a tag; returns the digest of its manifest."""
        blobs, diff_ids = [], []
        for archive in archives:
            diff_ids.append(f"sha256:{hashlib.sha256(archive).hexdigest()}")
            data = gzip.compress(archive, compresslevel=1, mtime=0) if compressed else archive
            blobs.append(self._blob(repository, data, f"layer.v1.tar{'+gzip' * compressed}"))
        config = {
            "architecture": machine,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            # Without one for each layer, podman cannot build on it.
            "history": [{"created": "2024-01-02T03:04:05Z", "created_by": "the test"} for _ in blobs],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self._blob(repository, json.dumps(config).encode(), "config.v1+json"),
            "layers": blobs,
        }
        return self._manifest(repository, tag, manifest)

    def index(self, repository: str, tag: str, text: str) -> str:
        """Put an image for two machines under a tag; returns the digest of its index."""
        manifests = []
        for machine in (HERE, ELSEWHERE):
            digest = self.image(repository, f"{tag}-{machine}", text, machine=machine)
            size = int(self._call("HEAD", f"{repository}/manifests/{digest}")["Content-Length"])
            manifests.append(
                {
                    "mediaType": f"{OCI}.manifest.v1+json",
                    "digest": digest,
                    "size": size,
                    "platform": {"architecture": machine, "os": "linux"},
                }
            )
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
        return self._manifest(repository, tag, index)

    def delete(self, repository: str, digest: str) -> None:
        """Remove a manifest, and the tags that stand for it."""
        self._call("DELETE", f"{repository}/manifests/{digest}")

    def stop(self) -> None:
        """What a host without a network sees."""
        self.server.terminate()
        self.server.wait()

    def environ(self, directory: Path) -> dict[str, str]:
        """A user's environment in which the registry needs no certificate."""
        config = directory / "registries.conf"
        config.write_text(f'[[registry]]\nlocation = "{self.address}"\ninsecure = true\n')
        return {"CONTAINERS_REGISTRIES_CONF": str(config), "RC_RUNNER": "local"}

    def _blob(self, repository: str, data: bytes, kind: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        place = self._call("POST", f"{repository}/blobs/uploads/")["Location"]
        self._call("PUT", f"{place}&digest={digest}", data, {"Content-Type": "application/octet-stream"})
        return {"mediaType": f"{OCI}.{kind}", "digest": digest, "size": len(data)}

    def _manifest(self, repository: str, tag: str, manifest: Mapping[str, object]) -> str:
        headers = {"Content-Type": str(manifest["mediaType"])}
        text = json.dumps(manifest).encode()
        return self._call("PUT", f"{repository}/manifests/{tag}", text, headers)["Docker-Content-Digest"]

    def _call(
        self, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        url = path if path.startswith("http") else f"http://{self.address}/v2/{path}"
        wanted = urllib.request.Request(url, data=data or None, method=method)
        more = {"Authorization": self.authorization} if self.authorization else {}
        accept = {"Accept": f"{OCI}.manifest.v1+json, {OCI}.index.v1+json"}
        for key, value in {**accept, **(headers or {}), **more}.items():
            wanted.add_header(key, value)
        with urllib.request.urlopen(wanted, timeout=20) as answer:
            return dict(answer.headers)


@contextlib.contextmanager
def serving(directory: Path, *, password: bool = False) -> Iterator[Registry]:
    """Debian's docker-registry on a free port, with its files in a directory."""
    require_tools("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings: dict[str, object] = {
        "version": 0.1,
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "files")},
            "delete": {"enabled": True},
        },
        "http": {"addr": address},
    }
    authorization = ""
    if password:
        (directory / "htpasswd").write_text(HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
        authorization = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
    config = directory / "registry.yml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    with subprocess.Popen(
        [str(which("docker-registry")), "serve", config],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_for(address)
            yield Registry(address, server, authorization)
        finally:
            server.terminate()


def wait_for(address: str, timeout_s: float = 30) -> None:
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
