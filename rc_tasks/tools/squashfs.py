"""Commands of mksquashfs and unsquashfs."""

import re
from collections.abc import Iterable
from pathlib import Path

from rc_tasks.errors import ArtifactError
from rc_tasks.squashfs.superblock import Compressor, inspect
from rc_tasks.tools import command, failures, links
from rc_tasks.tools.command import Command
from rc_tasks.tools.version import Fault

INSTALL_HINT = "install squashfs-tools (Debian: apt-get install squashfs-tools)"

# mksquashfs gives a file of several all-zero blocks the same place as the next file. Which of the two is
# read depends on the speed of the threads. The CHANGES say since 4.7; it happens since a commit of 4.7.3
# (07852991). With 4.7.4 six of 20 images were wrong, each with exit status 0; with -no-sparse none of
# 45, and with 4.7.2 none of 30.
WRONG_CONTENT = Fault(
    (4, 7),
    (4, 7, 5),
    "can silently write wrong content into files where an image has files of zeros only",
    "steps give it -no-sparse, with which it does not; for what you squash by hand, ask for\n"
    "squashfs-tools 4.7.5 or newer (squashfs-tools#339)",
    "squashfs-tools#339, and its CHANGES for 4.7.5, 2.1",
)
# mksquashfs reads data that it has not written yet, and fails. Source: the CHANGES for 4.7.6, 7.1 and
# 7.2.
FAILING_COMPARISON = Fault(
    (4, 7),
    (4, 7, 6),
    "can fail while it compares files with each other",
    'unless squash.method is "enroot", the step runs it once more without comparing, which makes\n'
    "the image larger; versions after 4.7.5 do not fail (squashfs-tools#361, #362)",
    "squashfs-tools#361 and #362, both fixed in April 2026",
)

_BAR = re.compile(r"\[=*[-/|\\] *\] *\d+/\d+ +(\d+)%")
_PROGRESS_LINE = re.compile(r"mksquashfs +(\d+)%")
# A symlink in what `listing` prints.
_LINK = re.compile(r"l\S+ \S+ +\d+ \S+ \S+ squashfs-root(/.*?) -> (.*)")
# The order in which to replace a compressor that mksquashfs lacks. gzip is last, as every mksquashfs and
# every kernel has it.
_PREFERENCE = (Compressor.ZSTD, Compressor.LZ4, Compressor.LZO, Compressor.GZIP)


def version() -> str:
    """Return the version of mksquashfs, such as `4.5.1`."""
    command.require("mksquashfs", INSTALL_HINT)
    # Older versions exit with 1 after printing their version.
    done = command.capture(Command(("mksquashfs", "-version")), check=False)
    match = re.search(r"version (\S+)", done.stdout + done.stderr)
    if match is None:
        raise command.failure(done.command, done.returncode, (done.stderr or done.stdout).splitlines())
    return match[1]


def probe() -> frozenset[Compressor]:
    """Return the compressors that the mksquashfs of this node was built with."""
    command.require("mksquashfs", INSTALL_HINT)
    # 4.7 prints only this section. Older versions do not know the option: they print their whole help
    # and exit with 1. Both outputs hold the list.
    done = command.capture(Command(("mksquashfs", "-help-section", "compression")), check=False)
    return parse_compressors(done.stdout + done.stderr)


def parse_compressors(text: str) -> frozenset[Compressor]:
    """Return the compressors in mksquashfs' help: each alone on a line, one marked as the default."""
    names = "|".join(Compressor)
    return frozenset(
        Compressor(name) for name in re.findall(rf"(?m)^\s*({names})(?: \(default\))?$", text)
    )


def best(preferred: Compressor, offered: Iterable[Compressor]) -> Compressor:
    """Return `preferred` when it is offered, else the first offered of zstd, lz4, lzo and gzip."""
    offered = frozenset(offered)
    return next(
        (candidate for candidate in (preferred, *_PREFERENCE) if candidate in offered), Compressor.GZIP
    )


