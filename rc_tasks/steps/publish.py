"""The enroot step: from an image in the store to a published image.sqsh and its image.json."""

import getpass
import json
import sys
import time
from typing import Any

from rc_tasks.errors import CommandError
from rc_tasks.model.graph import ImageNode
from rc_tasks.model.project import ARTIFACT
from rc_tasks.model.settings import SquashMethod
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.digests import sample_digest
from rc_tasks.state.files import write_atomically
from rc_tasks.state.records import Artifact, Record, Step
from rc_tasks.state.status import Judge
from rc_tasks.steps import node as nodes
from rc_tasks.steps import squash
from rc_tasks.steps.bring import bring
from rc_tasks.tools import git, podman, squashfs

# The version of image.json: raised when a key changes its meaning or goes, not when one is added.
IMAGE_JSON_SCHEMA = 1


def publish(checkout: Checkout, name: str) -> None:
    """Squash the image, check it, and put it in place of the old one; the old one stays on any error."""
    node = checkout.graph.resolve(name)
    project = node.project
    started_at, started = nodes.now(), time.monotonic()
    built = checkout.records.get(Step.PODMAN, name)
    if built is None or built.facts is None:
        raise CommandError(f"{name} was not built yet", hint=f"doit build:{name}")
    judge = Judge(checkout)
    # A missing image.json alone is no reason to squash again.
    causes = judge.step(Step.ENROOT, name).causes
    intact = bool(causes) and all(cause.part == "image.json" for cause in causes)
    if not intact:
        _squash(checkout, node)
    here = nodes.this_node()
    status = project.artifact.stat()
    record = Record(
        inputs={"image": built.facts.image_id},
        started_at=started_at,
        ended_at=nodes.now(),
        duration_s=round(time.monotonic() - started, 3),
        node=here.name,
        job_id=here.job_id,
        artifact=Artifact(status.st_size, status.st_mtime_ns, sample_digest(str(project.artifact))),
    )
    write_atomically(
        project.image_json, json.dumps(_image_json(checkout, node, built, record), indent=2) + "\n"
    )
    checkout.records.put(Step.ENROOT, name, record)
    print(f"{project.shown(ARTIFACT)}, {status.st_size / 1e6:.1f} MB", flush=True)


def _squash(checkout: Checkout, node: ImageNode) -> None:
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
            provenance=_provenance(node, image.id),
            log=None,
        )
        squash.check(temporary)
        squash.publish(temporary, project.artifact)
    finally:
        temporary.unlink(missing_ok=True)


def _provenance(node: ImageNode, image_id: str) -> tuple[str, ...]:
    """Comment lines for /etc/rc: what varies between builds of the same inputs must not be a label."""
    commit = git.commit(node.project.directory)
    here = nodes.this_node()
    told = f"{commit.id}{' with changes' if commit.dirty else ''}" if commit else "unknown"
    return (
        f"image: {node.project.name} ({image_id})",
        f"commit: {told}",
        f"squashed: {nodes.now()} by {getpass.getuser()} on {here.name}"
        + (f" in job {here.job_id}" if here.job_id else ""),
    )


def _image_json(checkout: Checkout, node: ImageNode, built: Record, published: Record) -> dict[str, Any]:
    """The public record of an image; docs/image.json.md describes every key."""
    facts, artifact = built.facts, published.artifact
    commit = git.commit(node.project.directory)
    bases = {name: checkout.records.get(Step.PODMAN, name) for name in node.bases}
    return {
        "schema": IMAGE_JSON_SCHEMA,
        "name": node.project.name,
        "image_id": facts.image_id if facts else None,
        "architecture": facts.architecture if facts else None,
        "inputs": dict(built.inputs),
        "bases": {
            **{name: record.facts.image_id for name, record in bases.items() if record and record.facts},
            **dict.fromkeys(node.remote),
        },
        "image_size_bytes": facts.size_bytes if facts else None,
        "size_bytes": artifact.size_bytes if artifact else None,
        "sample": artifact.sample if artifact else None,
        "built_at": built.ended_at,
        "published_at": published.ended_at,
        "duration_s": {"podman": built.duration_s, "enroot": published.duration_s},
        "commit": commit.id if commit else None,
        "dirty": commit.dirty if commit else None,
        "builder": getpass.getuser(),
        "node": published.node,
        "job_id": published.job_id or None,
        "tools": {
            "podman": podman.version(),
            "mksquashfs": squashfs.version(),
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    }
