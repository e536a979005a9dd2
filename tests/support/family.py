"""A small family of images, built for real once, and `doit` run in copies of its checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.model.graph.project import PROJECTS
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.records.records import Record, Records, Step
from rc_tasks.tools.podman import Podman
from tests.support import warm
from tests.support.checkouts import write_checkout
from tests.support.doit import unstamped
from tests.support.images import BUSYBOX

DOIT = Path(sys.executable).with_name("doit")
TIMEOUT_S = 600.0
# With this, no env.toml names a path of the checkout, so that a copy has nothing to write.
SETTINGS = 'images_root = "/official"'
FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY rootfs/ /\nRUN echo base > /etc/base\n",
    "projects/left:1/Dockerfile": (
        "FROM base\nARG FLAVOUR=plain\nCOPY data/ /data/\nRUN echo $FLAVOUR > /etc/left\n"
    ),
    "projects/left:1/data/one file.txt": "one\n",
    "projects/left:1/data/tool": "#!/bin/sh\necho tool\n",
    "projects/left:1/data/notes.tmp": "ignored\n",
    "projects/left:1/data/link": "-> tool",
    "projects/left:1/.containerignore": "*/*.tmp\n",
    "projects/right:1/Dockerfile": (
        "FROM base AS plain\nRUN echo right > /etc/right\n"
        "FROM plain AS extra\nRUN echo extra > /etc/extra\n"
    ),
    "projects/right:1/project.toml": 'target = "plain"\n',
    "projects/top:1/Dockerfile": (
        "FROM right:1 AS tools\nRUN echo made > /etc/made\n"
        "FROM localhost/left:1\nCOPY --from=tools /etc/made /etc/made\n"
        "COPY --from=right:1 /etc/right /etc/right\n"
    ),
    "projects/top:latest": "-> top:1",
    "projects/tool:current": "-> right:1",
    "projects/user:1/Dockerfile": "FROM tool:current\nRUN echo user > /etc/user\n",
}
NAMES = ("base", "left:1", "right:1", "top:1", "user:1")
ALL = frozenset(f"{step}:{name}" for step in Step for name in NAMES)


def write_family(root: Path) -> Path:
    """The recipes of a base, two children, a grandchild of both, and one that is built FROM an alias."""
    write_checkout(root, FILES, SETTINGS)
    programs = root / "base/rootfs/bin"
    programs.mkdir(parents=True)
    (root / "base/rootfs/etc").mkdir()
    shutil.copy(BUSYBOX, programs / "busybox")
    for applet in ("sh", "cat", "sleep", "ls", "grep"):
        (programs / applet).symlink_to("busybox")
    return root


@dataclass(frozen=True, slots=True)
class Family:
    """A checkout of the family, and the storage in which its steps build."""

    root: Path
    podman: Podman
    environment: Mapping[str, str]

    def start(self, *argv: str, **variables: str) -> "subprocess.Popen[str]":
        """`doit argv…`, running, with its output in a pipe."""
        return subprocess.Popen(
            (DOIT, *argv),
            cwd=self.root,
            env={**os.environ, **self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def doit(self, *argv: str, status: int = 0, **variables: str) -> str:
        """The output of `doit argv…`, which ends with `status` and never with a traceback."""
        environ = {**os.environ, **self.environment, **variables}
        ended, output = warm.run(argv, self.root, environ, TIMEOUT_S)
        assert "Traceback" not in output, output
        assert ended == status, output
        return output

    def run(self, *argv: str, status: int = 0, **variables: str) -> dict[str, str]:
        """The steps that `doit argv…` started, each with the reason that it printed."""
        return started(self.doit(*argv, status=status, **variables))

    def plan(self, *names: str, **variables: str) -> dict[str, bool]:
        """The steps that `doit plan` shows, each with whether it will run for certain."""
        lines = re.findall(
            r"^((?:podman|enroot|env):\S+)( .*)$", self.doit("plan", *names, **variables), re.M
        )
        return {task: "  perhaps  " not in more for task, more in lines}

    def states(self, **variables: str) -> dict[str, str]:
        """The state of each image in `doit list`."""
        listed = json.loads(self.doit("list", "--json", **variables))
        return {image["name"]: image["state"] for image in listed}

    def checkout(self) -> Checkout:
        """The checkout, opened anew."""
        return open_checkout(self.root, {})

    def records(self) -> dict[str, Record]:
        """What is recorded now, by task."""
        records = Records(self.root / ".rc/state")
        found = {f"{step}:{name}": records.get(step, name) for step in Step for name in NAMES}
        return {task: record for task, record in found.items() if record is not None}

    def image_id(self, name: str) -> str:
        """The image ID that is recorded."""
        facts = self.records()[f"{Step.PODMAN}:{name}"].facts
        assert facts is not None
        return facts.image_id

    def directory(self, name: str) -> Path:
        """An image's directory."""
        return self.root / name if name == "base" else self.root / PROJECTS / name

    def artifact(self, name: str) -> Path:
        """An image's published file."""
        return self.directory(name) / "image.sqsh"

    def write(self, path: str, text: str) -> None:
        """Write a file of the checkout; one that exists keeps its mode."""
        (self.root / path).write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that stands in a file of the checkout once."""
        before = (self.root / path).read_text()
        assert before.count(old) == 1
        self.write(path, before.replace(old, new))

    def copied(self, root: Path) -> "Family":
        """A copy with all time stamps, as if it had always been there."""
        subprocess.run(("cp", "-a", self.root, root), check=True)
        return Family(root, self.podman, self.environment)


def started(output: str) -> dict[str, str]:
    """The steps that a run of doit started, each with its reason."""
    return dict(re.findall(r"^start   (\S+)  (.*)$", unstamped(output), re.MULTILINE))


def published(path: Path) -> tuple[int, int, int]:
    """What changes when an image is published anew."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
