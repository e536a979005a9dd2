"""Sizes, times and tables for people."""

import io

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
