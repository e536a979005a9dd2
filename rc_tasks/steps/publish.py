"""The enroot step: from an image in the store to a published image.sqsh and its image.json."""

import getpass

from rc_tasks.errors import CommandError
from rc_tasks.model.graph import ImageNode
from rc_tasks.model.manifest import Contents, Manifest
from rc_tasks.model.project import ARTIFACT, IMAGE_JSON
from rc_tasks.model.settings import SquashMethod
from rc_tasks.state import manifests
from rc_tasks.state.blocks import blocks_digest
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.digests import sample_digest
from rc_tasks.state.judge import Judge
from rc_tasks.state.manifests import bases
from rc_tasks.state.records import Artifact, Facts, Record, Step
from rc_tasks.steps import node as nodes
from rc_tasks.steps import squash
from rc_tasks.steps.bring import bring
from rc_tasks.steps.contents import Look
from rc_tasks.steps.image_json import write_image_json
from rc_tasks.tools import squashfs


def publish(checkout: Checkout, name: str) -> None:
    """Squash the image, check it, and put it in place of the old one; the old one stays on any error."""
    node = checkout.graph.resolve(name)
    project = node.project
    start = nodes.begin()
    built = checkout.records.get(Step.PODMAN, name)
    if built is None or built.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    causes = [cause for cause in Judge(checkout).step(Step.ENROOT, name).causes if not cause.upstream]
    record = checkout.records.get(Step.ENROOT, name)
    # A missing image.json alone is no reason to squash again.
    if record is None or not causes or any(cause.part != IMAGE_JSON for cause in causes):
        look = Look()
        digest = _squash(checkout, node, built, look)
        status = project.artifact.stat()
        sample = sample_digest(str(project.artifact))
        record = nodes.record(
            start,
            project,
            {"image": built.facts.image_id},
            artifact=Artifact(status.st_size, status.st_mtime_ns, sample, digest),
            tools={"mksquashfs": squashfs.version()},
        )
        manifests.put(checkout, _manifest(name, built.facts, record, look.contents))
        print(f"{project.shown(ARTIFACT)}, {status.st_size / 1e6:.1f} MB", flush=True)
    write_image_json(node, built, record)
    checkout.records.put(Step.ENROOT, name, record)


def _squash(checkout: Checkout, node: ImageNode, built: Record, look: Look) -> str:
    """Publish image.sqsh; returns the digest of its blocks."""
    project = node.project
    nodes.require("mksquashfs", "squashfs-tools")
    if checkout.settings.squash.method is SquashMethod.ENROOT:
        nodes.require("enroot", "enroot")
    engine = nodes.storage(checkout.settings.podman)
    image = engine.inspect(bring(checkout, engine, project.name))
    squash.sweep(project.directory)
    temporary = squash.temporary(project.artifact)
    try:
        squash.squash(
            engine,
            image,
            temporary,
            settings=checkout.settings.squash,
            provenance=_provenance(node, built),
            log=None,
            look=look,
        )
        squash.check(temporary)
        # Now, while what was written is still in memory.
        digest = blocks_digest(str(temporary))
        squash.publish(temporary, project.artifact)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


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
    """Comment lines for /etc/rc: what varies between builds of the same inputs must not be a label.

    docs/manifest.md describes them.
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
