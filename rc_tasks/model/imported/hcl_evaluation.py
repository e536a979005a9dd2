"""Values of the expressions in a bake file: variables, templates, conditionals, functions, `for`.

An expression of a hostile file could grow without end, so steps, texts and lists have limits. The
language is that of https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md.
"""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeGuard

from rc_tasks.errors import ImportedFileError
from rc_tasks.model.imported import hcl_functions
from rc_tasks.model.imported.hcl_functions import FUNCTIONS, MOST_CHARACTERS, MOST_ELEMENTS
from rc_tasks.model.imported.hcl_syntax import Attribute, BakeDocument, Block, trees

_MOST_DIGITS = 40
_MOST_STEPS = 500_000
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
# Blocks can be read like variables, as in target.app.tags.
_BLOCK_NAMES = frozenset({"target", "group", "variable", "function"})
# Variables that bake sets.
_BUILT_IN = frozenset({"BAKE_CMD_CONTEXT", "BAKE_LOCAL_PLATFORM"})
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}

_ARITHMETIC: dict[str, Callable[[Any, Any], object]] = {
    "PLUS": lambda left, right: left + right,
    "MINUS": lambda left, right: left - right,
    "ASTERISK": lambda left, right: left * right,
    "LT": lambda left, right: left < right,
    "GT": lambda left, right: left > right,
    "LEQ": lambda left, right: left <= right,
    "GEQ": lambda left, right: left >= right,
}


class UnsupportedError(ImportedFileError):
    """A valid expression that `doit import` does not evaluate."""


