"""Compression of metadata blocks, which hold at most 8 KiB, and decompression of data blocks.

gzip and xz come with Python. zstd comes with Python 3.14 and as the package `backports.zstd`. lz4 is
decompressed here, slowly, and lzo is not. Both are written plain, which the format allows for each
block.
"""

import functools
import lzma
import sys
import zlib
from collections.abc import Callable
from types import ModuleType

from rc_tasks.squashfs.superblock import Compressor

METADATA_BYTES = 8192
# What decompressing a hostile block of xz may take; xz needs its dictionary, of at most 1 MiB, and about
# 50 KiB.
_MOST_MEMORY_BYTES = 64 << 20
# Linux rejects dictionaries larger than the block size, and checksums other than CRC32 (xz_wrapper.c).
_XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": METADATA_BYTES}]

# A function from the bytes of one block to those of another.
Codec = Callable[[bytes], bytes]


class CompressionError(Exception):
    """A block cannot be decompressed; the message says why, without the place."""


def decompressor(compressor: Compressor, most_bytes: int = METADATA_BYTES) -> Codec | None:
    """Return a function that decompresses a block; None for lzo.

    It returns at most `most_bytes` and one more, whatever the block, and raises CompressionError.
    """
    match compressor:
        case Compressor.GZIP:
            return functools.partial(_gunzip, most_bytes)
        case Compressor.XZ:
            return functools.partial(_unxz, most_bytes, lzma.FORMAT_XZ)
        case Compressor.LZMA:
            return functools.partial(_unxz, most_bytes, lzma.FORMAT_ALONE)
        case Compressor.ZSTD:
            return functools.partial(_unzstd, most_bytes)
        case Compressor.LZ4:
            return functools.partial(_unlz4, most_bytes)
        case _:
            return None


def compressor(name: Compressor) -> Codec | None:
    """Return a function that compresses a block; None where blocks are written plain.

    lzma is among these: Linux does not read it, and its form has no end that all its readers take.
    """
    match name:
        case Compressor.GZIP:
            return functools.partial(zlib.compress, level=6)
        case Compressor.XZ:
            return lambda block: lzma.compress(
                block, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_XZ_FILTERS
            )
        case Compressor.ZSTD:
            return functools.partial(_zstd().compress, level=3)
        case _:
            return None


def _gunzip(most_bytes: int, block: bytes) -> bytes:
    decoder = zlib.decompressobj()
    try:
        content = decoder.decompress(block, most_bytes + 1)
    except zlib.error as error:
        raise CompressionError(f"gzip data is damaged ({error})") from None
    return _whole(most_bytes, content, decoder.eof, "gzip")


def _unxz(most_bytes: int, form: int, block: bytes) -> bytes:
    decoder = lzma.LZMADecompressor(form, memlimit=_MOST_MEMORY_BYTES)
    try:
        content = decoder.decompress(block, most_bytes + 1)
    except lzma.LZMAError as error:
        raise CompressionError(f"xz data is damaged ({error})") from None
    # lzma without an end marker ends with the data.
    return _whole(most_bytes, content, decoder.eof or form == lzma.FORMAT_ALONE, "xz")


def _unzstd(most_bytes: int, block: bytes) -> bytes:
    zstd = _zstd()
    # A frame can ask for a window of 2 GiB. Linux takes none larger than a data block.
    decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 20})
    try:
        content: bytes = decoder.decompress(block, most_bytes + 1)
    except zstd.ZstdError as error:
        raise CompressionError(f"zstd data is damaged ({error})") from None
    return _whole(most_bytes, content, decoder.eof, "zstd")


def _unlz4(most_bytes: int, block: bytes) -> bytes:
    """Decompress a block: literals and a copy of earlier bytes, in turn (lz4's lz4_Block_format.md)."""
    content = bytearray()
    at, end = 0, len(block)
    try:
        while at < end and len(content) <= most_bytes:
            token = block[at]
            length, at = _lz4_length(block, at + 1, token >> 4)
            content += block[at : at + length]
            at += length
            if at >= end:
                # The last sequence has no copy.
                break
            distance = block[at] | block[at + 1] << 8
            length, at = _lz4_length(block, at + 2, token & 15)
            begin = len(content) - distance
            if distance == 0 or begin < 0:
                raise CompressionError("lz4 data is damaged (it copies what is not there)")
            # Bytes that a copy appends can be among those that it copies.
            copied = content[begin : begin + length + 4]
            times = -(-min(length + 4, most_bytes + 1) // len(copied))
            content += (copied * times)[: length + 4]
    except IndexError:
        raise CompressionError("lz4 data ends too early") from None
    if at > end:
        raise CompressionError("lz4 data ends too early")
    return bytes(content[: most_bytes + 1])


def _lz4_length(block: bytes, at: int, length: int) -> tuple[int, int]:
    """Return a length and the position behind it; 15 goes on in further bytes up to one below 255."""
    if length == 15:
        while (more := block[at]) == 255:
            length += 255
            at += 1
        length += more
        at += 1
    return length, at


def _whole(most_bytes: int, content: bytes, ended: bool, name: str) -> bytes:
    if not ended and len(content) <= most_bytes:
        raise CompressionError(f"{name} data ends too early")
    return content


@functools.cache
def _zstd() -> ModuleType:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        try:
            from backports import zstd
        except ImportError:
            # Not a CompressionError: the image is whole.
            name = "backports.zstd"
            raise ModuleNotFoundError(f"No module named {name!r}", name=name) from None
    # mypy knows one of the two modules, which one depends on the Python that it runs in.
    return zstd  # type: ignore[no-any-return, unused-ignore]
