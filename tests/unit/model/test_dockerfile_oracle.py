"""Instructions are split as BuildKit's own parser splits them (PyPI: dockerfile, which wraps it)."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.instructions import Instruction, instructions

# There is no wheel of it for aarch64, and its source needs Go.
oracle: Any = pytest.importorskip("dockerfile", exc_type=ImportError)

# The wrapped BuildKit is 0.12.5 of 2024, which takes a # check= for an ordinary comment; it does not
# mind text that is not UTF-8.
NOT_COMPARED = {"escape-after-check", "latin1"}
FILES = [
    path
    for path in sorted(Path(__file__).with_name("dockerfiles").glob("*.Dockerfile"))
    if path.stem not in NOT_COMPARED
]
IN_WORDS = frozenset({"FROM", "COPY", "ADD", "EXPOSE", "VOLUME"})
WHOLE = frozenset({"RUN", "CMD", "ENTRYPOINT", "SHELL", "USER", "WORKDIR", "STOPSIGNAL", "MAINTAINER"})


def ours(text: bytes) -> list[Instruction] | None:
    try:
        return list(instructions(text, where="Dockerfile").instructions)
    except DockerfileError:
        return None


def theirs(text: bytes) -> Any:
    """The oracle's commands; none for a file without any, and None where it refuses."""
    try:
        # An escape alone on the last line is a command without a name to it.
        return [one for one in oracle.parse_string(text.decode()) if one.cmd is not None]
    except oracle.GoParseError as error:
        return [] if "no instructions" in str(error) else None


def compare(text: bytes) -> None:
    mine, expected = ours(text), theirs(text)
    if expected is None or mine is None:
        assert mine is expected is None, (text.decode(), mine, expected)
        return
    names = [(one.name, one.line) for one in mine]
    assert names == [(one.cmd.upper(), one.start_line) for one in expected], text.decode()
    for one, other in zip(mine, expected, strict=True):
        assert one.flags == other.flags, text.decode()
        # What stands behind the name and the flags; the oracle repeats heredocs below it.
        line = other.original.split("\n")[0].strip()
        assert line.endswith(one.value), (line, one)
        if other.sub_cmd or not one.value:
            continue
        if other.json:
            assert json.loads(one.value) == list(other.value)
        elif one.name in WHOLE:
            assert (one.value,) == other.value
        elif one.name in IN_WORDS:
            assert tuple(re.split(r"[\t\v\f\r ]+", one.value)) == other.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_split_alike(path: Path) -> None:
    compare(path.read_bytes())


FRAGMENTS = (
    "FROM a",
    "from b AS c",
    "RUN one",
    "run two && \\\n  three",
    "RUN four \\\n\n\n  five",
    "RUN six \\\n# comment\n  # comment \\\n seven",
    "RUN eight \\\\",
    "RUN nine \\\\\\",
    "RUN ten \\  ",
    "RUN it's",
    'RUN echo "a \\" b',
    "RUN <<EOF",
    "RUN <<-EOF cat",
    "RUN <<'EOF' <<\"X Y\"",
    "RUN cat <<EOF | sh \\\n  -x",
    "RUN a<<EOF",
    'RUN "<<EOF"',
    "RUN <<EOF>f",
    "RUN $(cat <<EOF)",
    "RUN ${x:-y} <<EOF",
    "RUN ${x <<EOF",
    "RUN ${x:-'} <<EOF",
    "RUN $x<<EOF",
    "RUN \\<<EOF",
    "RUN 3<<EOF 4<<-X",
    "RUN <<E\\OF",
    "RUN <<",
    "RUN <<''",
    'RUN ["a", "<<EOF"]',
    'RUN ["a", <<EOF',
    "COPY <<EOF /x",
    'COPY ["<<EOF", "/x"]',
    "COPY --from=x --chown=a:b a b",
    "COPY --from='x y' a b",
    'ADD --x="a\\"b" c d',
    "ONBUILD RUN <<EOF",
    "ONBUILD USER <<EOF",
    "RUN --mount=type=bind,from=x --y\\ z w",
    "RUN --a'b c'd\"e\" f",
    "RUN -- --x y",
    "RUN --",
    "RUN --x\\",
    "CMD",
    'CMD ["x"]',
    "ENV a=b c=d",
    "LABEL a=<<EOF",
    "USER x y",
    "WORKDIR",
    "EOF",
    "\tEOF",
    " EOF",
    "EOF ",
    "X Y",
    "EOF>f",
    "# comment",
    "  # comment \\",
    "# escape=`",
    "# syntax=x",
    "#escape = \\",
    "# escape=x",
    "RUN x `\n y",
    "`",
    "\\",
    " \\ ",
    "",
    "  ",
    "\t",
    "foo bar",
    "--x",
    "FROM\ta",
    "RUN\\\n x",
    "R\\\nUN x",
    "RUN x\\\ny",
    "RUN ü 日本",
)


@pytest.mark.parametrize("seed", range(8))
def test_random_compositions_are_split_alike(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(250):
        lines = chance.choices(FRAGMENTS, k=chance.randint(1, 9))
        if "# escape=`" in lines:
            # BuildKit 0.12.5 unescapes flags with a backslash whatever the directive says.
            lines = [line for line in lines if not ("--" in line and "\\" in line)]
        newline = chance.choice(("\n", "\n", "\n", "\r\n"))
        text = newline.join(lines).replace("\n", newline).replace("\r\r", "\r")
        text = chance.choice(("", "", "\ufeff")) + text + chance.choice(("", newline))
        compare(text.encode())
