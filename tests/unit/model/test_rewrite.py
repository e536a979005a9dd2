"""The Dockerfile as podman is given it: what is put into it, what that depends on, and what stays."""

import re
from collections.abc import Mapping

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile import parser, triggers
from rc_tasks.model.dockerfile.instructions import decode, encode, instructions
from rc_tasks.model.dockerfile.parser import Overlooked
from rc_tasks.model.dockerfile.rewrite import Rewritten, rewrite

ID = "a" * 64
OTHER = "b" * 64
IDS = {"base": ID, "tools:1": OTHER, "registry.example/base:1": ID}
FILES = {"": "whole", "f": "1", "d": "2"}
# A mark is a digest, whose value no test knows.
MARK = re.compile(r"--mount=type=secret,id=reads-[0-9a-f]{16} |\$\{rc_[0-9a-f]{16}\}")


def rewritten(
    text: str,
    *,
    build_args: Mapping[str, str] | None = None,
    files: Mapping[str, str] = FILES,
    ids: Mapping[str, str] = IDS,
    target: str | None = None,
    stages: Mapping[int, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Rewritten:
    parsed = parser.parse(
        encode(text),
        where="Dockerfile",
        build_args=build_args or {},
        architecture="x86_64",
        target=target,
    )
    return rewrite(
        encode(text),
        instructions(encode(text), where="Dockerfile"),
        parsed,
        architecture="x86_64",
        ids=ids,
        build_args=build_args or {},
        context_digest=lambda name, path: files[name + path],
        stages=stages or {},
        labels=labels or {},
    )


def shown(text: str, **options: object) -> str:
    """The Dockerfile for podman, each mark as an @."""
    return MARK.sub("@", rewritten(text, **options).text)


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("FROM base", f"FROM {ID}"),
        ("from base as Build", f"FROM {ID} AS Build"),
        ("FROM  \\\n  base \\\n  AS x\nRUN y", f"FROM {ID} AS x\n\n\nRUN y"),
        ("ARG T=1\nFROM registry.example/base:${T}", f"ARG T=1\nFROM {ID}"),
        ("FROM --platform=$BUILDPLATFORM base", f"FROM {ID}"),
        ("FROM --platform=linux/riscv64 far/away", "FROM --platform=linux/riscv64 far/away"),
        ("ARG P=a\nFROM --platform=linux/riscv64 $P/b", "ARG P=a\nFROM --platform=linux/riscv64 a/b"),
        ("FROM scratch\nCOPY f /", "FROM scratch\nCOPY f /"),
        # After its definition a stage hides the image of its name.
        ("FROM base AS base\nRUN x\nFROM base", f"FROM {ID} AS base\nRUN x\nFROM base"),
        ("ARG S=one\nFROM base AS One\nFROM ${S}", f"ARG S=one\nFROM {ID} AS One\nFROM One"),
        ("# escape=`\nFROM base `\n  AS x", f"# escape=`\nFROM {ID} AS x\n"),
        ("FROM base\r\nRUN x\r\n", f"FROM {ID}\nRUN x\r\n"),
    ],
)
def test_a_base_is_given_by_its_id(written: str, given: str) -> None:
    assert rewritten(written).text == given
    assert rewritten(written).text.count("\n") == written.count("\n")


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("COPY --from=build /a /b", "COPY --from=Build /a /b"),
        ("COPY --chown=1 --from=BUILD --chmod=1 a b", "COPY --chown=1 --from=Build --chmod=1 a b"),
        ("copy \\\n  --from=build \\\n a b", "copy \\\n  --from=Build \\\n a b"),
        ("COPY --from=Build a b", "COPY --from=Build a b"),
        ("COPY --from=0 a b", "COPY --from=0 a b"),
        ("COPY --from=tools:1 a b", "COPY --from=tools:1 a b"),
        ("COPY a --from=build", "COPY a --from=build"),
    ],
)
def test_a_stage_has_the_capitals_of_its_definition(written: str, given: str) -> None:
    """podman tells capitals apart, BuildKit does not."""
    text = "FROM base AS Build\nRUN x\nFROM base\nCOPY --from=0 x y\n"
    assert rewritten(text + written).text == text.replace("base", ID) + given


