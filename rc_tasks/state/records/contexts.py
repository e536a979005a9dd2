"""The files of contexts that several images share, each listing once, by its digest.

contexts/DIGEST.json   a JSON object: the input value of each file by its path

The record of an image names the digest alone: sixty images on a context of 20,000 files would otherwise
write 200 MB of records.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from msgspec import DecodeError, Struct

from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.digests import bytes_digest
from rc_tasks.util.json_decode import load


class ContextValues(Struct, frozen=True):
    """The input values of all files of a context, by path, and the digest by which they are kept."""

    values: Mapping[str, str]
    digest: str


def context_values(values: Mapping[str, str]) -> ContextValues:
    """Return the listing with these values."""
    return ContextValues(values, bytes_digest(_text(values).encode()))


class ContextRecords:
    """The listings that records of a checkout name."""

    def __init__(self, directory: Path) -> None:
        """Keep them in `directory`; without one of them, only the names of changed files are lost."""
        self.directory = directory

    def put(self, listing: ContextValues) -> None:
        """Write the listing of a context, once. Raise RcError when it cannot be written."""
        path = self._path(listing.digest)
        if not path.exists():
            write_atomically(path, _text(listing.values))

    def get(self, digest: str) -> Mapping[str, str] | None:
        """Return the listing with this digest, or None when it is missing or damaged."""
        text = reading.content(self._path(digest))
        if text is None or bytes_digest(text) != digest:
            return None
        try:
            return {path: str(value) for path, value in load(text).items()}
        except DecodeError:
            return None

    def _path(self, digest: str) -> Path:
        return self.directory / f"{digest}.json"


def _text(values: Mapping[str, str]) -> str:
    return json.dumps(values, sort_keys=True, indent=0)
