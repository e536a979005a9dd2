"""How a run is shown: lines for a file, and on a terminal a few that say what goes on now."""

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.progress.live import Live
from rc_tasks.engine.progress.plain import Plain
from rc_tasks.engine.schedule.estimates import Order
from rc_tasks.state.records.records import Step, Task
from tests.support.terminal import Screen

AT = datetime(2026, 11, 22, 11, 3, 6, tzinfo=UTC)


class Tty(io.StringIO):
    """What a terminal was sent."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def sent(self) -> str:
        """What was sent since the last time."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def at(kind: EventKind, task: str = "", words: str = "", **more: object) -> Event:
    return Event(kind, Task.parse(task), words, at=AT, about=task, **more)


def parsed(texts: Iterable[str]) -> list[Task]:
    return [task for text in texts if (task := Task.parse(text))]


def expected(*texts: str, last_s: float = 100.0, guesses: frozenset[Step] = frozenset()) -> Order:
    tasks = parsed(texts)
    return Order(
        last_s=dict.fromkeys(tasks, last_s),
        stale_s=dict.fromkeys(tasks, last_s),
        guesses=guesses,
        before={},
        paths_s={},
        turns={task: turn for turn, task in enumerate(tasks)},
        groups={},
    )


class Shown:
    """A live display on a screen."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int, *tasks: str, **more: bool
    ) -> None:
        self.monkeypatch = monkeypatch
        self.tty = Tty()
        self.screen = Screen(columns, rows)
        self.resize(columns, rows)
        self.live = Live(self.tty, parsed(tasks), expected(*tasks), **{"streams": False, **more})

    def resize(self, columns: int, rows: int) -> None:
        self.screen.columns, self.screen.rows = columns, rows
        self.monkeypatch.setenv("COLUMNS", str(columns))
        self.monkeypatch.setenv("LINES", str(rows))

    def __call__(self, *events: Event) -> list[str]:
        for event in events:
            self.live.take(event)
        self.live.read()
        self.live.refresh()
        # As a terminal's driver does with it.
        self.screen.feed(self.tty.sent().replace("\n", "\r\n"))
        return self.screen.text.splitlines()


def start(directory: Path, task: str, log: bytes = b"", **more: object) -> Event:
    path = directory / f"{task.replace('/', '_')[:100]}.log"
    path.write_bytes(log)
    return at(EventKind.START, task, "never built", log=path, **more)


PIP = (
    b"STEP 3/9: FROM a\n--> Using cache\n"
    b"STEP 4/9: RUN pip install torch torchvision torchaudio --index-url https://x/y\nCollecting torch\n"
)


def test_without_a_terminal_each_event_is_a_line(tmp_path: Path) -> None:
    out = io.StringIO()
    shown = Plain(out, streams=False)
    for event in (
        at(EventKind.QUEUE, words="job 4711 waits for its nodes (Priority)"),
        at(EventKind.READY, "podman:a"),
        start(tmp_path, "podman:a", PIP),
        at(EventKind.LEFT, "podman:a"),
        at(EventKind.DONE, "podman:a", "1.2 s on n\x1b[31mode\nx"),
        at(EventKind.FAILED, "podman:ä\x07", "failed\n  | \x1b[2Jlast\n  log:  x"),
        at(EventKind.SETTLED, "podman:b"),
    ):
        shown.take(event)
        shown.read()
    assert out.getvalue() == (
        "2026-11-22 11:03:06 queue   job 4711 waits for its nodes (Priority)\n"
        "2026-11-22 11:03:06 start   podman:a  never built\n"
        "2026-11-22 11:03:06 done    podman:a  1.2 s on n\\x1b[31mode\n"
        "        x\n"
        "2026-11-22 11:03:06 FAILED  podman:ä\\x07  failed\n"
        "          | \\x1b[2Jlast\n"
        "          log:  x\n"
    )


def test_streamed_lines_are_led_by_their_step_once_several_run(tmp_path: Path) -> None:
    out = io.StringIO()
    shown = Plain(out, streams=True)
    one, two = (
        start(tmp_path, "podman:a", b"\x1b[1mone\x1b[0m\nhal"),
        start(tmp_path, "podman:b", b"two\n"),
    )
    shown.take(one)
    shown.read()
    shown.take(two)
    with (tmp_path / "podman:a.log").open("ab") as log:
        log.write(b"f\n\xff" + b"y" * 1_000_000 + b"\n")
    shown.take(at(EventKind.LEFT, "podman:a"))
    shown.take(at(EventKind.LEFT, "podman:b"))
    first, begun, again, half, *long, last = out.getvalue().splitlines()
    assert first == "2026-11-22 11:03:06 start   podman:a  never built"
    assert begun == "one"
    assert again == "2026-11-22 11:03:06 start   podman:b  never built"
    assert half == "podman:a | half"
    assert "".join(line.removeprefix("podman:a | ") for line in long) == "\ufffd" + "y" * 1_000_000
    assert last == "podman:b | two"


LONG = "enroot:日本語-" + "日本語" * 10 + ":2025.12-rc1"
AT_80 = f"""\
granted job 4711: nid006421, until 16:40
start   podman:reasoning:2025.1  never built
start   enroot:日本語-{"日本語" * 9}日本
語:2025.12-rc1  never built
  podman:reasoning:2025.1          nid006421  0:00 of ~1:40  STEP 4/9 RUN pip …
  enroot:日本語-日本語…025.12-rc1  nid006422  0:00 of ~0:09  mksquashfs 43%
  queued 3: podman:a, podman:b, podman:c
  0 of 5 steps done; 2 running, 3 queued; about 4 min left"""
PIP_WHOLE = "STEP 4/9 RUN pip install torch torchvision torchaudio --index-url https://x/y"
AT_160 = f"""\
granted job 4711: nid006421, until 16:40
start   podman:reasoning:2025.1  never built
start   {LONG}  never built
  podman:reasoning:2025.1                          nid006421  0:00 of ~1:40  {PIP_WHOLE}
  enroot:日本語-日本語日本語日本…本語:2025.12-rc1  nid006422  0:00 of ~0:09  mksquashfs 43%
  queued 3: podman:a, podman:b, podman:c
  0 of 5 steps done; 2 running, 3 queued; about 4 min left"""


@pytest.mark.parametrize(("columns", "text"), [(80, AT_80), (160, AT_160)], ids=["80", "160"])
def test_what_goes_on_stands_at_the_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, text: str
) -> None:
    tasks = ("podman:reasoning:2025.1", LONG, "podman:a", "podman:b", "podman:c")
    squash = b"+ mksquashfs\nmksquashfs  42%\rmksquashfs  43%\r"
    shown = Shown(monkeypatch, columns, 24, *tasks)
    found = shown(
        at(EventKind.GRANTED, words="job 4711: nid006421, until 16:40"),
        *(at(EventKind.READY, task) for task in tasks),
        start(tmp_path, tasks[0], PIP, node="nid006421", last_s=100.0),
        start(tmp_path, LONG, squash, node="nid006422", last_s=9.0),
    )
    assert "\n".join(found) == text


def test_what_is_done_scrolls_away_and_the_end_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown(monkeypatch, 80, 24, "podman:a", "podman:b", "enroot:b", "env:b")
    shown(start(tmp_path, "podman:a", PIP), start(tmp_path, "podman:b", PIP))
    failed = at(EventKind.FAILED, "podman:b", "RUN false failed\n  | \x1b[31mno\n  log:  x")
    assert shown(at(EventKind.LEFT, "podman:a"), at(EventKind.DONE, "podman:a", "1.2 s"))[-2:] == [
        "  podman:b  0:00  STEP 4/9 RUN pip install torch torchvision torchaudio --inde…",
        "  1 of 4 steps done; 1 running; about 3 min left",
    ]
    shown(
        at(EventKind.SETTLED, "enroot:b"),
        at(EventKind.SETTLED, "env:b"),
        at(EventKind.LEFT, "podman:b"),
        failed,
    )
    shown.live.finish()
    assert shown() == [
        "start   podman:a  never built",
        "start   podman:b  never built",
        "done    podman:a  1.2 s",
        "FAILED  podman:b  RUN false failed",
        "          | \\x1b[31mno",
        "          log:  x",
    ]


@pytest.mark.parametrize("rows", [3, 4, 10, 24])
def test_more_steps_than_rows_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    names = [f"podman:image-{number}:1" for number in range(200)]
    shown = Shown(monkeypatch, 80, rows, *names)
    for name in names[:100]:
        shown(start(tmp_path, name, b"\x1b[2J\x1b]0;title\x07" + b"z" * 1_000_000))
    found = shown(*(at(EventKind.READY, name) for name in names[100:]))
    # Each was drawn over whole: what scrolled away are the events alone, in order.
    assert found[:100] == [f"start   {name}  never built" for name in names[:100]]
    region = found[100:]
    assert len(region) <= max(1, rows - 2)
    assert region[-1].startswith("  0 of 200 steps done; 100 running, 100 queued; about")
    if rows == 10:
        assert [line.split()[0] for line in region[:5]] == names[:5]
        assert region[5:-1] == [
            "  … and 95 more",
            "  queued 100: podman:image-100:1, podman:image-101:1, podman:image-102:1, …",
        ]


def test_another_size_leaves_no_torn_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch, 100, 24, "podman:a")
    shown(start(tmp_path, "podman:a", PIP))
    for columns, rows in ((160, 40), (100, 12), (20, 5), (1, 1), (80, 24)):
        shown.resize(columns, rows)
        text = shown.live.lines(columns - 1, rows - 2)
        assert all(line.cell_len < columns for line in text)
        shown.live.refresh()
    assert shown.live._drawn[0].plain.endswith("torchvision torchaudio --inde…")


def test_streamed_lines_scroll_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch, 80, 24, "podman:a", "podman:b", streams=True)
    found = shown(
        start(tmp_path, "podman:a", b"one\n"), start(tmp_path, "podman:b", b"\xff\x1b[2Jtwo\n")
    )
    assert found[2:4] == ["podman:a | one", "podman:b | \ufffdtwo"]
    assert found[4].startswith("  podman:a  0:00")


def test_colours_are_left_out_where_nobody_wants_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = at(EventKind.FAILED, "podman:a", "x")
    coloured = Shown(monkeypatch, 80, 24)
    coloured.live.take(failed)
    coloured.live.refresh()
    assert "\x1b[1;31mFAILED\x1b[0m  podman:a" in coloured.tty.sent()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Shown(monkeypatch, 80, 24)
    plain.live.take(failed)
    plain.live.refresh()
    assert "31m" not in plain.tty.sent()


def test_a_locale_without_dots_and_umlauts_fits_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tty, "encoding", "ascii")
    shown = Shown(monkeypatch, 60, 24, "podman:wörk")
    found = shown(start(tmp_path, "podman:wörk", PIP))
    assert found[0] == r"start   podman:w\xf6rk  never built"
    assert found[1] == r"  podman:w\xf6rk  0:00  STEP 4/9 RUN pip install torch t..."


def test_no_estimate_where_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch, 80, 24, "podman:a")
    shown.live._expected = expected("podman:a", guesses=frozenset({Step.PODMAN}))
    assert shown(start(tmp_path, "podman:a"))[-1] == "  0 of 1 steps done; 1 running"


@pytest.mark.parametrize(
    ("left", "since_s", "slots", "seconds"),
    [
        pytest.param({"podman:a", "podman:b"}, {}, 1, 200.0, id="one after the other"),
        pytest.param({"podman:a", "podman:b"}, {}, 2, 100.0, id="side by side"),
        pytest.param({"podman:a", "podman:b"}, {"podman:a": 60.0}, 1, 140.0, id="one has begun"),
        pytest.param({"podman:a"}, {"podman:a": 500.0}, 1, 0.0, id="takes longer than last time"),
        pytest.param(set(), {}, 1, 0.0, id="nothing is left"),
    ],
)
def test_the_estimate_is_of_work_and_chains(
    left: set[str], since_s: dict[str, float], slots: int, seconds: float
) -> None:
    assert (
        expected("podman:a", "podman:b").left_s(
            parsed(left), {Task.parse(text): value for text, value in since_s.items()}, slots
        )
        == seconds
    )


def closed(*_: object) -> int:
    raise OSError(5, "Input/output error")


def test_a_terminal_that_goes_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shown in (Live(Tty(), (), None, streams=True), Plain(io.StringIO(), streams=True)):
        for method in ("write", "flush"):
            monkeypatch.setattr(shown.out._out, method, closed)
        shown.start()
        shown.tell(start(tmp_path, "podman:a", b"one\n"))
        shown.tell(at(EventKind.LEFT, "podman:a"))
        assert shown.close()


def test_an_interruption_names_what_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Plain(io.StringIO(), streams=False)
    shown.take(start(tmp_path, "podman:a", node="nid001"))
    for number in range(10):
        shown.take(start(tmp_path, f"enroot:{number}"))
    shown.take(at(EventKind.INTERRUPTED, words="what is finished stays finished"))
    assert capsys.readouterr().err == (
        "2026-11-22 11:03:06 interrupted: ending podman:a on nid001, enroot:0, enroot:1, enroot:2,"
        " enroot:3, enroot:4, enroot:5, enroot:6 and 3 more; what is finished stays finished\n"
    )


def test_a_smoke_test_that_runs_is_shown_and_a_late_step_has_no_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = b"mksquashfs 100%\nsmoke test 1 of 2 (podman): python -c 'import torch'\n  | smoke test 9\n"
    shown = Shown(monkeypatch, 100, 24, "enroot:a", "env:a")
    assert shown(start(tmp_path, "enroot:a", log, last_s=100.0))[-2:] == [
        "  enroot:a  0:00 of ~1:40  smoke test 1 of 2 (podman): python -c 'import torch'",
        "  0 of 2 steps done; 1 running; about 3 min left",
    ]
    shown.live.running[Task(Step.ENROOT, "a")].since_s -= 150
    shown.live._estimated_at_s = 0.0
    assert shown()[-1] == "  0 of 2 steps done; 1 running; about 1 min 40 s left"
    shown.live.running[Task(Step.ENROOT, "a")].since_s -= 60
    assert shown()[-1] == "  0 of 2 steps done; 1 running; longer than last time"
