"""Bake files of `docker buildx bake`: their targets as builds.

The meaning of each attribute is that of https://docs.docker.com/build/bake/reference/.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from msgspec import Struct

from rc_tasks.errors import ImportedFileError
from rc_tasks.model.config.project_toml import Secret
from rc_tasks.model.imported import hcl_syntax
from rc_tasks.model.imported.hcl_evaluation import Evaluator, UnsupportedError, literal
from rc_tasks.model.imported.hcl_functions import MOST_ELEMENTS, text_of
from rc_tasks.model.imported.hcl_syntax import Attribute, BakeDocument, Block, trees
from rc_tasks.model.imported.naming import named
from rc_tasks.model.imported.project import (
    ARG_NAME,
    HINTS,
    PLATFORM_HINT,
    REMOTE_HINT,
    UNKNOWN_HINT,
    ContextKind,
    ImageBuild,
    MatrixBuild,
    NamedContext,
    NotTaken,
    Recipes,
    architectures,
    is_remote,
    named_context,
    require_correct,
)
from rc_tasks.util.text import listed

# Attributes that concern the cache of BuildKit and where it puts images.
_NOT_NEEDED = frozenset(
    {
        "annotations",
        "attest",
        "cache-from",
        "cache-to",
        "call",
        "description",
        "no-cache",
        "no-cache-filter",
        "policy",
        "pull",
    }
)
_INHERITED_AS_MAP = frozenset({"args", "contexts", "labels"})
_EVALUATED = frozenset(
    {
        "args",
        "context",
        "contexts",
        "dockerfile",
        "dockerfile-inline",
        "output",
        "platforms",
        "secret",
        "ssh",
        "tags",
        "target",
    }
)
_OF_BLOCK = frozenset({"inherits", "matrix", "name"})
# Attributes without which the build would be another one; the target is not taken without them.
_ESSENTIAL = frozenset({"context", "dockerfile", "target"})
_FILES_ONLY = ("type=local", "type=tar")
_GROUP_HINT = "nothing to do: a group only names targets"
_BY_HAND = "write its project.toml by hand"


class _Located(Struct, frozen=True):
    value: Any
    where: str


class _Target(Struct, frozen=True):
    """A target of one combination of its block's matrix; `local` has the values of the axes."""

    block: Block
    local: dict[str, object]


def read(
    texts: Mapping[str, str], environ: Mapping[str, str], groups: Set[str] = frozenset()
) -> Recipes:
    """Return the recipes of bake files, each by its path. Raise ImportedFileError for a mistake in one.

    `groups` are names of the checkout that have versions, as in `naming.named`.
    The path of a file in JSON ends in `.json`. As in bake, later files add to earlier blocks.
    """
    where = " and ".join(texts)
    try:
        documents = [
            (hcl_syntax.parse_json if path.endswith(".json") else hcl_syntax.parse)(text, path)
            for path, text in texts.items()
        ]
        return _Bake(hcl_syntax.joined(documents), where, environ).recipes(groups)
    except RecursionError:
        raise ImportedFileError("the expressions are nested too deeply", where=where) from None


