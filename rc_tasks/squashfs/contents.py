"""Contents of files: their data blocks and fragments, decompressed."""

import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType

from rc_tasks.squashfs.compression import CompressionError, decompressor
from rc_tasks.squashfs.superblock import SquashfsError, damaged, not_whole
from rc_tasks.squashfs.tree import (
    BLOCK_BYTES_MASK,
    NO_FRAGMENT,
    PLAIN_BLOCK,
    File,
    LayerFile,
    identity,
)

# Ends of small files that were stored one after the other are in the same few fragments.
_MOST_FRAGMENTS = 16


class FileReader:
    """Reads files of one image, in a `with` block.

    Raise SquashfsError when the image was replaced or written to since it was read, is damaged, or is
    compressed with lzo.
    """

    def __init__(self, source: LayerFile) -> None:
        """Open the image of `source`, which `read_layer` returned with its tree."""
        self.source = source
        self._block_bytes = source.superblock.block_size_bytes
        decompress = decompressor(source.superblock.compression, self._block_bytes)
        if decompress is None:
            compressor = source.superblock.compression
            raise SquashfsError(f"files compressed with {compressor} cannot be read", where=source.path)
        self._decompress = decompress
        self._fragments: OrderedDict[int, bytes] = OrderedDict()
        try:
            self._descriptor = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise not_whole(source.path, f"it cannot be read: {error.strerror}") from None
        if identity(os.fstat(self._descriptor)) != source.identity:
            os.close(self._descriptor)
            raise not_whole(source.path, "it has changed since it was read")

    def __enter__(self) -> "FileReader":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the image."""
        os.close(self._descriptor)

    def pieces(self, file: File) -> Iterator[bytes]:
        """Yield the content of a file of this image, in pieces of at most a block."""
        left = file.size_bytes
        at = file.start
        for (word,) in struct.iter_unpack("<I", file.blocks):
            expected = min(left, self._block_bytes)
            stored = word & BLOCK_BYTES_MASK
            yield self._block(at, word, expected) if stored else bytes(expected)
            at += stored
            left -= expected
        if file.fragment != NO_FRAGMENT and left:
            end = file.fragment_offset + left
            fragment = self._fragment(file.fragment)
            if end > len(fragment):
                raise damaged(self.source.path, at, "a file ends behind the end of its fragment")
            yield fragment[file.fragment_offset : end]

    def _fragment(self, number: int) -> bytes:
        content = self._fragments.pop(number, None)
        if content is None:
            start, word = self.source.fragment(number)
            content = self._block(start, word, None)
        self._fragments[number] = content
        if len(self._fragments) > _MOST_FRAGMENTS:
            self._fragments.popitem(last=False)
        return content

    def _block(self, start: int, word: int, expected_bytes: int | None) -> bytes:
        """Return a block; None for `expected_bytes` accepts up to a whole one."""
        stored_bytes = word & BLOCK_BYTES_MASK
        try:
            content = os.pread(self._descriptor, stored_bytes, start)
        except OSError as error:
            raise not_whole(self.source.path, f"it cannot be read: {error.strerror}") from None
        if len(content) != stored_bytes:
            raise damaged(self.source.path, start, "the file ends too early")
        if not word & PLAIN_BLOCK:
            try:
                content = self._decompress(content)
            except CompressionError as error:
                raise damaged(self.source.path, start, str(error)) from None
        if len(content) > self._block_bytes or expected_bytes not in (None, len(content)):
            raise damaged(self.source.path, start, f"a block has {len(content)} bytes")
        return content
