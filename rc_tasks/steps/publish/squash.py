"""From an image in podman's storage to a checked SquashFS file, published by rename."""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, NoReturn

from rc_tasks.errors import ArtifactError
from rc_tasks.model.config.settings import Compression, Squash, SquashMethod
from rc_tasks.state.disk.files import put_in_place, refused, umask
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.publish.contents import Look
from rc_tasks.tools import command, enroot, squashfs
from rc_tasks.tools.command import Command, Completed
from rc_tasks.tools.podman import Image, Podman

_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.tmp\.sqsh")
# A file or a symlink, with its size, in what `squashfs.listing` prints.
_ENTRY = re.compile(rb"([-l])\S+ \S+ +(\d+) \S+ \S+ squashfs-root(/.*)")
_MEMORY_BYTES = 1 << 30
_MEMORY_PER_PROCESSOR_BYTES = 16 << 20


def temporary(final: Path) -> Path:
    """A new name beside `final`, for `squash` to write and `publish` to rename."""
    # Ends like the images that .gitignore keeps out; `sweep` knows it by its middle.
    return final.with_name(f".{final.stem}.{secrets.token_hex(8)}.tmp.sqsh")


def sweep(directory: Path) -> None:
    """Remove what killed steps left in a project directory; whoever calls holds the image's lock."""
    for path in left(directory):
        path.unlink(missing_ok=True)


def left(directory: Path) -> list[Path]:
    """What steps write or have left in a project directory; only the lock tells which of both."""
    with os.scandir(directory) as entries:
        return [
            Path(each.path)
            for each in entries
            # Of an adopted image there is a link.
            if _TEMPORARY.fullmatch(each.name)
            and (each.is_symlink() or each.is_file(follow_symlinks=False))
        ]


def squash(
    podman: Podman,
    image: Image,
    destination: Path,
    *,
    settings: Squash,
    provenance: tuple[str, ...],
    log: IO[bytes] | None,
    look: Look | None = None,
) -> None:
    """Write the image to `destination`, a name that does not exist; nothing is left when it fails.

    `provenance` lines go to the beginning of /etc/rc; `enroot import` has no way to add them. The
    tools' output goes to `log` (None: to our own output). `look` goes through the image meanwhile.
    Rootless, this runs in `podman unshare`.
    Raises ArtifactError when the disk is full or the tool fails.
    """
    processors = settings.processors or len(os.sched_getaffinity(0))
    automatic = settings.compression is Compression.AUTO
    wanted = squashfs.Compressor.ZSTD if automatic else squashfs.Compressor(settings.compression)
    compression = squashfs.best(wanted, squashfs.probe())
    # A level means something else to each compressor.
    level = settings.level if compression is wanted else 0
    version = squashfs.version()
    if avoiding := squashfs.workaround_options(version):
        does = squashfs.WRONG_CONTENT.does
        _say(log, f"mksquashfs {version} {does}: {' '.join(avoiding)} avoids it")
    try:
        if settings.method is SquashMethod.ENROOT:
            options = squashfs.compression_options(compression, level, settings.block_size_bytes)
            options += avoiding
            with podman.mounted(image.id, name=container_name(destination)) as root:
                rootfs.require_contained(root, image.workdir)
                with _beside(look, root):
                    _enroot(podman, image, destination, options, processors, log)
            return
        with podman.mounted(image.id, name=container_name(destination)) as root:
            rootfs.prepare(root, image, provenance)
            make = functools.partial(
                squashfs.mksquashfs,
                root,
                destination,
                compression=compression,
                level=level,
                block_size_bytes=settings.block_size_bytes,
                processors=processors,
                memory_bytes=_MEMORY_BYTES + processors * _MEMORY_PER_PROCESSOR_BYTES,
                exclude=rootfs.EXCLUDE,
                actions=rootfs.ACTIONS,
                options=avoiding,
            )
            with _beside(look, root):
                done = _draw(make(), log)
                if done.returncode != 0 and squashfs.failed_comparing(done.stdout):
                    # With the same files it may fail each time.
                    _say(
                        log,
                        f"mksquashfs {version} failed while it compared files: once more without, which"
                        " stores files with the same content several times",
                    )
                    done = _draw(make(compares=False), log)
                if done.returncode != 0:
                    _fail(done, destination.parent, image)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


