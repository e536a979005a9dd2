"""Enroot's files in the tree of a merged image.

`steps/container/rootfs.py` writes the same in a mounted one.

Their contents are in a file of their own, from which they are copied as the data of layers is.
"""

import errno
import os
import struct
import time
from pathlib import Path

from msgspec.structs import replace

from rc_tasks.squashfs.tree import (
    NO_XATTRS,
    PLAIN_BLOCK,
    Directory,
    File,
    LayerFile,
    Node,
    Symlink,
    identity,
)
from rc_tasks.steps.container.rootfs import LAUNCH_HINT, WRITTEN, enroot_files, obstacle
from rc_tasks.tools import links
from rc_tasks.tools.podman import Image

_LONGEST_NAME_BYTES = 255
_WORD = struct.Struct("<I")


def add(
    root: Directory, image: Image, provenance: tuple[str, ...], like: LayerFile, contents: Path
) -> Directory:
    """Add Enroot's four files and the working directory to the tree of an image; return its new root.

    Their contents are written to `contents`, a name that does not exist. `like` is the file of any of
    the image's layers. Raise ArtifactError when the image has something in the way.
    """
    files = enroot_files(image, provenance)
    contents.write_bytes(b"".join(files.values()))
    source = replace(like, path=contents, fragments=b"", identity=identity(contents.stat()))
    editor = _TreeEditor(root, source, int(time.time()))
    editor.turn_inwards()
    start = 0
    for path, content in files.items():
        editor.write(path, start, len(content))
        start += len(content)
    editor.directory(image.workdir)
    return editor.root


class _TreeEditor:
    def __init__(self, root: Directory, source: LayerFile, now_s: int) -> None:
        self.root = root
        self._source = source
        self._now_s = now_s

    def turn_inwards(self) -> None:
        """Make the symlinks to Enroot's files lead to the same place from outside of the container."""
        for path in ("/etc", *WRITTEN):
            directory, name = os.path.split(path)
            place = self._followed(directory)
            link = self._at(f"{place}/{name}")
            # An absolute one to a file is replaced by the file.
            kept = path == "/etc" or (isinstance(link, Symlink) and not link.target.startswith(b"/"))
            if isinstance(link, Symlink) and kept and self._leads_out(path):
                target = os.fsencode(os.path.relpath(self._followed(path), place))
                new = Symlink(0o777, 0, 0, self._now_s, NO_XATTRS, target)
                self._put(self._made(path, place), os.fsencode(name), new)

    def write(self, path: str, start: int, size_bytes: int) -> None:
        """Replace a file by the bytes from `start` on; one that exists keeps its mode."""
        place, name = self._file(path)
        above, key = self._made(path, place), self._key(path, name)
        before = above[-1].children.get(key)
        if name in ("", ".", "..") or not isinstance(before, File | Symlink | None):
            raise obstacle(path, "is not a regular file")
        mode = before.mode if isinstance(before, File) else 0o644
        sizes, block_bytes = [], self._source.superblock.block_size_bytes
        for at in range(0, size_bytes, block_bytes):
            sizes.append(_WORD.pack(min(block_bytes, size_bytes - at) | PLAIN_BLOCK))
        file = File(
            mode, 0, 0, self._now_s, NO_XATTRS, size_bytes,
            self._source, start, size_bytes, b"".join(sizes),
        )  # fmt: skip
        if isinstance(before, File):
            # Other names of it keep what they had, as with overlayfs.
            above[-1].children[key] = file
        else:
            self._put(above, key, file)

    def directory(self, path: str) -> None:
        """Make a directory, and those above it."""
        self._made(path, self._followed(path))

    def _file(self, path: str) -> tuple[str, str]:
        """Return the directory, without symlinks, and the name of a file, which may be missing.

        An absolute symlink to it counts as the file: Enroot would follow it on the host.
        """
        seen = path
        for _ in range(links.MOST):
            directory, name = os.path.split(seen)
            place = self._followed(directory)
            link = self._at(f"{place}/{name}")
            if not isinstance(link, Symlink) or link.target.startswith(b"/"):
                return place, name
            seen = f"{place}/{os.fsdecode(link.target)}"
        raise obstacle(path, "leads through a loop of symlinks")

    def _made(self, path: str, place: str) -> list[Directory]:
        """Make the directory at `place`, which has no symlinks; return those from the root to it.

        `path` is the one that messages name.
        """
        above = [self.root]
        for name in filter(None, place.split("/")):
            key = self._key(path, name)
            child = above[-1].children.get(key)
            if child is None:
                child = Directory(0o755, 0, 0, self._now_s, NO_XATTRS)
                self._put(above, key, child)
            if not isinstance(child, Directory):
                raise obstacle(path, f"cannot be written: {os.strerror(errno.ENOTDIR)}")
            above.append(child)
        return above

    def _put(self, above: list[Directory], name: bytes, node: Node) -> None:
        """Put a new node into a directory, whose time changes; `above` are those from the root to it."""
        before = above[-1]
        before.children[name] = node
        after = replace(before, mtime_s=self._now_s)
        if len(above) == 1:
            self.root = after
        else:
            siblings = above[-2].children
            siblings[next(key for key, child in siblings.items() if child is before)] = after
        above[-1] = after

    def _key(self, path: str, name: str) -> bytes:
        try:
            key = os.fsencode(name)
        except UnicodeEncodeError:
            raise obstacle(path, f"cannot be written: {os.strerror(errno.EILSEQ)}") from None
        if len(key) > _LONGEST_NAME_BYTES or b"\0" in key:
            raise obstacle(path, f"cannot be written: {os.strerror(errno.ENAMETOOLONG)}")
        return key

    def _followed(self, path: str) -> str:
        try:
            return links.follow(path, self._target_of)
        except OSError:
            raise obstacle(path, "leads through a loop of symlinks", LAUNCH_HINT) from None

    def _leads_out(self, path: str) -> bool:
        try:
            links.follow(path, self._target_of, outside=True)
        except OSError as error:
            return error.errno == errno.EXDEV
        return False

    def _target_of(self, path: str) -> str | None:
        node = self._at(path)
        return os.fsdecode(node.target) if isinstance(node, Symlink) else None

    def _at(self, path: str) -> Node | None:
        """Return the node at a path without symlinks."""
        node: Node | None = self.root
        try:
            names = os.fsencode(path).split(b"/")
        except UnicodeEncodeError:
            return None  # JSON can say what no name is, such as half a surrogate pair
        for name in filter(None, names):
            node = node.children.get(name) if isinstance(node, Directory) else None
        return node
