"""podman step: builds an image from its Dockerfile, and puts it in the store."""

import contextlib
import itertools
import os
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from rc_tasks.errors import CommandError, ProjectError, RcError
from rc_tasks.model.dockerfile.instructions import encode, instructions
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.model.graph import context
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.machine import platform
from rc_tasks.state.adoption.official import official_of, squashed_layers
from rc_tasks.state.checkout import Checkout, parse_node, read_dockerfile
from rc_tasks.state.judge import Judge
from rc_tasks.state.published.manifests import put_origin
from rc_tasks.state.records.inputs import (
    CHANGED_MEANWHILE,
    PIN,
    Signatures,
    signatures,
    with_files,
)
from rc_tasks.state.records.records import Facts, Record, Step
from rc_tasks.state.records.rollback import next_generation
from rc_tasks.steps.image_json import write_image_json
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.podman import cache, entrypoint, failure, ssh
from rc_tasks.steps.podman.failed_instruction import failed_instruction
from rc_tasks.steps.podman.fetch import BuildBases, load_bases, load_cache, remove_half_written
from rc_tasks.steps.podman.prepared import PreparedBuild, prepare
from rc_tasks.steps.podman.replacer import Replacer
from rc_tasks.steps.podman.secrets import Secrets, find
from rc_tasks.steps.podman.syntax import require_known
from rc_tasks.steps.save.image import save
from rc_tasks.tools import command
from rc_tasks.tools.podman import Image, Podman, shares_copies
from rc_tasks.tools.podman import version as podman_version

_LABEL = "org.opencontainers.image"


def build(checkout: Checkout, node: ImageNode) -> None:
    """Build an image on this node and put it in the store.

    Raise CommandError when podman fails, NeedsError when a base has to be built again first.
    """
    name, start = node.project.name, nodes.begin()
    before = signatures(node.project)
    # Digest the files before podman reads them, so that an edit during the build makes the image stale.
    judge = Judge(checkout)
    inputs = judge.build_inputs(node)
    listings = judge.listings.shared(node.project)
    text = _dockerfile(checkout, node)
    version = podman_version()
    where = node.project.shown_dockerfile
    source = instructions(text, where=where)
    require_known(source, node.dockerfile.needed, version, where=where)
    earlier = checkout.records.get(Step.PODMAN, name)
    last_version = earlier.tools.get("podman", version) if earlier is not None else version
    copies = any(instruction.name in {"ADD", "COPY"} for instruction in source.instructions)
    if copies and not shares_copies(last_version, version):
        print(
            f"note: podman {last_version} built this image before, and podman {version} builds it now:\n"
            "its cache lacks the layers of COPY and ADD, so the image will get another ID",
            flush=True,
        )
    podman = nodes.storage(checkout.settings.podman)
    remove_half_written(podman)
    by_file = with_files(inputs, {part: listing.values for part, listing in listings.items()})
    with mounted_images.comparing():
        image, digests = _made(checkout, podman, node, text, by_file, before)
    # Record the digests that were built on: a base may just have been pinned, or its pin moved.
    inputs |= {PIN + base: digests[base] for base in node.pinned}
    # The image may hold the intermediate state of a file that changed and changed back.
    after = signatures(node.project)
    moved = {part for part in before.keys() | after.keys() if before.get(part) != after.get(part)}
    for whole, listing in listings.items():
        checkout.contexts.put(listing)
        moved = {whole if part.startswith(f"{whole}/") else part for part in moved}
    inputs |= dict.fromkeys(moved, CHANGED_MEANWHILE)
    facts = _facts(checkout, podman, node, image, earlier)
    tools = {"podman": version}
    record = nodes.record(start, node.project, inputs, facts=facts, tools=tools, bases=digests)
    record = replace(
        record,
        dirty=record.dirty or bool(moved and record.commit),
        generation=next_generation(earlier, image.id),
    )
    put_origin(checkout, node, record, text.decode(errors="replace"))
    # The same image may have been made from other inputs: image.json names the current ones.
    write_image_json(node, record, checkout.records.get(Step.ENROOT, name))
    if earlier is not None and earlier.facts is not None:
        # Another process may be building on the previous image.
        checkout.store.use(earlier.facts.image_id)
    checkout.records.put(Step.PODMAN, name, record)
    print(f"image {image.id[:12]}, {image.size_bytes / 1e6:.1f} MB", flush=True)


