"""SquashFS: what mksquashfs and unsquashfs are asked, and the superblock, which is read by hand."""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rc_tasks.errors import ArtifactError
from rc_tasks.tools import command, failures, links
from rc_tasks.tools.command import Command
from rc_tasks.tools.version import Fault

INSTALL_HINT = "install squashfs-tools (Debian: apt-get install squashfs-tools)"
# mksquashfs fills the file up to this, so that it can be mounted through a loop device.
PADDING_BYTES = 4096

# A file of several blocks that are all zeros takes a place that the next file gets too; which of both is
# read depends on how fast the threads are. The CHANGES say since 4.7, and it happens since a commit of
# 4.7.3 (07852991): with 4.7.4 six of 20 images were wrong, each with exit status 0, with -no-sparse none
# of 45, and with 4.7.2 none of 30.
WRONG_CONTENT = Fault(
    (4, 7),
    (4, 7, 5),
    "can write wrong content into files, without a word, where an image has files of zeros alone",
    "steps give it -no-sparse, with which it does not; for what you squash by hand, ask for\n"
    "squashfs-tools 4.7.5 or newer (squashfs-tools#339)",
    "squashfs-tools#339, and its CHANGES for 4.7.5, 2.1",
)
# It reads what it has not written yet, and ends with an error. By the CHANGES for 4.7.6, 7.1 and 7.2.
FAILING_COMPARISON = Fault(
    (4, 7),
    (4, 7, 6),
    "can fail while it compares files with each other",
    'with squash.method = "direct" the step then runs it once more without comparing, which makes\n'
    "the image larger; versions after 4.7.5 do not fail (squashfs-tools#361, #362)",
    "squashfs-tools#361 and #362, both mended in April 2026",
)

_BAR = re.compile(r"\[=*[-/|\\] *\] *\d+/\d+ +(\d+)%")
_TOLD = re.compile(r"mksquashfs +(\d+)%")
# A symlink in what `listing` prints.
_LINK = re.compile(r"l\S+ \S+ +\d+ \S+ \S+ squashfs-root(/.*?) -> (.*)")
_MAGIC = 0x73717368
_SUPERBLOCK = struct.Struct("<5I6H8Q")


class Compressor(StrEnum):
    """A compressor, by the name that mksquashfs has for it."""

    ZSTD = "zstd"
    LZ4 = "lz4"
    LZO = "lzo"
    GZIP = "gzip"
    XZ = "xz"
    LZMA = "lzma"


# The numbers of the SquashFS 4.0 format.
_COMPRESSIONS = {
    1: Compressor.GZIP,
    2: Compressor.LZMA,
    3: Compressor.LZO,
    4: Compressor.XZ,
    5: Compressor.LZ4,
    6: Compressor.ZSTD,
}
# What to use when this mksquashfs lacks what was asked for. gzip stands last as the one that every
# mksquashfs and every kernel has.
_PREFERENCE = (Compressor.ZSTD, Compressor.LZ4, Compressor.LZO, Compressor.GZIP)


@dataclass(frozen=True, slots=True)
class Superblock:
    """The first 96 bytes of a SquashFS 4.0 file; `made_at` is in seconds since the epoch."""

    inodes: int
    made_at: int
    block_size_bytes: int
    compression: Compressor
    used_bytes: int

    @classmethod
    def parse(cls, head: bytes, where: Path) -> "Superblock":
        """The superblock in `head`; raises ArtifactError when it is something else."""
        if len(head) < _SUPERBLOCK.size:
            raise _damaged(where, f"it is {len(head)} bytes long, shorter than a SquashFS superblock")
        magic, inodes, made_at, block, _, compressor, _, _, _, major, minor, _, used, *_ = (
            _SUPERBLOCK.unpack_from(head)
        )
        if magic != _MAGIC:
            raise _damaged(where, "it does not begin like a SquashFS file")
        if (major, minor) != (4, 0):
            raise _damaged(where, f"it is SquashFS version {major}.{minor}, not 4.0")
        if compressor not in _COMPRESSIONS:
            raise _damaged(where, f"it names an unknown compressor, number {compressor}")
        return cls(inodes, made_at, block, _COMPRESSIONS[compressor], used)