def compression_options(compression: Compressor, level: int, block_size_bytes: int) -> tuple[str, ...]:
    """Return the compression options; level 0 is the fastest level that is worth its size.

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


def workaround_options(version: str) -> tuple[str, ...]:
    """Return the options that this version of mksquashfs needs to write correct content."""
    return ("-no-sparse",) if WRONG_CONTENT.affects(version) else ()


def failed_comparing(output: str) -> bool:
    """Return whether mksquashfs failed while it compared files, which a run without comparing avoids."""
    return failures.find(output.splitlines(), (failures.COMPARING,)) is not None


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
    keeps_owners: bool = False,
) -> Command:
    """Return `mksquashfs` of a directory; `exclude` holds shell patterns relative to `source`.

    `actions` change what is stored, not the source (squashfs-tools, ACTIONS-README; all of 4.4 and newer
    understand the ones we use). `options` are those of `workaround_options`. `compares`: files with the
    same content are stored once. `keeps_owners`: owners and attributes are stored, else root owns all.
    """
    argv = [
        "mksquashfs",
        str(source),
        str(destination),
        # Without it, mksquashfs appends to an existing file, and the image has two root directories.
        "-noappend",
        # Rootless, files belong to UIDs of a subuid range, which mean nothing on other hosts. Overlay
        # storage keeps its own records in attributes.
        *(("-xattrs",) if keeps_owners else ("-all-root", "-no-xattrs")),
        # Without it, an unreadable file is stored empty, with a warning and exit status 0.
        "-exit-on-error",
        *compression_options(compression, level, block_size_bytes),
        *("-processors", str(processors)),
        # The default is a quarter of the machine's memory, which the job may not be allowed to use.
        *("-mem", f"{memory_bytes >> 20}M"),
        *options,
        *(() if compares else ("-no-duplicates",)),
    ]
    for action in actions:
        argv += ["-action", action]
    if exclude := tuple(exclude):
        # mksquashfs takes everything after -e as a pattern, so it is last.
        argv += ["-wildcards", "-e", *exclude]
    # We recognise errors by their English messages.
    return Command(tuple(argv), env={"LC_ALL": "C"})


def drawn_percent(line: str) -> int | None:
    """Return the percentage in the bar that mksquashfs draws on a terminal; None for another line.

    Without a terminal it draws the bar only at multiples of 100 blocks, which it checks too rarely.
    `-percentage` is unknown to versions before 4.6 (squashfs-tools, progressbar.c).
    """
    match = _BAR.fullmatch(line)
    return int(match[1]) if match is not None else None


def may_explain_failure(line: str) -> bool:
    """Return whether a line of mksquashfs may explain a failure; its first lines never do."""
    return not line.startswith(("Parallel mksquashfs: ", "Creating 4.0 filesystem on "))


def progress_line(percent: int) -> str:
    """Return a line for a log; a carriage return after it lets the next one replace it."""
    return f"mksquashfs {percent:3}%"


def progress_percent(line: str) -> int | None:
    """Return the percentage in a line of `progress_line`, or None."""
    match = _PROGRESS_LINE.fullmatch(line)
    return int(match[1]) if match is not None else None


def listing(path: Path) -> Command:
    """Return `unsquashfs` that prints one line an entry: mode, owner, size, date, time and name."""
    # Without a TZ the C library looks at /etc/localtime for each entry: two thirds of the whole time.
    environment = {"LC_ALL": "C", "TZ": "UTC0"}
    # unsquashfs has no `--`, so an absolute path keeps a name from beginning with a dash.
    return Command(("unsquashfs", "-lln", str(path.absolute())), env=environment)


def read_text(path: Path, name: str, most_bytes: int = 1 << 16) -> str:
    """Return the beginning of a text file in an image; symlinks are followed inside of it.

    Raise ArtifactError when there is no such image or file.
    """
    try:
        inspect(path)
    except ArtifactError as error:
        raise error.with_hint("give the path of a whole image.sqsh") from None
    command.require("unsquashfs", INSTALL_HINT)
    done = _cat(path, name, most_bytes)
    # unsquashfs itself cannot follow absolute symlinks, and 4.5 hardly any.
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
    # Without `head`, unsquashfs writes the whole file, however large.
    script = 'unsquashfs -cat "$1" "$2" | head -c "$3"'
    argv = ("sh", "-c", script, "sh", str(path.absolute()), name.lstrip("/"), str(most_bytes))
    return command.capture(Command(argv, env={"LC_ALL": "C"}), check=False)


def _followed(path: Path, name: str) -> str:
    """Return the path that `name` leads to in an image; `name` itself for a loop."""
    script = 'unsquashfs -lln "$1" | grep "^l"'
    list_links = Command(("sh", "-c", script, "sh", str(path.absolute())), env={"LC_ALL": "C"})
    entries = map(_LINK.fullmatch, command.capture(list_links, check=False).stdout.split("\n"))
    targets = {entry[1]: entry[2] for entry in entries if entry is not None}
    try:
        return links.follow(name, targets.get)
    except OSError:
        return name
