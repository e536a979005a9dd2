"""Bake and compose files as recipes: values of expressions, names, hostile files."""

import os
import tempfile
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rc_tasks.engine.upkeep import imports
from rc_tasks.engine.upkeep.imports import FileState
from rc_tasks.errors import ImportedFileError
from rc_tasks.model.config.project_toml import Secret
from rc_tasks.model.imported import bake, compose
from rc_tasks.model.imported.project import (
    ContextKind,
    ImageBuild,
    MatrixBuild,
    NamedContext,
    ProjectRecipe,
    Recipes,
    architectures,
    named_context,
)
from rc_tasks.model.reference import name_problem
from rc_tasks.state.checkout import open_checkout
from tests.support.checkouts import write_checkout


def read(text: str, **environ: str) -> Recipes:
    """The recipes of a bake file."""
    return bake.read({"b.hcl": text}, environ)


def argument(expression: str, before: str = "", **environ: str) -> str | None:
    """The value of a build argument, or None when it is not taken."""
    text = f'{before}\ntarget "app" {{\n  args = {{\n    A = {expression}\n  }}\n}}\n'
    (recipe,) = read(text, **environ).recipes
    return recipe.build.build_args.get("A")


def service(text: str, **environ: str) -> ImageBuild:
    """The build of the only service."""
    (recipe,) = compose.read(f"services:\n  app:\n    build: {text}\n", "c.yaml", environ).recipes
    return recipe.build


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ('"a"', "a"),
        ("1", "1"),
        ("-2", "-2"),
        ("1.10", "1.1"),
        ("1e3", "1000"),
        ("true", "true"),
        ('"${true}"', "true"),
        ('"a${1}b${"c"} ${2} "', "a1bc 2 "),
        ('"$${x} %%{y}"', "${x} %{y}"),
        ('"http://x # y // z /* k */"', "http://x # y // z /* k */"),
        (r'"a\tb\"c\\ \u00e4"', 'a\tb"c\\ ä'),
        ('1 + 2 * 3 == 7 ? "yes" : "no"', "yes"),
        ('!false && (1 >= 2 || "a" != "b")', "true"),
        ('"1" == 1', "false"),
        ("true == 1", "false"),
        ('[for x in ["a", "b"] : upper(x)][1]', "B"),
        ('join(",", [for i, x in ["a", "b"] : "${i}${x}" if x != "a"])', "1b"),
        ('{ for k, v in { a = "b" } : v => k }["b"]', "a"),
        ('{ a = { "b.c" = 1 } }.a["b.c"]', "1"),
        ("<<-EOT\n      a\n        b\n      EOT\n", "a\n  b\n"),
        ('join("-", concat(["a"], split(".", "b.c")))', "a-b-c"),
        ('join(" ", flatten([["a", ["b"]], "c"]))', "a b c"),
        ('join(" ", compact(["a", "", null]))', "a"),
        ('join(" ", distinct(["a", "a", "b"]))', "a b"),
        ('join(" ", slice(["a", "b", "c"], 0, 2))', "a b"),
        ('join(" ", formatlist("%s=%s", ["a", "b"], "c"))', "a=c b=c"),
        ('join(" ", keys(merge({ b = 1 }, { a = 2 })))', "a b"),
        ('join(" ", values({ b = 1, a = 2 }))', "2 1"),
        ('join(" ", range(3))', "0 1 2"),
        ('join(" ", [lookup({ a = 1 }, "a", 2), lookup({}, "a", 2)])', "1 2"),
        ('coalesce(null, "a")', "a"),
        ('element(["a", "b"], 3)', "b"),
        ('format("%s-%d%%", "a", 2)', "a-2%"),
        ('replace("1.2.3", ".", "-")', "1-2-3"),
        ('substr("abcdef", 1, 2)', "bc"),
        ('trimprefix(trimsuffix(" x-y", "-y"), " ")', "x"),
        ('equal("a", "a") && notequal("a", "b") && !contains(["a"], "b")', "true"),
        ('contains(["a"], "a") ? length("ab") : 0', "2"),
    ],
)
def test_an_expression_has_a_value(expression: str, value: str) -> None:
    assert argument(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("timestamp()", "the function timestamp is not evaluated"),
        ('replace("a", "/a+/", "b")', "the function replace failed: regular expressions"),
        ('"%{ if true }a%{ endif }"', "a template with %{…} is not evaluated"),
        ("target.app.tags", "a value of another block (target.…) is not evaluated"),
        ("BAKE_LOCAL_PLATFORM", "BAKE_LOCAL_PLATFORM depends on the machine"),
        ('"a${null}"', "null, a list or an object is no part of a text"),
        ('"a" ? "b" : "c"', "a condition is neither true nor false"),
        ('"a" + 1', "this operation (plus) is not evaluated"),
        ("[1][2]", "there is no element Decimal('2')"),
        ('join("-")("x")', None),
        ("upper(1)", "the function upper failed"),
        ("coalesce(null)", "the function coalesce found no value"),
        ("core::upper::x(1)", "the function core is not evaluated"),
        ('[for x in "a" : x]', "a `for` needs a list or an object"),
        ("<<E\n${A}\nE\n", "a template in a heredoc is not evaluated"),
        (r'"\q"', r"\q is not an escape of HCL"),
        (r'"\ud800"', r"\ud800 is not a character"),
        ("1e999999999", "a number has more than 40 digits"),
        ("9" * 5000, "a number has more than 40 digits"),
        ("range(99999999999)", "the function range failed: more than 1000 elements"),
    ],
)
def test_an_expression_without_a_value_is_named_with_its_line(
    expression: str, reason: str | None
) -> None:
    text = f'target "app" {{\n  args = {{\n    A = {expression}\n    B = "1"\n  }}\n}}\n'
    if reason is None:
        with pytest.raises(ImportedFileError, match="not valid HCL"):
            read(text)
        return
    recipes = read(text)
    assert recipes.recipes[0].build.build_args == {"B": "1"}, "the others are taken"
    (item,) = recipes.not_taken
    assert item.what.startswith(f"a value in args of target 'app' is not taken: {reason}"), item.what
    assert item.where == "b.hcl:2"


