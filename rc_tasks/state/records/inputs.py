"""Inputs of an image, part by part, each with its digest.

The version of this tool, times and the path of the checkout are no inputs: none may cause a rebuild. A
new part, such as `cache/…`, makes only those images stale whose record has to have it.
"""

import contextlib
import functools
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rc_tasks.errors import ProjectError
from rc_tasks.model.dockerfile.parser import Overlooked
from rc_tasks.model.graph import context
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import DOCKERFILES, BuildContext, Project
from rc_tasks.state.records.digests import Digests, bytes_digest, text_digest
from rc_tasks.tools import podman_versions
from rc_tasks.util import file_mode
from rc_tasks.util.safe_read import unreadable

# Prefixes of parts: files of the build context, images of this checkout, digests of registry bases.
CONTEXT = "context/"
# The part of a context that is not the project's own directory: its digest in `contexts.py`. Those of
# named contexts have a slash and the name behind it.
WHOLE_CONTEXT = "context"
NAMED_CONTEXT = "contexts/"
BASE = "base/"
PIN = "pin/"
# The prefix of what podman's own layer cache overlooks in this image. Builds prevent that since this
# part exists (see `model/dockerfile/rewrite.py`); earlier builds may have used older files.
CACHE = "cache/"
# The value of a file that was written to during the build, whatever it holds now.
CHANGED_MEANWHILE = "changed during the build"

_SEEN = "seen"
# The first versions of podman whose cache sees what a RUN --mount reads.
_SEEN_SINCE = {
    Overlooked.SOURCE: podman_versions.MOUNTED_FILES_SEEN_SINCE,
    Overlooked.STAGE: podman_versions.MOUNTED_STAGES_SEEN_SINCE,
}

# Raise it when `file_value` changes, so that cached comparisons become void.
_VALUES = 1

# Size, times and inode of each file and directory, by part.
Signatures = Mapping[str, tuple[int, int, int, int]]


def file_inputs(
    project: Project, files: Iterable[str], digests: Callable[[str], Digests]
) -> dict[str, str]:
    """Return the file inputs of an image: `Dockerfile` or `Containerfile`, `context/entrypoint.sh`, …

    `files` are the paths of `input_files`. `digests` returns the cache for a directory, by its absolute
    path. Values are those of `file_value`. Raise ProjectError when a file cannot be read.
    """
    dockerfile = f"{project.root}/{project.shown_dockerfile}"
    cache = digests(os.path.dirname(dockerfile))
    parts = {project.dockerfile_name: _file_input(project.shown_dockerfile, dockerfile, cache, True)}
    values = context_inputs(str(project.context), project.shown_input, files, digests)
    return {**parts, **{CONTEXT + path: value for path, value in values.items()}}


def context_inputs(
    directory: str,
    shown: Callable[[str], str],
    files: Iterable[str],
    digests: Callable[[str], Digests],
) -> dict[str, str]:
    """Return the value of each of these files of a build context in `directory`, an absolute path.

    `shown` returns a file of it as errors show it. Raise ProjectError.
    """
    cache = digests(directory)
    return {path: _file_input(shown(path), f"{directory}/{path}", cache) for path in files}


def _file_input(shown: str, path: str, digests: Digests, follow: bool = False) -> str:
    try:
        return file_value(path, os.stat(path, follow_symlinks=follow), digests)
    except OSError as error:
        raise unreadable(
            ProjectError,
            error,
            shown,
            "make it readable, or name it in .containerignore if no image needs it",
        ) from None


def is_whole(part: str) -> bool:
    """Return whether a part stands for all files of a context."""
    return part == WHOLE_CONTEXT or part.startswith(NAMED_CONTEXT)


def whole(name: str) -> str:
    """Return the part of a context; the name of the main one is empty."""
    return NAMED_CONTEXT + name if name else WHOLE_CONTEXT


