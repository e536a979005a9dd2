"""Preparation of a podman build: the rewritten Dockerfile, the bases and the build context."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

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


class PreparedBuild(Struct, frozen=True):
    """What podman builds an image from.

    `text` are the bytes of the Dockerfile, `ids` the image IDs of its bases.
    `rewritten` returns the Dockerfile for image IDs of mounted stages; `dockerfile` is the one to build.
    `sources` are the image IDs of the names in COPY --from and RUN --mount. `cached`: podman's layer
    cache can be trusted. `before` are the signatures of all files that were digested. `base` is the
    image that the last stage is built on, if it is on this node.
    """

    node: ImageNode
    text: bytes
    ids: Mapping[str, str]
    rewritten: Callable[[Mapping[int, str]], Rewritten]
    dockerfile: Rewritten
    sources: Mapping[str, str]
    cached: bool
    before: Signatures
    base: Image | None

    @property
    def shown(self) -> dict[bytes, bytes]:
        """The text to show in podman's output for each text that `rewritten` put into the Dockerfile."""
        replacements = {mark.encode(): text.encode() for mark, text in self.dockerfile.marks.items()}
        for image_id, name in self.dockerfile.bases.items():
            replacements[f": FROM {image_id}".encode()] = f": FROM {name}".encode()
        return replacements

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

    def with_stages(self, stages: Mapping[int, str]) -> "PreparedBuild":
        """Return the build with the image IDs of stages that a RUN mounts, by index."""
        sources = {mounted_name(index): image_id for index, image_id in stages.items()}
        return replace(self, dockerfile=self.rewritten(stages), sources={**self.sources, **sources})

    def context(self, scratch: Path) -> Path:
        """Return the build context: the project's directory, or a copy of it or link to it in `scratch`.

        It is a copy where a RUN mounts a part of it. Without a copy, the RUN could read files that the
        context leaves out, such as the published image. A file that changes during the RUN would stay
        in the layer cache under the digest of its previous content.
        Raise DockerfileError for a mount of a file that is left out, ProjectError when a file has
        changed since it was digested.
        """
        project, dockerfile = self.node.project, self.node.dockerfile
        directory = project.context
        mounts = [
            mount for mount in dockerfile.mounts if not mount.name and mount.stage in dockerfile.needed
        ]
        copied = scratch / "context"
        if not mounts:
            # podman 5 (5.4.2, 5.8.6) reads special characters in the context's path as a glob, and then
            # finds none of its files; a symlink without such characters avoids that.
            if not _GLOB.search(str(directory)):
                return directory
            copied.symlink_to(directory)
            return copied
        copied.mkdir()
        context.copy(directory, copied, context.of_project(project).paths)
        self._require_unchanged()
        for mount in mounts:
            source = mount.source.strip("/")
            if "$" in source or os.path.lexists(copied / source):
                continue
            if os.path.lexists(directory / source):
                raise DockerfileError(
                    f"RUN --mount reads {source}, which the build context leaves out",
                    where=f"{project.shown_dockerfile}:{mount.line}",
                    hint="take it out of .containerignore or .dockerignore, or mount another file",
                )
        return copied

    def named_contexts(self, scratch: Path) -> dict[str, Path]:
        """Return the directories of named contexts, as copies in `scratch` without what they leave out.

        Raise ProjectError when a file has changed since it was digested.
        """
        project, copies = self.node.project, dict[str, Path]()
        named = project.recipe.named if project.recipe is not None else {}
        for number, (name, build_context) in enumerate(named.items()):
            copies[name] = scratch / f"context-{number}"
            copies[name].mkdir()
            paths = context.of_context(project.root, build_context).paths
            context.copy(project.root / build_context.directory, copies[name], paths)
        if copies:
            self._require_unchanged()
        return copies

    def _require_unchanged(self) -> None:
        project = self.node.project
        if signatures(project) != self.before:
            raise ProjectError(
                "files were changed while this build began",
                where=project.shown_input("") or ".",
                hint="run the same command again",
            )

    def check(self, image: Image) -> None:
        """Raise CommandError unless the image is built on the layers of `base`."""
        if self.base is not None and image.layers[: len(self.base.layers)] != self.base.layers:
            name = self.dockerfile.bases[self.base.id]
            raise CommandError(
                f"podman made an image that is not built on {name} ({self.base.id[:12]})",
                where=self.node.project.shown_dockerfile,
                hint="run the same command again; if it happens again, report it with the log",
            )


def prepare(
    checkout: Checkout,
    podman: Podman,
    node: ImageNode,
    text: bytes,
    ids: Mapping[str, str],
    inputs: Mapping[str, str],
    before: Signatures,
    labels: Mapping[str, str],
) -> PreparedBuild:
    """Prepare the build of `node`.

    `text` are the bytes of its Dockerfile, `ids` the image IDs of its bases in this podman, `inputs` its
    inputs by part, `before` the signatures of its files when they were digested, `labels` the labels of
    the image. Raise DockerfileError for a Dockerfile that cannot be built as it says.
    """
    dockerfile, where = node.dockerfile, node.project.shown_dockerfile
    used_bases = [
        base for base in dockerfile.bases if base.stage in dockerfile.needed and base.name in ids
    ]
    names = tuple(dict.fromkeys(base.name for base in used_bases))
    images = dict(zip(names, podman.inspect_all(ids[name] for name in names), strict=True))
    for base in used_bases:
        require_machine(node, base, images[base.name], checkout.machine(node.project))
    source = instructions(text, where=where)
    # A context may stand for an image.
    ids = {**ids, **{base.written: ids[base.name] for base in used_bases if base.written}}
    cached = True
    for stage in dockerfile.stages:
        if stage.index not in dockerfile.needed:
            continue
        if stage.parent is not None:
            base_name = dockerfile.stages[stage.parent].name
            onbuild = triggers.of_stage(source.instructions, stage.parent)
        elif stage.base is not None and stage.base.name in images:
            base_name, onbuild = stage.base.name, podman.triggers(ids[stage.base.name])
        else:
            continue
        triggers.require_own_files(onbuild, base=base_name, where=f"{where}:{stage.line}")
        cached &= not triggers.are_overlooked(onbuild, where)
    for note in dockerfile.notes:
        print(f"note: {note}", flush=True)
    if not cached:
        print("building without podman's cache: it ignores what the ONBUILD triggers read", flush=True)

    def rewritten(stages: Mapping[int, str]) -> Rewritten:
        return rewrite(
            text,
            source,
            dockerfile,
            architecture=checkout.machine(node.project),
            ids=ids,
            build_args=node.options.build_args,
            context_digest=lambda name, path: digest_below(inputs, name, path),
            directories=node.options.directories.keys(),
            stages=stages,
            labels=labels,
        )

    named = [base for base in used_bases if base.via is not Via.FROM]
    sources = {base.written or base.name: ids[base.name] for base in named}
    final = dockerfile.final_base
    return PreparedBuild(
        node,
        text,
        ids,
        rewritten,
        rewritten({}),
        sources,
        cached,
        before,
        images.get(final.name) if final else None,
    )