def _dockerfile(checkout: Checkout, node: ImageNode) -> bytes:
    """Return the Dockerfile's bytes. Raise ProjectError when they no longer give `node.dockerfile`."""
    where = node.project.shown_dockerfile
    text = read_dockerfile(node.project.root, where)
    if parse_node(node, text, checkout.architecture) != node.dockerfile:
        raise ProjectError(
            "the Dockerfile was changed while this build began",
            where=where,
            hint="run the same command again",
        )
    return text


def _made(
    checkout: Checkout,
    podman: Podman,
    node: ImageNode,
    text: bytes,
    inputs: Mapping[str, str],
    before: Signatures,
) -> tuple[Image, Mapping[str, str]]:
    """Build the image, and put it in the store with the cache that a rebuild on another node needs.

    Return the image, and the digests of its bases in their registries.
    """
    name = node.project.name
    stores = checkout.settings.store.enabled
    layers = cache.LayerImages()
    # Find the secrets and keys before an hour of pulling bases is lost.
    secrets, ssh_files = find(node), ssh.find(node)
    base_ids: Mapping[str, str] = {}
    try:
        bases = load_bases(checkout, podman, node)
        base_ids = bases.ids
        labels = _labels(checkout, node, bases)
        prepared = prepare(checkout, podman, node, text, bases.ids, inputs, before, labels)
        stages: dict[int, str] = {}
        # None stands for the whole image, which comes last.
        for stage in (*prepared.mounted, None):
            prepared = prepared.with_stages(stages)
            layers.keys = cache.keys(node, prepared.dockerfile.text, bases.ids)
            if stores and prepared.cached:
                load_cache(checkout, podman, name, itertools.chain(*layers.keys))
            image = _build(checkout, podman, node, bases, prepared, secrets, ssh_files, layers, stage)
            if stage is not None:
                stages[stage] = image.id
        prepared.check(image)
    except CommandError as error:
        _require_read(checkout, podman, layers, base_ids)
        if stores:
            # Keep the layers that succeeded, so that the next attempt on any node resumes there.
            with contextlib.suppress(RcError, OSError):
                _put_cache(checkout, podman, name, layers, failed=True)
        # The name of a local base may be misspelt: then podman looked for it in a registry.
        notes = checkout.graph.notes([node])
        raise error.with_hint("\n".join(filter(None, (*notes, error.hint)))) from None
    _require_read(checkout, podman, layers, base_ids)
    if stores:
        _save(checkout, podman, image)
        _put_cache(checkout, podman, name, layers)
    return image, bases.digests


def _require_read(
    checkout: Checkout, podman: Podman, layers: cache.LayerImages, base_ids: Mapping[str, str]
) -> None:
    """Raise ArtifactError if podman has read a mounted layer that is damaged; what it built goes."""
    damaged = mounted_images.damaged(checkout)
    if not damaged:
        return
    built = [cached.image_id for cached in layers.images(podman)]
    images = podman.inspect_all(podman.held((*built, *base_ids.values())))
    for diff_id in (layer for image in images for layer in image.layers):
        if diff_id in damaged:
            for image_id in reversed(built):
                podman.remove_image(image_id)
            raise damaged[diff_id]


def _save(checkout: Checkout, podman: Podman, image: Image) -> None:
    """Save an image in the store. A clone links the layers of the official store."""
    official = official_of(checkout)
    beside = official.store if official is not None and official.trusted else None
    save(podman, image, squashed_layers(checkout), checkout.settings.squash, beside=beside)


def _put_cache(
    checkout: Checkout, podman: Podman, name: str, layers: cache.LayerImages, *, failed: bool = False
) -> None:
    store = checkout.store
    cached = layers.images(podman)
    # Start with the last image of each stage, which holds all layers of those before it. Use those that
    # the store has: nothing may refer to them before this cache does, and `doit gc` would remove them.
    new = [
        cached_image.image_id
        for cached_image in reversed(cached)
        if not store.use(cached_image.image_id)
    ]
    for image in podman.inspect_all(new):
        _save(checkout, podman, image)
    if cached or not failed:
        store.catalogue.put_cache(name, cached, failed=failed)