class _Bake:
    """The state of reading one file."""

    def __init__(self, document: BakeDocument, where: str, environ: Mapping[str, str]) -> None:
        self._where = where
        self._evaluator = Evaluator(document, environ)
        self._all_blocks = [block for block in document.blocks if block.kind == "target"]
        self._blocks = _merged_blocks(self._all_blocks)
        self._groups = _merged_blocks(block for block in document.blocks if block.kind == "group")
        self._targets: dict[str, _Target] = {}
        self._of_block: dict[str, list[str]] = {}
        self._axes: dict[str, dict[str, tuple[str, ...]]] = {}
        self._inherited: set[str] = set()
        self._left_out: dict[str, None] = {}
        self._not_taken: dict[NotTaken, None] = {}

    def recipes(self, groups: Set[str]) -> Recipes:
        """Return the recipes of all targets that are images and no mere templates of others."""
        mistakes: list[ImportedFileError] = []
        for block in self._blocks.values():
            try:
                self._expand(block)
            except ImportedFileError as error:
                mistakes.append(error)
        builds: dict[str, list[ImageBuild]] = {}
        failures: dict[str, UnsupportedError] = {}
        for label, names in self._of_block.items():
            try:
                builds[label] = [self._build(name) for name in names]
            except UnsupportedError as error:
                failures[label] = error
            except ImportedFileError as error:
                mistakes.append(error)
        grouped = self._grouped(mistakes)
        require_correct(mistakes, self._where)
        referred = {
            context.value
            for group in builds.values()
            for build in group
            for context in build.contexts.values()
            if context.kind is ContextKind.BUILD
        }
        kept: list[ImageBuild | MatrixBuild] = []
        templates: list[str] = []
        failed: list[str] = []
        for label, own_names in self._of_block.items():
            either = {*own_names, label}
            is_named = bool(either & (grouped | referred))
            if either & self._inherited and not is_named and not _is_whole(self._blocks[label]):
                templates.append(label)
            elif label in failures:
                failed.append(label)
            elif label in self._axes:
                kept.append(self._matrix(self._blocks[label], builds[label]))
            else:
                kept += builds[label]
        self._targets_not_taken({label: failures[label] for label in failed})
        result = named(kept, "target", groups)
        notes = [*result.notes, *self._notes(templates)]
        return Recipes(result.recipes, (*self._not_taken, *result.not_taken), tuple(notes))

    def _notes(self, templates: list[str]) -> Iterator[str]:
        if templates:
            yield f"targets that only others inherit from make no image: {listed(templates, 5)}"
        if self._groups:
            groups = listed([*self._groups], 5)
            yield f"groups have no counterpart here, and `doit build:NAME` takes several names: {groups}"
        if self._left_out:
            yield f"not needed here: {', '.join(sorted(self._left_out))}"
        if variables := sorted(self._evaluator.from_environment):
            yield f"values of the environment: {', '.join(variables)}"

    def _targets_not_taken(self, failures: Mapping[str, UnsupportedError]) -> None:
        """Report targets that cannot be images, once for all with the same reason at the same place."""
        labels: dict[tuple[str, str, str], list[str]] = {}
        for label, error in failures.items():
            reason = (str(error.where or self._where), error.what, error.hint or _BY_HAND)
            labels.setdefault(reason, []).append(repr(label))
        for (where, what, hint), names in labels.items():
            subject = f"target {names[0]} is" if len(names) == 1 else f"targets {listed(names, 3)} are"
            self._leave_out(where, f"{subject} not taken: {what}", hint)

    def _leave_out(self, where: object, what: str, hint: str) -> None:
        self._not_taken[NotTaken(str(where), what, hint)] = None

    def _expand(self, block: Block) -> None:
        """Add the targets of a block: one for each combination of its matrix."""
        try:
            rows = self._combinations(block)
            for local in rows:
                name = block.label
                if "matrix" in block.attributes and "name" not in block.attributes:
                    raise ImportedFileError(
                        f"target {block.label!r} has a matrix and no name",
                        where=block.where,
                        hint='add a name such as name = "app-${version}"',
                    )
                if "name" in block.attributes:
                    attribute = block.attributes["name"]
                    name = _text(
                        _Located(self._evaluator.value(attribute, local), attribute.where), "name"
                    )
                if name in self._targets:
                    raise ImportedFileError(
                        f"two targets are named {name!r}",
                        where=block.where,
                        hint="use each axis of the matrix in the name",
                    )
                self._targets[name] = _Target(block, local)
                self._of_block.setdefault(block.label, []).append(name)
        except UnsupportedError as error:
            self._of_block.pop(block.label, None)
            self._targets_not_taken({block.label: error})

    def _combinations(self, block: Block) -> list[dict[str, object]]:
        attribute = block.attributes.get("matrix")
        if attribute is None:
            return [{}]
        matrix = self._evaluator.value(attribute, {})
        if not isinstance(matrix, dict) or not all(isinstance(axis, list) for axis in matrix.values()):
            raise ImportedFileError(
                "matrix is not a table of lists", where=attribute.where, hint="correct it"
            )
        number = 1
        for axis in matrix.values():
            number *= len(axis)
        if not 0 < number <= MOST_ELEMENTS:
            what = f"the matrix has {number} combinations, and 1 to {MOST_ELEMENTS} are possible"
            raise ImportedFileError(what, where=attribute.where, hint="correct its lists")
        if all(isinstance(value, str) for axis in matrix.values() for value in axis):
            self._axes[block.label] = {name: tuple(axis) for name, axis in matrix.items()}
        return [dict(zip(matrix, row, strict=True)) for row in itertools.product(*matrix.values())]

    def _matrix(self, block: Block, builds: list[ImageBuild]) -> MatrixBuild:
        """Return the matrix of a block, with a template in which each axis has its name as the value."""
        axes = self._axes[block.label]
        local: dict[str, object] = {axis: f"{{{axis}}}" for axis in axes}
        try:
            template = self._build_of(block.label, _Target(block, local))
        except ImportedFileError:
            template = builds[0]
        return MatrixBuild(block.label, block.where, axes, template, tuple(builds))

    def _grouped(self, mistakes: list[ImportedFileError]) -> set[str]:
        """Return the targets in groups, and the one that bake builds without a name."""
        grouped = {"default"}
        for block in self._groups.values():
            if (attribute := block.attributes.get("targets")) is not None:
                try:
                    value = self._evaluator.value(attribute, {})
                    grouped |= set(_texts(_Located(value, attribute.where), "targets"))
                except UnsupportedError as error:
                    self._leave_out(attribute.where, f"group {block.label!r}: {error.what}", _GROUP_HINT)
                except ImportedFileError as error:
                    mistakes.append(error)
        return grouped

    def _build(self, name: str) -> ImageBuild:
        return self._build_of(name, self._targets[name])

    def _build_of(self, name: str, target: _Target) -> ImageBuild:
        values = self._values(target, (name,))
        if "dockerfile-inline" in values:
            what = "its Dockerfile stands in the bake file (dockerfile-inline)"
            where = values["dockerfile-inline"].where
            raise UnsupportedError(what, where=where, hint="write it to a file, and name that file")
        context = _text(values["context"], "context") if "context" in values else "."
        context = context.removeprefix("cwd://") or "."
        if is_remote(context) or context.startswith("target:"):
            raise UnsupportedError(
                f"its context {context!r} is no directory of the checkout",
                where=values["context"].where,
                hint=REMOTE_HINT,
            )
        if "output" in values:
            self._check_output(name, values["output"])
        return ImageBuild(
            name,
            target.block.where,
            tags=tuple(filter(None, _texts(values["tags"], "tags"))) if "tags" in values else (),
            context=context,
            dockerfile=_text(values.get("dockerfile", _Located("Dockerfile", "")), "dockerfile"),
            target=_text(values.get("target", _Located("", "")), "target"),
            build_args=dict(self._build_args(values["args"])) if "args" in values else {},
            secrets=tuple(self._secrets(values["secret"])) if "secret" in values else (),
            ssh=tuple(_ssh(values["ssh"])) if "ssh" in values else (),
            arch=self._architectures(values["platforms"]) if "platforms" in values else (),
            contexts=dict(self._contexts(values["contexts"])) if "contexts" in values else {},
        )

    def _values(self, target: _Target, chain: tuple[str, ...]) -> dict[str, _Located]:
        """Return the attributes of a target and of those that it inherits from; later ones win."""
        values: dict[str, _Located] = {}
        block = target.block
        if (inherits := block.attributes.get("inherits")) is not None:
            value = self._evaluator.value(inherits, target.local)
            for base in _texts(_Located(value, inherits.where), "inherits"):
                if base in chain:
                    what = f"target {base!r} inherits from itself: {' → '.join((*chain, base))}"
                    raise ImportedFileError(what, where=inherits.where, hint="remove one of these")
                if base not in self._targets:
                    raise ImportedFileError(
                        f"target {block.label!r} inherits from {base!r}, which does not exist",
                        where=inherits.where,
                        hint="correct the name",
                    )
                self._inherited |= {base, self._targets[base].block.label}
                _inherit(values, self._values(self._targets[base], (*chain, base)))
        for part in self._all_blocks:
            if part.label == block.label:
                _inherit(values, dict(self._own_values(part, target.local)))
        return values

    def _own_values(self, block: Block, local: dict[str, object]) -> Iterator[tuple[str, _Located]]:
        for name, attribute in block.attributes.items():
            if name in _EVALUATED:
                value = self._parts(block, attribute, local)
                if value is not None:
                    yield name, _Located(value, attribute.where)
            elif name in _NOT_NEEDED:
                self._left_out[name] = None
            elif name not in _OF_BLOCK:
                hint = HINTS.get(name, UNKNOWN_HINT)
                self._leave_out(attribute.where, f"{name} of target {block.label!r} is not taken", hint)

    def _parts(self, block: Block, attribute: Attribute, local: dict[str, object]) -> Any:
        """Return a value without those of its elements that cannot be evaluated; report these."""
        tree = literal(attribute.tree)
        is_table = tree.data == "object"
        if not is_table and tree.data != "tuple":
            try:
                return self._evaluator.value(attribute, local)
            except UnsupportedError as error:
                if attribute.name in _ESSENTIAL:
                    raise
                self._part_not_taken(block, attribute, error)
                return None
        parts: list[tuple[str, object]] = []
        for item in trees(tree):
            try:
                key = self._evaluator.key(item, local) if is_table else ""
                part = trees(item)[1] if is_table else item
                parts.append((key, self._evaluator.part(attribute, part, local)))
            except UnsupportedError as error:
                self._part_not_taken(block, attribute, error)
        return dict(parts) if is_table else [value for _, value in parts]

    def _part_not_taken(self, block: Block, attribute: Attribute, error: ImportedFileError) -> None:
        if attribute.name == "output":
            return
        what = f"a value in {attribute.name} of target {block.label!r} is not taken: {error.what}"
        hints = {"tags": "name the project as you like"}
        hint = hints.get(attribute.name, "write it into project.toml")
        self._leave_out(error.where, what, error.hint or hint)

    def _check_output(self, name: str, output: _Located) -> None:
        if any(kind in str(item) for item in _list(output, "output") for kind in _FILES_ONLY):
            what = f"output of target {name!r} is files, and doit publishes an image"
            self._leave_out(output.where, what, "remove the project if you do not need the image")

    def _build_args(self, arguments: _Located) -> Iterator[tuple[str, str]]:
        for name, value in _table(arguments, "args").items():
            if value is None:
                continue  # The ARG of the Dockerfile keeps its default.
            if not ARG_NAME.fullmatch(name) or isinstance(value, list | dict):
                what = f"the build argument {name!r} is not taken: it is no name with a text"
                self._leave_out(arguments.where, what, "correct it")
                continue
            yield name, text_of(value)

    def _architectures(self, value: _Located) -> tuple[str, ...]:
        names, others = architectures(_texts(value, "platforms"))
        if others and not names:
            what = f"no node has its platform ({', '.join(others)})"
            raise UnsupportedError(what, where=value.where, hint=PLATFORM_HINT)
        for platform in others:
            self._leave_out(value.where, f"the platform {platform} is not taken", PLATFORM_HINT)
        return names

    def _secrets(self, secrets: _Located) -> Iterator[Secret]:
        for item in _list(secrets, "secret"):
            secret = _secret(item)
            if secret is None:
                # The text may be the secret itself, so the message does not show it.
                hint = 'write secrets = ["id=ID,env=VARIABLE"] into project.toml'
                self._leave_out(secrets.where, "a secret is not taken: it has an unknown form", hint)
            else:
                yield secret

    def _contexts(self, contexts: _Located) -> Iterator[tuple[str, NamedContext]]:
        for name, value in _table(contexts, "contexts").items():
            path = _text(_Located(value, contexts.where), f"contexts.{name}")
            context = named_context(path, "target:")
            if context is None:
                what = f"the context {name!r} is not taken: {path!r} is not in the checkout"
                self._leave_out(contexts.where, what, REMOTE_HINT)
            else:
                yield name, context


