"""Resolve an EDF as a launcher does: find it by name, merge its bases, expand variables and paths.

The rules are those of the CSCS Container Engine ("EDF reference" and "EDF search path" in its
documentation). Where these are silent, the rules are those of its successor's parser
(sarus-suite/raster).
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct, field

from rc_tasks.errors import EdfError
from rc_tasks.model.edf.schema import Edf
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.safe_read import advice, read_bytes
from rc_tasks.util.toml_text import KeyPath

# An EDF and nine levels of bases (raster counts the EDF itself too).
MAX_LEVELS = 10
SQSH = "sqsh"
SUFFIX = ".toml"

_MOUNT = re.compile(r"((?:\$\{[^}]*\}|[^:])+)(?::((?:\$\{[^}]*\}|[^:])+)(?::(.+))?)?", re.DOTALL)
# `$${` is an escaped `${`; `$VAR` without braces is not a variable.
_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_IN_BRACES = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._:-]")

Environ = Mapping[str, str]


class EdfMount(Struct, frozen=True):
    """One mount of absolute paths; `where` is the `path:line` that sets it."""

    source: str
    destination: str
    flags: tuple[str, ...]
    where: str

    @property
    def is_squashfs(self) -> bool:
        """Whether the source is a SquashFS file whose contents are mounted."""
        return self.flags == (SQSH,)


class ResolvedEdf(Struct, frozen=True):
    """An EDF with its bases merged and its variables and paths expanded.

    `image` is an absolute path, a registry reference `[USER@][REGISTRY#]IMAGE[:TAG]`, or empty for no
    container. An empty `workdir` means the image's. `unset` names variables to remove.
    """

    path: Path
    image: str
    workdir: str
    entrypoint: bool
    writable: bool
    mounts: tuple[EdfMount, ...]
    env: Environ
    unset: tuple[str, ...]
    annotations: Mapping[str, str]
    devices: tuple[str, ...]
    places: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, *path: str) -> str:
        """Return the `path:line` of a key, else the file."""
        return self.places.get(path, str(self.path))


def search_name(name: str) -> str:
    """Return the name under which `--environment` finds an image's EDF: `~/.edf/<this>.toml`.

    The search takes a word as a path when it begins with `.` or `/` or ends in `.toml`; a colon is fine.
    So every character other than an ASCII letter, a digit and `. _ : -` becomes `_`, and `_` is added
    before a leading `.` or `-` and after a final `.toml`. Nearly all images keep their names.
    """
    legal = _NOT_IN_A_NAME.sub("_", name)
    before = "_" if legal.startswith((".", "-")) or not legal else ""
    return before + legal + ("_" if legal.endswith(SUFFIX) else "")


def search_path(environ: Environ) -> tuple[Path, ...]:
    """Return the directories of `EDF_PATH`, else `~/.edf`."""
    directories = [directory for directory in environ.get("EDF_PATH", "").split(":") if directory]
    for directory in directories:
        if not directory.startswith("/"):
            raise EdfError(
                f"{directory!r} is not an absolute path",
                where="EDF_PATH",
                hint="it is a list of directories with colons between them",
            )
    if not directories:
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            raise EdfError("there is no home directory to look for .edf in", hint="set HOME or EDF_PATH")
        directories = [f"{home}/.edf"]
    return tuple(Path(directory) for directory in directories)


def no_image(_image: str) -> Environ:
    """Return no variables, for an image that cannot be inspected."""
    return {}


def resolve(
    reference: str, *, environ: Environ, cwd: Path, image_environ: Callable[[str], Environ] = no_image
) -> ResolvedEdf:
    """Return the EDF that `--environment=reference` would start from `cwd`.

    `image_environ` returns the variables of the image, which override those of `environ` in `${VAR}`.
    Raise EdfError.
    """
    return _Resolver(environ, cwd.absolute()).resolve(reference, image_environ)


class _Value(Struct, frozen=True):
    """A value as written, and its `path:line`."""

    raw: object
    where: str


class _Merged(Struct, frozen=True):
    """A file merged with its bases; `levels` counts the files of its longest chain."""

    values: Mapping[KeyPath, _Value]
    mounts: tuple[_Value, ...]
    devices: tuple[_Value, ...]
    levels: int


class _Resolver(Struct, frozen=True):
    environ: Environ
    cwd: Path
    # The keys are real paths, so that a base of several files is read once.
    _read: dict[str, _Merged] = field(default_factory=dict)

    def resolve(self, reference: str, image_environ: Callable[[str], Environ]) -> ResolvedEdf:
        path = self._find(reference, None)
        merged = self._merged(path, ())
        values = merged.values

        def text(key: str, known: Environ) -> str:
            return self._absolute(_expand(values[key,], key, known)) if (key,) in values else ""

        image = text("image", self.environ)
        known = {**self.environ, **image_environ(image)}
        tables = {
            table: {key: _expand(value, f"{table}.{key}", known) for key, value in _below(values, table)}
            for table in ("env", "annotations")
        }
        workdir = text("workdir", known)
        if workdir and not workdir.startswith("/"):
            raise EdfError(
                f"workdir: expected an absolute path, found {toml_text.dump(workdir)}",
                where=values["workdir",].where,
                hint="begin it with /, or with ./ for the directory that the container is started in",
            )
        return ResolvedEdf(
            path=path,
            image=image,
            workdir=workdir,
            entrypoint=self._flag(values, "entrypoint", default=False),
            writable=self._flag(values, "writable", default=True),
            mounts=_last_of_each(self._mount(value, known) for value in merged.mounts),
            env={key: value for key, value in tables["env"].items() if value},
            unset=tuple(key for key, value in tables["env"].items() if not value),
            annotations=tables["annotations"],
            devices=tuple(dict.fromkeys(_expand(value, "devices", known) for value in merged.devices)),
            places={key: value.where for key, value in values.items()},
        )

    def _merged(self, path: Path, above: tuple[Path, ...]) -> _Merged:
        chain = (*above, path)
        real = os.path.realpath(path)
        if real in (os.path.realpath(file) for file in above):
            raise self._chain_error("base_environment leads back to a file of the same chain", chain)
        if real not in self._read:
            if len(chain) > MAX_LEVELS:
                raise self._chain_error(f"more than {MAX_LEVELS} levels of base_environment", chain)
            self._read[real] = self._load(path, chain)
        merged = self._read[real]
        if len(above) + merged.levels > MAX_LEVELS:
            raise self._chain_error(f"more than {MAX_LEVELS} levels of base_environment", chain)
        return merged

    def _load(self, path: Path, chain: tuple[Path, ...]) -> _Merged:
        own = self._values(path, chain)
        values: dict[KeyPath, _Value] = {}
        mounts: tuple[_Value, ...] = ()
        devices: tuple[_Value, ...] = ()
        levels = 1
        for base in _elements(own.pop(("base_environment",), None)):
            named = _expand(base, "base_environment", self.environ)
            below = self._merged(self._find(named, base.where, chain), chain)
            values |= below.values
            # A base of several files counts once, at its last place.
            mounts = _each_once(mounts + below.mounts)
            devices = _each_once(devices + below.devices)
            levels = max(levels, below.levels + 1)
        mounts += _elements(own.pop(("mounts",), None))
        devices += _elements(own.pop(("devices",), None))
        return _Merged({**values, **own}, mounts, devices, levels)

    def _values(self, path: Path, chain: tuple[Path, ...]) -> dict[KeyPath, _Value]:
        """Return the checked values of one file; elements of lists have their own lines."""
        shown_path = self._shown(path)
        try:
            if not path.is_file():
                # Reading a FIFO would wait for a writer, and reading a device might never end.
                raise EdfError("is not a file", where=shown_path, hint="name the .toml file itself")
            text = toml_text.decode(read_bytes(path), shown_path, EdfError)
        except OSError as error:
            raise EdfError(
                f"cannot be read: {error.strerror}",
                where=shown_path,
                quote=self._chain(chain),
                hint=advice(error, "correct its permissions, or ask its owner"),
            ) from None

        def place(key: KeyPath) -> str:
            line = toml_text.line_of(text, key)
            return shown_path if line is None else f"{shown_path}:{line}"

        parsed, problems = toml_schema.read(Edf, toml_text.loads(text, shown_path, EdfError), place)
        if problems:
            raise toml_schema.failure(EdfError, problems, shown_path)
        values = {key: _Value(value, place(key)) for key, value in parsed.items()}
        for key, value in values.items():
            if isinstance(value.raw, tuple):
                start = toml_text.line_of(text, key) or 1
                lines = _lines_of_elements(text, start, value.raw)
                elements = zip(value.raw, lines, strict=True)
                located = tuple(_Value(element, f"{shown_path}:{line}") for element, line in elements)
                values[key] = _Value(located, value.where)
        return values

    def _find(self, reference: str, where: str | None, chain: tuple[Path, ...] = ()) -> Path:
        """Return the file of a reference; `where` names it, or is None for the command line."""
        hint = "write NAME to search EDF_PATH (~/.edf), else a path that begins with / or ./"
        if reference.startswith(("/", "./", "../")):
            # Path.resolve would replace the name of a symlinked checkout that its users know.
            path = Path(os.path.normpath(self.cwd / reference))
            if os.path.lexists(path):
                return path
            raise self._missing(f"there is no {self._shown(path)}", where, chain, hint)
        if not reference or reference.startswith(".") or reference.endswith(SUFFIX):
            raise self._missing(f"{reference!r} names no EDF", where, chain, hint)
        directories = search_path(self.environ)
        for directory in directories:
            path = directory / f"{reference}{SUFFIX}"
            if os.path.isfile(path):
                return path
        searched = ", ".join(self._shown(directory) for directory in directories)
        near = toml_schema.nearest(
            reference, (name for directory in directories for name in _names_in(directory))
        )
        raise self._missing(
            f"there is no {reference}{SUFFIX} in {searched}",
            where,
            chain,
            f"did you mean {near}?" if near else hint,
        )

    def _missing(self, what: str, where: str | None, chain: tuple[Path, ...], hint: str) -> EdfError:
        return EdfError(what, where=where, quote=self._chain(chain), hint=hint)

    def _mount(self, value: _Value, known: Environ) -> EdfMount:
        # Values of variables may hold colons, so the mount is split before they are replaced.
        match = _MOUNT.fullmatch(str(value.raw))
        if match is None:
            raise EdfError(f"mounts: {value.raw!r} is not a mount", where=value.where)
        parts = [_expand(_Value(part, value.where), "mounts", known) for part in match.groups() if part]
        source = self._absolute(parts[0])
        destination = parts[1] if len(parts) > 1 else source
        if not source.startswith("/") or not destination.startswith("/"):
            raise EdfError(
                f"mounts: {value.raw} becomes {source}:{destination}, which are not absolute paths",
                where=value.where,
                hint="set the variable that is empty here, or write the path",
            )
        flags = tuple(flag for flag in "".join(parts[2:]).split("+") if flag)
        if SQSH in flags and flags != (SQSH,):
            raise EdfError(
                f"mounts: {SQSH} stands beside other flags in {value.raw}",
                where=value.where,
                hint=f"`:{SQSH}` mounts a SquashFS file and goes with no other flag",
            )
        return EdfMount(source, os.path.normpath(destination), flags, value.where)

    def _absolute(self, path: str) -> str:
        """Resolve a relative path against the directory of the process that starts the container."""
        relative = path.startswith(("./", "../"))
        return os.path.normpath(self.cwd / path) if relative else path

    @staticmethod
    def _flag(values: Mapping[KeyPath, _Value], key: str, *, default: bool) -> bool:
        return bool(values[key,].raw) if (key,) in values else default

    def _shown(self, path: Path) -> str:
        """Return a path as errors show it: relative to the current or to the home directory."""
        home = self.environ.get("HOME", "")
        if path.is_relative_to(self.cwd):
            return str(path.relative_to(self.cwd))
        if home.startswith("/") and path.is_relative_to(home):
            return f"~/{path.relative_to(home)}"
        return str(path)

    def _chain(self, chain: tuple[Path, ...]) -> tuple[str, ...]:
        """Return the chain of files for an error; empty when the error is in the first file."""
        lines = tuple(f"{'  ' * depth}{self._shown(path)}" for depth, path in enumerate(chain))
        return lines if len(lines) > 1 else ()

    def _chain_error(self, what: str, chain: tuple[Path, ...]) -> EdfError:
        return EdfError(
            what,
            where=self._shown(chain[0]),
            quote=self._chain(chain),
            hint="each file extends the one above it: take one base_environment out",
        )


def _expand(value: _Value, key: str, known: Environ) -> str:
    """Return a text with its variables replaced; their values are not expanded again."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return "${"
        inner = _IN_BRACES.fullmatch(match[1])
        if inner is None or not match[2]:
            raise EdfError(
                f"{key}: {match[0]} is not a variable",
                where=value.where,
                hint="write ${VAR}, ${VAR:-} if it may be undefined, or $${VAR} for the text itself",
            )
        name, default = inner.groups()
        if default is not None:
            return known.get(name) or default
        if name not in known:
            raise EdfError(
                f"{key}: the variable {name} is not defined",
                where=value.where,
                hint=f"export {name}, or write ${{{name}:-}} if it may be missing; "
                f"$${{{name}}} keeps the text",
            )
        return known[name]

    return _VARIABLE.sub(one, str(value.raw))


def _below(values: Mapping[KeyPath, _Value], table: str) -> list[tuple[str, _Value]]:
    return [(key[1], value) for key, value in values.items() if key[0] == table and len(key) == 2]


def _elements(value: _Value | None) -> tuple[_Value, ...]:
    return value.raw if value is not None and isinstance(value.raw, tuple) else ()


def _each_once(values: tuple[_Value, ...]) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(values[::-1]))[::-1]


def _last_of_each(mounts: Iterable[EdfMount]) -> tuple[EdfMount, ...]:
    """Return the last of several mounts on one directory, which would hide the others."""
    by_destination: dict[str, EdfMount] = {}
    for mount in mounts:
        by_destination.pop(mount.destination, None)
        by_destination[mount.destination] = mount
    return tuple(by_destination.values())


def _lines_of_elements(text: str, start: int, elements: tuple[str, ...]) -> list[int]:
    """Search for the line of each element of an array that begins on line `start`."""
    lines, at, numbers = text.split("\n"), start, []
    for element in elements:
        written = (toml_text.dump(element), f"'{element}'")
        candidates = (
            number
            for number in range(at, len(lines) + 1)
            if any(form in lines[number - 1] for form in written)
        )
        at = next(candidates, at)
        numbers.append(at)
    return numbers


def _names_in(directory: Path) -> list[str]:
    try:
        return [name.removesuffix(SUFFIX) for name in os.listdir(directory) if name.endswith(SUFFIX)]
    except OSError:
        return []
