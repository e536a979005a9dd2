"""A parallel run at a real terminal: what goes on is drawn below what happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout
from tests.support.containers import working_runtime
from tests.support.doit import DOIT, doit
from tests.support.runs import PROMPT_S, Site, until
from tests.support.storage import remove_storage
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.podman, pytest.mark.timeout(240)]

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n',
}
WAITING = ("one:1", "twelve-with-a-name-that-is-too-long-for-its-column:1")
TASKS = tuple(f"podman:{name}" for name in WAITING)
# What stands at the bottom while steps run.
BOTTOM = re.compile(r"^  \d+ of \d+ steps done; .*$", re.MULTILINE)


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as name:
        yield Path(name)
        remove_storage(Path(name))


@pytest.fixture(scope="module")
def built(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the base of its images, on a host without Slurm."""
    root = write_checkout(tmp_path_factory.mktemp("terminal") / "imgs ä", FILES)
    shutil.copy("/bin/busybox", root / "base/busybox")
    ran = doit(root, "podman:base", environ=variables(storage))
    assert ran.status == 0, ran.text
    return root


def variables(storage: Path) -> dict[str, str]:
    return {
        "RC_RUNNER": "local",
        "RC_PODMAN_STORAGE": str(storage),
        "RC_PODMAN_ISOLATION": "chroot",
    }


@pytest.fixture
def site(tmp_path: Path, storage: Path, built: Path) -> Site:
    """A copy of that checkout with two images whose RUN waits, and one that fails."""
    root = tmp_path / built.name
    subprocess.run(("cp", "-a", built, root), check=True)
    signs = tmp_path / "signs"
    signs.mkdir()
    made = Site(root, signs, {**variables(storage), "RC_PODMAN_VOLUMES": f"{signs}:/signs"})
    for name in WAITING:
        made.waiting(name)
    made.image("broken:1", r"until [ -e /signs/fail ]; do sleep 0.1; done; printf '\033[2Jnö\n'; exit 3")
    made.image("child:1", "true", base="broken:1")
    return made


def terminal(site: Site, *argv: str, columns: int = 80, rows: int = 24) -> Terminal:
    return Terminal((DOIT, *argv), site.root, site.environ, columns, rows)