def check(path: Path) -> int:
    """The size in bytes of an image that can be started; raises ArtifactError with what is wrong."""
    squashfs.inspect(path)
    with tempfile.TemporaryFile() as lines:
        command.require("unsquashfs", squashfs.INSTALL_HINT)
        returncode = command.stream(squashfs.listing(path), lines)
        lines.seek(0)
        there = linked = elsewhere = False
        last = b""
        for line in lines:
            last = line.rstrip(b"\n")
            # A name with a line break in it goes on in a line that is no entry.
            if entry := _ENTRY.fullmatch(last):
                kind, size, name = entry.groups()
                if kind == b"l":
                    name = name.partition(b" -> ")[0]
                linked |= kind == b"l" and name == b"/etc"
                there |= name == b"/etc/rc" and size != b"0"
                elsewhere |= name.endswith(b"/rc") and size != b"0"
    if returncode != 0:
        raise ArtifactError(
            f"unsquashfs cannot list the image: it {command.ending(returncode)}",
            where=path,
            quote=(last.decode(errors="replace"),),
            hint="build again; if it happens again, try another version of squashfs-tools",
        )
    # Where a symlink leads is the image's affair, and can take several more.
    if not (there or (linked and elsewhere)):
        raise ArtifactError(
            "the image has no /etc/rc, so Enroot could not start it",
            where=path,
            hint="build again; the step's log shows what mksquashfs said",
        )
    return path.stat().st_size


def publish(temporary: Path, final: Path) -> None:
    """Put a checked image in place of the old one, whole or not at all, also when the power fails.

    Jobs that run from the old image keep it. The new one gets the mode that the umask says and the
    directory's group.
    """
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        # Not ours to give when the directory belongs to a group that we are not in.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, final.parent.stat().st_gid)
        # mksquashfs never gives the group the right to write, whatever the umask.
        os.fchmod(descriptor, 0o666 & ~umask())
        os.fsync(descriptor)
    except OSError as error:
        # A quota may be found to be used up only now, and the error names no file.
        raise refused(error, final) or error from None
    finally:
        os.close(descriptor)
    put_in_place(temporary, final)
    directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _beside(look: Look | None, root: Path) -> Iterator[None]:
    """Let `look` go through a mounted image while the body runs; it ends before this ends."""
    if look is None:
        yield
        return
    stop = threading.Event()
    # mksquashfs is a process of its own, and reads the same directories: each finds them in memory
    # where the other has been before.
    with ThreadPoolExecutor(1) as pool:
        looked = pool.submit(look.run, root, stop)
        try:
            yield
            looked.result()
        finally:
            stop.set()


def _enroot(
    podman: Podman,
    image: Image,
    destination: Path,
    options: tuple[str, ...],
    processors: int,
    log: IO[bytes] | None,
) -> None:
    command.require("enroot", enroot.INSTALL_HINT)
    if enroot.exports(image.env):
        name = next(each.partition("=")[0] for each in image.env if "\n" in each)
        raise ArtifactError(
            f"`enroot import` cannot keep the line break in the image's variable {name}",
            where=destination.parent,
            hint='set `method = "direct"` in the [squash] settings, or give it a value of one line\n'
            "in the Dockerfile",
        )
    label = f"rc-squash={container_name(destination)}"
    place = os.environ.get("ENROOT_TEMP_PATH")
    with tempfile.TemporaryDirectory(
        prefix="rc-enroot-", dir=place, ignore_cleanup_errors=True
    ) as scratch:
        made = enroot.import_podman(
            image.id,
            destination,
            podman=podman.command(),
            inspected=_inspected(image),
            label=label,
            scratch=Path(scratch),
            squash_options=options,
            processors=processors,
        )
        # What a killed run left, as with --replace.
        podman.remove_labelled(label)
        try:
            done = _run(made, log)
        finally:
            podman.remove_labelled(label)
    # The exit status is 127 or 1 after a good import on most hosts, and can be 0 after a bad one.
    try:
        squashfs.inspect(destination)
    except ArtifactError:
        if done.returncode == 0:
            raise
        # It unpacks the whole image elsewhere first.
        started = "Creating squashfs filesystem" in done.stderr
        full = destination.parent if started else Path(place or tempfile.gettempdir())
        _fail(done, full, image)


