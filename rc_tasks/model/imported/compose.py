"""Compose files: their services that have a `build`.

The meaning of each key is that of https://docs.docker.com/reference/compose-file/build/. PyYAML gives
nodes with lines, and each scalar as it is written, so that an argument `1.10` stays one.
"""

import re
from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING

from msgspec import Struct

from rc_tasks.errors import ImportedFileError
from rc_tasks.model.config.project_toml import Secret
from rc_tasks.model.imported.hcl_syntax import quoted
from rc_tasks.model.imported.naming import named
from rc_tasks.model.imported.project import (
    ARG_NAME,
    HINTS,
    PLATFORM_HINT,
    REMOTE_HINT,
    UNKNOWN_HINT,
    ContextKind,
    ImageBuild,
    NamedContext,
    NotTaken,
    Recipes,
    architectures,
    is_remote,
    named_context,
    require_correct,
)
from rc_tasks.util.text import listed

if TYPE_CHECKING:
    import yaml

    Table = dict[str, yaml.Node]

# The parser is written in Python, and a long text takes it seconds.
MOST_BYTES = 1 << 20
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_OWN_TAG = "!"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(
    rf"\$(?:(?P<escaped>\$)|(?P<named>{_NAME})|\{{(?P<braced>{_NAME})|(?P<wrong>\{{?))"
)
_OPERATOR = re.compile(r":?[-?+]")
_NOT_NEEDED = frozenset({"cache_from", "cache_to", "no_cache", "pull", "provenance", "sbom"})
_TAKEN = frozenset(
    {
        "additional_contexts",
        "args",
        "context",
        "dockerfile",
        "dockerfile_inline",
        "platforms",
        "secrets",
        "ssh",
        "tags",
        "target",
    }
)


class _ServiceError(ImportedFileError):
    """A service that project.toml cannot say."""


class _Secret(Struct, frozen=True):
    file: str
    variable: str


def read(text: str, where: str, environ: Mapping[str, str], groups: Set[str] = frozenset()) -> Recipes:
    """Return the recipes of a compose file. Raise ImportedFileError for a mistake in it.

    `groups` are names of the checkout that have versions, as in `naming.named`.
    """
    import yaml

    if len(text) > MOST_BYTES:
        raise ImportedFileError(f"has {len(text)} characters, and {MOST_BYTES} are allowed", where=where)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return _Compose(where, environ).recipes(node, groups)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = min(mark.line, text.count("\n")) if mark else 0
        raise ImportedFileError(
            f"not valid YAML: {error.problem or error.context}",
            where=f"{where}:{line + 1}",
            quote=quoted(text, line + 1),
            hint="correct this line, or the one above it",
        ) from None
    except yaml.YAMLError as error:
        raise ImportedFileError(f"not valid YAML: {str(error).splitlines()[0]}", where=where) from None
    except RecursionError:
        raise ImportedFileError("the YAML is nested too deeply", where=where) from None


