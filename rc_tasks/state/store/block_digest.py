"""Digests of all bytes of a large file, by blocks: several threads read and hash at once."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

# A part of the digest's definition (docs/reference/image-json.md).
BLOCK_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20


# Beyond that a file system gives no more, and a node has more to do.
_MOST_THREADS = 32


def threads() -> int:
    """Return how many threads read at once here."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


class _Hash(Protocol):
    """What computes a digest, as in hashlib."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


def blocks_digest(path: str, read: Callable[[int], None] = lambda _bytes: None, at_once: int = 0) -> str:
    """Return the SHA-256, in hex, over the SHA-256s (32 bytes each) of a file's blocks of 64 MiB.

    Any thread calls `read` with the size of each piece that it has read. `at_once` is the number of
    threads; 0 chooses it for this host. Raise OSError.
    """
    return _over_blocks(hashlib.sha256, path, read, at_once)


def fast_digest(path: str, read: Callable[[int], None] = lambda _bytes: None, at_once: int = 0) -> str:
    """Return what `blocks_digest` does, with XXH3 of 128 bits: it shows damage, and no forgery.

    It takes a thirtieth of the CPU time, so that a layer can be compared at each merge.
    """
    from xxhash import xxh3_128  # for steps that merge alone

    return _over_blocks(xxh3_128, path, read, at_once)


def _over_blocks(new: Callable[[], _Hash], path: str, read: Callable[[int], None], at_once: int) -> str:
    stop = threading.Event()
    with open(path, "rb") as file:
        descriptor = file.fileno()
        size_bytes = os.fstat(descriptor).st_size

        def block(start: int) -> bytes:
            digest = new()
            end = min(start + BLOCK_BYTES, size_bytes)
            for at in range(start, end, _PIECE_BYTES):
                if stop.is_set():
                    break
                piece = os.pread(descriptor, min(_PIECE_BYTES, end - at), at)
                digest.update(piece)
                read(len(piece))
            return digest.digest()

        with ThreadPoolExecutor(at_once or threads()) as pool:
            try:
                digests = list(pool.map(block, range(0, size_bytes, BLOCK_BYTES)))
            finally:
                # When we are interrupted, the threads leave their blocks half read.
                stop.set()
    whole = new()
    whole.update(b"".join(digests))
    return whole.hexdigest()


def file_digests(
    paths: Iterable[str], read: Callable[[int], None], at_once: int
) -> Iterator[tuple[str, str | OSError]]:
    """Yield the SHA-256 of each file, in hex, or the error; read several files at once."""
    stop = threading.Event()

    def digest(path: str) -> tuple[str, str | OSError]:
        sha256 = hashlib.sha256()
        try:
            with open(path, "rb", buffering=0) as file:
                while not stop.is_set() and (piece := file.read(_PIECE_BYTES)):
                    sha256.update(piece)
                    read(len(piece))
        except OSError as error:
            return path, error
        return path, sha256.hexdigest()

    with ThreadPoolExecutor(at_once) as pool:
        try:
            yield from pool.map(digest, paths)
        finally:
            stop.set()