class Evaluator:
    """The values of a bake file's expressions; `from_environment` are the variables set there."""

    def __init__(self, document: BakeDocument, environ: Mapping[str, str]) -> None:
        self._variables = {block.label: block for block in _of_kind(document, "variable")}
        self._functions = {block.label: block for block in _of_kind(document, "function")}
        self._attributes = document.attributes
        self._environ = environ
        self._values: dict[str, object] = {}
        self._pending: list[str] = []
        self._steps = 0
        self.from_environment: set[str] = set()

    def value(self, attribute: Attribute, local: Mapping[str, object]) -> object:
        """Return the value of an attribute, where the names in `local` hide variables.

        Raise UnsupportedError, or ImportedFileError for an unknown name; both with the attribute's line.
        """
        return self.part(attribute, attribute.tree, local)

    def part(self, attribute: Attribute, tree: Any, local: Mapping[str, object]) -> object:
        """Return the value of a part of an attribute, as `value` does."""
        try:
            return self._value(tree, local)
        except ImportedFileError as error:
            raise error if error.where else error.with_where(attribute.where) from None

    def _value(self, tree: Any, local: Mapping[str, object]) -> object:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ImportedFileError("the expressions of this file take too many steps")
        result = self._unchecked(tree, local)
        if isinstance(result, str) and len(result) > MOST_CHARACTERS:
            raise UnsupportedError(f"a text has more than {MOST_CHARACTERS} characters")
        # A list of one list twice, and so on, would grow without end. A variable was checked before.
        if tree.data != "identifier" and _size(result, MOST_ELEMENTS) > MOST_ELEMENTS:
            raise UnsupportedError(f"a list has more than {MOST_ELEMENTS} elements")
        return result

    def _unchecked(self, tree: Any, local: Mapping[str, object]) -> object:  # noqa: PLR0912 - all forms
        inner: list[Any] = trees(tree)
        match str(tree.data):
            case "expr_term" if len(inner) == 1:
                return self._value(inner[0], local)
            case "string":
                return self._string(inner, local)
            case "int_lit" | "float_lit":
                return _number(str(tree.children[0]))
            case "literal_value":
                return {"true": True, "false": False, "null": None}[str(tree.children[0])]
            case "identifier":
                return self._name(str(tree.children[0]), local)
            case "tuple":
                return [self._value(item, local) for item in inner]
            case "object":
                return {self.key(item, local): self._value(trees(item)[1], local) for item in inner}
            case "conditional":
                condition, yes, no = inner
                return self._value(yes if self._truth(condition, local) else no, local)
            case "binary_op":
                operator, right = trees(inner[1])
                return self._operation(_kind(operator), inner[0], right, local)
            case "unary_op":
                value = self._value(inner[0], local)
                if _has(tree, "NOT") and isinstance(value, bool):
                    return not value
                if _has(tree, "MINUS") and _is_number(value):
                    return -value
            case "function_call":
                return self._call(inner, local)
            case "index_expr_term" | "get_attr_expr_term":
                return self._element(inner[0], inner[1], local)
            case "for_tuple_expr":
                return [self._value(inner[1], scope) for scope in self._loop(inner, 2, local)]
            case "for_object_expr" if not _has(tree, "ELLIPSIS"):
                return {
                    _text(self._value(inner[1], scope)): self._value(inner[2], scope)
                    for scope in self._loop(inner, 3, local)
                }
            case "heredoc_template" | "heredoc_template_trim":
                return _heredoc(str(tree.children[0]))
            case _:
                pass
        raise UnsupportedError(f"an expression of this form ({tree.data}) is not evaluated")

    def _string(self, parts: list[Any], local: Mapping[str, object]) -> object:
        pieces: list[object] = []
        for part in parts:
            child = part.children[0]
            if isinstance(child, str):
                pieces.append(_literal(child))
            elif child.data == "interpolation":
                pieces.append(self._value(trees(child)[0], local))
            else:
                raise UnsupportedError("a template with %{…} is not evaluated")
        # A string that is one ${…} has the value of the expression, of any type.
        return pieces[0] if len(pieces) == 1 else "".join(map(_text, pieces))

    def key(self, item: Any, local: Mapping[str, object]) -> str:
        """Return the key of an element of an object."""
        tree = trees(item)[0]
        inner: Any = trees(tree)[0]
        while inner.data == "expr_term" and len(inner.children) == 1:
            (inner,) = inner.children
        if inner.data in {"identifier", "keyword", "literal_value"}:
            return str(inner.children[0])
        return _text(self._value(inner, local))

    def _name(self, name: str, local: Mapping[str, object]) -> object:
        if name in local:
            return local[name]
        if name in self._values:
            return self._values[name]
        if name in self._pending:
            raise ImportedFileError(f"the variable {name} depends on itself", hint="correct its default")
        self._pending.append(name)
        try:
            self._values[name] = self._global(name)
        finally:
            self._pending.pop()
        return self._values[name]

    def _global(self, name: str) -> object:
        if name in self._variables:
            block = self._variables[name]
            default = block.attributes.get("default")
            # A variable without a default is empty (bake/hclparser/hclparser.go, resolveValue).
            value = "" if default is None else self.value(default, {})
            if name not in self._environ:
                return value
            self.from_environment.add(name)
            return _typed(self._environ[name], value, name, block.where)
        if name in self._attributes:
            return self.value(self._attributes[name], {})
        if name in _BLOCK_NAMES:
            raise UnsupportedError(f"a value of another block ({name}.…) is not evaluated")
        if name in _BUILT_IN:
            raise UnsupportedError(f"{name} depends on the machine that bake is called on")
        raise ImportedFileError(f"there is no variable {name}", hint="declare it, or correct its name")

    def _truth(self, tree: Any, local: Mapping[str, object]) -> bool:
        value = self._value(tree, local)
        if value in ("true", "false"):
            return value == "true"
        if not isinstance(value, bool):
            raise UnsupportedError("a condition is neither true nor false")
        return value

    def _operation(self, kind: str, left: Any, right: Any, local: Mapping[str, object]) -> object:
        if kind == "DOUBLE_AMP":
            return self._truth(left, local) and self._truth(right, local)
        if kind == "DOUBLE_PIPE":
            return self._truth(left, local) or self._truth(right, local)
        values = self._value(left, local), self._value(right, local)
        if kind in {"DOUBLE_EQ", "NEQ"}:
            return bool(_called("equal", [*values])) is (kind == "DOUBLE_EQ")
        if kind not in _ARITHMETIC or not all(map(_is_number, values)):
            raise UnsupportedError(f"this operation ({kind.lower()}) is not evaluated")
        result = _ARITHMETIC[kind](*values)
        return result if isinstance(result, bool) else _number(str(result))

    def _call(self, inner: list[Any], local: Mapping[str, object]) -> object:
        name = str(inner[0].children[0])
        listed = next((part for part in inner if part.data == "arguments"), None)
        arguments = [self._value(item, local) for item in trees(listed)] if listed else []
        if listed and _has(listed, "ELLIPSIS"):
            last = arguments.pop()
            arguments += last if isinstance(last, list) else [last]
        if name in self._functions:
            return self._own_function(self._functions[name], arguments)
        if name not in FUNCTIONS or len([part for part in inner if part.data == "identifier"]) > 1:
            raise UnsupportedError(f"the function {name} is not evaluated")
        return _called(name, arguments)

    def _own_function(self, block: Block, arguments: list[object]) -> object:
        """Return what a function of the file returns. It sees its parameters and all variables."""
        names = [_parameter(tree) for tree in trees_of(block.attributes.get("params"))]
        variadic = block.attributes.get("variadic_params")
        result = block.attributes.get("result")
        if (
            result is None
            or len(arguments) < len(names)
            or (len(arguments) > len(names) and not variadic)
        ):
            raise ImportedFileError(
                f"the function {block.label} has {len(names)} parameters, not {len(arguments)}",
                hint="correct the call or the function",
            )
        scope: dict[str, object] = dict(zip(names, arguments, strict=False))
        if variadic:
            scope[_parameter(variadic.tree)] = arguments[len(names) :]
        return self.value(result, scope)

    def _element(self, tree: Any, index: Any, local: Mapping[str, object]) -> object:
        container = self._value(tree, local)
        match str(index.data):
            case "get_attr":
                key: Any = str(trees(index)[0].children[0])
            case "short_index":
                key = int(str(index.children[-1]))
            case _:
                key = self._value(trees(index)[0], local)
        if isinstance(container, dict) and isinstance(key, str) and key in container:
            return container[key]
        if isinstance(container, list) and _is_number(key) and 0 <= key < len(container):
            return container[int(key)]
        raise UnsupportedError(f"there is no element {key!r}")

    def _loop(
        self, inner: list[Any], condition_at: int, local: Mapping[str, object]
    ) -> list[dict[str, object]]:
        """Return the names of each turn of a `for`, for which its condition holds."""
        *identifiers, source = trees(inner[0])
        names = [str(item.children[0]) for item in identifiers]
        container = self._value(source, local)
        if isinstance(container, dict):
            items: list[tuple[object, object]] = sorted(container.items())
        elif isinstance(container, list):
            items = list(enumerate(container))
        else:
            raise UnsupportedError("a `for` needs a list or an object")
        scopes = []
        for key, value in items:
            values = {names[0]: key, names[1]: value} if len(names) == 2 else {names[0]: value}
            scope = {**local, **values}
            conditions = trees(inner[condition_at]) if len(inner) > condition_at else []
            if all(self._truth(condition, scope) for condition in conditions):
                scopes.append(scope)
        return scopes


