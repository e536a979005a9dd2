"""References to the images of a store: bases from registries, and podman's cache by project.

store/references/ARCHITECTURE/REFERENCE.json    a base: its image ID, and what the registry called it
store/cache/NAME.json                           the intermediate images of the last builds, and
                                                where a build failed since
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import put_in_place, write_atomically
from rc_tasks.util.json_decode import encode, parse

# A file name has 255 bytes at most, and `write_atomically` adds some for its temporary one.
_LONGEST = 200


class Pulled(Struct, frozen=True):
    """A base as it was first pulled: on which node, and when (UTC, ISO 8601).

    `digest` is that of the manifest in the registry, `sha256:…`; podman shows another one for an image
    loaded from the store.
    """

    reference: str
    digest: str
    image_id: str
    pulled_at: str
    node: str


class Cached(Struct, frozen=True):
    """An intermediate image. `key` is from `cache.keys`, for the instruction that made it, or empty."""

    image_id: str
    key: str


class FailedInstruction(Struct, frozen=True):
    """The instruction at which a build failed: the one in `line` of `dockerfile`, a whole text.

    It ran in the image `image_id`; an empty one means that there was none, as at the begin of a stage
    `FROM scratch`. `trigger` is the instruction if it is an ONBUILD of the base; then `line` is that of
    FROM. `podman` is the version that built.
    """

    line: int
    dockerfile: str
    image_id: str
    build_args: Mapping[str, str]
    podman: str
    trigger: str = ""


class _Cache(Struct, frozen=True):
    """The images of the last successful build, and of failed ones since."""

    built: tuple[Cached, ...] = ()
    failed: tuple[Cached, ...] = ()
    instruction: FailedInstruction | None = None


class Catalogue(Struct, frozen=True):
    """The references of a store, by its directory."""

    directory: Path

    def base(self, reference: str, architecture: str) -> Pulled | None:
        """Return the base for a reference, or None when no node has pulled it yet."""
        pulled = parse(Pulled, reading.content(self.base_file(reference, architecture)))
        return pulled if pulled is not None and pulled.reference == reference else None

    def put_base(self, pulled: Pulled, architecture: str) -> None:
        """Record the base for a reference."""
        path = self.base_file(pulled.reference, architecture)
        write_atomically(path, encode(pulled))

    def base_lock(self, reference: str, architecture: str) -> Path:
        """Return the lock file for pulling a base."""
        path = self.base_file(reference, architecture)
        return path.with_name(f"{path.name.removesuffix('.json')}.lock")

    def bases(self) -> Iterator[Pulled]:
        """Yield every base that was pulled."""
        for _, pulled in self.base_files():
            yield pulled

    def base_files(self) -> Iterator[tuple[Path, Pulled]]:
        """Yield each base that was pulled, with its file."""
        references = self.directory / "references"
        for architecture in reading.names(references):
            for name in reading.names(references / architecture):
                path = references / architecture / name
                if name.endswith(".json") and (pulled := parse(Pulled, reading.content(path))):
                    yield path, pulled

    def cache(self, name: str) -> tuple[Cached, ...]:
        """Return the intermediate images of the last successful build, and of failed ones since."""
        cache = self._cache(name)
        return (*cache.built, *cache.failed)

    def put_cache(self, name: str, images: tuple[Cached, ...], *, failed: bool = False) -> None:
        """Record the images of a build; a failed build keeps those of the last successful one."""
        before = self._cache(name) if failed else _Cache(images)
        known = set(before.built)
        new = tuple(image for image in images if image not in known)
        write_atomically(self._cache_file(name), encode(replace(before, failed=new)))

    def failed_instruction(self, name: str) -> FailedInstruction | None:
        """Return where builds have failed since the last successful one; None if nowhere."""
        return self._cache(name).instruction

    def put_failed_instruction(self, name: str, instruction: FailedInstruction) -> None:
        """Record where a build failed, until the next successful one."""
        cache = replace(self._cache(name), instruction=instruction)
        write_atomically(self._cache_file(name), encode(cache))

    def caches(self) -> Iterator[tuple[str, tuple[Cached, ...]]]:
        """Yield every project that has a cache, with its images and that of its failed instruction."""
        for file in reading.names(self.directory / "cache"):
            if file.endswith(".json"):
                name = file.removesuffix(".json")
                images, instruction = self.cache(name), self.failed_instruction(name)
                start = instruction.image_id if instruction is not None else ""
                if start and not any(image.image_id == start for image in images):
                    # The base of a stage whose first instruction failed.
                    images = (*images, Cached(start, ""))
                yield name, images

    def rename_cache(self, old: str, new: str) -> None:
        """Give the intermediate images of a project to its new name."""
        if os.path.lexists(self._cache_file(old)):
            put_in_place(self._cache_file(old), self._cache_file(new))

    def base_file(self, reference: str, architecture: str) -> Path:
        """Return the file of the base for a reference."""
        name = quote(reference, safe=":@+")
        if len(name) > _LONGEST:
            name = hashlib.sha256(reference.encode()).hexdigest()
        return self.directory / "references" / architecture / f"{name}.json"

    def _cache(self, name: str) -> _Cache:
        # A damaged file costs only time, but an unreadable one must be an error: `doit gc` would remove
        # the images in it.
        return parse(_Cache, reading.content(self._cache_file(name))) or _Cache()

    def _cache_file(self, name: str) -> Path:
        return self.directory / "cache" / f"{name}.json"
