"""The package database of rpm in its SQLite form (rpm 4.16 and newer), read without rpm.

The older forms, Berkeley DB and NDB, can only be read by rpm itself.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

FILE = "rpmdb.sqlite"
# The file names of Berkeley DB and of NDB.
OLDER_FILES = frozenset({"Packages", "Packages.db"})

_MOST_BYTES = 64 << 20
_INSTRUCTIONS = 100_000


def headers(path: Path, limit_s: float) -> Iterator[bytes]:
    """Yield the headers of all packages. Raise ValueError when they cannot be read within `limit_s`.

    The file may be hostile: write nothing, and evaluate no view or function in it.
    """
    deadline_s = time.monotonic() + limit_s
    # With `immutable`, SQLite looks for no lock and no journal beside the file.
    uri = f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True)
    except sqlite3.Error as error:
        raise ValueError(str(error)) from None
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        connection.set_progress_handler(lambda: time.monotonic() > deadline_s, _INSTRUCTIONS)
        connection.execute("PRAGMA trusted_schema = OFF")
        # A view named Packages could be endless; a virtual table has no root page.
        kind = connection.execute("SELECT type, rootpage FROM sqlite_master WHERE name = 'Packages'")
        table = kind.fetchone()
        if table is None or table[0] != "table" or not table[1]:
            raise ValueError("it has no table Packages")
        for (blob,) in connection.execute("SELECT CAST(blob AS BLOB) FROM Packages"):
            yield blob or b""
    except sqlite3.Error as error:
        raise ValueError(str(error)) from None
    finally:
        connection.close()
