"""What ARG has set at a line of a Dockerfile: podman 4.3.1 gave a RUN these values."""

import pytest

from rc_tasks.model.dockerfile import parser
from rc_tasks.model.dockerfile.arguments import arguments_at
from rc_tasks.model.dockerfile.instructions import instructions

HEADING = "ARG G=g\nARG D=${G}d\nFROM scratch AS first\nARG IN_FIRST=1\nENV FROM_ENV=e\n"
STAGE = r"""FROM scratch
ENV BASE=b
ARG G=stage
ARG D
ARG NOVALUE
ARG TARGETARCH=mine
ARG TARGETOS
ARG X=1
ARG X
ARG Y=${UNSET:-d}
ARG P=a
ENV P=e
ARG Q=$P
ENV R=1
ARG R=2
ARG S=$R
ARG CLI=default CLI2
ARG T=$CLI
ARG U="q\"uo" V=a\ b W='$Y'
ENV legacy a  b c
ARG L=$legacy
ARG M=$FROM_IMAGE
ARG Z=
RUN env
ARG LATER=1
"""
VALUES = {
    **{"G": "stage", "D": "gd", "TARGETARCH": "mine", "TARGETOS": "linux", "X": "1", "Y": "d", "P": "a"},
    **{"Q": "e", "R": "2", "S": "1", "CLI": "cli", "CLI2": "cli2", "T": "cli", "U": 'q"uo', "V": "a b"},
    **{"W": "$Y", "L": "a  b c", "M": "i", "Z": ""},
}


def arguments(text: str, line: int, *, inherits: bool = False) -> dict[str, str]:
    build_args = {"CLI": "cli", "CLI2": "cli2", "NOT_DECLARED": "x"}
    dockerfile = parser.parse(
        text.encode(), where="Dockerfile", build_args=build_args, architecture="x86_64"
    )
    return arguments_at(
        line,
        instructions(text.encode(), where="Dockerfile").instructions,
        dockerfile.stages,
        build_args=build_args,
        architecture="x86_64",
        env={"FROM_IMAGE": "i", "P": "e"},
        inherits=inherits,
    )


def test_the_values_are_podmans() -> None:
    text = HEADING + STAGE
    assert arguments(text, text[: text.index("RUN env")].count("\n") + 1) == VALUES


@pytest.mark.parametrize("inherits", [False, True])
def test_a_stage_inherits_arguments_since_podman_5_6(inherits: bool) -> None:
    text = f"{HEADING}FROM first\nARG Y=$FROM_ENV-$IN_FIRST\nRUN env\n"
    expected = {"IN_FIRST": "1", "Y": "e-1"} if inherits else {"Y": "e-"}
    assert arguments(text, 8, inherits=inherits) == expected


def test_above_the_first_stage_nothing_is_set() -> None:
    assert arguments(HEADING, 2) == {}
