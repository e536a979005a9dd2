"""Which stages an image is made of: podman passes over the others, and nothing is fetched for them."""

import pytest

from rc_tasks.model.dockerfile.parser import Dockerfile, parse


def read(text: str, target: str | None = None, **build_args: str) -> Dockerfile:
    return parse(
        text.encode(), where="Dockerfile", build_args=build_args, architecture="x86_64", target=target
    )


@pytest.mark.parametrize(
    ("text", "target", "needed"),
    [
        ("FROM a", None, {0}),
        ("FROM a AS one\nFROM b", None, {1}),
        ("FROM a AS one\nFROM ONE", None, {0, 1}),
        ("FROM a AS one\nFROM b\nCOPY --from=one /x /", None, {0, 1}),
        ("FROM a\nFROM b\nCOPY --from=0 /x /", None, {0, 1}),
        ("FROM a AS one\nFROM b\nRUN --mount=type=bind,from=One,target=/m true", None, {0, 1}),
        ("FROM a AS one\nFROM b AS two\nCOPY --from=one /x /\nFROM c\nFROM two", None, {0, 1, 3}),
        ("FROM a AS one\nFROM b AS two\nFROM c", "two", {1}),
        ("FROM a AS one\nFROM b\nCOPY --from=docker.io/library/one /x /", None, {1}),
        ("FROM a\nRUN --mount=type=cache,target=/m --mount=type=tmpfs,from=x true", None, {0}),
        ("FROM a AS one\nFROM b AS two\nRUN --mount=from=scratch,target=/m true", None, {1}),
        ("FROM a AS scratch\nFROM b\nCOPY --from=scratch /x /", None, {0, 1}),
    ],
)
def test_the_stages_that_an_image_is_made_of(text: str, target: str | None, needed: set[int]) -> None:
    assert read(text, target).needed == needed


@pytest.mark.parametrize(
    ("flag", "foreign"),
    [
        ("", False),
        ("--platform=linux/amd64", False),
        ("--platform=$BUILDPLATFORM", False),
        ("--platform=$TARGETPLATFORM", False),
        ("--platform=linux/arm64", True),
        ("--platform=linux/${ARCH:-s390x}", True),
    ],
)
def test_a_base_of_another_platform_is_known(flag: str, foreign: bool) -> None:
    (base,) = read(f"ARG ARCH\nFROM {flag} debian").bases
    assert base.other_platform is foreign


def test_a_build_argument_does_not_change_what_this_machine_is() -> None:
    (base,) = read("FROM --platform=$TARGETPLATFORM debian", TARGETPLATFORM="linux/arm64").bases
    assert base.other_platform
