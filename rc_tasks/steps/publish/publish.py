"""enroot step: publishes image.sqsh and image.json from an image in the store."""

import contextlib
import functools
import getpass
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import CommandError
from rc_tasks.model.config.settings import SquashMethod
from rc_tasks.model.graph import smoke
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import ARTIFACT, IMAGE_JSON
from rc_tasks.model.manifest.manifest import Contents, Manifest, parse_contents
from rc_tasks.state.adoption.official import squashed_layers, stored_config
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import umask, write_atomically
from rc_tasks.state.edf import in_use
from rc_tasks.state.judge import Judge
from rc_tasks.state.published import manifests
from rc_tasks.state.published.manifests import bases
from rc_tasks.state.records.digests import sample_digest
from rc_tasks.state.records.miswritten import squash_inputs
from rc_tasks.state.records.records import Artifact, Facts, Passed, Record, Step
from rc_tasks.state.records.rollback import rolled_back_from
from rc_tasks.state.records.status import SMOKE
from rc_tasks.state.store import previous
from rc_tasks.state.store.block_digest import blocks_digest
from rc_tasks.steps.error_report import ErrorReport, ReportedError
from rc_tasks.steps.image_json import write_image_json
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.podman.fetch import load_image
from rc_tasks.steps.publish import smoke as smoke_tests
from rc_tasks.steps.publish import squash
from rc_tasks.steps.publish.contents import ContentsWalk
from rc_tasks.steps.publish.merge import merge
from rc_tasks.steps.save.layers import in_namespace, options
from rc_tasks.tools import command, podman, squashfs
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman


class _Published(Struct, frozen=True):
    """Properties of an image.sqsh that was just put in place."""

    blocks_digest: str
    contents: Contents
    passed: tuple[Passed, ...]


def publish(checkout: Checkout, node: ImageNode) -> None:
    """Squash, check and test the image, and replace the published one, which stays on any error.

    When only the smoke tests changed, only test the published image. Raise RcError.
    """
    project, name = node.project, node.project.name
    start = nodes.begin()
    built = checkout.records.get(Step.PODMAN, name)
    if built is None or built.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    causes = [cause for cause in Judge(checkout).step(Step.ENROOT, name).causes if not cause.upstream]
    record = checkout.records.get(Step.ENROOT, name)
    tests = smoke.smoke_tests(checkout.graph, node)
    parts = {cause.part for cause in causes}
    # A missing image.json or a changed smoke test needs no new squash.
    if record is None or not parts or parts - {IMAGE_JSON, SMOKE}:
        squashed = _squash(checkout, node, built.facts, tests)
        status = project.artifact.stat()
        sample = sample_digest(str(project.artifact))
        record = nodes.record(
            start,
            project,
            squash_inputs(built.facts.image_id),
            artifact=Artifact(status.st_size, status.st_mtime_ns, sample, squashed.blocks_digest),
            tools={"mksquashfs": squashfs.version()},
            smoke=squashed.passed,
        )
        manifests.put(checkout, _manifest(name, built.facts, record, squashed.contents))
        print(f"{project.shown(ARTIFACT)}, {status.st_size / 1e6:.1f} MB", flush=True)
    elif SMOKE in parts:
        lacking = smoke.lacking(tests, record.passed(checkout.settings.launcher))
        passed = smoke_tests.run(checkout, node, built.facts, project.artifact, lacking)
        new_keys = {(test.argv, test.launcher) for test in passed}
        kept = (test for test in record.smoke if (test.argv, test.launcher) not in new_keys)
        record = replace(record, smoke=(*kept, *passed))
    if rolled_back_from(record, built):
        text = checkout.previous.restore_image_json(project, record)
        write_atomically(project.image_json, text)
    else:
        write_image_json(node, built, record)
    checkout.records.put(Step.ENROOT, name, record)
    # `doit gc` reports what cannot be removed.
    with contextlib.suppress(OSError), _undisturbed():
        for entry in checkout.previous.surplus(
            project, checkout.settings.store, in_use.naming(checkout)
        ):
            previous.remove(entry)


def squash_into(checkout: Checkout, node: ImageNode, temporary: Path) -> Contents:
    """Squash the image to `temporary`; return its contents. Rootless, run it in podman's namespace."""
    name = node.project.name
    built = checkout.records.get(Step.PODMAN, name)
    if built is None or built.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    engine, walk = nodes.storage(checkout.settings.podman), ContentsWalk()
    squash.squash(
        engine,
        engine.inspect(built.facts.image_id),
        temporary,
        settings=checkout.settings.squash,
        provenance=_provenance(node, built),
        log=None,
        walk=walk,
    )
    return walk.contents


def _squash(
    checkout: Checkout,
    node: ImageNode,
    facts: Facts,
    tests: tuple[smoke.SmokeTest, ...],
) -> _Published:
    project = node.project
    nodes.require("mksquashfs", "squashfs-tools")
    if checkout.settings.squash.method is SquashMethod.ENROOT:
        nodes.require("enroot", "enroot")
    squash.sweep(project.directory)
    temporary = squash.temporary(project.artifact)
    try:
        contents = _merged(checkout, node, temporary) or _whole(checkout, node, temporary)
        digest = checked(temporary, project.artifact)
        passed = smoke_tests.run(checkout, node, facts, temporary, tests)
        _keep(checkout, node)
        squash.publish(temporary, project.artifact)
    finally:
        temporary.unlink(missing_ok=True)
    return _Published(digest, contents, passed)