@pytest.mark.parametrize(
    ("written", "given"),
    [
        pytest.param("FROM base\nRUN x\n", f"FROM {ID}\nRUN x\n\nLABEL @", id="below all"),
        pytest.param("FROM base", f"FROM {ID}\nLABEL @", id="without a line's end"),
        pytest.param("FROM base\nRUN x \\", f"FROM {ID}\nRUN x \nLABEL @", id="a line that goes on"),
        pytest.param(
            "FROM base\nRUN x && \\ \n # no\n\n y \\\r\n\n# z\n",
            f"FROM {ID}\nRUN x && \\ \n # no\n\n y \n\n# z\n\nLABEL @",
            id="with comments",
        ),
        pytest.param(
            "# escape=`\nFROM base\nRUN c:\\ `",
            f"# escape=`\nFROM {ID}\nRUN c:\\ \nLABEL @",
            id="escape",
        ),
        pytest.param(
            "FROM base\nRUN <<E\nx \\\nE", f"FROM {ID}\nRUN <<E\nx \\\nE\nLABEL @", id="here-document"
        ),
    ],
)
def test_labels_stand_below_the_last_instruction(written: str, given: str) -> None:
    label = r'"a\"\$b"="c\\d"'
    assert rewritten(written, labels={'a"$b': "c\\d"}).text == given.replace("@", label)


def test_labels_stand_at_the_end_of_the_target() -> None:
    text = "FROM base AS one\nRUN x\n\nFROM one AS two\nRUN \\\n y \\"
    assert (
        rewritten(text, target="one", labels={"a": "1", "b": "2"}).text
        == f'FROM {ID} AS one\nRUN x\n\nLABEL "a"="1" "b"="2"\nFROM scratch\n\n'
    )


def test_a_stage_that_is_not_needed_is_empty() -> None:
    """podman 4.3.1 ends in a panic at the COPY, and takes the heredoc's text for instructions."""
    text = "FROM base AS unused\nCOPY --from=7 a b\n# c\nRUN <<E\nFROM x\nE\nFROM base\nRUN y\nFROM x"
    expected = f"FROM scratch\n\n\n\n\n\nFROM {ID}\nRUN y\nFROM scratch"
    assert rewritten(text, target="1").text == expected


def test_bytes_that_are_not_utf8_stay_as_they_are() -> None:
    text = b"FROM base\n# caf\xe9\nRUN x \\\n # \xff\n y\nCOPY <<E /f\n\xe9\nE\n"
    given = rewritten(decode(text)).text
    assert encode(given) == text.replace(b"base", ID.encode())


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("RUN --mount=type=bind,source=f,target=/f x", "RUN --mount=type=bind,source=f,target=/f @x"),
        (
            "  run \\\n --mount=source=f,target=/f \\\n x",
            "  run \\\n --mount=source=f,target=/f \\\n @x",
        ),
        ("RUN --mount=from=tools:1,target=/t x", "RUN --mount=from=tools:1,target=/t @x"),
        ("RUN --mount=type=cache,from=tools:1 x", "RUN --mount=type=cache,from=tools:1 @x"),
        ("RUN --mount=type=cache,target=/t x", "RUN --mount=type=cache,target=/t x"),
        ("RUN --mount=type=tmpfs,target=/t x", "RUN --mount=type=tmpfs,target=/t x"),
        ("RUN --mount=type=secret,id=t x", "RUN --mount=type=secret,id=t x"),
        ("RU\\\nN --mount=target=/f,\\\nsource=f  x", "RU\\\nN --mount=target=/f,\\\nsource=f  @x"),
        ("RUN --mount=target=/f \\\n\n # y\n  x", "RUN --mount=target=/f \\\n\n # y\n  @x"),
        ("RUN --mount=target=/f <<EOF\nx\nEOF", "RUN --mount=target=/f @<<EOF\nx\nEOF"),
        ("RUN x --mount=type=bind", "RUN x --mount=type=bind"),
    ],
)
def test_a_run_that_reads_through_a_mount_is_marked(written: str, given: str) -> None:
    assert shown(f"FROM base\n{written}") == f"FROM {ID}\n{given}"


