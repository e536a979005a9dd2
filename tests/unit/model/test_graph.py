"""Which image is built on which."""

from pathlib import Path
from textwrap import dedent

import pytest

from rc_tasks.errors import RcError
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.status import State
from tests.support.checkouts import write_checkout


def opened(root: Path, dockerfiles: dict[str, str]) -> Checkout:
    files = {f"projects/{name}/Dockerfile": text for name, text in dockerfiles.items()}
    return open_checkout(write_checkout(root, files), {})


def test_edges_come_from_every_stage_copy_and_mount(tmp_path: Path) -> None:
    checkout = opened(
        tmp_path,
        {
            "base": "FROM scratch\n",
            "tools:1": "FROM docker.io/library/debian:12\n",
            "data": "FROM scratch\n",
            "app:2": (
                "ARG B=base\nFROM localhost/$B AS first\nFROM first AS second\n"
                "COPY --from=tools:1 /x /x\nRUN --mount=type=bind,from=data,target=/d true\n"
            ),
        },
    )
    node = checkout.graph.images["app:2"]
    assert dict(node.local) == {"localhost/base": "base", "tools:1": "tools:1", "data": "data"}
    assert checkout.graph.images["tools:1"].remote == ("docker.io/library/debian:12",)
    order = list(checkout.graph.images)
    assert order.index("app:2") > max(order.index(base) for base in node.bases)
    assert checkout.graph.with_bases(["app:2"]) == tuple(order)


def test_an_alias_and_a_missing_tag_name_the_project(tmp_path: Path) -> None:
    write_checkout(tmp_path, {"projects/base:latest": "-> base:1"})
    checkout = opened(
        tmp_path,
        {
            "base:1": "FROM scratch\n",
            "a": "FROM base:latest\n",
            "b": "FROM base\n",
            "c": "FROM a:latest\n",
        },
    )
    assert checkout.graph.images["a"].bases == ("base:1",)
    assert checkout.graph.images["b"].bases == ("base:1",)
    assert checkout.graph.images["c"].bases == ("a",)
    assert checkout.graph.resolve("base:latest").project.name == "base:1"


def test_a_cycle_breaks_its_members_and_nothing_else(tmp_path: Path) -> None:
    checkout = opened(
        tmp_path,
        {
            "a": "FROM b\n",
            "b": "# x\nFROM c\n",
            "c": "FROM a\n",
            "below": "FROM a\n",
            "free": "FROM scratch\n",
        },
    )
    assert set(checkout.graph.broken) == {"a", "b", "c"}
    assert set(checkout.graph.images) == {"below", "free"}
    text = str(checkout.graph.broken["a"])
    assert " these images are built on one another: " in text
    assert any(cycle in text for cycle in ("a → b → c → a", "b → c → a → b", "c → a → b → c"))
    for line in ("projects/a/Dockerfile:1: FROM b", "projects/b/Dockerfile:2: FROM c"):
        assert f"  | {line}" in text.splitlines()


def test_a_project_can_be_built_on_itself_only_by_mistake(tmp_path: Path) -> None:
    checkout = opened(tmp_path, {"a": "FROM a\n"})
    assert str(checkout.graph.broken["a"]) == (
        "projects/a/Dockerfile:1: a is built on itself: FROM a\n"
        "  next: name another base; one of the same name in a registry is written with its host,\n"
        "        as in docker.io/library/debian:12"
    )


def test_a_near_name_is_told_and_an_unknown_local_one_refused(tmp_path: Path) -> None:
    checkout = opened(
        tmp_path,
        {
            "reasoning_base": "FROM scratch\n",
            "near": "FROM reasoning_bse\n",
            "far": "FROM alpine\n",
            "stage": "FROM scratch AS builder\nFROM scratch\nCOPY --from=biulder /a /a\n",
            "local": "FROM localhost/reasoning_bse\n",
        },
    )
    images = checkout.graph.images
    assert list(checkout.graph.notes([images["near"]])) == [
        "projects/near/Dockerfile:1: reasoning_bse is not an image of this checkout and will be pulled"
        " from a registry; did you mean reasoning_base?",
    ]
    assert not list(checkout.graph.notes([images["far"]]))
    assert list(checkout.graph.notes([images["stage"]])) == [
        "projects/stage/Dockerfile:3: biulder is not an image of this checkout and will be pulled"
        " from a registry; did you mean builder?",
    ]
    assert str(checkout.graph.broken["local"]) == (
        "projects/local/Dockerfile:1: localhost/reasoning_bse is not an image of this checkout,"
        " and localhost/ cannot be pulled\n  next: did you mean reasoning_base?"
    )


