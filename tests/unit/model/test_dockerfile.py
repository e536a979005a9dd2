"""What Dockerfiles are built from: stages, bases, arguments, and what is told when one is wrong."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.expansion import ExpandedText, expand
from rc_tasks.model.dockerfile.parser import Dockerfile, parse

FILES = Path(__file__).with_name("dockerfiles")
BUILD_ARGS = {"arg-override": {"BASE": "mine", "TAG": "2", "UNKNOWN": "x"}}

# Every use of an image from outside as LINE:HOW:NAME, the base below the last stage, and whether an
# ENTRYPOINT stands there or below. The architecture is aarch64.
EXPECTED: dict[str, tuple[str, str | None, bool]] = {
    "arg-chain": (
        "4:FROM:registry.example.org/base:1.0",
        "registry.example.org/base:1.0",
        False,
    ),
    "arg-empty-tag": ("2:FROM:base", "base", False),
    "arg-in-stage": (
        "2:FROM:a:1 5:FROM:b:1",
        "b:1",
        False,
    ),
    "arg-many": ("3:FROM:x:1-2-5", "x:1-2-5", False),
    "arg-modifiers": (
        "3:FROM:a:9 "
        "4:FROM:b:x "
        "5:FROM:c:x "
        "6:FROM:d "
        "7:FROM:e:x "
        "8:FROM:f "
        "9:FROM:g "
        "10:FROM:h-x "
        "11:FROM:i:9y "
        "12:FROM:j:9",
        "j:9",
        False,
    ),
    "arg-override": ("3:FROM:mine:2", "mine:2", False),
    "arg-quotes": (
        "4:FROM:img:1 5:FROM:q:1 6:FROM:img:1",
        "img:1",
        False,
    ),
    "bom-directive": ("2:FROM:debian:12", "debian:12", False),
    "bom": ("1:FROM:debian:12", "debian:12", False),
    "continuation-alone": ("1:FROM:a", "a", False),
    "continuation-blank": ("1:FROM:a", "a", False),
    "continuation-blanks-behind": ("1:FROM:a", "a", False),
    "continuation-comment-last": ("1:FROM:a", "a", False),
    "continuation-double": ("1:FROM:a", "a", False),
    "continuation-eof-comment": ("1:FROM:a", "a", False),
    "continuation-eof": ("1:FROM:a", "a", False),
    "continuation-from": ("1:FROM:debian:12", "debian:12", False),
    "continuation-in-word": ("1:FROM:debian:12", "debian:12", False),
    "crlf": (
        "1:FROM:a 10:COPY:c:1",
        "a",
        False,
    ),
    "directive-unknown": ("3:FROM:a", "a", False),
    "empty-value": ("1:FROM:a", "a", False),
    "entrypoint-elsewhere": (
        "1:FROM:a 3:FROM:b",
        "b",
        False,
    ),
    "entrypoint-inherited": ("1:FROM:a", "a", True),
    "escape-after-blank": ("3:FROM:a", "a", False),
    "escape-after-check": ("3:FROM:a:1", "a:1", False),
    "escape-after-syntax": ("3:FROM:a:1", "a:1", False),
    "escape-backtick": ("2:FROM:a", "a", False),
    "escape-too-late": ("3:FROM:a", "a", False),
    "every-instruction": ("1:FROM:a", "a", True),
    "flags": (
        "1:FROM:a 2:MOUNT:x:1 3:COPY:y",
        "a",
        False,
    ),
    "hash-is-no-comment": ("1:FROM:a", "a", False),
    "heredoc-continued": (
        "1:FROM:a 2:MOUNT:tools:1",
        "a",
        False,
    ),
    "heredoc-dash": ("1:FROM:a", "a", False),
    "heredoc-mark-in-text": ("1:FROM:a", "a", False),
    "heredoc-not": ("1:FROM:a", "a", False),
    "heredoc-onbuild": ("1:FROM:a", "a", False),
    "heredoc-quoted": ("1:FROM:a", "a", False),
    "heredoc-run": ("1:FROM:a", "a", False),
    "heredoc-several": ("1:FROM:a", "a", False),
    "heredoc-unbalanced": ("1:FROM:a", "a", False),
    "latin1": ("1:FROM:a", "a", False),
    "localhost": ("1:FROM:localhost/reasoning:2025.1", "localhost/reasoning:2025.1", False),
    "lower-case": ("1:FROM:debian", "debian", True),
    "mixed-case-stages": ("1:FROM:debian", "debian", False),
    "mounts": (
        "1:FROM:a 2:MOUNT:b 2:MOUNT:c:2 2:MOUNT:d",
        "a",
        False,
    ),
    "nested-stages": (
        "1:FROM:outer 5:MOUNT:other:1",
        "outer",
        True,
    ),
    "no-newline-at-end": ("1:FROM:a", "a", False),
    "onbuild": ("1:FROM:a", "a", False),
    "own-name": (
        "1:FROM:tool 2:FROM:later 3:FROM:debian",
        "later",
        False,
    ),
    "platform-args": (
        "1:FROM:img:linux-arm64-none-arm64-linux",
        "img:linux-arm64-none-arm64-linux",
        False,
    ),
    "platform": (
        "2:FROM:golang:1 3:FROM:debian:arm64",
        "debian:arm64",
        False,
    ),
    "registry-forms": (
        "1:FROM:registry.example.org:5000/team/a/b:1.0-rc_1 "
        "2:FROM:ghcr.io/x/y@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef "
        "3:FROM:[::1]:5000/z:1 "
        "4:FROM:a/b__c-d.e",
        "a/b__c-d.e",
        False,
    ),
    "scratch-stages": ("", None, False),
    "scratch": ("2:COPY:busybox:stable", None, False),
    "shell-text": ("1:FROM:a", "a", False),
    "shipped-base": (
        "2:FROM:nvcr.io/nvidia/pytorch:25.01-py3",
        "nvcr.io/nvidia/pytorch:25.01-py3",
        False,
    ),
    "shipped-project": ("1:FROM:reasoning_base", "reasoning_base", True),
    "simple": ("1:FROM:debian:12", "debian:12", False),
    "stages-by-index": (
        "1:FROM:one 3:FROM:two 5:FROM:three",
        "three",
        False,
    ),
    "tabs": ("1:FROM:a", "a", False),
    "target": (
        "1:FROM:a 3:FROM:b 4:COPY:c 5:FROM:d 6:COPY:e",
        "d",
        False,
    ),
    "unicode": ("1:FROM:a", "a", False),
    "values-with-backslash": ("1:FROM:a", "a", False),
}


def read(
    text: str | bytes,
    build_args: Mapping[str, str] | None = None,
    architecture: str = "x86_64",
    target: str | None = None,
) -> Dockerfile:
    return parse(
        text.encode() if isinstance(text, str) else text,
        where="projects/x/Dockerfile",
        build_args=build_args or {},
        architecture=architecture,
        target=target,
    )


def names(dockerfile: Dockerfile) -> list[str]:
    return [base.name for base in dockerfile.bases]


@pytest.mark.parametrize("name", EXPECTED)
def test_bases(name: str) -> None:
    text = (FILES / f"{name}.Dockerfile").read_bytes()
    found = read(text, BUILD_ARGS.get(name), "aarch64")
    uses, final_base, sets_entrypoint = EXPECTED[name]
    assert [f"{base.line}:{base.via}:{base.name}" for base in found.bases] == uses.split()
    assert (found.final_base.name if found.final_base else None) == final_base
    assert found.sets_entrypoint is sets_entrypoint


def test_every_file_is_expected_to_give_something() -> None:
    files = {path.name.removesuffix(".Dockerfile") for path in FILES.iterdir()}
    assert files == EXPECTED.keys()


def test_stages() -> None:
    found = read((FILES / "nested-stages.Dockerfile").read_bytes())
    assert [(s.index, s.name, s.line, s.parent, s.sets_entrypoint) for s in found.stages] == [
        (0, "a", 1, None, True),
        (1, "b", 3, 0, False),
        (2, "c", 4, 1, False),
        (3, "", 6, 2, False),
    ]
    assert found.final is found.stages[3]
    assert [base.stage for base in found.bases] == [0, 2]


@pytest.mark.parametrize(
    ("target", "bases", "name", "final_base", "sets_entrypoint"),
    [
        (None, ["a", "b", "c", "d", "e"], "", "d", False),
        ("", ["a", "b", "c", "d", "e"], "", "d", False),
        ("first", ["a"], "first", "a", True),
        # As written, since podman's --target minds capital letters.
        ("second", ["a", "b", "c"], "Second", "b", False),
        ("2", ["a", "b", "c", "d", "e"], "", "d", False),
    ],
)
def test_target(
    target: str | None, bases: list[str], name: str, final_base: str, sets_entrypoint: bool
) -> None:
    found = read((FILES / "target.Dockerfile").read_bytes(), target=target)
    assert names(found) == bases
    assert found.final.name == name
    assert found.final_base is not None
    assert found.final_base.name == final_base
    assert found.sets_entrypoint is sets_entrypoint


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("x86_64", "i:linux-amd64-amd64-"),
        ("aarch64", "i:linux-arm64-arm64-"),
        ("armv7l", "i:linux-arm-arm-v7"),
        ("riscv64", "i:linux-riscv64-riscv64-"),
    ],
)
def test_platform_arguments_follow_the_machine(architecture: str, expected: str) -> None:
    text = "FROM i:$TARGETOS-$TARGETARCH-$BUILDARCH-$TARGETVARIANT"
    assert names(read(text, architecture=architecture)) == [expected]


def test_platform_arguments_can_be_overridden() -> None:
    assert names(read("FROM i:$TARGETARCH", {"TARGETARCH": "arm64"})) == ["i:arm64"]
    assert names(read("ARG TARGETARCH\nFROM i:$TARGETARCH")) == ["i:amd64"]
    assert names(read("ARG TARGETARCH=mine\nFROM i:$TARGETARCH")) == ["i:mine"]


def test_build_args_win_over_defaults_and_count_only_where_declared() -> None:
    text = "ARG A=1\nARG B=$A\nARG B\nFROM x:$A-$B-${C:-unset}"
    assert names(read(text)) == ["x:1-1-unset"]
    assert names(read(text, {"A": "2", "C": "3"})) == ["x:2-2-unset"]
    assert names(read(text, {"B": "4"})) == ["x:1-4-unset"]


def test_a_variable_without_value_matters_only_where_it_is_used() -> None:
    text = "ARG A\nARG B=$A/x\nARG C=${A:-c}\nFROM $C\nRUN echo $B $UNKNOWN"
    assert names(read(text)) == ["c"]


# The text, the line that the error names, and words that it must have.
WRONG: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "empty": ("", 1, ("has no FROM",)),
    "blank": ("\n \n", 1, ("has no FROM",)),
    "only comments": ("# FROM a\n\n# b\n", 1, ("has no FROM",)),
    "only arguments": ("# x\nARG A=1\n", 2, ("has no FROM",)),
    "RUN above FROM": ("ARG A\n\nRUN x\nFROM a\n", 3, ("RUN", "above the first FROM", "only ARG")),
    "unknown instruction": ("FROM a\nCOYP a b\n", 2, ("COYP is not an instruction", "mean COPY")),
    "misspelt FROM": ("FORM a\n", 1, ("FORM is not an instruction", "mean FROM")),
    "a bare command": ("FROM a\nRUN x\napt-get install y\n", 3, ("APT-GET", "RUN before it")),
    "line after a lost continuation": (
        "FROM a\nRUN one && \\\\\n    two\n",
        3,
        ("TWO is not an instruction",),
    ),
    "FROM without image": ("FROM\n", 1, ("FROM names no image",)),
    "FROM without AS": ("FROM a b\n", 1, ("2 words",)),
    "FROM with AS and no name": ("FROM a AS\n", 1, ("2 words",)),
    "FROM with four words": ("FROM a AS b c\n", 1, ("4 words",)),
    "FROM with a strange flag": ("FROM --pull=x a\n", 1, ("--pull", "--platform")),
    "FROM of capital letters": ("FROM Debian:12\n", 1, ("'Debian:12'", "capital letters")),
    "FROM of a URL": ("FROM https://x/y\n", 1, ("'https://x/y'", "image reference")),
    "FROM of a broken tag": ("FROM a::b\n", 1, ("'a::b'",)),
    "unset variable": ("FROM a:$TAG\n", 1, ("TAG has no value", "FROM a:$TAG", "ARG TAG=VALUE")),
    "unset variable with build arg hint": ("ARG TAG\nFROM a:${TAG}\n", 2, ("TAG", "build_args")),
    "unset variable in a chain": ("ARG A\nARG B=$A/x\n\nFROM $B\n", 4, ("variable A has no value",)),
    "misspelt variable": ("ARG VERSION=1\nFROM a:$VERSON\n", 2, ("did you mean VERSION?",)),
    "ARG below FROM": ("FROM a\nARG V=1\nFROM b:$V\n", 3, ("V has no value", "below a FROM")),
    "unset platform": ("FROM --platform=$P a\n", 1, ("P has no value",)),
    "empty after all": ("ARG A=\nFROM $A\n", 2, ("is empty",)),
    "unfinished substitution": ("FROM a:${V\n", 1, ("} is missing",)),
    "odd substitution": ("ARG V=1\nFROM a:${V##x}\n", 2, ("${V##x}", "${NAME:-DEFAULT}")),
    "required variable": ("FROM a:${V:?unset}\n", 1, ("V: unset",)),
    "open quote": ('FROM "a\n', 1, ('closing "',)),
    "ARG without name": ("ARG\nFROM a\n", 1, ("ARG names no variable",)),
    "ARG with a blank name": ("ARG =x\nFROM a\n", 1, ("names no variable",)),
    "stage twice": ("FROM a AS x\nFROM b AS y\nFROM c AS X\n", 3, ("stage X", "line 1")),
    "stage of digits": ("FROM a AS 1x\n", 1, ("'1x'", "start with a letter")),
    "stage of signs": ("FROM a AS x/y\n", 1, ("'x/y'",)),
    "unknown stage index": ("FROM a\nFROM b\nCOPY --from=7 x y\n", 3, ("no stage 7",)),
    "own stage index": ("FROM a\nCOPY --from=0 x y\n", 2, ("no stage 0",)),
    "later stage": (
        "FROM a\nCOPY --from=z x y\nFROM b AS z\nCOPY --from=0 x y\n",
        2,
        ("stage z", "line 3"),
    ),
    "mistake in a stage that is copied from": (
        "FROM a:$T AS x\nFROM a\nCOPY --from=x a b\n",
        1,
        ("T has no value",),
    ),
    "mistake in a stage that is mounted": (
        "FROM a AS x\nRNU y\nFROM a\nRUN --mount=from=0,target=/x y\n",
        2,
        ("RNU", "mean RUN"),
    ),
    "mistake in a stage that is built on": ("FROM a AS x y\nFROM a AS z\nBAD\nFROM Z\n", 3, ("BAD",)),
    "stage twice, neither needed": ("FROM a AS x\nFROM b AS x\nFROM c\n", 2, ("line 1",)),
    "own stage": ("FROM a AS z\nRUN --mount=from=Z,target=/x y\n", 2, ("stage Z", "line 1")),
    "variable in COPY --from": ("ARG A=b\nFROM a\nCOPY --from=$A x y\n", 3, ("variables", "FROM $A AS")),
    "variable in a mount": (
        "FROM a\nRUN --mount=from=x:${B},target=/x y\n",
        2,
        ("variables", "AS NAME"),
    ),
    "empty COPY --from": ("FROM a\nCOPY --from= x y\n", 2, ("names no image or stage",)),
    "COPY --from without value": ("FROM a\nCOPY --from x y\n", 2, ("names no image or stage",)),
    "ADD --from": ("FROM a\nADD --from=b x y\n", 2, ("COPY --from",)),
    "malformed COPY --from": ("FROM a\nCOPY --from=B/c x y\n", 2, ("'B/c'",)),
    "open heredoc": ("FROM a\nRUN <<EOF\nx\n EOF\n", 2, ("<<EOF has no end", "alone on a line")),
    "second heredoc open": ("FROM a\nCOPY <<A <<'B C' /x\nA\nb\n", 2, ("<<B C has no end",)),
    "bad escape": ("# escape=x\nFROM a\n", 1, ("'x'", "escape")),
    "directive twice": ("# syntax=a\n# syntax=b\nFROM a\n", 2, ("second time", "line 1")),
    "ONBUILD of nothing": ("FROM a\nONBUILD\n", 2, ("ONBUILD cannot trigger nothing",)),
    "ONBUILD ONBUILD": ("FROM a\nONBUILD ONBUILD RUN x\n", 2, ("cannot trigger ONBUILD",)),
    "ONBUILD FROM": ("FROM a\nONBUILD from x\n", 2, ("cannot trigger FROM",)),
    "ONBUILD of an unknown instruction": ("FROM a\nONBUILD RNU x\n", 2, ("RNU", "mean RUN")),
    "line numbers below heredocs": ("FROM a\nRUN <<E\n1\n2\nE\nRUN \\\n\n x\nBAD\n", 9, ("BAD",)),
    "line numbers with CRLF": ("FROM a\r\nRUN x \\\r\n\r\n y\r\nBAD\r\n", 5, ("BAD",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told_with_their_line(case: str) -> None:
    text, line, words = WRONG[case]
    with pytest.raises(DockerfileError) as caught:
        read(text)
    assert caught.value.where == f"projects/x/Dockerfile:{line}"
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


def test_an_instruction_that_is_not_utf8_is_told_with_its_line() -> None:
    """podman 4.3.1 makes U+FFFD of each other byte, in commands, variables and labels alike."""
    with pytest.raises(DockerfileError, match="Dockerfile:3: this instruction is not UTF-8") as caught:
        read(b"FROM a\n# caf\xe9\nRUN echo \\\n  caf\xe9 <<\xe9\n")
    assert "save the file as UTF-8" in str(caught.value)


def test_bytes_that_are_not_utf8_may_stand_in_comments_and_heredocs() -> None:
    text = (
        b"# \xff=\xe9\nFROM a\n# \xe9\nRUN x \\\n # \xe9\n  y\nCOPY <<E /f\n\xe9\nE\nCOPY --from=b x y"
    )
    assert [(base.name, base.line) for base in read(text).bases] == [("a", 2), ("b", 10)]
    assert read(text).notes == ()


@pytest.mark.parametrize(
    ("text", "base", "note"),
    [
        ("FROM b:1${SUFFIX}", "b:1", "SUFFIX has no value in FROM b:1${SUFFIX}, which is taken as b:1"),
        ("ARG R\nFROM $R/b", None, "R has no value"),
        ("ARG R\nFROM ${R}b", "b", "R has no value in FROM ${R}b, which is taken as b"),
        ("ARG A=1$B\nFROM b:$A", "b:1", "B has no value in FROM b:$A, which is taken as b:1"),
        ("FROM b AS x-1\nFROM x-1$A", "b", "A has no value in FROM x-1$A, which is taken as x-1"),
    ],
)
def test_a_variable_without_value_leaves_what_is_around_it(
    text: str, base: str | None, note: str
) -> None:
    if base is None:
        with pytest.raises(DockerfileError, match=note):
            read(text)
        return
    found = read(text)
    line = len(text.splitlines())
    assert found.final_base is not None
    assert found.final_base.name == base
    assert [each.partition(": variable ")[::2] for each in found.notes] == [
        (f"projects/x/Dockerfile:{line}", note)
    ]


@pytest.mark.parametrize(
    ("stage", "line", "mistake"),
    [
        ("FROM $NONE AS x", 1, "variable NONE has no value in FROM $NONE"),
        ("FROM Debian AS x", 1, "'Debian' is not an image reference"),
        ("FROM b AS x\nRNU y", 2, "RNU is not an instruction"),
        ("FROM b AS x y", 1, "FROM has 4 words"),
        ("FROM b AS 1x", 1, "'1x' cannot be the name of a stage"),
        ("FROM --pull=x b", 1, "FROM does not know --pull"),
        ("FROM b\nCOPY --from=7 x y", 2, "there is no stage 7"),
        ("FROM b\nCOPY --from=last x y", 2, "stage last begins in line 3"),
        ("FROM b\nCOPY --from=$X x y", 2, "COPY --from=$X: variables cannot be used"),
        ("FROM b:${A:?none}", 1, "FROM b:${A:?none}: A: none"),
    ],
)
def test_a_mistake_in_a_stage_that_is_not_needed_is_only_noted(
    stage: str, line: int, mistake: str
) -> None:
    for text in (f"{stage}\nFROM a AS last\nRUN z\n", f"FROM a AS last\n{stage}\n"):
        if "last begins" in mistake and not text.startswith(stage):
            continue
        found = read(text, target="last")
        assert found.final_base is not None
        assert (found.final_base.name, found.final.name) == ("a", "last")
        (note,) = found.notes
        assert note.startswith(f"projects/x/Dockerfile:{line + (not text.startswith(stage))}: {mistake}")
        assert note.endswith("; podman skips this stage")


def test_a_build_arg_without_declaration_is_told() -> None:
    with pytest.raises(DockerfileError, match=r"project\.toml sets it, so declare it: `ARG TAG`"):
        read("FROM a:$TAG", {"TAG": "1"})


def test_an_unknown_target_is_told_with_the_stages() -> None:
    text = (FILES / "target.Dockerfile").read_bytes()
    with pytest.raises(DockerfileError, match="the stages are: first, Second, 2"):
        read(text, target="thrid")


VARIABLES = {"V": "9", "EMPTY": "", "QUOTED": "a'b", "DOLLAR": "$V"}
WORDS = (
    "plain",
    "$V",
    "${V}x$V-",
    "a$EMPTY.b",
    "${V:-d}${V-d}${V:+d}${V+d}",
    "${EMPTY:-d}/${EMPTY-d}/${EMPTY:+d}/${EMPTY+d}",
    "${NONE:-d}/${NONE-d}/${NONE:+d}/${NONE+d}",
    "${NONE:-${V}}${NONE:-${EMPTY:-${V}x}}",
    "${NONE:-$V$V}",
    '${NONE:-"a}b"}',
    "${NONE:-'$V}'}",
    "${NONE:-a\\}b}",
    "'$V'",
    '"$V"',
    '"a\\"b\\$V\\\\"',
    '"a\\b"',
    "\\$V",
    "a\\\\b\\c",
    "'a\"b'\"c'd\"",
    '"${NONE:-$V}"',
    "$DOLLAR$QUOTED",
    "$Va:$V",
    "cost$",
    "a$.b",
    "größe$V",
)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_words_are_expanded_as_a_shell_does() -> None:
    script = "".join(f"printf '%s\\0' {word}\n" for word in WORDS)
    done = subprocess.run(("bash", "-c", script), env=VARIABLES, capture_output=True, check=True)
    expected = dict(zip(WORDS, done.stdout.decode().split("\0"), strict=False))

    def lookup(name: str) -> ExpandedText | None:
        return ExpandedText(VARIABLES[name]) if name in VARIABLES else None

    assert {word: expand(word, "\\", lookup).text for word in WORDS} == expected


def test_the_escape_directive_counts_within_words() -> None:
    text = "# escape=`\nARG A=a`\\b\nFROM x`:${A:+1}\n"
    assert names(read(text)) == ["x:1"]
