"""The podman step: from a Dockerfile to an image in the store."""

import contextlib
import itertools
import os
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rc_tasks.errors import CommandError, ProjectError, RcError
from rc_tasks.model.dockerfile.instructions import encode, instructions
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.model.graph import context
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.checkout import Checkout, parse_node
from rc_tasks.state.judge import Judge
from rc_tasks.state.published.manifests import put_origin
from rc_tasks.state.records.inputs import CHANGED_MEANWHILE, PIN, Signatures, signatures
from rc_tasks.state.records.records import Facts, Record, Step
from rc_tasks.state.store.store import Store
from rc_tasks.steps.image_json import write_image_json
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.podman import cache, entrypoint, failure
from rc_tasks.steps.podman.fetch import BuildBases, bring_bases, bring_cache, mend
from rc_tasks.steps.podman.given import Given, recipe_for
from rc_tasks.steps.podman.replacing import Replacing
from rc_tasks.steps.podman.secrets import Secrets, find
from rc_tasks.steps.podman.syntax import require_known
from rc_tasks.tools import command
from rc_tasks.tools.podman import Image, Podman, shares_copies
from rc_tasks.tools.podman import version as podman_version
from rc_tasks.util.safe_read import advice, read_bytes

_LABEL = "org.opencontainers.image"


def build(checkout: Checkout, node: ImageNode) -> None:
    """Build an image on this node and put it in the store.

    Raises CommandError when podman fails, NeedsError when a base has to be built again first.
    """
    name, start = node.project.name, nodes.begin()
    before = signatures(node)
    # Digested before podman reads the files: an edit during the build is seen as a change afterwards.
    inputs = Judge(checkout).build_inputs(node)
    text = _dockerfile(checkout, node)
    version = podman_version()
    where = node.project.shown_dockerfile
    source = instructions(text, where=where)
    require_known(source, node.dockerfile.needed, version, where=where)
    earlier = checkout.records.get(Step.PODMAN, name)
    last = earlier.tools.get("podman", version) if earlier is not None else version
    copies = any(each.name in {"ADD", "COPY"} for each in source.instructions)
    if copies and not shares_copies(last, version):
        print(
            f"note: podman {last} built this image before, and podman {version} builds it now:\n"
            "what COPY and ADD made is not found in its cache, so the image will be another one",
            flush=True,
        )
    podman = nodes.storage(checkout.settings.podman)
    mend(podman)
    image, digests = _made(checkout, podman, node, text, inputs, before)
    # What was in fact built on, also when it was pinned or moved just now.
    inputs |= {PIN + base: digests[base] for base in node.pinned}
    # A file that has changed and changed back may be in the image as it was in between.
    after = signatures(node)
    moved = {part for part in before.keys() | after.keys() if before.get(part) != after.get(part)}
    inputs |= dict.fromkeys(moved, CHANGED_MEANWHILE)
    facts = _facts(checkout, podman, node, image, earlier)
    tools = {"podman": version}
    record = nodes.record(start, node.project, inputs, facts=facts, tools=tools, bases=digests)
    record = replace(record, dirty=record.dirty or bool(moved and record.commit))
    put_origin(checkout, node, record, text.decode(errors="replace"))
    # The same image may have been made from other inputs: what is published says from which.
    write_image_json(node, record, checkout.records.get(Step.ENROOT, name))
    if earlier is not None and earlier.facts is not None:
        # Somebody may just be building on it.
        checkout.store.use(earlier.facts.image_id)
    checkout.records.put(Step.PODMAN, name, record)
    published = checkout.records.get(Step.ENROOT, name)
    if published is not None and published.instead_of not in {"", image.id}:
        # An image that was put back stays until something else is built: now, whatever is built next.
        checkout.records.put(Step.ENROOT, name, replace(published, instead_of=""))
    print(f"image {image.id[:12]}, {image.size_bytes / 1e6:.1f} MB", flush=True)


def _dockerfile(checkout: Checkout, node: ImageNode) -> bytes:
    """Return the Dockerfile's bytes, which say what `node` says."""
    where = node.project.shown_dockerfile
    try:
        text = read_bytes(node.project.dockerfile)
    except OSError as error:
        raise ProjectError(
            f"cannot be read: {error.strerror}", where=where, hint=advice(error, "make it readable")
        ) from None
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
    """The image, built and in the store with all that podman's cache needs on another node.

    Also the digests of its bases in their registries.
    """
    name, store = node.project.name, checkout.store
    stores = checkout.settings.store.enabled
    made = cache.Made()
    # Better now than after an hour of pulling bases.
    secrets = find(node)
    try:
        bases = bring_bases(checkout, podman, node)
        labels = _labels(checkout, node, bases)
        given = recipe_for(checkout, podman, node, text, bases.ids, inputs, before, labels)
        stages: dict[int, str] = {}
        # The whole image last, as None.
        for stage in (*given.mounted, None):
            given = given.with_stages(stages)
            made.keys = cache.keys(node, given.dockerfile.text, bases.ids)
            if stores and given.cached:
                bring_cache(checkout, podman, name, itertools.chain(*made.keys))
            image = _build(checkout, podman, node, bases, given, secrets, made, stage)
            if stage is not None:
                stages[stage] = image.id
        given.check(image)
    except CommandError as error:
        if stores:
            # What did not fail need not be done again, wherever it is tried next.
            with contextlib.suppress(RcError, OSError):
                _put_cache(checkout, podman, name, made, failed=True)
        # A misspelt base is pulled from a registry, where it is not.
        notes = checkout.graph.notes([node])
        raise error.with_hint("\n".join(filter(None, (*notes, error.hint)))) from None
    if stores:
        store.put(podman, image, beside=_beside(checkout))
        _put_cache(checkout, podman, name, made)
    return image, bases.digests


