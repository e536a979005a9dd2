"""The podman step: from a Dockerfile to an image in the store."""

from dataclasses import replace

from rc_tasks.errors import CommandError
from rc_tasks.model import context
from rc_tasks.model.graph import ImageNode
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records import Facts, Step
from rc_tasks.steps import node as nodes
from rc_tasks.steps.bring import bring, bring_cache
from rc_tasks.steps.image_json import write_image_json
from rc_tasks.tools import command
from rc_tasks.tools.podman import Image, Podman
from rc_tasks.tools.podman import version as podman_version

_LABEL = "org.opencontainers.image"


def build(checkout: Checkout, name: str) -> None:
    """Build an image on this node and put it in the store. Raises CommandError when podman fails."""
    node = checkout.graph.resolve(name)
    start = nodes.begin()
    # Digested before podman reads the files: an edit during the build is seen as a change afterwards.
    inputs = Judge(checkout).build_inputs(node)
    podman = nodes.storage(checkout.settings.podman)
    if checkout.settings.store.enabled:
        nodes.require("skopeo", "skopeo")
    bases = {written: bring(checkout, podman, base) for written, base in node.local.items()}
    bring_cache(checkout, podman, name)
    try:
        image = _build(checkout, podman, node, bases)
    except CommandError as error:
        # A misspelt base is pulled from a registry, where it is not.
        error.hint = "\n".join(filter(None, (*node.notes, error.hint)))
        raise
    intermediate: tuple[str, ...] = ()
    if checkout.settings.store.enabled:
        checkout.store.put(podman, image)
        intermediate = podman.intermediate(image.id, bases.values())
        for each in podman.inspect_all(intermediate):
            checkout.store.put(podman, each)
    ours = _sets_entrypoint(checkout, node)
    facts = Facts(image.id, image.architecture, image.size_bytes, image.workdir, ours)
    tools = {"podman": podman_version()}
    record = nodes.record(
        start, node.project, inputs, facts=facts, tools=tools, intermediate=intermediate
    )
    # The same image may have been made from other inputs: what is published says from which.
    write_image_json(node, record, checkout.records.get(Step.ENROOT, name))
    checkout.records.put(Step.PODMAN, name, record)
    print(f"image {image.id[:12]}, {image.size_bytes / 1e6:.1f} MB", flush=True)


def _build(checkout: Checkout, podman: Podman, node: ImageNode, bases: dict[str, str]) -> Image:
    project = node.project
    labels = _labels(checkout, podman, node)
    with nodes.scratch() as scratch, nodes.building(podman):
        iidfile, ignorefile = scratch / "iid", scratch / "ignore"
        ignorefile.write_text(context.ignore_text(project.directory))
        wanted = podman.build(
            project.directory,
            project.dockerfile,
            tag=f"localhost/{project.name}",
            iidfile=iidfile,
            ignorefile=ignorefile,
            bases=bases,
            build_args=node.recipe.build_args,
            labels=labels,
            # As the Dockerfile writes it: podman 4.3 minds the capitals of --target.
            target=(node.dockerfile.final.name or str(node.dockerfile.final.index))
            if node.recipe.target is not None
            else None,
            secrets=node.recipe.secrets,
            volumes=checkout.settings.podman.volumes,
        )
        # podman's own temporary files go with ours, also when it is killed.
        returncode = command.stream(replace(wanted, env={"TMPDIR": str(scratch)}), None)
        if returncode != 0:
            raise CommandError(
                f"podman build {command.ending(returncode)}",
                where=project.shown("Dockerfile"),
                hint=f"mend it and run `doit build:{project.name}`: it resumes there",
            )
        return podman.inspect(iidfile.read_text().strip())


def _sets_entrypoint(checkout: Checkout, node: ImageNode) -> bool:
    base = node.dockerfile.final_base
    if node.dockerfile.sets_entrypoint or base is None or base.name not in node.local:
        return node.dockerfile.sets_entrypoint
    record = checkout.records.get(Step.PODMAN, node.local[base.name])
    return record is not None and record.facts is not None and record.facts.sets_entrypoint


def _labels(checkout: Checkout, podman: Podman, node: ImageNode) -> dict[str, str]:
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
            labels[f"{_LABEL}.base.digest"] = podman.pull_missing(base.name)
    return labels