def inspect(path: Path) -> Superblock:
    """The superblock of a file that is as long as it says, in constant time.

    Raises ArtifactError when the file is missing, cut short, or something else. What lies between
    its beginning and its end is not looked at.
    """
    try:
        with path.open("rb") as file:
            superblock = Superblock.parse(file.read(_SUPERBLOCK.size), path)
            size_bytes = file.seek(0, 2)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from None
    whole_bytes = -(-superblock.used_bytes // PADDING_BYTES) * PADDING_BYTES
    if size_bytes != whole_bytes:
        raise _damaged(path, f"it is {size_bytes} bytes long and should be {whole_bytes}")
    return superblock


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"not a whole SquashFS image: {why}",
        where=path,
        hint="remove the file and build again; if it happens again, see whether the file system is full",
    )


def version() -> str:
    """The version of mksquashfs, such as `4.5.1`."""
    command.require("mksquashfs", INSTALL_HINT)
    # Older ones exit with 1 after printing their version.
    done = command.capture(Command(("mksquashfs", "-version")), check=False)
    found = re.search(r"version (\S+)", done.stdout + done.stderr)
    if found is None:
        raise command.failure(done.command, done.returncode, (done.stderr or done.stdout).splitlines())
    return found[1]


def probe() -> frozenset[Compressor]:
    """The compressors that the mksquashfs of this node was built with."""
    command.require("mksquashfs", INSTALL_HINT)
    # 4.7 prints this section alone; older ones do not know the option, so print their whole help
    # and exit with 1. The list is in both.
    done = command.capture(Command(("mksquashfs", "-help-section", "compression")), check=False)
    return parse_compressors(done.stdout + done.stderr)


def parse_compressors(text: str) -> frozenset[Compressor]:
    """The compressors in mksquashfs' help: each alone on a line, one marked as the default."""
    names = "|".join(Compressor)
    return frozenset(
        Compressor(name) for name in re.findall(rf"(?m)^\s*({names})(?: \(default\))?$", text)
    )


def best(wanted: Compressor, offered: Iterable[Compressor]) -> Compressor:
    """`wanted` when it is offered, else the first of zstd, lz4, lzo and gzip that is."""
    offered = frozenset(offered)
    return next((each for each in (wanted, *_PREFERENCE) if each in offered), Compressor.GZIP)


def compression_options(compression: Compressor, level: int, block_size_bytes: int) -> tuple[str, ...]:
    """The options that choose how data is compressed; level 0 is the fastest that is worth it.

    lz4 and xz have no levels.
    """
    options = ["-comp", compression.value]
    match compression:
        case Compressor.ZSTD | Compressor.GZIP:
            # Their own defaults, 15 and 9, take five to ten times longer for a tenth of the size.
            options += ["-Xcompression-level", str(level or 1)]
        case Compressor.LZO if level:
            options += ["-Xcompression-level", str(level)]
        case Compressor.LZO:
            # The default, lzo1x_999, compresses slower than gzip.
            options += ["-Xalgorithm", "lzo1x_1"]
        case _:
            pass
    return (*options, "-b", str(block_size_bytes))


def avoiding(version: str) -> tuple[str, ...]:
    """The options with which this version of mksquashfs writes what the files hold."""
    return ("-no-sparse",) if WRONG_CONTENT.affects(version) else ()


def failed_comparing(said: str) -> bool:
    """Whether mksquashfs failed while it compared files, by its words; without comparing it works."""
    return failures.find(said.splitlines(), (failures.COMPARING,)) is not None


