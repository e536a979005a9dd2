"""Content digests of files, cached by size, times and inode."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from msgspec import DecodeError

from rc_tasks.errors import RcError
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.util.json_decode import load
from rc_tasks.util.safe_read import open_regular, read_bytes

# Do not cache a file that changed this recently: it may change again without a new time stamp.
_SETTLE_NS = 2_000_000_000
_BLOCK_BYTES = 4096
_SAMPLED_BLOCKS = 256


class Digests:
    """SHA-256 digests in hex. A repeated request costs one `stat` while size, times and inode stay."""

    def __init__(self, root: Path, file: Path) -> None:
        """Cache the digests of files below `root` in `file`; losing the cache costs only time."""
        self._prefix = f"{root}/"
        self._file = file
        self._known: dict[str, list[int | str]] | None = None
        self._changed = False

    def content(self, path: str, status: os.stat_result | None = None) -> str:
        """Return the digest of all bytes of a regular file. Raise OSError."""
        return self._remembered("content", path, status)

    def sample(self, path: str, status: os.stat_result | None = None) -> str:
        """Return a digest of at most 1 MiB, spread evenly over the file: constant time for any size."""
        return self._remembered("sample", path, status)

    def save(self) -> None:
        """Save the cache; failing to (in a read-only checkout) is no error."""
        if self._changed:
            with contextlib.suppress(OSError, RcError):
                write_atomically(self._file, json.dumps(self._known))
            self._changed = False

    def _remembered(self, kind: str, path: str, status: os.stat_result | None) -> str:
        known = self._load()
        stat = status or os.stat(path)
        signature = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        # The path is relative, so that the cache survives a move of the checkout.
        key = f"{kind} {path.removeprefix(self._prefix)}"
        entry = known.get(key)
        if isinstance(entry, list) and entry[:4] == signature:
            return str(entry[4])
        digest = content_digest(path) if kind == "content" else sample_digest(path)
        if has_settled(max(stat.st_mtime_ns, stat.st_ctime_ns)):
            known[key] = [*signature, digest]
            self._changed = True
        return digest

    def _load(self) -> dict[str, list[int | str]]:
        if self._known is None:
            try:
                self._known = load(read_bytes(self._file))
            except (OSError, DecodeError):
                self._known = {}
        return self._known


class ContextDigests:
    """The digests of build contexts: a cache for each, as one may hold tens of thousands of files.

    A step reads the caches of the contexts that it digests, and no others.
    """

    def __init__(self, root: Path, directory: Path) -> None:
        """Keep the caches of contexts below `root` in `directory`."""
        self._root = root
        self._directory = directory
        self._caches: dict[str, Digests] = {}

    def of(self, context: str) -> Digests:
        """Return the cache of a build context, by its absolute path."""
        cache = self._caches.get(context)
        if cache is None:
            # The path in the checkout, as a digest because it may be longer than a file's name.
            name = text_digest(os.path.relpath(context, self._root))[:32]
            file = self._directory / f"{name}.json"
            # Another thread may do the same; both then use the cache that came first.
            cache = self._caches.setdefault(context, Digests(Path(context), file))
        return cache

    def save(self) -> None:
        """Save the caches that were used; failing to (in a read-only checkout) is no error."""
        for cache in tuple(self._caches.values()):
            cache.save()


def has_settled(changed_ns: int) -> bool:
    """Return whether a file changed at that time gets another time stamp when it changes again."""
    return changed_ns < time.time_ns() - _SETTLE_NS


def content_digest(path: str) -> str:
    """Return the SHA-256 of a file, in hex, reading it in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_digest(path: str) -> str:
    """Return the SHA-256, in hex, of the size and up to 257 blocks of 4 KiB.

    The first, the middle and the last block are among them.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size_bytes).encode())
        last = max(0, size_bytes - _BLOCK_BYTES)
        # An even number of steps includes the middle of the file.
        steps = min(_SAMPLED_BLOCKS, -(-last // _BLOCK_BYTES)) or 1
        for step in range(steps + 1):
            digest.update(os.pread(file.fileno(), _BLOCK_BYTES, last * step // steps))
        return digest.hexdigest()


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return bytes_digest(text.encode())


def bytes_digest(text: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(text).hexdigest()
