"""Files of an image for those who look into it: those of a mounted image, and those of a merged tree.

An image is untrusted and this process may be root: no symlink is followed, and only regular files are
opened.
"""

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from enum import Enum, auto
from pathlib import Path
from typing import IO, Protocol

from rc_tasks.squashfs.contents import FileReader
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.tree import Directory, File, LayerFile, Node, Symlink

_NO_FILE = "it is not a regular file, and no symlink is followed"


class EntryKind(Enum):
    """What a name in a directory is."""

    DIRECTORY = auto()
    FILE = auto()
    OTHER = auto()


# A name in a directory: what it is or why that is unknown, the size of a file, and what recognizes a
# file with several names.
Entry = tuple[str, EntryKind | OSError, int, Hashable]


class ImageFiles(Protocol):
    """Files of an image, by absolute paths without a slash at the end: the root is an empty string.

    Each method raises OSError.
    """

    def entries(self, directory: str) -> Iterator[Entry]:
        """Yield what is in a directory."""

    def names(self, directory: str) -> list[str]:
        """Return the sorted names in a directory."""

    def is_link(self, path: str) -> bool:
        """Return whether a path is that of a symlink."""

    def open(self, path: str) -> tuple[IO[bytes], int]:
        """Open a regular file; return it with its size in bytes. Raise ValueError for something else."""

    def local(self, path: str) -> AbstractContextManager[Path]:
        """Give a regular file a path on this host, for the time of a `with` block."""


class MountedFiles:
    """Files of a mounted image."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def entries(self, directory: str) -> Iterator[Entry]:
        """Yield what is in a directory."""
        with os.scandir(f"{self._root}{directory}/") as listing:
            entries = list(listing)
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, EntryKind.DIRECTORY, 0, None
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
                    yield entry.name, EntryKind.FILE, status.st_size, inode
                else:
                    yield entry.name, EntryKind.OTHER, 0, None
            except OSError as error:
                yield entry.name, error, 0, None

    def names(self, directory: str) -> list[str]:
        """Return the sorted names in a directory."""
        return sorted(os.listdir(self._root + directory))

    def is_link(self, path: str) -> bool:
        """Return whether a path is that of a symlink."""
        return os.path.islink(self._root + path)

    def open(self, path: str) -> tuple[IO[bytes], int]:
        """Open a regular file; return it with its size in bytes. Raise ValueError for something else."""
        # Check it first: a device is one of this host, and opening some devices has an effect.
        if not stat.S_ISREG(os.lstat(self._root + path).st_mode):
            raise ValueError(_NO_FILE)
        file = os.fdopen(os.open(self._root + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        return file, os.fstat(file.fileno()).st_size

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Give a regular file a path on this host, for the time of a `with` block."""
        yield Path(self._root + path)


class MergedFiles:
    """Files of a merged tree, in a `with` block; contents are read from the files of its layers."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._readers: dict[LayerFile, FileReader] = {}
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> "MergedFiles":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files of the layers."""
        self._opened.close()

    def entries(self, directory: str) -> Iterator[Entry]:
        """Yield what is in a directory."""
        for raw_name, node in self._directory(directory).children.items():
            name = os.fsdecode(raw_name)
            if isinstance(node, File):
                yield name, EntryKind.FILE, node.size_bytes, node
            elif isinstance(node, Directory):
                yield name, EntryKind.DIRECTORY, 0, None
            else:
                yield name, EntryKind.OTHER, 0, None

    def names(self, directory: str) -> list[str]:
        """Return the sorted names in a directory."""
        return sorted(map(os.fsdecode, self._directory(directory).children))

    def is_link(self, path: str) -> bool:
        """Return whether a path is that of a symlink."""
        try:
            return isinstance(self._node(path), Symlink)
        except OSError:
            return False

    def open(self, path: str) -> tuple[IO[bytes], int]:
        """Open a regular file; return it with its size in bytes. Raise ValueError for something else."""
        node = self._node(path)
        if isinstance(node, File):
            return io.BufferedReader(_Stream(self._pieces(node))), node.size_bytes
        raise ValueError(_NO_FILE)

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Give a regular file a path on this host, for the time of a `with` block."""
        source, _ = self.open(path)
        with source, tempfile.NamedTemporaryFile() as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            yield Path(copy.name)

    def _pieces(self, file: File) -> Iterator[bytes]:
        if file.source is None:
            # It is empty, or all zeros.
            for at in range(0, file.size_bytes, 1 << 20):
                yield bytes(min(1 << 20, file.size_bytes - at))
            return
        try:
            reader = self._readers.get(file.source)
            if reader is None:
                reader = self._opened.enter_context(FileReader(file.source))
                self._readers[file.source] = reader
            yield from reader.pieces(file)
        except SquashfsError as error:
            raise OSError(errno.EIO, error.what) from None

    def _directory(self, path: str) -> Directory:
        node = self._node(path)
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def _node(self, path: str) -> Node:
        node: Node = self._root
        for name in filter(None, path.split("/")):
            if not isinstance(node, Directory):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            child = node.children.get(os.fsencode(name))
            if child is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            node = child
        return node


class _Stream(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override] # any writable buffer
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
