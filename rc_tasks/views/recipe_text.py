"""Where an image's files are and what distinguishes it in its matrix, in words."""

from collections.abc import Iterator

from rc_tasks.model.graph.graph import ImageNode


def facts(node: ImageNode) -> Iterator[tuple[str, str]]:
    """Yield the places of an image's files, each with a heading; nothing if all are in its directory."""
    project, recipe = node.project, node.project.recipe
    if recipe is None:
        return
    if recipe.dockerfile != f"{project.path}/{project.dockerfile_name}":
        yield "Dockerfile", recipe.dockerfile
    for name, context in recipe.contexts.items():
        if context.directory != recipe.directory:
            ignored = f", ignore file {context.ignorefile}" if context.ignorefile else ""
            yield f"Context {name}".strip(), f"{context.directory or '.'}{ignored}"
    if node.axis_values:
        yield "Matrix", ", ".join(f"{axis} {value}" for axis, value in node.axis_values.items())