@pytest.mark.parametrize(
    ("default", "set_to", "value"),
    [('"a"', "b", "b"), ("1", "2.50", "2.5"), ("false", "TRUE", "true"), ("null", "x", "x")],
)
def test_a_variable_has_the_type_of_its_default(default: str, set_to: str, value: str) -> None:
    assert argument("V", f'variable "V" {{ default = {default} }}', V=set_to) == value


def test_functions_of_the_file_see_their_arguments_and_variables() -> None:
    before = """
        variable "P" { default = "p" }
        function "f" {
          params = [
            a, // the first
            b  # the second
          ]
          variadic_params = rest
          result = "${P}${a}${b}${join("", rest)}"
        }
    """
    assert argument('f("1", "2", ["3", "4"]...)', before) == "p1234"
    with pytest.raises(ImportedFileError, match="the function f has 2 parameters, not 1"):
        argument('f("1")', before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('target "a" {\n  tags = ["${NO}"]\n}', "b.hcl:2: there is no variable NO"),
        ('a = b\nb = a\ntarget "x" {\n  tags = [a]\n}', "b.hcl:2: the variable a depends on itself"),
        ('target "a" { inherits = ["a"] }', "b.hcl:1: target 'a' inherits from itself: a → a"),
        ('target "a" { tags = "x" }', "b.hcl:1: tags is not a list"),
        ('target "a" { tags = [1] }', "b.hcl:1: an element of tags is not a text"),
        ('target "a" { args = [1] }', "b.hcl:1: args is not a table"),
        ('target "a" { context = 5 }', "b.hcl:1: context is not a text"),
        ('target "a" "b" { }', "b.hcl:1: target a b is not a block of a bake file"),
        ('resource "a" { }', "b.hcl:1: resource a is not a block of a bake file"),
        ("target { }", "b.hcl:1: target is not a block of a bake file"),
        ('target "a" {\n  b { }\n}', "b.hcl:2: a target has no block in it"),
        ('target "a" { matrix = { x = ["1"] } }', "b.hcl:1: target 'a' has a matrix and no name"),
        ('target "a" {\n name = "a"\n matrix = { x = [] }\n}', "b.hcl:3: the matrix has 0 combinations"),
        ('target "a" {\n name = "a"\n matrix = { x = ["1", "2"] }\n}', "b.hcl:1: two targets are named"),
        ('target "a" {\n name = "a"\n matrix = [1]\n}', "b.hcl:3: matrix is not a table of lists"),
        ('group "g" { targets = "a" }', "b.hcl:1: targets is not a list"),
        ('variable "V" { default = 1 }\nx = V', None),
        ('target "a" {\n  tags = ["x" "y"]\n}', "b.hcl:2: not valid HCL: unexpected '\"', column 15"),
        ('target "a" {\n  tags = [\n', "b.hcl:3: not valid HCL: the text ends too early"),
    ],
)
def test_a_mistake_in_a_bake_file_has_its_line(text: str, message: str | None) -> None:
    if message is None:
        assert not read(text, V="text").recipes, "nothing has the variable's value"
        return
    with pytest.raises(ImportedFileError) as raised:
        read(text)
    assert raised.value.headline.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the file is empty"),
        ("x", "c.yaml:1: the file is not a table"),
        ("a: 1", "c.yaml: not a compose file: it has no services"),
        ("services: {}\n---\nb: 2", "c.yaml:2: not valid YAML: but found another document"),
        ("services:\n\tx: 1", "c.yaml:2: not valid YAML: found character '\\t'"),
        ("services: [1]", "c.yaml:1: services is not a table"),
        ("services:\n  x:\n    build: [1]", "c.yaml:3: this value is not a text"),
        ("services:\n  x: {build: .}\n  x: {build: .}", "c.yaml:3: services has the key 'x' twice"),
        ("services:\n  x: {build: {args: {A: [1]}}}", "c.yaml:2: this value is not a text"),
        ("services:\n  x: {build: {tags: 1}}", "c.yaml:2: tags is not a list"),
        ("services: {x: {extends: y}}", "c.yaml:1: service 'x' extends 'y', which does not exist"),
        ("services: {x: {extends: x}}", "c.yaml:1: service 'x' extends itself"),
        ("services: {x: {build: $}}", "c.yaml:1: a $ without the name of a variable"),
        ("services: {x: {build: '${A'}}", "c.yaml:1: a variable has no closing brace"),
        ("services: {x: {build: '${A%b}'}}", "c.yaml:1: ${A%b} is no form of a variable"),
        ("services: {x: {build: '${A:?set it}'}}", "c.yaml:1: the variable A is required: set it"),
        (
            "services: {x: {build: {context: ., additional_contexts: {a: 'service:b'}}}}",
            "c.yaml:1: there is no service 'b'",
        ),
        ("services: !!python/object/apply:os.system [x]", "c.yaml:1: services is not a table"),
    ],
)
def test_a_mistake_in_a_compose_file_has_its_line(text: str, message: str) -> None:
    with pytest.raises(ImportedFileError) as raised:
        compose.read(text, "c.yaml", {})
    assert raised.value.headline.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "b.json: not a bake file: the JSON is not an object"),
        ('{"a":\n}', "b.json:2: not valid JSON: Expecting value"),
        ('{"target": {"a": 1}}', "b.json: target 'a' is not an object"),
        ('{"target": 1}', "b.json: target is not an object"),
        ('{"a b": 1}', "b.json: 'a b' cannot be the name of an attribute"),
        ('{"target": {"a": {"tags": ["${NO}"]}}}', "b.json: there is no variable NO"),
        ('{"target": {"a": {"tags": NaN}}}', "b.json: there is no variable NaN"),
        (f'{{"a": {"9" * 5000}}}', "b.json: not valid JSON: Exceeds the limit"),
    ],
)
def test_a_mistake_in_json_is_named(text: str, message: str) -> None:
    with pytest.raises(ImportedFileError) as raised:
        bake.read({"b.json": text}, {})
    assert raised.value.headline.startswith(message)


