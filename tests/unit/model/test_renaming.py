"""Bases renamed in a Dockerfile: the names alone change, and what cannot be renamed is refused."""

from functools import partial

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile import parser
from rc_tasks.model.dockerfile.renaming import rename_bases

NAMES = {"old:1": "new:2", "localhost/old:1": "localhost/new:2"}


def renamed(text: bytes) -> bytes:
    parse = partial(parser.parse, where="d", build_args={}, architecture="x86_64")
    return rename_bases(text, "projects/x/Dockerfile", NAMES, parse)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("FROM old:1", "FROM new:2"),
        (
            "# FROM old:1\nfrom\told:1  \nRUN echo old:1\n",
            "# FROM old:1\nfrom\tnew:2  \nRUN echo old:1\n",
        ),
        ("FROM localhost/old:1 AS old\r\n", "FROM localhost/new:2 AS old\r\n"),
        ('FROM "old:1"\n', 'FROM "new:2"\n'),
        ("FROM --platform=$BUILDPLATFORM \\\n  # why\n  old:1 \\\n  AS a\n", None),
        ("FROM old:11\nCOPY --from=old:1 /old:1 /b\n", "FROM old:11\nCOPY --from=new:2 /old:1 /b\n"),
        ("FROM a\nCOPY --chown=1:1 --from=old:1 a b\n", "FROM a\nCOPY --chown=1:1 --from=new:2 a b\n"),
        (
            "FROM a\nRUN --mount=type=bind,from=old:1,target=/m cat /m --mount=from=old:1\n",
            "FROM a\nRUN --mount=type=bind,from=new:2,target=/m cat /m --mount=from=old:1\n",
        ),
        (
            'FROM a\nRUN --mount=from=old:1,target=/m --mount="from=old:1,target=/n" \\\n ls\n',
            'FROM a\nRUN --mount=from=new:2,target=/m --mount="from=new:2,target=/n" \\\n ls\n',
        ),
        (
            "FROM old:1 AS b\nCOPY <<E /f\nFROM old:1\nE\nFROM old:1\nCOPY --from=b a b\n",
            "FROM new:2 AS b\nCOPY <<E /f\nFROM old:1\nE\nFROM new:2\nCOPY --from=b a b\n",
        ),
        ("# escape=`\nFROM `\nold:1\n", "# escape=`\nFROM `\nnew:2\n"),
        ("FROM other\n", "FROM other\n"),
    ],
)
def test_the_name_changes_and_nothing_else(before: str, after: str | None) -> None:
    text = before.encode()
    expected = (after or before.replace("old:1", "new:2")).encode()
    assert renamed(text) == expected
    assert renamed(renamed(text)) == expected


def test_other_bytes_stay() -> None:
    assert renamed(b"\xef\xbb\xbf# \xff\nFROM old:1\n") == b"\xef\xbb\xbf# \xff\nFROM new:2\n"


def test_a_base_may_be_named_as_the_start_of_its_instruction() -> None:
    parse = partial(parser.parse, where="d", build_args={}, architecture="x86_64")
    assert rename_bases(b"from rom\n", "d", {"rom": "x"}, parse) == b"from x\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("ARG BASE=old:1\nFROM $BASE\n", 2),
        ("ARG TAG=1\nFROM old:${TAG}\n", 2),
        ("FROM ${X:-old:1}\n", 1),
        ("FROM a\nFROM ol\\\nd:1\n", 2),
    ],
)
def test_a_name_that_is_not_written_out_is_refused(text: str, line: int) -> None:
    with pytest.raises(DockerfileError) as error:
        renamed(text.encode())
    assert str(error.value) == (
        f"projects/x/Dockerfile:{line}: FROM has old:1 not written out, as with a variable; that cannot"
        " be renamed safely\n"
        "  next: write the name in this line, then run the same command again"
    )


def test_a_stage_of_the_new_name_is_no_base() -> None:
    with pytest.raises(DockerfileError) as error:
        parse = partial(parser.parse, where="d", build_args={}, architecture="x86_64")
        text = b"FROM a AS tools\nFROM a\nCOPY --from=old:1 a b\n"
        rename_bases(text, "projects/x/Dockerfile", {"old:1": "tools"}, parse)
    assert str(error.value) == (
        "projects/x/Dockerfile:3: tools would mean something else here, as a stage of this name or"
        " number does\n"
        "  next: choose another name, or rename the stage first"
    )
