"""One image full of tricks through the whole pipeline, and what others may have planted around it."""

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit
from tests.support.images import BUSYBOX
from tests.support.storage import own_storage
from tests.support.tools import require_tools

FILES = {"projects/a:1/Dockerfile": "FROM scratch\nCOPY x /\n", "projects/a:1/x": "1\n"}
# The shell, TOML, HTML, Python's and C's formats, a terminal, a CSV, and doit's own forms.
TRICK = (
    "$(touch /tmp/rc-pwned) `touch /tmp/rc-pwned` ; %s %n {0} {x!r} %(a)s \"\"\" ''' ] = [a]\\ "
    "<script>alert(1)</script> &lt; {{ 7*7 }} <@ x @> \u202e é"
)
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31m\x08\x7f"
DOCKERFILE = """\
FROM scratch AS plain
ARG TRICK
COPY rootfs/ /
COPY ["files/", "/files/"]
LABEL trick="LABEL_TEXT" "<b>x</b>"="%s"
ENV TRICK_ENV="ENV_TEXT"
WORKDIR /a b<i>$(x)
RUN printf '%s\\n' "$TRICK" && printf '\\033]0;owned\\007\\033[2J\\033[31mred\\n100%%\\r\\233x\\n' && END
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A checkout of one image of tricks."""

    root: Path
    environment: dict[str, str]

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.root / "projects/trick:1" / name).write_text(text)

    def dockerfile(self, end: str) -> None:
        """Let the last RUN end so."""
        text = DOCKERFILE.replace("END", end).replace("LABEL_TEXT", ESCAPES + "'; $x")
        self.write("Dockerfile", text.replace("ENV_TEXT", "<script>\u202e%s"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The checkout, in a directory with a name of the same kind."""
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    root = write_checkout(tmp_path / "$(id) <b>, 'q' \u202e %s\x1b[31m", {}, 'images_root = "/official"')
    project = root / "projects/trick:1"
    (project / "rootfs/bin").mkdir(parents=True)
    (project / "files").mkdir()
    shutil.copy(BUSYBOX, project / "rootfs/bin/busybox")
    (project / "rootfs/bin/sh").symlink_to("busybox")
    for name in (
        "$(touch x)",
        "-rf",
        "<img src=x>",
        "a\nb",
        f"esc{ESCAPES}",
        "%s{0}",
        "'\"",
        "b\\c",
        "*?",
    ):
        (project / "files" / name).write_text(name)
    (Path(os.fsdecode(os.fsencode(project / "files") + b"/\xff\xfe"))).write_text("bytes")
    (project / "files/loop").symlink_to("loop")
    (project / "files/up").symlink_to("..")
    text = [f"[build_args]\nTRICK = {json.dumps(TRICK, ensure_ascii=False)}\n[edf]\n"]
    text.append(f"mounts = [{json.dumps('/a b/$(x)<i>:/c')}]\n")
    text.append(f"[edf.env]\nTRICK = {json.dumps(TRICK, ensure_ascii=False)}\n")
    text.append(f'[edf.annotations]\n"a.b" = {json.dumps(TRICK + ESCAPES[:-2])}\n')
    (project / "project.toml").write_text("".join(text))
    with own_storage() as (_, environment):
        yield Place(root, environment | {"RC_RUNNER": "local", "RC_PODMAN_ISOLATION": "chroot"})


@pytest.mark.podman
def test_an_image_of_tricks(place: Place, tmp_path: Path) -> None:
    said = {}
    place.dockerfile("false")
    failed = doit(place.root, environ=place.environment)
    assert failed.status != 0
    said["failed"] = failed.text
    place.dockerfile("true")
    ran = doit(place.root, environ=place.environment)
    assert ran.status == 0, ran.text
    said["built"] = ran.text
    place.write("files/more", "more")
    for argv in (
        *(("list",), ("list", "--json"), ("why", "trick:1"), ("plan",)),
        *(
            ("graph",),
            ("graph", "--format", "dot"),
            ("graph", "--format", "mermaid"),
            ("graph", "--format", "svg"),
            ("settings",),
        ),
        *(("history",), ("history", "--json"), ("log", "trick:1"), ("log", "trick:1", "--failed")),
        *(("manifest", "trick:1"), ("manifest", "trick:1", "--json"), ("verify", "trick:1")),
        *(("info", "podman:trick:1"), ("gc", "--dry-run"), ("store",), ("bases",), ("doctor",)),
        ("report", "--output", str(tmp_path / "page.html")),
    ):
        done = doit(place.root, *argv, environ=place.environment)
        said[" ".join(argv)] = done.text
        assert "parsing" not in done.text and "not recognized" not in done.text, done.text
    again = doit(place.root, environ=place.environment)
    assert again.status == 0, again.text
    said["diff"] = doit(place.root, "diff", "trick:1", environ=place.environment).text

    assert [how for how, text in said.items() if "Traceback" in text] == []
    # Neither from the log nor from a name; \\x9b is an escape of one byte where UTF-8 is not read.
    assert [
        how for how, text in said.items() if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    ] == []
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "<img src=x>" not in page and "<b>," not in page
    assert not Path("/tmp/rc-pwned").exists()

    edf = tomllib.loads((place.root / "projects/trick:1/env.toml").read_text())
    assert edf["image"] == "/official/projects/trick:1/image.sqsh"
    assert edf["env"]["TRICK"] == TRICK and edf["annotations"]["a"]["b"] == TRICK + ESCAPES[:-2]
    assert edf["mounts"] == ["/a b/$(x)<i>:/c"] and edf["workdir"] == "/a b<i>$(x)"
    json.loads((place.root / "projects/trick:1/image.json").read_text())

    # What somebody planted in the place of what is published is replaced, and not followed.
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    planted = [place.root / "projects/trick:1" / name for name in ("image.sqsh", "image.json")]
    planted += [place.root / f".rc/state/{step}:trick:1.json" for step in ("podman", "enroot")]
    for path in planted:
        path.unlink()
        path.symlink_to(victim)
    ran = doit(place.root, environ=place.environment)
    assert ran.status == 0, ran.text
    assert victim.read_text() == "precious\n"
    assert not any(path.is_symlink() for path in planted)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout in which everything looks built."""
    made = write_checkout(tmp_path / "it's here", FILES)
    pretend_built(made)
    return made


def kept(directory: Path) -> list[Path]:
    """All but what a look at it leaves: what was read of files, and Python's own files."""
    names = ("digests", "dockerfiles.json", "cache", ".pyc")
    return sorted(path for path in directory.rglob("*") if not any(name in path.name for name in names))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (root / ".rc").chmod(0o777),
        lambda root: move(root / ".rc/state", root.parent / "elsewhere"),
        lambda root: move(root / ".rc", root.parent / "elsewhere"),
    ],
    ids=["written by all", "linked directory", "linked"],
)
def test_a_run_does_nothing(root: Path, spoil: Callable[[Path], None]) -> None:
    spoil(root)
    (root / "projects/a:1/x").write_text("2\n")
    before = kept(root.parent)
    for argv in ((), ("rollback", "a:1"), ("gc",), ("forget", "build:a:1"), ("clean", "build:a:1")):
        ran = doit(root, *argv, environ={"RC_RUNNER": "local"})
        assert ran.status != 0 and ".rc" in ran.text and "next:" in ran.text, ran.text
        assert "Traceback" not in ran.text and "start " not in ran.text
    assert kept(root.parent) == before


