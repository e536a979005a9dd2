"""Journal of `doit mv`: `.rc/moves/OLD.json` says what a move changes, until it is finished."""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import RcError
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.util.json_decode import check_times, encode, parse

_SUFFIX = ".json"


class Move(Struct, frozen=True):
    """A project that gets another name, and all that names it.

    `path` and `new_path` are the directories, relative to the checkout. `aliases` maps each alias to the
    new content of its symlink. `children` maps each image that is built on this one to the names in its
    Dockerfile, as they are written before and after. `keep_alias`: the old name becomes an alias.
    """

    old: str
    new: str
    path: str
    new_path: str
    started_at: str
    aliases: dict[str, str]
    children: dict[str, dict[str, str]]
    keep_alias: bool = False

    def __post_init__(self) -> None:
        check_times(self.started_at)

    @property
    def names(self) -> tuple[str, ...]:
        """The images whose files change."""
        return (self.old, self.new, *self.children)


class Journal(Struct, frozen=True):
    """The unfinished moves of a checkout, in `.rc/moves`."""

    directory: Path

    def get(self, old: str) -> Move | None:
        """Return the unfinished move of an image, or None."""
        return parse(Move, reading.content(self._path(old)))

    def put(self, move: Move) -> None:
        """Note a move before its first change. Raise RcError."""
        write_atomically(self._path(move.old), encode(move))

    def remove(self, move: Move) -> None:
        """Forget a move that is finished."""
        self._path(move.old).unlink(missing_ok=True)

    def unfinished(self) -> Iterator[Move]:
        """Yield each move that was interrupted, or that is running."""
        for name in reading.names(self.directory):
            if name.endswith(_SUFFIX) and not name.startswith("."):
                move = self.get(name.removesuffix(_SUFFIX))
                if move is not None:
                    yield move

    def interrupted(self, lock_directory: Path) -> Iterator[RcError]:
        """Yield an error for each move whose process has ended."""
        for move in self.unfinished():
            if locks.holder(lock_directory / f"{move.old}{_SUFFIX}") is None:
                yield interrupted(move)

    def require_settled(self, name: str) -> None:
        """Raise RcError when an interrupted move concerns an image, whose lock the caller holds."""
        for move in self.unfinished():
            if name in move.names:
                raise interrupted(move)

    def _path(self, old: str) -> Path:
        return self.directory / f"{old}{_SUFFIX}"


def interrupted(move: Move) -> RcError:
    """Return the error of a move whose process was killed."""
    return RcError(
        f"the move of {move.old} to {move.new} was interrupted",
        where=move.path,
        hint=f"doit mv {move.old} {move.new}   finishes it",
    )
