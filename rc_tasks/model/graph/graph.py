"""The graph of images: edges from the Dockerfiles, build order, cycles."""

from collections.abc import Container, Iterable, Iterator, Mapping, Set
from functools import cache, partial
from graphlib import CycleError, TopologicalSorter

from msgspec import Struct, field

from rc_tasks.errors import DockerfileError, GraphError, ProjectError, RcError, SettingsError
from rc_tasks.model.config.project_toml import ProjectOptions, place
from rc_tasks.model.dockerfile.parser import BaseUse, Dockerfile, Via
from rc_tasks.model.graph.project import PROJECT_TOML, PROJECTS, Alias, Project
from rc_tasks.model.machine import image_name, without_machine
from rc_tasks.model.reference import near


class ImageNode(Struct, frozen=True):
    """A project with its parsed files.

    `local` maps each base as written (`localhost/reasoning_base`) to the project that builds it.
    `remote` lists the registry references.
    """

    project: Project
    dockerfile: Dockerfile
    options: ProjectOptions
    local: Mapping[str, str]
    remote: tuple[str, ...]

    @property
    def bases(self) -> tuple[str, ...]:
        """The projects that this image is built on, each once."""
        return tuple(dict.fromkeys(self.local.values()))

    @property
    def axis_values(self) -> Mapping[str, str]:
        """The value of each axis of its matrix; empty for other images."""
        versions = self.options.matrix.versions if self.options.matrix is not None else {}
        return versions.get(self.project.version, {})

    @property
    def pinned(self) -> tuple[str, ...]:
        """The registry references that builds take by a pin.

        These exclude references with a digest, in a stage that is not needed, or of another platform,
        which podman pulls itself.
        """
        used = [base for base in self.dockerfile.bases if base.stage in self.dockerfile.needed]
        other_platform = {base.name for base in used if base.other_platform}
        names = dict.fromkeys(base.name for base in used if base.name in self.remote)
        return tuple(name for name in names if "@" not in name and name not in other_platform)


