"""Build secrets: checked before podman starts, passed to it by name, and masked in its output."""

import os
import stat
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import ProjectError
from rc_tasks.model.config.project_toml import Secret
from rc_tasks.model.graph import context
from rc_tasks.model.graph.graph import ImageNode

# Shorter words are not masked: they occur in too many unrelated lines.
_SHORTEST = 8
# Only this much of a file is masked in the output: keys and tokens are small.
_MOST_BYTES = 1 << 20
_MASKED = b"***"


class Secrets(Struct, frozen=True):
    """The secrets of an image: `declared` in its project.toml, `files` by ID; `values` are masked."""

    declared: tuple[Secret, ...]
    files: dict[str, Path]
    values: tuple[bytes, ...]

    @property
    def shown(self) -> dict[bytes, bytes]:
        """The replacement of each value in the output."""
        return dict.fromkeys(self.values, _MASKED)

    def sources(self, scratch: Path) -> dict[str, str]:
        """Return the source of each secret for podman, by ID: a variable or a path, never the value."""
        sources = {}
        for number, secret in enumerate(self.declared):
            if secret.variable:
                sources[secret.id] = f"env={secret.variable}"
                continue
            # The link hides a comma in the path, which podman would read as its end.
            link = scratch / f"secret.{number}"
            link.symlink_to(self.files[secret.id])
            sources[secret.id] = f"src={link}"
        return sources


def find(node: ImageNode) -> Secrets:
    """Return the secrets that an image's project.toml names.

    Raise ProjectError for a variable that is not set, a file that cannot be read, and a file that COPY
    could take into the image.
    """
    files: dict[str, Path] = {}
    values: list[bytes] = []
    for secret in node.options.secrets:
        if secret.variable:
            values.append(os.fsencode(_variable(node, secret)))
        else:
            files[secret.id] = path = _file(node, secret)
            values.append(_content(node, secret, path))
    lines = (line.strip() for value in values for line in (value, *value.splitlines()))
    return Secrets(
        node.options.secrets, files, tuple({line for line in lines if len(line) >= _SHORTEST})
    )


def _variable(node: ImageNode, secret: Secret) -> str:
    value = os.environ.get(secret.variable, "")
    if not value:
        raise ProjectError(
            f"the secret {secret.id} is to come from {secret.variable}, which is not set here",
            where=node.project.shown_options,
            hint=f"set it where you call doit: read -rs {secret.variable}; export {secret.variable}",
        )
    return value


def _file(node: ImageNode, secret: Secret) -> Path:
    """Return the file without symlinks; `~` is expanded, other paths are relative to the project."""
    project = node.project
    path = Path(os.path.realpath(project.source / os.path.expanduser(secret.file)))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ProjectError(
                f"the secret {secret.id} is to come from {secret.file}, which is not a file",
                where=project.shown_options,
                hint="name a file there",
            )
    except OSError as error:
        raise _unreadable(node, secret, error) from None
    require_outside(node, path, f"the secret {secret.id}")
    return path


def require_outside(node: ImageNode, path: Path, what: str) -> None:
    """Raise ProjectError when COPY could take a file into the image; its path has no symlinks."""
    project = node.project
    for top, paths in context.all_of_project(project):
        if path.is_relative_to(top) and str(path.relative_to(top)) in paths:
            raise ProjectError(
                f"{what} lies in the build context: COPY could take it into the image",
                where=os.path.relpath(path, project.root),
                hint="move it out of the project, to ~/FILE for example, or name it in .containerignore",
            )


def _content(node: ImageNode, secret: Secret, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise _unreadable(node, secret, error) from None


def _unreadable(node: ImageNode, secret: Secret, error: OSError) -> ProjectError:
    return ProjectError(
        f"the secret {secret.id} is to come from {secret.file}, which cannot be read: {error.strerror}",
        where=node.project.shown_options,
        hint="write the file, readable for you alone (chmod 600); a relative path begins at the project",
    )