def test_a_parallel_run_with_a_failure_and_a_window_that_changes(site: Site) -> None:
    argv = ("--continue", "-n", "3", *TASKS, "podman:broken:1", "podman:child:1")
    with terminal(site, *argv) as shown:
        shown.shows(lambda text: text.count("STEP 2/") == 3)
        text = shown.shows(lambda text: "0 of 4 steps done; 3 running" in text)
        drawn = text.splitlines()[-4:]
        assert all(len(line) < 80 for line in drawn)
        assert any(line.startswith("  podman:twelve-with-a-") for line in drawn)
        shown.resize(60, 4)
        shown.shows(lambda text: "  … and 3 more\n  0 of 4 steps" in text)
        shown.resize(160, 24)
        shown.shows(lambda text: "…for-its-column:1  " in "".join(text.splitlines()[-4:]))
        (site.signs / "fail").touch()
        shown.shows(lambda text: "FAILED  podman:broken:1" in text)
        shown.shows(lambda text: "2 running, 1 failed" in text)
        site.go()
        status, text = shown.end()
    assert status != 0
    assert BOTTOM.search(text) is None
    # Each is told once; what it wrote cannot clear the screen.
    assert text.count("          | nö\n") == text.count("FAILED  podman:broken:1") == 1
    assert len(re.findall(r"^done    podman:", text, re.MULTILINE)) == 2
    assert text.endswith(
        "    run:  doit build:broken:1\n    not tried because of it: child:1\n"
        "5 images: 2 built; 1 fresh; 1 failed; not tried because of that: 1"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_an_interruption_is_answered_and_leaves_the_terminal_in_order(
    site: Site, number: signal.Signals
) -> None:
    with terminal(site, "-n", "2", *TASKS) as shown:
        until(lambda: all(map(site.begun, WAITING)))
        shown.shows(lambda text: "2 running" in text)
        if number is signal.SIGINT:
            shown.type("\x03")
        else:
            shown.signal(number)
        status, text = shown.end()
    assert status == 130
    ending = r"interrupted: ending (podman:\S+), (podman:\S+); what is finished stays finished"
    found = re.search(ending, text.replace("\n", ""))
    assert found is not None, text
    assert sorted(found.groups()) == sorted(TASKS)
    assert BOTTOM.search(text) is None
    assert text.endswith("3 images: 1 fresh; 2 not finished")


def test_a_window_that_is_closed_ends_the_run_in_order(site: Site) -> None:
    with terminal(site, "-n", "2", *TASKS) as shown:
        until(lambda: all(map(site.begun, WAITING)))
        shown.hang_up()
        assert shown.process.wait(60) == 130
    assert list((site.root / ".rc/locks").glob("*.json")) == []


def test_output_is_streamed_above(site: Site) -> None:
    site.go()
    with terminal(site, "-v", "2", "-n", "1", TASKS[0]) as shown:
        status, text = shown.end()
    assert status == 0
    lines = text.splitlines()
    assert lines[0].startswith("start   podman:one:1")
    assert any(line.startswith("STEP 2/") for line in lines)
    assert BOTTOM.search(text) is None


@pytest.mark.parametrize("changed", [{"TERM": "dumb"}, {"TERM": ""}], ids=["dumb", "none"])
def test_a_terminal_that_can_do_nothing_gets_plain_lines(site: Site, changed: dict[str, str]) -> None:
    site.go()
    environ = {**site.environ, **changed}
    with Terminal((DOIT, TASKS[0]), site.root, environ, 200, 24) as shown:
        status, text = shown.end()
    assert status == 0
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    start, done, last = text.splitlines()
    assert re.fullmatch(rf"{stamp} start   podman:one:1  never built", start)
    assert re.fullmatch(rf"{stamp} done    podman:one:1  \d+\.\d s", done)
    assert last == "2 images: 1 built; 1 fresh"


def prompt_after_ctrl_c(shown: Terminal) -> str:
    """Type Ctrl-C, and return all that can be seen once the prompt is back."""
    shown.type("\x03")
    typed_s = time.monotonic()
    status, text = shown.end()
    assert time.monotonic() < typed_s + PROMPT_S
    assert status == 130
    return text


def test_ctrl_c_in_a_smoke_test_that_ignores_signals_brings_the_prompt_back(
    site: Site, storage: Path, tmp_path: Path
) -> None:
    podman = Podman(root=f"{storage}/root", runroot=f"{storage}/run")
    site.image("tested:1", "true")
    nap = f"54321.{os.getpid()}"
    smoke = [["sh", "-c", f"trap '' TERM INT; echo tes''ting; sleep {nap}; sleep {nap}"]]
    (site.root / "projects/tested:1/project.toml").write_text(f"smoke = {json.dumps(smoke)}\n")
    runtime = working_runtime(podman, tmp_path / "rootfs")
    site = replace(site, environ={**site.environ, "RC_PODMAN_RUNTIME": runtime})
    # Otherwise it depends on the machine which steps of the base are done at Ctrl-C.
    assert doit(site.root, "build:base", environ=site.environ).status == 0
    with terminal(site, "-v", "2", "build:tested:1") as shown:
        shown.shows(lambda text: "  | testing" in text)
        text = prompt_after_ctrl_c(shown)
    # It is built, and not published.
    assert text.endswith("2 images: 1 fresh; 1 not finished")
    assert not (site.root / "projects/tested:1/image.sqsh").exists()
    assert subprocess.run(("pgrep", "-f", f"^sleep {nap}"), check=False).returncode == 1


def test_a_second_ctrl_c_ends_at_once(site: Site, tmp_path: Path) -> None:
    site.image("squashed:1", "true")
    stubborn = tmp_path / "bin/mksquashfs"
    stubborn.parent.mkdir()
    real = shutil.which("mksquashfs")
    stubborn.write_text(
        f'#!/bin/sh\ncase " $* " in *" -noappend "*) ;; *) exec {real} "$@" ;; esac\n'
        f"trap '' TERM\necho > {site.signs}/squashing\nwhile :; do sleep 0.1; done\n"
    )
    stubborn.chmod(0o755)
    path = f"{stubborn.parent}:{os.environ['PATH']}"
    site = replace(site, environ={**site.environ, "PATH": path, "RC_SQUASH_METHOD": "direct"})
    with terminal(site, "build:squashed:1") as shown:
        until((site.signs / "squashing").exists, lambda: shown.screen.text)
        shown.type("\x03")
        shown.shows(lambda text: text.endswith("not finished"))
        # More than a program that passes signals on may need.
        time.sleep(0.5)
        text = prompt_after_ctrl_c(shown)
    assert text.endswith("interrupted again: not waiting for the steps to end")
    # What was left behind is ended all the same.
    until(lambda: not list((site.root / ".rc/locks").glob("*.json")))


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_list_is_a_table_at_each_usual_width(site: Site, columns: int) -> None:
    for name in WAITING[1:]:
        shutil.rmtree(site.root / "projects" / name)
    with terminal(site, "list", columns=columns) as shown:
        _, text = shown.end()
    lines = text.splitlines()
    headings = lines[0].split()
    assert (headings[:2], headings[-1]) == (["IMAGE", "STATE"], "REASON")
    assert columns == 60 or headings == ["IMAGE", "STATE", "SIZE", "BUILT", "ALIASES", "REASON"]
    assert max(map(len, lines)) <= columns
    assert len([line for line in lines if line.startswith("base ")]) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize(
    ("command", "headings"),
    [("history", ("WHEN", "STEP", "OUTCOME", "REASON")), ("plan", ("STEP", "WHY"))],
)
def test_other_tables_stay_tables(
    site: Site, columns: int, command: str, headings: tuple[str, ...]
) -> None:
    for name in WAITING[1:]:
        shutil.rmtree(site.root / "projects" / name)
    with terminal(site, command, columns=columns) as shown:
        _, text = shown.end()
    lines = text.splitlines()
    assert set(headings) <= set(lines[0].split()), text
    assert max(map(len, lines)) <= columns
