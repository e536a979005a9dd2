"""Cache of comparisons: images whose files equal their record, and images without wrong settings.

The key of an image's files is a signature of the lstat results of all of them.
"""

import contextlib
import json
from pathlib import Path

from msgspec import DecodeError

from rc_tasks.errors import RcError
from rc_tasks.model.graph.context import Listing
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.digests import has_settled
from rc_tasks.state.records.records import Version
from rc_tasks.util.json_decode import load
from rc_tasks.util.safe_read import read_bytes


class ComparisonCache:
    """Saves the comparison of an image's files while neither they nor the record change.

    Comparing 240,000 files takes three times as long as listing them.
    """

    def __init__(self, file: Path) -> None:
        """Keep the cache in `file`; losing it costs only time."""
        self._file = file
        self._known: dict[str, object] | None = None
        self._changed = False

    def is_unchanged(self, name: str, files: Listing, version: Version | None) -> bool:
        """Return whether files with this listing are known to equal this version of the record."""
        return version is not None and self._load().get(name) == [files.signature, *version]

    def remember(self, name: str, files: Listing, version: Version | None) -> None:
        """Note that these files equal this version of the record."""
        if version is not None and has_settled(files.changed_ns):
            self._load()[name] = [files.signature, *version]
            self._changed = True

    def settings_are_right(self, image_id: str) -> bool:
        """Return whether an image is known to have no setting that earlier versions wrote wrongly."""
        return self._load().get(image_id) is True

    def remember_settings_are_right(self, image_id: str) -> None:
        """Note that no setting of this image was written wrongly; the ID is a digest, so it stays so."""
        self._load()[image_id] = self._changed = True

    def save(self) -> None:
        """Save the cache; failing to (in a read-only checkout) is no error."""
        if self._changed:
            with contextlib.suppress(OSError, RcError):
                write_atomically(self._file, json.dumps(self._known))
            self._changed = False

    def _load(self) -> dict[str, object]:
        if self._known is None:
            try:
                self._known = load(read_bytes(self._file))
            except (OSError, DecodeError):
                self._known = {}
        return self._known