def test_a_stage_that_is_mounted_is_mounted_as_an_image() -> None:
    """podman 4.3 takes a number for the beginning of an image ID."""
    text = "FROM base\nRUN a\nFROM base AS Two\nRUN b\nFROM base\n"
    run = "RUN --mount=from=0,target=/f --mount=target=/a,from=two --mount=from=tools:1 x from=0"
    assert shown(text + run, stages={0: OTHER, 1: ID}) == (
        f"FROM {ID}\nRUN a\nFROM {ID} AS Two\nRUN b\nFROM {ID}\n"
        "RUN --mount=from=rc-stage-0,target=/f --mount=target=/a,from=rc-stage-1"
        " --mount=from=tools:1 @x from=0"
    )
    assert rewritten(text + run, stages={0: OTHER}).marks != rewritten(text + run, stages={0: ID}).marks


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("ENV X=$V", "ENV X=@$V"),
        ("ENV X=\"a ${V}\" Y='$V' Z=\\$V", "ENV X=\"a @${V}\" Y='$V' Z=\\$V"),
        ("ENV X=it\\'s$V", "ENV X=it\\'s@$V"),
        ('ENV X="it\'s $V"', 'ENV X="it\'s @$V"'),
        ("ENV X=${V:-${V}}", "ENV X=@${V:-@${V}}"),
        ("ENV X=1 \\\n  # of $V\n  Y=$V", "ENV X=1 \\\n  # of $V\n  Y=@$V"),
        ("COPY --chown=$V f /opt/$V/", "COPY --chown=@$V f /opt/@$V/"),
        ('COPY ["f", "/$V"]', 'COPY ["f", "/@$V"]'),
        ("ADD f /$V", "ADD f /@$V"),
        ("LABEL l=$V", "LABEL l=@$V"),
        ("WORKDIR /$V", "WORKDIR /@$V"),
        ("USER $V", "USER @$V"),
        ("EXPOSE $V", "EXPOSE @$V"),
        ("VOLUME /$V", "VOLUME /@$V"),
        ("STOPSIGNAL $V", "STOPSIGNAL @$V"),
        # The shell replaces these, and podman's cache knows their values.
        ("RUN echo $V", "RUN echo $V"),
        ("CMD echo $V", "CMD echo $V"),
        ("ENTRYPOINT echo $V", "ENTRYPOINT echo $V"),
        ("ENV PATH=/x:$PATH", "ENV PATH=/x:$PATH"),
        ("COPY <<EOF /x\n$V\nEOF", "COPY <<EOF /x\n$V\nEOF"),
        ("ONBUILD ENV X=$V", "ONBUILD ENV X=$V"),
    ],
)
def test_a_variable_of_arg_is_marked_where_podman_replaces_it(written: str, given: str) -> None:
    assert shown(f"FROM base\nARG V=1\n{written}") == f"FROM {ID}\nARG V=1\n{given}"


def test_podman_escapes_with_the_backslash_whatever_the_directive_says() -> None:
    text = "# escape=`\nFROM base\nARG V=1\nENV X=\\$V Y=`$V \\\\$V Z=C:\\$V `\n  W=$V"
    assert shown(text) == text.replace("base", ID).replace("Y=`$V", "Y=`@$V").replace(
        "\\\\$V", "\\\\@$V"
    ).replace("W=$V", "W=@$V")


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("FROM base\nRUN --mount=source=f,target=/f x", {"files": FILES | {"f": "new"}}),
        ("FROM base\nRUN --mount=target=/f x", {"files": FILES | {"": "new"}}),
        ("FROM base\nARG N=f\nRUN --mount=source=$N,target=/f x", {"files": FILES | {"": "new"}}),
        ("FROM base\nRUN --mount=from=tools:1,target=/t x", {"ids": IDS | {"tools:1": "c" * 64}}),
        ("FROM base\nARG V\nENV X=$V", {"build_args": {"V": "2"}}),
    ],
)
def test_another_input_is_another_mark(text: str, change: dict[str, object]) -> None:
    before = {"build_args": {"V": "1"}} if "build_args" in change else {}
    assert rewritten(text, **before).marks != rewritten(text, **change).marks
    assert rewritten(text, **before).marks == rewritten(text, **before).marks


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("ARG V=1\nFROM base\nARG V\nENV X=$V", "ARG V=2\nFROM base\nARG V\nENV X=$V", True),
        ("FROM base\nARG V=1\nENV X=$V", "FROM base\nARG V=2\nENV X=$V", True),
        ("FROM base\nARG A=1\nARG V=$A\nENV X=$V", "FROM base\nARG A=2\nARG V=$A\nENV X=$V", True),
        ("FROM base AS p\nARG V=1\nFROM p\nENV X=$V", "FROM base AS p\nARG V=2\nFROM p\nENV X=$V", True),
        ("FROM base\nARG V=1 W=1\nENV X=$V", "FROM base\nARG V=1 W=2\nENV X=$V", False),
    ],
)
def test_marks_follow_what_is_read_and_nothing_else(old: str, new: str, changes: bool) -> None:
    assert (rewritten(old).marks != rewritten(new).marks) is changes