@pytest.mark.parametrize(
    ("text", "environ", "value"),
    [
        ("$$A $A ${A}", {"A": "1"}, "$A 1 1"),
        ("${A-x}${A:-y}", {"A": ""}, "y"),
        ("${A-x}${A:-y}", {}, "xy"),
        ("${A:-${B:-z}}", {}, "z"),
        ("${A+set}${B:+set}", {"A": "", "B": ""}, "set"),
        ("${A}", {}, ""),
        ("1.10", {}, "1.10"),
        ("true", {}, "true"),
    ],
)
def test_compose_replaces_variables(text: str, environ: dict[str, str], value: str) -> None:
    assert service(f"{{context: ., args: {{X: '{text}'}}}}", **environ).build_args == {"X": value}
    quoted = f"'X={text}'"
    assert service(f"{{context: ., args: [{quoted}]}}", **environ).build_args == {"X": value}


def test_variables_without_a_value_are_named() -> None:
    recipes = compose.read("services: {x: {build: '${A}.'}}", "c.yaml", {})
    assert any("variables without a value are empty: A" in note for note in recipes.notes)


def names(text: str) -> dict[str, tuple[str, ...]]:
    """The projects of a bake file with their aliases."""
    return {recipe.name: recipe.aliases for recipe in read(text).recipes}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('target "A" {}', {"a": ()}),
        ('target "a" { tags = ["h:5000/x/y:1"] }', {"y:1": ()}),
        ('target "a" { tags = ["y@sha256:0", "z:1"] }', {"y": ("z:1",)}),
        ('target "a" { tags = ["", "y:1"] }', {"y:1": ()}),
        ('target "a" { tags = ["x/y:", "z:1"] }', {"z:1": ()}),
        ('target "a" { tags = ["x/y:"] }', {"a": ()}),
        # `app` would hide the group of its versions.
        (
            'target "a" { tags = ["y:1", "y"] }\ntarget "b" { tags = ["y:2"] \n target = "b" }',
            {"y:1": ("y:latest",), "y:2": ()},
        ),
        (
            'target "a" { tags = ["y"] }\ntarget "b" { tags = ["y:1"] \n target = "b" }',
            {"y:latest": (), "y:1": ()},
        ),
        ('target "a" { tags = ["y", "y:1"] }', {"y:latest": ("y:1",)}),
        # One tag for two images.
        (
            'target "a" { tags = ["y:1"] }\ntarget "b" { tags = ["y:1"] \n target = "b" }',
            {"y:1": (), "b": ()},
        ),
        ('target "a" { tags = ["y:1"] }\ntarget "b" { tags = ["y:1", "y:2"] }', {"y:1": ("y:2",)}),
        # A template of others, unless it is in a group or says enough to be an image.
        ('target "a" {}\ntarget "b" { inherits = ["a"] }', {"b": ()}),
        ('target "a" { target = "x" \n tags = ["y"] }\ntarget "b" { inherits = ["a"] \n target = "z" }',
         {"y": (), "b": ()}),
        (
            'group "g" { targets = ["a"] }\ntarget "a" {}\n'
            'target "b" { inherits = ["a"] \n target = "x" }',
            {"a": (), "b": ()},
        ),
    ],
)  # fmt: skip
def test_names_of_projects_and_aliases(text: str, expected: dict[str, tuple[str, ...]]) -> None:
    assert names(text) == expected