class _Compose:
    """The state of reading one file."""

    def __init__(self, where: str, environ: Mapping[str, str]) -> None:
        self._where = where
        self._environ = environ
        self._from_environment: set[str] = set()
        self._unset: set[str] = set()
        self._left_out: set[str] = set()
        self._not_taken: dict[NotTaken, None] = {}
        self._merged: dict[int, Table] = {}
        self._secrets: dict[str, _Secret] = {}
        self._services: Table = {}

    def recipes(self, node: "yaml.Node | None", groups: Set[str]) -> Recipes:
        """Return the recipes of all services that have a build."""
        if node is None:
            raise ImportedFileError("the file is empty", where=self._where, hint="name another file")
        document = self._table(node, "the file")
        if "include" in document:
            hint = "import the included files by themselves"
            self._leave_out(document["include"], "include is not taken", hint)
        if "services" not in document:
            raise ImportedFileError(
                "not a compose file: it has no services", where=self._where, hint="name another file"
            )
        self._services = self._table(document["services"], "services")
        for name, item in self._table(document.get("secrets"), "secrets").items():
            entry = self._table(item, f"secrets.{name}")
            file, variable = self._text(entry.get("file")), self._text(entry.get("environment"))
            self._secrets[name] = _Secret(file, variable)
        builds: list[ImageBuild] = []
        without: list[str] = []
        mistakes: list[ImportedFileError] = []
        for name, item in self._services.items():
            try:
                service = self._service(name, item, ())
                if "build" in service:
                    builds.append(self._build(name, service))
                else:
                    without.append(name)
            except _ServiceError as error:
                what = f"service {name!r} is not taken: {error.what}"
                self._leave_out(error.where or item, what, str(error.hint))
            except ImportedFileError as error:
                mistakes.append(error)
        require_correct(mistakes, self._where)
        result = named(builds, "service", groups)
        notes = [*result.notes, *self._notes(without)]
        return Recipes(result.recipes, (*self._not_taken, *result.not_taken), tuple(notes))

    def _notes(self, without: list[str]) -> Iterator[str]:
        if without:
            yield f"services without a build make no image: {listed(without, 5)}"
        yield "not needed here: all that concerns running, such as ports and volumes" + "".join(
            f", {name}" for name in sorted(self._left_out)
        )
        if self._from_environment:
            yield f"values of the environment: {', '.join(sorted(self._from_environment))}"
        if self._unset:
            yield (
                f"variables without a value are empty: {', '.join(sorted(self._unset))};"
                " a file .env is not read: set -a; . ./.env; doit import …"
            )

    def _leave_out(self, place: object, what: str, hint: str) -> None:
        where = place if isinstance(place, str) else self._place(place)
        self._not_taken[NotTaken(where, what, hint)] = None

    def _place(self, node: object) -> str:
        mark = getattr(node, "start_mark", None)
        return self._where if mark is None else f"{self._where}:{mark.line + 1}"

    def _service(self, name: str, node: "yaml.Node", chain: tuple[str, ...]) -> "Table":
        """Return the keys `build`, `image` and `platform` of a service and of those that it extends."""
        service = self._table(node, f"services.{name}")
        if "extends" not in service:
            return service
        extends = service["extends"]
        if self._is_table(extends):
            keys = self._table(extends, "extends")
            if "file" in keys:
                raise _ServiceError(
                    "it extends a service of another file",
                    where=self._place(extends),
                    hint="write the keys of its build here",
                )
            base = self._text(keys.get("service"))
        else:
            base = self._text(extends)
        if base not in self._services or base in (*chain, name):
            why = "itself" if base in self._services else f"{base!r}, which does not exist"
            raise ImportedFileError(
                f"service {name!r} extends {why}", where=self._place(extends), hint="correct the name"
            )
        above = self._service(base, self._services[base], (*chain, name))
        merged = {**above, **service}
        if "build" in above and "build" in service:
            merged["build"] = self._with_base(above["build"], service["build"])
        return merged

    def _with_base(self, base: "yaml.Node", own: "yaml.Node") -> "yaml.Node":
        """Return a build with the keys of the one that it extends; maps of both are merged."""
        import yaml

        above, below = self._build_table(base), self._build_table(own)
        merged = {**above, **below}
        for key in ("args", "additional_contexts", "labels"):
            if key in above and key in below:
                pairs = {**self._pairs(above[key], key), **self._pairs(below[key], key)}
                items = [
                    (yaml.ScalarNode(_OWN_TAG, name, below[key].start_mark), node)
                    for name, node in pairs.items()
                ]
                merged[key] = yaml.MappingNode(_OWN_TAG, items, below[key].start_mark)
        pairs_of_build = [(yaml.ScalarNode(_OWN_TAG, key), node) for key, node in merged.items()]
        return yaml.MappingNode(_OWN_TAG, pairs_of_build, own.start_mark)

    def _build_table(self, node: "yaml.Node") -> "Table":
        return self._table(node, "build") if self._is_table(node) else {"context": node}

    def _build(self, name: str, service: "Table") -> ImageBuild:
        build = self._build_table(service["build"])
        if "dockerfile_inline" in build:
            raise _ServiceError(
                "its Dockerfile stands in the compose file (dockerfile_inline)",
                where=self._place(build["dockerfile_inline"]),
                hint="write it to a file, and name that file",
            )
        context = self._text(build.get("context"), ".")
        if is_remote(context) or context.startswith("service:"):
            raise _ServiceError(
                f"its context {context!r} is no directory of the checkout",
                where=self._place(build["context"]),
                hint=REMOTE_HINT,
            )
        for key, item in build.items():
            if key in _NOT_NEEDED:
                self._left_out.add(key)
            elif key not in _TAKEN and not key.startswith("x-"):
                hint = HINTS.get(key.replace("_", "-"), UNKNOWN_HINT)
                self._leave_out(item, f"build.{key} is not taken", hint)
        tags = [self._text(service.get("image")), *self._texts(build.get("tags"), "tags")]
        return ImageBuild(
            name,
            self._place(service["build"]),
            tags=tuple(filter(None, tags)),
            context=context,
            dockerfile=self._text(build.get("dockerfile"), "Dockerfile"),
            target=self._text(build.get("target")),
            build_args=dict(self._arguments(build.get("args"))),
            secrets=tuple(self._build_secrets(build.get("secrets"))),
            ssh=tuple(self._ssh(build.get("ssh"))),
            arch=self._architectures(build.get("platforms")),
            contexts=dict(self._contexts(build.get("additional_contexts"))),
        )

    def _arguments(self, node: "yaml.Node | None") -> Iterator[tuple[str, str]]:
        for name, value in self._pairs(node, "args").items():
            if value is None or value.tag == _NULL:
                # compose takes the value from the environment of each build; it may be secret.
                what = f"the build argument {name!r} has no value"
                self._leave_out(
                    value or node, what, f"write {name} into [build_args], or give it a value"
                )
            elif not ARG_NAME.fullmatch(name):
                what = f"the build argument {name!r} is not taken: it is no name"
                self._leave_out(value, what, "correct it")
            else:
                yield name, self._text(value)

    def _build_secrets(self, node: "yaml.Node | None") -> Iterator[Secret]:
        for item in self._list(node, "secrets"):
            entry = self._table(item, "secrets") if self._is_table(item) else {"source": item}
            source = self._text(entry.get("source"))
            secret = self._secrets.get(source)
            if secret is None or not (secret.file or secret.variable):
                what = f"the secret {source!r} has no file and no variable"
                self._leave_out(item, what, 'write secrets = ["id=ID,env=VARIABLE"] into project.toml')
                continue
            name = self._text(entry.get("target"), source)
            yield Secret(name, variable=secret.variable, file="" if secret.variable else secret.file)

    def _ssh(self, node: "yaml.Node | None") -> list[str]:
        if node is not None and self._is_table(node):
            pairs = self._pairs(node, "ssh").items()
            return [f"{key}={path}" if (path := self._text(value)) else key for key, value in pairs]
        return self._texts(node, "ssh")

    def _architectures(self, node: "yaml.Node | None") -> tuple[str, ...]:
        names, others = architectures(self._texts(node, "platforms"))
        if others and not names:
            what = f"no node has its platform ({', '.join(others)})"
            raise _ServiceError(what, where=self._place(node), hint=PLATFORM_HINT)
        for platform in others:
            self._leave_out(node, f"the platform {platform} is not taken", PLATFORM_HINT)
        return names

    def _contexts(self, node: "yaml.Node | None") -> Iterator[tuple[str, NamedContext]]:
        for name, value in self._pairs(node, "additional_contexts").items():
            path = self._text(value)
            context = named_context(path, "service:") if path else None
            if context is None:
                what = f"the context {name!r} is not taken: {path!r} is not in the checkout"
                self._leave_out(value or node, what, REMOTE_HINT)
            elif context.kind is not ContextKind.BUILD or context.value in self._services:
                yield name, context
            else:
                raise ImportedFileError(
                    f"there is no service {context.value!r}",
                    where=self._place(value),
                    hint="correct the name",
                )

    def _is_table(self, node: "yaml.Node") -> bool:
        import yaml

        return isinstance(node, yaml.MappingNode)

    def _table(self, node: "yaml.Node | None", name: str) -> "Table":
        """Return a mapping by its keys, with those of merge keys (<<); empty when it is missing."""
        import yaml

        if node is None or node.tag == _NULL:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ImportedFileError(
                f"{name} is not a table", where=self._place(node), hint="correct this value"
            )
        # One table may be merged at many places, as often as a hostile file likes.
        if id(node) in self._merged:
            return self._merged[id(node)]
        self._merged[id(node)] = {}
        own: Table = {}
        merged: Table = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in sources:
                    merged = {**self._table(source, "<<"), **merged}
            else:
                text = self._scalar(key, "a key")
                if text in own:
                    raise ImportedFileError(
                        f"{name} has the key {text!r} twice", where=self._place(key), hint="remove one"
                    )
                own[text] = value
        self._merged[id(node)] = {**merged, **own}
        return self._merged[id(node)]

    def _list(self, node: "yaml.Node | None", name: str) -> "list[yaml.Node]":
        import yaml

        if node is None or node.tag == _NULL:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise ImportedFileError(
                f"{name} is not a list", where=self._place(node), hint="correct this value"
            )
        return list(node.value)

    def _texts(self, node: "yaml.Node | None", name: str) -> list[str]:
        return [self._text(item) for item in self._list(node, name)]

    def _pairs(self, node: "yaml.Node | None", name: str) -> "dict[str, yaml.Node | None]":
        """Return a mapping, or a list of `KEY=VALUE`; the value of `KEY` alone is None."""
        import yaml

        if node is not None and self._is_table(node):
            return dict(self._table(node, name))
        pairs: dict[str, yaml.Node | None] = {}
        for item in self._list(node, name):
            key, equals, value = self._scalar(item, name).partition("=")
            pairs[key] = yaml.ScalarNode(_OWN_TAG, value, item.start_mark) if equals else None
        return pairs

    def _scalar(self, node: "yaml.Node", name: str) -> str:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            raise ImportedFileError(
                f"{name} is not a text", where=self._place(node), hint="correct this value"
            )
        return str(node.value)

    def _text(self, node: "yaml.Node | None", default: str = "") -> str:
        """Return a scalar with the values of its variables; the default for a missing or empty one."""
        if node is None or node.tag == _NULL:
            return default
        text = self._scalar(node, "this value")
        return self._interpolated(text, self._place(node)) or default

    def _interpolated(self, text: str, where: str) -> str:
        """Return a text with its variables replaced, such as $NAME, ${NAME} and ${NAME:-default}."""
        result: list[str] = []
        at = 0
        while (match := _VARIABLE.search(text, at)) is not None:
            result.append(text[at : match.start()])
            at = match.end()
            if match["escaped"]:
                result.append("$")
            elif match["named"]:
                result.append(self._variable(match["named"]))
            elif match["braced"]:
                inner, at = _until_brace(text, at, where)
                result.append(self._with_default(match["braced"], inner, where))
            else:
                raise ImportedFileError(
                    "a $ without the name of a variable", where=where, hint="write $$ for the character"
                )
        return "".join((*result, text[at:]))

    def _with_default(self, name: str, rest: str, where: str) -> str:
        if not rest:
            return self._variable(name)
        operator = _OPERATOR.match(rest)
        if operator is None:
            raise ImportedFileError(
                f"${{{name}{rest}}} is no form of a variable", where=where, hint="write ${NAME:-default}"
            )
        word = rest[operator.end() :]
        value = self._environ.get(name)
        is_set = bool(value) if operator[0].startswith(":") else value is not None
        if value is not None:
            self._from_environment.add(name)
        match operator[0][-1]:
            case "+":
                return self._interpolated(word, where) if is_set else ""
            case "?" if not is_set:
                raise ImportedFileError(
                    f"the variable {name} is required: {word or 'it has no value'}",
                    where=where,
                    hint=f"set it: {name}=VALUE doit import …",
                )
        return str(value) if is_set else self._interpolated(word, where)

    def _variable(self, name: str) -> str:
        value = self._environ.get(name)
        (self._unset if value is None else self._from_environment).add(name)
        return value or ""


def _until_brace(text: str, at: int, where: str) -> tuple[str, int]:
    """Return the text up to the closing brace of a variable, and the place after it."""
    depth = 1
    for place in range(at, len(text)):
        if text.startswith("${", place):
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if not depth:
                return text[at:place], place + 1
    raise ImportedFileError("a variable has no closing brace", where=where, hint="write ${NAME}")
