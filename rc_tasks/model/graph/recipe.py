"""Recipes: where an image's Dockerfile and build context are, by the keys of its project.toml."""

import os
import stat
from collections.abc import Collection, Iterator, MutableMapping

from msgspec.structs import replace

from rc_tasks.errors import RcError, SettingsError
from rc_tasks.model import machine as machines
from rc_tasks.model.config.project_toml import ProjectOptions, place
from rc_tasks.model.graph.context import IGNORE_FILES
from rc_tasks.model.graph.pin import LOCK
from rc_tasks.model.graph.project import (
    DOCKERFILE,
    OUR_FILES,
    PROJECTS,
    BuildContext,
    Project,
    Recipe,
    dockerfile_name,
    no_dockerfile,
)
from rc_tasks.util import toml_schema
from rc_tasks.util.toml_schema import Problem

# What no image is meant to hold, unless an ignore file takes it back with `!`: each command of git
# changes files in .git.
_LEFT_OUT = (".git", ".venv")
# In a context that is the whole checkout also what belongs to the checkout itself. Each build of another
# image changes something in projects/, and doit compiles dodo.py into __pycache__. A repository may have
# templates of its own beside ours.
_TEMPLATES = ("env.toml.j2", "nightly.sbatch.j2", "report.css", "report.html.j2", "report.js", "new")
_LEFT_OUT_OF_CHECKOUT = (
    *(PROJECTS, LOCK, "dodo.py", "__pycache__", "rc_tasks.toml"),
    *(f"templates/{name}" for name in _TEMPLATES),
)
_STATE = ".rc"


def images(
    project: Project,
    options: ProjectOptions,
    top_projects: Collection[str],
    broken: MutableMapping[str, RcError],
) -> list[tuple[Project, ProjectOptions]]:
    """Return the images of a project directory: one for each combination of its matrix and machine.

    `top_projects` are the projects beside `projects/`. Raise SettingsError for what project.toml names
    and is not there, and ProjectError for a project without a Dockerfile. Of a matrix, some images of
    which have their files, note the error of each other one in `broken`.
    """
    places = _Places(project, top_projects)
    group, _, version = project.name.partition(":")
    if version and options.matrix is not None:
        raise SettingsError(
            f"matrix: its images are named {group}:VERSION, and this directory has a version already",
            where=place(project.options_file, project.shown_options, ("matrix",)),
            hint=f"rename the directory: git mv '{project.path}' {PROJECTS}/{group}",
        )
    result = []
    errors: dict[str, RcError] = {}
    for name, image_options in _versions(project.name, options):
        for machine in options.arch or ("",):
            image = project
            if name != project.name or machine:
                image_name = machines.image_name(name, machine) if machine else name
                path = f"{PROJECTS}/{image_name}"
                image = replace(project, name=image_name, path=path, machine=machine)
            try:
                result.append((places.placed(image, image_options), image_options))
            except RcError as error:
                errors[image.name] = error
    if not result:
        # One mistake is the reason of all, and is reported once.
        raise next(iter(errors.values()))
    broken.update(errors)
    return result


def _versions(name: str, options: ProjectOptions) -> Iterator[tuple[str, ProjectOptions]]:
    if options.matrix is None:
        yield name, options
        return
    for version in options.matrix.versions:
        yield f"{name}:{version}", options.of_version(version)


