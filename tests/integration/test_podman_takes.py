"""What podman builds and people rarely write, built for real and looked at in image.sqsh."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkouts import write_checkout
from tests.support.doit import Ran, doit
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

BASE = 'FROM scratch\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'


@dataclass(frozen=True, slots=True)
class Place:
    """A checkout with a base, and the storage in which it builds."""

    root: Path
    environment: Mapping[str, str]

    @property
    def project(self) -> Path:
        return self.root / "projects/x"

    def doit(self, *argv: str) -> Ran:
        return doit(self.root, *argv, environ=self.environment)

    def build(self) -> Ran:
        ran = self.doit("build:x")
        assert ran.status == 0, ran.text
        return ran

    def holds(self, path: str) -> bytes:
        """A file of the published image."""
        artifact = str(self.project / "image.sqsh")
        return subprocess.run(
            ("unsquashfs", "-cat", artifact, path), capture_output=True, check=True
        ).stdout


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    root = write_checkout(tmp_path / "imgs", {"base/Dockerfile": BASE, "projects/x/data": "data\n"})
    shutil.copy(BUSYBOX, root / "base/busybox")
    with own_storage() as (_, environment):
        yield Place(root, environment | {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot"})


def test_what_looks_like_a_mistake_and_is_none(place: Place) -> None:
    """podman 4.3.1 itself ends in a panic at the stage `odd`."""
    (place.project / "Dockerfile").write_bytes(
        b"# caf\xe9\nFROM $NONE AS unset\nFROM localhost/nothing AS gone\nRNU x\n"
        b"FROM base AS odd\nCOPY --from=7 a b\n"
        b"FROM base$SUFFIX\nRUN echo one && \\\n  # caf\xe9\n  echo two > /made\n"
    )
    place.build()
    assert place.holds("made") == b"two\n"
    where = "projects/x/Dockerfile"
    notes = (
        f"{where}:7: variable SUFFIX has no value in FROM base$SUFFIX, which is taken as base",
        f"{where}:2: variable NONE has no value in FROM $NONE; podman skips this stage",
        f"{where}:4: RNU is not an instruction; podman skips this stage",
        f"{where}:6: there is no stage 7 above stage 2, in which this line stands;"
        " podman skips this stage",
    )
    log = place.doit("log", "podman:x").text
    told = place.doit("why", "x").text
    for note in notes:
        assert f"note: {note}" in log, log
        assert f"note    {note}" in told, told
    assert place.build().started == []


def test_a_containerfile(place: Place) -> None:
    """Its own ignore file counts, and what lies beside it with the other name is one more file."""
    (place.project / "Containerfile").write_text("FROM base\nCOPY . /here/\nRUN ls /here > /made\n")
    (place.project / "Containerfile.dockerignore").write_text("data\n")
    place.build()
    assert place.holds("made").split() == [b"Containerfile", b"Containerfile.dockerignore"]
    told = json.loads((place.project / "image.json").read_text())
    assert {part for part in told["inputs"] if "ontainerfile" in part or "ockerfile" in part} == {
        "Containerfile",
        "context/Containerfile.dockerignore",
    }
    assert place.build().started == []

    (place.project / "Dockerfile").write_text("FROM nowhere/nothing\n")
    assert place.build().started == ["podman:x", "enroot:x"]
    assert b"Dockerfile" in place.holds("made").split()

    (place.project / "Containerfile").unlink()
    (place.project / "Dockerfile").write_text("FROM base\nCOPY . /here/\nRUN ls /here > /made\n")
    assert "podman:x  Dockerfile replaces Containerfile" in place.build().text
    assert b"data" in place.holds("made").split()

    (place.project / "Dockerfile").rename(place.project / "Containerfile")
    (place.project / "Containerfile").write_text("FROM base\nRUN false\n")
    failed = place.doit("build:x")
    assert failed.status == 1
    assert "projects/x/Containerfile" in failed.text
    assert "Dockerfile:" not in failed.text


def test_an_annotation_that_is_no_string(place: Place) -> None:
    (place.project / "Dockerfile").write_text("FROM base\n")
    place.build()
    file = place.project / "env.toml"
    text = file.read_text() + "\n[annotations]\ncom.x = true\n"
    file.write_text(text)
    assert place.build().started == ["env:x"]
    assert file.read_text() == text
    note = (
        f"projects/x/env.toml:{len(text.splitlines())}: annotations: com.x is true and is kept;"
        ' the Container Engine wants strings: "true"'
    )
    assert f"warning: {note}" in place.doit("log", "env:x").text
    assert f"note    {note}" in place.doit("why", "x").text
    assert place.build().started == []