def test_names_and_files_command_no_terminal(root: Path) -> None:
    (root / f"projects/a:1/new{ESCAPES}").touch()
    broken = root / "projects/b:1/Dockerfile"
    broken.parent.mkdir()
    broken.write_text(f"FROM scratch\nNOSUCH{ESCAPES}\n")
    logs = root / f".rc/logs/gone{ESCAPES}/podman"
    logs.mkdir(parents=True)
    (logs / "x.log").touch()
    for argv in (("why", "a:1"), ("why", "b:1"), ("plan",), ("gc", "--dry-run", "--verbose"), ("list",)):
        said = doit(root, *argv, environ={"RC_RUNNER": "local"}).text
        assert "owned" in said.lower() and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", said), said


def test_what_is_made_is_not_written_by_everybody(root: Path) -> None:
    before = os.umask(0)
    try:
        (root / "projects/a:1/env.toml").unlink()
        assert doit(root, "env:a:1", environ={"RC_RUNNER": "local"}).status == 0
    finally:
        os.umask(before)
    made = [path for path in root.rglob("*") if path.lstat().st_mode & 0o002 and not path.is_symlink()]
    assert made == []


def test_links_at_the_places_of_our_files_are_replaced(root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    places = ["projects/a:1/env.toml", ".rc/state/env:a:1.json"]
    places += [f".rc/cache/{name}.json" for name in ("digests", "outputs", "unchanged")]
    places.append(".rc/logs/a:1/env/latest.log")
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).unlink(missing_ok=True)
        (root / place).symlink_to(victim)
    for _ in range(2):
        ran = doit(root, "env:a:1", environ={"RC_RUNNER": "local"})
        assert "Traceback" not in ran.text
        assert victim.read_text() == "precious\n"
    assert not (root / "projects/a:1/env.toml").is_symlink() or ran.status != 0


def move(path: Path, to: Path) -> None:
    """Move a directory and leave a link to it."""
    path.rename(to)
    path.symlink_to(to)
