"""Recipes: where an image's Dockerfile and build context are, by the keys of its project.toml."""

import os
import stat
from collections.abc import Collection

from msgspec.structs import replace

from rc_tasks.errors import SettingsError
from rc_tasks.model.config.project_toml import ProjectOptions
from rc_tasks.model.graph.context import IGNORE_FILES
from rc_tasks.model.graph.pin import LOCK
from rc_tasks.model.graph.project import (
    DOCKERFILE,
    OUR_FILES,
    PROJECTS,
    Project,
    Recipe,
    dockerfile_name,
    no_dockerfile,
)
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.safe_read import read_text
from rc_tasks.util.toml_schema import Problem

# What no image is meant to hold, unless an ignore file takes it back with `!`: each command of git
# changes files in .git.
_LEFT_OUT = (".git", ".venv")
# In a context that is the whole checkout also what belongs to the checkout itself. Each build of another
# image changes something in projects/.
_LEFT_OUT_OF_CHECKOUT = (PROJECTS, LOCK, "dodo.py", "rc_tasks.toml")
_STATE = ".rc"


def images(
    project: Project, options: ProjectOptions, top_projects: Collection[str]
) -> list[tuple[Project, ProjectOptions]]:
    """Return the images of a project directory: one, or one for each combination of its matrix.

    `top_projects` are the projects beside `projects/`. Raise SettingsError for what project.toml names
    and is not there, and ProjectError for a project without a Dockerfile.
    """
    places = _Places(project, top_projects)
    if options.matrix is None:
        return [(places.placed(project, options), options)]
    result = []
    for version in options.matrix.versions:
        name = f"{project.name}:{version}"
        image = replace(project, name=name, path=f"{PROJECTS}/{name}")
        image_options = options.of_version(version)
        result.append((places.placed(image, image_options), image_options))
    return result


class _Places:
    """Finds the files that the options of a project name."""

    def __init__(self, project: Project, top_projects: Collection[str]) -> None:
        self._project = project
        self._root = str(project.root)
        self._directory = project.path
        self._top_projects = top_projects

    def placed(self, image: Project, options: ProjectOptions) -> Project:
        """Return an image with its recipe; None is that of a project which holds all that it needs."""
        if options.matrix is None and not (options.dockerfile or options.context or options.ignorefile):
            if os.path.lexists(f"{image.base}/{image.dockerfile_name}"):
                return image
            raise no_dockerfile(self._directory)
        problems: list[Problem] = []
        context = self._of("context", options.context, problems) or self._directory
        if not os.path.isdir(self._absolute(context)):
            problems.append(self._problem("context", f"{options.context} is not a directory"))
        dockerfile = self._of("dockerfile", options.dockerfile, problems)
        if options.dockerfile is None:
            dockerfile = self._usual_dockerfile(context)
            if dockerfile is None:
                raise no_dockerfile(self._directory)
        elif dockerfile and not self._is_file(dockerfile):
            problems.append(self._problem("dockerfile", f"{options.dockerfile} is not a file"))
        ignorefile = self._of("ignorefile", options.ignorefile, problems)
        if options.ignorefile is None:
            ignorefile = self._usual_ignorefile(dockerfile or "", context)
        elif ignorefile and not self._is_file(ignorefile):
            problems.append(self._problem("ignorefile", f"{options.ignorefile} is not a file"))
        if problems:
            raise toml_schema.failure(SettingsError, problems, self._project.shown_options)
        recipe = Recipe(
            self._directory,
            dockerfile or "",
            "" if context == "." else context,
            ignorefile or "",
            (*_LEFT_OUT, *(_LEFT_OUT_OF_CHECKOUT if context == "." else ())),
            self._generated(context),
        )
        return replace(image, recipe=recipe, dockerfile_name=DOCKERFILE)

    def _of(self, key: str, written: str | None, problems: list[Problem]) -> str | None:
        """Return the path in the checkout, without symlinks, of a path in project.toml."""
        if written is None:
            return None
        real = os.path.realpath(f"{self._root}/{self._directory}/{written}")
        if real != self._root and not real.startswith(f"{self._root}/"):
            problems.append(self._problem(key, f"{written} leads out of the checkout, to {real}"))
            return None
        return os.path.relpath(real, self._root)

    def _usual_dockerfile(self, context: str) -> str | None:
        for directory in (self._directory, context):
            name = dockerfile_name(self._absolute(directory))
            if self._is_file(f"{directory}/{name}"):
                return os.path.normpath(f"{directory}/{name}")
        return None

    def _usual_ignorefile(self, dockerfile: str, context: str) -> str:
        beside = [dockerfile + form.removeprefix("{}") for form in IGNORE_FILES if "{}" in form]
        above = [os.path.normpath(f"{context}/{form}") for form in IGNORE_FILES if "{}" not in form]
        return next((path for path in (*beside, *above) if os.path.lexists(self._absolute(path))), "")

    def _generated(self, context: str) -> tuple[str, ...]:
        """Return patterns of our own files in a context, relative to it."""
        patterns = [_STATE] if context == "." else []
        for directory in (f"{PROJECTS}/*", *self._top_projects):
            inside = os.path.relpath(directory, context)
            if not inside.startswith(".."):
                patterns += [os.path.normpath(f"{inside}/{name}") for name in OUR_FILES]
        if context == self._directory or os.path.dirname(context) == PROJECTS:
            patterns += OUR_FILES
        return tuple(dict.fromkeys(patterns))

    def _absolute(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _is_file(self, path: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(self._absolute(path)).st_mode)
        except OSError:
            return False

    def _problem(self, key: str, what: str) -> Problem:
        where = self._project.shown_options
        try:
            text = read_text(self._project.options_file)
            line = toml_text.line_of(text, (key,))
        except (OSError, UnicodeDecodeError):
            line = None
        hint = f"name one in the checkout; a relative path begins at {self._directory}/"
        return Problem(f"{where}:{line}" if line else where, f"{key}: {what}", hint)
