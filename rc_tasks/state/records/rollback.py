"""Rollbacks in records: an older image that is published in place of the newest build.

The record of the published image says which image the rollback replaced, and which generation of builds
that was. Nothing else is written, and the rollback holds while the podman step's record still says the
same. So a kill at any moment leaves either the rollback or the newest image:

- before `doit rollback` writes the record, image.sqsh may be the older file already. It differs from its
  record then, and the next run publishes the newest image again.
- a build of another image ends a rollback by the podman step's own record, which is written at once.

A file of its own for the rollback would be a third thing that may be there, void, or left over.
"""

from msgspec.structs import replace

from rc_tasks.state.records.records import Record


def next_generation(earlier: Record | None, image_id: str) -> int:
    """Return the generation of a build: that of the earlier build, or the next for another image.

    An image that is built again after another one has a new generation.
    """
    if earlier is None or earlier.facts is None:
        return 0
    return earlier.generation + (earlier.facts.image_id != image_id)


def put_back_record(kept: Record, replaced: str, built: Record | None) -> Record:
    """Return the record of a kept image that is published again.

    `replaced` is the image ID that it replaces, or empty for the newest image. `built` is the record of
    the last build.
    """
    generation = built.generation if built is not None and replaced else 0
    return replace(kept, instead_of=replaced, generation=generation)


def rolled_back_from(published: Record | None, built: Record | None) -> str:
    """Return the ID of the newest image, which a rollback replaced; empty when no rollback holds."""
    if published is None or built is None or built.facts is None:
        return ""
    replaced = (published.instead_of, published.generation)
    return published.instead_of if replaced == (built.facts.image_id, built.generation) else ""