def checked(temporary: Path, final: Path) -> str:
    """Check a new image, which is to replace `final`; return its digest. Raise RcError."""
    stop = threading.Event()

    def go_on(_bytes: int) -> None:
        if stop.is_set():
            raise CancelledError

    with ThreadPoolExecutor(2) as pool:
        try:
            # Before it is published it has to be on the disk; now it is still in the page cache as well.
            writing = pool.submit(squash.synchronize, temporary, final)
            digesting = pool.submit(blocks_digest, str(temporary), go_on)
            squash.check(temporary)
            writing.result()
            return digesting.result()
        finally:
            # When we are interrupted, the threads leave their work half done.
            stop.set()


def _merged(checkout: Checkout, node: ImageNode, temporary: Path) -> Contents | None:
    """Merge the image to `temporary`; return what is in it.

    Return None if the image has to be squashed whole.
    """
    settings, name = checkout.settings, node.project.name
    if settings.squash.method is not SquashMethod.MERGE or not settings.store.enabled:
        return None
    built = checkout.records.get(Step.PODMAN, name)
    if built is None or built.facts is None:
        return None
    engine, facts = nodes.storage(settings.podman), built.facts
    config = stored_config(checkout, facts.image_id)
    if config is None:
        return None
    image = podman.parse_config(facts.image_id, config, facts.size_bytes)
    return merge(
        image,
        temporary,
        layers=squashed_layers(checkout),
        directories=functools.partial(_loaded, checkout, engine, name),
        make=options(settings.squash, None),
        wrap=in_namespace(engine),
        provenance=_provenance(node, built),
    )


def _loaded(checkout: Checkout, engine: Podman, name: str) -> Mapping[str, Path]:
    """Load an image into podman's storage; return the directories of its layers there, by diff ID."""
    directories = engine.layer_directories(engine.inspect(load_image(checkout, engine, name)))
    mounted_images.require_whole(checkout, engine, directories)
    return directories


def _whole(checkout: Checkout, node: ImageNode, temporary: Path) -> Contents:
    """Squash the whole image to `temporary`; return what is in it. Raise ReportedError."""
    engine = nodes.storage(checkout.settings.podman)
    _loaded(checkout, engine, node.project.name)
    if not podman.rootless():
        return squash_into(checkout, node, temporary)
    # An image can be mounted and read as a whole only in podman's user namespace. The rest runs outside
    # of it, where this process is the user whom Slurm knows, and starts containers as others do.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        contents_file = Path(scratch, "contents.json")
        argv = ("-m", "rc_tasks.steps", "squash", node.project.name, str(temporary), str(contents_file))
        inner = Command((sys.executable, *argv, f"{umask():o}"), cwd=checkout.root)
        status = command.stream(engine.unshare(inner), None)
        if status != 0:
            raise ReportedError(status, ErrorReport.read(contents_file))
        return parse_contents(contents_file.read_bytes())


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore signals for a moment: no later step would remove what a finished step leaves."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)


def _keep(checkout: Checkout, node: ImageNode) -> None:
    """Keep the image that is about to be replaced for `doit rollback`."""
    if checkout.settings.store.previous:
        published = checkout.records.get(Step.ENROOT, node.project.name)
        why = checkout.previous.keep(node.project, published)
        if why:
            print(f"warning: the previous image cannot be kept for doit rollback: {why}", flush=True)


def _manifest(name: str, facts: Facts, record: Record, contents: Contents) -> Manifest:
    size_bytes = record.artifact.size_bytes if record.artifact is not None else 0
    return Manifest(
        name=name,
        image_id=facts.image_id,
        architecture=facts.architecture,
        published_at=record.ended_at,
        size_bytes=size_bytes,
        image_size_bytes=facts.size_bytes,
        contents=contents,
    )


def _provenance(node: ImageNode, built: Record) -> tuple[str, ...]:
    """Return comment lines for /etc/rc; docs/reference/manifest.md describes them.

    They vary between builds of the same inputs, so as labels they would change the image ID.
    """
    here = nodes.this_node()
    tools = {**built.tools, "mksquashfs": squashfs.version()}
    commit = f"{built.commit}{' with changes' if built.dirty else ''}" if built.commit else "unknown"
    return (
        f"image: {node.project.name} ({built.facts.image_id if built.facts else '?'})",
        f"commit: {commit}",
        *(f"base: {base} ({digest or 'unknown'})" for base, digest in bases(node, built).items()),
        f"built: {built.ended_at} by {built.builder} on {built.node}{_in_job(built.job_id)}",
        f"squashed: {nodes.now()} by {getpass.getuser()} on {here.name}{_in_job(here.job_id)}",
        f"tools: {', '.join(f'{tool} {version}' for tool, version in tools.items())}",
    )


def _in_job(job_id: str) -> str:
    return f" in job {job_id}" if job_id else ""
