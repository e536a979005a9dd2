"""Each way in which a checkout of the family changes, and the steps that it makes stale."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.state.records.records import Step
from tests.support.checkouts import digest_cache
from tests.support.family import NAMES


def steps(step: Step, *names: str) -> set[str]:
    return {f"{step}:{name}" for name in names}


def share_with_the_group(root: Path) -> None:
    for path in (*root.glob("base/**/*"), *root.glob("projects/**/*")):
        if not path.is_symlink() and path.name not in {"image.sqsh", "image.json"}:
            path.chmod(path.stat().st_mode | 0o020)


def touch_everything(root: Path) -> None:
    for path in root.rglob("*"):
        if ".rc" not in path.parts:
            os.utime(path, (1, 1), follow_symlinks=False)


def check_out_another_branch_and_back(root: Path) -> None:
    def git(*argv: str) -> None:
        subprocess.run(
            ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *argv),
            cwd=root,
            check=True,
        )

    git("init", "--quiet", "--initial-branch=main")
    (root / ".gitignore").write_text("*.sqsh\nimage.json\n.rc/\n")
    git("add", "--all")
    git("commit", "--quiet", "--message=one")
    git("checkout", "--quiet", "-b", "other")
    edit("base/Dockerfile", "echo base", "echo other")(root)
    (root / "projects/left:1/data/one file.txt").write_text("other\n")
    (root / "templates/env.toml.j2").write_text("image = <@ image | toml @>\n")
    git("commit", "--quiet", "--all", "--message=two")
    git("checkout", "--quiet", "main")


def move_the_checkout(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))
    root.mkdir()
    for path in root.with_name("elsewhere").iterdir():
        path.rename(root / path.name)


def copy_the_checkout(root: Path) -> None:
    """Every file gets a new inode and new times."""
    other = root.with_name("copy")
    subprocess.run(("cp", "-r", root, other), check=True)
    shutil.rmtree(root)
    other.rename(root)


def overwrite(path: str, where: float) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        with (root / path).open("r+b") as file:
            file.seek(int((root / path).stat().st_size * where))
            file.write(b"\xff" * 16)

    return change


def retarget_link(root: Path) -> None:
    link = root / "projects/left:1/data/link"
    link.unlink()
    link.symlink_to("one file.txt")


def retarget_alias(root: Path) -> None:
    alias = root / "projects/tool:current"
    alias.unlink()
    alias.symlink_to("left:1")


def write(path: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text(text)


def edit(path: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        before = (root / path).read_text()
        assert before.count(old) == 1
        (root / path).write_text(before.replace(old, new))

    return change


def remove(path: str) -> Callable[[Path], object]:
    return lambda root: (root / path).unlink()


def remove_directory(path: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / path)


def forget(task: str) -> Callable[[Path], object]:
    return remove(f".rc/state/{task}.json")


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to a fresh checkout, the steps that run then, and what `doit why` says of it.

    `certain` are the steps that run whatever others make; `why` is a part of the text.
    """

    id: str
    change: Callable[[Path], object]
    certain: set[str]
    why: str = ""