def mksquashfs(
    source: Path,
    destination: Path,
    *,
    compression: Compressor,
    level: int,
    block_size_bytes: int,
    processors: int,
    memory_bytes: int,
    exclude: Iterable[str] = (),
    actions: Iterable[str] = (),
    options: Iterable[str] = (),
    compares: bool = True,
) -> Command:
    """`mksquashfs` of a directory; `exclude` holds shell patterns relative to `source`.

    `actions` change what is stored, not the source (squashfs-tools, ACTIONS-README; all of 4.4 and
    newer understand the ones we use). `options` are those of `avoiding`. `compares`: files with the same
    content are stored once.
    """
    argv = [
        "mksquashfs",
        str(source),
        str(destination),
        # An existing file would be appended to, and the image hold two root directories.
        "-noappend",
        # Rootless, files belong to numbers of a subuid range, which mean nothing elsewhere.
        "-all-root",
        # Rootless overlay storage keeps its own book-keeping in attributes.
        "-no-xattrs",
        # A file that cannot be read would be stored empty, with a warning and exit status 0.
        "-exit-on-error",
        *compression_options(compression, level, block_size_bytes),
        *("-processors", str(processors)),
        # By default a quarter of the machine's memory, whatever the job may use of it.
        *("-mem", f"{memory_bytes >> 20}M"),
        *options,
        *(() if compares else ("-no-duplicates",)),
    ]
    for action in actions:
        argv += ["-action", action]
    if exclude := tuple(exclude):
        # Everything after -e is a pattern, so it stands last.
        argv += ["-wildcards", "-e", *exclude]
    # Errors are recognised by their words.
    return Command(tuple(argv), env={"LC_ALL": "C"})


def drawn_percent(line: str) -> int | None:
    """How much is done, by a state of the bar that mksquashfs draws on a terminal; None: another line.

    Elsewhere it draws the bar at multiples of 100 blocks only, which it never looks at in time, and
    `-percentage` is not known to versions before 4.6 (squashfs-tools, progressbar.c).
    """
    found = _BAR.fullmatch(line)
    return int(found[1]) if found is not None else None


def explains(line: str) -> bool:
    """Whether a line of mksquashfs may say why it failed: not those with which it begins."""
    return not line.startswith(("Parallel mksquashfs: ", "Creating 4.0 filesystem on "))


def tell_percent(percent: int) -> str:
    """A line for a log, to be followed by a carriage return: the next one takes its place."""
    return f"mksquashfs {percent:3}%"


def told_percent(line: str) -> int | None:
    """The percentage in a line of `tell_percent`."""
    found = _TOLD.fullmatch(line)
    return int(found[1]) if found is not None else None


def listing(path: Path) -> Command:
    """`unsquashfs` printing one line an entry: mode, owner, size, date, time and name."""
    # An end of options does not exist, so a name must not begin with a dash.
    return Command(("unsquashfs", "-lln", str(path.absolute())), env={"LC_ALL": "C"})


def read_text(path: Path, name: str, most_bytes: int = 1 << 16) -> str:
    """The beginning of a text file in an image; symlinks are followed inside of it.

    Raises ArtifactError when there is no such image or file.
    """
    try:
        inspect(path)
    except ArtifactError as error:
        raise error.with_hint("give the path of a whole image.sqsh") from None
    command.require("unsquashfs", INSTALL_HINT)
    done = _cat(path, name, most_bytes)
    # An option of unsquashfs follows no absolute symlink, and with 4.5 hardly any.
    if not done.stdout and done.stderr and (followed := _followed(path, name)) != name:
        done = _cat(path, followed, most_bytes)
    if done.stderr and not done.stdout:
        raise ArtifactError(
            f"{name} cannot be read from this image",
            where=path,
            quote=tuple(done.stderr.splitlines()[-3:]),
            hint="squashfs-tools 4.5 and newer can read it; images without it are not for Enroot",
        )
    return done.stdout


def _cat(path: Path, name: str, most_bytes: int) -> command.Completed:
    # unsquashfs would write all of it, however much that is.
    script = 'unsquashfs -cat "$1" "$2" | head -c "$3"'
    argv = ("sh", "-c", script, "sh", str(path.absolute()), name.lstrip("/"), str(most_bytes))
    return command.capture(Command(argv, env={"LC_ALL": "C"}), check=False)


def _followed(path: Path, name: str) -> str:
    """Where a path leads in an image; itself where there is a loop."""
    script = 'unsquashfs -lln "$1" | grep "^l"'
    wanted = Command(("sh", "-c", script, "sh", str(path.absolute())), env={"LC_ALL": "C"})
    entries = map(_LINK.fullmatch, command.capture(wanted, check=False).stdout.split("\n"))
    targets = {entry[1]: entry[2] for entry in entries if entry is not None}
    try:
        return links.follow(name, targets.get)
    except OSError:
        return name
