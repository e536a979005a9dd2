"""mksquashfs' options and help texts."""

from pathlib import Path

import pytest

from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.tools import squashfs

# The lists as squashfs-tools of these versions indent them, between other text.
HELP_4_5 = """\
-comp <comp>\t\tselect <comp> compression
\t\t\tCompressors available:
\t\t\t\tgzip (default)
\t\t\t\tlzo
\t\t\t\tzstd
-b <block_size>\t\tsize of a block
Compressors available and their own options:
\tgzip (default)
\t  -Xcompression-level <level>
"""
HELP_4_7 = """\
Compression options:
-comp <comp>\t\tlz4 and xz may be named here
\t\t\tCompressors available:
\t\t\t\tgzip
\t\t\t\tzstd (default)
-noI\t\t\tleave the inode table as it is
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(HELP_4_5, {"gzip", "lzo", "zstd"}, id="4.5"),
        pytest.param(HELP_4_7, {"gzip", "zstd"}, id="4.7"),
        pytest.param("mksquashfs: invalid option\n", set(), id="no help at all"),
    ],
)
def test_compressors_are_found_in_the_help(text: str, expected: set[str]) -> None:
    assert squashfs.parse_compressors(text) == expected


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("zstd", {"zstd", "lz4", "gzip"}, "zstd"),
        ("zstd", {"xz", "lzo", "lz4", "gzip"}, "lz4"),
        ("zstd", {"lzma", "lzo", "gzip"}, "lzo"),
        ("zstd", {"gzip", "xz"}, "gzip"),
        ("zstd", set(), "gzip"),
        ("xz", {"xz", "zstd"}, "xz"),
        ("xz", {"gzip", "zstd"}, "zstd"),
        ("gzip", {"gzip", "zstd"}, "gzip"),
    ],
)
def test_a_missing_compressor_degrades(wanted: str, offered: set[str], expected: str) -> None:
    chosen = squashfs.best(Compressor(wanted), map(Compressor, offered))
    assert chosen == expected


@pytest.mark.parametrize(
    ("compression", "level", "expected"),
    [
        ("zstd", 0, "-comp zstd -Xcompression-level 1 -b 4096"),
        ("zstd", 9, "-comp zstd -Xcompression-level 9 -b 4096"),
        ("gzip", 0, "-comp gzip -Xcompression-level 1 -b 4096"),
        ("lzo", 0, "-comp lzo -Xalgorithm lzo1x_1 -b 4096"),
        ("lzo", 3, "-comp lzo -Xcompression-level 3 -b 4096"),
        ("lz4", 5, "-comp lz4 -b 4096"),
        ("xz", 5, "-comp xz -b 4096"),
    ],
)
def test_levels(compression: str, level: int, expected: str) -> None:
    options = squashfs.compression_options(Compressor(compression), level, 4096)
    assert " ".join(options) == expected


def test_patterns_stand_last() -> None:
    made = squashfs.mksquashfs(
        Path("/in put"),
        Path("/out.sqsh"),
        compression=Compressor.ZSTD,
        level=0,
        block_size_bytes=131072,
        processors=3,
        memory_bytes=1 << 30,
        exclude=("dev/*", ".dockerenv"),
        actions=("chmod(u+r)@true",),
    )
    assert made.argv[:3] == ("mksquashfs", "/in put", "/out.sqsh")
    assert made.argv[-4:] == ("-wildcards", "-e", "dev/*", ".dockerenv")
    assert made.argv[-10:-4] == ("-processors", "3", "-mem", "1024M", "-action", "chmod(u+r)@true")


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        ("[=====|                          ]  1100/12345   8%", 8),
        ("[=============================================/] 3/3 100%", 100),
        ("[\\                                 ] 0/1   0%", 0),
        ("Creating 4.0 filesystem on x.sqsh, block size 131072.", None),
        ("Number of files 9", None),
    ],
)
def test_a_drawn_bar_tells_the_percentage(line: str, percent: int | None) -> None:
    found = squashfs.drawn_percent(line)
    assert found == percent
    if found is not None:
        assert squashfs.progress_percent(squashfs.progress_line(found)) == percent
