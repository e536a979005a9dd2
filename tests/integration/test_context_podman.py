"""The build context as podman itself sees it: what `COPY . /` puts into an image."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rc_tasks.model.graph import context
from tests.support.storage import remove_storage
from tests.support.tools import refuse

pytestmark = pytest.mark.podman


class Podman:
    """A podman whose storage is below a temporary directory."""

    def __init__(self, directory: Path) -> None:
        self.argv = (
            *("podman", "--root", str(directory / "root"), "--runroot", str(directory / "run")),
            *("--storage-driver", "vfs"),
        )
        self.directory = directory

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run((*self.argv, *argv), capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def build(self, directory: Path, copy: str) -> subprocess.CompletedProcess[str]:
        recipe = self.directory / "recipe"
        recipe.write_text(f"FROM scratch\n{copy}\n")
        ignorefile = self.directory / "ignore"
        ignorefile.write_text(context.ignore_text(directory))
        return self.run(
            *("build", "--isolation", "chroot", "--no-cache", "--quiet", "--file", str(recipe)),
            *("--ignorefile", str(ignorefile), str(directory)),
            check=False,
        )

    def copied(self, directory: Path) -> dict[str, int]:
        """What `COPY . /` takes, with modes."""
        done = self.build(directory, "COPY . /")
        assert done.returncode == 0, done.stderr
        image = done.stdout.strip()
        top = Path(self.run("image", "mount", image).stdout.strip())
        found = {}
        for folder, directories, files in os.walk(top):
            for name in (*directories, *files):
                path = Path(folder, name)
                found[path.relative_to(top).as_posix()] = path.lstat().st_mode
        self.run("image", "rm", "--force", image)
        return found


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    if not shutil.which("podman"):
        refuse("podman is not installed")
    if os.geteuid() != 0:
        pytest.skip("mounting an image outside of `podman unshare` needs root")
    # podman wants the path of a runroot to be 50 characters at most; pytest's own are longer.
    directory = Path(tempfile.mkdtemp(prefix="rc-"))
    storage = Podman(directory)
    yield storage
    storage.run("image", "umount", "--all", check=False)
    remove_storage(directory)


TREE: Mapping[str, int] = {
    "Dockerfile": 0o644,
    "README.md": 0o600,
    "a+b": 0o644,
    "a(1).txt": 0o644,
    "a{1}|^$.txt": 0o644,
    "aXb": 0o644,
    "d": 0o644,
    "1": 0o644,
    "[x]": 0o644,
    "x": 0o644,
    "!bang": 0o644,
    "#hash": 0o644,
    " lead": 0o644,
    "trail ": 0o644,
    "*": 0o644,
    "back\\slash": 0o644,
    "with space/file name": 0o755,
    "with space/other": 0o644,
    "line\nbreak/in\nside": 0o644,
    "größe/日本": 0o640,
    ".hidden/file": 0o644,
    ".env": 0o644,
    "image.sqsh": 0o644,
    "image.json": 0o644,
    "env.toml": 0o644,
    "project.toml": 0o644,
    ".image.sqsh.123": 0o644,
    ".image.json.abc": 0o644,
    ".env.toml.x": 0o644,
    "sub/image.sqsh": 0o644,
    "sub/env.toml": 0o644,
    "sub/keep.py": 0o755,
    "sub/drop.py": 0o644,
    "sub/deep/er/keep.py": 0o644,
    "sub/deep/er/x.log": 0o644,
    "sub/deep/y.log": 0o644,
    "subway/keep.py": 0o644,
    "z.log": 0o4755,
    "build": 0o644,
    "sub/build/out": 0o644,
    "private/key": 0o600,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("context: a, b")
    for name, mode in TREE.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(mode)
    (top / "private").chmod(0o2750)
    (top / "subway").chmod(0o1777)
    (top / "empty").mkdir()
    (top / "link").symlink_to("sub/keep.py")
    (top / "dangling").symlink_to("nowhere")
    (top / "outside").symlink_to("/etc")
    (top / "linked").symlink_to("sub")
    return top


PATTERNS = {
    "nothing": "",
    "comments and blanks": "# comment\n\n   \n#another\n",
    "plain": "README.md\nsub\n",
    "leading slash": "/README.md\n/sub/keep.py\n",
    "trailing slash": "sub/\nbuild/\nz.log/\n",
    "leading blank and slash": "  /README.md\n\t/sub  \n",
    "CRLF and BOM": "\ufeffREADME.md\r\nsub/\r\n!sub/keep.py\r\n",
    "star": "*.log\n",
    "star at depth two": "*/keep.py\n*/*.log\n",
    "double star": "**/*.log\n**/build\n",
    "double star at the end": "sub/**\n",
    "double star within": "sub/**/keep.py\n",
    "double star alone": "**\n",
    "everything": "*\n",
    "everything but": "*\n!sub/keep.py\n!README.md\n",
    "everything but a directory": "*\n!sub\n",
    "everything but a directory's part": "*\n!sub\nsub/deep\n!sub/deep/er/keep.py\n",
    "back and forth": "sub\n!sub/deep\nsub/deep/er\n!sub/deep/er/keep.py\nsub/deep/er/keep.py\n",
    "last one wins": "!README.md\nREADME.md\n",
    "first one loses": "README.md\n!README.md\n",
    "blank after the bang": "*\n! README.md\n!  /sub/keep.py\n",
    "question mark": "?\nsub/?eep.py\n",
    "class": "[a-c]X[b]\n[!x]bang\n",
    "negated class": "[^a-zA-Z0-9.!#]*\n",
    "class of specials": "[*]\n[[]x[]]\n[\\]]\n".replace("[]]", "\\]"),
    "plus and parentheses": "a+b\na(1).txt\na{1}|^$.txt\n",
    "dot is no wildcard": "a.b\n.env\n",
    "escaped star": "\\*\n",
    "escaped bang and hash": "\\!bang\n\\#hash\n",
    "escaped blank in front": "\\ lead\n",
    "escaped letters": "\\d\n\\x\n",
    "escaped brackets": "\\[x\\]\n",
    "escaped backslash": "back\\\\slash\n",
    "trailing blanks": "trail[ ]\n",
    "spaces": "with space/file name\n",
    "unicode": "größe/日?\n",
    "line break": "line?break\n",
    "line break below": "**/in?side\n",
    "cleaned": "./sub/../README.md\nsub//deep/./er\n/../z.log\n",
    "cleaned after the bang": "*\n!./sub/../README.md\n",
    "the context itself": ".\n/\n./\n",
    "above the context": "../README.md\n..\n",
    "hidden": ".*\n",
    "the Dockerfile": "Dockerfile\n.dockerignore\n",
    "ours brought back": "!image.sqsh\n!*.json\n!env.toml\n!**\n!.image.*\n",
    "link and target": "linked\nlink\n",
    "case matters": "readme.md\nSUB\n",
    "prefix is no parent": "subw\nsub/kee\n",
}


@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS.keys())
def test_the_context_is_what_podman_copies(podman: Podman, tree: Path, patterns: str) -> None:
    (tree / ".dockerignore").write_text(patterns, newline="")
    copied = podman.copied(tree)
    found = {path: (tree / path).lstat().st_mode for path in context.listing(tree).paths}
    assert list(found) == sorted(found)

    # Directories that are ignored themselves appear above what was brought back, and only there.
    needed = {parent.as_posix() for path in found for parent in Path(path).parents} - {"."}
    files = {path for path, mode in copied.items() if not stat.S_ISDIR(mode)}
    assert {path for path, mode in found.items() if not stat.S_ISDIR(mode)} == files
    assert found.keys() | needed == copied.keys()

    for path, mode in found.items():
        assert stat.S_IFMT(mode) == stat.S_IFMT(copied[path]), path
        assert stat.S_IMODE(mode) & context.COPIED_MODE == stat.S_IMODE(copied[path]), path


@pytest.mark.parametrize(
    ("patterns", "path"),
    [("*\n!**/keep.py\n", "sub/keep.py"), ("*\n!*/*/er/keep.py\n", "sub/deep/er/keep.py")],
)
def test_what_only_a_named_copy_takes_belongs_to_the_context(
    podman: Podman, tree: Path, patterns: str, path: str
) -> None:
    (tree / ".dockerignore").write_text(patterns)
    done = podman.build(tree, f"COPY {path} /")
    assert done.returncode == 0, done.stderr
    assert path in context.listing(tree).paths


@pytest.mark.parametrize("name", ["image.sqsh", "project.toml", "README.md"])
def test_what_is_ignored_cannot_be_copied_by_name(podman: Podman, tree: Path, name: str) -> None:
    (tree / ".dockerignore").write_text("README.md\n!*.toml\n")
    assert podman.build(tree, f"COPY {name} /").returncode != 0
