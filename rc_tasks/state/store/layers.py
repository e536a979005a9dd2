"""Layers of a store as SquashFS files: found, put in place, and taken away."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from rc_tasks.state.store.layer_files import LayerFiles, layer_files
from rc_tasks.state.store.store import Store


class SquashedLayers(Struct, frozen=True):
    """The squashed layers that a checkout may use; `official` finds those of the official store."""

    store: Store
    official: Callable[[str], LayerFiles | None] = lambda _digest: None

    def find(self, digest: str) -> LayerFiles | None:
        """Return the files of a layer, given by its diff ID (`sha256:…`), or None."""
        files = layer_files(self.store.directory, digest)
        # A clone has links to the official store, which may have changed hands since.
        if not files.exist or files.directory.is_symlink():
            return self.official(digest)
        # It may belong to another member: then it keeps its age.
        with contextlib.suppress(OSError):
            os.utime(files.directory)
        return files

    def link_official(self, digest: str) -> None:
        """Let the store have a layer of the official store, by a symlink, unless it has one itself."""
        files = layer_files(self.store.directory, digest)
        official = None if files.exist else self.official(digest)
        if official is not None and official.archive_bytes():
            files.directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.symlink(official.directory, files.directory)

    def put(self, digest: str, made: Path, scratch: Path, *, replace: LayerFiles | None = None) -> Path:
        """Put a directory with the files of a layer in place; return the SquashFS file.

        Files that the layer has already stay, unless they are those to `replace`. `scratch` is a
        temporary directory of the store.
        """
        final = layer_files(self.store.directory, digest)
        final.directory.parent.mkdir(parents=True, exist_ok=True)
        for path in made.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if replace is not None and (replace == final or final.directory.is_symlink()):
            self._take_away(final, scratch)
        try:
            os.rename(made, final.directory)
        except OSError:
            # Another node may have put its files there meanwhile, and copies from them now.
            if not final.exist:
                self._take_away(final, scratch)
                os.rename(made, final.directory)
        return final.file

    def _take_away(self, files: LayerFiles, scratch: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(files.directory, scratch / f"{files.directory.name}.old")