class ImageGraph(Struct, frozen=True):
    """All images of a checkout, each after its bases.

    `broken` maps the name of an image that cannot be built to the error. `unbuildable` holds the nodes
    of those whose Dockerfile can be read: on a cycle, or with a broken project.toml. `problems` are
    about directories whose names cannot be used.
    """

    images: Mapping[str, ImageNode]
    aliases: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, RcError] = field(default_factory=dict)
    problems: tuple[RcError, ...] = ()
    unbuildable: Mapping[str, ImageNode] = field(default_factory=dict)

    def resolve(self, name: str) -> ImageNode:
        """Return the image with this name or alias. Raise the error that breaks it, or ProjectError."""
        name = self.aliases.get(name, name)
        # Which versions the matrix of a broken project has is not known.
        broken = self.broken.get(name) or self.broken.get(name.partition(":")[0])
        if name not in self.images and broken is not None:
            raise broken
        if name not in self.images:
            raise ProjectError(
                f"there is no image named {name!r} in this checkout",
                hint=partial(_nearest, name, self.names()),
            )
        return self.images[name]

    def names(self) -> tuple[str, ...]:
        """Return every name that a user may give."""
        return (*self.images, *self.aliases, *self.broken)

    def aliases_of(self) -> dict[str, list[str]]:
        """Return the aliases of each image that has any."""
        aliases: dict[str, list[str]] = {}
        for alias, target in self.aliases.items():
            aliases.setdefault(target, []).append(alias)
        return aliases

    def notes(self, nodes: Iterable[ImageNode]) -> Iterator[str]:
        """Yield notes on probable mistakes in these images that podman accepts.

        Among them are registry bases that may be misspelt projects or stages. A search for near names
        takes milliseconds, so it is done once for each base, and only when notes are shown.
        """
        names = self.names()
        close = cache(lambda name, stages: near(name, (*stages, *names)))
        for node in nodes:
            yield from node.dockerfile.notes
            yield from _missing_access(node)
            where = node.project.shown_dockerfile
            stages = tuple(stage.name for stage in node.dockerfile.stages if stage.name)
            for name, line in dict.fromkeys((base.name, base.line) for base in node.dockerfile.bases):
                if name in node.remote and "/" not in name and (meant := close(name, stages)):
                    yield (
                        f"{where}:{line}: {name} is not an image of this checkout and will be pulled"
                        f" from a registry; did you mean {' or '.join(meant)}?"
                    )

    def with_bases(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the named images with all their direct and indirect bases, bases first."""
        reached: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in reached and name in self.images:
                reached.add(name)
                todo += self.images[name].bases
        return tuple(name for name in self.images if name in reached)


def local_name(written: str, names: Container[str], unread: Container[str] = frozenset()) -> str | None:
    """Return the project or alias that a base names, or None for a registry reference.

    The name may begin with `localhost/`. A missing tag and `:latest` are the same, as in every container
    tool. Every version of a project in `unread` is that project: a mistake in its project.toml hides
    which versions its matrix has, and none of them may come from a registry meanwhile.
    """
    name = written.removeprefix("localhost/")
    same = name.removesuffix(":latest") if name.endswith(":latest") else f"{name}:latest"
    matrix = name.partition(":")[0]
    candidates = (name, same, matrix) if matrix in unread else (name, same)
    return next((candidate for candidate in candidates if candidate in names), None)


def image_node(
    project: Project,
    dockerfile: Dockerfile,
    options: ProjectOptions,
    aliases: Mapping[str, str],
    names: Set[str],
    machine_of: Mapping[str, str],
    machine: str,
    unread: Container[str] = frozenset(),
) -> ImageNode:
    """Return the project as a node of the graph; `names` are all projects and aliases.

    `machine_of` maps the images for one of several machines to it; `machine` is this one (uname -m).
    `unread` are the projects whose versions are not known. Raise DockerfileError.
    """
    local: dict[str, str] = {}
    remote: dict[str, None] = {}
    for context, image in options.projects.items():
        if local_name(image, names, unread) is None:
            raise SettingsError(
                f"contexts.{context}: {image} is not an image of this checkout",
                where=place(project.options_file, project.shown_options, ("contexts", context)),
                hint=partial(_nearest, image, names),
            )
    for base in dockerfile.bases:
        name = local_name(base.name, names, unread)
        if name is not None:
            image = aliases.get(name, name)
            built_for = project.machine or machine
            if machine_of.get(name, built_for) != built_for and base.stage in dockerfile.needed:
                raise DockerfileError(
                    f"{name} is an image for {machine_of[name]}, and {project.name} is for {built_for}",
                    where=f"{project.shown_dockerfile}:{base.line}",
                    hint=f"write {without_machine(name, machine_of[name])}: it is the image for the"
                    " same machine",
                )
            if image not in unread and machine_of.get(image, machine) != built_for:
                image = _for_machine(image, built_for, machine_of, project, base)
            local[base.name] = image
            continue
        if base.name.startswith("localhost/") and base.stage in dockerfile.needed:
            raise DockerfileError(
                f"{base.name} is not an image of this checkout, and localhost/ cannot be pulled",
                where=f"{project.shown_dockerfile}:{base.line}",
                hint=partial(_nearest, base.name.removeprefix("localhost/"), names),
            )
        remote[base.name] = None
    return ImageNode(project, dockerfile, options, local, tuple(remote))


def _for_machine(
    image: str, machine: str, machine_of: Mapping[str, str], project: Project, base: BaseUse
) -> str:
    """Return the image of the same recipe for another machine. Raise DockerfileError."""
    name = without_machine(image, machine_of[image]) if image in machine_of else image
    other = image_name(name, machine)
    if other not in machine_of:
        raise DockerfileError(
            f"{name} is not built for {machine}, as {project.name} is",
            where=f"{project.shown_dockerfile}:{base.line}",
            hint=f"name {machine} in `arch` of the {PROJECT_TOML} of {name}",
        )
    return other


def image_graph(
    nodes: Iterable[ImageNode],
    aliases: Iterable[Alias] = (),
    broken: Mapping[str, RcError] | None = None,
    problems: Iterable[RcError] = (),
) -> ImageGraph:
    """Return the graph of all nodes, bases first; images on a cycle are broken, with it as reason."""
    by_name = {node.project.name: node for node in nodes}
    bad = dict(broken or {})
    while True:
        good = {name: node for name, node in by_name.items() if name not in bad}
        sorter = TopologicalSorter(
            {name: [base for base in node.bases if base in good] for name, node in good.items()}
        )
        try:
            order = tuple(sorter.static_order())
        except CycleError as error:
            # graphlib lists each node before its dependent node.
            cycle = tuple(reversed(error.args[1]))[:-1]
            bad |= dict.fromkeys(cycle, _cycle_error(cycle, by_name))
        else:
            break
    valid = {}
    for alias in aliases:
        if alias.target in by_name or alias.target in bad:
            valid[alias.name] = alias.target
        else:
            bad[alias.name] = _no_image(alias)
    unbuildable = {name: node for name, node in by_name.items() if name not in good}
    return ImageGraph({name: good[name] for name in order}, valid, bad, tuple(problems), unbuildable)


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return the hint for an unknown name."""
    close = near(name, names)
    return f"did you mean {' or '.join(close)}?" if close else "`doit list` shows all names"


def _missing_access(node: ImageNode) -> Iterator[str]:
    """Yield a note on each secret and SSH agent that a RUN mounts and project.toml does not name."""
    options = node.options
    known = {("secret", secret.id) for secret in options.secrets}
    known |= {("ssh", access.id) for access in options.ssh}
    for mount in node.dockerfile.private_mounts:
        if mount.stage in node.dockerfile.needed and (mount.kind, mount.id) not in known:
            key = "secrets" if mount.kind == "secret" else "ssh"
            yield (
                f"{node.project.shown_dockerfile}:{mount.line}: this RUN gets no {mount.kind}"
                f" {mount.id}: {key} in {node.project.shown(PROJECT_TOML)} does not name it"
            )


def _cycle_error(cycle: tuple[str, ...], nodes: Mapping[str, ImageNode]) -> GraphError:
    edges = [
        _edge(nodes[name], following)
        for name, following in zip(cycle, (*cycle[1:], cycle[0]), strict=True)
    ]
    if len(cycle) == 1:
        return GraphError(
            f"{cycle[0]} is built on itself: {_written(edges[0][1])}",
            where=edges[0][0],
            hint="name another base; one of the same name in a registry is written with its host,\n"
            "as in docker.io/library/debian:12",
        )
    return GraphError(
        f"these images are built on one another: {' → '.join((*cycle, cycle[0]))}",
        where=edges[0][0],
        quote=tuple(f"{where}: {_written(base)}" for where, base in edges),
        hint="take one of these lines out, or move what both need into an image of its own",
    )


def _written(base: BaseUse) -> str:
    forms = {Via.FROM: "FROM ", Via.COPY: "COPY --from=", Via.MOUNT: "RUN --mount=from="}
    return forms[base.via] + base.name


def _no_image(alias: Alias) -> ProjectError:
    path = f"{PROJECTS}/{alias.name}"
    return ProjectError(
        f"this alias points to {alias.target}, which is not an image",
        where=path,
        hint=f"point it to a project: ln -sfn NAME '{path}'",
    )


def _edge(node: ImageNode, to: str) -> tuple[str, BaseUse]:
    base = next(base for base in node.dockerfile.bases if node.local.get(base.name) == to)
    return f"{node.project.shown_dockerfile}:{base.line}", base