class _Places:
    """Finds the files that the options of a project name."""

    def __init__(self, project: Project, top_projects: Collection[str]) -> None:
        self._project = project
        self._root = str(project.root)
        self._directory = project.path
        self._top_projects = top_projects

    def placed(self, image: Project, options: ProjectOptions) -> Project:
        """Return an image with its recipe; None is that of a project which holds all that it needs."""
        problems = self._taken_for_images(options)
        elsewhere = (options.dockerfile, options.context, options.ignorefile, options.directories)
        if image.path == self._directory and not any(elsewhere) and not problems:
            if os.path.lexists(f"{image.base}/{image.dockerfile_name}"):
                return image
            raise no_dockerfile(self._directory)
        context = self._directory_of("context", options.context or ".", problems)
        named = {
            name: self._directory_of(f"contexts.{name}", path, problems)
            for name, path in options.directories.items()
        }
        dockerfile = self._usual_dockerfile(context)
        if options.dockerfile is not None:
            dockerfile = self._file_of("dockerfile", options.dockerfile, problems)
        elif not dockerfile and not problems:
            raise no_dockerfile(self._directory)
        ignorefile = self._usual_ignorefile(context, dockerfile)
        if options.ignorefile is not None:
            ignorefile = self._file_of("ignorefile", options.ignorefile, problems)
        if problems:
            raise toml_schema.failure(SettingsError, problems, self._project.shown_options)
        recipe = Recipe(
            self._directory,
            dockerfile,
            self._context(context, ignorefile),
            {name: self._context(path, self._usual_ignorefile(path)) for name, path in named.items()},
        )
        return replace(image, recipe=recipe, dockerfile_name=DOCKERFILE)

    def _taken_for_images(self, options: ProjectOptions) -> list[Problem]:
        """Return the problems of named contexts that Docker would take for the directories they name."""
        return [
            Problem(
                self._where(f"contexts.{name}"),
                f"contexts.{name}: {written} is a directory, but without ./ an image reference",
                f'write "./{written}" for the directory, or "{written}:latest" for the image',
            )
            for name, written in options.contexts.items()
            if {":", "@"}.isdisjoint(written)
            and name not in options.directories
            and os.path.isdir(self._absolute(f"{self._directory}/{written}"))
        ]

    def _context(self, path: str, ignorefile: str) -> BuildContext:
        left_out = (*_LEFT_OUT, *(_LEFT_OUT_OF_CHECKOUT if path == "." else ()))
        return BuildContext("" if path == "." else path, ignorefile, left_out, self._generated(path))

    def _directory_of(self, key: str, written: str, problems: list[Problem]) -> str:
        path = self._of(key, written, problems)
        if path and not os.path.isdir(self._absolute(path)):
            problems.append(self._problem(key, f"{written} is not a directory"))
        return path

    def _file_of(self, key: str, written: str, problems: list[Problem]) -> str:
        path = self._of(key, written, problems)
        if path and not self._is_file(path):
            problems.append(self._problem(key, f"{written} is not a file"))
        return path

    def _of(self, key: str, written: str, problems: list[Problem]) -> str:
        """Return a path of project.toml in the checkout, without symlinks; empty if it leads out."""
        real = os.path.realpath(f"{self._root}/{self._directory}/{written}")
        if real != self._root and not real.startswith(f"{self._root}/"):
            problems.append(self._problem(key, f"{written} leads out of the checkout, to {real}"))
            return ""
        return os.path.relpath(real, self._root)

    def _usual_dockerfile(self, context: str) -> str:
        for directory in (self._directory, context):
            name = dockerfile_name(self._absolute(directory))
            if self._is_file(f"{directory}/{name}"):
                return os.path.normpath(f"{directory}/{name}")
        return ""

    def _usual_ignorefile(self, context: str, dockerfile: str = "") -> str:
        beside = [dockerfile + form.removeprefix("{}") for form in IGNORE_FILES if "{}" in form]
        above = [os.path.normpath(f"{context}/{form}") for form in IGNORE_FILES if "{}" not in form]
        candidates = (*beside, *above) if dockerfile else above
        return next((path for path in candidates if os.path.lexists(self._absolute(path))), "")

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
        hint = f"name one in the checkout; a relative path begins at {self._directory}/"
        return Problem(self._where(key), f"{key}: {what}", hint)

    def _where(self, key: str) -> str:
        project = self._project
        return place(project.options_file, project.shown_options, tuple(key.split(".", 1)))
