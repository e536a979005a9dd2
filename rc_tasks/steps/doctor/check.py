"""Checks of a node that runs steps, made on that node; `doit doctor` shows them."""

import contextlib
import json
import os
import resource
import secrets
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from msgspec import convert, to_builtins

from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import Compression, SquashMethod
from rc_tasks.model.graph import smoke
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import has_links
from rc_tasks.state.disk.locks import held
from rc_tasks.steps.doctor import credentials, trial
from rc_tasks.steps.doctor.finding import Finding, Level
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.node import podman_storage as storages
from rc_tasks.steps.publish import smoke as smoke_tests
from rc_tasks.tools import command, podman, podman_versions, squashfs
from rc_tasks.tools.version import numbers
from rc_tasks.util.json_decode import load

# What a finding's line begins with in a step's log, so that `doit doctor` finds it among other output.
MARK = "rc-finding "
_WANTED_FREE_BYTES = 20_000_000_000
_WANTED_FILES = 65_536


def print_findings(checkout: Checkout) -> None:
    """Check this node and print each finding as one marked line of JSON."""
    for finding in findings(checkout):
        print(MARK + json.dumps(to_builtins(finding)), flush=True)


def parse_findings(lines: list[str]) -> Iterator[Finding]:
    """Yield the findings among the lines of a log."""
    for line in lines:
        if line.startswith(MARK):
            yield convert(load(line.removeprefix(MARK).encode()), Finding)


def findings(checkout: Checkout) -> Iterator[Finding]:
    """Everything that this node is checked for."""
    podman_findings = list(_podman(checkout))
    yield from podman_findings
    if all(finding.level is not Level.PROBLEM for finding in podman_findings):
        yield from trial.findings(checkout)
    yield from _skopeo()
    yield from _store(checkout)
    yield from _squash(checkout)
    yield from credentials.findings(checkout)
    yield from _smoke(checkout)
    yield from _space(checkout)
    yield from _left(checkout)
    yield _files()
    yield from _locks(checkout)
    yield _checkout(checkout)


def _podman(checkout: Checkout) -> Iterator[Finding]:
    try:
        # First, as it says where podman puts what it notes in a job.
        engine = nodes.storage(checkout.settings.podman)
        version = podman.version()
    except RcError as error:
        yield Finding(Level.PROBLEM, error.what, error.hint or "")
        return
    if not podman_versions.at_least(version, numbers(podman_versions.OLDEST)):
        hint = f"{podman_versions.OLDEST} is the oldest that is known to work"
        yield Finding(Level.PROBLEM, f"podman {version} is too old", hint)
        return
    try:
        host, driver = engine.info()
    except RcError as error:
        yield Finding(Level.PROBLEM, f"podman does not start: {error.what}", _last(error))
        return
    programs = [option.partition("=")[2] for option in engine.options if "mount_program" in option]
    through = f" through {programs[-1]}" if programs else ""
    place = Path(engine.root).parent if engine.root else "podman's own storage"
    yield Finding(Level.OK, f"podman {version}, storage driver {driver}{through} in {place}")
    for dropped in podman_versions.dropped(version, host, engine.network):
        yield Finding(
            Level.WARNING, dropped.does, dropped.advice.format(podman=shlex.join(engine.command().argv))
        )
    directory = storages.directory(checkout.settings.podman)
    warning = storages.driver(checkout.settings.podman, directory).warning if directory else ""
    if warning:
        yield Finding(Level.WARNING, warning, "ask the site for fuse-overlayfs, or set podman.options")
    elif driver == "vfs":
        yield Finding(
            Level.WARNING,
            "storage driver vfs copies the whole image for every instruction",
            "set podman.driver to overlay (rootless on an old kernel: install fuse-overlayfs)",
        )
    if podman.rootless():
        user = command.capture(
            engine.unshare(command.Command(("cat", "/proc/self/uid_map"))), check=False
        )
        if len(user.stdout.splitlines()) < 2:
            yield Finding(
                Level.PROBLEM,
                "this user has no range of subordinate user IDs",
                "ask an administrator for a line in /etc/subuid and /etc/subgid",
            )


def _skopeo() -> Iterator[Finding]:
    if command.which("skopeo") is None:
        yield Finding(
            Level.WARNING,
            "skopeo was not found: `doit bases --check` and `--update` cannot ask a registry",
            "install skopeo, or run these two on a machine that has it",
        )
    else:
        yield Finding(Level.OK, "skopeo")


def _store(checkout: Checkout) -> Iterator[Finding]:
    if not checkout.settings.store.enabled:
        yield Finding(Level.OK, "the store is off: images stay on the node that built them")
    else:
        with contextlib.suppress(RcError):  # the check of podman has reported it
            yield Finding(Level.OK, *mounted_images.described(checkout.settings))


