"""Files that images depend on, as they were listed last; a context that images share is listed once."""

from pathlib import Path

from rc_tasks.model.graph import context
from rc_tasks.model.graph.context import Listing
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import BuildContext, Project
from rc_tasks.state.records.contexts import ContextValues, context_values
from rc_tasks.state.records.digests import ContextDigests
from rc_tasks.state.records.inputs import (
    CONTEXT,
    context_inputs,
    file_inputs,
    input_files,
    shown_files,
    whole,
)


class Listings:
    """The build contexts of one checkout, with the input values of their files."""

    def __init__(self, digests: ContextDigests) -> None:
        """Take the digests of files from `digests`."""
        self._digests = digests
        # By the name of the image; and each context that images may share.
        self._of_images: dict[str, Listing] = {}
        self._of_contexts: dict[BuildContext, Listing] = {}
        # By the directory and the signature of the listing.
        self._values: dict[tuple[str, str], ContextValues] = {}

    def of(self, project: Project) -> Listing:
        """Return the files of an image, as `input_files` lists them. Raise ProjectError."""
        listing = self._of_images.get(project.name)
        if listing is None:
            listing = self._of_images[project.name] = input_files(project, self._of_context)
        return listing

    def inputs(self, project: Project) -> dict[str, str]:
        """Return the file inputs of an image; a context that images may share is one of them.

        Raise ProjectError.
        """
        inputs = file_inputs(project, self.of(project).paths, self._digests.of)
        return inputs | {part: values.digest for part, values in self.shared(project).items()}

    def shared(self, project: Project) -> dict[str, ContextValues]:
        """Return the values of the files of contexts that images may share, by part.

        It is empty for a project whose own directory is the context. Raise ProjectError.
        """
        contexts = project.recipe.contexts if project.recipe is not None else {}
        return {whole(name): self._values_of(project.root, at) for name, at in contexts.items()}

    def shown(self, node: ImageNode) -> list[str]:
        """Return the files that an image depends on, relative to the checkout.

        A context that is not the project's own directory is listed as a directory. Raise ProjectError.
        """
        project = node.project
        contexts = project.recipe.contexts if project.recipe is not None else ()
        parts = [CONTEXT + path for path in self.of(project).paths]
        parts += [whole(name) for name in contexts]
        return list(shown_files(project, (project.dockerfile_name, *parts)).values())

    def every_file(self, node: ImageNode) -> list[str]:
        """Return the files that an image depends on, also those of contexts that images share.

        They are relative to the checkout. Raise ProjectError.
        """
        project = node.project
        if project.recipe is None:
            return self.shown(node)
        contexts = project.recipe.contexts.values()
        listings = ((at, self._of_context(project.root, at).paths) for at in contexts)
        paths = (at.shown(path) for at, listed in listings for path in listed)
        ignorefiles = (at.ignorefile for at in contexts if at.ignorefile)
        return list(dict.fromkeys((project.shown_dockerfile, *ignorefiles, *paths)))

    def forget(self, name: str) -> None:
        """List the files of an image again when they are needed, but not a context that images share.

        A run may take hours, so that files may have changed.
        """
        self._of_images.pop(name, None)

    def forget_all_of(self, project: Project) -> None:
        """List the files of an image again, as it has been built meanwhile."""
        self.forget(project.name)
        if project.recipe is not None:
            for build_context in project.recipe.contexts.values():
                self._of_contexts.pop(build_context, None)

    def _of_context(self, root: Path, build_context: BuildContext) -> Listing:
        listing = self._of_contexts.get(build_context)
        if listing is None:
            listing = self._of_contexts[build_context] = context.of_context(root, build_context)
        return listing

    def _values_of(self, root: Path, at: BuildContext) -> ContextValues:
        listing = self._of_context(root, at)
        key = (at.directory, listing.signature)
        values = self._values.get(key)
        if values is None:
            by_path = context_inputs(str(root / at.directory), at.shown, listing.paths, self._digests.of)
            values = self._values[key] = context_values(by_path)
        return values
