"""SquashFS file of an image in podman's storage: written, checked, and published by rename."""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from rc_tasks.errors import ArtifactError
from rc_tasks.model.config.settings import Squash, SquashMethod
from rc_tasks.squashfs import superblock
from rc_tasks.state.disk.files import put_in_place, refused, umask
from rc_tasks.steps.container import rootfs
from rc_tasks.steps.publish.contents import ContentsWalk
from rc_tasks.steps.publish.image_files import MountedFiles
from rc_tasks.steps.save import mksquashfs
from rc_tasks.steps.save.layers import options
from rc_tasks.tools import command, enroot, squashfs
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Image, Podman

_TEMPORARY = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.tmp\.sqsh")
# A file or a symlink, with its size, in the output of `squashfs.listing`.
_ENTRY = re.compile(rb"([-l])\S+ \S+ +(\d+) \S+ \S+ squashfs-root(/.*)")


def temporary(final: Path) -> Path:
    """Return a new name beside `final`, for `squash` to write and `publish` to rename."""
    # Its suffix matches the images that .gitignore ignores; `sweep` recognizes the rest.
    return final.with_name(f".{final.stem}.{secrets.token_hex(8)}.tmp.sqsh")


def sweep(directory: Path) -> None:
    """Remove what killed steps left in a project directory; the caller holds the image's lock."""
    for path in left(directory):
        path.unlink(missing_ok=True)


def left(directory: Path) -> list[Path]:
    """Return the files that steps write or have left in a project directory.

    A file is left over when nobody holds the image's lock.
    """
    with os.scandir(directory) as entries:
        return [
            Path(entry.path)
            for entry in entries
            # The file of an adopted image is a symlink.
            if _TEMPORARY.fullmatch(entry.name)
            and (entry.is_symlink() or entry.is_file(follow_symlinks=False))
        ]


def squash(
    podman: Podman,
    image: Image,
    destination: Path,
    *,
    settings: Squash,
    provenance: tuple[str, ...],
    log: IO[bytes] | None,
    walk: ContentsWalk | None = None,
) -> None:
    """Write the image to `destination`, a name that does not exist; leave nothing on failure.

    `provenance` lines go to the beginning of /etc/rc; `enroot import` has no way to add them. The
    tools' output goes to `log` (None: to our own output). `walk` walks through the image meanwhile.
    With the method `merge`, which is not for here, the image is squashed whole. Rootless, run it in
    `podman unshare`.
    Raise ArtifactError when the disk is full or the tool fails.
    """
    make = options(settings, log)
    try:
        if settings.method is SquashMethod.ENROOT:
            with podman.mounted(image.id, name=container_name(destination)) as root:
                rootfs.require_contained(root, image.workdir)
                with _beside(walk, root):
                    _enroot(podman, image, destination, make.keywords, log)
            return
        with podman.mounted(image.id, name=container_name(destination)) as root:
            rootfs.prepare(root, image, provenance)

            def whole(compares: bool) -> Command:
                edit = functools.partial(make, exclude=rootfs.EXCLUDE, actions=rootfs.ACTIONS)
                return edit(root, destination, compares=compares)

            with _beside(walk, root):
                mksquashfs.run(whole, destination.parent, image.size_bytes, log)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


def check(path: Path) -> int:
    """Return the size in bytes of an image that Enroot can start. Raise ArtifactError."""
    superblock.inspect(path)
    with tempfile.TemporaryFile() as lines:
        command.require("unsquashfs", squashfs.INSTALL_HINT)
        returncode = command.stream(squashfs.listing(path), lines)
        lines.seek(0)
        there = linked = elsewhere = False
        last = b""
        for line in lines:
            last = line
            # Images have hundreds of thousands of entries.
            if b"/rc" not in line and b"/etc -> " not in line:
                continue
            # A name with a line break continues in a line that is no entry.
            if entry := _ENTRY.fullmatch(line.rstrip(b"\n")):
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
            quote=(last.decode(errors="replace").rstrip("\n"),),
            hint="build again; if it happens again, try another version of squashfs-tools",
        )
    # /etc may be a chain of symlinks: any non-empty rc file is accepted then.
    if not (there or (linked and elsewhere)):
        raise ArtifactError(
            "the image has no /etc/rc, so Enroot could not start it",
            where=path,
            hint="build again; the step's log shows the output of mksquashfs",
        )
    return path.stat().st_size


