"""SSH keys and agents of a build: used by the RUN that asks for them, and found nowhere else."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_secrets import Place, arguments_of_all, holding, on_nodes
from tests.support.checkouts import write_checkout
from tests.support.cluster import Cluster
from tests.support.doit import doit
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools, which

__all__ = ["on_nodes"]

pytestmark = [pytest.mark.podman, pytest.mark.timeout(240)]

# `ssh-add -T` signs with the agent's key, and checks that with the public one.
DOCKERFILE = """\
FROM scratch
COPY root/ /
RUN --mount=type=ssh echo "socket $SSH_AUTH_SOCK"; ssh-add -l; ssh-add -T /keys/*.pub && : ROUND
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A checkout of one image that has ssh-add, and beside it the directory `keys`."""
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox", "ssh-add", "ssh-keygen", "ssh-agent")
    root = write_checkout(tmp_path / "imgs, a=b", {"projects/app:1/Dockerfile": DOCKERFILE})
    inside = root / "projects/app:1/root"
    (inside / "bin").mkdir(parents=True)
    (inside / "keys").mkdir()
    shutil.copy(BUSYBOX, inside / "bin/busybox")
    (inside / "bin/sh").symlink_to("busybox")
    program = str(which("ssh-add"))
    libraries = subprocess.run(("ldd", program), check=True, capture_output=True, text=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", libraries)):
        target = inside / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "keys").mkdir()
    with own_storage() as (podman, environment):
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot"}
        yield Place(root, Path(podman.root), dict(environment))


def make_key(place: Place, name: str) -> Path:
    """A key outside of the project; the image has its public half."""
    key = place.root.parent / "keys" / name
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key, "-C", name), check=True)
    shutil.copy(f"{key}.pub", place.root / "projects/app:1/root/keys")
    return key


def lines_of(key: Path) -> tuple[str, ...]:
    """The lines of a private key that nothing else may have."""
    return tuple(key.read_text().splitlines()[2:-1])


@pytest.fixture
def agent() -> Iterator[dict[str, str]]:
    """An agent without keys, as the variable that leads to it."""
    require_tools("ssh-agent")
    with tempfile.TemporaryDirectory(prefix="rc-") as directory:
        socket = f"{directory}/agent"
        with subprocess.Popen(("ssh-agent", "-D", "-a", socket), stdout=subprocess.DEVNULL) as process:
            while not os.path.exists(socket):
                assert process.poll() is None
            yield {"SSH_AUTH_SOCK": socket}
            process.terminate()


def fingerprint(key: Path) -> str:
    done = subprocess.run(("ssh-keygen", "-lf", key), check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


def log(place: Place) -> str:
    return (place.root / ".rc/logs/app:1/podman/latest.log").read_text()


def test_keys_leave_no_trace(place: Place, tmp_path: Path) -> None:
    first, second = make_key(place, "first"), make_key(place, "second")
    place.write("project.toml", 'ssh = ["default=../../../keys/second"]\n')
    with arguments_of_all() as seen:
        ran = doit(place.root, "-v", "2", environ=place.environment)
        assert ran.status != 0, "the agent has only one of the two"
        (place.root / "projects/app:1/root/keys/first.pub").unlink()
        ran = doit(place.root, "-v", "2", environ=place.environment)
    assert ran.status == 0, ran.text
    assert "socket /run/buildkit/ssh_agent.0" in ran.text
    assert fingerprint(second) in ran.text and fingerprint(first) not in ran.text
    assert any("--ssh" in each for each in seen)
    said = [ran.text, *seen]
    for argv in (
        ("list", "--json"),
        ("why", "app:1"),
        ("history", "--json"),
        ("manifest", "app:1", "--json"),
    ):
        said.append(doit(place.root, *argv, environ=place.environment).text)
    values = lines_of(second)
    assert values and [value for value in values if any(value in text for text in said)] == []
    tree = tmp_path / "tree"
    image = place.root / "projects/app:1/image.sqsh"
    subprocess.run(("unsquashfs", "-dest", tree, image), check=True, capture_output=True)
    for directory in (place.root, tree, place.storage):
        assert list(holding(directory, values)) == []
    assert not any(path.is_socket() for path in tree.rglob("*"))

    # As a new secret, another key makes nothing stale.
    place.write("project.toml", 'ssh = ["default=../../../keys/first"]\n')
    assert doit(place.root, "plan", environ=place.environment).text == "nothing to do\n"


def test_an_agent_and_several_ids(place: Place, agent: dict[str, str]) -> None:
    keys = [make_key(place, name) for name in ("one", "two", "three")]
    subprocess.run(("ssh-add", "-q", keys[2]), check=True, env={**os.environ, **agent})
    environment = {**place.environment, **agent}
    place.write(
        "Dockerfile",
        "FROM scratch\nCOPY root/ /\n"
        "RUN --mount=type=ssh ssh-add -T /keys/three.pub\n"
        "RUN --mount=type=ssh,id=both ssh-add -T /keys/one.pub /keys/two.pub\n"
        "RUN --mount=type=ssh,id=both if ssh-add -T /keys/three.pub; then exit 1; fi\n"
        "RUN --mount=type=ssh,id=named ssh-add -T /keys/three.pub\n",
    )
    both = "both=../../../keys/one,../../../keys/two"
    # podman would give "default" the keys of the entry before it.
    place.write("project.toml", f'ssh = ["{both}", "default", "named={agent["SSH_AUTH_SOCK"]}"]\n')
    ran = doit(place.root, "podman:app:1", environ=environment)
    assert ran.status == 0, f"{ran.text}{log(place)}"


def test_what_cannot_be_used_is_reported_first(place: Place, agent: dict[str, str]) -> None:
    make_key(place, "open").chmod(0o644)
    socket = agent["SSH_AUTH_SOCK"]
    for entry, told in (
        ("default", "SSH_AUTH_SOCK is not set on "),
        ("default=../../../keys/none", "../../../keys/none cannot be read on "),
        ("default=../../../keys/open", "../../../keys/open is open to other users (mode 0644)"),
        (f"default={socket}", f"the agent at {socket} holds no key"),
    ):
        place.write("project.toml", f'ssh = ["{entry}"]\n')
        ran = doit(place.root, environ={**place.environment, "SSH_AUTH_SOCK": ""})
        assert ran.status != 0
        assert f"projects/app:1/project.toml: ssh default: {told}" in ran.text, ran.text
        assert "next:" in ran.text and "STEP" not in ran.text and "Traceback" not in ran.text


def test_a_run_whose_id_project_toml_does_not_name(place: Place) -> None:
    note = (
        "projects/app:1/Dockerfile:3: this RUN gets no ssh default: ssh in projects/app:1/project.toml"
    )
    ran = doit(place.root, environ=place.environment)
    assert ran.status != 0
    assert note in ran.text
    assert note in doit(place.root, "why", "app:1", environ=place.environment).text
    place.write("Dockerfile", DOCKERFILE.replace("type=ssh", "type=ssh,required=true"))
    ran = doit(place.root, environ=place.environment)
    assert "ssh required but no ssh with id default found" in ran.text
    assert note in ran.text


@pytest.mark.slurm
def test_on_nodes(place: Place, cluster: Cluster, on_nodes: dict[str, str]) -> None:
    """A key that nodes see works there. The variable of an agent comes along, its socket does not."""
    key = make_key(place, "id")
    place.write("project.toml", 'ssh = ["default=../../../keys/id"]\n')
    with arguments_of_all() as seen:
        ran = doit(place.root, "podman:app:1", environ=on_nodes)
    assert ran.status == 0, ran.text
    assert list(holding(cluster.directory, lines_of(key))) == []
    assert [value for value in lines_of(key) if any(value in text for text in seen)] == []

    place.write("project.toml", 'ssh = ["default"]\n')
    place.write("Dockerfile", DOCKERFILE.replace("ROUND", "2"))
    ran = doit(place.root, "podman:app:1", environ={**on_nodes, "SSH_AUTH_SOCK": "/run/user/0/gone"})
    assert ran.status != 0
    told = re.compile(
        r"ssh default: no agent can be reached at /run/user/0/gone \(SSH_AUTH_SOCK\) on node1:"
        r" No such file or directory\n +next: an agent serves only the host on which it was started: "
    )
    assert told.search(ran.text), ran.text