def _squash(checkout: Checkout) -> Iterator[Finding]:
    settings = checkout.settings.squash
    tools = ["mksquashfs", "unsquashfs"]
    tools += ["enroot"] if settings.method is SquashMethod.ENROOT else []
    missing = [tool for tool in tools if command.which(tool) is None]
    for tool in missing:
        package = "enroot" if tool == "enroot" else "squashfs-tools"
        yield Finding(Level.PROBLEM, f"{tool} was not found", f"install {package}")
    if not missing:
        automatic = settings.compression is Compression.AUTO
        preferred = Compressor.ZSTD if automatic else Compressor(settings.compression)
        compression, version = squashfs.best(preferred, squashfs.probe()), squashfs.version()
        if (fault := squashfs.WRONG_CONTENT).affects(version):
            yield Finding(Level.WARNING, f"mksquashfs {version} {fault.does}", fault.advice)
        what = f"mksquashfs {version}, compression {compression}"
        if (fault := squashfs.FAILING_COMPARISON).affects(version):
            # No warning: the step works around it, and there may be no better version yet.
            yield Finding(Level.OK, f"{what}; it {fault.does}", fault.advice)
        else:
            yield Finding(Level.OK, what)


def _smoke(checkout: Checkout) -> Iterator[Finding]:
    tested = [node for node in checkout.graph.images.values() if smoke.smoke_tests(checkout.graph, node)]
    if not tested:
        return
    try:
        launcher = smoke_tests.choose(checkout)
    except RcError as error:
        yield Finding(Level.PROBLEM, error.what, error.hint or "")
        return
    images = "1 image" if len(tested) == 1 else f"{len(tested)} images"
    yield Finding(Level.OK, f"smoke tests of {images}: {launcher}")


def _space(checkout: Checkout) -> Iterator[Finding]:
    places = [("the checkout", checkout.root)]
    try:
        places.append(("temporary files", nodes.temporary_files()))
    except RcError as error:
        yield Finding(Level.PROBLEM, error.what, error.hint or "")
    with contextlib.suppress(RcError):  # the check of podman has reported it
        if root := nodes.storage(checkout.settings.podman).root:
            places.append(("podman's images", Path(root).parent))
    for what, place in places:
        free = nodes.free_bytes(place)
        message = f"{free / 1e9:.0f} GB free for {what} ({place})"
        if free < _WANTED_FREE_BYTES:
            yield Finding(Level.WARNING, message, "images of 20 GB are common; make room or move it")
        else:
            yield Finding(Level.OK, message)


def _left(checkout: Checkout) -> Iterator[Finding]:
    with contextlib.suppress(RcError):  # the check of podman has reported it
        engine = nodes.storage(checkout.settings.podman)
        if mounts := nodes.leftover_mounts(engine):
            yield Finding(
                Level.WARNING,
                f"containers that killed steps left mounted: {len(mounts)} (in {engine.root})",
                "the next step on this node unmounts and removes them",
            )
    if left := storages.dead(checkout.settings.podman):
        jobs = ", ".join(sorted(storage.name for storage in left))
        yield Finding(
            Level.WARNING,
            f"images of jobs that have ended are in this node's memory: {jobs} ({left[0].parent})",
            "the next step on this node removes them",
        )


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if nodes.open_files() < _WANTED_FILES:
        return Finding(
            Level.WARNING, f"at most {hard} open files", "large builds may need more: ulimit -Hn 65536"
        )
    return Finding(Level.OK, f"open files: {nodes.open_files()} in steps and in RUN (here {soft})")


def _locks(checkout: Checkout) -> Iterator[Finding]:
    if not os.access(checkout.root, os.W_OK):
        return  # reported below
    # No image has a name that begins so, and two checks may run at once.
    path = checkout.lock(f"_doctor.{secrets.token_hex(4)}")
    try:
        with held(path, "doctor"):
            links = has_links(path.parent)
    except RcError as error:
        yield Finding(Level.PROBLEM, f"no lock can be taken: {error.what}", error.hint or "")
        return
    except OSError as error:
        yield Finding(Level.PROBLEM, f"no lock can be taken: {error}", f"look at {path.parent}")
        return
    if links:
        yield Finding(Level.OK, "locks work in .rc/locks, with hard links")
    else:
        yield Finding(
            Level.WARNING,
            "the file system of the checkout has no hard links: locks work without them, and an image"
            " that is kept for `doit rollback` is a copy, which takes time and space",
            "move the checkout to another file system, or set store.previous = 0 to keep no image",
        )


def _checkout(checkout: Checkout) -> Finding:
    if not os.access(checkout.root, os.W_OK):
        return Finding(
            Level.PROBLEM,
            f"{checkout.root} cannot be written from here",
            "work in a clone of your own: git clone PATH",
        )
    return Finding(Level.OK, f"python {shutil.which('python3') or '?'}, checkout {checkout.root}")


def _last(error: RcError) -> str:
    return error.quote[-1] if error.quote else error.hint or ""
