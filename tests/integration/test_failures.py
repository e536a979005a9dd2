"""Registries, nodes and tools that fail in earnest: the user reads whose fault it is, and what to do."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from rc_tasks.tools import podman, podman_versions
from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout
from tests.support.doit import Ran, doit
from tests.support.images import Layer, write_layout
from tests.support.registry import ELSEWHERE, HERE, OCI

pytestmark = pytest.mark.podman

# More layers than podman's overlay driver can mount, by the version from which it is so (maxDepth in the
# drivers/overlay/overlay.go of containers/storage).
_LAYERS_SINCE = {(4, 9): 510, (0, 0): 130}


def _index(kind: str, body: bytes, machine: str) -> bytes:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    platform = {"architecture": machine, "os": "linux"}
    entry = {
        "mediaType": f"{OCI}.{kind}.v1+json",
        "digest": digest,
        "size": len(body),
        "platform": platform,
    }
    return json.dumps(
        {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    ).encode()


class _Wrong(BaseHTTPRequestHandler):
    """A registry of which each repository answers in a way of its own; `deep` and `base` are images."""

    errors: ClassVar = {
        "locked": (401, "UNAUTHORIZED", "authentication required"),
        "denied": (403, "DENIED", "requested access to the resource is denied"),
        "gone": (404, "MANIFEST_UNKNOWN", "manifest unknown"),
        "broken": (500, "", ""),
    }
    layouts: ClassVar[dict[str, Path]] = {}

    def do_GET(self) -> None:
        repository, kind, name = (*self.path.split("/")[2:], "", "", "")[:3]
        status, body, form = 200, b"", "application/json"
        inner = _index("manifest", b"{}", HERE)
        if repository in self.errors:
            status, code, message = self.errors[repository]
            body = (
                json.dumps({"errors": [{"code": code, "message": message}]}).encode()
                if code
                else b"oops"
            )
            form = form if code else "text/plain"
        elif repository in self.layouts:
            layout = self.layouts[repository]
            first = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
            digest = name if name.startswith("sha256:") else first
            body = (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
            form = f"{OCI}.manifest.v1+json" if kind == "manifests" else "application/octet-stream"
        elif repository == "nested":
            body = inner if name.startswith("sha256:") else _index("index", inner, HERE)
            form = f"{OCI}.index.v1+json"
        elif repository == "foreign":
            body, form = _index("manifest", b"{}", ELSEWHERE), f"{OCI}.index.v1+json"
        elif repository == "page":
            body, form = b"<html>please log in</html>", "text/html"
        self.send_response(status)
        self.send_header("Content-Type", form)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a registry of wrong answers."""
    files = tmp_path_factory.mktemp("layouts")
    base = Layer().busybox().directory("tmp", 0o1777).tar()
    version, since = podman.version(), _LAYERS_SINCE.items()
    layers = next(most for first, most in since if podman_versions.at_least(version, first))
    more = [Layer().file(f"f{number}", str(number).encode()).tar() for number in range(1, layers)]
    config = {"Env": ["PATH=/bin"]}
    write_layout(files / "base", config, [base])
    write_layout(files / "deep", config, [base, *more])
    _Wrong.layouts.update({name: files / name for name in ("base", "deep")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Wrong)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@dataclass(frozen=True, slots=True)
class Node:
    """A checkout with its settings, whose registry is on this machine."""

    root: Path
    port: int
    environ: dict[str, str]

    def run(self, *argv: str, **more: str) -> Ran:
        return doit(self.root, *argv, environ=self.environ | more)

    def failed(self, instructions: str, *, wrapped: tuple[str, ...] = (), **more: str) -> str:
        """What is told of an image whose build fails."""
        write_checkout(self.root, {"projects/x:1/Dockerfile": instructions})
        ending = self.root / "ending.json"
        done = subprocess.run(
            (*wrapped, sys.executable, "-m", "rc_tasks.steps", "podman", "x:1", "", str(ending)),
            cwd=self.root,
            env={**os.environ, **self.environ, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        text: str = json.loads(ending.read_text())["text"]
        assert done.stderr.endswith(f"{text}\n")
        return f"{text}\n"

    def base(self, name: str) -> str:
        return f"127.0.0.1:{self.port}/{name}:1"


@pytest.fixture
def node(port: int, podman_storage: Podman, tmp_path: Path) -> Node:
    """A node with a name and an empty storage."""
    conf = tmp_path / "registries.conf"
    insecure = "[[registry]]\nlocation = '{}'\ninsecure = true\n"
    conf.write_text("".join(map(insecure.format, (f"127.0.0.1:{port}", "127.0.0.1:1"))))
    environ = {"CONTAINERS_REGISTRIES_CONF": str(conf), "RC_RUNNER": "local", "RC_STORE": "false"}
    return Node(tmp_path / "checkout", port, environ | {"SLURMD_NODENAME": "nid001"})


# What is pulled, what is said of it, and a piece of the hint.
PULLS = {
    "{here}/locked:1": ("the registry wants other credentials", "podman login 127.0.0.1:"),
    "{here}/denied:1": ("the registry wants other credentials", "podman login 127.0.0.1:"),
    "{here}/gone:1": ("the registry has no such image", "name another one in the Dockerfile"),
    "{here}/broken:1": ("the registry has an error of its own", "try again later"),
    "{here}/nested:1": ("the registry has an index within an index", "by digest"),
    "{here}/foreign:1": ("the registry has this image for other machines only", "FROM --platform"),
    "{here}/page:1": ("the registry sent other data than it promised", "a proxy or a mirror"),
    "127.0.0.1:1/x:1": ("the registry cannot be reached", "the network"),
    # Without `insecure`: TLS with what speaks none.
    "localhost:{port}/base:1": ("the certificate of the registry is not trusted here", "ask the site"),
    "behind.invalid/x:1": ("the proxy on the way to the registry does not answer", "grep -i _proxy"),
    "nosuch.invalid/x:1": ("this host does not know the host name of the registry", "spelling"),
}


def test_each_pull_that_fails_is_told_with_its_own_hint(node: Node) -> None:
    names = {f"p{number}:1": name for number, name in enumerate(PULLS)}
    bases = {
        project: name.format(here=f"127.0.0.1:{node.port}", port=node.port)
        for project, name in names.items()
    }
    files = {f"projects/{project}/Dockerfile": f"FROM {base}\n" for project, base in bases.items()}
    write_checkout(node.root, files)
    proxy = {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "nosuch.invalid"}
    text = node.run("--continue", "-n", "4", **proxy).text
    for project, base in bases.items():
        what, hint = PULLS[names[project]]
        found = re.search(rf"FAILED +podman:{project}  (.*(?:\n  .*)*)", text)
        assert found is not None, text
        assert found[1].startswith(f"{base}: {what}"), text
        assert hint in found[1].partition("next: ")[2], text
    assert "correct it" not in text and "mend" not in text


# How a node is at its limits, what is to be built there, and what is said; each with a storage on a
# disk of its own, of 24 MB unless SIZE says otherwise.
LIMITS = {
    "a full disk": (
        "COPY large /\n",
        "",
        {},
        "nid001: podman build failed: no space is left\n  next: `df -h` and `df -i` on that node",
    ),
    "a full disk, in a RUN": (
        "RUN cat /bin/busybox > /dev/full\n",
        "",
        {},
        "projects/x:1/Dockerfile: podman build failed with exit status 1\n"
        "  next: on nid001, no space is left, by the lines above:\n",
    ),
    "no inodes": (
        "RUN n=0; while :; do n=$((n + 1)); : > /$n || exit 1; done\n",
        "",
        {"NR_INODES": "300"},
        "projects/x:1/Dockerfile: podman build failed with exit status",
    ),
    "few open files": (
        "RUN true\n",
        "ulimit -n 12;",
        {},
        ": Too many open files\n  next: on nid001, the limit of open files is too low:\n",
    ),
    "no runtime": (
        "RUN true\n",
        "",
        {"RC_PODMAN_RUNTIME": "nosuch", "BUILDAH_ISOLATION": "oci"},
        "there is no program that runs containers",
    ),
    "killed": (
        "RUN kill -9 $$\n",
        "",
        {},
        "projects/x:1/Dockerfile: podman build failed with exit status 1\n"
        "  next: on nid001, it was killed, as happens when memory runs out, by the lines above:\n",
    ),
    "too many layers": (
        "RUN true\n",
        "",
        {"BASE": "deep", "RC_PODMAN_DRIVER": "overlay", "SIZE": "96m", "NR_INODES": "20000"},
        "nid001: podman build failed: podman's overlay driver cannot stack so many layers",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_node_at_its_limits_is_told(name: str, node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    instructions, before, variables, said = LIMITS[name]
    variables = dict(variables)
    write_checkout(node.root, {"projects/x:1/large": "x" * (30 << 20)} if "COPY" in instructions else {})
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as storage:
        size = f"size={variables.pop('SIZE', '24m')},nr_inodes={variables.pop('NR_INODES', '4000')}"
        script = f'mount -t tmpfs -o {size} tmpfs "$0" && {before} exec "$@"'
        wrapped = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, storage)
        told = node.failed(
            f"FROM {node.base(variables.pop('BASE', 'base'))}\n{instructions}",
            wrapped=wrapped,
            **{"RC_PODMAN_STORAGE": storage, "RC_PODMAN_DRIVER": "vfs", **variables},
        )
    assert said in told
    assert ("if it is the Dockerfile, correct it" in told) is told.startswith("projects/")
