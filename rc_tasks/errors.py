"""Errors that a user can cause or fix: what happened, where, and what to do next.

Any other exception is a bug and keeps its traceback.
"""

import sys
from collections.abc import Callable
from typing import Final, Self


class RcError(Exception):
    """An error in three parts; it never changes, but `with_hint` and its like return another one.

    `what` is one sentence without a full stop. `where` is a `path:line`, a path, or a host, and
    comes first when given. `quote` holds lines of a tool or a file, shown as they are. `hint` says
    what to do next; a hint that takes long to find is a function, which is called when it is shown.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        quote: tuple[str, ...] = (),
        hint: str | Callable[[], str] | None = None,
    ) -> None:
        super().__init__(what)
        self.what: Final = what
        self.where: Final = where
        self.quote: Final = quote
        self._hint = hint

    @property
    def hint(self) -> str | None:
        """What to do next."""
        if callable(self._hint):
            self._hint = self._hint()
        return self._hint

    def with_hint(self, hint: str) -> Self:
        """Return the same failure with another hint."""
        return self._with(_hint=hint)

    def with_where(self, where: object) -> Self:
        """Return the same failure at another place."""
        return self._with(where=where)

    def with_quote(self, quote: tuple[str, ...]) -> Self:
        """Return the same failure with other lines of a tool."""
        return self._with(quote=quote)

    def _with(self, **changes: object) -> Self:
        # Subclasses have arguments of their own, so __init__ cannot be called again.
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__ | changes)
        return other

    @property
    def headline(self) -> str:
        """Where and what happened, without the hint."""
        return f"{self.where}: {self.what}" if self.where is not None else self.what

    def __str__(self) -> str:
        lines = [self.headline]
        lines += [f"  | {line}" for line in self.quote]
        if self.hint:
            first, *rest = self.hint.splitlines()
            lines += [f"  next: {first}", *(f"        {line}" for line in rest)]
        return "\n".join(lines)


class SettingsError(RcError):
    """A settings file, a project.toml or an RC_ variable must be edited."""


class DockerfileError(RcError):
    """A Dockerfile must be edited; `where` is `path:line`."""


class ProjectError(RcError):
    """A project directory, its name or its symlink must be fixed."""


class ImportedFileError(RcError):
    """A bake or compose file must be edited; `where` is `path:line`."""


class PinError(RcError):
    """bases.lock must be edited; `where` is `path:line`."""


class GraphError(RcError):
    """The images depend on one another in a way that cannot be built."""


class EdfError(RcError):
    """An env.toml or its template must be edited."""


class ToolNotFoundError(RcError):
    """An outside program is missing on this host."""


class CommandError(RcError):
    """An outside program failed; `quote` holds its last lines."""


class SlurmError(RcError):
    """Slurm refused a job step or ended it; `quote` holds Slurm's own words."""


class NodeError(SlurmError):
    """The node (or the connection to it) failed, not the step; retry on another node."""


class UnreachableError(SlurmError):
    """Slurm's controller did not answer: the same request may succeed once it does."""


class DiskFullError(RcError):
    """A file cannot be written, because the disk is full or the quota is used up."""


class ArtifactError(RcError):
    """Something that was made does not pass its check, so it was not published."""


def missing_package(error: ModuleNotFoundError) -> RcError | None:
    """Return the error for a Python package that is not installed; None for a module of our own."""
    module = error.name or ""
    # `backports` is a directory that several packages share.
    name = module if module.startswith("backports.") else module.partition(".")[0]
    if name in {"", "rc_tasks"}:
        return None
    return RcError(
        f"the Python package {name} is not installed",
        where=sys.prefix,
        hint="run `./bootstrap.sh setup` where the builder is; each upgrade (`git pull`) needs it",
    )