def _build(
    checkout: Checkout,
    podman: Podman,
    node: ImageNode,
    bases: BuildBases,
    prepared: PreparedBuild,
    secrets: Secrets,
    ssh_files: dict[str, tuple[Path, ...]],
    layers: cache.LayerImages,
    stage: int | None,
) -> Image:
    """Build the image, or only one of its stages, which gets no name. Raise CommandError."""
    project = node.project
    whole = stage is None
    target = node.dockerfile.final if stage is None else node.dockerfile.stages[stage]
    with tempfile.TemporaryDirectory(
        dir=os.environ.get("TMPDIR"), ignore_cleanup_errors=True
    ) as scratch:
        iidfile, ignorefile, dockerfile = (
            Path(scratch, name) for name in ("iid", "ignore", project.dockerfile_name)
        )
        ignorefile.write_text(context.ignore_text_of(project))
        # Write bytes: text mode would change line ends.
        dockerfile.write_bytes(encode(prepared.dockerfile.text))
        invocation = podman.build(
            prepared.context(Path(scratch)),
            dockerfile,
            tag=f"localhost/{project.name}" if whole else "",
            iidfile=iidfile,
            ignorefile=ignorefile,
            sources=prepared.sources,
            platform=platform(project.machine) if project.machine else "",
            directories=prepared.named_contexts(Path(scratch)),
            build_args=node.options.build_args,
            # Spell it as the Dockerfile does: --target of podman 4.3 is case-sensitive.
            target=(target.name or str(target.index))
            if node.options.target is not None or not whole
            else None,
            secrets=secrets.sources(Path(scratch)),
            ssh=ssh.sources(ssh_files, Path(scratch)),
            volumes=checkout.settings.podman.volumes,
            pulls=bases.pulls,
            cached=prepared.cached,
            limits={"nofile": nodes.open_files(), "nproc": nodes.processes()},
        )
        lines: deque[str] = deque(maxlen=failure.LINES)

        def see(line: str) -> None:
            lines.append(line)
            layers.read_line(line)

        returncode = command.watch(invocation, see, Replacer(prepared.shown | secrets.shown))
        if returncode != 0:
            unread = mounted_images.unread(checkout, bases.ids, lines)
            stores = checkout.settings.store.enabled
            failed = failed_instruction(prepared, layers, podman) if stores else None
            if failed is not None:
                with contextlib.suppress(RcError):
                    checkout.store.catalogue.put_failed_instruction(project.name, failed)
            debuggable = failed is not None and bool(failed.image_id)
            raise unread or failure.explain(returncode, list(lines), project, debuggable=debuggable)
        image_id = iidfile.read_text().strip() if iidfile.exists() else ""
        if not image_id:
            raise CommandError(
                "podman build ended with exit status 0, and named no image",
                where=project.shown_dockerfile,
                hint="run the same command again; `podman --version` shows the version on that node",
            )
        return podman.inspect(image_id)


def _facts(
    checkout: Checkout, podman: Podman, node: ImageNode, image: Image, earlier: Record | None
) -> Facts:
    """Return the facts of a built image; an ENTRYPOINT that a Dockerfile here sets is tried once."""
    # A Dockerfile with ENTRYPOINT [] removes that of its base.
    sets_entrypoint = bool(image.entrypoint) and _sets_entrypoint(checkout, node)
    behaviour = Behaviour.NOT_TRIED
    if (
        sets_entrypoint
        and earlier is not None
        and earlier.facts is not None
        and earlier.facts.image_id == image.id
    ):
        behaviour = earlier.facts.entrypoint
    if sets_entrypoint and behaviour is Behaviour.NOT_TRIED:
        behaviour = entrypoint.tried(podman, image)
        print(f"the image's ENTRYPOINT {behaviour.words}", flush=True)
    return Facts(
        image.id, image.architecture, image.size_bytes, image.workdir, sets_entrypoint, behaviour
    )


def _sets_entrypoint(checkout: Checkout, node: ImageNode) -> bool:
    base = node.dockerfile.final_base
    if node.dockerfile.sets_entrypoint or base is None or base.name not in node.local:
        return node.dockerfile.sets_entrypoint
    record = checkout.records.get(Step.PODMAN, node.local[base.name])
    return record is not None and record.facts is not None and record.facts.sets_entrypoint


def _labels(checkout: Checkout, node: ImageNode, bases: BuildBases) -> dict[str, str]:
    """Return the labels; they are part of the image ID, so the same inputs must give the same labels."""
    title, _, version = node.project.name.partition(":")
    labels = {f"{_LABEL}.title": title, f"{_LABEL}.version": version or "latest"}
    if checkout.settings.source:
        labels[f"{_LABEL}.source"] = checkout.settings.source
    base = node.dockerfile.final_base
    if base is not None:
        local = node.local.get(base.name)
        labels[f"{_LABEL}.base.name"] = local or base.name
        # A local base has no manifest digest before it is in a registry, so its ID replaces it.
        record = checkout.records.get(Step.PODMAN, local) if local else None
        if record is not None and record.facts is not None:
            labels[f"{_LABEL}.base.digest"] = f"sha256:{record.facts.image_id}"
        elif local is None:
            labels[f"{_LABEL}.base.digest"] = bases.digests[base.name]
    return labels