def test_later_files_add_to_earlier_ones() -> None:
    first = 'target "a" {\n  target = "x"\n  args = { A = "1", B = "1" }\n}'
    second = 'target "a" {\n  args = { B = "2" }\n}'
    (recipe,) = bake.read({"1.hcl": first, "2.hcl": second}, {}).recipes
    assert (recipe.build.target, recipe.build.build_args) == ("x", {"A": "1", "B": "2"})


@pytest.mark.parametrize(
    ("attributes", "is_matrix"),
    [
        ('tags = ["x/a:${v}"]', True),
        ("", True),
        ('tags = ["x/a:${v}"] \n args = { V = "v${v}.0" }', True),
        # Of these, project.toml cannot have an axis, or not this value.
        ('tags = ["x/a-${v}:1"]', False),
        ('tags = ["x/a:1"] \n target = v', False),
        ('tags = ["x/a:${v}"] \n args = { V = upper(v) }', False),
        ('tags = ["x/a:${v}"] \n args = { V = v == "b" ? "x" : "y" }', False),
        ('tags = ["x/a:${v}"] \n contexts = { c = "docker-image://x:${v}" }', False),
        ('tags = ["x/a:${v}"] \n args = { V = "{v}" }', False),
        ('tags = ["x/a:${v}"] \n args = { "${v}" = "1" }', False),
        ('tags = ["x/a:${v}"] \n args = v == "b" ? { V = "1" } : {}', False),
    ],
)
def test_a_matrix_is_one_project_if_that_says_the_same(attributes: str, is_matrix: bool) -> None:
    text = f'target "a" {{\n  name = "a-${{v}}"\n  matrix = {{ v = ["b", "c"] }}\n  {attributes}\n}}'
    recipes = read(text).recipes
    assert bool(recipes[0].axes) is is_matrix
    assert len(recipes) == (1 if is_matrix else 2)


