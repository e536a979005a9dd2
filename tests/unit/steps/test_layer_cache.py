"""Which images a build made, read off podman's output, and which of them a Dockerfile can still use."""

from pathlib import Path

import pytest

from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.store.catalogue import Cached
from rc_tasks.steps.podman import cache
from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout

DOCKERFILE = """\
ARG VERSION=1
FROM docker.io/library/debian:$VERSION AS tools
RUN one \\
    and more
# a comment
RUN two
FROM tools
COPY a b
"""
IDS = {"docker.io/library/debian:1": "d" * 64}


def node(tmp_path: Path, dockerfile: str) -> ImageNode:
    root = write_checkout(tmp_path / "imgs", {"projects/app/Dockerfile": dockerfile})
    return open_checkout(root, {}).graph.resolve("app")


def keys(tmp_path: Path, dockerfile: str = DOCKERFILE) -> cache.Keys:
    return cache.keys(node(tmp_path, dockerfile), dockerfile, IDS)


def test_there_is_a_key_for_each_instruction(tmp_path: Path) -> None:
    found = keys(tmp_path)
    assert [len(stage) for stage in found] == [3, 2]
    assert len({key for stage in found for key in stage}) == 5


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# a comment", "# another", 5),
        ("RUN one", "RUN other", 1),
        ("RUN two", "RUN --network=none two", 2),
        ("FROM tools\n", "FROM docker.io/library/debian:1\n", 3),
        ("COPY a b", "COPY a c", 4),
        ("VERSION=1", "VERSION=2", 0),
    ],
)
def test_what_stands_below_a_change_has_other_keys(
    tmp_path: Path, old: str, new: str, same: int
) -> None:
    before, after = keys(tmp_path), keys(tmp_path, DOCKERFILE.replace(old, new))
    assert (
        len({key for stage in before for key in stage} & {key for stage in after for key in stage})
        == same
    )


def test_another_base_makes_all_keys_others(tmp_path: Path) -> None:
    other = cache.keys(node(tmp_path, DOCKERFILE), DOCKERFILE, dict.fromkeys(IDS, "e" * 64))
    assert not {*keys(tmp_path)[0], *keys(tmp_path)[1]} & {*other[0], *other[1]}


def test_the_last_image_of_a_stage_is_that_of_a_step_which_has_ended() -> None:
    layers = cache.LayerImages()
    assert layers.last(0) == ""
    for line in OUTPUT.split("\n"):
        layers.read_line(line)
        if line.endswith("RUN two"):
            assert layers.last(0) == "a" * 11
            # What a RUN prints that fails.
            layers.read_line(f"--> {'e' * 11}")
            assert layers.last(0) == "a" * 11
            assert layers.step == cache.BuildStep(0, 3, 3, "RUN two")
        if line.endswith("COPY a b"):
            assert (layers.last(0), layers.last(1)) == ("b" * 11, "")
    # A stage that is built by itself first begins again with the whole.
    layers.read_line(OUTPUT.split("\n", maxsplit=1)[0])
    assert layers.last(0) == ""


class Holding(Podman):
    """A storage that holds these images."""

    def held(self, images: object) -> tuple[str, ...]:
        return tuple(letter * 64 for letter in "abc")


OUTPUT = f"""\
[1/2] STEP 1/3: FROM {"d" * 64} AS tools
[1/2] STEP 2/3: RUN one and more
progress 1%\rprogress 2%
--> Using cache {"a" * 64}
--> {"a" * 11}
[1/2] STEP 3/3: RUN two
--> too short and no number: --> abc
--> {"b" * 11}\r
[2/2] STEP 1/2: FROM {"b" * 64}
[2/2] STEP 2/2: COPY a b
[2/2] COMMIT localhost/app
--> {"c" * 11}
Successfully tagged localhost/app:latest
{"c" * 64}
"""


def test_each_image_has_the_key_of_its_instruction(tmp_path: Path) -> None:
    known = keys(tmp_path)
    made = cache.LayerImages(known)
    for line in OUTPUT.split("\n"):
        made.read_line(line)
    assert made.images(Holding()) == (
        Cached("a" * 64, known[0][1]),
        Cached("b" * 64, known[0][2]),
        Cached("c" * 64, known[1][1]),
    )


def test_what_a_run_prints_like_podman_does_no_harm(tmp_path: Path) -> None:
    made = cache.LayerImages(keys(tmp_path))
    for step in ("9/3", "0/3", f"1/{'9' * 5000}", f"{'9' * 5000}/3"):
        for stage in ("", "[1/2] ", "[0/2] ", "[9/2] ", f"[{'9' * 5000}/2] "):
            made.read_line(f"{stage}STEP {step}: x")
            for letter in "abc":
                made.read_line(f"--> {letter * 11}")
            assert [image.key for image in made.images(Holding())] == ["", "", ""]


def test_when_podman_counts_otherwise_no_key_is_claimed(tmp_path: Path) -> None:
    """ONBUILD of a base adds instructions: then every image counts as useful."""
    made = cache.LayerImages(keys(tmp_path))
    for line in OUTPUT.replace("/3: ", "/4: ").split("\n"):
        made.read_line(line)
    assert [image.key for image in made.images(Holding())][:2] == ["", ""]
