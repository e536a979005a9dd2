"""What podman is given to build an image from: the Dockerfile, the bases and the build context."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rc_tasks.errors import CommandError, DockerfileError, ProjectError
from rc_tasks.model.dockerfile import triggers
from rc_tasks.model.dockerfile.instructions import instructions
from rc_tasks.model.dockerfile.parser import Via
from rc_tasks.model.dockerfile.rewrite import Rewritten, mounted_name, rewrite
from rc_tasks.model.graph import context
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.records.inputs import Signatures, digest_below, signatures
from rc_tasks.steps.podman.pull import require_machine
from rc_tasks.tools.podman import Image, Podman

_GLOB = re.compile(r"[][*?\\]")


@dataclass(frozen=True, slots=True)
class Given:
    """What podman is given.

    `rewritten` gives the Dockerfile for image IDs of mounted stages, `dockerfile` is the one to build.
    `sources` are the image IDs of the names in COPY --from and RUN --mount. `cached`: podman's layer
    cache can be trusted. `before` are the signatures of all files that were digested. `base` is the
    image that the last stage is built on, if it is on this node.
    """

    node: ImageNode
    rewritten: Callable[[Mapping[int, str]], Rewritten]
    dockerfile: Rewritten
    sources: Mapping[str, str]
    cached: bool
    before: Signatures
    base: Image | None

    @property
    def shown(self) -> dict[bytes, bytes]:
        """What is shown in podman's output in place of what was put into the Dockerfile."""
        shown = {mark.encode(): text.encode() for mark, text in self.dockerfile.marks.items()}
        for image_id, name in self.dockerfile.bases.items():
            shown[f": FROM {image_id}".encode()] = f": FROM {name}".encode()
        return shown

    @property
    def mounted(self) -> tuple[int, ...]:
        """The stages that a RUN mounts, by index, in order."""
        dockerfile = self.node.dockerfile
        stages = (
            dockerfile.stage_of(mount.name, mount.stage)
            for mount in dockerfile.mounts
            if mount.name and mount.stage in dockerfile.needed
        )
        return tuple(sorted({stage.index for stage in stages if stage is not None}))

    def with_stages(self, stages: Mapping[int, str]) -> "Given":
        """Return the same with the image IDs of stages that a RUN mounts, by index."""
        sources = {mounted_name(index): image_id for index, image_id in stages.items()}
        return replace(self, dockerfile=self.rewritten(stages), sources={**self.sources, **sources})

    def context(self, scratch: Path) -> Path:
        """Return the build context: the project's directory, or a copy of it or link to it in `scratch`.

        It is a copy where a RUN mounts something of it. podman would show what the context leaves out,
        such as the image that was published before; and what a RUN reads while somebody writes there
        would stay in the layer cache under the digest of what was there before.
        Raises DockerfileError for a mount of a file that is left out, ProjectError when somebody has
        written to the directory since its files were digested.
        """
        directory, dockerfile = self.node.project.directory, self.node.dockerfile
        mounts = [
            each for each in dockerfile.mounts if not each.name and each.stage in dockerfile.needed
        ]
        made = scratch / "context"
        if not mounts:
            # podman 5 takes what is special in a glob for one in the context's path (5.4.2, 5.8.6), and
            # then finds none of its files; it does not follow links for that.
            if not _GLOB.search(str(directory)):
                return directory
            made.symlink_to(directory)
            return made
        made.mkdir()
        context.copy(directory, made, self.node.project.dockerfile_name)
        if signatures(self.node) != self.before:
            raise ProjectError(
                "files were changed while this build began",
                where=f"{self.node.project.path}/",
                hint="run the same command again",
            )
        for mount in mounts:
            source = mount.source.strip("/")
            if "$" in source or os.path.lexists(made / source):
                continue
            if os.path.lexists(directory / source):
                raise DockerfileError(
                    f"RUN --mount reads {source}, which the build context leaves out",
                    where=f"{self.node.project.shown_dockerfile}:{mount.line}",
                    hint="take it out of .containerignore or .dockerignore, or mount another file",
                )
        return made

    def check(self, image: Image) -> None:
        """Raise CommandError unless the image was made from the base that it was to be made from."""
        if self.base is not None and image.layers[: len(self.base.layers)] != self.base.layers:
            name = self.dockerfile.bases[self.base.id]
            raise CommandError(
                f"podman made an image that is not built on {name} ({self.base.id[:12]})",
                where=self.node.project.shown_dockerfile,
                hint="run the same command again; if it happens again, report it with the log",
            )


def recipe_for(
    checkout: Checkout,
    podman: Podman,
    node: ImageNode,
    text: bytes,
    ids: Mapping[str, str],
    inputs: Mapping[str, str],
    before: Signatures,
    labels: Mapping[str, str],
) -> Given:
    """Return what podman is to build `node` from.

    `text` are the bytes of its Dockerfile, `ids` the image IDs of its bases in this podman, `inputs` the
    digests of all that it is made from, `before` the signatures of its files then, `labels` what is put
    on the image. Raises DockerfileError for a Dockerfile that cannot be built as it says.
    """
    dockerfile, where = node.dockerfile, node.project.shown_dockerfile
    used = [base for base in dockerfile.bases if base.stage in dockerfile.needed and base.name in ids]
    names = tuple(dict.fromkeys(base.name for base in used))
    images = dict(zip(names, podman.inspect_all(ids[name] for name in names), strict=True))
    for base in used:
        require_machine(node, base, images[base.name], checkout.architecture)
    source = instructions(text, where=where)
    cached = True
    for stage in dockerfile.stages:
        if stage.index not in dockerfile.needed:
            continue
        if stage.parent is not None:
            base_name = dockerfile.stages[stage.parent].name
            found = triggers.of_stage(source.instructions, stage.parent)
        elif stage.base is not None and stage.base.name in images:
            base_name, found = stage.base.name, podman.triggers(ids[stage.base.name])
        else:
            continue
        triggers.require_own_files(found, base=base_name, where=f"{where}:{stage.line}")
        cached &= not triggers.are_overlooked(found, where)
    for note in dockerfile.notes:
        print(f"note: {note}", flush=True)
    if not cached:
        print("without podman's cache: it does not see what the ONBUILD triggers read", flush=True)

    def rewritten(stages: Mapping[int, str]) -> Rewritten:
        return rewrite(
            text,
            source,
            dockerfile,
            architecture=checkout.architecture,
            ids=ids,
            build_args=node.recipe.build_args,
            context_digest=lambda path: digest_below(inputs, path),
            stages=stages,
            labels=labels,
        )

    sources = {base.name: ids[base.name] for base in used if base.via is not Via.FROM}
    final = dockerfile.final_base
    return Given(
        node,
        rewritten,
        rewritten({}),
        sources,
        cached,
        before,
        images.get(final.name) if final else None,
    )
