"""Contents of an image: its packages, and its size by directory, found in one walk.

It follows no symlink, opens only regular files, and executes nothing of the image. Files that cannot be
read are listed.
"""

import contextlib
import itertools
import threading
from collections.abc import Hashable, Iterator

from rc_tasks.model.manifest import packages
from rc_tasks.model.manifest.manifest import Contents, Distribution, Package, PackageKind, Unread, groups
from rc_tasks.steps.publish.image_files import EntryKind, ImageFiles
from rc_tasks.tools import rpm_database

# Only this much of a METADATA is read: a licence may precede the empty line.
_METADATA_BYTES = 1 << 20
# Larger than the largest package databases of real images.
_CONDA_BYTES = 32 << 20
_BOOK_BYTES = 256 << 20
_MOST_PACKAGES = 100_000
_MOST_UNREAD = 100
_RPM_LIMIT_S = 20.0
_OS_RELEASE = ("usr/lib/os-release", "etc/os-release")
# The squashed image has nothing in /dev.
_EMPTY = "/dev"


class _FullError(Exception):
    """The image has more than `_MOST_PACKAGES` packages."""


class ContentsWalk:
    """A walk through an image: `run` it in a thread, then read `contents`."""

    def __init__(self) -> None:
        self._distribution = Distribution()
        self._packages: list[Package] = []
        self._sizes_bytes: dict[str, int] = {}
        self._files = 0
        self._unread: list[Unread] = []
        self._missed = 0
        self._linked: set[Hashable] = set()
        # Paths in the image without a trailing slash, the top-level directory of each, and whether
        # packages in it count.
        self._todo = [("", "", True)]

    def run(self, files: ImageFiles, stop: threading.Event) -> None:
        """Walk through the image; end early, with incomplete contents, when `stop` is set."""
        self._image = files
        self._distribution = self._os_release()
        while self._todo and not stop.is_set():
            try:
                self._directory(*self._todo.pop())
            except _FullError:
                self._miss("/", f"it has more than {_MOST_PACKAGES} packages; the others are left out")
                # Sizes still count, except for the rest of that directory.
                self._todo = [(path, top, False) for path, top, _ in self._todo]

    @property
    def contents(self) -> Contents:
        """The contents found so far."""
        unread = list(self._unread)
        if self._missed:
            unread.append(Unread("/", f"{self._missed} more could not be read"))
        return Contents(
            self._distribution,
            tuple(itertools.chain(*groups(self._packages).values())),
            dict(sorted(self._sizes_bytes.items())),
            self._files,
            tuple(unread),
        )

    def _directory(self, directory: str, top: str, books: bool) -> None:
        """See what lies in a directory; `books`: packages in it count."""
        try:
            entries = list(self._image.entries(directory))
        except OSError as error:
            self._miss(directory, error.strerror)
            return
        # conda keeps there what it has installed: the same files once more.
        cache = "pkgs" if any(name == "conda-meta" for name, *_ in entries) else ""
        for name, kind, size_bytes, inode in entries:
            try:
                # Most entries are files, whose paths are not needed.
                if kind is EntryKind.FILE:
                    self._count(size_bytes, inode, top or "/")
                    if books:
                        self._in_file(directory, name)
                elif kind is EntryKind.DIRECTORY:
                    path = f"{directory}/{name}"
                    if path == _EMPTY:
                        continue
                    self._todo.append((path, top or path, books and name != cache))
                    if books:
                        self._in_directory(directory, name)
                elif isinstance(kind, OSError):
                    self._miss(f"{directory}/{name}", kind.strerror)
                elif books and (directory, name) in _FIXED:
                    self._miss(
                        f"{directory}/{name}", "it is not a regular file, and no symlink is followed"
                    )
            except OSError as error:
                self._miss(f"{directory}/{name}", error.strerror)

    def _count(self, size_bytes: int, inode: Hashable, top: str) -> None:
        if inode is not None:
            if inode in self._linked:
                return
            self._linked.add(inode)
        self._files += 1
        self._sizes_bytes[top] = self._sizes_bytes.get(top, 0) + size_bytes

    def _in_directory(self, directory: str, name: str) -> None:
        path = f"{directory}/{name}"
        # pip renames a package before it removes it, and ignores such names of unfinished removals.
        if name.startswith("~"):
            return
        if name.endswith(".dist-info"):
            self._python(path, "METADATA")
        elif name.endswith(".egg-info"):
            self._python(path, "PKG-INFO")
        elif name == "EGG-INFO" and directory.endswith(".egg"):
            self._python(directory, "EGG-INFO/PKG-INFO")
        elif name == "conda-meta":
            for entry in self._listed(path):
                if entry.endswith(".json"):
                    with self._named(f"{path}/{entry}"):
                        text = self._read(f"{path}/{entry}", _CONDA_BYTES)
                        self._add(packages.conda(text, directory or "/"))
        elif path.endswith("/var/lib/dpkg/status.d"):
            place = path.removesuffix("/var/lib/dpkg/status.d") or "/"
            for entry in self._listed(path):
                if not entry.endswith(".md5sums"):
                    self._book(f"{path}/{entry}", PackageKind.DPKG, place)

    def _in_file(self, directory: str, name: str) -> None:
        if name.endswith(".egg-info"):
            self._python(f"{directory}/{name}", "")
        elif name == "status" and directory.endswith("/var/lib/dpkg"):
            place = directory.removesuffix("/var/lib/dpkg")
            self._book(f"{directory}/{name}", PackageKind.DPKG, place or "/")
        elif name == "installed" and directory.endswith("/lib/apk/db"):
            place = directory.removesuffix("/lib/apk/db").removesuffix("/usr")
            self._book(f"{directory}/{name}", PackageKind.APK, place or "/")
        elif directory.endswith(_RPM_DIRECTORIES):
            place = next(
                directory.removesuffix(suffix)
                for suffix in _RPM_DIRECTORIES
                if directory.endswith(suffix)
            )
            self._rpm(f"{directory}/{name}", name, place or "/")

    def _python(self, path: str, metadata: str) -> None:
        """Add a package by its metadata, or by the name of its directory if that cannot be read."""
        place, _, name = path.rpartition("/")
        file = f"{path}/{metadata}" if metadata else path
        try:
            package = packages.python(self._read(file, _METADATA_BYTES, cut=True), place or "/")
        except (OSError, ValueError) as error:
            named = packages.python_directory(name, place or "/")
            # Such a directory without metadata is no package, so nothing is missed.
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            self._miss(file, _why(error))
            if named is None:
                return
            package = named
        self._add(package)

    def _book(self, path: str, kind: PackageKind, place: str) -> None:
        read = {PackageKind.DPKG: packages.dpkg, PackageKind.APK: packages.apk}[kind]
        with self._named(path):
            file, size_bytes = self._image.open(path)
            with file:
                if size_bytes > _BOOK_BYTES:
                    raise ValueError(f"it is larger than {_BOOK_BYTES >> 20} MiB")
                for package in read(file, place):
                    self._add(package)

    def _rpm(self, path: str, name: str, place: str) -> None:
        if name in rpm_database.OLDER_FILES:
            self._miss(path, "rpm packages are not listed: only rpm itself reads this form of database")
        elif name == rpm_database.FILE:
            with self._named(path):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    log, size_bytes = self._image.open(f"{path}-wal")
                    log.close()
                    if size_bytes:
                        self._miss(path, "it was not closed: what was installed last may be missing")
                with self._image.local(path) as database:
                    for header in rpm_database.headers(database, _RPM_LIMIT_S):
                        package = packages.rpm(header, place)
                        if package is not None:
                            self._add(package)

    def _os_release(self) -> Distribution:
        for path in _OS_RELEASE:
            # A symlink on the way could lead to a directory of this host.
            parts = path.split("/")[:-1]
            ways = ["/".join(parts[: number + 1]) for number in range(len(parts))]
            with contextlib.suppress(OSError, ValueError):
                if not any(self._image.is_link(f"/{way}") for way in ways):
                    return packages.os_release(self._read(f"/{path}", _METADATA_BYTES))
        return Distribution()

    def _listed(self, path: str) -> list[str]:
        try:
            return self._image.names(path)
        except OSError:
            return []  # the walk will list it as unreadable

    def _read(self, path: str, most_bytes: int, *, cut: bool = False) -> bytes:
        """Read a regular file. Raise OSError, or ValueError when it is something else or larger."""
        file, _ = self._image.open(path)
        with file:
            text = file.read(most_bytes + 1)
        if len(text) > most_bytes and not cut:
            raise ValueError(f"it is larger than {most_bytes >> 20} MiB")
        return text[:most_bytes]

    @contextlib.contextmanager
    def _named(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self._miss(path, _why(error))

    def _add(self, package: Package) -> None:
        if len(self._packages) >= _MOST_PACKAGES:
            raise _FullError
        self._packages.append(package)

    def _miss(self, path: str, why: str | None) -> None:
        if len(self._unread) < _MOST_UNREAD:
            self._unread.append(Unread(path[: packages.LONGEST] or "/", why or "cannot be read"))
        else:
            self._missed += 1


def _why(error: OSError | ValueError) -> str:
    return error.strerror or "cannot be read" if isinstance(error, OSError) else str(error)


_RPM_DIRECTORIES = ("/var/lib/rpm", "/usr/lib/sysimage/rpm", "/usr/share/rpm")
# The package databases of a whole system: a symlink there hides packages.
_FIXED = frozenset(
    {
        ("/var/lib/dpkg", "status"),
        ("/lib/apk/db", "installed"),
        ("/usr/lib/apk/db", "installed"),
        *((directory, rpm_database.FILE) for directory in _RPM_DIRECTORIES),
    }
)
