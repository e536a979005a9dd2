"""Build secrets: used by the RUN that asks for them, and found nowhere else, whatever a RUN prints."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.cluster import Cluster
from tests.support.doit import doit, start
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage, remove_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

IN_VARIABLE = "tok_4f9c+(a|b)'\"$HOME%s"
IN_FILE = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
# Each line of a file is a secret, but for the shortest.
LINES = tuple(IN_FILE.split("\n")[1:3])
DOCKERFILE = """\
FROM scratch
COPY rootfs/ /
RUN --mount=type=secret,id=key --mount=type=secret,id=token cat /run/secrets/token; \
 cat /run/secrets/key >&2; sha256sum /run/secrets/key /run/secrets/token > /etc/sums
RUN --mount=type=secret,id=token cat /run/secrets/token /run/secrets/token && FAIL
"""
RECIPE = 'secrets = ["id=token,env=MY_TOKEN", "id=key,src=../../../my, key"]\n'.replace(", key", " key")


@dataclass(frozen=True, slots=True)
class Place:
    """A checkout of one image with secrets."""

    root: Path
    storage: Path
    environment: dict[str, str]

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.root / "projects/app:1" / name).write_text(text)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A checkout in a directory whose name has what podman's --secret gives a meaning."""
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    root = write_checkout(tmp_path / "a, src=b", {"projects/app:1/project.toml": RECIPE})
    programs = root / "projects/app:1/rootfs/bin"
    programs.mkdir(parents=True)
    (root / "projects/app:1/rootfs/etc").mkdir()
    shutil.copy(BUSYBOX, programs / "busybox")
    for applet in ("sh", "cat", "sha256sum", "false", "true"):
        (programs / applet).symlink_to("busybox")
    (tmp_path / "my key").write_text(IN_FILE)
    with own_storage() as (podman, environment):
        environment |= {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot", "MY_TOKEN": IN_VARIABLE}
        yield Place(root, Path(podman.root), dict(environment))


def test_no_trace(place: Place, tmp_path: Path) -> None:
    place.write("Dockerfile", DOCKERFILE.replace("FAIL", "false"))
    said: list[str] = []
    with arguments_of_all() as seen:
        failed = doit(place.root, environ=place.environment)
        assert failed.status != 0
        # What is quoted of the log is what stands in it.
        assert "STEP 4/" in failed.text and "***" in failed.text, failed.text
        place.write("Dockerfile", DOCKERFILE.replace("FAIL", "true"))
        ran = doit(place.root, environ=place.environment)
        assert ran.status == 0, ran.text
    said += [failed.text, ran.text, *seen]
    assert any("--secret" in each for each in seen)
    for argv in (
        *(("list", "--json"), ("why", "app:1"), ("settings",), ("history", "--json"), ("log", "app:1")),
        *(("manifest", "app:1", "--json"), ("diff", "app:1"), ("info", "podman:app:1"), ("graph",)),
        ("report", "--output", str(tmp_path / "page.html")),
    ):
        said.append(doit(place.root, *argv, environ=place.environment).text)
    said.append((tmp_path / "page.html").read_text())
    image, tree = place.root / "projects/app:1/image.sqsh", tmp_path / "tree"
    subprocess.run(("unsquashfs", "-dest", tree, image), check=True, capture_output=True)
    sums = (tree / "etc/sums").read_text()
    assert all(hashlib.sha256(each.encode()).hexdigest() in sums for each in (IN_VARIABLE, IN_FILE))

    values = (IN_VARIABLE, *LINES)
    assert [each for each in values if any(each in text for text in said)] == []
    for directory in (place.root, tree, place.storage):
        assert list(holding(directory, values)) == []
    logs = [path.read_bytes() for path in (place.root / ".rc/logs").rglob("*.log")]
    assert any(b"***" in log for log in logs)

    # By podman's design: what is only needed for a download changes nothing of the image.
    again = doit(place.root, environ={**place.environment, "MY_TOKEN": "another-token"})
    assert (again.status, again.started) == (0, [])


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("id=a,env=NO_SUCH", "the secret a is to come from NO_SUCH, which is not set here"),
        ("id=a,src=~/no such", "from ~/no such, which cannot be read: No such file or directory"),
        ("id=a,src=pipe", "from pipe, which is not a file"),
        ("id=a,src=sub/token", "projects/app:1/sub/token: the secret a lies in the build context"),
        ("id=a,src=../app:1/link", "projects/app:1/sub/token: the secret a lies in the build context"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_done(
    place: Place, recipe: str, told: str
) -> None:
    place.write("Dockerfile", DOCKERFILE)
    place.write("project.toml", f'secrets = ["{recipe}"]\n')
    os.mkfifo(place.root / "projects/app:1/pipe")
    place.write(".containerignore", "pipe\n")
    (place.root / "projects/app:1/sub").mkdir()
    place.write("sub/token", IN_VARIABLE)
    (place.root / "projects/app:1/link").symlink_to("sub/token")
    ran = doit(place.root, environ=place.environment)
    assert ran.status != 0
    assert told in ran.text and "next:" in ran.text and "STEP" not in ran.text
    assert "Traceback" not in ran.text


def test_ignored_file_of_the_project(place: Place) -> None:
    place.write("Dockerfile", DOCKERFILE.replace("FAIL", "true"))
    place.write("project.toml", RECIPE.replace("../../../my key", "key"))
    place.write("key", IN_FILE)
    place.write(".containerignore", "key\n")
    ran = doit(place.root, environ=place.environment)
    assert ran.status == 0, ran.text


class arguments_of_all:
    """Every command line that any process has while the block runs."""

    def __enter__(self) -> set[str]:
        self.seen: set[str] = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def look(self) -> None:
        """Read the command lines again and again."""
        while not self.stop.wait(0.02):
            for process in os.listdir("/proc"):
                if process.isdigit():
                    try:
                        data = Path("/proc", process, "cmdline").read_bytes()
                    except OSError:
                        continue
                    self.seen.add(data.replace(b"\0", b" ").decode(errors="replace"))


def holding(directory: Path, values: tuple[str, ...]) -> Iterator[Path]:
    """The regular files below a directory that hold one of the values."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                if any(value.encode() in data for value in values):
                    yield path


@pytest.fixture
def on_nodes(place: Place, cluster: Cluster) -> Iterator[dict[str, str]]:
    """The environment for building on the nodes of a cluster, each with a storage of its own."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        variables = {"RC_RUNNER": "slurm", "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}"}
        yield {**place.environment, **cluster.environment, **variables, "RC_SLURM_ACCOUNT": "a-demo"}
        for node in cluster.node_names:
            remove_storage(Path(storage) / node)


@pytest.mark.slurm
def test_slurm_shows_no_secret(place: Place, cluster: Cluster, on_nodes: dict[str, str]) -> None:
    """Everybody may ask for other people's jobs, and what Slurm writes down stays for years."""
    sleep = place.root / "projects/app:1/rootfs/bin/sleep"
    sleep.symlink_to("busybox")
    place.write("Dockerfile", DOCKERFILE.replace("FAIL", "sleep 3"))
    shown: list[str] = []
    with arguments_of_all() as seen, start(place.root, "-n", "1", environ=on_nodes) as run:
        while run.poll() is None:
            for argv in (
                ("scontrol", "show", "job", "-dd"),
                ("scontrol", "show", "step"),
                ("squeue", "--format=%all"),
                ("squeue", "--steps", "--format=%all"),
            ):
                shown.append(cluster.client(*argv).stdout)
            time.sleep(0.2)
        said = run.communicate()[0]
    assert run.returncode == 0, said
    assert any("podman:app:1" in each for each in shown), "the step was seen while it ran"
    values = (IN_VARIABLE, *LINES)
    assert [value for value in values if any(value in text for text in (*shown, *seen, said))] == []
    # What the daemons write down: state, spool and logs.
    assert list(holding(cluster.directory, values)) == []
