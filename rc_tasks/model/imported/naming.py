"""Names of projects and aliases, made of the tags that bake and compose files give to images.

The name of an image is the last part of its first tag, without registry and namespace. An image without
a tag has the name of its target or service.
"""

from collections.abc import Iterable, Sequence, Set

from msgspec.structs import replace

from rc_tasks.model.imported.project import (
    ContextKind,
    ImageBuild,
    MatrixBuild,
    NamedContext,
    NotTaken,
    ProjectRecipe,
    Recipes,
    fill,
)
from rc_tasks.model.reference import name_problem
from rc_tasks.util.text import listed

_MOST_SHOWN = 3


def named(
    builds: Sequence[ImageBuild | MatrixBuild], noun: str, groups: Set[str] = frozenset()
) -> Recipes:
    """Return the recipes of builds; `noun` is what the file calls a build: target or service.

    `groups` are names that have versions already. As for Docker, `app` is `app:latest` beside `app:1.0`.
    """
    not_taken: list[NotTaken] = []
    matrices, plain = _split(builds)
    versioned = (*_names(tag for build in plain for tag in build.tags), *_images(matrices))
    groups = groups | {
        name.partition(":")[0] for name in versioned if ":" in name and not name_problem(name)
    }
    recipes: dict[str, ProjectRecipe] = {recipe.name: recipe for recipe in matrices}
    images = {
        item.source: image
        for recipe in matrices
        for matrix in builds
        if isinstance(matrix, MatrixBuild) and matrix.source == recipe.build.source
        for item, image in zip(matrix.builds, recipe.images, strict=True)
    }
    for build in plain:
        candidates = [_beside(groups, name) for name in (*_names(build.tags), build.source.lower())]
        same = next((name for name in candidates if _is_same(recipes.get(name), build)), None)
        if same is not None:
            # One project is enough, with the tags of both.
            kept = recipes[same].build
            recipes[same] = ProjectRecipe(same, replace(kept, tags=(*kept.tags, *build.tags)), (same,))
            images[build.source] = same
            continue
        name = next(
            (name for name in candidates if not name_problem(name) and name not in recipes), None
        )
        if name is None:
            not_taken.append(_unnamed(build, noun, candidates, recipes))
            continue
        if build.tags and name != candidates[0]:
            problem = _why_not(candidates[0])
            what = f"the tag {candidates[0]!r} of {noun} {build.source!r} is not its name: it {problem}"
            not_taken.append(NotTaken(build.where, what, "rename the directory, or change the tag"))
        recipes[name] = ProjectRecipe(name, build, (name,))
        images[build.source] = name
    with_aliases = _with_aliases([*recipes.values()], groups, not_taken)
    linked = tuple(_linked(recipe, images, not_taken, noun) for recipe in with_aliases)
    return Recipes(linked, tuple(not_taken), tuple(_dropped(linked)))


def _split(builds: Sequence[ImageBuild | MatrixBuild]) -> tuple[list[ProjectRecipe], list[ImageBuild]]:
    """Return the recipes of matrices, and the builds that get a project each."""
    as_matrix = {
        build.source: recipe
        for build in builds
        if isinstance(build, MatrixBuild) and (recipe := _matrix(build)) is not None
    }
    names = [recipe.name for recipe in as_matrix.values()]
    plain: list[ImageBuild] = []
    matrices: list[ProjectRecipe] = []
    for build in builds:
        if isinstance(build, ImageBuild):
            plain.append(build)
        elif build.source in as_matrix and names.count(as_matrix[build.source].name) == 1:
            matrices.append(as_matrix[build.source])
        else:
            plain += build.builds
    return matrices, plain


def _matrix(build: MatrixBuild) -> ProjectRecipe | None:
    """Return the recipe of a matrix, or None when project.toml cannot say it as a matrix."""
    if not build.is_right:
        return None
    name, _, version = (_names(build.template.tags) or [""])[0].partition(":")
    if not build.template.tags:
        # Without tags, images keep the names of their targets, unless these begin like their block's.
        if not all(item.source.startswith(f"{build.source}-") for item in build.builds):
            return None
        name, version = build.source.lower(), "-".join(f"{{{axis}}}" for axis in build.axes)
    images = tuple(f"{name}:{fill(version, values)}" for values in build.combinations)
    if not version or any(map(name_problem, (name, *images))) or len(set(images)) != len(images):
        return None
    template = replace(build.template, source=build.source)
    return ProjectRecipe(name, template, images, axes=build.axes, version=version)


