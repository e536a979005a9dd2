"""Logs that grow: each time only what was added is read, whatever is in it."""

import time
from pathlib import Path

import pytest

from rc_tasks.engine.progress.log_tail import Tail, doing


def test_only_what_was_added_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(log)
    assert tail.lines() == []
    with log.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        assert (tail.lines(), tail.begun) == (["one"], "tw")
        assert tail.lines() == []
        file.write("o\nd\xe4".encode("latin-1") + b"\n\x1b[31mred\x1b[0m\x07\n")
        assert tail.lines() == ["two", "d\ufffd", "red\\x07"]
        file.write(b"10%\r20%\r")
        assert (tail.lines(), tail.begun) == ([], "20%")
        log.unlink()
        file.write(b"30%\nend\n")
    assert tail.lines() == ["30%", "end"]
    tail.close()


def test_a_line_of_a_megabyte_is_told_in_pieces(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 1_000_000 + b"\nend\n")
    tail = Tail(log)
    lines = tail.lines()
    assert "".join(lines) == "x" * 1_000_000 + "end"
    assert tail.begun == ""


def test_where_the_end_is_enough_the_rest_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"STEP 1/2: FROM a\n" + b"noise\n" * 2_000_000 + b"STEP 2/2: RUN b\nend\n")
    tail = Tail(log, whole=False)
    lines = tail.lines()
    assert lines[-2:] == ["STEP 2/2: RUN b", "end"]
    assert len(lines) < 100_000
    assert tail.lines() == []


def test_two_hundred_quiet_logs_cost_next_to_nothing(tmp_path: Path) -> None:
    tails = []
    for number in range(200):
        (tmp_path / f"{number}").write_bytes(b"STEP 1/2: RUN true\n" * 100)
        tails.append(Tail(tmp_path / f"{number}", whole=False))
        tails[-1].lines()
    started = time.process_time()
    for _ in range(10):
        for tail in tails:
            tail.lines()
    assert (time.process_time() - started) / 10 < 0.02, "measured: 0.001 s"
    for tail in tails:
        tail.close()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("STEP 4/9: RUN pip install torch", "STEP 4/9 RUN pip install torch"),
        ("[1/2] STEP 4/9: RUN make -j", "[1/2] STEP 4/9 RUN make -j"),
        ("COMMIT localhost/a:1", "COMMIT localhost/a:1"),
        ("mksquashfs   7%", "mksquashfs 7%"),
        ("mksquashfs 100%", "mksquashfs 100%"),
        ("Collecting torch", ""),
        ("+ env LC_ALL=C mksquashfs /a /b", ""),
        ("", ""),
    ],
)
def test_a_line_may_say_what_a_step_is_at(line: str, told: str) -> None:
    assert doing(line) == told