def _inspected(image: Image) -> str:
    """Return the JSON of `podman inspect` that makes Enroot write the settings as they are meant."""
    config = {
        "Env": enroot.environment(image.env),
        "Labels": image.labels,
        "Entrypoint": image.entrypoint,
        "Cmd": image.cmd,
        "WorkingDir": image.workdir,
        "Volumes": {volume: {} for volume in image.volumes},
    }
    return json.dumps([{"Architecture": image.architecture, "Config": config}])


def _draw(made: Command, log: IO[bytes] | None) -> Completed:
    """Run mksquashfs; the log gets its percentage in one line, of which the last state counts."""
    output = log if log is not None else sys.stdout.buffer
    lines: list[str] = []
    told = -1

    def write(text: str) -> None:
        output.write(text.encode(errors="surrogateescape"))
        output.flush()

    def see(line: str) -> None:
        nonlocal told
        percent = squashfs.drawn_percent(line)
        if percent is None:
            write("\n" * (told >= 0) + f"{line}\n")
            if squashfs.may_explain_failure(line):
                lines.append(line)
            told = -1
        elif percent != told:
            write(f"{squashfs.progress_line(percent)}\r")
            told = percent

    write(f"+ {made}\n")
    started = time.monotonic()
    returncode = command.watch_drawing(made, see)
    write("\n" * (told >= 0))
    return Completed(made, returncode, "\n".join(lines), "", time.monotonic() - started)


def _run(made: Command, log: IO[bytes] | None) -> Completed:
    """Run a tool that says little, and copy what it said to the log."""
    output = log if log is not None else sys.stdout.buffer
    output.write(f"+ {made}\n".encode(errors="surrogateescape"))
    output.flush()
    done = command.capture(made, check=False)
    output.write((done.stdout + done.stderr).encode())
    output.flush()
    return done


def _say(log: IO[bytes] | None, line: str) -> None:
    output = log if log is not None else sys.stdout.buffer
    output.write(f"{line}\n".encode())
    output.flush()


def _fail(done: Completed, directory: Path, image: Image) -> NoReturn:
    """Raise what went wrong; `directory` is where the tool wrote, and has removed its file."""
    lines = (done.stderr or done.stdout).splitlines()
    said = done.stdout + done.stderr
    if "Disk quota exceeded" in said:
        # What is free on the disk says nothing then.
        raise ArtifactError(
            f"the disk quota was used up while squashing; the image is {_gb(image.size_bytes)} unpacked",
            where=directory,
            quote=tuple(lines[-3:]),
            hint="remove what is not needed (`doit gc`) or ask for more quota there, then run again;\n"
            "the image that was there before is untouched",
        )
    if "No space left on device" not in said:
        # Its environment, our door on PATH among it, stands in the log.
        raise command.failure(replace(done.command, env={}), done.returncode, lines)
    free = shutil.disk_usage(directory).free
    raise ArtifactError(
        f"no space left while squashing: {_gb(free)} are free here without the unfinished file, and "
        f"the image is {_gb(image.size_bytes)} unpacked",
        where=directory,
        quote=tuple(lines[-3:]),
        hint="free space or ask for more quota there, then run again;\n"
        "the image that was there before is untouched",
    )


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def container_name(destination: Path) -> str:
    """The name of the container in which an image is squashed to a place."""
    # The same for each squash into one project directory, so that the next one removes what a
    # killed one left. They never run at the same time: the image's lock is held.
    return "rc-squash-" + hashlib.sha256(os.fsencode(destination.parent.resolve())).hexdigest()[:16]