def _names(tags: Iterable[str]) -> list[str]:
    """Return the last part of each tag, without a digest."""
    return [tag.partition("@")[0].rpartition("/")[2] for tag in tags]


def _is_same(recipe: ProjectRecipe | None, build: ImageBuild) -> bool:
    return recipe is not None and not recipe.axes and recipe.build.same_image(build)


def _unnamed(
    build: ImageBuild, noun: str, candidates: list[str], recipes: dict[str, ProjectRecipe]
) -> NotTaken:
    if not build.tags or candidates[0] not in recipes:
        problem = _why_not(candidates[-1] if not build.tags else candidates[0])
        hint = "give it a tag such as app:1.0"
    else:
        problem, hint = f"is that of another {noun}, which builds something else", "give it another tag"
    return NotTaken(build.where, f"{noun} {build.source!r} is not taken: its name {problem}", hint)


def _why_not(name: str) -> str:
    return name_problem(name) or "is in use"


def _beside(groups: Set[str], name: str) -> str:
    """Return a name with the version `latest` if without it the name would be that of a group."""
    return f"{name}:latest" if name in groups else name


def _images(recipes: Iterable[ProjectRecipe]) -> list[str]:
    return [image for recipe in recipes for image in recipe.images]


def _with_aliases(
    recipes: list[ProjectRecipe], groups: Set[str], not_taken: list[NotTaken]
) -> list[ProjectRecipe]:
    """Return the recipes with their further tags as aliases."""
    taken = {name for recipe in recipes for name in (recipe.name, *recipe.images)}
    result = []
    for recipe in recipes:
        aliases: list[str] = []
        further = [tag for tag in _names(recipe.build.tags)[1:] if tag != recipe.name]
        if recipe.axes and further:
            what = f"further tags of {recipe.name} are not taken: {listed(further, _MOST_SHOWN)}"
            hint = "an alias leads to one image: write a link for each, ln -s NAME projects/ALIAS"
            not_taken.append(NotTaken(recipe.build.where, what, hint))
            further = []
        for tag in further:
            alias = _beside(groups, tag)
            if alias in {recipe.name, *aliases}:
                continue
            if alias in taken or name_problem(alias):
                what = f"the tag {alias!r} of {recipe.name} is not taken: it {_why_not(alias)}"
                not_taken.append(NotTaken(recipe.build.where, what, "change the tag"))
                continue
            aliases.append(alias)
            taken.add(alias)
        result.append(replace(recipe, aliases=tuple(aliases)))
    return result


def _linked(
    recipe: ProjectRecipe, images: dict[str, str], not_taken: list[NotTaken], noun: str
) -> ProjectRecipe:
    """Return a recipe whose contexts name images in place of targets or services."""
    contexts = {}
    for name, context in recipe.build.contexts.items():
        if context.kind is not ContextKind.BUILD:
            contexts[name] = context
        elif context.value in images:
            contexts[name] = NamedContext(ContextKind.BUILD, images[context.value])
        else:
            what = f"context {name!r} of {recipe.name}: no image is made of {noun} {context.value!r}"
            hint = f"add it to [contexts] of projects/{recipe.name}/project.toml"
            not_taken.append(NotTaken(recipe.build.where, what, hint))
    return replace(recipe, build=replace(recipe.build, contexts=contexts))


def _dropped(recipes: Iterable[ProjectRecipe]) -> list[str]:
    places = {
        tag.rpartition("/")[0]: None for recipe in recipes for tag in recipe.build.tags if "/" in tag
    }
    if not places:
        return []
    return [
        f"names have no registry and no namespace here; dropped: {listed(list(places), _MOST_SHOWN)}"
    ]