def test_what_a_run_mounts_and_project_toml_does_not_name(tmp_path: Path) -> None:
    dockerfile = """
        FROM scratch AS other
        RUN --mount=type=ssh,id=unused true
        FROM scratch
        RUN --mount=type=ssh --mount=type=secret,id=token true
        RUN --mount=type=ssh,id=git --mount=type=ssh,id=forge,required=true \\
            --mount=type=secret,id=key true
    """
    checkout = opened(tmp_path, {"a": dedent(dockerfile).lstrip()})
    toml = tmp_path / "projects/a/project.toml"

    def notes() -> list[str]:
        checkout = open_checkout(tmp_path, {})
        where = "projects/a/Dockerfile:"
        noted = checkout.graph.notes([checkout.graph.images["a"]])
        return [note.removeprefix(where).removesuffix(" does not name it") for note in noted]

    toml.write_text('ssh = ["git"]\nsecrets = ["id=token,env=TOKEN"]\n')
    assert notes() == [
        "4: this RUN gets no ssh default: ssh in projects/a/project.toml",
        "5: this RUN gets no ssh forge: ssh in projects/a/project.toml",
        "5: this RUN gets no secret key: secrets in projects/a/project.toml",
    ]
    toml.write_text(
        'ssh = ["git", "default=k", "forge"]\nsecrets = ["id=token,env=TOKEN", "id=key,src=k"]\n'
    )
    assert notes() == []
    # Neither is an input of the image.
    inputs = Judge(checkout).build_inputs(checkout.graph.images["a"])
    later = open_checkout(tmp_path, {})
    assert Judge(later).build_inputs(later.graph.images["a"]) == inputs


def test_near_names_are_looked_for_only_when_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look compares a name with every project: a thousand of them take minutes."""
    looked = []
    monkeypatch.setattr(
        "rc_tasks.model.graph.graph.near", lambda name, _names: looked.append(name) or ()
    )
    registry = {f"p{number}": "FROM debian:12\n" for number in range(20)}
    checkout = opened(tmp_path, {**registry, "x": "FROM nvcr.io/a/b:1\n", "y": "FROM localhost/z\n"})
    judge = Judge(checkout)
    assert {judge.image(name).state for name in registry} == {State.MISSING}
    assert judge.image("y").reasons == (
        "projects/y/Dockerfile:1: localhost/z is not an image of this checkout, and localhost/ cannot be"
        " pulled",
    )
    assert looked == []
    assert not list(checkout.graph.notes(checkout.graph.images.values()))
    assert looked == ["debian:12"]


def test_a_long_chain_is_no_problem(tmp_path: Path) -> None:
    dockerfiles = {f"i{number}": f"FROM i{number + 1}\n" for number in range(1500)}
    checkout = opened(tmp_path, {**dockerfiles, "i1500": "FROM scratch\n"})
    assert next(iter(checkout.graph.images)) == "i1500"
    assert len(checkout.graph.with_bases(["i0"])) == 1501


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    checkout = opened(tmp_path, {"reasoning:2025.1": "FROM scratch\n"})
    with pytest.raises(RcError) as caught:
        checkout.graph.resolve("reasoning:2025.2")
    assert str(caught.value) == (
        "there is no image named 'reasoning:2025.2' in this checkout\n"
        "  next: did you mean reasoning:2025.1?"
    )


def test_two_directories_of_one_name_are_refused_and_the_rest_is_built(tmp_path: Path) -> None:
    opened(tmp_path, {"base": "FROM scratch\n", "other": "FROM scratch\n"})
    write_checkout(tmp_path, {"base/Dockerfile": "FROM scratch\n"})
    checkout = open_checkout(tmp_path, {})
    assert set(checkout.graph.images) == {"other"}
    assert str(checkout.graph.broken["base"]) == (
        "projects/base: two recipes make an image named base: base and projects/base\n"
        "  next: rename one of them"
    )