def trees_of(attribute: Attribute | None) -> list[Any]:
    """Return the elements of a list literal, or nothing when the attribute is missing."""
    return [] if attribute is None else trees(literal(attribute.tree))


def literal(tree: Any) -> Any:
    """Return the innermost syntax tree of an expression, such as that of an object."""
    while tree.data == "expr_term" and len(inner := trees(tree)) == 1:
        (tree,) = inner
    return tree


def _parameter(tree: Any) -> str:
    return str(literal(tree).children[0])


def _of_kind(document: BakeDocument, kind: str) -> list[Block]:
    return [block for block in document.blocks if block.kind == kind]


def _kind(operator: Any) -> str:
    """Return the type of an operator's token, whose text may begin with comments and line breaks."""
    return str(operator.children[0].type)


def _has(tree: Any, token: str) -> bool:
    return any(getattr(child, "type", "") == token for child in tree.children)


def _number(text: str) -> Decimal:
    """Return a number whose text is short; an exponent could make it as long as the memory."""
    try:
        number = Decimal(text)
    except ArithmeticError:
        number = Decimal("NaN")
    exponent = number.as_tuple().exponent
    if len(text) > _MOST_DIGITS or not isinstance(exponent, int) or abs(exponent) > _MOST_DIGITS:
        raise UnsupportedError(f"a number has more than {_MOST_DIGITS} digits")
    return number


def _called(name: str, arguments: list[object]) -> object:
    """Return what a function gives for values of any type and number."""
    try:
        return FUNCTIONS[name](*arguments)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise UnsupportedError(f"the function {name} failed: {error}") from None
    except StopIteration:
        raise UnsupportedError(f"the function {name} found no value") from None


def _size(value: object, most: int) -> int:
    """Return the number of elements in a value and in those of its elements; it stops above `most`."""
    if not isinstance(value, list | dict):
        return 0
    size = 0
    for element in value.values() if isinstance(value, dict) else value:
        size += 1 + _size(element, most - size)
        if size > most:
            break
    return size


def _text(value: object) -> str:
    try:
        return hcl_functions.text_of(value)
    except TypeError as error:
        raise UnsupportedError(str(error)) from None


def _is_number(value: object) -> TypeGuard[int | Decimal]:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _literal(token: str) -> str:
    if token.startswith(("$${", "%%{")):
        return token[1:]

    def unescaped(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "uU" and len(code) > 1:
            number = int(code[1:], 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise UnsupportedError(f"\\{code} is not a character")
            return chr(number)
        if code not in _ESCAPED:
            raise UnsupportedError(f"\\{code} is not an escape of HCL")
        return _ESCAPED[code]

    return _ESCAPE.sub(unescaped, token)


def _heredoc(token: str) -> str:
    marker, *lines = token.rstrip("\n").split("\n")
    body = lines[:-1]
    if any("${" in line or "%{" in line for line in body):
        raise UnsupportedError("a template in a heredoc is not evaluated")
    if marker.startswith("<<-"):
        indent = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
        body = [line[indent:] for line in body]
    return "".join(f"{line}\n" for line in body)


def _typed(text: str, default: object, name: str, where: str) -> object:
    """Return the text of an environment variable with the type of the default."""
    if isinstance(default, str) or default is None:
        return text
    if isinstance(default, bool) and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if _is_number(default) and _NUMBER.fullmatch(text):
        return _number(text)
    raise ImportedFileError(
        f"the environment variable {name} does not have the type of its default",
        where=where,
        hint=f"unset {name}, or set another value",
    )
