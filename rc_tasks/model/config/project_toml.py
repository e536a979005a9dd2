"""Schema of project.toml, the optional file with build options of a project."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import DockerfileError, SettingsError
from rc_tasks.model.config import sources
from rc_tasks.model.config.matrix import Matrix, filled, parse_matrix, placeholder_free
from rc_tasks.model.config.settings import EdfSettings, Slurm
from rc_tasks.model.machine import parse_machine
from rc_tasks.model.reference import ImageReference
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.safe_read import read_text
from rc_tasks.util.toml_schema import Key, Overrides, wrong
from rc_tasks.util.toml_text import KeyPath

# Before the name of an image of this checkout, in `contexts`.
IMAGE = "image:"
# A stage's name, or an image reference that the context stands for.
_CONTEXT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@-]*")
_ARG_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A secret ID is a file name in /run/secrets of the RUN.
_SECRET_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _build_args(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise wrong("a table of build arguments", raw)
    build_args = {}
    for name, value in raw.items():
        if not _ARG_NAME.fullmatch(name):
            raise ValueError(f"{toml_text.dump(name)} cannot be the name of a build argument")
        try:
            build_args[name] = (
                toml_text.dump(value) if isinstance(value, int) else toml_schema.text(value)
            )
        except ValueError as error:
            # Floats are refused, as 1.10 would reach the build as 1.1.
            raise ValueError(f"{name}: {error}") from None
    return build_args


def _target(raw: object) -> str:
    if not toml_schema.text(raw):
        raise wrong("the name of a build stage", raw)
    return str(raw)


def _path(raw: object) -> str:
    path = toml_schema.text(raw)
    if not path or path.startswith(("/", "~")) or not path.isprintable():
        raise wrong("a path that begins at the directory of this file", raw)
    return path


def _contexts(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise wrong('a table such as { src = "../../src", tools = "image:tools" }', raw)
    contexts = {}
    for name, value in raw.items():
        if not _CONTEXT_NAME.fullmatch(placeholder_free(name)):
            raise ValueError(f"{toml_text.dump(name)} cannot be the name of a context")
        try:
            contexts[name] = _context(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return contexts


def _context(raw: object) -> str:
    text = toml_schema.text(raw)
    if is_directory(text):
        return _path(text)
    reference = text.removeprefix(IMAGE)
    if text.startswith("/") or "://" in text or not reference:
        raise wrong('a directory ("../../src"), "image:NAME" of this checkout, or a reference', raw)
    try:
        ImageReference.parse(placeholder_free(reference))
    except DockerfileError as error:
        raise ValueError(error.what) from None
    return text


def is_directory(context: str) -> bool:
    """Return whether a value of `contexts` is a directory."""
    return context in (".", "..") or context.startswith(("./", "../"))


def _arch(raw: object) -> tuple[str, ...]:
    machines = toml_schema.each_of(lambda name: parse_machine(toml_schema.text(name)))(raw)
    if not machines or len(set(machines)) < len(machines):
        raise wrong('a list such as ["aarch64", "x86_64"]', raw)
    return machines


class Secret(Struct, frozen=True):
    """A build secret: its ID in the Dockerfile, and the variable or else the file that holds it."""

    id: str
    variable: str = ""
    file: str = ""


def _secrets(raw: object) -> tuple[Secret, ...]:
    if not isinstance(raw, list):
        # The text may be the secret itself, so the error does not show it.
        raise wrong('a list such as ["id=ID,env=VARIABLE"]', "***")
    secrets = tuple(map(_secret, raw))
    for number, secret in enumerate(secrets):
        if any(secret.id == before.id for before in secrets[:number]):
            raise ValueError(f"{toml_text.dump(secret.id)} is given twice")
    return secrets


def _secret(raw: object) -> Secret:
    """Parse id=ID,src=PATH or id=ID,env=VARIABLE (podman-build(1), --secret)."""
    words = [part.partition("=")[::2] for part in raw.split(",")] if isinstance(raw, str) else []
    pairs = dict(words)
    kind, name = pairs.pop("type", ""), pairs.pop("id", "")
    key, value = pairs.popitem() if len(pairs) == 1 else ("", "")
    in_variable = key == "env" or (key in {"src", "source"} and kind == "env")
    in_file = key in {"src", "source"} and kind in {"", "file"}
    known = _SECRET_ID.fullmatch(name) and kind in {"", "file", "env"} and (in_variable or in_file)
    if not known or not value or len(dict(words)) != len(words) or toml_schema.NOT_TEXT.search(value):
        # The text may be the secret itself, so the error does not show it.
        raise ValueError(
            "expected id=ID,src=PATH or id=ID,env=VARIABLE; "
            "the secret itself must not stand in this file"
        )
    return Secret(name, variable=value) if in_variable else Secret(name, file=value)


class SshAccess(Struct, frozen=True):
    """The agent that `RUN --mount=type=ssh,id=ID` gets: one with the keys in `paths`, or of a socket.

    Without `paths`, it is the agent of SSH_AUTH_SOCK.
    """

    id: str
    paths: tuple[str, ...] = ()


def _ssh(raw: object) -> tuple[SshAccess, ...]:
    """Parse a list of ID or ID=PATH[,PATH…] (podman-build(1), --ssh)."""
    if not isinstance(raw, list):
        raise wrong('a list such as ["default"]', "***")
    access: list[SshAccess] = []
    for text in raw:
        name, is_given, paths = text.partition("=") if isinstance(text, str) else ("", "", "")
        listed = tuple(paths.split(",")) if is_given else ()
        if not _SECRET_ID.fullmatch(name) or not all(listed) or not paths.isprintable():
            # The text may be the key itself, so the error does not show it.
            raise ValueError(
                "expected default, ID or ID=PATH, with the path of a private key or of an agent's "
                "socket; the key itself must not stand in this file"
            )
        if any(name == before.id for before in access):
            raise ValueError(f"{toml_text.dump(name)} is given twice")
        access.append(SshAccess(name, listed))
    return tuple(access)


def _smoke(raw: object) -> tuple[tuple[str, ...], ...]:
    if not isinstance(raw, list) or not all(isinstance(argv, list) and argv for argv in raw):
        raise wrong('a list of commands, each a list of words: [["python3", "-c", "import torch"]]', raw)
    commands = tuple(toml_schema.each_of(toml_schema.text)(argv) for argv in raw)
    for program, *_ in commands:
        if not program or program.startswith("-"):
            # A launcher would take it as an option of its own.
            raise ValueError(f"{toml_text.dump(program)} cannot be the name of a program")
    return commands


class ProjectOptions(Struct, frozen=True):
    """A parsed project.toml; `apply` of `slurm` and `edf` overrides the settings.

    `smoke` is None when the key is missing; an empty one turns off inherited tests.
    """

    build_args: Annotated[Mapping[str, str], Key("build arguments", _build_args)] = {}
    dockerfile: Annotated[str | None, Key("the Dockerfile; else the one of this directory", _path)] = (
        None
    )
    context: Annotated[
        str | None, Key("directory that COPY and ADD take files from; else this directory", _path)
    ] = None
    ignorefile: Annotated[
        str | None, Key("patterns of what the context leaves out; else as podman looks for it", _path)
    ] = None
    contexts: Annotated[
        Mapping[str, str],
        Key("named contexts: directories, images of this checkout, or references", _contexts),
    ] = {}
    target: Annotated[str | None, Key("build stage to stop at; else the last one", _target)] = None
    secrets: Annotated[tuple[Secret, ...], Key("build secrets, and where they are", _secrets)] = ()
    arch: Annotated[
        tuple[str, ...], Key("machines that the image is built for, as `uname -m` names them", _arch)
    ] = ()
    ssh: Annotated[tuple[SshAccess, ...], Key("SSH agents and keys for RUN --mount=type=ssh", _ssh)] = ()
    smoke: Annotated[
        tuple[tuple[str, ...], ...] | None,
        Key("commands that have to succeed in the image before it is published", _smoke),
    ] = None
    smoke_timeout_s: Annotated[int, Key("how long each of them may take", toml_schema.whole(1))] = 300
    matrix: Annotated[
        Matrix | None, Key("axes of values, with an image for each combination", parse_matrix)
    ] = None
    frozen: Annotated[bool, Key("the image is not built again, whatever changes")] = False
    slurm: Overrides[Slurm] = Overrides()
    edf: Overrides[EdfSettings] = Overrides()

    @property
    def directories(self) -> dict[str, str]:
        """The named contexts that are directories, as written."""
        return {name: value for name, value in self.contexts.items() if is_directory(value)}

    @property
    def images(self) -> dict[str, str]:
        """The image reference or project that each other named context stands for."""
        others = self.contexts.keys() - self.directories.keys()
        return {name: self.contexts[name].removeprefix(IMAGE) for name in others}

    @property
    def projects(self) -> dict[str, str]:
        """The image of this checkout that each named context stands for, among those that do."""
        images = ((name, value) for name, value in self.contexts.items() if value.startswith(IMAGE))
        return {name: value.removeprefix(IMAGE) for name, value in images}

    def of_version(self, version: str) -> "ProjectOptions":
        """Return the options of one image of the matrix: the values of its axes in place of `{axis}`."""
        values = self.matrix.versions[version] if self.matrix is not None else {}

        def text(template: str | None) -> str | None:
            return None if template is None else filled(template, values)

        return replace(
            self,
            build_args={name: filled(arg, values) for name, arg in self.build_args.items()},
            contexts={
                filled(name, values): filled(value, values) for name, value in self.contexts.items()
            },
            dockerfile=text(self.dockerfile),
            context=text(self.context),
            ignorefile=text(self.ignorefile),
            target=text(self.target),
        )


def load(path: Path, where: str) -> ProjectOptions:
    """Return the options in a project.toml, or the defaults when the file is missing.

    Raise one SettingsError for all problems; `where` is the path as errors show it.
    """
    source = sources.from_file(ProjectOptions, path, where)
    if source.problems:
        raise toml_schema.failure(SettingsError, source.problems, where)
    return toml_schema.build(ProjectOptions, source.values)


def place(path: Path, where: str, key: KeyPath) -> str:
    """Return the file and line of a key in a project.toml; `where` is the path as errors show it."""
    try:
        line = toml_text.line_of(read_text(path), key)
    except (OSError, UnicodeDecodeError):
        line = None
    return f"{where}:{line}" if line else where