def test_the_marks_and_names_are_known_for_showing() -> None:
    found = rewritten("FROM base\nARG V=1\nENV X=$V\nRUN --mount=source=f,target=/f x")
    text = found.text
    for mark, written in found.marks.items():
        text = text.replace(mark, written)
    assert text == f"FROM {ID}\nARG V=1\nENV X=$V\nRUN --mount=source=f,target=/f x"
    assert found.bases == {ID: "base"}


@pytest.mark.parametrize(
    ("text", "overlooked"),
    [
        ("FROM base\nRUN --mount=source=f,target=/f x", [(Overlooked.SOURCE, 2)]),
        ("FROM base\nRUN --mount=from=tools:1,target=/f x", [(Overlooked.SOURCE, 2)]),
        ("FROM base AS s\nFROM base\nRUN --mount=from=s,target=/f x", [(Overlooked.STAGE, 3)]),
        ("FROM base AS s\nFROM base\nRUN --mount=from=0,target=/f x", [(Overlooked.STAGE, 3)]),
        ("ARG V=1\nFROM base\nARG V\nENV X=$V", [(Overlooked.VARIABLE, 4)]),
        ("FROM base AS base\nFROM base", [(Overlooked.SHADOW, 1)]),
        ("FROM base\nRUN --mount=type=cache,target=/f x\nENV PATH=/x:$PATH\nARG V=1\nRUN echo $V", []),
        ("FROM base AS s\nRUN --mount=target=/f x\nFROM base", []),
    ],
)
def test_the_parser_names_what_podmans_cache_overlooks(
    text: str, overlooked: list[tuple[Overlooked, int]]
) -> None:
    parsed = parser.parse(encode(text), where="x", build_args={}, architecture="x86_64")
    assert list(parsed.overlooked) == overlooked


@pytest.mark.parametrize(
    ("trigger", "overlooked"),
    [
        ("COPY f /f", False),
        ("RUN echo $V", False),
        ("ARG V", False),
        ("ENV X=$V", True),
        ("RUN --mount=type=bind,source=f,target=/f x", True),
    ],
)
def test_triggers_that_podmans_cache_overlooks(trigger: str, overlooked: bool) -> None:
    assert triggers.are_overlooked([trigger], "Dockerfile") is overlooked


@pytest.mark.parametrize(
    "trigger", ["COPY --from=tools /a /", "RUN --mount=type=bind,from=tools,target=/t x"]
)
def test_a_trigger_may_not_take_files_from_elsewhere(trigger: str) -> None:
    triggers.require_own_files(["COPY a b", "RUN --mount=target=/t x"], base="base", where="p")
    with pytest.raises(DockerfileError) as error:
        triggers.require_own_files([trigger], base="base", where="p/Dockerfile:1")
    assert str(error.value) == (
        f"p/Dockerfile:1: base has the trigger ONBUILD {trigger}: which image that names depends on the"
        " node\n"
        "  next: take the trigger out of the base and write its instruction in this Dockerfile"
    )


def test_the_triggers_of_a_stage_are_its_own() -> None:
    text = b"FROM base AS a\nONBUILD RUN a\nFROM base\nONBUILD RUN b\nONBUILD RUN c"
    found = instructions(text, where="x").instructions
    assert [triggers.of_stage(found, index) for index in (0, 1)] == [("RUN a",), ("RUN b", "RUN c")]
