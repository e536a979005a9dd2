"""Sizes, times and tables for people."""

import io
import re

import pytest

from rc_tasks.views import tables


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_175_552, "1.2 MB"),
        (851_000_000, "851 MB"),
        (20_400_000_000, "20.4 GB"),
        (3_000_000_000_000, "3000 GB"),
    ],
)
def test_sizes(size_bytes: int | None, text: str) -> None:
    assert tables.size(size_bytes) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (48.4, "48 s"), (200, "3 min 20 s"), (7505, "2 h 5 min")],
)
def test_durations(duration_s: float, text: str) -> None:
    assert tables.duration(duration_s) == text


def test_a_table_in_a_pipe_is_aligned_and_plain() -> None:
    out = io.StringIO()
    tables.table(
        ("A", "N"), [("x", "1"), ("long", "100"), ("ü\n\x1b[31m", "")], right=frozenset("N"), out=out
    )
    assert out.getvalue().splitlines() == [
        "A              N",
        "x              1",
        "long         100",
        "ü\\n\\x1b[31m",
    ]


class Terminal(io.StringIO):
    """A terminal that keeps what is printed."""

    def isatty(self) -> bool:
        return True


LIST = ("IMAGE", "STATE", "SIZE", "BUILT", "ALIASES", "REASON")
NARROW = (("BUILT", 10), ("SIZE", 0), ("ALIASES", 0), ("BUILT", 0))
REASON = "projects/reasoning/2025.1/Dockerfile changed, base:1 is built before"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            100,
            """IMAGE             STATE    SIZE  BUILT             ALIASES    REASON
reasoning:2025.1  stale  851 MB  2026-11-22 10:04  reasoning  projects/reasoning/2025.1/Dockerfile
                                                              changed, base:1 is built before
""",
        ),
        (
            80,
            """IMAGE             STATE    SIZE  BUILT       ALIASES    REASON
reasoning:2025.1  stale  851 MB  2026-11-22  reasoning  projects/reasoning/2025…
""",
        ),
        (
            60,
            """IMAGE             STATE  REASON
reasoning:2025.1  stale  projects/reasoning/2025.1/Dockerfi…
""",
        ),
        (
            40,
            """reasoning:2025.1
  state: stale
  size: 851 MB
  built: 2026-11-22 10:04
  aliases: reasoning
  reason:
projects/reasoning/2025.1/Dockerfile
changed, base:1 is built before
""",
        ),
    ],
)
def test_a_table_gives_up_columns_on_a_narrow_terminal(
    width: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    row = ("reasoning:2025.1", "stale", "851 MB", "2026-11-22 10:04", "reasoning", REASON)
    tables.table(LIST, [row], right=frozenset({"SIZE"}), narrow=NARROW, out=out)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    printed = "".join(line.rstrip() + "\n" for line in plain.splitlines())
    assert printed == expected
