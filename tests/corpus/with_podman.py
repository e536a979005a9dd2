"""Ask podman itself: which bases a Dockerfile needs, and what an ignore file leaves of a context."""

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.dockerfile.instructions import instructions
from rc_tasks.model.dockerfile.parser import Dockerfile
from rc_tasks.model.graph import context
from rc_tasks.tools.podman import Podman
from tests.support.containers import ulimits
from tests.support.images import BUSYBOX

_SAMPLES = {"**": ("a/b", "c"), "*": ("a", "b.c"), "?": ("a",)}
_LOST = "image not known|no stage or image found|locating image"
_MOST_PATHS = 300


@dataclass(slots=True)
class Engine:
    """A storage with one small image, which every base's name is given to."""

    podman: Podman
    environment: Mapping[str, str]
    directory: Path
    image: str = ""

    def run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """Run podman on it."""
        return subprocess.run(
            self.podman.command(*argv).argv,
            env={**os.environ, **self.environment, "BUILDAH_ISOLATION": "chroot"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def prepare(self) -> None:
        """Make the image."""
        place = self.directory / "base"
        place.mkdir()
        shutil.copy(BUSYBOX, place / "busybox")
        (place / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/busybox\n")
        self.image = self._build(place).stdout.split()[-1]

    def bases(self, data: bytes, parsed: Dockerfile) -> tuple[str, str]:
        """Whether podman's bases are ours: `alike`, `DIFFERENT`, or why that cannot be tried; and how.

        Of the Dockerfile, only what names an image stays. podman has to build it when all our bases
        are there, and to fail without any of those that the last stage is made of.
        """
        needed = sorted({base.name for base in parsed.bases if base.stage in parsed.needed})
        if any("@" in base.name for base in parsed.bases):
            return "not tried: a digest", ""
        if any(base.other_platform for base in parsed.bases):
            return "not tried: another platform", ""
        if any(re.fullmatch("[0-9a-f]+", name) for name in needed):
            # podman takes the beginning of an image's ID for its name.
            return "not tried: a name like an ID", ""
        place = self.directory / "context"
        place.mkdir(exist_ok=True)
        shutil.copy(BUSYBOX, place / "busybox")
        (place / "Dockerfile").write_text(_names_alone(data))
        for name in needed:
            if self.run("tag", self.image, name).returncode != 0:
                return "DIFFERENT", f"podman knows no such name as {name}"
        try:
            done = self._build(place)
            if done.returncode != 0:
                lost = re.search(_LOST, done.stderr)
                # podman 4.3.1 knows less than BuildKit.
                return "DIFFERENT" if lost else "not tried: podman refuses it", _last(done.stderr)
            for name in needed:
                self.run("untag", self.image, name)
                done = self._build(place)
                self.run("tag", self.image, name)
                if done.returncode == 0:
                    return "DIFFERENT", f"podman needs no {name}"
        finally:
            for name in needed:
                self.run("untag", self.image, name)
        return "alike", ""

    def _build(self, place: Path) -> "subprocess.CompletedProcess[str]":
        return self.run("build", "--pull=never", "--quiet", "--no-cache", *ulimits(), str(place))

    def ignored(self, text: str) -> tuple[str, bool]:
        """How our context differs from what COPY takes with our ignore file; empty: not at all.

        Also whether podman by itself takes the same with the file as it is written.
        """
        place = self.directory / "ignored"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        _write_tree(place, text)
        (place / ".dockerignore").write_text(text, newline="")
        (place / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
        try:
            ours = {
                path
                for path in context.listing(place).paths
                if (place / path).is_symlink() or not (place / path).is_dir()
            }
            rewritten = context.ignore_text(place)
        except RcError as error:
            return f"refused: {error.what}", True
        file = self.directory / "ignore"
        file.write_text(rewritten)
        copied = self._copied(place, "--ignorefile", str(file))
        plain = self._copied(place)
        if copied is None:
            # Nothing is left to copy.
            return "" if not ours else "podman copies nothing", plain is None
        wrong = sorted(ours ^ copied)
        return (f"{len(wrong)} paths: {wrong[:3]}" if wrong else ""), plain == copied

    def _copied(self, place: Path, *argv: str) -> set[str] | None:
        done = self.run("build", "--quiet", "--no-cache", *argv, str(place))
        if done.returncode != 0:
            return None
        image = done.stdout.split()[-1]
        top = self.run("image", "mount", image).stdout.strip()
        found: set[str] = set()
        for folder, directories, files in os.walk(top):
            links = [name for name in directories if Path(folder, name).is_symlink()]
            found.update(os.path.relpath(os.path.join(folder, name), top) for name in (*files, *links))
        self.run("image", "umount", image)
        self.run("image", "rm", "--force", image)
        return found


def _names_alone(data: bytes) -> str:
    """The Dockerfile without what needs files or a network: FROM, ARG, and each from=."""
    lines = []
    for one in instructions(data, where="Dockerfile").instructions:
        flags = " ".join(one.flags)
        if one.name == "FROM":
            lines += [f"FROM {flags} {one.value}", "COPY busybox /bin/busybox"]
        elif one.name == "ARG":
            lines.append(f"ARG {one.value}")
        elif one.name == "COPY" and (source := re.search(r"--from=(?!scratch)(\S+)", flags)):
            lines.append(f"COPY --from={source[1]} /bin/busybox /copied")
        elif one.name == "RUN":
            for mount in re.findall(r"--mount=(\S+)", flags):
                source = re.search(r"(?:^|,)from=([^,]+)", mount)
                if source and not re.search(r"type=(?:secret|ssh|tmpfs)", mount):
                    kind = "cache" if "type=cache" in mount else "bind"
                    lines.append(
                        f'RUN --mount=type={kind},from={source[1]},target=/m ["/bin/busybox", "true"]'
                    )
    return "".join(f"{line}\n" for line in lines)


def _last(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def _write_tree(place: Path, text: str) -> None:
    """Paths that the patterns of an ignore file match, and others beside them."""
    wanted = ["README.md", "src/main.py", "src/deep/er/data.bin", "node_modules/x/y.js", ".git/config"]
    for line in text.removeprefix("\ufeff").splitlines():
        pattern = line.strip().lstrip("!").strip().strip("/")
        if pattern and not line.startswith("#") and len(pattern) < 200:
            wanted += itertools.islice(_samples(pattern), 6)
    for path in wanted[:_MOST_PATHS]:
        clean = os.path.normpath(f"/{path}").lstrip("/")
        if clean in ("", ".dockerignore", "Dockerfile"):
            continue
        for one in (clean, f"{clean}/below", f"{clean}x", f"sub/{clean}"):
            target = place / one
            # Whatever is in the way of another path is enough.
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    target.write_text(one)
            except OSError:
                continue


def _samples(pattern: str) -> Iterator[str]:
    """Names that a pattern matches."""
    parts = re.split(r"(\*\*|\*|\?|\[[^]]*\])", pattern)
    choices = [_SAMPLES.get(part, ("a",) if part.startswith("[") else (part,)) for part in parts]
    for chosen in itertools.product(*choices):
        yield "".join(chosen).replace("\\", "")