def _is_whole(block: Block) -> bool:
    """Return whether a target that others inherit from says enough to be an image as well."""
    return "tags" in block.attributes and not _ESSENTIAL.isdisjoint(block.attributes)


def _merged_blocks(blocks: Iterable[Block]) -> dict[str, Block]:
    """Return blocks by label, where attributes of later blocks replace those of earlier ones."""
    merged: dict[str, Block] = {}
    for block in blocks:
        before = merged.get(block.label)
        attributes = {**(before.attributes if before else {}), **block.attributes}
        where = before.where if before else block.where
        merged[block.label] = Block(block.kind, block.label, where, attributes)
    return merged


def _inherit(values: dict[str, _Located], later: Mapping[str, _Located]) -> None:
    for name, item in later.items():
        before = values.get(name)
        if before is None:
            values[name] = item
        elif name in _INHERITED_AS_MAP:
            values[name] = _Located({**_table(before, name), **_table(item, name)}, item.where)
        elif name in {"secret", "ssh"}:
            added = [part for part in _list(item, name) if part not in before.value]
            values[name] = _Located([*_list(before, name), *added], item.where)
        else:
            values[name] = item


def _text(value: _Located, name: str) -> str:
    if not isinstance(value.value, str):
        raise ImportedFileError(f"{name} is not a text", where=value.where, hint="correct this value")
    return value.value


