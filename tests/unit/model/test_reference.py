"""Image references, the names that projects may have, and suggestions."""

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.reference import ImageReference, name_problem, near

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("debian", None, "debian", None, None),
        ("reasoning:2025.1", None, "reasoning", "2025.1", None),
        ("library/debian:12", None, "library/debian", "12", None),
        ("localhost/reasoning", "localhost", "reasoning", None, None),
        ("localhost:5000/a/b:c", "localhost:5000", "a/b", "c", None),
        ("nvcr.io/nvidia/pytorch:25.01-py3", "nvcr.io", "nvidia/pytorch", "25.01-py3", None),
        (f"ghcr.io/x/y:1@sha256:{HEX}", "ghcr.io", "x/y", "1", f"sha256:{HEX}"),
        (f"a@sha256:{HEX}", None, "a", None, f"sha256:{HEX}"),
        ("[::1]:5000/a", "[::1]:5000", "a", None, None),
        ("Reg.Example.org/a", "Reg.Example.org", "a", None, None),
        ("a__b-c/d.e:UPPER_", None, "a__b-c/d.e", "UPPER_", None),
        (HEX, None, HEX, None, None),
    ],
)
def test_references_are_taken_apart_and_put_together(
    text: str, registry: str | None, repository: str, tag: str | None, digest: str | None
) -> None:
    found = ImageReference.parse(text)
    assert found == ImageReference(registry, repository, tag, digest)
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "Debian", "a b", "a:", ":a", "a:b:c", "a:.b", "/a", "a/", "a//b", "https://x/y", "a@b"),
        *("a@sha256:12", "-a", "a-", "a..b", "a___b", "a_.b", "ä", "a\n", "a:b\n", "$a", "x.y/", "B/c"),
        *("re_g.io:5/a", f"a:{'t' * 129}", "a:b/c d", "--from", "a'b", "x.y:port/a"),
    ],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        ImageReference.parse(text, where="Dockerfile:3")
    assert caught.value.where == "Dockerfile:3"
    assert repr(text) in caught.value.what


@pytest.mark.parametrize(
    "name",
    [
        *("reasoning", "reasoning:2025.1", "reasoning_base", "a", "1", "a.b-c__d:X_y.z-1", "a--b"),
        *(f"a:{'t' * 128}", "a:latest", "2025.1:v1"),
    ],
)
def test_names_that_a_project_may_have(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("-x", "dash"),
        ("--help", "dash"),
        ("a b", "a space"),
        ("a\nb", "a line break"),
        ("a\n", "a line break"),
        ("a\tb", "a tab"),
        ("a/b", "a slash"),
        ("a=b", "an equals sign"),
        ("it's", "a quote"),
        ('a"b', "a quote"),
        ("a*", "an asterisk"),
        ("a,b", "','"),
        ("größe", "'ö'"),
        ("a\u00b2", "'²'"),
        ("a\x00", "'\\x00'"),
        ("a:b:c", "more than one colon"),
        ("Reasoning", "capital letters"),
        (".a", "both ends"),
        ("a_", "both ends"),
        ("a..b", "between separators"),
        ("a___b", "between separators"),
        (":a", "both ends"),
        ("a:", "without a tag"),
        (f"a:{'t' * 129}", "129 characters"),
        ("a:.b", "starts with a dot or a dash"),
        ("a:-b", "starts with a dot or a dash"),
    ],
)
def test_names_that_a_project_may_not_have(name: str, problem: str) -> None:
    found = name_problem(name)
    assert found is not None
    assert problem in found


CANDIDATES = ["reasoning_base", "reasoning:2025.1", "reasoning:latest", "vision:1", "speech"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reasoning_bse", ("reasoning_base",)),
        ("reasoning", ("reasoning_base", "reasoning:2025.1", "reasoning:latest")),
        ("REASONING:2025.1", ("reasoning:2025.1",)),
        ("vision", ("vision:1",)),
        ("visoin:1", ("vision:1",)),
        ("spech", ("speech",)),
        ("kernel", ()),
        ("", ()),
    ],
)
def test_near_names_come_nearest_first(name: str, expected: tuple[str, ...]) -> None:
    assert near(name, CANDIDATES)[: len(expected)] == expected
    assert bool(near(name, CANDIDATES)) is bool(expected)


def test_no_more_names_than_asked_for() -> None:
    assert len(near("reasoning", CANDIDATES, 1)) == 1
    assert near("a", iter(["a", "a"])) == ("a",)