def with_files(inputs: Mapping[str, str], listings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return inputs with each file of a context in place of the one part for all.

    `listings` maps such parts to the values of the files by path.
    """
    parts = {part: value for part, value in inputs.items() if part not in listings}
    for part, listing in listings.items():
        parts |= {f"{part}/{path}": value for path, value in listing.items()}
    return parts


def other_inputs(node: ImageNode, base_ids: Mapping[str, str], architecture: str) -> dict[str, str]:
    """Return the other inputs: `build_args.KEY`, `target`, `base/reasoning_base`, `architecture`, …

    `base_ids` maps the local bases that are built to their image IDs.
    """
    parts = {}
    for key, value in node.options.build_args.items():
        parts[f"build_args.{key}"] = text_digest(value)
    if node.options.target is not None:
        parts["target"] = node.options.target
    for name in node.bases:
        parts[BASE + name] = base_ids.get(name, "")
    parts["architecture"] = architecture
    parts |= {CACHE + kind: _SEEN for kind, _ in node.dockerfile.overlooked}
    return parts


def signatures(project: Project) -> Signatures:
    """Return size, times and inode of every file and directory that an image depends on, by part.

    Two equal results prove that nobody wrote to a file in between. Equal digests do not: a file may
    change and change back.
    """
    by_part = {}
    for part, directory, paths in _files(project):
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(f"{directory}/{path}", follow_symlinks=False)
                size_bytes = 0 if path == "." else status.st_size
                by_part[f"{part}/{path}"] = _signature(status, size_bytes)
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(project.dockerfile)
        by_part[project.dockerfile_name] = _signature(status, status.st_size)
    return by_part


def _files(project: Project) -> Iterator[tuple[str, Path, Iterable[str]]]:
    """Yield each build context: its part, its directory, and its files."""
    recipe = project.recipe
    if recipe is None:
        yield WHOLE_CONTEXT, project.context, (".", *input_files(project).paths)
        return
    # Others publish in directories of a shared context, which changes the directory itself.
    for name, build_context in recipe.contexts.items():
        listing = context.of_context(project.root, build_context)
        yield whole(name), project.root / build_context.directory, listing.paths


def _signature(status: os.stat_result, size_bytes: int) -> tuple[int, int, int, int]:
    return size_bytes, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def digest_below(inputs: Mapping[str, str], name: str, path: str) -> str:
    """Return a digest of a build context at and below `path`; the empty path means all of it.

    The name of the main context is empty.
    """
    path = posixpath.normpath(f"/{path}").lstrip("/")
    above = f"{whole(name)}/"
    below = f"{above}{path}/" if path else above
    parts = [
        f"{part} {value}"
        for part, value in sorted(inputs.items())
        if part.startswith(below)
        or part == above + path
        or (part in DOCKERFILES and path in ("", part) and not name)
    ]
    return text_digest("\n".join(parts))


def input_files(
    project: Project,
    listing_of: Callable[[Path, BuildContext], context.Listing] = context.of_context,
) -> context.Listing:
    """Return the files of an image's build context, relative to it, and a signature of all its files.

    Of a project's own directory they do not include the Dockerfile, which is an input of its own. Of
    other contexts there is the signature alone. `listing_of` lists one of those. Raise ProjectError.
    """
    try:
        if project.recipe is None:
            listing = context.of_project(project)
        else:
            listings = [
                listing_of(project.root, build_context)
                for build_context in project.recipe.contexts.values()
            ]
            listing = context.Listing(
                (),
                " ".join(listing.signature for listing in listings),
                max(listing.changed_ns for listing in listings),
            )
    except ProjectError as error:
        raise error.with_where(str(error.where).removeprefix(f"{project.root}/")) from None
    # The listing may lack the Dockerfile: it may be a symlink, or an ignore file may name it.
    signature, changed_ns, paths = "", listing.changed_ns, listing.paths
    dockerfile = project.dockerfile_name
    with contextlib.suppress(OSError):
        status = os.stat(f"{project.root}/{project.shown_dockerfile}")
        changed_ns = max(changed_ns, status.st_ctime_ns)
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
        signature = f"{dockerfile} {status.st_mode} {status.st_size} {times} {status.st_ino}"
    paths = tuple(path for path in paths if path != dockerfile)
    return context.Listing(paths, f"{_VALUES} {signature} {listing.signature}", changed_ns)


def is_file(part: str) -> bool:
    """Return whether a part is a file, or all files of the context."""
    return part in DOCKERFILES or is_whole(part) or part.startswith(CONTEXT)


def shown_files(project: Project, parts: Iterable[str]) -> dict[str, str]:
    """Return the file of each part, relative to the checkout; a context in one part is a directory."""
    files = {}
    for part in parts:
        if part in DOCKERFILES:
            files[part] = project.shown_dockerfile
        elif is_whole(part) and project.recipe is not None:
            name = part.removeprefix(WHOLE_CONTEXT).removeprefix("s/")
            if name in project.recipe.contexts:
                files[part] = project.recipe.contexts[name].directory or "."
        elif part.startswith(CONTEXT):
            files[part] = project.shown_input(part.removeprefix(CONTEXT))
    return files


def part_at(project: Project, file: str) -> str:
    """Return the part of a file, or of a context in one part; `file` is relative to the checkout."""
    if file == project.shown_dockerfile:
        return project.dockerfile_name
    if project.recipe is not None:
        directory = "" if file == "." else file
        contexts = project.recipe.contexts.items()
        return next((whole(name) for name, at in contexts if at.directory == directory), "")
    return CONTEXT + file.removeprefix(f"{project.path}/")


def file_value(path: str, status: os.stat_result, digests: Digests) -> str:
    """Return the input value of a file: its mode as git counts it and the digest of its content.

    The value of a symlink is the digest of its target. Raise OSError.
    """
    if stat.S_ISLNK(status.st_mode):
        # As bytes: a target need not be UTF-8.
        return f"link {bytes_digest(os.readlink(os.fsencode(path)))}"
    is_directory = stat.S_ISDIR(status.st_mode)
    content = file_mode.DIRECTORY if is_directory else digests.content(path, status)
    return f"{file_mode.counted(status.st_mode)} {content}"


def recorded(values: Mapping[str, str], podman: str = "") -> dict[str, str]:
    """Return recorded inputs in today's form; `podman` is the version that built from them.

    Records of earlier versions hold all permission bits.
    """
    # Most inputs are in that form, and one image may have hundreds of thousands.
    earlier = {
        part: file_mode.normalised(value)
        for part, value in values.items()
        if not file_mode.is_normalised(value) and is_file(part)
    }
    return {**_seen_by(podman), **values, **earlier}


@functools.cache
def _seen_by(podman: str) -> Mapping[str, str]:
    since = _SEEN_SINCE.items()
    return {CACHE + kind: _SEEN for kind, first in since if podman_versions.at_least(podman, first)}