def test_the_axes_version_and_exclude_are_keys_of_the_matrix() -> None:
    text = 'target "a" {\n  name = "a-${version}"\n  matrix = { version = ["1", "2"] }\n}'
    assert [recipe.name for recipe in read(text).recipes] == ["a-1", "a-2"]


def test_two_matrices_of_one_name_get_projects_of_their_own() -> None:
    block = (
        'target "N" {\n  name = "N-${v}"\n  matrix = { v = ["1"] }\n'
        '  target = "N"\n  tags = ["a:${v}N"]\n}\n'
    )
    recipes = read(block.replace("N", "x") + block.replace("N", "y")).recipes
    assert [(recipe.name, recipe.axes) for recipe in recipes] == [("a:1x", {}), ("a:1y", {})]


def test_platforms_and_contexts() -> None:
    assert architectures(["linux/arm64/v8", "linux/amd64", "local", "linux/386"]) == (
        ("aarch64", "x86_64"),
        ("linux/386",),
    )
    registry, build, directory = ContextKind.REGISTRY, ContextKind.BUILD, ContextKind.DIRECTORY
    assert named_context("docker-image://a/b:1", "target:") == NamedContext(registry, "docker.io/a/b:1")
    assert named_context("docker-image://h.io/b", "target:") == NamedContext(registry, "h.io/b")
    assert named_context("target:a", "target:") == NamedContext(build, "a")
    assert named_context("cwd://a", "target:") == NamedContext(directory, "a")
    assert named_context("git@example.org:a/b", "target:") is None


def doubled(count: int, value: str) -> str:
    """Variables of which each has the one before twice."""
    lines = [f"{value}{n} = [{value}{n - 1}, {value}{n - 1}]" for n in range(1, count)]
    return "\n".join([f'{value}0 = ["x"]', *lines])


ALIASES = "a0: &a0 {build: .}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
HOSTILE = {
    "brackets": "x = " + "[" * 100_000,
    "nested lists": f'target "a" {{ tags = {"[" * 20_000}{"]" * 20_000} }}',
    "heredocs": "x = " + "<<E\n" * 60_000,
    "comments": "/*" * 130_000,
    "templates": 'x = "' + "${" * 100_000,
    "texts": "\n".join([f'v{n} = "${{v{n - 1}}}${{v{n - 1}}}"' for n in range(1, 60)])
    + '\nv0 = "x"\ntarget "a" { tags = [v59] }',
    "lists": doubled(60, "v") + '\ntarget "a" { tags = flatten(v59) }',
    "equal lists": doubled(60, "v")
    + "\n"
    + doubled(60, "w")
    + '\ntarget "a" { tags = v59 == w59 ? [] : [] }',
    "recursion": 'function "f" {\n  params = [x]\n  result = "${f(x)}${f(x)}"\n}\n'
    'target "a" { tags = [f("x")] }',
    "join": f'v = [for i in range(1000) : "{"x" * 4000}"]\ntarget "a" {{ tags = [join("", v, v)] }}',
    "matrix": 'target "a" {\n  name = "${x}${y}${z}"\n'
    "  matrix = { x = range(999), y = range(999), z = range(999) }\n}",
    "inherits": 'target "t0" {}\n'
    + "".join(f'target "t{n}" {{ inherits = ["t{n - 1}", "t{n - 1}"] }}\n' for n in range(1, 40)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bake_file_takes_no_time_and_no_memory(name: str) -> None:
    start_s = time.process_time()
    try:
        recipes = read(HOSTILE[name])
    except ImportedFileError as error:
        assert len(str(error)) < 10_000
    else:
        assert len(recipes.recipes) < 100
    assert time.process_time() - start_s < 20


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "services: " + "[" * 100_000,
        "services: " + "{a: " * 5000,
        f"{ALIASES}services: {{x: *a11}}",
        "services: &s {x: &x {<<: *x, build: &b {<<: *b, context: .}}, <<: *s}",
        "services: {x: {build: {args: {A: '" + "${A:-" * 100_000 + "'}}}}",
        "services: {x: {build: {args: {A: '" + "${A:-" * 2000 + "}" * 2000 + "'}}}}",
        "services: {x: {build: \x01}}",
    ],
)
def test_a_hostile_compose_file_takes_no_time_and_no_memory(text: str) -> None:
    start_s = time.process_time()
    try:
        recipes = compose.read(text, "c.yaml", {})
    except ImportedFileError as error:
        assert len(str(error)) < 10_000
    else:
        assert [recipe.name for recipe in recipes.recipes] == ["x"]
    assert time.process_time() - start_s < 20