def publish(temporary: Path, final: Path) -> None:
    """Replace the published image by a checked one, whole or not at all, even if the power fails.

    Jobs that run from the old image keep it. The new one gets the mode of the umask and the group of the
    directory. Raise RcError.
    """
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        # This fails when the user is not in the directory's group.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, final.parent.stat().st_gid)
        # mksquashfs never lets the group write, whatever the umask.
        os.fchmod(descriptor, 0o666 & ~umask())
    except OSError as error:
        raise refused(error, final) or error from None
    finally:
        os.close(descriptor)
    synchronize(temporary, final)
    put_in_place(temporary, final)
    directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def synchronize(temporary: Path, final: Path) -> None:
    """Write a file that is to replace `final` to the disk. Raise RcError."""
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # The error of an exhausted quota may come only now, and names no file.
        raise refused(error, final) or error from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _beside(walk: ContentsWalk | None, root: Path) -> Iterator[None]:
    """Let `walk` walk through a mounted image while the body runs; wait for its end."""
    if walk is None:
        yield
        return
    stop = threading.Event()
    # mksquashfs reads the same directories in a process of its own: each finds those that the other has
    # read in the cache.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(walk.run, MountedFiles(root), stop)
        try:
            yield
            running.result()
        finally:
            stop.set()


def _enroot(
    podman: Podman,
    image: Image,
    destination: Path,
    given: Mapping[str, Any],
    log: IO[bytes] | None,
) -> None:
    """Let Enroot write the image; `given` are the arguments of `squashfs.mksquashfs`."""
    command.require("enroot", enroot.INSTALL_HINT)
    if enroot.exports(image.env):
        name = next(assignment.partition("=")[0] for assignment in image.env if "\n" in assignment)
        raise ArtifactError(
            f"`enroot import` cannot keep the line break in the image's variable {name}",
            where=destination.parent,
            hint='set `method = "direct"` in the [squash] settings, or give it a value of one line\n'
            "in the Dockerfile",
        )
    label = f"rc-squash={container_name(destination)}"
    temp_path = os.environ.get("ENROOT_TEMP_PATH")
    with tempfile.TemporaryDirectory(
        prefix="rc-enroot-", dir=temp_path, ignore_cleanup_errors=True
    ) as scratch:
        invocation = enroot.import_podman(
            image.id,
            destination,
            podman=podman.command(),
            inspected=_inspected(image),
            label=label,
            scratch=Path(scratch),
            squash_options=(
                *squashfs.compression_options(
                    given["compression"], given["level"], given["block_size_bytes"]
                ),
                *given["options"],
            ),
            processors=given["processors"],
        )
        # Remove the container of a killed run, as --replace would.
        podman.remove_labelled(label)
        try:
            done = mksquashfs.copied(invocation, log)
        finally:
            podman.remove_labelled(label)
    # The exit status is 127 or 1 after a good import on most hosts, and can be 0 after a bad one.
    try:
        superblock.inspect(destination)
    except ArtifactError:
        if done.returncode == 0:
            raise
        # Enroot unpacks the whole image in `temp_path` first.
        started = "Creating squashfs filesystem" in done.stderr
        full = destination.parent if started else Path(temp_path or tempfile.gettempdir())
        mksquashfs.fail(done, full, image.size_bytes)


def _inspected(image: Image) -> str:
    """Return JSON in the form of `podman inspect` that makes Enroot write the right settings."""
    config = {
        "Env": enroot.environment(image.env),
        "Labels": image.labels,
        "Entrypoint": image.entrypoint,
        "Cmd": image.cmd,
        "WorkingDir": image.workdir,
        "Volumes": {volume: {} for volume in image.volumes},
    }
    return json.dumps([{"Architecture": image.architecture, "Config": config}])


def container_name(destination: Path) -> str:
    """Return the name of the container in which an image is squashed to `destination`."""
    # It is the same for each squash into one project directory, so that the next one removes what a
    # killed one left. The image's lock prevents two at the same time.
    return "rc-squash-" + hashlib.sha256(os.fsencode(destination.parent.resolve())).hexdigest()[:16]
