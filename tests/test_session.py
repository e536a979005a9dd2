"""docs/session.cast, which the home page of the site plays; tests/support/session.py records it."""

import json
import re

import pytest

from rc_tasks.commands.cli.table import COMMANDS as DOIT_COMMANDS
from tests.support import session
from tests.support.checkouts import SOURCE
from tests.support.cluster import Cluster
from tests.support.terminal import Screen
from tests.support.tools import require_tools
from tests.test_tutorial import told

RECORD = "record it again: python -m tests.support.session"
DEMO = SOURCE / "examples/demo/projects"


@pytest.fixture(scope="module")
def events() -> list[tuple[float, str, str]]:
    header, *events = map(json.loads, session.CAST.read_text().splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 100, 28)
    return [(at_s, kind, text) for at_s, kind, text in events]


def test_the_recording_is_a_valid_asciicast(events: list[tuple[float, str, str]]) -> None:
    times = [at_s for at_s, _, _ in events]
    waits = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert all(0 <= wait <= session.IDLE_S + 0.01 for wait in waits)
    assert {kind for _, kind, _ in events} == {"o", "m"}
    assert 15 < times[-1] < 120


def test_the_text_is_what_the_recording_shows(events: list[tuple[float, str, str]]) -> None:
    screen = Screen(session.COLUMNS, session.ROWS)
    for _, kind, text in events:
        if kind == "o":
            screen.feed(text)
    assert session.session_text(screen) == session.TEXT.read_text(), RECORD
    # A character that was read in two halves.
    assert "\ufffd" not in screen.text


def test_the_recording_does_not_name_a_machine(events: list[tuple[float, str, str]]) -> None:
    assert session.traces("".join(text for _, _, text in events)) == []
    assert session.traces("log: /tmp/x/y, at 10.0.0.1, of registry.example.org, 'a/b', ./c") == [
        "/tmp/x/y,",
        "10.0.0.1",
        "example.org",
    ]


def test_each_command_of_the_recording_exists(events: list[tuple[float, str, str]]) -> None:
    assert tuple(text for _, kind, text in events if kind == "m") == session.COMMANDS, RECORD
    for program, _, arguments in (command.partition(" ") for command in session.COMMANDS):
        if program == "sed":
            old, path = re.fullmatch(r"-i 's/(.*)/.*/' projects/(\S+)", arguments).groups()  # type: ignore[union-attr]
            assert old in (DEMO / path).read_text()
            continue
        assert program == "doit"
        name, *_ = [*arguments.split(), "run"]
        assert name in DOIT_COMMANDS or (DEMO / name.removeprefix("build:")).is_dir(), name


@pytest.mark.podman
@pytest.mark.slurm
def test_a_new_recording_shows_the_same(cluster: Cluster) -> None:
    require_tools("busybox", "dash", "runc")
    again = session.session_text(session.record(cluster, patient=False))
    assert lines(again) == lines(session.TEXT.read_text()), f"{RECORD}\n{again}"


def lines(text: str) -> list[str]:
    """What a session shows, without what varies; steps that run side by side end in any order."""
    text = re.sub(r"granted job \d+: node\d, until \S+", "granted", text)
    return sorted(told(re.sub(r" on node\d", "", text)).splitlines())