WORDS = st.sampled_from(
    [
        *(
            'target "a" {',
            "}",
            "tags",
            "=",
            "[",
            "]",
            '"x:1"',
            "args",
            "{",
            "${",
            '"',
            "\n",
            ",",
            "a",
            "1",
        ),
        *("matrix", "name", "for", "in", ":", "?", "upper(", ")", "<<E", "%{", "\\", "#", "null", "é"),
        *(
            "services:",
            "  build: .",
            "&a",
            "*a",
            "<<:",
            "- ",
            "  x:",
            "$",
            "!t",
            "|",
            "\t",
            "\0",
            "\x1b",
        ),
    ]
)
TEXTS = st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=25).map(" ".join))


@settings(deadline=None, max_examples=150)
@given(TEXTS)
def test_any_text_is_recipes_or_the_error(text: str) -> None:
    for path in ("b.hcl", "b.json"):
        try:
            assert isinstance(bake.read({path: text}, {}), Recipes)
        except ImportedFileError as error:
            assert str(error.where).startswith((path, "b."))
    try:
        assert isinstance(compose.read(text, "c.yaml", {}), Recipes)
    except ImportedFileError as error:
        assert str(error.where).startswith("c.yaml")


PLAIN = st.text(max_size=12).filter(lambda text: not {"\0"} & set(text) and text.isprintable())
NAME = st.from_regex(r"[a-z][a-z0-9]{0,5}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,5})?", fullmatch=True)
BUILDS = st.builds(
    ImageBuild,
    source=PLAIN,
    where=st.just("b.hcl:1"),
    dockerfile=st.sampled_from(["Dockerfile", "sub/../Dockerfile"]),
    context=st.sampled_from([".", "sub", "./sub/.."]),
    target=PLAIN,
    build_args=st.dictionaries(st.from_regex(r"[A-Z]{1,3}", fullmatch=True), PLAIN, max_size=3),
    secrets=st.lists(st.builds(Secret, id=PLAIN, variable=PLAIN, file=PLAIN), max_size=2).map(tuple),
    ssh=st.lists(PLAIN, max_size=2).map(tuple),
    arch=st.sampled_from([(), ("aarch64",), ("aarch64", "x86_64")]),
    contexts=st.dictionaries(
        PLAIN, st.builds(NamedContext, st.sampled_from(ContextKind), PLAIN), max_size=2
    ),
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(NAME, BUILDS, min_size=1, max_size=3))
def test_an_import_twice_is_one_import(builds: dict[str, ImageBuild]) -> None:
    """What was written is TOML that says what the recipe says, and the second import writes nothing."""
    recipes = [
        ProjectRecipe(name, build, (name,)) for name, build in builds.items() if not name_problem(name)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        files = {"Dockerfile": "FROM scratch\n", "sub/Dockerfile": "FROM scratch\n"}
        root = write_checkout(Path(os.path.realpath(scratch)), files)
        first = imports.plan(open_checkout(root, {}), recipes, root, "b.hcl")
        imports.write(open_checkout(root, {}), first)
        assert {file.state for file in first.projects} <= {FileState.NEW}
        for file in first.projects:
            options = tomllib.loads((root / file.directory / "project.toml").read_text())
            assert options.get("build_args", {}) == builds[file.name].build_args
            assert options.get("target", "") == builds[file.name].target
            assert os.path.isfile(root / file.directory / options["dockerfile"])
        second = imports.plan(open_checkout(root, {}), recipes, root, "b.hcl")
        assert {file.state for file in second.projects} <= {FileState.SAME}
        assert len(second.projects) == len(first.projects)


def test_a_template_that_gives_other_builds_is_no_matrix() -> None:
    build = ImageBuild("a", "b.hcl:1", tags=("a:1",), target="x")
    matrix = MatrixBuild(
        "a", "b.hcl:1", {"v": ("1",)}, ImageBuild("a", "b.hcl:1", ("a:{v}",), target="{v}"), (build,)
    )
    assert not matrix.is_right