def _list(value: _Located, name: str) -> list[object]:
    if not isinstance(value.value, list):
        raise ImportedFileError(f"{name} is not a list", where=value.where, hint="correct this value")
    return value.value


def _texts(value: _Located, name: str) -> list[str]:
    return [_text(_Located(item, value.where), f"an element of {name}") for item in _list(value, name)]


def _table(value: _Located, name: str) -> dict[str, object]:
    if not isinstance(value.value, dict):
        raise ImportedFileError(f"{name} is not a table", where=value.where, hint="correct this value")
    return value.value


def _secret(item: object) -> Secret | None:
    """Return a secret given as `type=env,id=ID,env=VARIABLE` or as a table with these keys."""
    pairs = dict(part.partition("=")[::2] for part in item.split(",")) if isinstance(item, str) else item
    if not isinstance(pairs, dict) or not all(isinstance(value, str) for value in pairs.values()):
        return None
    name = pairs.get("id", "")
    file = pairs.get("src") or pairs.get("source") or ""
    variable = pairs.get("env", "")
    if pairs.get("type") == "env" and file:
        file, variable = "", file
    if not name or not set(pairs) <= {"id", "src", "source", "env", "type"} or (file and variable):
        return None
    # BuildKit takes the variable that has the name of the secret (docker buildx build, --secret).
    return Secret(name, file=file) if file else Secret(name, variable=variable or name)


def _ssh(value: _Located) -> Iterator[str]:
    for item in _list(value, "ssh"):
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            paths = item.get("paths") or []
            path = ",".join(_texts(_Located(paths, value.where), "ssh.paths"))
            yield f"{item['id']}={path}" if path else item["id"]
        else:
            yield _text(_Located(item, value.where), "an element of ssh")
