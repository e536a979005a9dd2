"""Writer of image.json, the public record of an image (docs/reference/image-json.md)."""

import json

from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.inputs import BASE
from rc_tasks.state.records.records import Record, Step

# Raise it when a key changes its meaning or is removed, not when one is added.
SCHEMA = 1


def write_image_json(node: ImageNode, built: Record, published: Record | None) -> None:
    """Write image.json from the records; do nothing when the published image is not the built one.

    Call it before the step's own record is written: a record means that everything is written.
    """
    if built.facts is None or published is None or published.artifact is None:
        return
    facts, artifact = built.facts, published.artifact
    if published.inputs.get("image") != facts.image_id:
        return
    inputs = dict(built.inputs)
    document = {
        "schema": SCHEMA,
        "name": node.project.name,
        "image_id": facts.image_id,
        "architecture": facts.architecture,
        "inputs": inputs,
        "bases": {
            **{
                part.removeprefix(BASE): value for part, value in inputs.items() if part.startswith(BASE)
            },
            **{reference: built.bases.get(reference) for reference in node.remote},
        },
        "image_size_bytes": facts.size_bytes,
        "size_bytes": artifact.size_bytes,
        "sample": artifact.sample,
        "blocks_digest": artifact.blocks_digest or None,
        "built_at": built.ended_at,
        "published_at": published.ended_at,
        "duration_s": {Step.PODMAN: built.duration_s, Step.ENROOT: published.duration_s},
        "commit": built.commit or None,
        "dirty": built.dirty if built.commit else None,
        "builder": built.builder,
        "node": built.node,
        "job_id": built.job_id or None,
        "tools": {**built.tools, **published.tools},
        "smoke": [
            {"command": test.argv, "launcher": test.launcher, "duration_s": test.duration_s}
            for test in published.smoke
        ],
    }
    write_atomically(node.project.image_json, json.dumps(document, indent=2) + "\n")