def _beside(checkout: Checkout) -> Store | None:
    """The official store, which a clone need not copy the layers of its bases from."""
    official = official_of(checkout)
    return official.store if official is not None and official.trusted else None


def _put_cache(
    checkout: Checkout, podman: Podman, name: str, made: cache.Made, *, failed: bool = False
) -> None:
    store, beside = checkout.store, _beside(checkout)
    cached = made.images(podman)
    # The last one of each stage brings all layers of those before it.
    new = [each.image_id for each in reversed(cached) if not store.has(each.image_id)]
    for image in podman.inspect_all(new):
        store.put(podman, image, beside=beside)
    if cached or not failed:
        store.catalogue.put_cache(name, cached, failed=failed)


def _build(
    checkout: Checkout,
    podman: Podman,
    node: ImageNode,
    bases: BuildBases,
    given: Given,
    secrets: Secrets,
    made: cache.Made,
    stage: int | None,
) -> Image:
    """Build the image, or only a stage of it, which gets no name."""
    project = node.project
    whole = stage is None
    target = node.dockerfile.final if stage is None else node.dockerfile.stages[stage]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch, nodes.building(podman):
        iidfile, ignorefile, dockerfile = (
            Path(scratch, name) for name in ("iid", "ignore", project.dockerfile_name)
        )
        ignorefile.write_text(context.ignore_text(project.directory, project.dockerfile_name))
        # As bytes: line ends stay what they are.
        dockerfile.write_bytes(encode(given.dockerfile.text))
        wanted = podman.build(
            given.context(Path(scratch)),
            dockerfile,
            tag=f"localhost/{project.name}" if whole else "",
            iidfile=iidfile,
            ignorefile=ignorefile,
            sources=given.sources,
            build_args=node.recipe.build_args,
            # As the Dockerfile writes it: podman 4.3 minds the capitals of --target.
            target=(target.name or str(target.index))
            if node.recipe.target is not None or not whole
            else None,
            secrets=secrets.sources(Path(scratch)),
            volumes=checkout.settings.podman.volumes,
            pulls=bases.pulls,
            cached=given.cached,
            limits={"nofile": nodes.open_files(), "nproc": nodes.processes()},
        )
        lines: deque[str] = deque(maxlen=failure.LINES)

        def see(line: str) -> None:
            lines.append(line)
            made.see(line)

        returncode = command.watch(wanted, see, Replacing(given.shown | secrets.shown))
        if returncode != 0:
            raise failure.explain(returncode, list(lines), project)
        image_id = iidfile.read_text().strip() if iidfile.exists() else ""
        if not image_id:
            raise CommandError(
                "podman build said that it was done, and named no image",
                where=project.shown_dockerfile,
                hint="run the same command again; `podman --version` tells which one that node has",
            )
        return podman.inspect(image_id)


def _facts(
    checkout: Checkout, podman: Podman, node: ImageNode, image: Image, earlier: Record | None
) -> Facts:
    """What is recorded of a built image; an ENTRYPOINT of a Dockerfile of ours is tried once."""
    # A Dockerfile of ours may also take away that of a base: ENTRYPOINT [].
    ours = bool(image.entrypoint) and _sets_entrypoint(checkout, node)
    behaviour = Behaviour.NOT_TRIED
    if ours and earlier is not None and earlier.facts is not None and earlier.facts.image_id == image.id:
        behaviour = earlier.facts.entrypoint
    if ours and behaviour is Behaviour.NOT_TRIED:
        behaviour = entrypoint.tried(podman, image)
        print(f"the image's ENTRYPOINT {behaviour.words}", flush=True)
    return Facts(image.id, image.architecture, image.size_bytes, image.workdir, ours, behaviour)


def _sets_entrypoint(checkout: Checkout, node: ImageNode) -> bool:
    base = node.dockerfile.final_base
    if node.dockerfile.sets_entrypoint or base is None or base.name not in node.local:
        return node.dockerfile.sets_entrypoint
    record = checkout.records.get(Step.PODMAN, node.local[base.name])
    return record is not None and record.facts is not None and record.facts.sets_entrypoint


def _labels(checkout: Checkout, node: ImageNode, bases: BuildBases) -> dict[str, str]:
    """Labels that are the same for every build of the same inputs: they are part of the image ID."""
    title, _, version = node.project.name.partition(":")
    labels = {f"{_LABEL}.title": title, f"{_LABEL}.version": version or "latest"}
    if checkout.settings.source:
        labels[f"{_LABEL}.source"] = checkout.settings.source
    base = node.dockerfile.final_base
    if base is not None:
        local = node.local.get(base.name)
        labels[f"{_LABEL}.base.name"] = local or base.name
        # An image of ours has no manifest digest before it is in a registry: its ID stands for it.
        record = checkout.records.get(Step.PODMAN, local) if local else None
        if record is not None and record.facts is not None:
            labels[f"{_LABEL}.base.digest"] = f"sha256:{record.facts.image_id}"
        elif local is None:
            labels[f"{_LABEL}.base.digest"] = bases.digests[base.name]
    return labels
