"""What needs no second look: files that are as they were recorded, and settings of images.

Files are remembered by what lstat said of all of them.
"""

import contextlib
import json
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.model.graph.context import Listing
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.digests import has_settled
from rc_tasks.state.records.records import Version
from rc_tasks.util.safe_read import read_bytes


class Unchanged:
    """While neither an image's record nor its files change, they need not be compared one by one.

    Comparing 240,000 files takes three times as long as listing them.
    """

    def __init__(self, file: Path) -> None:
        """Remember it in `file`; losing that costs only time."""
        self._file = file
        self._known: dict[str, object] | None = None
        self._changed = False

    def holds(self, name: str, files: Listing, version: Version | None) -> bool:
        """Whether files that were listed so are known to be as this version of the record says."""
        return version is not None and self._load().get(name) == [files.signature, *version]

    def remember(self, name: str, files: Listing, version: Version | None) -> None:
        """These files were compared with this version of the record, and are as it says."""
        if version is not None and has_settled(files.changed_ns):
            self._load()[name] = [files.signature, *version]
            self._changed = True

    def written_right(self, image_id: str) -> bool:
        """Whether an image is known to have no setting that earlier versions wrote wrongly."""
        return self._load().get(image_id) is True

    def remember_written_right(self, image_id: str) -> None:
        """No setting of this image was written wrongly, and none ever will be: the ID is a digest."""
        self._load()[image_id] = self._changed = True

    def save(self) -> None:
        """Write down what was learnt; not being able to (a read-only checkout) is no error."""
        if self._changed:
            with contextlib.suppress(OSError, RcError):
                write_atomically(self._file, json.dumps(self._known))
            self._changed = False

    def _load(self) -> dict[str, object]:
        if self._known is None:
            try:
                self._known = dict(json.loads(read_bytes(self._file)))
            except (OSError, ValueError, TypeError, RecursionError):
                self._known = {}
        return self._known