LEFT = {"podman:left:1"}
DATA = "projects/left:1/data"
IMAGE = "projects/left:1/image.sqsh"
CASES = (
    Case("nothing", lambda root: None, set()),
    Case("everything touched", touch_everything, set()),
    Case("another umask", share_with_the_group, set()),
    Case("another branch and back", check_out_another_branch_and_back, set()),
    Case("checkout moved", move_the_checkout, set()),
    Case("checkout copied", copy_the_checkout, set()),
    Case(
        "comment in the base",
        edit("base/Dockerfile", "RUN", "# why\nRUN"),
        {"podman:base"},
        "Dockerfile changed: 0644 ",
    ),
    Case(
        "RUN in the base",
        edit("base/Dockerfile", "echo base", "echo new"),
        {"podman:base"},
        "base image base is stale",
    ),
    Case(
        "context file's content",
        write(f"{DATA}/one file.txt", "two\n"),
        LEFT,
        "data/one file.txt changed: 0644 ",
    ),
    Case(
        "context file's mode",
        lambda root: (root / DATA / "one file.txt").chmod(0o755),
        LEFT,
        "mode of data/one file.txt changed: 0644 ",
    ),
    Case("context file added", write(f"{DATA}/new", "new\n"), LEFT, "data/new added: nothing → 0644 "),
    Case(
        "context file removed", remove(f"{DATA}/one file.txt"), LEFT, "data/one file.txt removed: 0644 "
    ),
    Case(
        "context file renamed",
        lambda root: (root / DATA / "one file.txt").rename(root / DATA / "two"),
        LEFT,
        "data/two added",
    ),
    Case("symlink retargeted", retarget_link, LEFT, "data/link changed: link "),
    Case("ignored file", write(f"{DATA}/notes.tmp", "new\n"), set()),
    Case("ignored file added", write(f"{DATA}/more.tmp", "new\n"), set()),
    Case(
        "comment in .containerignore",
        edit("projects/left:1/.containerignore", "*/*.tmp", "# none\n*/*.tmp"),
        {"podman:left:1"},
        ".containerignore changed",
    ),
    Case(
        ".containerignore lets a file in",
        write("projects/left:1/.containerignore", "nothing\n"),
        LEFT,
        "data/notes.tmp added",
    ),
    Case(
        "build argument",
        write("projects/left:1/project.toml", '[build_args]\nFLAVOUR = "sweet"\n'),
        LEFT,
        "build_args.FLAVOUR changed",
    ),
    Case(
        "target",
        write("projects/right:1/project.toml", 'target = "extra"\n'),
        {"podman:right:1"},
        "target changed: plain → extra",
    ),
    Case("slurm table", write("projects/left:1/project.toml", '[slurm]\npartition = "debug"\n'), set()),
    Case(
        "edf table",
        write("projects/left:1/project.toml", '[edf]\nworkdir = "/there"\n'),
        {"env:left:1"},
        "EDF settings changed",
    ),
    Case(
        "template",
        edit("templates/env.toml.j2", "# Always", "# As ever, always"),
        steps(Step.ENV, *NAMES),
        "templates/env.toml.j2 changed",
    ),
    Case(
        "image.sqsh deleted",
        remove(IMAGE),
        {"enroot:left:1"},
        "image.sqsh is missing",
    ),
    Case(
        "image.sqsh truncated",
        lambda root: os.truncate(root / IMAGE, 100),
        {"enroot:left:1"},
        "image.sqsh is damaged: it has 100 bytes",
    ),
    Case(
        "image.sqsh's start",
        overwrite(IMAGE, 0.0),
        {"enroot:left:1"},
        "was changed after its publication",
    ),
    Case(
        "image.sqsh's middle",
        overwrite(IMAGE, 0.5),
        {"enroot:left:1"},
        "was changed after its publication",
    ),
    Case(
        "image.json deleted",
        remove("projects/left:1/image.json"),
        {"enroot:left:1"},
        "image.json is missing",
    ),
    Case("env.toml deleted", remove("projects/left:1/env.toml"), {"env:left:1"}, "env.toml is missing"),
    Case("podman record gone", forget("podman:left:1"), {"podman:left:1"}, "no record of a build"),
    Case(
        "enroot record gone",
        forget("enroot:left:1"),
        {"enroot:left:1"},
        "no record that image.sqsh was published",
    ),
    Case("env record gone", forget("env:left:1"), {"env:left:1"}, "no record that env.toml was written"),
    Case(
        "store gone",
        remove_directory(".rc/store"),
        steps(Step.PODMAN, *NAMES),
        "the image is no longer in the store",
    ),
    Case("alias retargeted", retarget_alias, {"podman:user:1"}, "base image left:1 added"),
    Case("digest cache gone", remove_directory(".rc/cache/digests"), set()),
    Case("digest cache damaged", write(digest_cache("projects/left:1"), "[1, 2"), set()),
    Case(
        "record damaged",
        write(".rc/state/env:left:1.json", "{"),
        {"env:left:1"},
        "no record that env.toml",
    ),
)
